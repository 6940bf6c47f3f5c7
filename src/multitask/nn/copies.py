"""Several networks of the same architecture with separate parameters."""

from collections.abc import Callable, Sequence

from torch import nn

Make = Callable[[], nn.Module]


def several(make: Make, count: int, key: str) -> list[nn.Module]:
    """Return ``count`` networks from a factory, in YAML a node with ``_partial_: true``.

    Raises ``ValueError``, naming the config key, if ``make`` is not a factory, or its networks share parameters.
    """
    if isinstance(make, nn.Module) or not callable(make):
        raise ValueError(f"{key} must be instantiated separately for each copy; add _partial_: true to it.")
    networks = [make() for _ in range(count)]
    parameters = [id(p) for network in networks for p in set(network.parameters())]
    if len(parameters) != len(set(parameters)):
        raise ValueError(
            f"{key} gives copies that share parameters, since a node nested in a _partial_ node is instantiated once; "
            "write {_target_: hydra.utils.instantiate, _partial_: true, _recursive_: false, config: <node>}."
        )
    return networks


def one_per_task(make: Make, tasks: Sequence[str], key: str) -> nn.ModuleDict:
    """Return one network per task, by name; see :func:`several`."""
    return nn.ModuleDict(dict(zip(tasks, several(make, len(tasks), key), strict=True)))
