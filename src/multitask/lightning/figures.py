"""Values by task and metric, and the keys under which loggers get them."""

from collections.abc import Mapping

Figures = Mapping[tuple[str, str], float]
"""Values by task and metric; ``loss`` is a metric of every task. What has no value on the split is absent."""


def logged(figures: Figures, prefix: str) -> dict[str, float]:
    """Return ``<prefix>/loss/<task>``, ``<prefix>/<task>/<metric>`` and the means over tasks that have a value."""
    found: dict[str, float] = {}
    by_metric: dict[str, list[float]] = {}
    for (task, metric), value in figures.items():
        found[f"{prefix}/loss/{task}" if metric == "loss" else f"{prefix}/{task}/{metric}"] = value
        by_metric.setdefault(metric, []).append(value)
    for metric, values in by_metric.items():
        found[f"{prefix}/loss" if metric == "loss" else f"{prefix}/mean/{metric}"] = sum(values) / len(values)
    return found


def read(logged: Mapping[str, float]) -> dict[tuple[str, str], float]:
    """Return the figures behind logged keys; what is neither of a task nor its loss is left out."""
    found = {}
    for key, value in logged.items():
        _, _, name = key.removeprefix("final/").partition("/")
        first, slash, second = name.partition("/")
        if slash and first != "mean":
            found[(second, "loss") if first == "loss" else (first, second)] = float(value)
    return found
