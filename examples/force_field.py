"""Learn energies and forces of small clusters, with forces as derivatives: ``python examples/force_field.py``."""

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import multitask


def pairs(positions: Tensor) -> Tensor:
    """Return the distances of all pairs of atoms, ``[batch, pairs]``; positions are ``[batch, atoms, 3]``."""
    first, second = torch.triu_indices(positions.shape[1], positions.shape[1], offset=1)
    return (positions[:, first] - positions[:, second]).norm(dim=-1)


def morse(positions: Tensor) -> Tensor:
    """Return the target energies, ``[batch]``, of a Morse potential between all pairs of atoms."""
    return (1 - torch.exp(1 - pairs(positions))).pow(2).sum(1)


class ForceField(nn.Module):
    """A sum of pair energies, each a function of the distance."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, positions: Tensor) -> Tensor:
        """Return the energy of each cluster, ``[batch]``."""
        return self.net(pairs(positions)[..., None]).sum((1, 2))


def with_forces(energy, positions: Tensor, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """Return energies, ``[batch]``, and forces -dE/dx, ``[batch, atoms, 3]``."""
    positions = positions.detach().requires_grad_()
    energies = energy(positions)
    (slope,) = torch.autograd.grad(energies.sum(), positions, create_graph=create_graph)
    return energies, -slope


def main(steps: int = 300) -> Tensor:
    """Train, and return the mean squared errors of energies and forces in the last step, ``[2]``."""
    torch.manual_seed(0)
    model = ForceField()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    step = multitask.Step(multitask.UPGrad(), model)
    for _ in range(steps):
        positions = 1.5 * torch.randn(32, 4, 3)
        energies, forces = (target.detach() for target in with_forces(morse, positions))
        predicted, predicted_forces = with_forces(model, positions, create_graph=True)
        losses = {"energy": mse_loss(predicted, energies), "forces": mse_loss(predicted_forces, forces)}
        result = step.backward(losses)
        optimizer.step()
        optimizer.zero_grad()
    return result.losses


if __name__ == "__main__":
    print("mean squared errors of energies and forces:", main())
