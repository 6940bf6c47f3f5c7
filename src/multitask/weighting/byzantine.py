"""Rules from Byzantine-robust learning, which need a number of tasks."""

from collections.abc import Sequence

from torchjd.aggregation import KrumWeighting, TrimmedMean


def krum(tasks: Sequence[str], n_byzantine: int = 0, n_selected: int = 1) -> KrumWeighting:
    """Return the mean of the ``n_selected`` gradients that have the nearest neighbours.

    "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent" (Blanchard et al., 2017).

    Raises:
        ValueError: If there are fewer tasks than ``n_byzantine + 3`` or ``n_selected``.
    """
    least = max(n_byzantine + 3, n_selected)
    if len(tasks) < least:
        raise ValueError(
            f"weighting=krum needs {least} tasks with weighting.n_byzantine={n_byzantine} and "
            f"weighting.n_selected={n_selected}, and there are {len(tasks)}; choose more tasks or another "
            "weighting."
        )
    return KrumWeighting(n_byzantine, n_selected)


def trimmed_mean(tasks: Sequence[str], trim_number: int = 1) -> TrimmedMean:
    """Return the mean of each coordinate without its ``trim_number`` largest and smallest values.

    "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates" (Yin et al., 2018).

    Raises:
        ValueError: If there are not more tasks than ``2 · trim_number``.
    """
    if len(tasks) < 2 * trim_number + 1:
        raise ValueError(
            f"weighting.trim_number={trim_number} needs {2 * trim_number + 1} tasks, and there are "
            f"{len(tasks)}; choose more tasks, a smaller number or another weighting."
        )
    return TrimmedMean(trim_number)
