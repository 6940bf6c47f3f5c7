"""The comparison as CSV files: one row per method, metric, pair or run. Plain numbers, no rounding."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path

import pandas as pd

from multitask.evaluation.comparison import Comparison
from multitask.evaluation.entries import Entry
from multitask.evaluation.errors import ComparisonError
from multitask.evaluation.names import SINGLE_TASK
from multitask.evaluation.plane import plane
from multitask.evaluation.statistics import Interval
from multitask.evaluation.times import by_method

MISSING = Interval(math.nan, math.nan, math.nan, 0)


def _summary_row(entry: Entry) -> dict[str, object]:
    row: dict[str, object] = {
        "method": entry.method,
        "variant": entry.variant,
        "seeds": entry.seeds,
        "runs": entry.attempted,
        "trials": entry.trials,
        **_columns("delta_m", entry.delta_m or MISSING),
        **_columns("delta_p", entry.delta_p or MISSING),
        **_columns("mean_rank", entry.rank or MISSING),
    }
    for name, interval in entry.macro.items():
        columns = _columns(f"mean/{name}", interval)
        if taken := row.keys() & columns.keys():
            raise ComparisonError(
                f"metrics: summary.csv would have two columns {min(taken)}, for the metric {name} and another one; "
                "compare one of them at a time with metrics=[…]."
            )
        row |= columns
    return row | {
        **asdict(entry.cost),
        "selection": entry.selection,
        "selected_on_test": entry.on_test,
        "config_digest": entry.recipe,
        "no_delta_because": entry.refusal,
        "source": entry.source,
    }


def _columns(name: str, values: Sequence[float]) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=False))


def _means(comparison: Comparison) -> pd.DataFrame:
    of_methods = [(entry.method, entry.variant, entry.means) for entry in comparison.rows]
    rows = [
        {
            "method": method,
            "variant": variant,
            "task": metric["task"],
            "metric": metric["metric"],
            "split": comparison.settings.split,
            "mean": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "seeds": interval.n,
            "higher_is_better": metric["higher"],
            "multiplicative": metric["log"],
        }
        for method, variant, means in [*of_methods, (SINGLE_TASK, "", comparison.baseline_means)]
        for key, interval in means.items()
        for metric in [comparison.metrics.loc[key]]
    ]
    return pd.DataFrame(rows)


def _hypervolumes(comparison: Comparison) -> pd.DataFrame:
    drawn = plane(comparison)
    if drawn is None:
        return pd.DataFrame()
    (x, y), (x_ref, y_ref), volumes = drawn.keys, drawn.reference, drawn.volumes
    columns = {"x": x, "y": y, "reference_x": x_ref, "reference_y": y_ref}
    return pd.DataFrame({"front": volumes.keys(), **columns, "hypervolume": volumes.values()})


TABLES: dict[str, Callable[[Comparison], pd.DataFrame]] = {
    "summary.csv": lambda comparison: pd.DataFrame(map(_summary_row, comparison.rows)),
    "means.csv": _means,
    "pairs.csv": attrgetter("pairs"),
    "set_aside.csv": attrgetter("set_aside"),
    "hypervolumes.csv": _hypervolumes,
    "published.csv": lambda comparison: comparison.quoted[
        ["label", "metric", "value", "selection", "source"]
    ],
    "targets.csv": lambda comparison: by_method(comparison.times),
    "times.csv": attrgetter("times"),
}


def write(comparisons: list[Comparison], folder: Path) -> None:
    """Write every table that has rows to a CSV file, with the experiment as its first column."""
    for name, table_of in TABLES.items():
        tables = [
            (each.experiment, table)
            for each in comparisons
            if len(table := table_of(each).reset_index(drop=True))
        ]
        if tables:
            experiments, parts = zip(*tables, strict=True)
            table = pd.concat(parts, keys=experiments, names=["experiment"]).reset_index(level=0)
            table.to_csv(folder / name, index=False, lineterminator="\n")
