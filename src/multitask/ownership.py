"""Which parameters are shared and which belong to one task, found from the graph of a forward pass."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from multitask.autodiff.rows import add_to_gradients
from multitask.autodiff.sharing import users
from multitask.task import Batch

if TYPE_CHECKING:
    from multitask.module import MultiTaskModule


class Ownership:
    """Tells the trunk's shared parameters from those that one task alone reaches.

    A trunk that gives features a task (attention, experts, gates) has parameters of one task's own.
    They are no ground for conflict: they get their task's gradient, as its head does, and are no part
    of the Jacobian.
    """

    def __init__(self) -> None:
        self._specific: dict[int, list[nn.Parameter]] | None = None

    def find(self, module: "MultiTaskModule", batch: Batch) -> None:
        """Look once, at a forward pass of two examples in which nothing is frozen."""
        if self._specific is not None:
            return
        self._specific = {}
        if len(module.names) < 2:
            return
        frozen = [p for p in module.trunk.parameters() if not p.requires_grad and p.is_floating_point()]
        training = module.trunk.training
        module.trunk.eval()
        for p in frozen:
            p.requires_grad_(True)
        with torch.enable_grad():
            outputs = module.features(batch["inputs"][:2])
        for p in frozen:
            p.requires_grad_(False)
        module.trunk.train(training)
        if len({id(output) for output in outputs}) == 1:
            return
        parameters = list(module.trunk.parameters())
        by_feature = users(dict(zip(module.by_name, outputs, strict=True)), parameters)
        for parameter, names in zip(parameters, by_feature, strict=True):
            claims = [*names, *module.penalties_on(parameter)]
            if len(claims) == 1 and names:
                self._specific.setdefault(module.names.index(names[0]), []).append(parameter)

    def shared(self, module: "MultiTaskModule") -> list[nn.Parameter]:
        """Return the trunk's trainable parameters that more than one task, or the only one, reaches."""
        own = {id(p) for parameters in (self._specific or {}).values() for p in parameters}
        return [p for p in module.trunk.parameters() if p.requires_grad and id(p) not in own]

    def of(self, task: int) -> list[nn.Parameter]:
        """Return the trunk's trainable parameters of one task."""
        return [p for p in (self._specific or {}).get(task, []) if p.requires_grad]

    def all_specific(self) -> list[nn.Parameter]:
        """Return the trunk's trainable parameters that belong to one task each."""
        return [p for task in self._specific or {} for p in self.of(task)]

    def pull(self, task: int, feature: Tensor, gradient: Tensor | None) -> None:
        """Give a task's own trunk parameters their gradient, from that at its features."""
        if gradient is None:
            return
        found = zip(self.of(task), self.gradient(task, feature, gradient), strict=True)
        there = [(p, g) for p, g in found if g is not None]
        add_to_gradients([p for p, _ in there], [g for _, g in there])

    def gradient(self, task: int, feature: Tensor, gradient: Tensor) -> Sequence[Tensor | None]:
        """Return the gradients of a task's own trunk parameters, from one at its features."""
        parameters = self.of(task)
        if not parameters:
            return []
        return torch.autograd.grad(feature, parameters, gradient, retain_graph=True, allow_unused=True)


def gradients_of(module: "MultiTaskModule", batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the losses ``[m]`` and, as plain rows, their gradients over the trunk's shared parameters ``[m, n]``."""
    module.ownership.find(module, batch)
    shared = module.shared_parameters()
    rows = []
    losses = module.losses(batch)
    for loss in losses:
        found = torch.autograd.grad(
            loss, shared, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        rows.append(torch.cat([g.flatten() for g in found]))
    return losses, torch.stack(rows)
