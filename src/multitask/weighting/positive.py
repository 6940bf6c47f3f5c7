"""Losses that a logarithm is taken of."""

from torch import Tensor


def positive(losses: Tensor, method: str) -> Tensor:
    """Return the losses as they are.

    Raises:
        ValueError: If one is zero or negative, where the method's gradient does not exist.
    """
    if (losses <= 0).any():
        raise ValueError(
            f"weighting={method} needs losses above zero, and one is {float(losses.detach().min()):.3g}; "
            "choose another weighting, or add a constant to that loss."
        )
    return losses
