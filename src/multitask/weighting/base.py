"""The base of every combiner: a rule from the losses of all tasks to one update."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.present import Kind, only
from multitask.weighting.state import Memory, materialize_buffers

Rows = Literal["task", "half", "example"]
Recomputed = Literal["losses", "traces"]


class Combiner(Memory, ABC):
    """Turns the losses of all tasks into one update of the shared parameters.

    The hooks are the whole life of a combiner; each does nothing unless a method needs it. What a
    combiner remembers lies in buffers, made by ``keep``, which ``reset`` sets back to their start;
    ``per_task`` says how each is laid out over the tasks.

    One optimizer step calls, with only the present tasks' entries and inside ``restricted_to``:
    ``forward`` of a scalarization, as often as needed and without effect on what it remembers, or
    ``head_weights``, ``combine`` and ``own_loss`` of a Jacobian method, once each; then ``observe`` once,
    with the losses of the first ``forward`` where an optimizer evaluates several times.
    After the optimizer's step it calls ``after_step``, and after an epoch's last step ``on_epoch_end``.
    """

    draws: bool = True
    """Whether it may draw random numbers; a step then seeds the generators for it."""

    recomputed: Recomputed = "losses"
    """What :meth:`after_step` sees: the mean losses, or the traces of their residuals' kernel."""

    per_task: ClassVar[Mapping[str, Kind]] = {}
    """The buffers and plain tensors with entries a task."""

    @contextmanager
    def restricted_to(self, present: Tensor) -> Iterator[None]:
        """Be the combiner of the present tasks alone; what is kept for the others rests untouched.

        Args:
            present: Which tasks take part, boolean, shape ``[m]``.

        Raises:
            ValueError: If a part of the combiner has a memory whose layout over tasks is not known.
        """
        with only(self, present):
            yield

    def check_parameters(self, names: Sequence[str]) -> None:
        """Refuse, before training, what does not fit a model whose parameters have these names.

        Raises:
            ValueError: Naming the key.
        """

    def observe(self, losses: Tensor) -> None:
        """See the detached losses of the whole step as they were before it, one per row."""

    def after_step(self, recompute: Callable[[], Tensor]) -> None:
        """Run after an optimizer step; ``recompute()`` computes what is ``recomputed`` of the same batch, ``[k]``."""

    def on_epoch_end(self) -> None:
        """Run after the last step of each training epoch."""

    def parameters_of(self, task: int) -> list[nn.Parameter]:
        """Return the combiner's own parameters that belong to one task.

        The optimizer must not move them (``.grad`` is None) in a step from which the task is absent.
        """
        return []

    def figures(self) -> dict[str, Tensor]:
        """Return numbers worth a curve beside the weights, by name, each of shape ``[m]``."""
        return {}

    @property
    def failures(self) -> int:
        """How many programs a solver of this combiner could not solve to its tolerance so far."""
        return sum(int(getattr(part, "failures", 0)) for part in self._solvers())

    @property
    def solver_seconds(self) -> float:
        """How long the solvers of this combiner have run so far, in seconds."""
        return sum(float(getattr(part, "seconds", 0.0)) for part in self._solvers())

    def _solvers(self) -> Iterator[object]:
        for module in self.modules():
            for value in vars(module).values():
                if hasattr(value, "failures") and not isinstance(value, nn.Module):
                    yield value

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state = f"{prefix}_extra_state"
        if type(self).get_extra_state is nn.Module.get_extra_state and not any(
            state_dict.get(state, {}).values()
        ):
            # Until 0.2 some methods were torchjd's, which remembered nothing.
            state_dict.pop(state, None)
        materialize_buffers(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


class Scalarization(Combiner):
    """Losses → one scalar, whose gradient trains everything."""

    @property
    def linear(self) -> bool:
        """Whether the weights ``∂scalar/∂losses`` are the same whatever the losses are."""
        return False

    @property
    def fixed(self) -> bool:
        """Whether the scalar is the same function of the losses throughout, and so worth reporting."""
        return False

    @abstractmethod
    def forward(self, losses: Tensor) -> Tensor:
        """Return the scalar to minimize.

        Args:
            losses: Mean loss of each present task, shape ``[k]``.
        """


class JacobianMethod(Combiner):
    """Task gradients → one gradient for the shared parameters."""

    rows: Rows = "task"
    """The unit of a row: each task; each task on each of two halves of the batch (``[2m]``, the first
    half's tasks first); or each task on each example (``[batch · m]``, example by example). A row is
    the gradient of the mean loss over what it is of."""

    of_parameters: bool = False
    """Whether the gradients must be those of the parameters, since it tells them apart or remembers them."""

    remembers_rows: bool = False
    """Whether it keeps a gradient of each task from step to step."""

    @property
    def gives_weights(self) -> bool:
        """Whether :meth:`combine` returns weights."""
        return False

    @abstractmethod
    def combine(self, losses: Tensor, gradients: TaskGradients) -> Tensor | None:
        """Add the combined gradient to the shared parameters.

        Args:
            losses: Detached mean loss of each row, shape ``[k]``.
            gradients: The rows' gradients.

        Returns:
            The weight of each row, shape ``[k]``, or ``None`` where the method has no weights.
        """

    def wants(self) -> list[int] | None:
        """Return whose rows this step needs, as places among the present losses; ``None`` for all.

        No others are then computed, and :meth:`combine` sees these alone, in ascending order. It is called before
        them in each step, unless which losses are present shows only at the end of the step: then all are computed.
        """
        return None

    def head_weights(self, losses: Tensor) -> Tensor | None:
        """Return the factor of each head's own gradient, shape ``[k]``; ``None`` stands for ones.

        Called right before :meth:`combine` with the same losses.
        """
        return None

    def own_loss(self, losses: Tensor) -> Tensor | None:
        """Return the scalar whose gradient trains the combiner's own parameters; ``None`` where it has none.

        Called once before the optimizer's step, with the detached losses of the whole step, shape ``[k]``.
        """
        return None


class WeightedMethod(JacobianMethod):
    """A Jacobian method whose combined gradient is a weighted sum of the rows."""

    @property
    def gives_weights(self) -> bool:
        """Whether :meth:`combine` returns weights."""
        return True

    def combine(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Add the weighted sum of the rows, and return the weights."""
        weights = self.weigh(losses, gradients)
        gradients.combine(weights)
        return weights

    @abstractmethod
    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Return the weight of each row, shape ``[k]``; arguments as for :meth:`combine`."""


def hooks_of(combiner: Combiner) -> frozenset[str]:
    """Return the hooks that a combiner defines beyond those of the bases here, which do nothing."""
    bases = (Combiner, Scalarization, JacobianMethod, WeightedMethod)
    names = ("wants", "head_weights", "combine", "observe", "own_loss", "after_step")
    return frozenset(
        name
        for name in names
        if hasattr(combiner, name)
        and not any(getattr(type(combiner), name) is vars(b).get(name) for b in bases)
    )
