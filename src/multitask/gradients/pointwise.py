"""The gradient of each point's own output, from one backward pass for all points."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Pointwise:
    """A module that has parameters of its own for each point, equal to those of the module.

    What is made of its outputs point by point, derivatives with respect to the points included, has gradients that
    lie apart, in memory as large as ``points`` copies of the parameters.

    Args:
        module: Treats each point by itself, whatever the others are.
        points: How many points there are.
    """

    def __init__(self, module: nn.Module, points: int) -> None:
        self.module = module
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.parameters = {
            n: p.detach().expand(points, *p.shape).requires_grad_() for n, p in trained.items()
        }

    def __call__(self, points: Tensor) -> Tensor:
        """Return the outputs, ``[n, f]``, at points ``[n, d]``."""
        return torch.vmap(partial(_at, self.module))(self.parameters, points)

    def squared_norms(self, values: Tensor) -> Tensor:
        """Return the squared norm of the gradient of each point's value, with respect to the parameters.

        Args:
            values: One number per point, ``[n]``; their graph remains.
        """
        leaves = list(self.parameters.values())
        gradients = torch.autograd.grad(values.sum(), leaves, retain_graph=True, allow_unused=True)
        norms = [g.detach().square().flatten(1).sum(1) for g in gradients if g is not None]
        return torch.stack(norms).sum(0) if norms else torch.zeros_like(values)


def _at(module: nn.Module, parameters: dict[str, Tensor], point: Tensor) -> Tensor:
    return functional_call(module, parameters, (point[None],))[0]
