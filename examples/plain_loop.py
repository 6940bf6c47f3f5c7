"""Train one network on two losses in a plain PyTorch loop: ``python examples/plain_loop.py``."""

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import multitask


class Net(nn.Module):
    """A trunk and two heads. The shared parameters are found from the graph, not declared."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 32), nn.Tanh())
        self.sum, self.product = nn.Linear(32, 1), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return one prediction per task, ``[batch]`` each."""
        features = self.trunk(x)
        return self.sum(features)[:, 0], self.product(features)[:, 0]


def batch(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs, ``[size, 8]``, and two targets; a third of the second targets are missing (NaN)."""
    x = torch.randn(size, 8, generator=generator)
    product = x[:, 0] * x[:, 1]
    product[torch.rand(size, generator=generator) < 1 / 3] = torch.nan
    return x, x.sum(1), product


def main(steps: int = 100, micro_batches: int = 2) -> Tensor:
    """Train, and return the losses of the last step, ``[2]``."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    step = multitask.Step(multitask.UPGrad(), net)  # or any other weighting of multitask or torchjd
    for number in range(steps):
        for _ in range(micro_batches):
            x, sums, products = batch(32, generator)
            first, second = net(x)
            known = products.isfinite()
            losses = {"sum": mse_loss(first, sums), "product": mse_loss(second[known], products[known])}
            counts = {"sum": len(x), "product": int(known.sum())}  # number of elements in each mean
            step.add(losses, counts)
        result = step.finish()  # fills .grad as for one large batch
        optimizer.step()
        optimizer.zero_grad()
        if number % 20 == 0:
            print(number, result.losses, "weights", result.weights)
    return result.losses


if __name__ == "__main__":
    main()
