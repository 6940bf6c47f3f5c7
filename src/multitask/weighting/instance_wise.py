"""Conflict among all losses of all examples."""

from torch import Tensor, nn
from torchjd import Stateful

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import WeightedMethod
from multitask.weighting.wrapper import Wrapper


class InstanceWise(Wrapper[WeightedMethod], WeightedMethod):
    """A Gramian weighting of the losses of every example and task, ``[batch · m]`` rows.

    "Jacobian Descent for Multi-Objective Optimization" (Quinton & Rey, 2024), Section 5, and torchjd's
    instance-wise multi-task learning.

    Args:
        method: The weighting, without memory and without numbers per task: examples come and go.

    Raises:
        ValueError: If the method has either.
    """

    def __init__(self, method: WeightedMethod) -> None:
        if (
            not isinstance(method, WeightedMethod)
            or method.rows != "task"
            or any(map(_keeps, method.modules()))
        ):
            raise ValueError(
                "weighting.rows=example needs a weighting of the Gramian that keeps nothing a task, neither "
                f"a memory nor a preference, and {type(method).__name__} is none; choose another, or "
                "weighting.rows=task."
            )
        super().__init__(method)
        self.rows = "example"

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Return the weight of each example and task, shape ``[batch · m]``."""
        return self.method.weigh(losses, gradients)


def _keeps(module: nn.Module) -> bool:
    vectors = [
        v for v in [*vars(module).values(), *module.buffers(), *module.parameters()] if isinstance(v, Tensor)
    ]
    declared = [getattr(module, name) for name in getattr(module, "per_task", ())]
    return bool(vectors) or isinstance(module, Stateful) or any(value is not None for value in declared)
