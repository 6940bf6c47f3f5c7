import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import rankdata

from multitask.evaluation.statistics import mean_ranks

DIRECTIONS = pd.Series({"acc": True, "err": False})


def reference(values: np.ndarray) -> np.ndarray:
    return np.mean([rankdata(-values[:, 0]), rankdata(values[:, 1])], axis=0)


@given(arrays(float, st.tuples(st.integers(3, 6), st.just(2)), elements=st.integers(0, 5).map(float)))
def test_ranks_and_their_range_match_the_definition(values: np.ndarray) -> None:
    labels = [f"m{i}" for i in range(len(values))]
    ranks = mean_ranks(pd.DataFrame(values, index=labels, columns=["acc", "err"]), DIRECTIONS)
    assert ranks["rank"].to_numpy() == pytest.approx(reference(values))
    for i, label in enumerate(labels):
        found = [reference(values)[i]]
        for other in range(len(values)):
            if other != i:
                rest = np.delete(values, other, axis=0)
                found.append(reference(rest)[i - (other < i)])
        assert ranks.loc[label, "low"] == pytest.approx(min(found))
        assert ranks.loc[label, "high"] == pytest.approx(max(found))


def test_two_methods_have_no_range() -> None:
    ranks = mean_ranks(pd.DataFrame({"acc": [0.9, 0.8], "err": [1.0, 2.0]}, index=["a", "b"]), DIRECTIONS)
    assert ranks.loc["a"].tolist() == [1, 1, 1]
    assert ranks.loc["b"].tolist() == [2, 2, 2]
