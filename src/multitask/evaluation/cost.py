"""Seconds per step and peak memory of every method, absolute and relative to a reference method."""

import math
from dataclasses import dataclass

import pandas as pd

from multitask.evaluation.records import MEASURED


@dataclass(frozen=True)
class Cost:
    """Means over a method's runs, and their ratios to the reference method's means; NaN if unknown."""

    step_seconds: float = math.nan
    step_ratio: float = math.nan
    peak_memory_mib: float = math.nan
    memory_ratio: float = math.nan
    parameters: float = math.nan


def costs(runs: pd.DataFrame, reference: str) -> dict[str, Cost]:
    """Return the cost of each label from the counted runs: columns label, method and the three measurements."""
    means = runs.groupby("label")[list(MEASURED)].mean()
    base = runs[runs["method"] == reference][list(MEASURED)].mean()
    means["step_ratio"] = means["step_seconds"] / base["step_seconds"]
    means["memory_ratio"] = means["peak_memory_mib"] / base["peak_memory_mib"]
    return {str(label): Cost(**row) for label, row in means.to_dict("index").items()}
