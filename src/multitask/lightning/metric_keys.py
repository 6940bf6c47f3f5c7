"""Metrics by task, and their keys in the loggers."""

from collections.abc import Iterable, Mapping

TaskMetrics = Mapping[tuple[str, str], float]
"""Metrics by task and name; ``loss`` is a metric of every task. Undefined metrics are absent."""


def to_keys(metrics: TaskMetrics, prefix: str) -> dict[str, float]:
    """Return ``<prefix>/loss/<task>``, ``<prefix>/<task>/<metric>`` and the means over tasks that have a value."""
    logged: dict[str, float] = {}
    by_name: dict[str, list[float]] = {}
    for (task, name), value in metrics.items():
        logged[f"{prefix}/loss/{task}" if name == "loss" else f"{prefix}/{task}/{name}"] = value
        by_name.setdefault(name, []).append(value)
    for name, values in by_name.items():
        logged[f"{prefix}/loss" if name == "loss" else f"{prefix}/mean/{name}"] = sum(values) / len(values)
    return logged


def from_keys(logged: Mapping[str, float]) -> dict[tuple[str, str], float]:
    """Return metrics by task and name from logged keys, ignoring other keys."""
    metrics = {}
    for key, value in logged.items():
        _, _, name = key.removeprefix("final/").partition("/")
        first, slash, second = name.partition("/")
        if slash and first != "mean":
            metrics[(second, "loss") if first == "loss" else (first, second)] = float(value)
    return metrics


def val_keys(metrics: Iterable[tuple[str, str]]) -> set[str]:
    """Return the keys that validation logs for these metrics, given by task and name."""
    return set(to_keys(dict.fromkeys(metrics, 0.0), "val"))
