"""Gradients at the shared features in place of the parameters: one backward pass, and approximate."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from multitask.autodiff.gradients import Cotangents, Engine, TaskGradients
from multitask.autodiff.products import inner_products
from multitask.autodiff.rows import add_to_gradients

Part = tuple[Sequence[Tensor], Tensor]
"""Outputs of the trunk with their graph, and the losses' gradients at all of them, ``[k, f]``."""


class FeatureGradients(TaskGradients):
    """The rows are the losses' gradients at the trunk's outputs.

    Their Gramian bounds the parameters' one rather than equals it (Multi-Task Learning as
    Multi-Objective Optimization, 2018, MGDA-UB); the combined gradient is exact for its weights. Other
    examples have other features, so that the Gramians of micro-batches and processes add up.

    Args:
        parts: What the micro-batches gave.
        parameters: The shared parameters.
    """

    def __init__(self, parts: Sequence[Part], parameters: Sequence[nn.Parameter]) -> None:
        self._parts = parts
        self._parameters = parameters

    def gramian(self) -> Tensor:
        """Return the Gramian of the feature gradients, shape ``[k, k]``, over all processes."""
        gramian = torch.stack([inner_products(rows, rows) for _, rows in self._parts]).sum(0)
        if _several():
            dist.all_reduce(gramian)
        return gramian

    def combine(self, weights: Tensor) -> None:
        """Pull the combined feature gradient back through the trunk."""
        self._pull([weights.to(rows.dtype) @ rows for _, rows in self._parts])

    def jacobian(self) -> Tensor:
        """Return the feature gradients of this process, shape ``[k, f]``."""
        return torch.cat([rows for _, rows in self._parts], 1)

    def assign(self, vector: Tensor) -> None:
        """Pull a feature gradient back through the trunk, shape ``[f]``."""
        self._pull(vector.split([rows.shape[1] for _, rows in self._parts]))

    def _pull(self, vectors: Sequence[Tensor]) -> None:
        total: list[Tensor] = [torch.zeros_like(p) for p in self._parameters]
        for (outputs, _), vector in zip(self._parts, vectors, strict=True):
            pieces = vector.split([o.numel() for o in outputs])
            roots = [(o, g.view_as(o)) for o, g in zip(outputs, pieces, strict=True) if o.requires_grad]
            found = torch.autograd.grad(
                [o for o, _ in roots],
                list(self._parameters),
                [g for _, g in roots],
                allow_unused=True,
                materialize_grads=True,
            )
            total = [before + more for before, more in zip(total, found, strict=True)]
        if _several():
            flat = torch.cat([t.flatten() for t in total])
            dist.all_reduce(flat)
            pieces = flat.split([t.numel() for t in total])
            total = [piece.view_as(t) for piece, t in zip(pieces, total, strict=True)]
        add_to_gradients(self._parameters, total)


class Features(Engine):
    """Approximate and cheap: the trunk is differentiated once, whatever the number of tasks."""

    accumulates = True

    def __init__(self) -> None:
        self._parts: list[Part] = []

    def clear(self) -> None:
        """Begin anew."""
        self._parts = []

    def differentiate(
        self,
        outputs: Sequence[Tensor],
        cotangents: Cotangents,
        parameters: Sequence[nn.Parameter],
        direct: Sequence[Tensor | None] = (),
    ) -> TaskGradients:
        """Collect the gradients at the outputs; see :class:`Engine`.

        Raises:
            ValueError: If there is a penalty, which has no gradient at the outputs.
        """
        if any(loss is not None for loss in direct):
            raise ValueError(
                "weighting.engine=features has no gradient of a penalty; take weighting.engine=auto."
            )
        rows = [
            torch.cat(
                [
                    torch.zeros_like(o).flatten() if g is None else g.flatten()
                    for o, g in zip(outputs, row, strict=True)
                ]
            )
            for row in cotangents.rows()
        ]
        self._parts.append((outputs, torch.stack(rows).to(parameters[0].dtype)))
        return FeatureGradients(self._parts, parameters)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
