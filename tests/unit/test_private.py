"""Private names of other packages are used in one file only, and exist in the installed versions."""

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import OmegaConf
from torch import nn
from torch.nn.functional import conv2d, embedding

from multitask import private

SOURCE = Path(private.__file__).parent.parent
# Attributes of the autograd graph and of tensors, all of which are tested below.
AUTOGRAD = {
    "_backward_hooks", "_foreach_add_", "_foreach_copy_", "_foreach_zero_", "_input_metadata", "_is_view",
    "_saved_alpha", "_saved_beta", "_saved_dim", "_saved_dim0", "_saved_dim1", "_saved_dims", "_saved_groups",
    "_saved_mat2_sym_sizes", "_saved_padding", "_saved_padding_idx", "_saved_scale_grad_by_freq", "_saved_sparse",
    "_saved_transposed", "_values", "_version",
}  # fmt: skip
HYDRA_KEYS = {"_target_"}  # an attribute of a config
OF_A_MODULE = {"_trainer"}  # of a LightningModule, read by its subclass


def private_name(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined(tree: ast.AST) -> Iterator[str]:
    """Yield the names of attributes and functions that a file defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                yield node.attr
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def used(tree: ast.AST) -> Iterator[str]:
    """Yield the private names that a file uses from other files."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private_name(node.attr):
            yield node.attr
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if any(map(private_name, a.name.split("."))))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("multitask"):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            if any(map(private_name, names)):
                yield node.module


def test_private_names_are_used_in_one_file() -> None:
    trees = {path: ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")}
    own = {name for tree in trees.values() for name in defined(tree)}
    here = Path(private.__file__)
    found = {
        f"{path.relative_to(SOURCE)}: {name}"
        for path, tree in trees.items()
        for name in used(tree)
        if path != here and name not in own | AUTOGRAD | HYDRA_KEYS | OF_A_MODULE
    }
    assert not found, f"move to {here.name}, or find a public way: {sorted(found)}"


def has(where: Any, *names: str) -> None:
    missing = [name for name in names if not hasattr(where, name)]
    assert not missing, f"{type(where).__name__} has no {', '.join(missing)} any more"


@pytest.fixture
def hydra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return Hydra with a config of one value and one required group."""
    from hydra import initialize_config_dir
    from hydra._internal.hydra import Hydra
    from hydra.core.global_hydra import GlobalHydra

    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "one.yaml").write_text("")
    (tmp_path / "main.yaml").write_text("defaults: [{group: '???'}, _self_]\nvalue: 1\n")
    monkeypatch.setattr(Hydra, "get_mode", Hydra.get_mode)
    private.compose_once(lambda loader, overrides: None)
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        yield GlobalHydra.instance().hydra


@pytest.mark.parametrize("mode", ["RUN", "MULTIRUN"])
@pytest.mark.parametrize("more", [[], ["hydra.mode=RUN"]])
def test_compose_once_keeps_the_config_composed_for_the_mode(hydra: Any, mode: str, more: list[str]) -> None:
    given, run_mode = ["group=one", "value=2", "hydra.job.name=x", *more], RunMode[mode]
    assert hydra.get_mode("main", given) == (RunMode.RUN if more else None)
    given.append(f"hydra.mode={mode}")
    kept, other, composed = (hydra.compose_config("main", given, run_mode) for _ in range(3))
    assert kept is not other
    for each in (kept, other):
        assert OmegaConf.to_container(each) == OmegaConf.to_container(composed)
    assert (kept.value, kept.hydra.mode) == (2, run_mode)


@pytest.mark.parametrize(
    ("given", "message"), [(["group=one", "value=1,2"], "Ambiguous value"), ([], "You must specify 'group'")]
)
def test_compose_once_leaves_errors_of_a_run_to_the_run(hydra: Any, given: list[str], message: str) -> None:
    assert hydra.get_mode("main", given) is None
    assert hydra.compose_config("main", given, RunMode.MULTIRUN).value == 1
    with pytest.raises(ConfigCompositionException, match=message):
        hydra.compose_config("main", given, RunMode.RUN)


def test_compose_once_raises_errors_of_overrides(hydra: Any) -> None:
    with pytest.raises(ConfigCompositionException, match="Could not override 'vlue'"):
        hydra.get_mode("main", ["group=one", "vlue=2"])


@pytest.fixture
def trainer() -> Any:
    from lightning import Trainer

    return Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)


def test_averages_statistics(trainer: Any) -> None:
    assert private.averages_statistics(trainer) is False
    trainer.fit_loop._skip_backward = True
    assert private.averages_statistics(trainer) is True
    assert "_skip_backward" in find_text("lightning.pytorch.callbacks.stochastic_weight_avg")


def find_text(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text()


def test_log_results(trainer: Any) -> None:
    from lightning.pytorch.loggers import CSVLogger

    class Kept(CSVLogger):
        def __init__(self) -> None:
            super().__init__("unused")
            self.kept: list[tuple[dict[str, float], int | None]] = []

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            self.kept.append((dict(metrics), step))

        def save(self) -> None:
            pass

    trainer.loggers = [Kept()]
    trainer.fit_loop.epoch_loop._batches_that_stepped = 7
    private.log_results(trainer, {"test/loss/a": 0.5})
    ((metrics, step),) = trainer.loggers[0].kept
    assert metrics["test/loss/a"] == 0.5
    assert step == 7


def test_before_batches(trainer: Any) -> None:
    loop = trainer.fit_loop.epoch_loop
    loop.batch_progress.current.completed, loop.batch_progress.total.completed = 5, 15
    loop._batches_that_stepped = 9
    with private.before_batches(trainer, 2):
        assert (loop.batch_progress.current.completed, loop.batch_progress.total.completed) == (3, 13)
        assert loop.on_save_checkpoint()["_batches_that_stepped"] == 6
    assert (loop.batch_progress.current.completed, loop.batch_progress.total.completed) == (5, 15)
    assert loop._batches_that_stepped == 9


def test_leave_out_anonymous() -> None:
    from lightning.pytorch.loggers import WandbLogger

    logger = WandbLogger(mode="offline")
    private.leave_out_anonymous(logger)
    assert "anonymous" not in logger._wandb_init
    assert logger._wandb_init["mode"] == "offline"


def test_specification() -> None:
    workspaces = pytest.importorskip("wandb_workspaces.workspaces")
    made = workspaces.Workspace(name="a", entity="b", project="c", sections=[])
    assert '"section"' in private.specification(made)


def test_trainer_of_a_module() -> None:
    from lightning import LightningModule

    has(LightningModule(), "_trainer")


def test_keep_buffers_of_backward() -> None:
    import torch._functorch.config as config

    has(config, "donated_buffer")
    private.keep_buffers_of_backward()
    assert config.donated_buffer is False


def test_autograd_nodes_have_their_saved_attributes() -> None:
    x, w = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    addmm = nn.Linear(4, 5)(x).grad_fn
    has(addmm, "_saved_beta", "_saved_alpha", "_saved_mat2_sym_sizes", "_input_metadata")
    has((x + x).grad_fn, "_saved_alpha")
    has(torch.stack([x, x]).grad_fn, "_saved_dim")
    has(w.transpose(0, 1).grad_fn, "_saved_dim0", "_saved_dim1")
    has(w.permute(1, 0).grad_fn, "_saved_dims")
    image, kernel = torch.randn(1, 1, 3, 3, requires_grad=True), torch.randn(1, 1, 2, 2)
    has(conv2d(image, kernel).grad_fn, "_saved_padding", "_saved_groups", "_saved_transposed")
    found = embedding(torch.tensor([1]), w).grad_fn
    has(found, "_saved_padding_idx", "_saved_scale_grad_by_freq", "_saved_sparse")


def test_tensors_have_their_private_attributes() -> None:
    parameter = nn.Parameter(torch.zeros(2, 2))
    has(parameter, "_backward_hooks", "_is_view", "_version")
    has(parameter.detach().to_sparse(), "_values")
    has(torch, "_foreach_add_", "_foreach_copy_", "_foreach_zero_")
