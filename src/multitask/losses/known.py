"""Losses over partly labelled targets."""

from copy import copy

import torch
from torch import Tensor

from multitask.losses.counts import Count, count_of, has_count, labelled_examples, marked


def over_examples(mask: Tensor, like: Tensor) -> Tensor:
    """Append dimensions to a mask so that it broadcasts over ``like``."""
    return mask.view(mask.shape + (1,) * (like.ndim - mask.ndim))


def whole_rows(known: Tensor) -> Tensor | None:
    """Return a mask of the labelled examples, ``[batch]``; ``None`` if an example is partly labelled."""
    if known.ndim == 1:
        return known
    complete = known.flatten(1).all(1)
    return complete if torch.equal(complete, labelled_examples(known)) else None


def labelled_values(prediction: Tensor, target: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return the labelled values, ``[k]`` and ``[k]``, or ``[k, classes]`` and ``[k]`` for dense classes."""
    if prediction.shape == target.shape:
        return prediction[known], target[known]
    # Dense classes [batch, …] against scores [batch, classes, …].
    return prediction.movedim(1, -1)[known], target[known]


def loss_over_known(
    loss: object, how: Count | None, prediction: Tensor, target: Tensor, known: Tensor
) -> tuple[Tensor, Tensor | float]:
    """Return a mean loss over the labelled values alone, and its count; see :func:`count_of` for the arguments.

    A loss with a method ``count`` excludes missing values itself, marked by NaN or its ``ignore_index``. One with
    ``reduction="mean"`` is computed without reduction, so that arguments with one entry per column (``pos_weight``)
    stay aligned; it raises ``ValueError`` if the result does not have the target's shape. Any other loss gets the
    labelled values in one dimension. Checks before training verify that both agree with the loss itself on complete
    targets.
    """
    assert callable(loss)
    if how is None and has_count(loss):
        target = marked(loss, target, known)
        return loss(prediction, target), loss.count(target)  # type: ignore[attr-defined]
    count = count_of(loss, how, target, known)
    if getattr(loss, "reduction", None) != "mean":
        return loss(*labelled_values(prediction, target, known)), count
    unreduced = copy(loss)
    unreduced.reduction = "none"  # type: ignore[attr-defined]
    values = unreduced(prediction, target.where(known, 0))
    if values.shape != target.shape:
        raise ValueError(
            f"an example lacks some of its target's values, and {type(loss).__name__} has no number "
            f"for each value ({list(values.shape)} for {list(target.shape)}), so that it cannot exclude single "
            "ones; mark such examples as missing as a whole (mask/<target>), or choose another loss"
        )
    total = values.where(known, 0).sum()
    denominator = torch.as_tensor(count, device=total.device).to(total.dtype)
    return total / denominator.clamp(min=torch.finfo(total.dtype).tiny), count


def redrawn(
    prediction: Tensor, target: Tensor, known: Tensor | None = None, size: int = 24
) -> tuple[Tensor, Tensor]:
    """Return a complete batch resampled from the labelled values of each column.

    It shows whether a loss or metric computed for partly labelled rows agrees with itself on complete rows. At least
    one value of the target must be labelled. The batch has ``size`` examples, or fewer if they are large.
    """
    size = size if target[0].numel() <= 4096 else 4
    generator = torch.Generator().manual_seed(0)
    known = torch.ones_like(target, dtype=torch.bool) if known is None else known
    # Dimension 1 has columns or channels if the shapes of prediction and target agree, otherwise positions.
    by_column = target.ndim > 1 and prediction.shape[1:] == target.shape[1:]
    columns, masks = (target.unbind(1), known.unbind(1)) if by_column else ((target,), (known,))
    pooled = target[known]
    drawn = []
    for column, mask in zip(columns, masks, strict=True):
        values = column[mask] if mask.any() else pooled
        shape = (size, *column.shape[1:])
        drawn.append(values[torch.randint(len(values), shape, generator=generator).to(values.device)])
    complete = torch.stack(drawn, 1) if by_column else drawn[0]
    if complete.is_floating_point() and not ((pooled == 0) | (pooled == 1)).all():
        complete = _perturbed(complete, generator)
    rows = torch.randint(len(prediction), (size,), generator=generator).to(prediction.device)
    return _perturbed(prediction.detach()[rows], generator), complete


def _perturbed(values: Tensor, generator: torch.Generator) -> Tensor:
    """Shrink values by up to 5 %, so that they differ but keep their sign and stay within [0, 1]."""
    if not values.is_floating_point():
        return values
    return values * (1 - 0.05 * torch.rand(values.shape, generator=generator).to(values))
