"""Everything that a model computes on one batch, for predictions and losses beyond heads on features."""

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from multitask.data.batches import examples_in, mapped, tensors_of
from multitask.nn.with_losses import WithLosses
from multitask.task.task import Batch, Outcome, Task


class Derived(nn.Module):
    """A prediction computed from anything in :class:`Seen`: a task's ``prediction``, in place of a head.

    A subclass defines ``forward(seen)``, which returns the prediction, ``[batch, …]``. Target, loss, metrics, missing
    labels and transform work as for any other task.
    """

    derivatives: ClassVar[bool] = False
    """Whether it calls :meth:`Seen.derivative`; the inputs then require gradients, also in evaluation."""

    def forward(self, seen: "Seen") -> Tensor:
        """Return the prediction of this task for the batch."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(seen).")


class Seen:
    """The batch and everything computed from it; each head runs once, when its prediction is first accessed.

    Args:
        batch: The batch.
        inputs: The trunk's inputs: a tensor, several by name, or anything else. Floating-point tensors require
            gradients if a loss takes derivatives with respect to them.
        output: The trunk's output.
        tasks: The tasks that predict, by name.
        examples: Number of examples; by default the length of the batch's first tensor.
    """

    def __init__(
        self,
        batch: Batch,
        inputs: Tensor | Mapping[str, Tensor],
        output: Tensor | Mapping[str, Tensor] | WithLosses,
        tasks: Mapping[str, Task],
        examples: int | None = None,
    ) -> None:
        self.batch = batch
        self.examples = (examples_in(batch) or 0) if examples is None else examples
        self.inputs = inputs
        features, losses = output if isinstance(output, WithLosses) else (output, {})
        self.features = features
        """The trunk's features: one tensor for all tasks, or a mapping with one per task."""
        self.losses: Mapping[str, Tensor | tuple[Tensor, float | Tensor]] = losses
        """The trunk's own losses by name; empty unless it returns :class:`multitask.nn.with_losses.WithLosses`."""
        self.predictions: Mapping[str, Tensor] = _LazyPredictions(self._predict, list(tasks))
        """The prediction of each task, as its head returns it."""
        self._tasks = tasks
        self._head_features: dict[str, Tensor] = {}
        self._pending: list[str] = []

    def outcomes(self, leave_out: Container[str] = ()) -> dict[str, Outcome]:
        """Return the outcome of each task that predicts, except those in ``leave_out``."""
        outcomes, name = {}, ""
        try:
            for name, task in self._tasks.items():
                if name not in leave_out:
                    outcomes[name] = task.outcome(self.predictions[name], self.batch)
        except _ERRORS as error:
            raise _named(name, error) from error
        return outcomes

    def in_units(self, task: str) -> Tensor:
        """Return the prediction of a task in the units of its target, as its metrics receive it."""
        prediction = self.predictions[task]
        owner = self._tasks[task]
        return owner.transform.shown(prediction, owner.transform(self.batch[owner.target]))[0]

    def in_precision(self, values: Tensor) -> Tensor:
        """Return float64 values as float32, unless the features are float64: targets may be float64 for precision."""
        if values.dtype != torch.float64:
            return values
        dtype = next((t.dtype for t in tensors_of(self.features) if t.is_floating_point()), values.dtype)
        return values if dtype == torch.float64 else values.float()

    def derivative(self, output: Tensor, inputs: str | None = None) -> Tensor:
        """Return the derivative of an output with respect to the inputs of its example, differentiable itself.

        Args:
            output: One number per example, ``[batch]`` or ``[batch, 1]``: a prediction, a column of it, or another
                derivative. It is summed over the batch, so no example may depend on the inputs of others.
            inputs: The name of the input, if there are several.

        Returns:
            A tensor in the shape of the inputs.

        Raises:
            ValueError: If the output is not one number per example, or does not depend on the inputs.
        """
        point = self._differentiable_input(inputs)
        if output.numel() != self.examples:
            raise ValueError(
                f"a derivative needs one number for each of {self.examples} examples, not {list(output.shape)}; "
                "take a column"
            )
        derivative = None
        if output.requires_grad:
            (derivative,) = torch.autograd.grad(output.sum(), point, create_graph=True, allow_unused=True)
        if derivative is None:
            raise ValueError(
                "an output whose derivative is needed does not depend on the inputs; second derivatives need a smooth "
                "network, with Tanh or SiLU in place of ReLU"
            )
        return derivative

    def _differentiable_input(self, name: str | None) -> Tensor:
        given: Any = self.inputs
        if isinstance(given, Mapping):
            if name is None or name not in given:
                raise ValueError(f"the inputs are {', '.join(given)}; choose one of them, not {name!r}")
            given = given[name]
        elif name is not None:
            raise ValueError(f"the inputs are one tensor, but {name!r} was requested; omit the name")
        if not isinstance(given, Tensor):
            raise ValueError(
                f"the inputs are a {type(given).__name__}; derivatives need a tensor, or tensors by name"
            )
        if not given.requires_grad:
            raise ValueError(
                "the inputs require no gradient; set derivatives=true, and give floating-point inputs"
            )
        return given

    def _predict(self, name: str) -> Tensor:
        if name in self._pending:
            raise ValueError(f"the predictions of {', '.join(self._pending)} depend on each other")
        task = self._tasks[name]
        self._pending.append(name)
        try:
            if task.prediction is not None:
                return task.prediction(self)
            if not self._head_features:
                heads = [name for name, task in self._tasks.items() if task.head is not None]
                self._head_features = dict(zip(heads, split_features(self.features, heads), strict=True))
            return task.predict(self._head_features[name])
        except _ERRORS as error:
            raise _named(name, error) from error
        finally:
            self._pending.remove(name)


class _LazyPredictions(Mapping[str, Tensor]):
    """Predictions that are computed when they are first accessed."""

    def __init__(self, predict: Callable[[str], Tensor], names: list[str]) -> None:
        self._predict = predict
        self._names = names
        self._computed: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._computed:
            if name not in self._names:
                raise ValueError(
                    f"no task {name!r} makes predictions; available: {', '.join(self._names) or 'none'}"
                )
            self._computed[name] = self._predict(name)
        return self._computed[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def split_features(features: object, tasks: list[str]) -> list[Tensor]:
    """Return each task's features from the trunk's output: one tensor for all tasks, or a mapping with one per task.

    Raises ``ValueError`` if the output is anything else.
    """
    if isinstance(features, Tensor):
        return [features] * len(tasks)
    if isinstance(features, Mapping) and set(tasks) <= set(features):
        return [features[name] for name in tasks]
    raise ValueError(
        f"trunk gives a {type(features).__name__}; it must give one tensor, or a mapping with one for each "
        f"of the tasks {', '.join(tasks)}."
    )


def with_gradients(inputs: Any) -> Any:
    """Return inputs whose floating-point tensors are detached from the batch and require gradients."""
    return mapped(inputs, lambda t: t.detach().requires_grad_() if t.is_floating_point() else t)


@contextmanager
def naming(task: str) -> Iterator[None]:
    """Prefix the task's name to errors raised inside."""
    try:
        yield
    except _ERRORS as error:
        raise _named(task, error) from error


_ERRORS = (KeyError, ValueError, RuntimeError, IndexError, TypeError)


def _named(task: str, error: Exception) -> ValueError:
    message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return ValueError(message if message.startswith(f"tasks.{task}: ") else f"tasks.{task}: {message}")
