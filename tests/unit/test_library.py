"""The library depends on torch and torchjd only, and its modules import each other in one direction."""

import ast
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import multitask

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "multitask"

LAYERS = [
    "__main__",
    "commands",
    "benchmark",
    "sweep",
    "run",
    "callbacks",
    "pinn",
    "module",
    "task",
    "lightning",
    "errors",
    "evaluation",
    "data",
    "physics",
    "metrics",
    "losses",
    "nn",
    "step",
    "weighting",
    "gradients",
    "randomness",
    "quiet_loggers",
    "terminal",
    "private",
    "places",
    "extras",
    "system",
    "aliases",
]
"""The layers of the package, each a folder or a file of its root: imports point down this list."""

ALLOWED = {"torch", "torchjd", "numpy", "scipy", "quadprog", "threadpoolctl"}
"""Packages that the library may import: torch, torchjd and those of the solvers."""


def test_public_names_are_documented() -> None:
    for name in multitask.__all__:
        thing = getattr(multitask, name)
        assert inspect.getdoc(thing), name
        assert name in dir(multitask)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        multitask.Nothing  # noqa: B018


@pytest.mark.parametrize("name", ["UPGrad", "MGDA", "PCGrad", "CAGrad", "FAMO"])
def test_weightings_name_their_source(name: str) -> None:
    assert (
        "et al., 20" in (doc := inspect.getdoc(getattr(multitask, name)) or "")
        or "Quinton" in doc
        or "Koltun" in doc
    )


STEP = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocked())
import multitask
assert "torch" not in sys.modules
import torch
from torch import nn

net = nn.Linear(3, 2)
out = net(torch.randn(5, 3)).pow(2).mean(0)
result = multitask.Step(multitask.UPGrad()).backward(out)
assert result.weights.shape == (2,)
assert all(p.grad is not None for p in net.parameters())
try:
    multitask.MultiLossModule
except ImportError as error:
    print(error)
"""


def test_a_step_needs_neither_lightning_nor_hydra_nor_wandb() -> None:
    blocked = {"lightning", "pytorch_lightning", "lightning_fabric", "hydra", "omegaconf", "wandb", "torchmetrics",
               "pandas", "matplotlib", "rich", "jinja2", "statsmodels"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", STEP.format(blocked=blocked)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "lightning is blocked\n"


@cache
def _trees() -> dict[str, ast.Module]:
    """Return every module of the package by its dotted name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


def _imports(node: ast.AST) -> Iterator[str]:
    """Yield the modules that a module imports anywhere, except for type checking."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            inner = {f"{child.module}.{alias.name}" for alias in child.names} & _trees().keys()
            yield from inner or {str(child.module)}
        yield from _imports(child)


@cache
def _graph() -> dict[str, set[str]]:
    """Return the modules of the package that each of them imports."""
    return {name: set(_imports(tree)) & _trees().keys() for name, tree in _trees().items()}


def _layer(name: str) -> str:
    return name.split(".")[1]


def _imports_between_layers() -> set[tuple[str, str]]:
    pairs = ((a, b) for a, imported in _graph().items() for b in imported if "multitask" not in (a, b))
    return {(_layer(a), _layer(b)) for a, b in pairs if _layer(a) != _layer(b)}


def test_imports_form_no_cycle() -> None:
    remaining = {name: set(imported) for name, imported in _graph().items()}
    while leaves := {name for name, imported in remaining.items() if not imported}:
        remaining = {name: imported - leaves for name, imported in remaining.items() if name not in leaves}
    assert not remaining, f"these import each other: {', '.join(sorted(remaining))}"


def test_every_layer_is_listed() -> None:
    assert sorted(LAYERS) == sorted({_layer(name) for name in _trees() if name != "multitask"})


def test_imports_point_down() -> None:
    index = {layer: i for i, layer in enumerate(LAYERS)}
    assert {(a, b) for a, b in _imports_between_layers() if index[a] > index[b]} == set()


@pytest.mark.parametrize("layer", ["step", "weighting", "gradients"])
def test_the_library_imports_only_torch_and_torchjd(layer: str) -> None:
    """Indirect imports included: a step needs nothing of Lightning, Hydra or W&B."""
    waiting = [name for name in _trees() if name != "multitask" and _layer(name) == layer]
    seen = set(waiting)
    while waiting:
        name = waiting.pop()
        imported = set(_imports(_trees()[name]))
        outside = {other.partition(".")[0] for other in imported} - sys.stdlib_module_names - {"multitask"}
        assert outside <= ALLOWED, name
        new = (imported & _trees().keys()) - seen
        seen |= new
        waiting += new


def test_unit_tests_mirror_the_package() -> None:
    """Each folder of tests is a folder of the package, and no test file repeats the name of its folder."""
    here = Path(__file__).parent
    for path in here.rglob("test_*.py"):
        folder = path.relative_to(here).parent
        assert (PACKAGE / folder).is_dir(), path
        assert folder.name == "" or not path.name.startswith(f"test_{folder.name}_"), path
