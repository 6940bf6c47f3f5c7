"""The gradient of each point's output from one backward pass for all points."""

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Pointwise:
    """A module with a copy of its parameters for each point.

    Values computed point by point from its outputs, or from their derivatives with respect to the points, then have
    separate gradients, which take the memory of ``points`` copies of the parameters.

    Args:
        module: A module that treats points independently.
        points: The number of points.
    """

    def __init__(self, module: nn.Module, points: int) -> None:
        self.module = module
        self.parameters = {
            name: p.detach().expand(points, *p.shape).requires_grad_()
            for name, p in module.named_parameters()
            if p.requires_grad
        }

    def __call__(self, points: Tensor) -> Tensor:
        """Return the outputs, ``[n, f]``, at points ``[n, d]``."""

        def at(parameters: dict[str, Tensor], point: Tensor) -> Tensor:
            return functional_call(self.module, parameters, (point[None],))[0]

        return torch.vmap(at)(self.parameters, points)

    def squared_norms(self, values: Tensor) -> Tensor:
        """Return the squared norm of the gradient of each point's value, ``[n]``; the graph is retained.

        Args:
            values: One value per point, ``[n]``.
        """
        leaves = list(self.parameters.values())
        gradients = torch.autograd.grad(values.sum(), leaves, retain_graph=True, allow_unused=True)
        norms = [g.detach().square().flatten(1).sum(1) for g in gradients if g is not None]
        return torch.stack(norms).sum(0) if norms else torch.zeros_like(values)
