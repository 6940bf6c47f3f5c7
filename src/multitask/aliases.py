"""Aliases of modules, for configs, checkpoints and user code."""

from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# For each module, its short names (as in a task's YAML) and its former names.
_ALIASES = {
    "losses.class_weights": "class_weights",
    "metrics.areas": "metrics.classification",
    "task.derived": "derived",
    "task.penalty": "penalty",
    "task.seen": "seen",
    "task.targets": "targets",
    "task.terms": "terms",
    "task.toys": "toys",
    "weighting.bargaining": "weighting.fairgrad weighting.nash_mtl",
    "weighting.halves": "weighting.modo weighting.sdmgrad",
    "weighting.imtl": "weighting.imtl_l",
    "weighting.scalarizations": (
        "weighting.cosmos weighting.gls weighting.logarithmic weighting.loss_balanced weighting.si weighting.uw"
    ),
    "weighting.wrapper": (
        "weighting.differentiated weighting.every weighting.instance_wise weighting.rescaled weighting.wrappers"
    ),
}
ALIASES = {
    f"multitask.{a}": f"multitask.{name}" for name, aliases in _ALIASES.items() for a in aliases.split()
}
"""The module that each alias stands for."""


def current(name: str) -> str:
    """Return the dotted name of an object with any alias of its module resolved."""
    module = next((alias for alias in ALIASES if name.startswith(f"{alias}.")), None)
    return name if module is None else ALIASES[module] + name.removeprefix(module)


class Finder(MetaPathFinder, Loader):
    """Import hook that resolves an alias to the same module object."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a name in ``ALIASES``."""
        return ModuleSpec(fullname, self) if fullname in ALIASES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the aliased module."""
        module = import_module(ALIASES[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own spec, which importlib has replaced by the alias's."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state
