"""Targets of which some values are missing: a missing value keeps its place beside those of its row."""

from copy import copy

import torch
from torch import Tensor

from multitask.losses.counts import Count, count_of, has_count, labelled_examples, marked


def over_examples(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask over the first dimensions in a shape that spreads over all of ``like``'s."""
    return mask.view(mask.shape + (1,) * (like.ndim - mask.ndim))


def whole_rows(known: Tensor) -> Tensor | None:
    """Return which examples are labelled, ``[batch]``; ``None`` if some are labelled in part."""
    if known.ndim == 1:
        return known
    complete = known.flatten(1).all(1)
    return complete if torch.equal(complete, labelled_examples(known)) else None


def heap(prediction: Tensor, target: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return the labelled values one per row, ``[k]`` and ``[k]``, or ``[k, classes]`` and ``[k]`` of dense classes."""
    if prediction.shape == target.shape:
        return prediction[known], target[known]
    # Dense classes [batch, …] against scores [batch, classes, …].
    return prediction.movedim(1, -1)[known], target[known]


def loss_over_known(
    loss: object, how: Count | None, prediction: Tensor, target: Tensor, known: Tensor
) -> tuple[Tensor, Tensor | float]:
    """Return a loss over the labelled values alone, and what its mean is over.

    A loss with a method ``count`` leaves out by itself what is marked, NaN or its ``ignore_index``. One with
    ``reduction="mean"`` is computed value by value, so that arguments with one entry per column (``pos_weight``)
    keep their place. Any other gets all labelled values in one dimension. That either is the same as the loss
    itself where nothing is missing is checked before training.

    Args:
        loss: ``loss(prediction, target)`` → a scalar.
        how: The task's own choice of the count; see :func:`multitask.losses.counts.count_of`.
        prediction: As the head gives it.
        target: The target in the loss's units.
        known: Which values are labelled, in the target's shape.

    Raises:
        ValueError: If the loss, computed value by value, has not the target's shape.
    """
    assert callable(loss)
    if how is None and has_count(loss):
        filled = marked(loss, target, known)
        return loss(prediction, filled), loss.count(filled)  # type: ignore[attr-defined]
    count = count_of(loss, how, target, known)
    if getattr(loss, "reduction", None) != "mean":
        return loss(*heap(prediction, target, known)), count
    by_value = copy(loss)
    by_value.reduction = "none"  # type: ignore[attr-defined]
    values = by_value(prediction, target.where(known, 0))
    if values.shape != target.shape:
        raise ValueError(
            f"an example misses some of its target's values and has the rest, and {type(loss).__name__} has no number "
            f"for each value ({list(values.shape)} for {list(target.shape)}), so that it cannot leave single ones "
            "out; mark such examples as missing altogether (mask/<target>), or choose another loss"
        )
    total = values.where(known, 0).sum()
    return total / torch.as_tensor(count, device=total.device).to(total.dtype).clamp(
        min=torch.finfo(total.dtype).tiny
    ), count


def redrawn(
    prediction: Tensor, target: Tensor, known: Tensor | None = None, size: int = 24
) -> tuple[Tensor, Tensor]:
    """Return a batch like another, but with nothing missing: values drawn from each column's labelled ones.

    On it, the value of a loss or metric over rows that lack values can be compared with its value over whole rows.

    Args:
        prediction: ``[batch, …]``.
        target: ``[batch, …]``, with at least one labelled value.
        known: Which values are labelled; ``None`` where all are.
        size: How many examples to return, fewer of large ones.
    """
    size = size if target[0].numel() <= 4096 else 4
    generator = torch.Generator().manual_seed(0)
    known = torch.ones_like(target, dtype=torch.bool) if known is None else known
    # Dimension 1 is columns or channels where prediction and target agree, places where they do not.
    by_column = target.ndim > 1 and prediction.shape[1:] == target.shape[1:]
    columns, masks = (target.unbind(1), known.unbind(1)) if by_column else ((target,), (known,))
    every = target[known]
    drawn = []
    for column, mask in zip(columns, masks, strict=True):
        values = column[mask] if mask.any() else every
        shape = (size, *column.shape[1:])
        drawn.append(values[torch.randint(len(values), shape, generator=generator).to(values.device)])
    complete = torch.stack(drawn, 1) if by_column else drawn[0]
    if complete.is_floating_point() and not ((every == 0) | (every == 1)).all():
        complete = _stirred(complete, generator)
    rows = torch.randint(len(prediction), (size,), generator=generator).to(prediction.device)
    return _stirred(prediction.detach()[rows], generator), complete


def _stirred(values: Tensor, generator: torch.Generator) -> Tensor:
    """Move values towards zero by up to 5 %, so that they differ, and keep their sign and stay in [0, 1]."""
    if not values.is_floating_point():
        return values
    return values * (1 - 0.05 * torch.rand(values.shape, generator=generator).to(values))
