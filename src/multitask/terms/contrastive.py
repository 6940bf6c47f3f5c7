"""Features of the same class together, those of others apart."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from multitask.seen import Seen


class SupervisedContrastive(nn.Module):
    """ "Supervised Contrastive Learning" (Khosla et al., 2020), equation 2, of the trunk's features.

    A loss of pairs, and so no mean over examples: its term has ``count: batch``.

    Args:
        target: The key of the batch's classes, ``[batch]``.
        temperature: Of the cosines; above 0.
        task: Whose features, where the trunk has some for each.
    """

    def __init__(self, target: str, temperature: float = 0.1, task: str | None = None) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"tasks.*.loss.temperature={temperature} must be above 0.")
        self.target = target
        self.temperature = temperature
        self.task = task

    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Return the mean over the examples that have another of their class in the batch, and how many those are."""
        features = seen.features
        if not isinstance(features, Tensor):
            if self.task is None:
                raise ValueError("loss.task is not set, and the trunk has features for each task")
            features = features[self.task]
        unit = F.normalize(features.flatten(1), dim=1)
        others = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        logits = (unit @ unit.T / self.temperature).masked_fill(~others, -torch.inf)
        log_shares = logits.log_softmax(1).masked_fill(~others, 0.0)
        classes = seen.batch[self.target]
        alike = (classes[:, None] == classes) & others
        pairs = alike.sum(1)
        paired = pairs > 0
        each = -(log_shares * alike).sum(1) / pairs.clamp(min=1)
        return each.sum() / paired.sum().clamp(min=1), paired.sum()
