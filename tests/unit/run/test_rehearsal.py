"""The rehearsed step has no side effects and finds problems of the backward pass in training mode."""

import re
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchjd.aggregation import UPGradWeighting
from torchjd.scalarization import GeometricMean, Mean

from multitask.errors import ConfigError
from multitask.lightning.probing import unobtrusive
from multitask.run.rehearsal import check_inference_mode, check_last_batch, rehearse
from multitask.run.sharing import losses_of, parts_of
from multitask.weighting.adapter import adapt
from tests.conftest import Arrays, arrays, build


class Checkpointed(nn.Module):
    """Uses a re-entrant checkpoint in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return checkpoint(self.second, self.first(inputs), use_reentrant=True)


WEIGHTINGS = [Mean, UPGradWeighting]


class Trunk(nn.Module):
    """An embedding, a norm, dropout, an optionally checkpointed layer, and an unused layer."""

    def __init__(self, sparse: bool = False, reentrant: bool | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4, sparse=sparse)
        self.norm = nn.BatchNorm1d(4)
        self.layer = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.reentrant = reentrant

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.norm(self.table(inputs.abs().long().clamp(max=8)).mean(1))
        features = nn.functional.dropout(features, 0.5, self.training)
        if self.reentrant is None or not self.training:
            return self.layer(features)
        return checkpoint(self.layer, features, use_reentrant=self.reentrant)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_rehearsal_has_no_side_effects(weighting: type) -> None:
    module = build(adapt(weighting()), trunk=Trunk())
    before = [v.clone() for v in (*module.parameters(), *module.buffers())]
    state = torch.get_rng_state()
    rehearse(config(), module, arrays())
    assert all(map(torch.equal, (*module.parameters(), *module.buffers()), before))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(part.training for part in module.modules())


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("sparse", [False, True])
def test_rehearsal_finds_sparse_and_unused_parameters(weighting: type, sparse: bool) -> None:
    found = rehearse(config(), build(adapt(weighting()), trunk=Trunk(sparse)), arrays())
    assert found.sparse == ["trunk.table.weight"] * sparse
    assert found.unused == ["trunk.unused.weight", "trunk.unused.bias"]


def config(callbacks: Any = None, **trainer: Any) -> Any:
    options = {
        "limit_train_batches": 1.0,
        "devices": 1,
        "num_nodes": 1,
        "accumulate_grad_batches": 1,
        **trainer,
    }
    return OmegaConf.create({"trainer": options, "callbacks": callbacks})


REENTRANT = [
    (UPGradWeighting, {}, {}, "or use a scalarization such as weighting=weighted_sum."),
    (Mean, {"accumulate_grad_batches": 2}, {}, "or use trainer.accumulate_grad_batches=1."),
    (GeometricMean, {"accumulate_grad_batches": 2}, {}, "or use trainer.accumulate_grad_batches=1."),
    (Mean, {}, {"probe_every": 5}, "or use callbacks.conflict.probe_every=null."),
    (
        UPGradWeighting,
        {"accumulate_grad_batches": 2},
        {"probe_every": 5},
        "or use a scalarization such as weighting=weighted_sum and trainer.accumulate_grad_batches=1 and "
        "callbacks.conflict.probe_every=null.",
    ),
]


@pytest.mark.parametrize(("weighting", "trainer", "conflict", "advice"), REENTRANT)
@pytest.mark.parametrize("count", [1, 24])
def test_reentrant_checkpoints_require_a_single_backward_pass(
    weighting: type, trainer: dict[str, Any], conflict: dict[str, Any], advice: str, count: int
) -> None:
    keys = config({"conflict": conflict, "cost": None}, **trainer)
    batch = {key: value[:count] for key, value in arrays().items()}
    norm = nn.BatchNorm1d(4) if count > 1 else nn.LayerNorm(4)

    def made(method: type, reentrant: bool) -> Any:
        trunk = Trunk(reentrant=reentrant)
        trunk.norm = norm
        return build(adapt(method()), trunk=trunk, **trainer)

    rehearse(keys, made(weighting, False), batch)
    rehearse(config(), made(Mean, True), batch)
    with pytest.raises(ConfigError, match=f"set use_reentrant=False in it, {re.escape(advice)}"):
        rehearse(keys, made(weighting, True), batch)


def test_checkpointed_parameters_are_found_as_shared() -> None:
    """Parameters under a checkpoint count as shared, also in evaluation mode."""
    module = build(adapt(Mean()), trunk=Checkpointed())
    with unobtrusive(module), torch.enable_grad():
        found = parts_of(module, losses_of(module, arrays()))
    assert (found[0].name, found[0].users) == ("trunk", ("t0", "t1", "t2"))


class Slope(nn.Module):
    """Adds the derivative of its own output, with gradients enabled."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.enable_grad():
            inputs = inputs.detach().requires_grad_()
            out = torch.tanh(self.layer(inputs))
            (slope,) = torch.autograd.grad(out.sum(), inputs, create_graph=True)
        return out + slope.sum(1, keepdim=True)


def test_derivatives_require_inference_mode_off() -> None:
    for trunk in (Trunk(), Slope()):
        check_inference_mode(config(inference_mode=False), build(adapt(Mean()), trunk=trunk), arrays())
    check_inference_mode(config(inference_mode=True), build(adapt(Mean()), trunk=Trunk()), arrays())
    module = build(adapt(Mean()), trunk=Slope())
    with pytest.raises(ConfigError, match=r"take derivatives .*set trainer\.inference_mode=false"):
        check_inference_mode(config(inference_mode=True), module, arrays())
    assert all(part.training for part in module.modules())
    with pytest.raises(IndexError):  # other errors are unchanged
        check_inference_mode(
            config(inference_mode=True), build(adapt(Mean()), trunk=nn.Flatten(0, 5)), arrays()
        )


@pytest.mark.parametrize(
    ("batch_size", "trainer", "message"),
    [
        (23, {}, "last batch has 1 example, .*set data.drop_last=true"),
        (7, {"devices": 3}, "last batch has 1 example on one process, .*set data.drop_last=true"),
        (1, {}, "every batch has 1 example, .*raise data.batch_size"),
        (12, {}, None),
        (22, {}, None),
        (23, {"limit_train_batches": 1}, None),
        (None, {}, None),
    ],
)  # fmt: skip
def test_last_batch_of_one_example_is_rejected_with_batch_norm(
    batch_size: int | None, trainer: dict[str, Any], message: str | None
) -> None:
    module, data = build(adapt(Mean()), trunk=Trunk()), Arrays(arrays(count=24), batch_size)
    if message is None:
        check_last_batch(config(**trainer), module, data, arrays())
        return
    with pytest.raises(ConfigError, match=message):
        check_last_batch(config(**trainer), module, data, arrays())
    if batch_size != 1:
        data.drop_last = True
        check_last_batch(config(**trainer), module, data, arrays())
    # Without a norm, one example is enough.
    check_last_batch(config(**trainer), build(adapt(Mean())), Arrays(arrays(count=24), batch_size), arrays())
