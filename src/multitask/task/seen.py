"""The computations of a model on one batch, for predictions and losses that are of more than one head's features."""

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from multitask.data.batches import examples_in, mapped, tensors_of
from multitask.nn.with_losses import WithLosses
from multitask.task.task import Batch, Outcome, Task, split_features


class Derived(nn.Module):
    """A prediction made of anything that the model has computed: a task's ``prediction``, in place of a head.

    A subclass defines ``forward(seen)``, which returns the prediction, ``[batch, …]``. Target, loss, metrics, missing
    labels and transform are those of any other task.
    """

    derivatives: ClassVar[bool] = False
    """Whether it calls :meth:`Seen.derivative`: the inputs then require gradients, in evaluation too."""

    def forward(self, seen: "Seen") -> Tensor:
        """Return the prediction of this task for the batch."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(seen).")


class Seen:
    """The batch, and all that the model has computed of it; each head is called once, when it is first asked for.

    Args:
        batch: The batch.
        inputs: What the trunk was given: a tensor, several by name, or anything else. Floating-point tensors require
            gradients where a loss is of derivatives with respect to them.
        output: What the trunk returned.
        tasks: The tasks that predict, by name.
        examples: How many examples the batch has; by default as many as its first tensor.
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
        """As the trunk returned them: one tensor for all tasks, or a mapping with one per task."""
        self.losses: Mapping[str, Tensor | tuple[Tensor, float | Tensor]] = losses
        """The trunk's own losses by name; none unless it returns :class:`multitask.nn.with_losses.WithLosses`."""
        self.predictions: Mapping[str, Tensor] = _Once(self._predict, list(tasks))
        """The prediction of each task, as its head returns it."""
        self._tasks = tasks
        self._of_heads: dict[str, Tensor] = {}
        self._waiting: list[str] = []

    def outcomes(self, leave_out: Container[str] = ()) -> dict[str, Outcome]:
        """Return loss, prediction and target of each task that predicts, but for those to leave out."""
        found, at = {}, ""
        try:
            for at, task in self._tasks.items():
                if at in leave_out:
                    continue
                found[at] = task.outcome(self.predictions[at], self.batch)
        except _WRONG as error:
            raise _named(at, error) from error
        return found

    def in_units(self, task: str) -> Tensor:
        """Return a prediction as the task's metrics see it: in the target's own units."""
        prediction = self.predictions[task]
        owner = self._tasks[task]
        return owner.transform.shown(prediction, owner.transform(self.batch[owner.target]))[0]

    def in_precision(self, values: Tensor) -> Tensor:
        """Return values in float32 where they are float64 and the features are not: targets keep their digits."""
        if values.dtype != torch.float64:
            return values
        of_features = next(
            (t.dtype for t in tensors_of(self.features) if t.is_floating_point()), values.dtype
        )
        return values if of_features == torch.float64 else values.float()

    def derivative(self, output: Tensor, inputs: str | None = None) -> Tensor:
        """Return the derivative of an output with respect to the inputs of its example, with its graph.

        Args:
            output: One number per example, ``[batch]`` or ``[batch, 1]``: a prediction, a column of one, or a
                derivative itself. It is summed over the batch, so no example may depend on the inputs of others.
            inputs: Which of several inputs.

        Returns:
            A tensor as large as the inputs.

        Raises:
            ValueError: If the output is not one number per example, or does not depend on the inputs.
        """
        given = self._floats(inputs)
        if output.numel() != self.examples:
            raise ValueError(
                f"a derivative is of one number for each of {self.examples} examples, not of {list(output.shape)}; "
                "take a column"
            )
        found = None
        if output.requires_grad:
            (found,) = torch.autograd.grad(output.sum(), given, create_graph=True, allow_unused=True)
        if found is None:
            raise ValueError(
                "an output whose derivative is wanted does not depend on the inputs; second derivatives want a smooth "
                "network, with Tanh or SiLU in place of ReLU"
            )
        return found

    def _floats(self, name: str | None) -> Tensor:
        given: Any = self.inputs
        if isinstance(given, Mapping):
            if name is None or name not in given:
                raise ValueError(f"the inputs are {', '.join(given)}; name one of them, not {name!r}")
            given = given[name]
        elif name is not None:
            raise ValueError(f"there is one tensor of inputs, and {name!r} is asked for; leave the name out")
        if not isinstance(given, Tensor):
            raise ValueError(
                f"the inputs are a {type(given).__name__}; derivatives want a tensor, or tensors by name"
            )
        if not given.requires_grad:
            raise ValueError(
                "the inputs require no gradient; set derivatives=true, and give floating-point inputs"
            )
        return given

    def _predict(self, name: str) -> Tensor:
        if name in self._waiting:
            raise ValueError(f"the predictions of {', '.join(self._waiting)} wait for each other")
        task = self._tasks[name]
        self._waiting.append(name)
        try:
            if task.prediction is not None:
                return task.prediction(self)
            if not self._of_heads:
                heads = [name for name, task in self._tasks.items() if task.head is not None]
                self._of_heads = dict(zip(heads, split_features(self.features, heads), strict=True))
            return task.predict(self._of_heads[name])
        except _WRONG as error:
            raise _named(name, error) from error
        finally:
            self._waiting.remove(name)


class _Once(Mapping[str, Tensor]):
    """Values that are made when they are first asked for."""

    def __init__(self, make: Callable[[str], Tensor], names: list[str]) -> None:
        self._make = make
        self._names = names
        self._made: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._made:
            if name not in self._names:
                raise ValueError(
                    f"no task {name!r} predicts anything; there are {', '.join(self._names) or 'none'}"
                )
            self._made[name] = self._make(name)
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def with_gradients(inputs: Any) -> Any:
    """Return inputs whose floating-point tensors require gradients, apart from the batch's own tensors."""
    return mapped(inputs, lambda t: t.detach().requires_grad_() if t.is_floating_point() else t)


@contextmanager
def naming(task: str) -> Iterator[None]:
    """Name the task in what goes wrong inside."""
    try:
        yield
    except _WRONG as error:
        raise _named(task, error) from error


_WRONG = (KeyError, ValueError, RuntimeError, IndexError, TypeError)


def _named(task: str, error: Exception) -> ValueError:
    said = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return ValueError(said if said.startswith(f"tasks.{task}: ") else f"tasks.{task}: {said}")
