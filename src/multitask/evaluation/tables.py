"""The comparison as CSV files: one row per method, figure, pair or run. Plain numbers, no rounding."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path

import pandas as pd

from multitask.evaluation.comparison import Comparison
from multitask.evaluation.entries import Entry
from multitask.evaluation.errors import ComparisonError
from multitask.evaluation.plane import plane
from multitask.evaluation.records import BASELINE
from multitask.evaluation.statistics import Interval
from multitask.evaluation.times import by_method

MISSING = Interval(math.nan, math.nan, math.nan, 0)


def _summary(comparison: Comparison) -> pd.DataFrame:
    """Return one row per method: Δm, Δp, mean rank, macro means, cost, protocol."""
    return pd.DataFrame([_summary_row(entry) for entry in comparison.rows])


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
    """Return a mean and its bounds, the first three values, by column name."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=False))


def _figures(comparison: Comparison) -> pd.DataFrame:
    """Return one row per method, with the single-task baseline, and metric: mean and interval over seeds."""
    rows = []
    of_methods = [(entry.method, entry.variant, entry.means) for entry in comparison.rows]
    for method, variant, means in [*of_methods, (BASELINE, "", comparison.baseline_means)]:
        for key, interval in means.items():
            metric = comparison.metrics.loc[key]
            rows.append(
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
            )
    return pd.DataFrame(rows)


def _hypervolumes(comparison: Comparison) -> pd.DataFrame:
    """Return one row per front of two metrics, and one for all rows together, with the reference point."""
    drawn = plane(comparison)
    if drawn is None:
        return pd.DataFrame()
    columns = dict(
        zip(("x", "y", "reference_x", "reference_y"), (*drawn.keys, *drawn.reference), strict=True)
    )
    volumes = drawn.volumes
    return pd.DataFrame({"front": volumes.keys(), **columns, "hypervolume": volumes.values()})


def _published(comparison: Comparison) -> pd.DataFrame:
    """Return one row per published value, with its source."""
    return comparison.quoted[["label", "metric", "value", "selection", "source"]]


def _targets(comparison: Comparison) -> pd.DataFrame:
    return by_method(comparison.times)


TABLES: dict[str, Callable[[Comparison], pd.DataFrame]] = {
    "summary.csv": _summary,
    "figures.csv": _figures,
    "pairs.csv": attrgetter("pairs"),
    "set_aside.csv": attrgetter("set_aside"),
    "hypervolumes.csv": _hypervolumes,
    "published.csv": _published,
    "targets.csv": _targets,
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
