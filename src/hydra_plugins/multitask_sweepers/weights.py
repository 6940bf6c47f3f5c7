"""Loss weights from one task to the others, for the front between them."""

from collections.abc import Mapping

from multitask.errors import ConfigError
from multitask.sweep.simplex import Sampling, override, points

from .grid import GridSweeper


class WeightSweeper(GridSweeper):
    """A grid whose first axis is weight vectors of the tasks; each is a setting of the method.

    Args:
        key: The key that takes weights by task name.
        sampling: As the next four, an argument of :func:`multitask.sweep.simplex.points`.
        steps: See there.
        draws: See there.
        concentration: See there.
        seed: See there.
        max_batch_size: As for the grid.
        params: As for the grid.
    """

    def __init__(
        self,
        key: str,
        sampling: Sampling,
        steps: int,
        draws: int,
        concentration: float,
        seed: int,
        max_batch_size: int | None = None,
        params: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(max_batch_size, params)
        self.key = key
        self.how = (sampling, steps, draws, concentration, seed)

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs."""
        names = [str(name) for name in self.master.tasks]
        group, _, key = self.key.partition(".")
        if key not in self.master.get(group, {}):
            choice = self.master.hydra.runtime.choices.get(group)
            raise ConfigError(
                f"hydra.sweeper.key={self.key}: {group}={choice} has no {key}; choose weighted_sum, stch or pbi."
            )
        if len(names) < 2:
            raise ConfigError(
                f"hparams_search sweeps over the weights of several tasks, and there is {names[0]} alone."
            )
        super().sweep([override(self.key, names, points(len(names), *self.how)), *arguments])
