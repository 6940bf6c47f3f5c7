"""W&B and Comet loggers; W&B runs offline by default: no login, no prompt, no network access."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

from lightning.pytorch.loggers import CometLogger, Logger, WandbLogger

from multitask import quiet_loggers  # noqa: F401
from multitask.errors import ConfigError, on_one_line
from multitask.private import leave_out_anonymous


def logger(mode: str = "offline", **arguments: Any) -> WandbLogger:
    """Build Lightning's W&B logger; ``mode`` is ``offline``, ``online`` or ``disabled``.

    It holds for this run only; neither the environment nor another job of the same process changes it.
    """
    # wandb would continue a run that an earlier job of this process left open.
    finish(1)
    made = WandbLogger(mode=mode, **arguments)
    leave_out_anonymous(made)
    return made


class Comet(CometLogger):
    """Lightning's Comet logger, except that ``online=False`` writes an archive; Lightning's would log nothing."""

    def __init__(self, *, api_key: str | None = None, online: bool | None = None, **options: Any) -> None:
        own = signature(CometLogger.__init__).parameters
        self._settings = {key: value for key, value in options.items() if key not in own}
        super().__init__(api_key=api_key, online=online, **options)  # opens the experiment

    def _create_experiment(self) -> None:
        import comet_ml

        self._comet_config = comet_ml.ExperimentConfig(**self._settings)
        super()._create_experiment()


def start(loggers: list[Any], facts: Mapping[str, Any]) -> None:
    """Open the run of each logger and log its facts: the resolved config, overrides, commit and versions."""
    import wandb

    for each in loggers:
        if not isinstance(each, WandbLogger):
            each.log_hyperparams(dict(facts))
        else:
            try:
                each.experiment.config.update(dict(facts), allow_val_change=True)
            except wandb.errors.Error as error:
                raise ConfigError(
                    f"logger.wandb.mode: W&B did not open the run ({on_one_line(error)}); run `wandb login`, "
                    "or use offline mode."
                ) from error


def finish(exit_code: int, loggers: Sequence[Logger] = ()) -> None:
    """End this process's W&B run, if any, and the experiments of Comet loggers."""
    import wandb

    for each in loggers:
        if isinstance(each, CometLogger):
            each.experiment.end()
    if wandb.run is not None:
        wandb.finish(exit_code=exit_code)
