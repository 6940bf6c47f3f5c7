"""Seconds per step and peak memory of every method, absolute and relative to a reference method."""

import math
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Cost:
    """Means over a method's runs, and their ratios to the reference method's means; NaN if unknown."""

    step_seconds: float = math.nan
    peak_memory_mib: float = math.nan
    parameters: float = math.nan
    step_ratio: float = math.nan
    memory_ratio: float = math.nan


def costs(runs: pd.DataFrame, reference: str) -> dict[str, Cost]:
    """Return the cost of each label from the counted runs: columns label, method and the three measurements."""
    measured = ["step_seconds", "peak_memory_mib", "parameters"]
    means = runs.groupby("label")[measured].mean()
    base = runs[runs["method"] == reference][measured].mean()
    return {
        str(label): Cost(
            step_seconds=float(row["step_seconds"]),
            peak_memory_mib=float(row["peak_memory_mib"]),
            parameters=float(row["parameters"]),
            step_ratio=float(row["step_seconds"] / base["step_seconds"]),
            memory_ratio=float(row["peak_memory_mib"] / base["peak_memory_mib"]),
        )
        for label, row in means.iterrows()
    }
