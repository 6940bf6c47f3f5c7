"""A loss of anything that the model computes, a task of its own: no head, and no target but what it reads itself."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from multitask.seen import Seen

LossOfSeen = Tensor | tuple[Tensor, float | Tensor]
"""A scalar: the mean over the batch's examples. ``[batch]``: one value per example. A pair: a mean, and its count."""


class Term(nn.Module):
    """A loss of anything that the model computes, combined with the others by any weighting.

    Args:
        loss: ``loss(seen)``: the mean over the batch's examples, a scalar; the loss of each example, ``[batch]``; or a
            mean and how many elements it is over. ``seen`` has the batch, the inputs, the features, the predictions of
            all tasks and the trunk's own losses: see :class:`multitask.seen.Seen`.
        weight: A constant factor of the loss, whatever the combiner does with it afterwards.
        count: ``batch`` for a loss that is no mean over examples (contrastive pairs, the balance of experts): that of
            several batches is defined as their mean, each weighted by its count.
        missing: Whether a batch can be without this loss: its count is 0 there, and its value may be anything.
        derivatives: Whether the loss calls :meth:`multitask.seen.Seen.derivative`.

    Raises:
        ValueError: If ``count`` is anything else.
    """

    def __init__(
        self,
        loss: Callable[[Seen], LossOfSeen],
        weight: float = 1.0,
        count: Literal["batch"] | None = None,
        missing: bool = False,
        derivatives: bool | None = None,
    ) -> None:
        super().__init__()
        if count not in (None, "batch"):
            raise ValueError(f"tasks.*.count of a term is null or batch, not {count!r}.")
        self.loss = loss
        self.weight = weight
        self.counts_by = count
        self.missing = missing
        self.derivatives = bool(getattr(loss, "derivatives", False)) if derivatives is None else derivatives

    def forward(self, seen: Seen) -> tuple[Tensor, float | Tensor | None]:
        """Return the mean loss, a scalar, and what it is over; ``None`` for the batch's examples.

        Raises:
            ValueError: If the loss is nothing of this kind.
        """
        values, count = self._found(seen)
        if values.ndim:
            values = values.mean()
        if self.missing and count is not None and not count:
            values = torch.zeros_like(values)  # the mean of nothing is NaN
        return self.weight * values, count

    def each(self, seen: Seen) -> Tensor:
        """Return the loss of each example, ``[batch]``.

        Raises:
            ValueError: If the loss is one number for all of them.
        """
        values, _ = self._found(seen)
        if not values.ndim:
            raise ValueError(
                "the loss is one number for a batch, and the weighting has a row for each example; let it return one "
                "value per example, or choose another weighting"
            )
        return self.weight * values

    def _found(self, seen: Seen) -> tuple[Tensor, float | Tensor | None]:
        given: Any = self.loss(seen)
        values, count = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
        fits = isinstance(values, Tensor) and (
            values.ndim == 0 or (count is None and values.shape == (seen.examples,))
        )
        if not fits:
            shape = list(values.shape) if isinstance(values, Tensor) else f"a {type(values).__name__}"
            raise ValueError(
                f"the loss gives {shape}, and must give one number, one value per example, or a number and its count"
            )
        return seen.in_precision(values), count
