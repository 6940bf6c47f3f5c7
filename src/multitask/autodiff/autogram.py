"""The Gramian by TorchJD's autogram, and one more backward pass for the combination."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torchjd.autogram
from torch import Tensor, nn

from multitask.autodiff.gradients import Cotangents, Engine, TaskGradients
from multitask.autodiff.rows import add_to_gradients, split_like


class AutogramGradients(TaskGradients):
    """A Gramian, and losses to differentiate once more.

    Args:
        losses: Scalars whose gradients are the rows, with their graph, shape ``[k]``.
        gramian: Shape ``[k, k]``.
        parameters: The shared parameters, n numbers in all.
    """

    def __init__(self, losses: Tensor, gramian: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        self._losses = losses
        self._gramian = gramian
        self._parameters = parameters

    def gramian(self) -> Tensor:
        """Return ``J Jᵀ``, shape ``[k, k]``."""
        return self._gramian

    def combine(self, weights: Tensor) -> None:
        """Differentiate the weighted losses."""
        add_to_gradients(self._parameters, self._pull(weights.to(self._losses.dtype)))

    def jacobian(self) -> Tensor:
        """Return ``J``, shape ``[k, n]``: one backward pass a row."""
        rows = [self._pull(one) for one in torch.eye(len(self._losses)).to(self._losses)]
        return torch.stack([torch.cat([gradient.flatten() for gradient in row]) for row in rows])

    def assign(self, vector: Tensor) -> None:
        """Add ``vector``, shape ``[n]``, to the gradients of the shared parameters."""
        add_to_gradients(self._parameters, split_like(vector, self._parameters))

    def _pull(self, weights: Tensor) -> Sequence[Tensor]:
        return torch.autograd.grad(
            self._losses, list(self._parameters), weights, retain_graph=True, allow_unused=True,
            materialize_grads=True,
        )  # fmt: skip


class Autogram(Engine):
    """TorchJD's ``Engine``, through its own interface.

    It sees the parameters of modules that are called, and needs the whole batch on one process.

    Args:
        by_example: Whether each example has rows of its own, which the engine then keeps apart. The trunk must
            treat examples independently.

    "Jacobian Descent for Multi-Objective Optimization" (Quinton & Rey, 2024), Section 6.
    """

    def __init__(self, by_example: bool = False) -> None:
        self._by_example = by_example
        self._engine: torchjd.autogram.Engine | None = None

    @contextmanager
    def watch(self, trunk: nn.Module) -> Iterator[None]:
        """Hook the trunk's modules, in this forward pass alone.

        Made anew for each, the engine sees what has been frozen or unfrozen, and other forward passes, of
        which no Gramian is asked, do not disturb it.
        """
        self._engine = torchjd.autogram.Engine(trunk, batch_dim=0 if self._by_example else None)
        yield

    def differentiate(
        self,
        outputs: Sequence[Tensor],
        cotangents: Cotangents,
        parameters: Sequence[nn.Parameter],
        direct: Sequence[Tensor | None] = (),
    ) -> AutogramGradients:
        """Compute the Gramian; see :class:`Engine`."""
        assert self._engine is not None
        losses = self._losses(outputs, cotangents, parameters[0].dtype)
        gramian = self._engine.compute_gramian(losses)
        self._engine = None  # its hooks go with it
        return AutogramGradients(losses.flatten(), gramian.detach(), parameters)

    def _losses(self, outputs: Sequence[Tensor], cotangents: Cotangents, dtype: torch.dtype) -> Tensor:
        """Return scalars whose gradients at the outputs are the cotangents: ``[k]``, or ``[batch, m]``."""
        if self._by_example:
            columns = [_products(outputs, row, dtype, first=1) for row in cotangents.by_task]
            return torch.stack(columns, 1)
        return torch.stack([_products(outputs, row, dtype, first=0) for row in cotangents.rows()])


def _products(
    outputs: Sequence[Tensor], gradients: Sequence[Tensor | None], dtype: torch.dtype, first: int
) -> Tensor:
    """Return ``Σ ⟨output, gradient⟩``, over all dimensions from ``first`` on."""
    parts = [
        (output.to(dtype) * gradient.to(dtype)).flatten(first).sum(-1)
        for output, gradient in zip(outputs, gradients, strict=True)
        if gradient is not None
    ]
    return torch.stack(parts).sum(0) if parts else outputs[0].to(dtype).flatten(first).sum(-1) * 0.0
