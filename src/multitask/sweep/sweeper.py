"""The part of a sweep that is the same whatever chooses its jobs."""

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
from multitask.sweep.progress import followed
from multitask.sweep.session import as_installed, fail_for
from multitask.sweep.signals import Stop, handed_on
from multitask.sweep.summary import show, summarize


class SurvivingSweeper(Sweeper):
    """A sweeper of Hydra's whose jobs are checked before they start, resumed, and summarized in one table.

    Args:
        max_batch_size: Jobs handed to the launcher at once; ``None`` for all.
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
        """Make the launcher.

        Raises:
            ConfigError: If its plugin is not installed.
        """
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
    def under_way(
        self, folder: Path, jobs: Sequence[Job], total: int, report: Callable[[], None] | None = None
    ) -> Iterator[Stop]:
        """Follow the jobs that the block launches; print and log their table when it ends, however it ends.

        Args:
            folder: The sweep's folder.
            jobs: The jobs; a search adds to them.
            total: How many there will be.
            report: Prints below the table.

        Raises:
            RunFailed: If a job failed, after all the others have run.
        """
        try:
            with followed(folder.name, jobs, total), handed_on(jobs) as stop:
                yield stop
        finally:
            summary = summarize(jobs)
            show(summary, folder.name)
            if report is not None:
                report()
            print(folder)
        tracking.log(self.master, summary, folder)
        fail_for(jobs)


def combinations(overrides: Sequence[Override]) -> list[list[str]]:
    """Return every combination of the values given; of overrides that give one key, the last counts.

    Raises:
        ConfigError: If one gives a range without steps.
    """
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
