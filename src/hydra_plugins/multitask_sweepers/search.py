"""Settings that Optuna chooses."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from multitask.errors import ConfigError
from multitask.run.checks import SINGLE_TASK
from multitask.sweep import tracking
from multitask.sweep.claim import claimed, holder
from multitask.sweep.objectives import objectives
from multitask.sweep.plan import Job, pin, plan
from multitask.sweep.progress import followed
from multitask.sweep.search import RESULT, Search
from multitask.sweep.session import as_installed, begin, fail_for, launch
from multitask.sweep.signals import handed_on
from multitask.sweep.space import space
from multitask.sweep.state import RUNNING, status_of
from multitask.sweep.summary import show, summarize


class OptunaSweeper(Sweeper):
    """A search whose jobs are those of any sweep: checked before they start, resumed, and in one table.

    The study lies in the sweep's folder, so that a search that was stopped, however, goes on with the
    trials that it was in.

    Args:
        n_trials: How many settings are tried.
        objectives: See :func:`multitask.sweep.objectives.objectives`.
        sampler: Config of a sampler of Optuna.
        storage: URL of Optuna's data base; ``None`` for a file in the sweep's folder.
        max_batch_size: Trials that run at once, by launchers that run jobs side by side.
        params: What is searched, by key.
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
        self.n_trials = n_trials
        self.objectives = objectives
        self.sampler = sampler
        self.storage = storage
        self.size = max_batch_size or 1
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher.

        Raises:
            ConfigError: If Optuna or the launcher's plugin is not installed.
        """
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                'Optuna is not installed; install it with pip install -e ".[optuna]".'
            ) from error
        self.master = config
        self.loader = hydra_context.config_loader
        with as_installed(config):
            self.launcher: Launcher = Plugins.instance().instantiate_launcher(
                hydra_context=hydra_context, task_function=task_function, config=config
            )

    def sweep(self, arguments: list[str]) -> None:
        """Run the search.

        Raises:
            ConfigError: If it cannot work; no job has run then.
            RunFailed: If a job failed, after all the others have run.
        """
        if self.master.hydra.runtime.choices.get("baseline") == SINGLE_TASK and not self.master.get("only"):
            raise ConfigError(
                "a search tunes one task at a time: give only=<task> with baseline=single_task."
            )
        given = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        searched = space(OverridesParser.create(config_loader=self.loader).parse_overrides(given))
        wanted = objectives(self.objectives, self.master)
        folder = pin(self.master, [list(searched.fixed)])
        self._plan(searched.probe())  # whatever the config gets wrong is said before there is a folder
        with claimed(folder) as held:
            if not held:
                raise ConfigError(f"sweep={folder.name} is searched by {holder(folder)}; let it end.")
            selection = self.master.selection.metric
            search = Search(folder, searched, wanted, self.sampler, self.storage, self._plan, selection)
            self._run(search, folder)
        fail_for(search.jobs)

    def _plan(self, batch: Sequence[Sequence[str]]) -> list[Job]:
        return plan(self.loader, self.master, batch)

    def _run(self, search: Search, folder: Path) -> None:
        begun = search.begun()
        left = max(0, self.n_trials - len(search.study.trials))
        begin(folder, search.jobs)
        total = self.n_trials * max(1, len(search.space.seeds))
        try:
            with followed(folder.name, search.jobs, total), handed_on(search.jobs) as stop:
                while begun or left:
                    batch, begun = begun[: self.size], begun[self.size :]
                    new = min(left, self.size - len(batch))
                    left -= new
                    batch += [search.ask() for _ in range(new)]
                    jobs = list(dict.fromkeys(job for trial in batch for job in search.jobs_of(trial)))
                    begin(folder, search.jobs)
                    launch(self.launcher, jobs, stop)
                    while any(status_of(job.folder) == RUNNING for job in jobs):
                        # By a process that outlived an earlier go.
                        stop.check()
                        time.sleep(1)
                    for trial in batch:
                        search.tell(trial)
        finally:
            summary = summarize(search.jobs)
            show(summary, folder.name)
            search.write(folder / RESULT)
            search.show()
            print(folder)
        tracking.log(self.master, summary, folder)
