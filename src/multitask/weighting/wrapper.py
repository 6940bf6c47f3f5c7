"""The base of every combiner around another one: it passes on what it does not change."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from torch import Tensor, nn

from multitask.weighting.base import Combiner, JacobianMethod

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
        self.draws = method.draws

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
