"""The metrics to compare, and which of them are compared by their logarithms."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from multitask.evaluation.errors import ComparisonError


def compared_metrics(
    results: pd.DataFrame, wanted: Sequence[str] | None, logarithmic: Sequence[str] | None, split: str
) -> pd.DataFrame:
    """Return the metrics of results: index task/metric, columns task, metric, higher and log.

    `results` has the columns key, task, metric, higher, and marks, the multiplicative metrics of the run's config.
    `wanted` and `logarithmic` are names or task/metric; by default all metrics but the losses, or the losses if there
    are no others, and the multiplicative metrics of the configs.
    """
    found = results.drop_duplicates(["key", "higher"])[["key", "task", "metric", "higher"]]
    names = results.drop_duplicates(["task", "metric"])
    if (alike := names["key"].duplicated(keep=False)).any():
        first, second, *_ = names[alike].sort_values("key").itertuples()
        raise ComparisonError(
            f"source: the task '{first.task}' with the metric '{first.metric}' and the task '{second.task}' with "
            f"'{second.metric}' are both {first.key}; rename one of them."
        )
    if len(twice := found[found["key"].duplicated()]["key"]):
        raise ComparisonError(
            f"source: higher_is_better of {twice.iloc[0]} differs between records; correct the wrong one."
        )
    found = found.set_index("key").sort_values(["task", "metric"])
    if logarithmic is None:
        found["log"] = _named(found, {name for marks in results["marks"] for name in marks})
    else:
        found["log"] = chosen(found, "multiplicative", logarithmic, split)
    kinds = found.groupby("metric")["log"].nunique()
    if (kinds > 1).any():
        raise ComparisonError(
            f"multiplicative: {kinds.idxmax()} is named for one task but not for another; name it for all tasks."
        )
    if wanted is not None:
        return found[chosen(found, "metrics", wanted, split)]
    better = found[found["metric"] != "loss"]
    return better if len(better) else found


def _named(found: pd.DataFrame, names: Iterable[str]) -> pd.Series:
    return pd.Series(found.index.isin(list(names)) | found["metric"].isin(list(names)), index=found.index)


def chosen(found: pd.DataFrame, key: str, names: Sequence[str], split: str) -> pd.Series:
    """Whether each metric is among the names, given as metric or task/metric; an unknown name is refused."""
    unknown = [name for name in names if not _named(found, [name]).any()]
    if unknown and len(found):
        raise ComparisonError(
            f"{key}={unknown[0]}: no record has it on the split {split}; choices: {', '.join(found.index)}."
        )
    return _named(found, names)


def logarithms(metrics: pd.DataFrame) -> set[str]:
    """Return the metrics compared by their logarithms: task/metric, and their means over tasks as mean/<metric>."""
    log = metrics[metrics["log"]]
    return {*log.index, *("mean/" + log["metric"])}


def with_logarithms(results: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """Return the results of these metrics, with natural logarithms as the values of multiplicative metrics."""
    results = results[results["key"].isin(metrics.index)]
    log = results["key"].isin(metrics.index[metrics["log"]])
    if len(bad := results[log & (results["value"] <= 0)]):
        row = bad.iloc[0]
        kept = ",".join(metrics.index[metrics["log"] & (metrics.index != row["key"])])
        raise ComparisonError(
            f"{row['key']} of {row['name']} is {row['value']:.4g} and has no logarithm to be compared by; "
            f"set multiplicative=[{kept}]."
        )
    return results.assign(value=np.where(log, np.log(results["value"].where(log, 1.0)), results["value"]))
