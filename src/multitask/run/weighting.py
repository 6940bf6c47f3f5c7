"""Builds a combiner from a weighting's YAML: numbers by task name become vectors in task order."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from torch import Tensor
from torchjd.aggregation import Aggregator, Weighting
from torchjd.scalarization import Scalarizer

from multitask.weighting.adapter import adapt
from multitask.weighting.base import Combiner, JacobianMethod, Scalarization, WeightedMethod
from multitask.weighting.grouped import Grouped
from multitask.weighting.wrapper import Differentiated, Every, InstanceWise, Rescaled

WRAPPER_KEYS = ("rows", "every", "groups", "rescale")
"""Keys of the weighting group that wrap the combiner."""

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def build_weighting(config: Mapping[str, Any], tasks: Sequence[str]) -> Combiner:
    """Build the combiner that a YAML describes.

    ``_target_`` names the class or function; the other keys are its arguments. A mapping gives one number per task
    by name, and becomes a tensor of shape ``[m]``; tasks that it does not name get a one, or a zero in ``reference``
    and ``min_losses``. A list becomes such a tensor, in task order, if the constructor takes a tensor. ``null`` for
    a required argument is an empty mapping; ``shape: null`` is the number of tasks. An argument ``tasks`` receives
    the task names. Arguments with a ``_target_`` are built first, in the same way.

    Args:
        config: The weighting's keys, resolved, with or without ``WRAPPER_KEYS``.
        tasks: The names of the tasks in the order of the losses.

    Raises:
        ValueError: If a mapping names an unknown task, the combiner refuses its arguments, or
            its solver is not installed.
        TypeError: If the target is not a combiner, or does not take the arguments.
    """
    arguments = {key: value for key, value in config.items() if key not in WRAPPER_KEYS}
    combiner = adapt(_make(arguments, tasks, "weighting"))
    return _wrap(combiner, tasks, **{key: config[key] for key in WRAPPER_KEYS if config.get(key) is not None})


def _wrap(
    combiner: Combiner,
    tasks: Sequence[str],
    rows: str = "task",
    every: int = 1,
    groups: str = "trunk",
    rescale: bool = False,
) -> Combiner:
    """Wrap a combiner as the config asks for; a scalarization then becomes a Jacobian method."""
    if (rows, every, groups, rescale) == ("task", 1, "trunk", False):
        return combiner
    if rows == "example" and isinstance(combiner, Scalarization):
        raise ValueError(
            "weighting.rows=example needs a weighting of the Gramian without state per task, and a "
            "scalarization is none; choose another, or weighting.rows=task."
        )
    method = Differentiated(combiner) if isinstance(combiner, Scalarization) else combiner
    assert isinstance(method, JacobianMethod)
    if rows == "example":
        method = InstanceWise(method)  # type: ignore[arg-type]
    if every != 1:
        method = Every(tasks, method, every)  # type: ignore[arg-type]
    if groups != "trunk":
        method = Grouped(method, groups)  # type: ignore[arg-type]
    return Rescaled(method) if rescale else method


def _make(config: Mapping[str, Any], tasks: Sequence[str], key: str) -> Any:
    target = get_object(config["_target_"])
    parameters = inspect.signature(target).parameters
    made: dict[str, Any] = {"tasks": list(tasks)} if "tasks" in parameters else {}
    for name, value in config.items():
        if name != "_target_":
            made[name] = _argument(f"{key}.{name}", value, parameters.get(name), tasks)
    for name, parameter in parameters.items():
        if name not in made and _is_needed(parameter):
            raise ValueError(
                f"{key}.{name} is missing, and {config['_target_']} requires it; set {key}.{name}=…"
            )
    try:
        return target(**made)
    except ImportError as error:
        raise ValueError(
            f"{key}._target_={config['_target_']} needs a solver that is not installed; run "
            'pip install -c constraints.txt -e ".[solvers]", or choose a weighting of this package: none needs it.'
        ) from error


def _argument(key: str, value: Any, parameter: inspect.Parameter | None, tasks: Sequence[str]) -> Any:
    """Return a value of the config in the type that the constructor's parameter takes."""
    name = key.rpartition(".")[2]
    takes = "" if parameter is None else str(parameter.annotation)
    if value is None and name == "shape":
        return len(tasks)
    if value is None and _is_needed(parameter):
        value = {}  # Hydra cannot add keys to {} on the command line
    if isinstance(value, Mapping) and "_target_" in value:
        return _part(value, tasks, key, takes)
    if isinstance(value, Mapping) and "Mapping" not in takes and "dict" not in takes:
        return _by_name(key, value, tasks, 0.0 if name in ("reference", "min_losses") else 1.0)
    if "Tensor" not in takes:
        return value
    if isinstance(value, list | tuple):
        return _in_order(key, value, tasks)
    if isinstance(value, int | float) and "float" not in takes and "int" not in takes:
        raise ValueError(
            f"{key}={value} is one number for {len(tasks)} tasks; give one each, "
            f"{key}={{{','.join(f'{task}:{value}' for task in tasks)}}}."
        )
    return value


def _is_needed(parameter: inspect.Parameter | None) -> bool:
    return parameter is not None and parameter.default is parameter.empty and parameter.kind in _NAMED


def _part(value: Mapping[str, Any], tasks: Sequence[str], key: str, takes: str) -> Any:
    """Build a nested object: a weighting in the type that the constructor takes, anything else as Hydra does."""
    inner = get_object(value["_target_"])
    if not (isinstance(inner, type) and issubclass(inner, Weighting | Aggregator | Scalarizer | Combiner)):
        return instantiate(value, _convert_="all")
    made = _make(value, tasks, key)
    return adapt(made) if WeightedMethod.__name__ in takes or JacobianMethod.__name__ in takes else made


def _by_name(key: str, values: Mapping[str, float], tasks: Sequence[str], default: float) -> Tensor:
    unknown = [name for name in values if name not in tasks]
    if unknown:
        raise ValueError(f"{key} names {', '.join(unknown)}, but the tasks are {', '.join(tasks)}.")
    return torch.tensor([float(values.get(name, default)) for name in tasks])


def _in_order(key: str, values: Sequence[float], tasks: Sequence[str]) -> Tensor:
    if len(values) != len(tasks):
        raise ValueError(f"{key} has {len(values)} numbers for {len(tasks)} tasks ({', '.join(tasks)}).")
    return torch.tensor([float(v) for v in values])
