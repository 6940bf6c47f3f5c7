"""Uses of private parts of other packages, the autograd graph aside, each with its version, reason and upstream issue.

``tests/unit/test_private.py`` fails by the name of the function when a new version moves what it needs, and when
private names are used elsewhere. Packages are imported where they are needed: this module costs nothing by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from lightning import Trainer
    from lightning.pytorch.loggers import WandbLogger


def raise_errors_of_composition(check: Callable[[ConfigLoader, list[str]], None]) -> None:
    """Let Hydra raise what goes wrong while it composes the config to find its mode, in half the time.

    hydra-core 1.3.8 composes for ``hydra.mode``, swallows any error, and composes again to meet the same one:
    https://github.com/hydra-ecosystem/hydra/issues/3440.

    Args:
        check: What to check before, given the loader and the overrides.
    """
    from hydra._internal.hydra import Hydra
    from hydra.types import RunMode

    def get_mode(hydra: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        check(hydra.config_loader, overrides)
        config = hydra.compose_config(
            config_name=config_name,
            overrides=overrides,
            run_mode=RunMode.MULTIRUN,
            with_log_configuration=False,
            validate_sweep_overrides=False,
        )
        return config.hydra.mode

    Hydra.get_mode = get_mode  # type: ignore[method-assign, assignment]


def averages_statistics(trainer: Trainer) -> bool:
    """Return whether the batches are passed for the running statistics of averaged weights, without a step.

    lightning 2.6.6 tells automatic optimization alone, by a flag that ``StochasticWeightAveraging`` sets; hooks and
    manual optimization have no public sign of that pass: https://github.com/Lightning-AI/pytorch-lightning/issues/17245.
    """
    return bool(trainer.fit_loop._skip_backward)


def log_results(trainer: Trainer, results: Mapping[str, float]) -> None:
    """Give results to the loggers at the step of ``self.log``, after the Trainer's loops have ended.

    lightning 2.6.6 counts that step apart from ``global_step``, out of reach of a logger's caller:
    https://github.com/Lightning-AI/pytorch-lightning/pull/11805.
    """
    trainer._logger_connector.log_metrics(dict(results))  # type: ignore[arg-type]


@contextmanager
def before_batches(trainer: Trainer, taken: int) -> Iterator[None]:
    """Count back by the batch in hand and those of its unfinished window, so that a checkpoint begins with them.

    lightning 2.6.6 resumes behind a batch that was fetched, whether or not a step followed:
    https://github.com/Lightning-AI/pytorch-lightning/issues/18060.

    Args:
        trainer: The trainer, before the batch.
        taken: How many batches of the window came before it.
    """
    loop = trainer.fit_loop.epoch_loop

    def turn_back(batches: int, steps: int) -> None:
        for counter in (loop.batch_progress.current, loop.batch_progress.total):
            counter.completed -= batches
        # On resuming, Lightning counts this batch as stepped where it was not completed.
        loop._batches_that_stepped -= steps

    turn_back(taken, taken + 1)
    try:
        yield
    finally:
        turn_back(-taken, -(taken + 1))


def leave_out_anonymous(logger: WandbLogger) -> None:
    """Keep Lightning from handing ``anonymous`` to W&B, which warns of it in every run.

    lightning 2.6.6 passes it whether it is given or not; wandb 0.31 deprecates it:
    https://github.com/wandb/wandb/pull/10909.
    """
    logger._wandb_init.pop("anonymous", None)


def specification(workspace: Any) -> str:
    """Return a W&B workspace's specification as JSON, as it would be saved.

    wandb-workspaces 0.4.13 can save one to the server alone, and no upstream issue asks for a file.
    """
    return str(workspace._to_model().spec.model_dump_json(by_alias=True, exclude_none=True, indent=2)) + "\n"


def keep_buffers_of_backward() -> None:
    """Allow several backward passes through one compiled graph.

    torch 2.13 donates the buffers of a compiled graph to its first backward pass, which only this setting or an
    environment variable turns off: https://github.com/pytorch/pytorch/pull/130580.
    """
    import torch

    torch._functorch.config.donated_buffer = False
