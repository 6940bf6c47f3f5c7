"""The weight of a batch in a mean over batches: the count that the mean of its loss is over."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

Count = Literal["examples", "weights", "batch"]
"""The counts that a task can name for its loss; see :class:`multitask.task.Task`."""

COUNTS: tuple[str, ...] = get_args(Count)

UNSPOKEN = -100
"""The class that torch's losses ignore by default; where data hold it, the task must say that labels can be missing."""

_BY_CLASS_WEIGHTS = (nn.CrossEntropyLoss.forward, nn.NLLLoss.forward)


def count_of(loss: object, how: Count | None, target: Tensor, known: Tensor | None = None) -> Tensor | float:
    """Return what the mean loss of a batch is over.

    Args:
        loss: The loss.
        how: The task's own choice; by default the loss's own method ``count(target)``, or what torch's losses do.
        target: The target in the loss's units.
        known: Which values are labelled, in the target's shape; ``None`` where all are.

    Returns:
        By the loss's own method whatever it returns; for ``weights`` the sum of the labelled values' class
        weights; for ``batch`` the number of examples; otherwise the number of labelled values.
    """
    if how == "batch":
        return float(len(target)) if known is None else labelled_examples(known).sum()
    if how is None and has_count(loss):
        return loss.count(target if known is None else marked(loss, target, known))  # type: ignore[attr-defined]
    counted = known
    if not target.is_floating_point():
        ignored = getattr(loss, "ignore_index", None)
        if isinstance(ignored, int) and how != "examples":
            counted = target != ignored if known is None else known & (target != ignored)
        weight = getattr(loss, "weight", None)
        if weight is not None and weighs_classes(loss, how):
            weights = torch.as_tensor(weight, device=target.device)
            if counted is None:
                return weights[target].sum()
            return (weights[target.where(counted, 0)] * counted).sum()
    return float(target.numel()) if counted is None else counted.sum()


def labelled_examples(known: Tensor) -> Tensor:
    """Return which examples have a labelled value, ``[batch]``."""
    return known.flatten(1).any(1) if known.ndim > 1 else known


def has_count(loss: object) -> bool:
    """Return whether a loss says by itself what it is a mean over, and so what it leaves out."""
    return callable(getattr(loss, "count", None))


def ignored_by(loss: object) -> int | None:
    """Return the integer that a loss was told to ignore; torch's default, −100, is nobody's choice."""
    ignored = getattr(loss, "ignore_index", None)
    return ignored if isinstance(ignored, int) and ignored != UNSPOKEN else None


def weighs_classes(loss: object, how: Count | None) -> bool:
    """Return whether a loss is divided by its class weights: torch's two are, what inherits their forward too."""
    if how is None:
        return getattr(type(loss), "forward", None) in _BY_CLASS_WEIGHTS
    return how == "weights"


def marked(loss: object, target: Tensor, known: Tensor) -> Tensor:
    """Return the target with marks of what is missing, for a loss that leaves them out by itself.

    Raises:
        ValueError: If the target holds integers and the loss names none that it ignores.
    """
    if target.is_floating_point():
        return target.masked_fill(~known, torch.nan)
    ignored = getattr(loss, "ignore_index", None)
    if not isinstance(ignored, int):
        raise ValueError(
            f"{type(loss).__name__} counts by itself and has no ignore_index, by which it would know what is missing"
        )
    return target.masked_fill(~known, ignored)
