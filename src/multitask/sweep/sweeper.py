"""The base class of the sweepers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from multitask.errors import ConfigError
from multitask.sweep import tracking
from multitask.sweep.plan import Job
from multitask.sweep.progress import printed_progress
from multitask.sweep.session import as_installed, raise_if_incomplete
from multitask.sweep.signals import Stop, forwarded_signals
from multitask.sweep.summary import show, summarize


class SurvivingSweeper(Sweeper):
    """A Hydra sweeper whose jobs are checked before the first one starts, resumed, and summarized in one table.

    Args:
        max_batch_size: The number of jobs given to the launcher at once; ``None`` for all.
        params: Values by key, in addition to the command line's.
    """

    loader: ConfigLoader
    launcher: Launcher
    master: DictConfig
    """The sweep's own config."""

    def __init__(self, max_batch_size: int | None = None, params: Mapping[str, str] | None = None) -> None:
        self.max_batch_size = max_batch_size
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Create the launcher."""
        self.master = config
        self.loader = hydra_context.config_loader
        with as_installed(config):
            self.launcher = Plugins.instance().instantiate_launcher(
                hydra_context=hydra_context, task_function=task_function, config=config
            )

    def parsed(self, arguments: Sequence[str]) -> list[Override]:
        """Return the overrides of ``params`` and of the command line."""
        given = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        return OverridesParser.create(config_loader=self.loader).parse_overrides(given)

    @contextmanager
    def following(
        self, folder: Path, jobs: Sequence[Job], total: int, report: Callable[[], None] | None = None
    ) -> Iterator[Stop]:
        """Follow the jobs that the block launches; print their table when it ends, even after an error, and log it.

        Args:
            folder: The sweep's folder.
            jobs: The jobs; a search adds to them.
            total: The final number of jobs.
            report: Called after the table is printed.

        Raises:
            RunFailed: If a job failed, after all others have run.
        """
        try:
            with printed_progress(folder.name, jobs, total), forwarded_signals(jobs) as stop:
                yield stop
        finally:
            summary = summarize(jobs)
            show(summary, folder.name)
            if report is not None:
                report()
            print(folder)
        tracking.log(self.master, summary, folder)
        raise_if_incomplete(jobs)


def combinations(overrides: Sequence[Override]) -> list[list[str]]:
    """Return every combination of the overrides' values; the last override of a key wins."""
    axes: dict[str, list[str]] = {}
    for override in overrides:
        key = str(override.get_key_element())
        if not override.is_sweep_override():
            axes[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            axes[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise ConfigError(
                f"{override.input_line} has no list of values; give values with commas, or search it with "
                "hydra/sweeper=optuna."
            )
    return [list(job) for job in product(*axes.values())]
