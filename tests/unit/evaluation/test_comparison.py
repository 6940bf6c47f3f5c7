"""Comparisons of sweeps: deltas, pairs, ranks, fronts and baselines."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from multitask.evaluation.compare import load
from multitask.evaluation.comparison import Comparison, Settings, compare_records
from multitask.evaluation.errors import ComparisonError
from multitask.evaluation.plane import plane
from multitask.evaluation.wording import findings
from tests.unit.evaluation.hand_records import write_run, write_sweep, write_table


def compare(folder: Path | list[str], baselines: Path | None = None, **settings: object) -> Comparison:
    source = [str(each) for each in folder] if isinstance(folder, list) else str(folder)
    records = load(source, None if baselines is None else str(baselines))
    (comparison,) = compare_records(records, Settings(**settings))  # type: ignore[arg-type]
    return comparison


def remove(folder: Path, pattern: str) -> None:
    for run in folder.glob(pattern):
        for file in run.iterdir():
            file.unlink()
        run.rmdir()


def single_task_rows(sweep: Path) -> list[dict[str, str]]:
    rows = []
    for file in sorted(sweep.glob("single_*/results.csv")):
        head, line = file.read_text().splitlines()
        rows.append(dict(zip(head.split(","), line.split(","), strict=True)))
    return rows


def test_sweep_is_compared(sweep: Path) -> None:
    comparison = compare(sweep)
    assert [entry.label for entry in comparison.entries] == ["upgrad", "mgda", "weighted_sum"]
    best = comparison.entries[0]
    assert best.seeds == best.attempted == 5
    assert best.delta_m is not None
    assert best.delta_m.low < best.delta_m.mean < best.delta_m.high
    assert best.delta_p is not None  # with one metric per task, both definitions agree up to the sign
    assert best.delta_p.mean == pytest.approx(-best.delta_m.mean)
    assert best.rank is not None
    assert best.rank[0] == 1
    assert best.macro["accuracy"].mean == pytest.approx(
        np.mean([best.means["left/accuracy"].mean, best.means["right/accuracy"].mean])
    )
    assert best.cost.step_ratio == pytest.approx(1.3)
    assert best.cost.memory_ratio == pytest.approx(130 / 120)
    assert comparison.headline == "delta_m"
    assert set(comparison.pairs["metric"]) == {
        "delta_m", "delta_p", "mean/accuracy", "left/accuracy", "right/accuracy",
    }  # fmt: skip


def test_pairs_are_compared_by_the_paired_t_test(sweep: Path) -> None:
    comparison = compare(sweep)
    pairs = comparison.pairs.set_index(["metric", "a", "b"])
    values = {entry.label: entry.values["left/accuracy"] for entry in comparison.entries}
    row = pairs.loc[("left/accuracy", "upgrad", "weighted_sum")]
    assert row["p"] == pytest.approx(stats.ttest_rel(values["upgrad"], values["weighted_sum"]).pvalue)
    assert row["separable"]
    assert row["sought"] == pytest.approx(0.01 * np.mean([each.mean() for each in values.values()]))


def test_missing_baseline_omits_only_the_deltas(sweep: Path) -> None:
    remove(sweep, "single_*")
    comparison = compare(sweep)
    assert all(entry.deltas is None for entry in comparison.entries)
    assert comparison.headline == "mean/accuracy"
    assert comparison.entries[0].rank is not None
    assert findings(comparison)[0].startswith("There is no Δm: no run of the method single_task")


def test_baseline_of_another_recipe_is_rejected(sweep: Path, tmp_path: Path) -> None:
    remove(sweep, "single_*")
    for seed in range(3):
        for task in ("left", "right"):
            write_run(
                sweep / f"single_{task}_{seed}", "single_task", seed, {f"{task}/accuracy": 0.9}, digest="old"
            )
    comparison = compare(sweep)
    assert comparison.entries[0].deltas is None
    assert "another recipe: " in comparison.entries[0].refusal
    assert "the baseline with old" in findings(comparison)[0]
    accepted = compare(sweep, accept_other_baseline=True)
    assert accepted.entries[0].deltas is not None
    assert any("baseline with another recipe" in caution for caution in accepted.cautions)


def test_baseline_of_the_same_recipe_takes_precedence_over_a_larger_one(sweep: Path, tmp_path: Path) -> None:
    alone = compare(sweep).baseline_means
    for seed in range(20):
        write_run(
            tmp_path / f"other_{seed}",
            "single_task",
            seed,
            {"left/accuracy": 0.1, "right/accuracy": 0.1},
            digest="bbbb2222",
            selection="val/loss min",
        )
    both = compare([str(sweep), str(tmp_path / "other_*")])
    assert both.entries[0].delta_m == compare(sweep).entries[0].delta_m
    assert both.baseline_means == alone
    assert not any("selected by another rule" in caution for caution in both.cautions)


def test_baseline_file_is_found_by_the_name_of_the_experiment(sweep: Path, tmp_path: Path) -> None:
    own = compare(sweep)
    rows = single_task_rows(sweep)
    remove(sweep, "single_*")
    write_table(tmp_path / "baselines" / "toy.csv", rows)
    write_table(tmp_path / "baselines" / "other.csv", rows)
    found = compare(sweep, tmp_path / "baselines")
    assert [entry.delta_m for entry in found.entries] == [entry.delta_m for entry in own.entries]


def test_baseline_in_the_sources_and_in_its_file_counts_once(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "s1", {"weighted_sum": 0.02}, sweep="s1")
    rows = [row | {"sweep": "s1"} for row in single_task_rows(sweep)]
    write_table(tmp_path / "baselines" / "toy.csv", rows)
    both = compare(sweep, tmp_path / "baselines")
    assert both.set_aside.empty
    assert both.entries[0].delta_m == compare(sweep).entries[0].delta_m


def test_one_seed_gives_no_interval_and_no_test(tmp_path: Path) -> None:
    comparison = compare(write_sweep(tmp_path, {"weighted_sum": 0.02, "upgrad": 0.01}, seeds=[0]))
    entry = comparison.entries[0]
    assert entry.delta_m is not None
    assert math.isnan(entry.delta_m.half)
    assert math.isnan(entry.means["left/accuracy"].half)
    assert comparison.pairs["p"].isna().all()
    assert not comparison.pairs["separable"].any()
    assert any("neither an interval nor a test" in sentence for sentence in findings(comparison))


def test_inseparable_methods_have_the_number_of_seeds_needed(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for method in ("a", "b"):
        for seed in range(3):
            write_run(tmp_path / f"{method}{seed}", method, seed, {"left/accuracy": random.normal(0.8, 0.01)})
    pair = compare(tmp_path, difference=0.5).pairs.iloc[0]
    assert not pair["separable"]
    deviation = pair["deviation"]
    assert pair["needed"] > 3
    # The normal approximation of the sample size, which the t test exceeds by a few.
    normal = ((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * deviation / pair["sought"]) ** 2
    assert normal < pair["needed"] < normal + 4


def test_three_settings_of_a_method_form_an_unranked_front(sweep: Path) -> None:
    points = {"[1,9]": (0.86, 0.879), "[5,5]": (0.88, 0.87), "[9,1]": (0.89, 0.85), "[7,3]": (0.87, 0.85)}
    for setting, (left, right) in points.items():
        results = {"left/accuracy": left, "right/accuracy": right}
        write_run(sweep / f"grid{setting}", "weighted_sum", 0, results, variant=f"weights={setting}")
    comparison = compare(sweep)
    assert [entry.label for entry in comparison.entries] == ["upgrad", "mgda", "weighted_sum"]
    assert {entry.variant for entry in comparison.fronts["weighted_sum"]} == {f"weights={s}" for s in points}
    assert not set(comparison.pairs["a"]) & {e.label for e in comparison.fronts["weighted_sum"]}
    assert next(e for e in comparison.entries if e.label == "weighted_sum").trials == 5
    drawn = plane(comparison)
    assert drawn is not None
    x, y = drawn.reference
    assert (x, y) == (0.86, 0.85)
    assert drawn.volumes["weighted_sum"] == pytest.approx((0.88 - 0.86) * (0.87 - 0.85))


def test_two_settings_of_a_method_are_compared_as_methods(tmp_path: Path) -> None:
    for setting in ("alpha=1", "alpha=2"):
        for seed in range(3):
            write_run(tmp_path / f"{setting}{seed}", "gradnorm", seed, {"a/acc": 0.5}, variant=setting)
    comparison = compare(tmp_path)
    assert {entry.label for entry in comparison.entries} == {"gradnorm (alpha=1)", "gradnorm (alpha=2)"}
    assert comparison.fronts == {}
    assert any("All seeds of" in caution for caution in comparison.cautions)


def test_losses_are_compared_only_without_other_metrics(tmp_path: Path) -> None:
    losses = {"left/loss": 0.3, "penalty/loss": 0.2, "combined/loss": float("inf")}
    higher = dict.fromkeys(losses, False) | {"left/accuracy": True}
    write_run(tmp_path / "losses", "uw", 0, losses, higher=higher)
    assert list(compare(tmp_path / "losses").metrics.index) == ["left/loss", "penalty/loss"]
    write_run(tmp_path / "run", "uw", 0, losses | {"left/accuracy": 0.8}, higher=higher)
    remove(tmp_path, "losses")
    comparison = compare(tmp_path)
    assert list(comparison.metrics.index) == ["left/accuracy"]
    assert any("since the only metric is the loss: penalty" in each for each in comparison.cautions)
    assert list(compare(tmp_path, metrics=["loss"]).metrics.index) == ["left/loss", "penalty/loss"]
    assert list(compare(tmp_path, metrics=["left/loss"]).metrics.index) == ["left/loss"]
    with pytest.raises(ComparisonError, match="metrics=f1"):
        compare(tmp_path, metrics=["f1"])


def test_contradictory_directions_are_rejected(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "uw", 0, {"left/error": 0.8}, higher=True)
    write_run(tmp_path / "b", "upgrad", 0, {"left/error": 0.8}, higher=False)
    with pytest.raises(ComparisonError, match="higher_is_better of left/error differs"):
        compare(tmp_path)


def test_metric_without_direction_is_shown_but_not_ranked(tmp_path: Path) -> None:
    rows = [
        {"method": method, "seed": seed, "task": "left", "metric": "norm", "split": "test", "value": 0.5}
        for method in ("uw", "upgrad", "single_task")
        for seed in range(2)
    ]
    comparison = compare(write_table(tmp_path / "t.csv", [row | {"higher_is_better": ""} for row in rows]))
    assert comparison.entries[0].means["left/norm"].mean == 0.5
    assert comparison.entries[0].rank is None
    assert comparison.entries[0].deltas is None
    assert any("No direction is recorded for left/norm" in caution for caution in comparison.cautions)


def test_method_without_a_metric_has_no_delta_and_no_rank(sweep: Path) -> None:
    write_run(sweep / "half", "famo", 0, {"left/accuracy": 0.95})
    entry = next(entry for entry in compare(sweep).entries if entry.label == "famo")
    assert "lacks right/accuracy" in entry.refusal
    assert entry.rank is None


def test_method_with_only_failed_runs_is_reported(sweep: Path) -> None:
    write_run(sweep / "bad", "nash_mtl", 0, {}, status="failed", error="no solver")
    comparison = compare(sweep)
    assert any("none of their runs counts: nash_mtl" in caution for caution in comparison.cautions)
    assert comparison.set_aside["reason"].tolist() == ["failed: no solver"]


def test_tuned_methods_can_keep_their_own_recipes(sweep: Path) -> None:
    for seed in range(6):
        results = {"left/accuracy": 0.9, "right/accuracy": 0.89}
        write_run(sweep / f"tuned_{seed}", "mgda", seed, results, digest="tuned")
    shared = {entry.label: entry for entry in compare(sweep).entries}
    assert shared["mgda"].recipe == "aaaa1111"
    assert shared["mgda"].trials == 2
    assert (shared["mgda"].seeds, shared["mgda"].attempted) == (5, 11)
    tuned = compare(sweep, recipe="per_method")
    entry = next(entry for entry in tuned.entries if entry.label == "mgda")
    assert (entry.recipe, entry.seeds) == ("tuned", 6)
    assert "another recipe" in entry.refusal  # the baseline would need the same tuning
    assert any("different recipes" in caution for caution in tuned.cautions)


def test_experiments_are_compared_separately(tmp_path: Path) -> None:
    write_sweep(tmp_path / "a", {"upgrad": 0.01}, seeds=range(2), experiment="one")
    write_sweep(tmp_path / "b", {"upgrad": 0.02}, seeds=range(2), experiment="two")
    comparisons = compare_records(load(str(tmp_path)), Settings())
    assert [each.experiment for each in comparisons] == ["one", "two"]
    assert [len(each.counted_runs) for each in comparisons] == [6, 6]


def test_pareto_plane_of_unknown_metrics_is_rejected(sweep: Path) -> None:
    with pytest.raises(ComparisonError, match="pareto="):
        plane(compare(sweep, pareto=["left/accuracy", "nothing/accuracy"]))


def test_recipes_are_matched_per_task(tmp_path: Path) -> None:
    """Joint runs have one digest per task; single-task runs have the digest of their task and one of the run."""
    ours = {"left": "L1", "right": "R1"}
    for seed in range(2):
        for method in ("weighted_sum", "upgrad"):
            results = {"left/accuracy": 0.8 + 0.01 * seed, "right/accuracy": 0.7, "combined/loss": 1.0}
            name = f"{method}{seed}"
            write_run(tmp_path / "runs" / name, method, seed, results, digest="joint", digests=ours)
        for task, digest in ours.items():
            results = {f"{task}/accuracy": 0.9 + 0.01 * seed}
            folder = tmp_path / "runs" / f"single_{task}{seed}"
            write_run(folder, "single_task", seed, results, digest=f"only {task}", digests={task: digest})
    comparison = compare(tmp_path / "runs")
    assert [entry.recipe for entry in comparison.entries] == ["joint", "joint"]
    assert comparison.baseline is not None
    assert comparison.baseline.recipes == ours
    assert all(entry.deltas and not entry.refusal for entry in comparison.entries)

    # The same results as one table, without the run folders, are compared to the same numbers.
    lines = [file.read_text().splitlines() for file in sorted((tmp_path / "runs").glob("*/results.csv"))]
    table = tmp_path / "all.csv"
    table.write_text("\n".join([lines[0][0], *(line for file in lines for line in file[1:])]))
    exported = compare(table)
    assert len({entry.recipe for entry in exported.entries}) == 1
    assert [entry.delta_m for entry in exported.entries] == [entry.delta_m for entry in comparison.entries]

    write_run(tmp_path / "runs" / "single_right1", "single_task", 1, {"right/accuracy": 0.9}, digest="R2")
    write_run(tmp_path / "runs" / "single_right0", "single_task", 0, {"right/accuracy": 0.9}, digest="R2")
    changed = compare(tmp_path / "runs")
    assert "trained right with R1, the baseline with R2" in changed.entries[0].refusal


@pytest.mark.parametrize("lost", [{"left/loss": 0.3}, {"left/loss": 0.3, "left/accuracy": 0.5}])
def test_seeds_with_missing_metrics_are_reported(tmp_path: Path, lost: dict[str, float]) -> None:
    whole = {"left/loss": 0.3, "left/accuracy": 0.5, "right/accuracy": 0.6}
    higher = {"left/loss": False, "left/accuracy": True, "right/accuracy": True}
    for method in ("uw", "upgrad"):
        for seed in range(3):
            results = lost if (method, seed) == ("uw", 2) else {k: v + 0.01 * seed for k, v in whole.items()}
            write_run(tmp_path / f"{method}_{seed}", method, seed, results, higher=higher)
    found = compare(tmp_path)
    aside = {Path(row.run).name: row.reason for row in found.set_aside.itertuples()}
    if len(lost) == 1:
        assert aside == {"uw_2": "no value of left/accuracy, right/accuracy"}
        assert any("uw 2 of 3" in caution for caution in found.cautions)
    else:
        assert aside == {}
        assert "Not every seed of uw has every metric: right/accuracy 2 of 3." in found.cautions
