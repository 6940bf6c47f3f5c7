"""The base of every combiner: a rule from the losses of all tasks to one update."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn

from multitask.gradients.task_gradients import TaskGradients
from multitask.weighting.present import Layout, restrict
from multitask.weighting.state import Memory, materialize_buffers

Rows = Literal["task", "half", "example"]
Recomputed = Literal["losses", "traces"]


class Combiner(Memory, ABC):
    """Turns the losses of all tasks into one update of the shared parameters.

    A constructor gets the tasks' names as ``tasks`` if it needs them, and raises ``ValueError``, naming the config key,
    for an argument outside of its documented range. State is in buffers created by ``keep``, which ``reset`` restores;
    ``per_task`` declares their layout over the tasks. All hooks do nothing by default.

    One optimizer step calls the following, inside ``restricted_to`` and with entries for the present tasks only.
    For a scalarization: ``forward``, possibly several times and without effect on the state. For a Jacobian method:
    ``head_weights``, ``combine`` and ``own_loss``, once each. Then ``observe`` once, with the losses of the first
    ``forward`` if the optimizer evaluates several times. After the optimizer's step: ``after_step``, and after the
    last step of an epoch ``on_epoch_end``.
    """

    draws: bool = True
    """Whether it may draw random numbers; a step then seeds the generators for it."""

    on_cpu: bool = False
    """Whether its numbers stay on the CPU, wherever the model is. A Jacobian method then gets losses and Gramian there,
    both copied at once, so that the step waits for the device once; one that takes the Jacobian cannot."""

    recomputed: Recomputed = "losses"
    """What :meth:`after_step` sees: the mean losses, or the traces of their residuals' kernel."""

    per_task: ClassVar[Mapping[str, Layout]] = {}
    """The buffers and plain tensors with one entry per task."""

    @contextmanager
    def restricted_to(self, present: Tensor) -> Iterator[None]:
        """Restrict the combiner to the present tasks; the state of the others does not change.

        ``present`` is their mask, shape ``[m]``.

        Raises:
            ValueError: If a part of the combiner has state whose layout over tasks is unknown.
        """
        with restrict(self, present):
            yield

    def check_parameters(self, names: Sequence[str]) -> None:
        """Check the arguments against the names of the model's parameters, before training.

        Raises:
            ValueError: If an argument does not fit the model.
        """

    def observe(self, losses: Tensor) -> None:
        """Receive the detached losses of the whole step before the update, one per row."""

    def after_step(self, recompute: Callable[[], Tensor]) -> None:
        """Run after an optimizer step; ``recompute()`` returns ``recomputed`` on the same batch, ``[k]``."""

    def on_epoch_end(self) -> None:
        """Run after the last step of each training epoch."""

    def parameters_of(self, task: int) -> list[nn.Parameter]:
        """Return the combiner's own parameters of one task.

        In a step without the task their ``.grad`` is ``None``, so that the optimizer does not change them.
        """
        return []

    def logged_values(self) -> dict[str, Tensor]:
        """Return values to log besides the weights, by name, each of shape ``[m]``."""
        return {}

    @property
    def failures(self) -> int:
        """Number of problems that the combiner's solvers have not solved to tolerance."""
        return sum(int(getattr(part, "failures", 0)) for part in self._solvers())

    @property
    def solver_seconds(self) -> float:
        """Total run time of the combiner's solvers in seconds."""
        return sum(float(getattr(part, "seconds", 0.0)) for part in self._solvers())

    def _solvers(self) -> Iterator[object]:
        for module in self.modules():
            for value in vars(module).values():
                if hasattr(value, "failures") and not isinstance(value, nn.Module):
                    yield value

    def moved(self, move: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Return what a move does to numbers of the combiner: on the CPU, it changes their dtype alone."""
        return (lambda tensor: tensor.to(move(tensor).dtype)) if self.on_cpu else move

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(self.moved(fn), recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state, has_none = f"{prefix}_extra_state", type(self).get_extra_state is nn.Module.get_extra_state
        if has_none and not any(state_dict.get(state, {}).values()):
            # Before 0.2 some methods were torchjd's, which have no state.
            state_dict.pop(state, None)
        materialize_buffers(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


class Scalarization(Combiner):
    """Losses → one scalar, whose gradient trains all parameters."""

    linear: bool = False
    """Whether the weights ``∂scalar/∂losses`` do not depend on the losses."""

    fixed: bool = False
    """Whether the scalar is the same function of the losses in every step, so that it can be compared."""

    @abstractmethod
    def forward(self, losses: Tensor) -> Tensor:
        """Return the scalar to minimize; ``losses`` are the mean losses of the present tasks, shape ``[k]``."""


class JacobianMethod(Combiner):
    """Task gradients → one gradient for the shared parameters."""

    rows: Rows = "task"
    """The unit of a row, the gradient of a mean loss: of each task; of each task on each half of the batch (``[2m]``,
    the first half's tasks first); or of each task on each example (``[batch · m]``, example by example)."""

    of_parameters: bool = False
    """Whether the gradients must be with respect to parameters, because it distinguishes or stores them."""

    reads_jacobian: bool = False
    """Whether it looks at the gradients themselves, beyond their Gramian; so do all that are ``of_parameters``."""

    remembers_rows: bool = False
    """Whether it stores a gradient per task between steps."""

    gives_weights: bool = False
    """Whether :meth:`combine` returns weights."""

    @abstractmethod
    def combine(self, losses: Tensor, gradients: TaskGradients) -> Tensor | None:
        """Add the combined gradient to the shared parameters.

        ``losses`` are the detached mean losses of the rows, shape ``[k]``. Returns the weight of each row, shape
        ``[k]``, or ``None`` if the method has no weights.

        Raises:
            FloatingPointError: If a gradient is not finite.
        """

    def wants(self) -> list[int] | None:
        """Return the indices of the rows that this step needs, among the present losses; ``None`` for all.

        Only these are computed and passed to :meth:`combine`, in ascending order. Not called if the present losses are
        known only at the end of a step, which then computes all rows.
        """
        return None

    def head_weights(self, losses: Tensor) -> Tensor | None:
        """Return the factors of the heads' gradients, shape ``[k]``; ``None`` for ones.

        Called right before :meth:`combine`, with the same losses.
        """
        return None

    def own_loss(self, losses: Tensor) -> Tensor | None:
        """Return the scalar whose gradient trains the combiner's own parameters; ``None`` if it has none.

        Called once before the optimizer's step, with the detached losses of the whole step, shape ``[k]``.
        """
        return None


class WeightedMethod(JacobianMethod):
    """A Jacobian method whose combined gradient is a weighted sum of the rows."""

    gives_weights = True

    def combine(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Add the weighted sum of the rows, and return the weights."""
        weights = self.weigh(losses, gradients)
        gradients.combine(weights)
        return weights

    @abstractmethod
    def weigh(self, losses: Tensor, gradients: TaskGradients) -> Tensor:
        """Return the weight of each row, shape ``[k]``; arguments as for :meth:`combine`."""


def check_kept(weighting: Combiner, memory: str, sharded: bool = False, name: str | None = None) -> None:
    """Refuse a combiner that needs more than what is kept of the Jacobian.

    Args:
        weighting: The combiner.
        memory: ``rows``; ``stream``, which keeps no rows; or ``auto``, which keeps rows if they fit.
        sharded: Whether each process keeps only the columns of its shards.
        name: The combiner's name in the error, by default its class.

    Raises:
        ValueError: Naming the key.
    """
    name, why = name or type(weighting).__name__, ""
    if not isinstance(weighting, JacobianMethod):
        why = "is a scalarization and has no rows to keep"
    elif weighting.rows == "example":
        why = "has a row per example, all of which it compares at once"
    elif weighting.of_parameters or weighting.reads_jacobian:
        why = "reads the rows themselves"
    if memory != "rows" and why:
        where = " where rows would not fit" if memory == "auto" else ""
        raise ValueError(
            f"weighting.memory={memory} keeps no row of the Jacobian{where}, and {name} {why}; set "
            "weighting.memory=rows."
        )
    if sharded and memory != "rows":
        raise ValueError("sharded parameters have rows of their shards alone; set weighting.memory=rows.")
    if sharded and isinstance(weighting, JacobianMethod) and weighting.rows == "example":
        raise ValueError(
            f"{name} weighs all examples of a batch, and with sharded parameters no process has them all; choose "
            "another weighting."
        )
    if sharded and isinstance(weighting, JacobianMethod) and weighting.remembers_rows:
        raise ValueError(
            f"{name} remembers a gradient of each task, of which a checkpoint keeps no shards; choose another "
            "weighting, or trainer=ddp."
        )


def hooks_of(combiner: Combiner) -> frozenset[str]:
    """Return the hooks that a combiner overrides."""
    bases = (Combiner, Scalarization, JacobianMethod, WeightedMethod)
    names = ("wants", "head_weights", "combine", "observe", "own_loss", "after_step")
    return frozenset(
        name
        for name in names
        if hasattr(combiner, name)
        and not any(getattr(type(combiner), name) is vars(b).get(name) for b in bases)
    )
