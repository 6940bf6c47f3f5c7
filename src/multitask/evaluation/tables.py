"""The comparison as tables: one row per method, figure, pair or run. Plain numbers, no rounding."""

import math
from collections.abc import Sequence
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


def summary(comparisons: list[Comparison]) -> pd.DataFrame:
    """Return one row per method: Δm, Δp, mean rank, macro means, cost, protocol."""
    return pd.DataFrame(
        [_summary(comparison, entry) for comparison in comparisons for entry in comparison.rows]
    )


def _summary(comparison: Comparison, entry: Entry) -> dict[str, object]:
    row: dict[str, object] = {
        "experiment": comparison.experiment,
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
    cost = entry.cost
    return row | {
        "step_seconds": cost.step_seconds,
        "step_ratio": cost.step_ratio,
        "peak_memory_mib": cost.peak_memory_mib,
        "memory_ratio": cost.memory_ratio,
        "parameters": cost.parameters,
        "selection": entry.selection,
        "selected_on_test": entry.on_test,
        "config_digest": entry.recipe,
        "no_delta_because": entry.refusal,
        "source": entry.source,
    }


def _columns(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return a mean and its bounds, the first three values, by column name."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=False))


def figures(comparisons: list[Comparison]) -> pd.DataFrame:
    """Return one row per method, with the single-task baseline, and metric: mean and interval over seeds."""
    rows = []
    for comparison in comparisons:
        of_methods = [(entry.method, entry.variant, entry.means) for entry in comparison.rows]
        for method, variant, means in [*of_methods, (BASELINE, "", comparison.baseline_means)]:
            for key, interval in means.items():
                metric = comparison.metrics.loc[key]
                rows.append(
                    {
                        "experiment": comparison.experiment,
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


def pairs(comparisons: list[Comparison]) -> pd.DataFrame:
    """Return one row per pair of methods and figure."""
    return _stacked([(each.experiment, each.pairs) for each in comparisons])


def set_aside(comparisons: list[Comparison]) -> pd.DataFrame:
    """Return one row per run that is not averaged, with the reason."""
    return _stacked([(each.experiment, each.set_aside) for each in comparisons])


def quoted(comparisons: list[Comparison]) -> pd.DataFrame:
    """Return one row per published value, with its source."""
    columns = ["label", "metric", "value", "selection", "source"]
    return _stacked([(each.experiment, each.quoted[columns]) for each in comparisons])


def hypervolumes(comparisons: list[Comparison]) -> pd.DataFrame:
    """Return one row per front of two metrics, and one for all rows together, with the reference point."""
    rows: list[dict[str, object]] = []
    for comparison in comparisons:
        drawn = plane(comparison)
        for name, volume in drawn.volumes.items() if drawn else ():
            assert drawn is not None
            rows.append(
                {
                    "experiment": comparison.experiment,
                    "front": name,
                    "x": drawn.keys[0],
                    "y": drawn.keys[1],
                    "reference_x": drawn.reference[0],
                    "reference_y": drawn.reference[1],
                    "hypervolume": volume,
                }
            )
    return pd.DataFrame(rows)


def targets(comparisons: list[Comparison]) -> pd.DataFrame:
    """One row per method and target: how many runs reached it, and their median steps and seconds."""
    return _stacked([(each.experiment, by_method(each.times)) for each in comparisons])


def times(comparisons: list[Comparison]) -> pd.DataFrame:
    """One row per run and target: steps and seconds until validation reached it, empty where it never did."""
    return _stacked([(each.experiment, each.times) for each in comparisons])


def _stacked(parts: list[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    tables = [table.assign(experiment=experiment) for experiment, table in parts if len(table)]
    if not tables:
        return pd.DataFrame()
    result = pd.concat(tables, ignore_index=True)
    return result[["experiment", *[column for column in result.columns if column != "experiment"]]]


def write(comparisons: list[Comparison], folder: Path) -> list[Path]:
    """Write every table that has rows to a CSV file, and return the files."""
    tables = {
        "summary.csv": summary(comparisons),
        "figures.csv": figures(comparisons),
        "pairs.csv": pairs(comparisons),
        "set_aside.csv": set_aside(comparisons),
        "hypervolumes.csv": hypervolumes(comparisons),
        "published.csv": quoted(comparisons),
        "targets.csv": targets(comparisons),
        "times.csv": times(comparisons),
    }
    written = []
    for name, table in tables.items():
        if len(table):
            table.to_csv(folder / name, index=False, lineterminator="\n")
            written.append(folder / name)
    return written
