"""Combiners around another one: each passes on what it does not change."""

from collections.abc import Callable, Sequence
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torchjd import Stateful

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.base import Combiner, JacobianMethod, Scalarization, WeightedMethod
from multitask.weighting.present import Kind

C = TypeVar("C", bound=Combiner)
M = TypeVar("M", bound=JacobianMethod)


class Around(Combiner, Generic[C]):
    """Passes a combiner's whole life on to it.

    Args:
        method: The combiner around which it lies.
    """

    def __init__(self, method: C) -> None:
        super().__init__()
        self.method = method
        self.draws, self.recomputed = method.draws, method.recomputed

    def check_parameters(self, names: Sequence[str]) -> None:
        """Check the combiner."""
        self.method.check_parameters(names)

    def observe(self, losses: Tensor) -> None:
        """Show the combiner the losses of the step."""
        self.method.observe(losses)

    def after_step(self, recompute: Callable[[], Tensor]) -> None:
        """Let the combiner see the losses after the step."""
        self.method.after_step(recompute)

    def on_epoch_end(self) -> None:
        """Close the combiner's epoch."""
        self.method.on_epoch_end()

    def parameters_of(self, task: int) -> list[nn.Parameter]:
        """Return the combiner's own parameters of a task."""
        return self.method.parameters_of(task)

    def figures(self) -> dict[str, Tensor]:
        """Return the combiner's numbers worth a curve."""
        return self.method.figures()


class Wrapper(Around[M], JacobianMethod):
    """Lies around a Jacobian method, and is one.

    Args:
        method: The method around which it lies.
    """

    def __init__(self, method: M) -> None:
        super().__init__(method)
        self.rows = method.rows
        self.of_parameters = method.of_parameters
        self.remembers_rows = method.remembers_rows

    def head_weights(self, losses: Tensor) -> Tensor | None:
        """Return the method's factors of the heads' gradients."""
        return self.method.head_weights(losses)

    def own_loss(self, losses: Tensor) -> Tensor | None:
        """Return the scalar that trains the method's own parameters."""
        return self.method.own_loss(losses)

    @property
    def gives_weights(self) -> bool:
        """Whether the method gives weights."""
        return self.method.gives_weights


class Every(Wrapper[WeightedMethod], WeightedMethod):
    """Another method's weights, kept for ``steps`` optimizer steps.

    A task that has no weight yet, since it was absent when they were computed, has all recomputed.

    Args:
        tasks: The tasks' names.
        method: The other method.
        steps: How long weights are kept.

    Raises:
        ValueError: If the method gives no weights, or none a task.
    """

    per_task: ClassVar[dict[str, Kind]] = {"kept": "vector", "factors": "vector"}
    kept: Tensor
    factors: Tensor
    age: Tensor

    def __init__(self, tasks: Sequence[str], method: WeightedMethod, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"weighting.every={steps} must be at least 1.")
        if not isinstance(method, WeightedMethod) or method.rows == "example":
            raise ValueError(
                f"weighting.every={steps} needs a weighting that gives one weight per task; leave "
                "weighting.every=1."
            )
        super().__init__(method)
        self.steps = steps
        self.keep("kept", torch.full((len(tasks), 2 if method.rows == "half" else 1), torch.nan))
        self.keep("factors", torch.full((len(tasks),), torch.nan))
        self.keep("age", torch.zeros((), dtype=torch.long))

    def head_weights(self, losses: Tensor) -> Tensor | None:
        """Return the heads' factors, kept as long as the weights that they belong to."""
        if self._is_due():
            factors = self.method.head_weights(losses)
            none = torch.full_like(self.factors, torch.nan)
            self.factors = none if factors is None else factors.to(self.factors)
        return None if bool(self.factors.isnan().any()) else self.factors.to(losses)

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Return the kept weights, recomputed when they are old."""
        if self._is_due():
            self.age = torch.zeros_like(self.age)
            weights = self.method.weigh(losses, gradients)
            self.kept = weights.view(-1, len(self.kept)).T.to(self.kept)
        self.age = self.age + 1
        return self.kept.T.flatten().to(losses)

    def _is_due(self) -> bool:
        return int(self.age) % self.steps == 0 or bool(self.kept.isnan().any())


class Differentiated(Around[Scalarization], WeightedMethod):
    """Weights the rows by the scalar's derivatives by the losses: the same update, at one gradient per task.

    Args:
        method: The scalarization.
    """

    def __init__(self, method: Scalarization) -> None:
        super().__init__(method)
        self._weights: Tensor | None = None

    def head_weights(self, losses: Tensor) -> Tensor:
        """Return the derivatives, kept for the rows: random ones must be the same for both."""
        self._weights = self._derivatives(losses)
        return self._weights

    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Return the derivatives, shape ``[k]``."""
        weights = self._derivatives(losses) if self._weights is None else self._weights
        self._weights = None
        return weights

    def own_loss(self, losses: Tensor) -> Tensor | None:
        """Return the scalar itself where it has parameters."""
        return self.method(losses) if any(True for _ in self.method.parameters()) else None

    @torch.enable_grad()
    def _derivatives(self, losses: Tensor) -> Tensor:
        leaf = losses.detach().clone().requires_grad_()
        return torch.autograd.grad(self.method(leaf), leaf)[0]


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


class Rescaled(Wrapper[JacobianMethod]):
    """Another method's direction with the norm of the mean of the rows.

    Methods differ in the length of what they give; with equal lengths, one learning rate serves all. A
    combined gradient that is zero stays so.

    Args:
        method: The other method.
    """

    def combine(self, losses: Tensor, gradients: TaskGradients) -> Tensor | None:
        """Add the rescaled combined gradient."""
        kept = _Kept(gradients)
        weights = self.method.combine(losses, kept)
        kept.write()
        return None if weights is None else weights * kept.factor.to(weights)


class _Kept(TaskGradients):
    """Shows gradients to a method and keeps what it writes."""

    def __init__(self, gradients: TaskGradients) -> None:
        self._gradients = gradients
        self._gramian: Tensor | None = None
        self._weights: Tensor | None = None
        self._vector: Tensor | None = None
        self.factor = torch.ones(())

    @property
    def layout(self) -> Sequence[tuple[str, int]]:  # type: ignore[override]
        return self._gradients.layout

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

    def write(self) -> None:
        """Write what was kept, rescaled."""
        G = self.gramian()
        wanted = G.sum().clamp(min=0).sqrt() / len(G)
        if self._weights is not None:
            w = self._weights.to(G)
            length = (w @ G @ w).clamp(min=0).sqrt()
            # What the Gramian's rounding leaves of a combination that cancels.
            noise = torch.finfo(G.dtype).eps ** 0.5 * (w.abs() @ G.diagonal().clamp(min=0).sqrt())
            self.factor = torch.where(length > noise, wanted / length, 1.0)
            self._gradients.combine(self._weights * self.factor.to(self._weights))
        elif self._vector is not None:
            length = self._vector.norm()
            self.factor = torch.where(length > 0, wanted.to(length) / length, 1.0)
            self._gradients.assign(self._vector * self.factor.to(self._vector))
