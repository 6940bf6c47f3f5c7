"""Features sampled from a distribution per example."""

import torch
from torch import Tensor, nn

from multitask.nn.with_losses import WithLosses


class Variational(nn.Module):
    """A normal distribution of features for each example: returns a sample in training, the mean in evaluation.

    Its loss ``kl`` is the KL divergence from the standard normal distribution, one value per example. With
    classification tasks it is "Deep Variational Information Bottleneck" (Alemi et al., 2017), with a reconstruction of
    the inputs "Auto-Encoding Variational Bayes" (Kingma and Welling, 2014).

    Args:
        trunk: Inputs → features ``[batch, …]``.
        width: Number of sampled features.
    """

    def __init__(self, trunk: nn.Module, width: int = 50) -> None:
        super().__init__()
        self.trunk = trunk
        self.distribution = nn.LazyLinear(2 * width)

    def forward(self, inputs: Tensor) -> WithLosses:
        """Return features, ``[batch, width]``, and the loss ``kl``, ``[batch]``."""
        mean, log_variance = self.distribution(self.trunk(inputs).flatten(1)).chunk(2, dim=1)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        features = mean
        if self.training:
            features = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return WithLosses(features, {"kl": kl})
