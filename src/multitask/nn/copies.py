"""Several networks of one kind, each with parameters of its own."""

from collections.abc import Callable, Sequence

from torch import nn

Make = Callable[[], nn.Module]


def several(make: Make, count: int, key: str) -> list[nn.Module]:
    """Call ``make`` once a copy.

    Args:
        make: Makes a new network at each call; in YAML a node with ``_partial_: true``.
        count: How many copies.
        key: The config key to name in an error.

    Raises:
        ValueError: If ``make`` is no factory, or its networks share parameters: a node nested in a
            ``_partial_`` one is made once and handed to every call.
    """
    if isinstance(make, nn.Module) or not callable(make):
        raise ValueError(f"{key} must be made separately for each copy; add _partial_: true to it.")
    made = [make() for _ in range(count)]
    parameters = [id(p) for module in made for p in set(module.parameters())]
    if len(parameters) != len(set(parameters)):
        raise ValueError(
            f"{key} gives copies that share parameters, since what is nested in a _partial_ node is made once;"
            " write "
            "{_target_: hydra.utils.instantiate, _partial_: true, _recursive_: false, config: <node>}."
        )
    return made


def one_a_task(make: Make, tasks: Sequence[str], key: str) -> nn.ModuleDict:
    """Return one network per task, by name; see :func:`several`."""
    return nn.ModuleDict(dict(zip(tasks, several(make, len(tasks), key), strict=True)))
