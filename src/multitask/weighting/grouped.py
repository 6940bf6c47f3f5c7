import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import JacobianMethod
from multitask.weighting.layers import By, Part, groups
from multitask.weighting.wrapper import Wrapper


class Grouped(Wrapper[JacobianMethod]):
    """Applies another method separately to each layer's or tensor's part of the gradients.

    Each group has its own copy of the method, with its own state. The returned weights are the mean over groups,
    weighted by their numbers of parameters. A method with trainable parameters, which groups cannot share, is a
    ``ValueError``.
    """

    def __init__(self, method: JacobianMethod, by: By) -> None:
        if by not in ("layer", "tensor"):
            raise ValueError(f"weighting.groups={by} is unknown; choose trunk, layer or tensor.")
        if any(True for _ in method.parameters()):
            raise ValueError(
                f"weighting.groups={by} cannot split the trainable parameters of {type(method).__name__}; "
                "set weighting.groups=trunk."
            )
        super().__init__(method)
        self.by = by
        self.of_parameters = True
        self.members = nn.ModuleDict()
        self._present: Tensor | None = None

    @contextmanager
    def restricted_to(self, present: Tensor) -> Iterator[None]:
        """Restrict the groups' copies when they are called, since some may not exist yet."""
        self._present = present
        try:
            yield
        finally:
            self._present = None

    def combine(self, losses: Tensor, gradients: TaskGradients) -> Tensor | None:
        """Combine the columns of each group."""
        jacobian = gradients.jacobian()
        vector = torch.empty_like(jacobian[0])
        total: Tensor | None = torch.zeros_like(losses)
        found = groups(gradients, self.by)
        self._rename_legacy(found)
        for name, columns in found.items():
            part = Part(gradients, jacobian, columns, self.on_cpu)
            member = self._member(name)
            with self._restricted(member):
                weights = member.combine(losses, part)
            start = 0
            for _, first, end in columns:
                vector[first:end] = part.vector[start : start + end - first]
                start += end - first
            if weights is None or total is None:
                total = None
            else:
                total = total + weights.to(total) * (start / len(vector))
        gradients.assign(vector)
        return total

    def head_weights(self, losses: Tensor) -> Tensor | None:
        factors = []
        for member in self._all():
            with self._restricted(member):
                factors.append(member.head_weights(losses))
        known = [f for f in factors if f is not None]
        return torch.stack(known).mean(0) if known else None

    def observe(self, losses: Tensor) -> None:
        for member in self._all():
            with self._restricted(member):
                member.observe(losses)

    def after_step(self, recompute: Callable[[], Tensor]) -> None:
        for member in self._all():
            with self._restricted(member):
                member.after_step(recompute)

    def reset(self) -> None:
        super().reset()
        self.members.clear()

    def on_epoch_end(self) -> None:
        for member in dict.fromkeys([self.method, *self._all()]):
            member.on_epoch_end()

    def _restricted(self, member: JacobianMethod) -> AbstractContextManager[None]:
        return nullcontext() if self._present is None else member.restricted_to(self._present)

    def _all(self) -> list[JacobianMethod]:
        return [cast(JacobianMethod, member) for member in self.members.values()] or [self.method]

    def _rename_legacy(self, names: Iterable[str]) -> None:
        """Rename the groups of a checkpoint from before 0.2, whose names were relative to the trunk."""
        current = {_key(name) for name in names}
        for key in [key for key in self.members if key not in current]:
            full = _key("trunk") + ("" if key == _key("") else key)
            if full in current and full not in self.members:
                self.members[full] = self.members.pop(key)

    def _member(self, name: str) -> JacobianMethod:
        key = _key(name)
        if key not in self.members:
            self.members[key] = copy.deepcopy(self.method)
        return cast(JacobianMethod, self.members[key])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        start = f"{prefix}members."
        self.members.clear()
        for key in dict.fromkeys(k[len(start) :].split(".")[0] for k in state_dict if k.startswith(start)):
            self.members[key] = copy.deepcopy(self.method)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _key(name: str) -> str:
    """Return a module name for a group, which must be non-empty and without dots."""
    return "/" + name.replace(".", "/")
