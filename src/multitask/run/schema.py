"""Sections of a config, and types, choices and ranges of its keys, checked without heavy imports.

The defaults are in the YAML files.
"""

from typing import Annotated, Any, Literal

from annotated_types import Ge
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from multitask.errors import ConfigError, choices, on_one_line

Amount = Annotated[float, Ge(0)]
Natural = Annotated[int, Ge(0)]
Count = Annotated[int, Ge(1)]
Several = Annotated[int, Ge(2)]
Limit = Annotated[int, Ge(-1)]
Names = list[str]

Schema = dict[str, Any]
"""The type of each key, as an annotation for pydantic."""

COMPARE: Schema = {
    "metrics": Names | None,
    "multiplicative": Names | None,
    "recipe": str,
    "accept_other_baseline": bool,
    "difference": Amount,
    "targets": dict[str, float] | None,
    "pareto": Names | None,
}
BENCHMARK: Schema = {
    "tasks": list[Several] | None,
    "instances": list[Annotated[int, Ge(4)]] | None,  # two tasks, two examples
    "solver_tasks": list[Several] | None,
    "framework_tasks": list[Several] | None,
    "quick": bool,
    "seconds": Amount | None,
    "rounds": Count | None,
    "threads": Count,
    "device": Literal["cpu", "cuda"],
    "seed": Natural,
}
OF_CHECKPOINT: Schema = {
    "split": Literal["train", "val", "test"],
    "format": Literal["torch", "onnx"],
    "dynamic": bool,
}
"""The keys of predict.py and export.py beside those of a run."""
TRAIN: Schema = {
    "seed": Natural,
    "selection.mode": Literal["min", "max"],
    "evaluation.splits": Names,
    "evaluation.multiplicative": Names,
    "data.batch_size": Count | None,
    "data.eval_batch_size": Count,
    "data.drop_last": bool,
    "data.num_workers": Natural,
    "optimizer.lr": Amount,
    "optimizer.weight_decay": Amount,
    "optimizer.momentum": Amount,
    "parameter_groups": dict[str, dict[str, Any]] | None,
    "callbacks.per_task.metric": str,
    "callbacks.per_task.patience": Count | None,
    "callbacks.per_task.min_delta": Amount,
    "callbacks.per_task.freeze": bool,
    "callbacks.schedule.tasks": dict[str, dict[str, Any]] | None,
    "scheduler.interval": Literal["epoch", "step"],
    "scheduler.frequency": Count,
    "scheduler.step_size": Count,
    "scheduler.T_max": Count,
    "scheduler.patience": Natural,
    "trainer.max_epochs": Limit | None,
    "trainer.max_steps": Limit,
    "trainer.num_nodes": Count,
    "trainer.accumulate_grad_batches": Count,
    "trainer.gradient_clip_val": Amount | None,
    "trainer.gradient_clip_algorithm": Literal["norm", "value"] | None,
    "trainer.check_val_every_n_epoch": Count | None,
    "trainer.val_check_interval": Amount,
    "trainer.limit_train_batches": Amount,
    "trainer.limit_val_batches": Amount,
    "trainer.limit_test_batches": Amount,
    "trainer.overfit_batches": Amount,
    "trainer.num_sanity_val_steps": Limit,
    "trainer.log_every_n_steps": Count,
    "trainer.enable_progress_bar": bool,
    "trainer.enable_model_summary": bool,
    "trainer.detect_anomaly": bool,
    "weighting.engine": Literal["auto", "rows", "layerwise", "features"],
    "weighting.memory": Literal["rows", "stream", "auto"],
    "weighting.heads": Literal["own", "weighted"],
    "weighting.rows": Literal["task", "example"],
    "weighting.every": Count,
    "weighting.groups": Literal["trunk", "layer", "tensor"],
    "weighting.rescale": bool,
    "weighting.learning_rate": Amount | None,
    "logger.wandb.mode": Literal["offline", "online", "disabled"],
    "tags": Names | None,
    "print_config": bool,
    "task_check": bool,
    "compile": bool,
}

# Sections that must have a _target_, those that must have keys, and those that may be empty.
_MADE = ("data", "trunk", "weighting", "optimizer")
_SECTIONS = ("trainer", "selection", "evaluation", "paths")
_MAYBE_EMPTY = {"scheduler": "scheduler=none", "callbacks": "callbacks=default", "logger": "logger=csv"}
_NOTHING = object()


def check_values(config: DictConfig, schema: Schema) -> None:
    """Refuse a value that does not have its key's type in the schema; missing keys are skipped."""
    from pydantic import TypeAdapter, ValidationError  # deferred: --help does not need it

    for key, kind in schema.items():
        try:
            value = OmegaConf.select(config, key, default=_NOTHING)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key}: {on_one_line(error)}") from error
        if value is _NOTHING:
            continue
        adapter = TypeAdapter(kind)
        plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        try:
            adapter.validate_python(plain, strict=True)
        except ValidationError as error:
            wanted = adapter.json_schema()
            names = wanted.get("anyOf", [wanted])[0].get("enum")
            hint = f"; {choices(str(plain), names)}" if names else "."
            raise ConfigError(
                f"{key}={'null' if plain is None else plain} is not {_described(wanted)}{hint}"
            ) from error


def _described(wanted: dict[str, Any]) -> str:
    """Return a JSON schema in words."""
    match wanted:
        case {"anyOf": kinds}:
            return ", or ".join(map(_described, kinds))
        case {"enum": names}:
            return f"one of {', '.join(names)}"
        case {"type": "array", "items": {"type": "string"}}:
            return "a list of names in brackets"
        case {"type": "object", "additionalProperties": {"type": "number"}}:
            return "numbers by name in braces"
        case {"type": "array", "items": items}:
            return f"a list in brackets, each {_described(items)}"
        case {"type": "object"}:
            return "settings by name in braces"
        case {"type": "integer" | "number" as kind}:
            bound = f" of at least {wanted['minimum']:g}" if "minimum" in wanted else ""
            return f"a {'whole ' if kind == 'integer' else ''}number{bound}"
    return {"null": "null", "boolean": "true or false", "string": "a name"}[wanted["type"]]


def check_sections(config: DictConfig, own: bool = False) -> None:
    """Refuse a config in which a section is missing or lacks its ``_target_``.

    A model of the user's own has no trunk and may have its own optimizer.
    """
    content = _nodes(config)
    for key in _MADE:
        free = own and (key == "trunk" or (key == "optimizer" and content.get(key) == {}))
        if not free and not _has_target(content.get(key)):
            raise ConfigError(f"{key} names no _target_; choose one with {key}=…")
    if "trained" not in content and not _has_target(content.get("model")):
        raise ConfigError("model names no _target_; choose model=trunk_and_heads, or set model._target_=…")
    for key in _SECTIONS:
        if not isinstance(content.get(key), dict):
            raise ConfigError(
                f"{key} has no keys, and a run needs those of the config; keep {key} and set {key}.<key>=…"
            )
    # Scripts that read a checkpoint have neither callbacks nor loggers.
    for key, advice in _MAYBE_EMPTY.items() if "trained" not in content else ():
        if key not in content or not isinstance(content[key], dict | None):
            raise ConfigError(f"{key} is missing from the config; choose {advice}.")
    for name, node in _nodes(config.get("tasks") or OmegaConf.create()).items():
        key = f"tasks.{name}"
        if not _has_target(node):
            raise ConfigError(
                f"{key} names no _target_; leave it out of task=[…], or set {key}._target_=multitask.task.Task."
            )
        for part in ("head", "loss", "target"):
            if part in node and node[part] is None:
                raise ConfigError(f"{key}.{part}=null; a task needs a {part}.")


def _has_target(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("_target_"), str)


def _nodes(config: DictConfig) -> dict[str, Any]:
    """Return the config as plain containers, resolving only keys that refer to a node, such as ``${tasks.left}``."""
    content: Any = OmegaConf.to_container(config, resolve=False)
    for key in content:
        if OmegaConf.is_interpolation(config, key) and OmegaConf.is_config(node := config[key]):
            content[key] = OmegaConf.to_container(node, resolve=False)
    return content
