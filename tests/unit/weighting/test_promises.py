"""Promises of every weighting in the training loop, built from its YAML; see ``promises.py``."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchjd.autojac import jac

from multitask.errors import ConfigError
from multitask.gradients.layerwise import Layerwise
from multitask.module import MultiTaskModule
from multitask.randomness import derived_seed
from multitask.run.combiner import build_combiner, step_options
from multitask.task.penalty import Penalty
from multitask.weighting.base import JacobianMethod
from tests.conftest import Arrays, arrays, build, fit, regression
from tests.unit.weighting.members import FEW, NAMES, config, make, names, number_of_tasks, update
from tests.unit.weighting.promises import is_jacobian_method, keeping, refusing


def module_of(
    name: str, tasks: int, heads: dict | None = None, trunk: nn.Module | None = None, **manual: Any
) -> MultiTaskModule:
    torch.manual_seed(0)
    trunk = trunk or nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh())
    method = make(name, list(heads) if heads else tasks)
    if isinstance(method, JacobianMethod):
        manual.setdefault("accumulate_grad_batches", 1)
    adam = lambda groups: torch.optim.Adam(groups, lr=0.01)  # noqa: E731
    return build(method, tasks=tasks, trunk=trunk, heads=heads, optimizer=adam, **manual)


def state(module: MultiTaskModule) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8, msg=name)


class Everything(nn.Module):
    """A trunk with tied, reused, unused, recurrent, normalized, dropout and in-place layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Sequential(
            nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Dropout(0.2)
        )
        self.reused, self.tied = nn.Linear(6, 6), nn.Linear(6, 6)
        self.tied.weight = self.reused.weight
        self.recurrent = nn.GRU(2, 4, batch_first=True)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(x)
        x = torch.tanh(self.tied(torch.tanh(self.reused(self.reused(x)))))
        return self.recurrent(x.view(len(x), 3, 2))[0][:, -1]


class Autojac(Callback):
    """Compares each step's gradients with those of torchjd's autojac, before the optimizer step."""

    def __init__(self) -> None:
        self.expected: dict[str, Tensor] = {}
        self.steps = 0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, MultiTaskModule)
        # The frozen parameters change from step to step.
        pl_module.trunk.reused.bias.requires_grad_(batch_idx > 0)  # type: ignore[union-attr]
        pl_module.trunk.inside[0].weight.requires_grad_(batch_idx != 2)  # type: ignore[index,union-attr]
        self.expected = autojac(pl_module, batch, trainer.global_step)
        torch.manual_seed(batch_idx)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        found = {name: p.grad for name, p in pl_module.named_parameters()}
        for name, gradient in self.expected.items():
            mine = torch.zeros_like(gradient) if found[name] is None else found[name]
            torch.testing.assert_close(mine, gradient, rtol=1e-8, atol=1e-10, msg=name)
        frozen = {n for n, p in pl_module.named_parameters() if not p.requires_grad}
        assert all(found[name] is None for name in frozen)
        self.steps += 1


def autojac(module: MultiTaskModule, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    """Return the expected gradients of a step: the combiner applied to torchjd's Jacobian."""
    copy = MultiTaskModule.__new__(MultiTaskModule)
    nn.Module.__init__(copy)
    copy.trunk, copy.tasks, copy.weighting = deepcopy((module.trunk, module.tasks, module.weighting))
    copy.names = module.names
    torch.manual_seed(step)
    count = len(batch["inputs"])
    rows = getattr(copy.weighting, "rows", "task")
    group = {"task": torch.zeros(count), "half": torch.arange(count) % 2, "example": torch.arange(count)}[
        rows
    ]
    features = copy.trunk(batch["inputs"])
    predictions = [task.head(features) for task in copy.by_name.values()]
    parts = [group == g for g in group.unique()]
    losses = torch.stack(
        [
            nn.functional.mse_loss(prediction[part], batch[name][part])
            for part in parts
            for name, prediction in zip(copy.names, predictions, strict=True)
        ]
    )
    heads = {n: p for n, p in copy.named_parameters() if n.startswith("tasks.")}
    reached = {n: p for n, p in copy.named_parameters() if n.startswith("trunk.") and "unused" not in n}
    shared = {n: p for n, p in reached.items() if p.requires_grad}
    used = list(shared.values())
    found = dict(zip(used, jac(losses, used, retain_graph=True, parallel_chunk_size=1), strict=True))
    J = torch.cat([found.get(p, p.new_zeros(len(losses), p.numel())).flatten(1) for p in shared.values()], 1)
    layout = [(n, p.numel()) for n, p in shared.items()]
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed("combiner", 0, step))
        done = update(copy.weighting, losses, J, layout)
    pieces = done.vector.split([p.numel() for p in shared.values()])
    expected = {n: piece.view_as(p) for (n, p), piece in zip(shared.items(), pieces, strict=True)}
    own = losses.view(len(parts), -1).mean(0)
    factors = done.heads.view(-1, len(own)).mean(0)
    of_heads = torch.autograd.grad((factors * own).sum(), list(heads.values()))
    return expected | dict(zip(heads, of_heads, strict=True))


@pytest.mark.parametrize("name", keeping("exact"))
def test_gradients_equal_autojacs(name: str) -> None:
    """Three steps of a trunk of many kinds of layers, with parameters frozen and unfrozen between them."""
    m = number_of_tasks(name)
    torch.manual_seed(0)
    module = module_of(name, m, trunk=Everything(), engine=Layerwise())
    watch = Autojac()
    fit(module, Arrays(arrays(m, count=18), batch_size=6), steps=3, callbacks=[watch])
    assert watch.steps == 3


@pytest.mark.smoke(*FEW)
@pytest.mark.slow
@pytest.mark.parametrize("name", keeping("batch"))
def test_micro_batches_equal_the_whole_batch(name: str) -> None:
    data = arrays(number_of_tasks(name), count=22)
    whole = module_of(name, number_of_tasks(name), accumulate_grad_batches=1)
    parts = module_of(name, number_of_tasks(name), accumulate_grad_batches=3)
    fit(whole, Arrays(data), steps=3)
    fit(parts, Arrays(data, batch_size=8), steps=3)
    assert_same(state(parts), state(whole))


@pytest.mark.parametrize("name", keeping("missing"))
def test_absent_task_does_not_affect_the_others(name: str) -> None:
    """The others train as without it, and its head does not change."""
    m = number_of_tasks(name) + 1
    data = arrays(m, count=12)
    absent = f"t{m - 1}"
    heads = {f"t{i}": regression(f"t{i}", missing=True) for i in range(m)}
    without = {key: values for key, values in data.items() if key != absent}
    nothing = {**data, absent: torch.full_like(data[absent], torch.nan)}
    more = module_of(name, m, heads=heads, accumulate_grad_batches=1)
    fewer = module_of(name, m - 1, heads=dict(list(deepcopy(heads).items())[:-1]), accumulate_grad_batches=1)
    own = {
        k: v for k, v in more.state_dict().items() if k.startswith(("trunk.", "tasks.")) and absent not in k
    }
    fewer.load_state_dict(own, strict=False)
    resting = deepcopy(more.by_name[absent].head.state_dict())
    fit(more, Arrays(nothing), steps=3)
    fit(fewer, Arrays(without), steps=3)
    model = {k: v for k, v in state(fewer).items() if k.startswith(("trunk.", "tasks."))}
    assert_same(state(more), model)
    assert all(torch.equal(v, resting[k]) for k, v in more.by_name[absent].head.state_dict().items())


@pytest.mark.smoke(*FEW)
@pytest.mark.slow
@pytest.mark.parametrize("name", keeping("resume"))
def test_resume_is_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Interrupted in the middle of the third epoch, once counters of epochs are in use."""
    m = number_of_tasks(name)
    data = Arrays(arrays(m, count=18), batch_size=6)
    whole, first, second = (module_of(name, m) for _ in range(3))
    fit(whole, data, steps=14)
    fit(first, data, steps=8).save_checkpoint(tmp_path / "last.ckpt")
    fit(second, data, steps=14, ckpt_path=tmp_path / "last.ckpt")
    expected = dict(whole.state_dict())
    for key, value in second.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.equal(value.nan_to_num(), expected[key].nan_to_num()), key
        else:
            assert str(value) == str(expected[key]), key


ALONE = [name for name in keeping("hard") if number_of_tasks(name) == 3]


@pytest.mark.parametrize(
    ("name", "weighted"),
    [(name, False) for name in ALONE] + [(name, True) for name in ALONE if name in keeping("weighted")],
)
def test_one_task_trains(name: str, weighted: bool) -> None:
    options = {"weighted_heads": weighted} if is_jacobian_method(name) else {}
    module = module_of(name, 1, **options)
    before = state(module)
    fit(module, Arrays(arrays(1)), steps=3)
    assert all(value.isfinite().all() for value in state(module).values())
    assert any(not torch.equal(value, before[key]) for key, value in state(module).items())


PLANS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "features": ({"engine": "features"}, {}),
    "weighted": ({"heads": "weighted"}, {}),
    "batch": ({}, {"accumulate_grad_batches": 2}),
    "missing": ({}, {"missing": True}),
}


@pytest.mark.parametrize("promise", PLANS)
@pytest.mark.parametrize("name", NAMES)
def test_incompatible_options_are_rejected_at_the_start(name: str, promise: str) -> None:
    keys, trainer = PLANS[promise]
    missing = {"missing": trainer["missing"]} if "missing" in trainer else {}
    asked = _config(name, keys, {k: v for k, v in trainer.items() if k != "missing"})
    tasks = {n: regression(n, **missing) for n in names(number_of_tasks(name))}
    combiner = build_combiner(asked, list(tasks))
    if name in refusing(promise):
        with pytest.raises(ConfigError, match=rf"^weighting={name} [^\n]*\.$"):
            step_options(asked, combiner, tasks)
    else:
        step_options(asked, combiner, tasks)


@pytest.mark.parametrize(
    ("name", "keys", "trainer", "message"),
    [
        ("iwmtl", {}, {"devices": 2}, "no process has them all; set trainer.devices=1"),
        ("iwmtl", {}, {"num_nodes": 2}, "no process has them all; set trainer.devices=1"),
        ("iwmtl", {}, {"penalty": True}, "the penalty tasks.p is no loss of an example; leave it out"),
        ("upgrad", {"engine": "features"}, {"penalty": True}, "tasks.p is a penalty on parameters"),
        (
            "graddrop",
            {"engine": "features"},
            {"devices": 2},
            "no process has them all; use weighting.engine=auto",
        ),
        (
            "upgrad",
            {"learning_rate": 0.1},
            {},
            "weighting=upgrad has none; leave weighting.learning_rate=null",
        ),
    ],
)
def test_errors_name_what_to_change(
    name: str, keys: dict[str, Any], trainer: dict[str, Any], message: str
) -> None:
    penalty = {"p": Penalty()} if trainer.pop("penalty", False) else {}
    tasks = {**{n: regression(n) for n in names(3)}, **penalty}
    asked = _config(name, keys, trainer)
    with pytest.raises(ConfigError, match=message):
        step_options(asked, build_combiner(asked, list(tasks)), tasks)  # type: ignore[arg-type]


def _config(name: str, keys: dict[str, Any], trainer: dict[str, Any]) -> Any:
    asked = config(name, names(number_of_tasks(name)))
    fixed = {"accumulate_grad_batches": 1, "devices": 1, "num_nodes": 1}
    return OmegaConf.create({"method": name, "weighting": {**asked, **keys}, "trainer": {**fixed, **trainer}})
