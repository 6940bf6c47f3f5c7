"""How task gradients are computed: ``weighting.engine``, and what an engine cannot do."""

from collections.abc import Sequence

import torch
from omegaconf import DictConfig

from multitask.autodiff.autogram import Autogram
from multitask.autodiff.features import Features
from multitask.autodiff.gradients import Cotangents, Engine
from multitask.autodiff.layerwise import Layerwise
from multitask.autodiff.rows import Rows
from multitask.module import MultiTaskModule
from multitask.run.errors import ConfigError, choices
from multitask.task import Batch
from multitask.weighting.base import Combiner, JacobianMethod, Scalarization

ENGINES: dict[str, type[Engine]] = {
    "auto": Layerwise,
    "rows": Rows,
    "layerwise": Layerwise,
    "autogram": Autogram,
    "features": Features,
}
# These need the whole batch in one forward pass; of micro-batches and processes rows are added up.
_WHOLE = ("layerwise", "autogram")


def build_engine(config: DictConfig, weighting: Combiner, penalties: Sequence[str] = ()) -> Engine:
    """Make the engine that ``weighting.engine`` names.

    Args:
        config: The whole config.
        weighting: The combiner.
        penalties: The tasks that are penalties on parameters.

    Raises:
        ConfigError: If it is not there, or cannot do what the rest of the config asks for.
    """
    name = config.weighting.get("engine", "auto")
    if name not in ENGINES:
        raise ConfigError(f"weighting.engine={name} is not there; {choices(name, ENGINES)}")
    if isinstance(weighting, Scalarization):
        if name != "auto":
            raise ConfigError(
                f"weighting={config.method} is a scalarization: it has no Jacobian to compute; leave "
                "weighting.engine=auto."
            )
        return ENGINES[name]()
    assert isinstance(weighting, JacobianMethod)
    if name == "features":
        _check_features(config, weighting, penalties)
    if name in _WHOLE:
        needs = f"weighting.engine={name} needs the whole batch in one forward pass of one process"
        if config.trainer.accumulate_grad_batches > 1:
            raise ConfigError(f"{needs}; set trainer.accumulate_grad_batches=1 or weighting.engine=auto.")
        if several_processes(config):
            raise ConfigError(f"{needs}; set trainer.devices=1, or weighting.engine=auto.")
    if name == "autogram":
        if penalties:
            raise ConfigError(
                f"weighting.engine=autogram differentiates what comes out of the trunk, and tasks.{penalties[0]} is a "
                "penalty on its parameters; take weighting.engine=auto."
            )
        if config.compile:
            raise ConfigError(
                "weighting.engine=autogram cannot see into a compiled trunk; set compile=false, or "
                "weighting.engine=auto."
            )
        return Autogram(by_example=weighting.rows == "example")
    return ENGINES[name]()


def _check_features(config: DictConfig, weighting: JacobianMethod, penalties: Sequence[str]) -> None:
    """Refuse what gradients at the features cannot do.

    Raises:
        ConfigError: Naming the key.
    """
    if weighting.of_parameters:
        raise ConfigError(
            f"weighting={config.method} needs gradients of the parameters, and weighting.engine=features has none; "
            "take weighting.engine=auto."
        )
    if penalties:
        raise ConfigError(
            f"tasks.{penalties[0]} is a penalty on parameters, and weighting.engine=features sees gradients at the "
            "features alone; take weighting.engine=auto, or leave the penalty out."
        )
    if not weighting.gives_weights and several_processes(config):
        raise ConfigError(
            f"weighting={config.method} needs the features' gradients of the whole batch, and with "
            "weighting.engine=features no process has them all; take weighting.engine=auto or trainer.devices=1."
        )


def several_processes(config: DictConfig) -> bool:
    """Return whether more than one process trains."""
    return config.trainer.devices not in (1, "1", "auto") or config.trainer.num_nodes > 1


def processes(config: DictConfig) -> int:
    """Return how many processes train, as far as the config says it; 1 where Lightning counts the devices."""
    devices = config.trainer.devices
    if isinstance(devices, str):
        devices = (
            int(devices) if devices.isdecimal() else devices.strip("[]").split(",") if "," in devices else 1
        )
    count = devices if isinstance(devices, int) else len(devices)
    return max(1, count) * int(config.trainer.num_nodes)


def check_engine(config: DictConfig, module: MultiTaskModule, batch: Batch) -> None:
    """Refuse autogram where its Gramian is not that of rows, found by trying both on a few examples.

    It leaves out the parameters of modules that are not called, and fails on reused and tied ones.

    Raises:
        ConfigError: With what to choose instead.
    """
    if config.weighting.get("engine", "auto") != "autogram":
        return
    advice = "take weighting.engine=auto"
    module.ownership.find(module, batch)
    if module.ownership.all_specific():
        raise ConfigError(
            "weighting.engine=autogram takes all of the trunk's parameters for shared, and some belong to one task; "
            f"{advice}."
        )
    weighting = module.weighting
    by_example = isinstance(weighting, JacobianMethod) and weighting.rows == "example"
    try:
        same = _agrees_with_rows(module, {name: values[:3] for name, values in batch.items()}, by_example)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise ConfigError(f"weighting.engine=autogram fails on this trunk ({reason}); {advice}.") from error
    if not same:
        raise ConfigError(
            "weighting.engine=autogram gives another Gramian than plain rows on this trunk, as it does where the "
            f"parameters of a module are used without calling it; {advice}."
        )


def _agrees_with_rows(module: MultiTaskModule, batch: Batch, by_example: bool) -> bool:
    training = {part: part.training for part in module.trunk.modules()}
    module.trunk.eval()
    try:
        engine = Autogram(by_example)
        with torch.enable_grad(), engine.watch(module.trunk):
            outputs = list(dict.fromkeys(module.features(batch["inputs"])))
        generator = torch.Generator().manual_seed(0)
        by_task = [[torch.randn(o.shape, generator=generator).to(o) for o in outputs] for _ in range(2)]
        count = len(batch["inputs"])
        groups = torch.arange(count, device=outputs[0].device) if by_example else None
        cotangents = Cotangents([list(row) for row in by_task], groups, count if by_example else 1)
        shared = module.shared_parameters()
        found = engine.differentiate(outputs, cotangents, shared).gramian()
        wanted = Rows().differentiate(outputs, cotangents, shared).gramian()
    finally:
        for part, was in training.items():
            part.training = was
    return torch.allclose(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
