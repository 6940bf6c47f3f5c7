"""A step mixes no devices and waits for its device once, as tested on the meta device, which refuses both."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from multitask import Step
from multitask.nn.tokens import Mean
from tests.unit.run_on_devices import losses_of
from tests.unit.weighting.members import FEW, NAMES, make, number_of_tasks
from tests.unit.weighting.promises import keeping, noted

aten = torch.ops.aten
BATCH = 8


class Device(TorchDispatchMode):
    """Allows transfers from the meta device, and records those for which a CUDA device would synchronize.

    A square matrix arrives as the identity, everything else as ones, and the result of ``any`` as false.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[int] = []
        """The number of elements of each transfer from the device."""
        self.waits: list[str] = []
        """The operations that synchronize: transfers from the device, and blocking transfers to it."""
        self._denied: list[Tensor] = []

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._stack.enter_context(Hidden(self.waits))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        value = args[0] if args and isinstance(args[0], Tensor) else None
        if value is None or func not in (aten._local_scalar_dense.default, aten._to_copy.default):
            made = func(*args, **kwargs)
            if func in (aten.any.default, aten.any.dim):
                self._denied.append(made)
            return made
        target = kwargs.get("device") or value.device
        if not value.is_meta:
            if torch.device(target).type == "meta" and not kwargs.get("non_blocking"):
                self.waits.append(f"{value.numel()} to the device")
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            self._send(value)
            if value.dtype == torch.bool:
                return all(value is not denied for denied in self._denied)
            return 1.0 if value.dtype.is_floating_point else 1
        if target != torch.device("cpu"):
            return func(*args, **kwargs)
        self._send(value)
        square = value.ndim == 2 and value.shape[0] == value.shape[1]
        ones = torch.eye(len(value)) if square else torch.ones(value.shape)
        return ones.to(kwargs.get("dtype") or value.dtype)

    def _send(self, value: Tensor) -> None:
        self.sent.append(value.numel())
        self.waits.append(f"{value.numel()} from the device")


class Hidden(TorchFunctionMode):
    """Records the transfers to the meta device that torch makes within one function."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        on_meta = isinstance(args[0], Tensor) and args[0].is_meta if args else False
        if name in ("tensor", "as_tensor") and torch.device(kwargs.get("device") or "cpu").type == "meta":
            waits = not on_meta
        elif name in ("__getitem__", "__setitem__"):
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            waits = on_meta and any(
                isinstance(index, list)
                or (isinstance(index, Tensor) and (not index.is_meta or index.dtype == torch.bool))
                for index in indices
            )
        else:
            waits = name == "new_tensor" and on_meta
        if waits:
            self._waits.append(name)
        return func(*args, **kwargs)


CASES = [(name, 1) for name in NAMES] + [(name, 2) for name in keeping("batch")]


@pytest.mark.smoke(*(f"{name}-{accumulate}" for name in FEW for accumulate in (1, 2)))
@pytest.mark.slow
@pytest.mark.parametrize(("name", "accumulate"), CASES)
def test_a_step_waits_for_its_device_once(name: str, accumulate: int) -> None:
    """The first step also moves the weighting; no transfer is larger than the losses and the Gramian."""
    m = number_of_tasks(name)
    weighting = make(name, m).float()
    trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 40)).to("meta")
    heads = nn.ModuleList([nn.Linear(40, 2) for _ in range(m)]).to("meta")
    step = Step(weighting, nn.ModuleList([trunk, heads]))
    inputs = torch.randn(BATCH, 5, device="meta")
    for taken in range(3):
        device = Device()
        for number in range(accumulate):
            losses = losses_of(weighting, trunk, heads, inputs)
            with device:
                if number < accumulate - 1:
                    step.add(losses)
                else:
                    result = step.backward(losses)
        with device:
            step.after_step(lambda: losses_of(weighting, trunk, heads, inputs), result.present)
        for parameter in [*trunk.parameters(), *heads.parameters()]:
            assert parameter.grad is not None
            assert parameter.grad.is_meta
            parameter.grad = None
        assert result.losses is not None
        assert result.losses.is_meta
        rows = len(result.losses)
        assert max(device.sent) <= rows**2 + rows
        if noted("waits", name):
            assert len(device.waits) > 1, "the note is out of date"
        elif taken:
            assert len(device.waits) == 1, device.waits


class Tokens(nn.Module):
    """A trunk with an embedding, a normalization and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.mean = nn.Embedding(7, 40), nn.LayerNorm(40), Mean()
        self.mix = nn.Conv1d(40, 40, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.mean(self.mix(self.norm(self.embed(ids)).mT).mT)


REAL, IDS = torch.randn(BATCH, 40, device="meta"), torch.zeros(BATCH, 4, dtype=torch.long, device="meta")
PLAIN = nn.Sequential(nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 40))


@pytest.mark.parametrize(
    ("engine", "trunk", "m", "inputs"),
    [
        ("rows", PLAIN, 3, REAL),
        ("features", PLAIN, 3, REAL),
        pytest.param("auto", PLAIN, 3, REAL, id="batched"),
        pytest.param("auto", PLAIN, 2, REAL, id="layer-wise"),
        pytest.param("auto", Tokens(), 3, IDS, id="row by row"),
        pytest.param("auto", Tokens(), 8, IDS, id="formed"),
    ],
)
def test_every_engine_waits_once(engine: str, trunk: nn.Module, m: int, inputs: Tensor) -> None:
    weighting, trunk = make("upgrad", m).float(), trunk.to("meta")
    heads = [nn.Linear(40, 2).to("meta") for _ in range(m)]
    step = Step(weighting, nn.ModuleList([trunk, *heads]), engine=engine)
    for _ in range(2):
        losses = losses_of(weighting, trunk, heads, inputs)
        with Device() as device:
            step.backward(losses)
        assert device.sent == [m + m * m]
        assert len(device.waits) == 1, device.waits


@pytest.mark.parametrize("name", [name for name in NAMES if make(name, 5).on_cpu])
def test_buffers_that_stay_on_the_cpu_change_their_dtype(name: str) -> None:
    weighting = make(name, 5).to("meta", torch.float32)
    numbers = [number for number in weighting.buffers() if number.is_floating_point()]
    assert all(number.device.type == "cpu" and number.dtype == torch.float32 for number in numbers)


def test_devices_are_not_mixed() -> None:
    """The meta device raises if devices are mixed, and ``Device`` records each transfer."""
    device = Device()
    with device, pytest.raises(RuntimeError, match="meta"):
        torch.ones(3, device="meta") @ torch.ones(3)
    with device:
        on_meta = torch.ones(3, device="meta")
        assert on_meta.sum().item() == 1.0
        assert not (on_meta > 0).any()
        on_meta[[0, 1]], torch.ones(2).to("meta"), torch.tensor([1.0], device="meta")
        torch.ones(2).to("meta", non_blocking=True)
    assert device.sent == [1, 1]
    assert device.waits[2:] == ["__getitem__", "2 to the device", "tensor"]
