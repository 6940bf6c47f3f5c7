"""A trunk that differentiates its output."""

import torch
from torch import Tensor, nn


class ForceField(nn.Module):
    """Maps positions ``[batch, width]`` to an energy ``[batch, 1]`` and the forces, its negative gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.LazyLinear(16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, positions: Tensor) -> dict[str, Tensor]:
        with torch.enable_grad():
            positions = positions.detach().requires_grad_()
            energy = self.energy(positions)
            (slope,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
        return {"scalar": energy, "vector": -slope}
