from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from multitask.gradients.rows import inner_products
from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import Layout
from multitask.weighting.conflict_free import ConFIG
from multitask.weighting.gramian import checked
from multitask.weighting.tracked import Tracking


class MConFIG(Tracking):
    """The gradient whose moving average is ConFIG's direction of the losses' first moments.

    Each step computes the gradient of only one loss and updates its moment: the loss that has waited longest, with
    ties broken by name. Losses without a moment yet are all computed at once. If the set of shared parameters changes,
    all moments are reset.

    Let d_t be (1 − βᵗ) times ConFIG's direction of the bias-corrected moments. The gradient is
    (d_t − β d_{t−1}) / (1 − β), which Adam with β₁ = β turns into the algorithm's update: that direction divided by the
    root of the second moment of this gradient.

    "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks" (Liu, Chu & Thuerey, 2024),
    Algorithm 1.

    Args:
        beta: β, the optimizer's β₁, in [0, 1).
    """

    draws = False
    per_task: ClassVar[dict[str, Layout]] = dict.fromkeys(("moments", "steps", "taken", "places"), "vector")
    steps: Tensor
    taken: Tensor
    moments: Tensor | None
    average: Tensor | None

    def __init__(self, tasks: Sequence[str], beta: float = 0.9) -> None:
        if not 0 <= beta < 1:
            raise ValueError(f"weighting.beta={beta} must be at least 0 and less than 1.")
        super().__init__()
        self.beta = beta
        self.config = ConFIG()
        places = torch.tensor([sorted(tasks).index(task) for task in tasks], dtype=torch.float64)
        self.places = places / len(tasks)
        self._begin(len(tasks))
        self.keep("moments", None)
        self.keep("average", None)

    def _begin(self, m: int) -> None:
        # Not buffers: they stay on the CPU, so that choosing the loss does not wait for the device.
        self.steps = torch.zeros(m, dtype=torch.float64)  # gradients in the moment of each loss
        self.taken = torch.zeros(m, dtype=torch.float64)  # time of the last gradient of each loss
        self.count = 0  # steps

    def reset(self) -> None:
        super().reset()
        self._begin(len(self.steps))

    def get_extra_state(self) -> dict[str, Any]:
        """Return the counts for the checkpoint."""
        return {"steps": self.steps.clone(), "taken": self.taken.clone(), "count": self.count}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the counts from a checkpoint."""
        self.steps, self.taken, self.count = state["steps"].cpu(), state["taken"].cpu(), state["count"]

    def wants(self) -> list[int]:
        """Return all losses without a moment yet, otherwise the one that has waited longest."""
        new = (self.steps == 0).nonzero().flatten().tolist()
        return new or [int(self.taken.argmin())]

    def combine(self, losses: Tensor, gradients: TaskGradients) -> None:
        turn, jacobian, m = self.wants(), gradients.jacobian(), len(self.steps)
        taken = jacobian if len(jacobian) == len(turn) else [jacobian[i] for i in turn]
        if self.moments is not None and self.moments.shape[1] != jacobian.shape[1]:
            self._begin(m)
        moments = self.fitting(self.moments, jacobian[:1].expand(m, -1)).clone()
        steps, count = self.steps.clone(), self.count + 1
        steps[turn] += 1
        for i, gradient in zip(turn, taken, strict=True):
            moments[i].lerp_(gradient, 1 - self.beta)
        begun = [i for i, n in enumerate(steps.tolist()) if n]
        rows = torch.stack([moments[i] / (1 - self.beta ** float(steps[i])) for i in begun])
        gramian = checked(inner_products(rows, rows))
        direction = self.config.of_gramian(gramian, losses if len(begun) == m else losses[begun]) @ rows
        before = None if self.average is None else self.average[None]
        average = direction * (1 - self.beta**count)
        gradient = average - self.beta * self.fitting(before, average[None])[0]
        self.moments, self.average = moments, average
        self.steps, self.count = steps, count
        self.taken = self.taken.clone()
        self.taken[turn] = count + self.places[turn]
        gradients.assign(gradient / (1 - self.beta))
