"""A step is rehearsed without a trace, and shows what only a backward pass in training mode shows."""

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchjd.aggregation import UPGradWeighting
from torchjd.scalarization import Mean

from multitask.errors import ConfigError
from multitask.run.rehearsal import check_last_batch, rehearse
from multitask.weighting.adapter import adapt
from tests.conftest import Arrays, arrays, build

WEIGHTINGS = [Mean, UPGradWeighting]


class Trunk(nn.Module):
    """A table of rows, a norm, dropout, a layer that is perhaps checkpointed, and one that nobody calls."""

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
def test_leaves_no_trace(weighting: type) -> None:
    module = build(adapt(weighting()), trunk=Trunk())
    before = [v.clone() for v in (*module.parameters(), *module.buffers())]
    state = torch.get_rng_state()
    rehearse(module, arrays())
    assert all(map(torch.equal, (*module.parameters(), *module.buffers()), before))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(part.training for part in module.modules())


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("sparse", [False, True])
def test_names_sparse_and_unused_parameters(weighting: type, sparse: bool) -> None:
    found = rehearse(build(adapt(weighting()), trunk=Trunk(sparse)), arrays())
    assert found.sparse == ["trunk.table.weight"] * sparse
    assert found.unused == ["trunk.unused.weight", "trunk.unused.bias"]


def test_reentrant_checkpoints_go_with_one_backward_pass_alone() -> None:
    rehearse(build(adapt(UPGradWeighting()), trunk=Trunk(reentrant=False)), arrays())
    rehearse(build(adapt(Mean()), trunk=Trunk(reentrant=True)), arrays())
    with pytest.raises(ConfigError, match="set use_reentrant=False"):
        rehearse(build(adapt(UPGradWeighting()), trunk=Trunk(reentrant=True)), arrays())


def config(**trainer: Any) -> Any:
    return OmegaConf.create(
        {"trainer": {"limit_train_batches": 1.0, "devices": 1, "num_nodes": 1, **trainer}}
    )


@pytest.mark.parametrize(
    ("batch_size", "trainer", "says"),
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
def test_a_last_batch_of_one_example(
    batch_size: int | None, trainer: dict[str, Any], says: str | None
) -> None:
    module, data = build(adapt(Mean()), trunk=Trunk()), Arrays(arrays(count=24), batch_size)
    if says is None:
        check_last_batch(config(**trainer), module, data, arrays())
        return
    with pytest.raises(ConfigError, match=says):
        check_last_batch(config(**trainer), module, data, arrays())
    if batch_size != 1:
        data.drop_last = True
        check_last_batch(config(**trainer), module, data, arrays())
    # Without a norm one example is enough.
    check_last_batch(config(**trainer), build(adapt(Mean())), Arrays(arrays(count=24), batch_size), arrays())
