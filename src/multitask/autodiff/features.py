"""Gradients at the shared features in place of the parameters: one backward pass, and approximate."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from multitask.autodiff.gradients import Cotangents, Engine, TaskGradients
from multitask.autodiff.rows import add_to_gradients


class FeatureGradients(TaskGradients):
    """The rows are the losses' gradients at the trunk's outputs.

    Their Gramian bounds the parameters' one rather than equals it (Multi-Task Learning as
    Multi-Objective Optimization, 2018, MGDA-UB); the combined gradient is exact for its weights.

    Args:
        outputs: The trunk's outputs, with their graph.
        rows: Shape ``[k, f]``: the losses' gradients at all outputs, flattened.
        parameters: The shared parameters.
        direct: Losses that depend on the parameters directly, one a row, or ``None``.
    """

    def __init__(
        self,
        outputs: Sequence[Tensor],
        rows: Tensor,
        parameters: Sequence[nn.Parameter],
        direct: Sequence[Tensor | None],
    ) -> None:
        self._outputs = outputs
        self._rows = rows
        self._parameters = parameters
        self._direct = direct

    def gramian(self) -> Tensor:
        """Return the Gramian of the feature gradients, shape ``[k, k]``."""
        return self._rows @ self._rows.T

    def combine(self, weights: Tensor) -> None:
        """Pull the combined feature gradient back through the trunk."""
        self._pull(weights.to(self._rows.dtype) @ self._rows, weights)

    def jacobian(self) -> Tensor:
        """Return the feature gradients, shape ``[k, f]``."""
        return self._rows

    def assign(self, vector: Tensor) -> None:
        """Pull a feature gradient back through the trunk."""
        self._pull(vector, None)

    def _pull(self, vector: Tensor, weights: Tensor | None) -> None:
        parts = vector.split([o.numel() for o in self._outputs])
        roots = [
            (o, part.view_as(o)) for o, part in zip(self._outputs, parts, strict=True) if o.requires_grad
        ]
        for i, loss in enumerate(self._direct):
            if loss is not None and weights is not None:
                roots.append((loss, weights[i].to(loss.dtype)))
        found = torch.autograd.grad(
            [o for o, _ in roots],
            list(self._parameters),
            [g for _, g in roots],
            allow_unused=True,
            materialize_grads=True,
        )
        add_to_gradients(self._parameters, found)


class Features(Engine):
    """Approximate and cheap: the trunk is differentiated once, whatever the number of tasks."""

    def differentiate(
        self,
        outputs: Sequence[Tensor],
        cotangents: Cotangents,
        parameters: Sequence[nn.Parameter],
        direct: Sequence[Tensor | None] = (),
    ) -> TaskGradients:
        """Collect the gradients at the outputs; see :class:`Engine`."""
        rows = [
            torch.cat(
                [
                    torch.zeros_like(o).flatten() if g is None else g.flatten()
                    for o, g in zip(outputs, row, strict=True)
                ]
            )
            for row in cotangents.rows()
        ]
        return FeatureGradients(outputs, torch.stack(rows).to(parameters[0].dtype), parameters, direct)
