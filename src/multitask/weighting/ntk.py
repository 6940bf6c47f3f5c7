from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from multitask.gradients.rows import sent
from multitask.weighting.base import Layout, Recomputed, Scalarization


class NTK(Scalarization):
    """Σ λ L with λ_i = tr K / tr K_ii, where K is the kernel ``J Jᵀ`` of the residuals and K_ii its block of loss i.

    A loss L_i is the mean of n_i squared residuals. In K they are divided by √n_i, so that L_i is the sum of their
    squares; if all losses have the same number of residuals, the weights are the paper's. The traces are computed after
    the first step and then every ``steps`` steps, with the updated parameters and the step's batch. The weights of the
    first step are ones, as in the authors' code. The weight of a loss without gradient does not change.

    "When and Why PINNs Fail to Train: A Neural Tangent Kernel Perspective" (Wang, Yu & Perdikaris, 2022), Algorithm 1.
    """

    on_cpu = True
    linear = True
    recomputed: Recomputed = "traces"
    per_task: ClassVar[dict[str, Layout]] = {"factors": "vector"}
    factors: Tensor
    age: Tensor

    def __init__(self, tasks: Sequence[str], steps: int = 100) -> None:
        if steps < 1:
            raise ValueError(f"weighting.steps={steps} must be at least 1.")
        super().__init__()
        self.steps = steps
        self.keep("factors", torch.ones(len(tasks)))
        self.keep("age", torch.zeros((), dtype=torch.long))

    def forward(self, losses: Tensor) -> Tensor:
        return (sent(self.factors.to(losses.dtype), losses.device) * losses).sum()

    def after_step(self, recompute: Callable[[], Tensor]) -> None:
        """Update the weights if they are due; ``recompute()`` returns tr K_ii, ``[k]``."""
        if int(self.age) % self.steps == 0:
            traces = recompute().to(self.factors)
            updated = traces.sum() / torch.where(traces > 0, traces, 1.0)
            self.factors = torch.where(traces > 0, updated, self.factors)
        self.age = self.age + 1
