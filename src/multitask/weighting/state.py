"""The state of combiners: in buffers, or in the attributes of a torchjd object."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchjd import Stateful


class Memory(nn.Module):
    """A module whose state is in buffers and can be reset."""

    def __init__(self) -> None:
        super().__init__()
        self._starts: dict[str, Tensor | None] = {}

    def keep(self, name: str, start: Tensor | None) -> None:
        """Register a buffer with its value before the first step."""
        # Not an override of register_buffer, whose signature torch would inspect at each assignment to a buffer.
        self.register_buffer(name, start)
        self._starts[name] = None if start is None else start.clone()

    def reset(self) -> None:
        """Reset the state to that before the first step."""
        for name, start in self._starts.items():
            now = getattr(self, name)
            setattr(self, name, start if start is None or now is None else start.to(now, copy=True))
        for child in self.children():
            if isinstance(child, Memory | Stateful):
                child.reset()


_MODULE_ATTRIBUTES = {name.lstrip("_") for name in vars(nn.Module())}


def memory(root: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the plain attributes of a module tree by module name, loadable with ``weights_only=True``.

    torchjd keeps state in them, which ``state_dict`` does not include. Arguments of the constructor are excluded.
    """
    attributes: dict[str, dict[str, Any]] = {}
    for name, module in root.named_modules():
        configured = _MODULE_ATTRIBUTES | set(inspect.signature(type(module)).parameters)
        values = {k: v for k, v in vars(module).items() if k.lstrip("_") not in configured}
        attributes[name] = {k: _portable(v) for k, v in values.items() if _is_portable(v)}
    return attributes


def remember(root: nn.Module, saved: dict[str, dict[str, Any]]) -> None:
    """Restore the attributes returned by :func:`memory`.

    Raises:
        ValueError: If the saved state belongs to a different module tree.
    """
    modules = dict(root.named_modules())
    if modules.keys() != saved.keys():
        raise ValueError(f"The checkpoint's weighting has {sorted(saved)}, this one {sorted(modules)}.")
    for name, values in saved.items():
        for key, value in values.items():
            current = getattr(modules[name], key, None)
            if isinstance(current, torch.optim.Optimizer):
                current.load_state_dict(value)
            else:
                setattr(modules[name], key, _restored(value))


def _is_portable(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_portable(v) for v in value)
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_portable(v) for k, v in value.items())
    plain = (
        bool | int | float | str | Tensor | np.ndarray | np.generic | torch.optim.Optimizer
        | torch.dtype | torch.device
    )  # fmt: skip
    return value is None or isinstance(value, plain)


def _portable(value: Any) -> Any:
    match value:
        case np.ndarray():
            return {"__ndarray__": torch.from_numpy(np.array(value))}
        case np.generic():
            return value.item()
        case torch.dtype():
            return {"__dtype__": str(value).removeprefix("torch.")}
        case torch.device():
            return {"__device__": str(value)}
        case torch.optim.Optimizer():
            return value.state_dict()
        case list() | tuple():
            return type(value)(_portable(v) for v in value)
        case dict():
            return {k: _portable(v) for k, v in value.items()}
        case Tensor():
            return value.detach().clone()
    return value


def _restored(value: Any) -> Any:
    match value:
        case {"__ndarray__": Tensor() as tensor}:
            return tensor.numpy()
        case {"__dtype__": str() as name}:
            return getattr(torch, name)
        case {"__device__": str() as name}:
            return torch.device(name)
        case list() | tuple():
            return type(value)(_restored(v) for v in value)
        case dict():
            return {k: _restored(v) for k, v in value.items()}
    return value


def materialize_buffers(root: nn.Module, state: dict[str, Any], prefix: str) -> None:
    """Allocate buffers that are ``None`` in their shape in ``state``, for strict loading."""
    for name, module in root.named_modules():
        start = f"{prefix}{name}." if name else prefix
        for key in [key.removeprefix(start) for key in state if key.startswith(start)]:
            if getattr(module, key, state) is None:
                setattr(module, key, torch.empty_like(state[start + key]))


def move_plain_tensors(root: nn.Module, move: Callable[[Tensor], Tensor]) -> None:
    """Apply ``move`` to tensors that are neither parameters nor buffers, which ``Module.to`` ignores."""
    for module in root.modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor):
                setattr(module, key, move(value))
            elif isinstance(value, list) and any(isinstance(v, Tensor) for v in value):
                setattr(module, key, [move(v) if isinstance(v, Tensor) else v for v in value])
