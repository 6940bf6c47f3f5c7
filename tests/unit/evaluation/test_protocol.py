"""Rules for which runs are compared."""

from pathlib import Path

import pytest

from multitask.evaluation import protocol
from multitask.evaluation.errors import ComparisonError
from multitask.evaluation.protocol import Protocol, on_test
from multitask.evaluation.records import read
from multitask.evaluation.sources import find
from tests.unit.evaluation.hand_records import write_run

RESULTS = {"left/accuracy": 0.5, "right/accuracy": 0.6}


def apply(folder: Path, recipe: str = "shared", selection: str | None = None) -> Protocol:
    return protocol.apply(read(find(str(folder))), split="test", recipe=recipe, selection=selection)


def recipes(rules: Protocol) -> dict[str, str]:
    of_label = rules.results.groupby("label")["recipe"].unique()
    return {label: recipe for label, (recipe,) in of_label.items()}


def reasons(rules: Protocol) -> dict[str, str]:
    return {Path(row.run).name: row.reason for row in rules.set_aside.itertuples()}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two methods with three good seeds each."""
    for method in ("uw", "upgrad"):
        for seed in range(3):
            write_run(tmp_path / f"{method}_{seed}", method, seed, RESULTS)
    return tmp_path


@pytest.mark.parametrize(
    ("status", "message"),
    [("failed", "failed: out of memory"), ("interrupted", "interrupted"), ("running", "still running")],
)
def test_incomplete_run_is_listed_but_not_counted(runs: Path, status: str, message: str) -> None:
    error = "out of memory\nTraceback" if status == "failed" else None
    write_run(runs / "bad", "uw", 9, RESULTS, status=status, error=error)
    rules = apply(runs)
    assert reasons(rules)["bad"].startswith(message)
    assert "\n" not in reasons(rules)["bad"]
    assert "9" not in set(rules.results["seed"])


def test_a_diverged_run_is_named_with_its_metric(runs: Path) -> None:
    write_run(runs / "bad", "uw", 9, RESULTS | {"right/accuracy": float("nan")})
    assert reasons(apply(runs)) == {"bad": "right/accuracy is not a finite number"}


def test_completed_run_without_the_split_is_listed(runs: Path) -> None:
    write_run(runs / "bad", "uw", 9, RESULTS, split="val")
    assert reasons(apply(runs)) == {"bad": "no value for split=test; available: val"}


def test_last_run_of_a_repeated_seed_counts(runs: Path) -> None:
    write_run(runs / "uw_1_again", "uw", 1, dict.fromkeys(RESULTS, 0.9))
    rules = apply(runs)
    assert reasons(rules) == {"uw_1": "repeated: a later run has the same seed and recipe"}
    kept = rules.results[(rules.results["method"] == "uw") & (rules.results["seed"] == "1")]
    assert kept["value"].tolist() == [0.9, 0.9]


def test_recipe_of_most_methods_is_compared(runs: Path) -> None:
    for seed in range(5):  # more runs, but of one method
        write_run(runs / f"other_{seed}", "uw", seed, RESULTS, digest="bbbb2222")
    rules = apply(runs)
    assert recipes(rules) == {"uw": "aaaa1111", "upgrad": "aaaa1111"}
    assert set(reasons(rules).values()) == {"another recipe: bbbb2222"}
    assert recipes(apply(runs, recipe="per_method")) == {"uw": "bbbb2222", "upgrad": "aaaa1111"}
    assert recipes(apply(runs, recipe="bbbb")) == {"uw": "bbbb2222"}
    with pytest.raises(ComparisonError, match="recipe=cccc matches no recipe"):
        apply(runs, recipe="cccc")


def test_each_method_keeps_its_usual_selection_rule(runs: Path) -> None:
    write_run(runs / "last", "uw", 7, RESULTS, selection="last")
    rules = apply(runs)
    assert reasons(rules) == {"last": "selected by another rule: last"}
    assert apply(runs, selection="last").results["seed"].unique().tolist() == ["7"]
    with pytest.raises(
        ComparisonError, match="selection=best: nothing was selected by this rule; choices: last"
    ):
        apply(runs, selection="best")


def test_single_task_runs_are_the_baseline_and_keep_their_recipes(runs: Path) -> None:
    write_run(runs / "single", "single_task", 0, {"left/accuracy": 0.7}, digest="bbbb2222")
    rules = apply(runs)
    assert "single_task" not in set(rules.results["method"])
    assert rules.baseline["recipe"].tolist() == ["bbbb2222"]


def test_published_changes_are_never_among_the_results(runs: Path) -> None:
    write_run(runs / "theirs", "famo", 0, {"all/delta_m": -4.1}, higher=False)
    rules = apply(runs)
    assert rules.quoted["value"].tolist() == [-4.1]
    assert set(rules.results["metric"]) == {"accuracy"}
    assert reasons(rules) == {}


def test_variants_are_named_only_if_a_method_has_several(runs: Path) -> None:
    write_run(runs / "w1", "weighted_sum", 0, RESULTS, variant="w=[1,2]")
    assert set(recipes(apply(runs))) == {"uw", "upgrad", "weighted_sum"}
    write_run(runs / "w2", "weighted_sum", 0, RESULTS, variant="w=[2,1]")
    assert set(recipes(apply(runs))) == {"uw", "upgrad", "weighted_sum (w=[1,2])", "weighted_sum (w=[2,1])"}
    # A failed run with another variant renames nothing.
    write_run(runs / "u", "uw", 5, {}, status="failed", variant="w=3")
    assert "uw" in recipes(apply(runs))


def test_different_versions_and_commits_are_reported(runs: Path) -> None:
    assert apply(runs).cautions == []
    write_run(runs / "new", "uw", 8, RESULTS, versions={"torch": "3.0"}, git_commit="beef")
    assert len(apply(runs).cautions) == 2


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("best on test", True), ("test/mean max", True), ("best_test", True), ("Test", True),
        ("val/mean max", False), ("latest", False), ("last", False), ("contest", False), ("", False),
    ],
)  # fmt: skip
def test_selection_on_test_is_recognized(rule: str, expected: bool) -> None:
    assert on_test(rule) is expected
