"""Combiners that wrap another combiner and delegate to it."""

from collections.abc import Callable, Sequence
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torchjd import Stateful

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import Combiner, JacobianMethod, Layout, Scalarization, WeightedMethod

C = TypeVar("C", bound=Combiner)
M = TypeVar("M", bound=JacobianMethod)


class Around(Combiner, Generic[C]):
    """Delegates all hooks to a combiner."""

    def __init__(self, method: C) -> None:
        super().__init__()
        self.method = method
        self.draws, self.recomputed = method.draws, method.recomputed

    def check_parameters(self, names: Sequence[str]) -> None:
        self.method.check_parameters(names)

    def observe(self, losses: Tensor) -> None:
        self.method.observe(losses)

    def after_step(self, recompute: Callable[[], Tensor]) -> None:
        self.method.after_step(recompute)

    def on_epoch_end(self) -> None:
        self.method.on_epoch_end()

    def parameters_of(self, task: int) -> list[nn.Parameter]:
        return self.method.parameters_of(task)

    def logged_values(self) -> dict[str, Tensor]:
        return self.method.logged_values()


class Wrapper(Around[M], JacobianMethod):
    """Wraps a Jacobian method, and is one."""

    def __init__(self, method: M) -> None:
        super().__init__(method)
        self.rows, self.on_cpu = method.rows, method.on_cpu
        self.of_parameters, self.reads_jacobian = method.of_parameters, method.reads_jacobian
        self.remembers_rows = method.remembers_rows
        self.gives_weights = method.gives_weights

    def head_weights(self, losses: Tensor) -> Tensor | None:
        return self.method.head_weights(losses)

    def own_loss(self, losses: Tensor) -> Tensor | None:
        return self.method.own_loss(losses)


class Every(Wrapper[WeightedMethod], WeightedMethod):
    """Recomputes another method's weights only every ``steps`` optimizer steps, or if a present task has none yet.

    The method must give one weight per task.
    """

    per_task: ClassVar[dict[str, Layout]] = {"kept": "vector", "factors": "vector"}
    kept: Tensor
    factors: Tensor
    age: Tensor

    def __init__(self, tasks: Sequence[str], method: WeightedMethod, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"weighting.every={steps} must be at least 1.")
        if not isinstance(method, WeightedMethod) or method.rows == "example":
            raise ValueError(
                f"weighting.every={steps} needs a weighting that gives one weight per task; set "
                "weighting.every=1."
            )
        super().__init__(method)
        self.steps = steps
        self.keep("kept", torch.full((len(tasks), 2 if method.rows == "half" else 1), torch.nan))
        self.keep("factors", torch.full((len(tasks),), torch.nan))
        self.keep("age", torch.zeros((), dtype=torch.long))

    def head_weights(self, losses: Tensor) -> Tensor | None:
        """Return the head weights, recomputed together with the weights."""
        if self._is_due():
            factors = self.method.head_weights(losses)
            unset = torch.full_like(self.factors, torch.nan)
            self.factors = unset if factors is None else factors.to(self.factors)
        return None if bool(self.factors.isnan().any()) else self.factors.to(losses)

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        if self._is_due():
            self.age = torch.zeros_like(self.age)
            weights = self.method.weigh(losses, gradients)
            self.kept = weights.view(-1, len(self.kept)).T.to(self.kept)
        self.age = self.age + 1
        return self.kept.T.flatten().to(losses)

    def _is_due(self) -> bool:
        return int(self.age) % self.steps == 0 or bool(self.kept.isnan().any())


class Differentiated(Around[Scalarization], WeightedMethod):
    """Weights the rows by the derivatives of a scalarization: the same update, from one gradient per task."""

    def __init__(self, method: Scalarization) -> None:
        super().__init__(method)
        self._weights: Tensor | None = None

    def head_weights(self, losses: Tensor) -> Tensor:
        """Return the derivatives, stored for :meth:`weigh`, since random ones must be the same for both."""
        self._weights = self._derivatives(losses)
        return self._weights

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        weights = self._derivatives(losses) if self._weights is None else self._weights
        self._weights = None
        return weights

    def own_loss(self, losses: Tensor) -> Tensor | None:
        return self.method(losses) if any(True for _ in self.method.parameters()) else None

    @torch.enable_grad()
    def _derivatives(self, losses: Tensor) -> Tensor:
        leaf = losses.detach().clone().requires_grad_()
        return torch.autograd.grad(self.method(leaf), leaf)[0]


class InstanceWise(Wrapper[WeightedMethod], WeightedMethod):
    """Applies a Gramian weighting to the losses of every example and task, ``[batch · m]`` rows.

    The weighting must have neither state nor numbers per task, since examples change.

    "Jacobian Descent for Multi-Objective Optimization" (Quinton & Rey, 2024), Section 5, and torchjd's instance-wise
    multi-task learning.
    """

    def __init__(self, method: WeightedMethod) -> None:
        if (
            not isinstance(method, WeightedMethod)
            or method.rows != "task"
            or any(map(_keeps, method.modules()))
        ):
            raise ValueError(
                "weighting.rows=example needs a weighting of the Gramian without state or numbers "
                f"per task, which {type(method).__name__} is not; choose another, or "
                "weighting.rows=task."
            )
        super().__init__(method)
        # A Gramian of so many rows stays on its device, as do the programs.
        self.rows, self.on_cpu = "example", False

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Return the weight of each example and task, shape ``[batch · m]``."""
        return self.method.weigh(losses, gradients)


def _keeps(module: nn.Module) -> bool:
    values = [*vars(module).values(), *module.buffers(), *module.parameters()]
    return isinstance(module, Stateful) or any(isinstance(value, Tensor) for value in values)


class Rescaled(Wrapper[JacobianMethod]):
    """Rescales another method's combined gradient to the norm of the mean of the rows.

    Methods differ in the norm of their combined gradients; with equal norms, one learning rate fits all. A zero
    gradient is not rescaled.
    """

    def combine(self, losses: Tensor, gradients: TaskGradients) -> Tensor | None:
        recorder = _Recorder(gradients)
        weights = self.method.combine(losses, recorder)
        factor = recorder.write()
        return None if weights is None else weights * factor.to(weights)


class _Recorder(TaskGradients):
    """Passes gradients to a method and records its result."""

    def __init__(self, gradients: TaskGradients) -> None:
        self.layout = gradients.layout
        self._gradients = gradients
        self._gramian: Tensor | None = None
        self._weights: Tensor | None = None
        self._vector: Tensor | None = None

    @property
    def distances(self) -> Sequence[int | None]:  # type: ignore[override]
        return self._gradients.distances

    def gramian(self) -> Tensor:
        if self._gramian is None:
            self._gramian = self._gradients.gramian()
        return self._gramian

    def combine(self, weights: Tensor) -> None:
        self._weights = weights

    def jacobian(self) -> Tensor:
        return self._gradients.jacobian()

    def assign(self, vector: Tensor) -> None:
        self._vector = vector

    def write(self) -> Tensor:
        """Write the recorded result, rescaled, and return its factor."""
        G = self.gramian()
        norm = G.sum().clamp(min=0).sqrt() / len(G)
        factor = torch.ones(())
        if self._weights is not None:
            w = self._weights.to(G)
            length = (w @ G @ w).clamp(min=0).sqrt()
            # The rounding error of a combination that cancels.
            noise = torch.finfo(G.dtype).eps ** 0.5 * (w.abs() @ G.diagonal().clamp(min=0).sqrt())
            factor = torch.where(length > noise, norm / length, 1.0)
            self._gradients.combine(self._weights * factor.to(self._weights))
        elif self._vector is not None:
            length = self._vector.norm()
            factor = torch.where(length > 0, norm.to(length) / length, 1.0)
            self._gradients.assign(self._vector * factor.to(self._vector))
        return factor
