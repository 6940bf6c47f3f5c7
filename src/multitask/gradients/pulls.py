"""The backward passes of a step: one per row, with what its loss alone reaches on the way."""

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.autograd.graph import GradientEdge

from multitask.gradients.graph import Graph
from multitask.gradients.losses import Losses, gradients_at

Inputs = Sequence[Tensor | GradientEdge]


class Pulls:
    """One backward pass per row, each from its loss.

    A row is a task's loss on a part of the batch; rows are ordered part by part, tasks within a part. A
    pass also leaves in ``own`` the gradients of the parameters that its task alone reaches, so that the
    graph of a head is walked through once.

    Args:
        losses: The losses.
        graph: The graph behind them.
        own: The parameters that each task alone reaches.
        tasks: The tasks that have rows; all by default.
        retain_graph: Whether the graph is needed after the last pass.
    """

    def __init__(
        self,
        losses: Losses,
        graph: Graph,
        own: Sequence[Sequence[Tensor]],
        tasks: Sequence[int] | None = None,
        retain_graph: bool = False,
    ) -> None:
        self.losses = losses
        self.graph = graph
        self.tasks = list(range(losses.m)) if tasks is None else list(tasks)
        self.parameters = own
        self.own: dict[int, list[Tensor | None]] = {}
        """Of each row that was pulled, the gradients of its task's own parameters."""
        self.retain_graph = retain_graph

    def __len__(self) -> int:
        return self.losses.parts * len(self.tasks)

    def task_of(self, row: int) -> int:
        """Return the task of a row."""
        return self.tasks[row % len(self.tasks)]

    def pass_of(self, row: int, last: bool | None = None) -> Callable[[Inputs], list[Tensor | None]]:
        """Return the backward pass of a row: from inputs to the gradients there.

        Args:
            row: The row.
            last: Whether it is the last pass through the graph; by default, whether this is the last row.
        """
        last = row == len(self) - 1 if last is None else last

        def pull(inputs: Inputs) -> list[Tensor | None]:
            own = self.parameters[self.task_of(row)]
            edge, seed = self.losses.root(row // len(self.tasks), self.task_of(row))
            found = gradients_at(edge, seed, [*inputs, *own], retain_graph=self.retain_graph or not last)
            if own:
                self.own[row] = found[len(inputs) :]
                return found[: len(inputs)]
            return found

        return pull
