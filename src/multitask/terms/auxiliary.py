"""A loss that the trunk returns."""

from torch import nn

from multitask.seen import Seen
from multitask.terms.term import LossOfSeen


class Auxiliary(nn.Module):
    """A loss of the trunk's own, by its name.

    Args:
        name: A key of ``losses`` of what the trunk returns, :class:`multitask.nn.with_losses.WithLosses`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, seen: Seen) -> LossOfSeen:
        """Return the loss as the trunk does.

        Raises:
            ValueError: If the trunk returns no such loss.
        """
        if self.name not in seen.losses:
            raise ValueError(
                f"loss.name: the trunk returns no loss '{self.name}'; it returns "
                f"{', '.join(seen.losses) or 'none, which multitask.nn.with_losses.WithLosses would hold'}"
            )
        return seen.losses[self.name]
