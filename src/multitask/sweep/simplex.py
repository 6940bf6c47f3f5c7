"""Loss weights to sweep over: points of the simplex, with positive weights that sum to one."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Literal

from multitask.errors import ConfigError

MOST = 1000
Sampling = Literal["grid", "dirichlet"]


def points(
    tasks: int, sampling: Sampling, steps: int, draws: int, concentration: float, seed: int
) -> list[list[float]]:
    """Return weight vectors ``[tasks]``.

    Args:
        tasks: The number of tasks.
        sampling: ``grid`` for all multiples of 1/steps, ``dirichlet`` for random weights.
        steps: The number of steps of the grid.
        draws: The number of random weight vectors.
        concentration: Of the symmetric Dirichlet distribution; 1 is uniform, larger values favor equal weights.
        seed: The seed of the draws.
    """
    if sampling == "dirichlet":
        import numpy as np  # deferred, for a fast start: Hydra imports every sweeper

        drawn = np.random.default_rng(seed).dirichlet(np.full(tasks, concentration), size=draws)
        return [_rounded(row) for row in drawn]
    if sampling != "grid":
        raise ConfigError(f"hydra.sweeper.sampling={sampling} is unknown; choose grid or dirichlet.")
    cuts = itertools.combinations(range(1, steps), tasks - 1)
    ends = ([0, *cut, steps] for cut in itertools.islice(cuts, MOST + 1))
    grid = [_rounded((b - a) / steps for a, b in itertools.pairwise(cut)) for cut in ends]
    if not grid or len(grid) > MOST:
        many = "none" if not grid else f"more than {MOST}"
        raise ConfigError(
            f"hydra.sweeper.steps={steps} gives {many} of the weights of {tasks} tasks; choose another number, or "
            "hydra.sweeper.sampling=dirichlet."
        )
    return grid


def override(key: str, names: Sequence[str], weights: Sequence[Sequence[float]]) -> str:
    """Return Hydra's override that sweeps over the weight vectors by task name."""
    mappings = [",".join(f"{name}:{w:g}" for name, w in zip(names, point, strict=True)) for point in weights]
    return f"{key}=" + ",".join(f"{{{mapping}}}" for mapping in mappings)


def _rounded(weights: Iterable[float]) -> list[float]:
    return [max(round(float(w), 4), 1e-4) for w in weights]
