"""Training runs the graph of a compiled trunk, with the same results."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchjd.aggregation import UPGradWeighting
from torchjd.scalarization import Mean

from multitask.run.sharing import shared_in
from multitask.task.seen import split_features
from multitask.weighting.adapter import adapt
from multitask.weighting.wrapper import InstanceWise
from tests.conftest import Arrays, arrays, build, fit

WEIGHTINGS: dict[str, Callable[[], Any]] = {
    "weighted_sum": lambda: adapt(Mean()),
    "upgrad": lambda: adapt(UPGradWeighting()),
    "upgrad, rows=example": lambda: InstanceWise(adapt(UPGradWeighting())),  # type: ignore[arg-type]
}


def trained(weighting: str, compiled: bool) -> tuple[Tensor, set[str]]:
    """Return the parameters after three steps, and the operations that computed the features."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh())
    module = build(WEIGHTINGS[weighting](), trunk=trunk)
    data = arrays(count=6)
    if compiled:
        module.train_with(
            module.weighting,
            optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
            shared=shared_in(module, data),
        )
        module.compile_trunk()
    found: set[str] = set()

    def watched(features: Tensor, heads: Any) -> list[Any]:
        found.add(type(features.grad_fn).__name__)
        return split_features(features, heads)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multitask.task.seen.split_features", watched)
        fit(module, Arrays(data), steps=3)
    return torch.cat([p.detach().flatten() for p in module.parameters()]), found


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_compiled_trunk_trains_as_the_plain_one(weighting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the slow last stage, which generates code.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, by = trained(weighting, compiled=False)
    assert by == {"TanhBackward0"}
    compiled, by = trained(weighting, compiled=True)
    assert by == {"CompiledFunctionBackward"}
    torch.testing.assert_close(compiled, plain, rtol=1e-9, atol=1e-11)


def test_parameters_keep_names_and_order() -> None:
    """Older checkpoints identify the states of optimizers by them."""
    module = build(adapt(Mean()), tasks=2)
    before = [name for name, _ in module.named_parameters()]
    assert [name.split(".")[0] for name in before] == ["trunk"] * 4 + ["tasks"] * 4
    module.compile_trunk()
    assert [name for name, _ in module.named_parameters()] == before
