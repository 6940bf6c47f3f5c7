"""A step mixes no devices and waits for its device once: shown on torch's meta device, which refuses both."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from multitask import Combiner, JacobianMethod, Scalarization, Step
from tests.unit.weighting.members import NAMES, make, number_of_tasks
from tests.unit.weighting.promises import READS_JACOBIAN, keeping

aten = torch.ops.aten
BATCH = 8


class Device(TorchDispatchMode):
    """Lets numbers leave the meta device, and keeps which and what was computed between.

    A matrix arrives as the identity, everything else as ones; of questions, ``any`` is answered by no.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[int] = []
        """How many numbers each transfer had."""
        self.between: list[int] = []
        """The size of the largest tensor that was computed between the first transfer and each later one."""
        self._largest = 0
        self._denied: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        value = args[0] if args and isinstance(args[0], Tensor) and args[0].is_meta else None
        if value is not None and func is aten._local_scalar_dense.default:
            self._send(value)
            if value.dtype == torch.bool:
                return all(value is not denied for denied in self._denied)
            return 1.0 if value.dtype.is_floating_point else 1
        if (
            value is not None
            and func is aten._to_copy.default
            and kwargs.get("device") == torch.device("cpu")
        ):
            self._send(value)
            square = value.ndim == 2 and value.shape[0] == value.shape[1]
            there = torch.eye(len(value)) if square else torch.ones(value.shape)
            return there.to(kwargs.get("dtype") or value.dtype)
        made = func(*args, **kwargs)
        if func in (aten.any.default, aten.any.dim):
            self._denied.append(made)
        if isinstance(made, Tensor) and made.is_meta and self.sent:
            self._largest = max(self._largest, made.numel())
        return made

    def _send(self, value: Tensor) -> None:
        if self.sent:
            self.between.append(self._largest)
        self.sent.append(value.numel())


def losses_of(weighting: Combiner, trunk: nn.Module, heads: Sequence[nn.Module]) -> Tensor:
    """Return losses on the meta device, in as many rows as the weighting wants."""
    features = trunk(torch.randn(BATCH, 5, device="meta"))
    each = [head(features).pow(2).mean(1) for head in heads]
    rows = weighting.rows if isinstance(weighting, JacobianMethod) else "task"
    if rows == "example":
        return torch.stack(each, -1)
    if rows == "half":
        return torch.stack([torch.stack([loss[part::2].mean() for loss in each]) for part in range(2)])
    return torch.stack([loss.mean() for loss in each])


CASES = [(name, 1) for name in NAMES] + [(name, 2) for name in keeping("batch")]
# They read the Jacobian; the layout of examples is asked for layer by layer.
WAIT_AGAIN = [*READS_JACOBIAN.split(), "iwmtl"]


@pytest.mark.parametrize(("name", "accumulate"), CASES)
def test_a_step_on_the_meta_device(name: str, accumulate: int) -> None:
    """Two steps, the second with what the first one left behind; only a few small numbers leave the device."""
    m = number_of_tasks(name)
    weighting = make(name, m).float()
    trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 40)).to("meta")
    heads = nn.ModuleList([nn.Linear(40, 2) for _ in range(m)]).to("meta")
    step = Step(weighting, nn.ModuleList([trunk, heads]))
    for _ in range(2):
        device = Device()
        for number in range(accumulate):
            losses = losses_of(weighting, trunk, heads)
            with device:
                if number < accumulate - 1:
                    step.add(losses)
                else:
                    result = step.backward(losses)
        with device:
            step.after_step(lambda: losses_of(weighting, trunk, heads), result.present)
        assert all(p.grad is not None and p.grad.is_meta for p in trunk.parameters())
        assert all(p.grad is not None and p.grad.is_meta for p in heads.parameters())
        assert result.losses is not None
        assert result.losses.is_meta
        rows = len(result.losses)
        assert max(device.sent) <= rows**2
        assert len(device.sent) <= 8
        if not isinstance(weighting, Scalarization) and name not in WAIT_AGAIN:
            # After the first transfer nothing is computed that the device would have to be waited for again.
            assert max(device.between, default=0) <= rows**2
        for parameter in [*trunk.parameters(), *heads.parameters()]:
            parameter.grad = None


def test_devices_are_not_mixed() -> None:
    """The meta device notices: this is what the tests above would meet."""
    device = Device()
    with device, pytest.raises(RuntimeError, match="meta"):
        torch.ones(3, device="meta") @ torch.ones(3)
    with device:
        assert torch.ones(3, device="meta").sum().item() == 1.0
        assert not (torch.ones(3, device="meta") > 0).any()
    assert device.sent == [1, 1]
