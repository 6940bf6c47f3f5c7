"""The count of a mean loss, which is its weight in a mean over batches."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

Count = Literal["examples", "weights", "batch"]
"""The values of a task's ``count``; see :class:`multitask.task.Task`."""

COUNTS: tuple[str, ...] = get_args(Count)

DEFAULT_IGNORE_INDEX = -100
"""The class that torch's losses ignore by default; if the data contain it, the task needs ``missing=True``."""

_BY_CLASS_WEIGHTS = (nn.CrossEntropyLoss.forward, nn.NLLLoss.forward)


def count_of(loss: object, how: Count | None, target: Tensor, known: Tensor | None = None) -> Tensor | float:
    """Return the count of a batch's mean loss.

    Args:
        loss: The loss.
        how: The task's ``count``. ``None``: the loss's ``count(target)``, or the denominator of torch's losses;
            ``examples``: the number of labelled values; ``weights``: the sum of their class weights; ``batch``: the
            number of examples.
        target: The transformed target.
        known: Which values are labelled, in the target's shape; ``None`` for all.
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
        if weighs_classes(loss, how):
            weights = torch.as_tensor(loss.weight, device=target.device)  # type: ignore[attr-defined]
            if counted is None:
                return weights[target].sum()
            return (weights[target.where(counted, 0)] * counted).sum()
    return float(target.numel()) if counted is None else counted.sum()


def labelled_examples(known: Tensor) -> Tensor:
    """Return a mask of the examples with at least one labelled value, ``[batch]``."""
    return known.flatten(1).any(1) if known.ndim > 1 else known


def has_count(loss: object) -> bool:
    """Return whether a loss has a method ``count``, and therefore excludes missing values itself."""
    return callable(getattr(loss, "count", None))


def ignored_by(loss: object) -> int | None:
    """Return the loss's ``ignore_index``; ``None`` for torch's default, −100."""
    ignored = getattr(loss, "ignore_index", None)
    return ignored if isinstance(ignored, int) and ignored != DEFAULT_IGNORE_INDEX else None


def weighs_classes(loss: object, how: Count | None) -> bool:
    """Return whether a mean loss is divided by the sum of class weights, as torch's cross-entropy losses are."""
    by_weights = (
        getattr(type(loss), "forward", None) in _BY_CLASS_WEIGHTS if how is None else how == "weights"
    )
    return by_weights and getattr(loss, "weight", None) is not None


def marked(loss: object, target: Tensor, known: Tensor) -> Tensor:
    """Return the target with missing values marked, for a loss that excludes them itself.

    Raises ``ValueError`` if the target is integer and the loss has no ``ignore_index``.
    """
    if target.is_floating_point():
        return target.masked_fill(~known, torch.nan)
    ignored = getattr(loss, "ignore_index", None)
    if not isinstance(ignored, int):
        raise ValueError(
            f"{type(loss).__name__} counts by itself, but has no ignore_index to mark missing values"
        )
    return target.masked_fill(~known, ignored)
