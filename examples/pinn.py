"""Train a physics-informed network for u'' = -π² sin(πx), u(±1) = 0: ``python examples/pinn.py``."""

import math

import torch
from torch import Tensor, nn
from torchjd.aggregation import ConFIG

import multitask


def derivative(y: Tensor, x: Tensor) -> Tensor:
    """Return dy/dx per example, with its graph."""
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


def losses(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the mean squared residual of the equation and of the boundary condition.

    Both share the whole network except its last bias, on which no derivative depends.
    """
    x = x.requires_grad_()
    second = derivative(derivative(net(x), x), x)
    boundary = net(x.new_tensor([[-1.0], [1.0]]))
    residual = second + math.pi**2 * torch.sin(math.pi * x)
    return {"equation": residual.pow(2).mean(), "boundary": boundary.pow(2).mean()}


def main(steps: int = 500) -> float:
    """Train with ConFIG, a method for physics losses, and return the largest error on a grid."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    step = multitask.Step(ConFIG(), net)  # any torchjd aggregator works
    for number in range(steps):
        x = 2 * torch.rand(128, 1) - 1
        result = step.backward(losses(net, x))
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if number % 100 == 0:
            print(number, result.losses)
    grid = torch.linspace(-1, 1, 101)[:, None]
    with torch.no_grad():
        return float((net(grid) - torch.sin(math.pi * grid)).abs().max())


if __name__ == "__main__":
    print("largest error:", main())
