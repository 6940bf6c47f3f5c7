"""Every combination of the values given on the command line."""

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from multitask.sweep import tracking
from multitask.sweep.plan import pin, plan
from multitask.sweep.progress import followed
from multitask.sweep.session import as_installed, begin, fail_for, launch
from multitask.sweep.signals import handed_on
from multitask.sweep.summary import show, summarize


class GridSweeper(BasicSweeper):
    """Hydra's basic sweeper, with all jobs checked before the first and one table after the last.

    Args:
        max_batch_size: Jobs handed to the launcher at once; ``None`` for all.
        params: Values to sweep over by key, as ``hydra.sweeper.params`` gives them.
    """

    def setup(self, **arguments: Any) -> None:
        """Make the launcher.

        Raises:
            ConfigError: If its plugin is not installed.
        """
        with as_installed(arguments["config"]):
            super().setup(**arguments)

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs.

        Raises:
            ConfigError: If a job cannot work; no job has run and no folder was made then.
            RunFailed: If a job failed, after all the others have run.
        """
        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        loader = self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        (batch,) = self.split_arguments(overrides, None)
        folder = pin(self.config, batch)
        jobs = plan(loader, self.config, batch)
        begin(folder, jobs)
        try:
            with followed(folder.name, jobs, len(jobs)), handed_on(jobs) as stop:
                launch(self.launcher, jobs, stop, self.max_batch_size)
        finally:
            summary = summarize(jobs)
            show(summary, folder.name)
            print(folder)
        tracking.log(self.config, summary, folder)
        fail_for(jobs)
