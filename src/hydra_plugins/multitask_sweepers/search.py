"""Settings that Optuna chooses."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from multitask.errors import ConfigError
from multitask.evaluation.names import SINGLE_TASK
from multitask.sweep.claim import claimed, holder
from multitask.sweep.objectives import objectives
from multitask.sweep.plan import Job, pin, plan
from multitask.sweep.search import RESULT, Search
from multitask.sweep.session import begin, launch
from multitask.sweep.space import space
from multitask.sweep.state import RUNNING, status_of
from multitask.sweep.sweeper import SurvivingSweeper


class OptunaSweeper(SurvivingSweeper):
    """A search whose jobs are those of any sweep: checked before they start, resumed, and in one table.

    The study is in the sweep's folder, so that a search that was stopped resumes with its unfinished trials.

    Args:
        n_trials: The number of settings to try.
        objectives: See :func:`multitask.sweep.objectives.objectives`.
        sampler: Config of a sampler of Optuna.
        storage: URL of Optuna's database; ``None`` for a file in the sweep's folder.
        max_batch_size: The number of trials that launchers with parallel jobs run at once.
        params: The searched values by key.
    """

    def __init__(
        self,
        n_trials: int,
        objectives: str | Mapping[str, str] | None,
        sampler: DictConfig,
        storage: str | None = None,
        max_batch_size: int | None = None,
        params: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(max_batch_size or 1, params)
        self.n_trials = n_trials
        self.objectives = objectives
        self.sampler = sampler
        self.storage = storage

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Create the launcher; refuse a search without Optuna."""
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                'Optuna is not installed; install it with pip install -e ".[optuna]".'
            ) from error
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """Run the search; if it cannot work, no job has run."""
        if self.master.hydra.runtime.choices.get("baseline") == SINGLE_TASK and not self.master.get("only"):
            raise ConfigError(
                "a search tunes one task at a time: give only=<task> with baseline=single_task."
            )
        searched = space(self.parsed(arguments))
        wanted = objectives(self.objectives, self.master)
        folder = pin(self.master, [list(searched.fixed)])
        self._plan(searched.probe())  # an error of the config is reported before there is a folder
        with claimed(folder) as held:
            if not held:
                raise ConfigError(f"sweep={folder.name} is searched by {holder(folder)}; let it end.")
            selection = self.master.selection.metric
            search = Search(folder, searched, wanted, self.sampler, self.storage, self._plan, selection)
            self._run(search, folder)

    def _plan(self, batch: Sequence[Sequence[str]]) -> list[Job]:
        return plan(self.loader, self.master, batch)

    def _run(self, search: Search, folder: Path) -> None:
        unfinished = search.unfinished()
        left = max(0, self.n_trials - len(search.study.trials))
        begin(folder, search.jobs)
        total = self.n_trials * max(1, len(search.space.seeds))
        size = self.max_batch_size or 1

        def report() -> None:
            search.write(folder / RESULT)
            search.show()

        with self.following(folder, search.jobs, total, report) as stop:
            while unfinished or left:
                batch, unfinished = unfinished[:size], unfinished[size:]
                new = min(left, size - len(batch))
                left -= new
                batch += [search.ask() for _ in range(new)]
                jobs = list(dict.fromkeys(job for trial in batch for job in search.jobs_of(trial)))
                begin(folder, search.jobs)
                launch(self.launcher, jobs, stop)
                while any(status_of(job.folder) == RUNNING for job in jobs):
                    # By a process that outlived an earlier attempt.
                    stop.check()
                    time.sleep(1)
                for trial in batch:
                    search.tell(trial)
