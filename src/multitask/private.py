"""All uses of other packages' private names except the autograd graph, with version, reason and upstream issue.

``tests/unit/test_private.py`` fails, naming the function, if a new version changes what it needs, and if private names
are used elsewhere. Packages are imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from lightning import Trainer
    from lightning.pytorch.loggers import WandbLogger


def compose_once(check: Callable[[ConfigLoader, list[str]], None]) -> None:
    """Let Hydra raise errors while it composes the config to find its mode, and keep the composed config.

    ``check`` is called first, with the loader and the overrides. hydra-core 1.3.8 composes for ``hydra.mode``, swallows
    any error, and composes again to run, to the same config or error:
    https://github.com/hydra-ecosystem/hydra/issues/3440.
    """
    from hydra._internal.hydra import Hydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    def get_mode(hydra: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        loader, count = hydra.config_loader, len(overrides)
        check(loader, overrides)
        config = hydra.compose_config(
            config_name=config_name,
            overrides=overrides,
            run_mode=RunMode.MULTIRUN,
            with_log_configuration=False,
            validate_sweep_overrides=False,
        )

        def kept(overrides: list[str], run_mode: RunMode, **_: Any) -> Any:
            del loader.load_configuration  # the jobs of a sweep are composed
            config.hydra.mode = run_mode
            config.hydra.overrides.hydra.extend(overrides[count:])  # Hydra adds its mode
            return config

        swept = any(each.is_sweep_override() for each in OverridesParser.create().parse_overrides(overrides))
        # A run refuses what a sweep passes: several values, and a group that has to be chosen.
        if not swept and not OmegaConf.missing_keys(config.hydra.runtime.choices):
            loader.load_configuration = kept  # type: ignore[method-assign, assignment]
        return config.hydra.mode

    Hydra.get_mode = get_mode  # type: ignore[method-assign, assignment]


def averages_statistics(trainer: Trainer) -> bool:
    """Return whether this epoch only updates the running statistics of averaged weights, without steps.

    In lightning 2.6.6 ``StochasticWeightAveraging`` sets a flag that only automatic optimization reads; hooks and
    manual optimization have no public one: https://github.com/Lightning-AI/pytorch-lightning/issues/17245.
    """
    return bool(trainer.fit_loop._skip_backward)


def log_results(trainer: Trainer, results: Mapping[str, float]) -> None:
    """Log results at the step that ``self.log`` would use, after the Trainer's loops have ended.

    lightning 2.6.6 counts that step separately from ``global_step``, without public access:
    https://github.com/Lightning-AI/pytorch-lightning/pull/11805.
    """
    trainer._logger_connector.log_metrics(dict(results))  # type: ignore[arg-type]


@contextmanager
def before_batches(trainer: Trainer, taken: int) -> Iterator[None]:
    """Rewind the progress by the current batch and ``taken`` earlier ones, so that a checkpoint resumes with them.

    lightning 2.6.6 resumes after the last fetched batch, whether or not a step followed:
    https://github.com/Lightning-AI/pytorch-lightning/issues/18060.
    """
    loop = trainer.fit_loop.epoch_loop

    def rewind(batches: int, steps: int) -> None:
        for counter in (loop.batch_progress.current, loop.batch_progress.total):
            counter.completed -= batches
        # On resuming, Lightning counts an incomplete batch as stepped.
        loop._batches_that_stepped -= steps

    rewind(taken, taken + 1)
    try:
        yield
    finally:
        rewind(-taken, -(taken + 1))


def leave_out_anonymous(logger: WandbLogger) -> None:
    """Keep Lightning from passing ``anonymous`` to W&B, which warns about it in every run.

    lightning 2.6.6 always passes it; wandb 0.31 deprecates it:
    https://github.com/wandb/wandb/pull/10909.
    """
    logger._wandb_init.pop("anonymous", None)


def specification(workspace: Any) -> str:
    """Return the specification of a W&B workspace as JSON.

    wandb-workspaces 0.4.13 can save it only to the server, and there is no upstream issue about files.
    """
    return str(workspace._to_model().spec.model_dump_json(by_alias=True, exclude_none=True, indent=2)) + "\n"


def keep_buffers_of_backward() -> None:
    """Allow several backward passes through one compiled graph.

    torch 2.13 donates the buffers of a compiled graph to its first backward pass, unless this setting or an environment
    variable disables it: https://github.com/pytorch/pytorch/pull/130580.
    """
    from torch._functorch import config

    config.donated_buffer = False
