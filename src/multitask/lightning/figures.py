"""Values by task and metric, and their keys in the loggers."""

from collections.abc import Mapping

Figures = Mapping[tuple[str, str], float]
"""Values by task and metric; ``loss`` is a metric of every task. Undefined values are absent."""


def logged(figures: Figures, prefix: str) -> dict[str, float]:
    """Return ``<prefix>/loss/<task>``, ``<prefix>/<task>/<metric>`` and the means over tasks that have a value."""
    entries: dict[str, float] = {}
    by_metric: dict[str, list[float]] = {}
    for (task, metric), value in figures.items():
        entries[f"{prefix}/loss/{task}" if metric == "loss" else f"{prefix}/{task}/{metric}"] = value
        by_metric.setdefault(metric, []).append(value)
    for metric, values in by_metric.items():
        entries[f"{prefix}/loss" if metric == "loss" else f"{prefix}/mean/{metric}"] = sum(values) / len(
            values
        )
    return entries


def read(logged: Mapping[str, float]) -> dict[tuple[str, str], float]:
    """Return values by task and metric from logged keys, ignoring other keys."""
    figures = {}
    for key, value in logged.items():
        _, _, name = key.removeprefix("final/").partition("/")
        first, slash, second = name.partition("/")
        if slash and first != "mean":
            figures[(second, "loss") if first == "loss" else (first, second)] = float(value)
    return figures
