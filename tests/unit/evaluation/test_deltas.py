"""Δm and Δp against a single-task baseline."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats._delta_method import NonlinearDeltaCov

from multitask.evaluation.deltas import MOST_TIMES, Baseline, deltas, dwarfed, find_baseline
from multitask.evaluation.statistics import mean_intervals


def make_metrics(directions: dict[str, bool]) -> pd.DataFrame:
    rows = [(key, *key.split("/"), higher, False) for key, higher in directions.items()]
    return pd.DataFrame(rows, columns=["key", "task", "metric", "higher", "log"]).set_index("key")


RECIPES = {"depth": "r", "seg": "r"}
METRICS = make_metrics({"depth/abs": False, "seg/acc": True, "seg/miou": True})


def table(rows: list[list[float]], metrics: pd.DataFrame = METRICS) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=metrics.index, index=[str(seed) for seed in range(len(rows))])


def test_both_deltas_of_a_worked_example() -> None:
    method = table([[0.9, 0.55, 0.30], [1.1, 0.65, 0.30]])  # means 1.0, 0.60, 0.30
    baseline = Baseline(table([[0.8, 0.50, 0.40], [0.8, 0.50, 0.40]]), RECIPES)
    result = deltas(method, baseline, METRICS)
    # Changes, positive = better: depth −25 %, accuracy +20 %, mIoU −25 %.
    assert result.delta_m.mean == pytest.approx(30 / 3)
    assert result.delta_p.mean == pytest.approx((-25 + (20 - 25) / 2) / 2)
    assert result.gains["depth/abs"].mean == pytest.approx(-25)
    assert result.gains["seg/acc"].mean == pytest.approx(20)


def test_the_definitions_can_name_different_winners() -> None:
    baseline = Baseline(table([[1.0, 0.5, 0.5]]), RECIPES)
    a = deltas(table([[0.9, 0.47, 0.47]]), baseline, METRICS)  # depth 10 % better, two metrics 6 % worse
    b = deltas(table([[1.0, 0.50, 0.50]]), baseline, METRICS)
    assert a.delta_m.mean > b.delta_m.mean  # Δm: lower is better, so b wins
    assert a.delta_p.mean > b.delta_p.mean  # Δp: higher is better, so a wins


def test_interval_is_that_of_the_delta_method() -> None:
    random = np.random.default_rng(3)
    x = table((random.normal(1, 0.03, (6, 3)) * [1.0, 0.6, 0.3]).tolist())
    b = table((random.normal(1, 0.05, (5, 3)) * [0.8, 0.5, 0.4]).tolist())
    interval = deltas(x, Baseline(b, RECIPES), METRICS).delta_m
    sign = np.array([-1, 1, 1])

    def delta_m(means: np.ndarray) -> np.ndarray:
        return np.array([-100 / 3 * (sign * (means[:3] - means[3:]) / means[3:]).sum()])

    of_method, of_baseline = np.cov(x.T) / 6, np.cov(b.T) / 5
    covariance = np.block([[of_method, np.zeros((3, 3))], [np.zeros((3, 3)), of_baseline]])
    means = np.concatenate([x.mean(), b.mean()])
    reference = NonlinearDeltaCov(delta_m, means, covariance)
    deviation = reference.se_vectorized().item()

    gradient = np.concatenate([-100 / 3 * sign / means[3:], 100 / 3 * sign * means[:3] / means[3:] ** 2])
    parts = gradient[:3] @ of_method @ gradient[:3], gradient[3:] @ of_baseline @ gradient[3:]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 5 + parts[1] ** 2 / 4)
    assert interval.mean == pytest.approx(delta_m(means).item())
    assert interval.half == pytest.approx(deviation * stats.t.ppf(0.975, freedom), rel=1e-5)


POSITIVE = st.floats(0.1, 10)


@given(st.lists(st.tuples(POSITIVE, POSITIVE, POSITIVE), min_size=4, max_size=4), POSITIVE)
def test_deltas_do_not_depend_on_units_and_change_sign_with_directions(
    rows: list[tuple[float, float, float]], scale: float
) -> None:
    x, b = table([list(row) for row in rows[:2]]), table([list(row) for row in rows[2:]])
    plain = deltas(x, Baseline(b, RECIPES), METRICS)
    scaled = deltas(x * scale, Baseline(b * scale, RECIPES), METRICS)
    assert scaled.delta_m.mean == pytest.approx(plain.delta_m.mean, abs=1e-9)
    flipped = METRICS.assign(higher=~METRICS["higher"].astype(bool))
    turned = deltas(x, Baseline(b, RECIPES), flipped)
    assert turned.delta_m.mean == pytest.approx(-plain.delta_m.mean, abs=1e-9)
    assert turned.delta_p.mean == pytest.approx(-plain.delta_p.mean, abs=1e-9)


def test_delta_of_the_baseline_itself_is_zero() -> None:
    values = table([[0.8, 0.5, 0.4], [0.9, 0.6, 0.3]])
    result = deltas(values, Baseline(values, RECIPES), METRICS)
    assert result.delta_m.mean == pytest.approx(0)
    assert result.delta_p.mean == pytest.approx(0)


def single_task(seeds: dict[str, list[str]], recipe: str = "r", value: float = 0.5) -> pd.DataFrame:
    """Return rows of single-task runs; `seeds`: seed → its metrics."""
    rows = [
        {
            "seed": seed,
            "key": key,
            "task": key.split("/")[0],
            "value": value,
            "digest": recipe,
            "selection": "val",
            "run": 0,
        }
        for seed, keys in seeds.items()
        for key in keys
    ]
    return pd.DataFrame(rows, columns=["seed", "key", "task", "value", "digest", "selection", "run"])


ALL = list(METRICS.index)


def test_missing_baseline_is_reported() -> None:
    baseline, reason = find_baseline(single_task({}), METRICS, [RECIPES], {"val"})
    assert baseline is None
    assert "no run of the method single_task" in reason


def test_baseline_without_a_task_is_rejected() -> None:
    rows = single_task({"0": ["seg/acc", "seg/miou"]})
    baseline, reason = find_baseline(rows, METRICS, [RECIPES], {"val"})
    assert baseline is None
    assert "depth/abs" in reason


def test_incomplete_seeds_of_the_baseline_are_excluded_and_named() -> None:
    rows = single_task({"0": ALL, "1": ALL, "2": ["seg/acc"]})
    baseline, _ = find_baseline(rows, METRICS, [RECIPES], {"val"})
    assert baseline is not None
    assert list(baseline.values.index) == ["0", "1"]
    assert any("seed 2" in caution for caution in baseline.cautions)


def test_baseline_has_the_methods_recipe_even_if_another_has_more_seeds() -> None:
    rows = pd.concat(
        [single_task({"0": ALL, "1": ALL}, "mine"), single_task(dict.fromkeys("012345", ALL), "other")]
    )
    baseline, _ = find_baseline(rows, METRICS, [{"depth": "mine", "seg": "mine"}] * 2, {"val"})
    assert baseline is not None
    assert baseline.recipes == {"depth": "mine", "seg": "mine"}


def test_negative_baseline_is_rejected() -> None:
    baseline, reason = find_baseline(single_task({"0": ALL}, value=-0.1), METRICS, [RECIPES], {"val"})
    assert baseline is None
    assert "needs a positive one" in reason


def test_baseline_of_one_seed_gives_no_interval() -> None:
    found, _ = find_baseline(single_task({"0": ALL}), METRICS, [RECIPES], {"val"})
    assert found is not None
    assert any("one seed" in caution for caution in found.cautions)
    result = deltas(table([[0.9, 0.5, 0.4], [1.0, 0.6, 0.3]]), found, METRICS)
    assert math.isnan(result.delta_m.half)


def test_other_selection_rule_of_the_baseline_is_reported() -> None:
    found, _ = find_baseline(single_task({"0": ALL, "1": ALL}), METRICS, [RECIPES], {"last"})
    assert found is not None
    assert any("another rule" in caution for caution in found.cautions)


def with_values(values: dict[str, list[float]]) -> pd.DataFrame:
    """Return rows of single-task runs with the given values of one metric per seed, and 0.5 for all others."""
    count = len(next(iter(values.values())))
    rows = single_task({str(seed): ALL for seed in range(count)})
    for key, each in values.items():
        rows.loc[rows["key"] == key, "value"] = each
    return rows


@pytest.mark.parametrize("values", [[0.01, -0.005, 0.02], [1e-9, 5.0, 0.1], [0.5, 0.6]])
def test_baseline_whose_interval_contains_zero_is_rejected(values: list[float]) -> None:
    baseline, reason = find_baseline(with_values({"seg/miou": values}), METRICS, [RECIPES], {"val"})
    assert baseline is None
    half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    low, high = (f"{np.mean(values) + sign * half:.4g}" for sign in (-1, 1))
    assert f"the baseline of seg/miou is {np.mean(values):.4g}" in reason
    assert f"{low} … {high}, contains zero" in reason
    assert "metrics=[…]" in reason


def test_baseline_whose_interval_excludes_zero_is_accepted() -> None:
    for values in ([0.01, 0.011, 0.012], [1e-9, 1.1e-9, 1.2e-9]):
        baseline, reason = find_baseline(with_values({"seg/miou": values}), METRICS, [RECIPES], {"val"})
        assert (baseline is not None, reason) == (True, "")


ANY = st.floats(1e-12, 1e12)


@given(
    st.lists(st.tuples(ANY, ANY, ANY), min_size=1, max_size=4),
    st.lists(st.tuples(ANY, ANY, ANY), min_size=1, max_size=4),
)
def test_no_change_is_larger_than_a_metric_may_be(
    method: list[tuple[float, float, float]], alone: list[tuple[float, float, float]]
) -> None:
    x, b = table([list(row) for row in method]), table([list(row) for row in alone])
    baseline = Baseline(b, RECIPES)
    means = mean_intervals(x)
    ratios = x.mean() / b.mean()
    why = dwarfed(means, baseline)
    assert (why is None) == (ratios.max() <= MOST_TIMES)
    if why is None:
        found = deltas(x, baseline, METRICS)
        for interval in (found.delta_m, found.delta_p, *found.gains.values()):
            assert abs(interval.mean) <= 100 * MOST_TIMES + 1e-6
    else:
        first = next(key for key in b.columns if ratios[key] > MOST_TIMES)
        assert why.startswith(f"its {first} is {x[first].mean():.4g}, ")


@pytest.mark.parametrize(("alone", "method"), [(0.003, 0.29), (1e-4, 1.1e-3), (0.05, 0.51)])
def test_a_baseline_that_is_tiny_beside_the_results_gives_no_change(alone: float, method: float) -> None:
    baseline = Baseline(table([[alone, 0.5, 0.5]]), RECIPES)
    means = mean_intervals(table([[method, 0.5, 0.5]]))
    assert f"times the baseline's {alone:.4g}" in (dwarfed(means, baseline) or "")


def test_reason_names_why_baseline_runs_were_set_aside() -> None:
    rows, why = single_task({"0": ALL, "1": ALL}), ["seg/miou is not a finite number"]
    for results, reason in (
        (rows.iloc[:0], "no run of the method single_task counts (seg/miou is not a finite number)"),
        (rows[rows["task"] != "seg"], "it lacks seg/acc, seg/miou (seg/miou is not a finite number)"),
    ):
        baseline, reason_given = find_baseline(results, METRICS, [RECIPES], {"val"}, why * 2)
        assert baseline is None
        assert reason in reason_given
    assert find_baseline(rows.iloc[:0], METRICS, [RECIPES], {"val"})[1].endswith("is among the sources")
