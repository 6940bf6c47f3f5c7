"""Builds the combiner from the config, with its optimizer and training options."""

from collections.abc import Mapping
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from omegaconf import DictConfig
from torch import nn

from multitask.errors import ConfigError
from multitask.gradients.engines import make_engine
from multitask.lightning.module import MultiLossModule
from multitask.module import AnyTask, takes_derivatives
from multitask.run.devices import several_processes
from multitask.run.parameter_groups import Grouped
from multitask.run.resolvers import plain
from multitask.run.sharding import check_sharded
from multitask.run.weighting import build_weighting
from multitask.task.penalty import Penalty
from multitask.task.task import Task
from multitask.task.terms import Term
from multitask.weighting.base import Combiner, JacobianMethod, Scalarization, check_kept

# Keys of the weighting group that are for the module, not for the combiner's constructor.
_FOR_MODULE = ("learning_rate", "engine", "memory", "heads")


def build_combiner(config: DictConfig, tasks: list[str]) -> Combiner:
    """Build the combiner that ``config.weighting`` names; refuse a learning rate if it has no parameters."""
    arguments = {key: value for key, value in plain(config.weighting).items() if key not in _FOR_MODULE}
    combiner = build_weighting(arguments, tasks)
    rate = config.weighting.get("learning_rate")
    if rate is not None and not any(True for _ in combiner.parameters()):
        raise ConfigError(
            f"weighting.learning_rate={rate} applies to a combiner's own parameters, and weighting={config.method} has "
            "none; leave weighting.learning_rate=null."
        )
    return combiner


def step_options(config: DictConfig, weighting: Combiner, tasks: Mapping[str, AnyTask]) -> dict[str, Any]:
    """Return engine, memory, heads and manual optimization; refuse those that the combiner does not support."""
    keys = (("heads", "own"), ("engine", "auto"), ("memory", "rows"))
    options = {key: config.weighting.get(key, default) for key, default in keys}
    missing = any(isinstance(task, Task | Term) and task.missing for task in tasks.values())
    if isinstance(weighting, Scalarization):
        for key, default, reason in (
            ("engine", "auto", "it has no Jacobian to compute"),
            ("heads", "own", "its heads get the scalar's gradient"),
        ):
            if options[key] != default:
                raise ConfigError(
                    f"weighting={config.method} is a scalarization: {reason}; leave weighting.{key}={default}."
                )
    if isinstance(weighting, JacobianMethod):
        _check_engine(config, weighting, options["engine"], tasks)
    if options["memory"] != "rows":
        _check_streamed(config, weighting, options["engine"], options["memory"])
    if isinstance(weighting, JacobianMethod):
        if options["heads"] == "weighted" and not weighting.gives_weights:
            raise ConfigError(
                f"weighting={config.method} gives a gradient but no weights for the heads; set "
                "weighting.heads=own."
            )
        if _by_example(weighting):
            _check_examples(config, missing, tasks)
    # DistributedDataParallel would wait for parameters that an absent task does not reach.
    return options | {"manual": True if missing and several_processes(config) else None}


def train_with(
    config: DictConfig,
    module: MultiLossModule,
    tasks: Mapping[str, AnyTask],
    shared: list[nn.Parameter] | None = None,
) -> None:
    """Give a module the combiner, optimizer and scheduler of the config; refuse what they do not support.

    The names of the module are those of the losses; ``tasks`` is empty for a user's own model. ``shared``: the shared
    parameters; ``None`` to find them in each step.
    """
    weighting = build_combiner(config, module.names)
    _check_batch_losses(config, tasks, weighting)
    _check_given(config, module, weighting)
    check_sharded(config, weighting, tasks)
    scheduler = dict(plain(config.scheduler) or {})
    apart = {key: scheduler.pop(key) for key in ("interval", "frequency", "monitor") if key in scheduler}
    optimizer = _made(config.optimizer)
    groups = plain(config.parameter_groups) if config.get("parameter_groups") else {}
    module.train_with(
        weighting,
        optimizer=Grouped(optimizer, groups, module) if groups else optimizer,
        scheduler=_made(scheduler),
        scheduler_options=apart,
        weighting_learning_rate=config.weighting.get("learning_rate"),
        seed=config.seed,
        shared=shared,
        **step_options(config, weighting, tasks),
    )
    module.automatic_optimization = not module.by_hand(config.trainer.accumulate_grad_batches)


def _check_given(config: DictConfig, module: MultiLossModule, weighting: Combiner) -> None:
    """Refuse a combiner that needs what the module does not define."""
    if _by_example(weighting) and not is_overridden("losses_by_part", module, MultiLossModule):
        raise ConfigError(
            f"weighting={config.method} weighs the losses of examples, and {type(module).__name__} gives none; define "
            "losses_by_part in it, or choose another weighting."
        )
    if weighting.recomputed == "traces" and type(module).traces is MultiLossModule.traces:
        raise ConfigError(
            f"weighting={config.method} needs the traces of the residuals' kernel, and {type(module).__name__} gives "
            "none; use model=pinn, define traces in it, or choose another weighting."
        )
    weighting.check_parameters([n for n, _ in module.named_parameters() if not n.startswith("weighting.")])


def _by_example(weighting: Combiner) -> bool:
    return isinstance(weighting, JacobianMethod) and weighting.rows == "example"


def _made(node: Mapping[str, Any]) -> Any:
    """Return a node's ``_target_`` as a partial function of further arguments; ``None`` if the node has none."""
    return instantiate(node, _partial_=True, _convert_="all") if "_target_" in node else None


def _check_engine(
    config: DictConfig, weighting: JacobianMethod, name: str, tasks: Mapping[str, AnyTask]
) -> None:
    """Refuse an engine that does not support the rest of the config."""
    if name == "layerwise":
        _check_whole(config, "weighting.engine=layerwise", "weighting.engine=auto")
        if config.compile:
            raise ConfigError(
                "compile=true makes the trunk one operation, in which weighting.engine=layerwise finds no layers; take "
                "weighting.engine=auto, which takes rows of it, or set compile=false."
            )
    if name != "features":
        return
    if weighting.of_parameters:
        raise ConfigError(
            f"weighting={config.method} needs gradients of the parameters, and weighting.engine=features has none; "
            "use weighting.engine=auto."
        )
    for task, part in tasks.items():
        if not isinstance(part, Task) or part.head is None:
            penalty = isinstance(part, Penalty)
            kind = "penalty on parameters" if penalty else "loss of more than a head's features"
            raise ConfigError(
                f"tasks.{task} is a {kind}, and weighting.engine=features sees only gradients at the features; use "
                f"weighting.engine=auto, or leave the {'penalty' if penalty else 'task'} out."
            )
    if not weighting.gives_weights and several_processes(config):
        raise ConfigError(
            f"weighting={config.method} needs the features' gradients of the whole batch, and with "
            "weighting.engine=features no process has them all; use weighting.engine=auto or trainer.devices=1."
        )


def _check_streamed(config: DictConfig, weighting: Combiner, engine: str, memory: str) -> None:
    """Refuse what needs the rows that ``weighting.memory=stream`` does not keep, and ``auto`` may not keep."""
    try:
        check_kept(weighting, memory, name=f"weighting={config.method}")
        make_engine(engine, memory)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _check_whole(config, f"weighting.memory={memory}", "weighting.memory=rows")


def _check_whole(config: DictConfig, key: str, instead: str) -> None:
    """Refuse steps of several forward passes."""
    needs = f"{key} needs the whole batch in one forward pass of one process"
    if config.trainer.accumulate_grad_batches > 1:
        raise ConfigError(f"{needs}; set trainer.accumulate_grad_batches=1 or {instead}.")
    if several_processes(config):
        raise ConfigError(f"{needs}; set trainer.devices=1, or {instead}.")


def _check_examples(config: DictConfig, missing: bool, tasks: Mapping[str, AnyTask]) -> None:
    """Refuse settings that split the batch, and tasks without a loss for each example."""
    needs = f"weighting={config.method} weighs the losses of all examples of a batch against one another"
    if config.trainer.accumulate_grad_batches > 1:
        raise ConfigError(f"{needs}; set trainer.accumulate_grad_batches=1.")
    if several_processes(config):
        raise ConfigError(
            f"{needs}, and no process has them all; set trainer.devices=1 and trainer.num_nodes=1."
        )
    if missing:
        raise ConfigError(
            f"{needs}, and an example without a label has no loss; leave out tasks with missing=true."
        )
    for name, task in tasks.items():
        if isinstance(task, Penalty):
            raise ConfigError(
                f"{needs}, and the penalty tasks.{name} is no loss of an example; leave it out, or set "
                "optimizer.weight_decay."
            )


def check_compiled(config: DictConfig, tasks: Mapping[str, AnyTask]) -> None:
    """Refuse losses on derivatives of a compiled trunk, which torch can differentiate only once."""
    names = [name for name, task in tasks.items() if takes_derivatives(task)]
    if config.compile and names:
        raise ConfigError(
            f"compile=true leaves no second derivative of the trunk, which tasks.{names[0]} needs to train on "
            "derivatives; set compile=false."
        )


def _check_batch_losses(config: DictConfig, tasks: Mapping[str, AnyTask], weighting: Combiner) -> None:
    """Refuse losses with ``count=batch`` where each example needs one; warn where they are averaged over parts."""
    names = [name for name, task in tasks.items() if getattr(task, "counts_by", None) == "batch"]
    if not names:
        return
    if _by_example(weighting):
        raise ConfigError(
            f"tasks.{names[0]}.count=batch says that an example alone has no loss, and weighting={config.method} "
            "weighs the losses of examples; choose another weighting."
        )
    parts = ["micro-batch"] if config.trainer.accumulate_grad_batches > 1 else []
    parts += ["process"] if several_processes(config) else []
    if parts:
        keys = ", ".join(f"tasks.{name}.count=batch" for name in names)
        rank_zero_warn(
            f"{keys}: the loss of a step is the mean of the losses of each {' and '.join(parts)}, which differs from "
            "the loss of one batch with all their examples."
        )
