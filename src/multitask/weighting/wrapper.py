"""What every combiner around another one does alike."""

from collections.abc import Callable

from torch import Tensor, nn

from multitask.weighting.base import JacobianMethod


class Wrapper(JacobianMethod):
    """Passes a Jacobian method's whole life on to it.

    Args:
        method: The method around which it lies.
    """

    def __init__(self, method: JacobianMethod) -> None:
        super().__init__()
        self.method = method
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

    def observe(self, losses: Tensor) -> None:
        """Show the method the losses of the step."""
        self.method.observe(losses)

    def reset(self) -> None:
        """Reset the method."""
        self.method.reset()

    def after_step(self, recompute: Callable[[], Tensor]) -> None:
        """Let the method see the losses after the step."""
        self.method.after_step(recompute)

    def on_epoch_end(self) -> None:
        """Close the method's epoch."""
        self.method.on_epoch_end()

    def parameters_of(self, task: int) -> list[nn.Parameter]:
        """Return the method's own parameters of a task."""
        return self.method.parameters_of(task)

    def figures(self) -> dict[str, Tensor]:
        """Return the method's numbers worth a curve."""
        return self.method.figures()
