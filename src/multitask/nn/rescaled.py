"""Regression in standard units, with predictions in the units of the target."""

from torch import Tensor, nn


class Rescaled(nn.Module):
    """A head whose output counts in deviations from the mean: mean + std · head(features).

    With ``multitask.losses.Scaled`` of the same ``std`` this is a regression of the standardized target,
    while predictions, and so metrics, keep the target's units. ``mean`` and ``std``: of the training
    targets, one number for all columns. Raises ``ValueError`` unless ``std`` is above 0.
    """

    def __init__(self, head: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        if std <= 0:
            raise ValueError(f"tasks.*.head.std={std} must be above 0.")
        self.head = head
        self.mean = mean
        self.std = std

    def forward(self, features: Tensor) -> Tensor:
        """Prediction in the target's units, of the shape that the head gives."""
        return self.mean + self.std * self.head(features)
