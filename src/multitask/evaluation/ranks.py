"""Mean rank over metrics, and its range when one of the other methods is left out."""

import pandas as pd


def mean_ranks(means: pd.DataFrame, higher: pd.Series) -> pd.DataFrame:
    """Return the columns `rank`, `low`, `high`, one row per label; rank 1 is best, ties share their average rank.

    `means`: [labels, metrics], complete; `higher`: metric → whether higher is better. `low` and `high` are the
    minimum and maximum of a label's mean rank over the full set and all sets without one other label.
    """
    signed = means * [-1.0 if higher[metric] else 1.0 for metric in means.columns]
    full = signed.rank().mean(axis=1)
    result = pd.DataFrame({"rank": full, "low": full, "high": full})
    if len(means) < 3:  # with one label left there is nothing to rank
        return result
    without = pd.DataFrame({label: signed.drop(label).rank().mean(axis=1) for label in signed.index})
    result["low"] = without.min(axis=1).clip(upper=full)
    result["high"] = without.max(axis=1).clip(lower=full)
    return result
