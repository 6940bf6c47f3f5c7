"""M-ConFIG: ConFIG of moments that follow the losses in turn."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from multitask.gradients.rows import inner_products
from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import JacobianMethod
from multitask.weighting.conflict_free import ConFIG
from multitask.weighting.gramian import cosines, like, not_finite, rounding
from multitask.weighting.present import Kind
from multitask.weighting.tracked import fitting


class MConFIG(JacobianMethod):
    """The gradient of which ConFIG's direction of the losses' first moments is the moving average.

    In each step one loss's gradient enters its moment: that of the loss which has waited longest, so that they take
    turns, by their names. In the first step of a loss its gradient enters whatever the turn. With d_t = (1 − βᵗ) times
    ConFIG's direction of the bias-corrected moments, the gradient is (d_t − β d_{t−1}) / (1 − β). Adam with β₁ = β
    turns it into the algorithm's update: that direction over the root of the second moment of this gradient.
    The moments take the room of m copies of the trunk.

    "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks" (Liu, Chu & Thuerey, 2024),
    Algorithm 1.

    Args:
        tasks: The tasks' names.
        beta: β, the optimizer's β₁.

    Raises:
        ValueError: If β is not in [0, 1).
    """

    of_parameters = True
    remembers_rows = True
    per_task: ClassVar[dict[str, Kind]] = {
        "moments": "vector",
        "steps": "vector",
        "taken": "vector",
        "places": "vector",
    }
    steps: Tensor
    taken: Tensor
    places: Tensor
    count: Tensor
    moments: Tensor | None
    average: Tensor | None

    def __init__(self, tasks: Sequence[str], beta: float = 0.9) -> None:
        if not 0 <= beta < 1:
            raise ValueError(f"weighting.beta={beta} must be at least 0 and less than 1.")
        super().__init__()
        self.beta = beta
        self.config = ConFIG()
        places = torch.tensor([sorted(tasks).index(task) for task in tasks], dtype=torch.float64)
        self.register_buffer("places", places / len(tasks), persistent=False)
        # How many gradients a loss's moment is of, and when it had its last; how many directions there were.
        self.keep("steps", torch.zeros(len(tasks), dtype=torch.float64))
        self.keep("taken", torch.zeros(len(tasks), dtype=torch.float64))
        self.keep("count", torch.zeros((), dtype=torch.float64))
        # Last, as they begin later: callbacks that average weights pair buffers by their order.
        self.keep("moments", None)
        self.keep("average", None)

    def combine(self, losses: Tensor, gradients: TaskGradients) -> None:
        """Take the next loss's gradient into its moment, and put the gradient in place of the rows'.

        Raises:
            FloatingPointError: If a gradient that was taken is not finite.
        """
        jacobian = gradients.jacobian()
        if self.moments is not None and self.moments.shape != jacobian.shape:
            self.steps, self.count = torch.zeros_like(self.steps), torch.zeros_like(self.count)
        moments, count = fitting(self.moments, jacobian, "m_config"), self.count + 1
        turn = self._turn()
        steps = self.steps + turn
        moments = torch.where(turn[:, None], moments.lerp(jacobian, 1 - self.beta), moments)
        rows = moments / (1 - self.beta**steps)[:, None].to(moments)
        direction = self._weights(rows, losses) @ rows
        before = None if self.average is None else self.average[None]
        average = direction * (1 - self.beta**count).to(direction)
        gradient = average - self.beta * fitting(before, average[None], "m_config")[0]
        self.moments, self.average = moments, average
        self.steps, self.count = steps, count
        self.taken = torch.where(turn, count + self.places, self.taken)
        gradients.assign(gradient / (1 - self.beta))

    def _turn(self) -> Tensor:
        """Return whose gradient is taken, boolean, shape ``[k]``."""
        new = self.steps == 0
        longest = torch.zeros_like(new)
        longest[self.taken.argmin()] = True
        return torch.where(new.any(), new, longest)

    def _weights(self, rows: Tensor, losses: Tensor) -> Tensor:
        gramian = inner_products(rows, rows)
        if not torch.isfinite(gramian).all():
            raise not_finite()
        return like(gramian, self.config.solve(*cosines(gramian), rounding(gramian), losses))
