"""Rules from Byzantine-robust learning, which need a minimum number of tasks."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torchjd.aggregation import TrimmedMean

from multitask.weighting.gramian import Array, CosineMethod


class Krum(CosineMethod):
    """The mean of the ``n_selected`` gradients closest to their k − ``n_byzantine`` − 2 nearest neighbours.

    ``n_byzantine`` is the number of gradients that may be arbitrary. Fewer tasks than ``n_byzantine + 3`` or
    ``n_selected`` raise ``ValueError``.

    "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent" (Blanchard et al., 2017).
    """

    def __init__(self, tasks: Sequence[str], n_byzantine: int = 0, n_selected: int = 1) -> None:
        super().__init__()
        if n_byzantine < 0 or n_selected < 1:
            raise ValueError(
                f"weighting.n_byzantine={n_byzantine} must not be negative, and weighting.n_selected={n_selected} must "
                "be at least 1."
            )
        self.n_byzantine = n_byzantine
        self.n_selected = n_selected
        self._check(len(tasks))

    def solve(self, C: Array, norms: Array, ridge: float, losses: Tensor) -> Array:
        """Return 1 / ``n_selected`` for each selected gradient."""
        k = len(C)
        self._check(k)
        squares = norms**2
        distances = np.sqrt(np.clip(squares[:, None] + squares - 2 * C * np.outer(norms, norms), 0.0, None))
        np.fill_diagonal(distances, np.inf)
        scores = np.sort(distances, axis=1)[:, : k - self.n_byzantine - 2].sum(1)
        weights = np.zeros(k)
        weights[np.argsort(scores, kind="stable")[: self.n_selected]] = 1 / self.n_selected
        return weights

    def _check(self, tasks: int) -> None:
        least = max(self.n_byzantine + 3, self.n_selected)
        if tasks < least:
            raise ValueError(
                f"weighting=krum needs {least} tasks with weighting.n_byzantine={self.n_byzantine} and "
                f"weighting.n_selected={self.n_selected}, but there are {tasks}; use more tasks or another "
                "weighting."
            )


krum = Krum  # its name before 0.2


def trimmed_mean(tasks: Sequence[str], trim_number: int = 1) -> TrimmedMean:
    """Return the coordinate-wise mean without the ``trim_number`` largest and smallest values.

    "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates" (Yin et al., 2018).

    Raises:
        ValueError: If there are not more tasks than ``2 · trim_number``.
    """
    if len(tasks) < 2 * trim_number + 1:
        raise ValueError(
            f"weighting.trim_number={trim_number} needs {2 * trim_number + 1} tasks, but there are "
            f"{len(tasks)}; use more tasks, a smaller number or another weighting."
        )
    return TrimmedMean(trim_number)
