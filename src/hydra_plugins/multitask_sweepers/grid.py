"""Every combination of the values given on the command line."""

from multitask.sweep.plan import pin, plan
from multitask.sweep.session import begin, launch
from multitask.sweep.sweeper import SurvivingSweeper, combinations


class GridSweeper(SurvivingSweeper):
    """All combinations of values, checked before the first job starts; the arguments are those of the base."""

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs; if one cannot work, none has run and no folder was made."""
        batch = combinations(self.parsed(arguments))
        folder = pin(self.master, batch)
        jobs = plan(self.loader, self.master, batch)
        begin(folder, jobs)
        with self.following(folder, jobs, len(jobs)) as stop:
            launch(self.launcher, jobs, stop, self.max_batch_size)
