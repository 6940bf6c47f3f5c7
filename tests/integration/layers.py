"""A user's trunk with an unused layer and a frozen, quantized encoder."""

import torch
from torch import Tensor, nn


class Encoded(nn.Module):
    """A quantized encoder and a layer, optionally beside an unused layer."""

    def __init__(self, unused: bool) -> None:
        super().__init__()
        codes = torch.arange(36, dtype=torch.int8).view(6, 6) % 5 - 2
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.layer = nn.Linear(6, 16)
        if unused:
            self.unused = nn.Linear(16, 100)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return features ``[batch, 16]``."""
        return torch.relu(self.layer(inputs @ (0.5 * self.codes)))
