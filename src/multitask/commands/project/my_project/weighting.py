"""A weighting of this project."""

from torch import Tensor

from multitask.weighting.base import Scalarization


class SoftMinimum(Scalarization):
    """The smooth minimum of the losses, −T · log Σ exp(−L / T): the smallest loss gets the largest weight.

    Args:
        temperature: T; the larger, the more equal the weights.

    Raises:
        ValueError: If the temperature is not positive.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"weighting.temperature={temperature} must be positive.")
        self.temperature = temperature

    def forward(self, losses: Tensor) -> Tensor:
        """Return the scalar of the losses ``[tasks]``."""
        return -self.temperature * (-losses / self.temperature).logsumexp(0)
