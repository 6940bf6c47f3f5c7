"""The W&B workspace of a comparison: its panels, and its upload to a fake server."""

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from multitask.evaluation.board import from_comparison, from_tasks
from multitask.evaluation.compare import load
from multitask.evaluation.comparison import Settings, compare_records
from multitask.evaluation.dashboard import workspace
from multitask.evaluation.errors import ComparisonError
from multitask.private import specification
from tests.integration.script_runner import Ran, Scripts, run_python
from tests.integration.wandb_server import WandbServer
from tests.unit.evaluation.hand_records import write_sweep

ROOT = Path(__file__).parents[3]
KEY = "0123456789012345678901234567890123456789"


def sections(built: Any) -> dict[str, list[dict[str, Any]]]:
    bank = json.loads(specification(built))["section"]["panelBankConfig"]
    return {each["name"]: each["panels"] for each in bank["sections"]}


def of_type(panels: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [panel["config"] for panel in panels if panel["viewType"] == kind]


def test_comparison_has_panels_per_task_and_for_conflict_and_cost(sweep: Path) -> None:
    (comparison,) = compare_records(load(str(sweep)), Settings())
    built = workspace(from_comparison(comparison), "project")
    by_name = sections(built)
    assert list(by_name) == ["Comparison", "left", "right", "Conflict and cost"]
    panels = by_name["Comparison"]
    (scatter,) = of_type(panels, "Scatter Plot")
    assert (scatter["xAxis"], scatter["yAxis"]) == (
        "summary:test/left/accuracy",
        "summary:test/right/accuracy",
    )
    (parallel,) = of_type(panels, "Parallel Coordinates Plot")
    columns = ["config:method.value", "summary:test/left/accuracy", "summary:test/right/accuracy"]
    assert [column["accessor"] for column in parallel["columns"]] == columns
    assert of_type(panels, "Run Comparer") == [{"diffOnly": "split"}]
    for task in ("left", "right"):
        lines = of_type(by_name[task], "Run History Line Plot")
        drawn = [f"train/loss/{task}", f"val/loss/{task}", f"val/{task}/accuracy", f"weight/{task}"]
        assert [line["metrics"] for line in lines] == [[key] for key in drawn]
        for line in lines:
            assert line["xAxis"] == "trainer/global_step"
            assert (line["groupBy"], line["groupAgg"], line["groupArea"]) == (
                "method.value",
                "mean",
                "stderr",
            )
    runs = json.loads(specification(built))["section"]["runSets"][0]
    filtered = json.dumps(runs["filters"])
    assert "experiment_name" in filtered
    assert "toy" in filtered


def test_bars_show_delta_m(sweep: Path) -> None:
    (comparison,) = compare_records(load(str(sweep)), Settings())
    (bars,) = of_type(sections(workspace(from_comparison(comparison), "p"))["Comparison"], "Bar Chart")
    assert (bars["groupBy"], bars["groupAgg"], bars["groupArea"]) == ("method.value", "mean", "stderr")
    (formula,) = bars["expressions"]
    for entry in comparison.entries:
        assert entry.deltas is not None
        for seed, values in entry.values.iterrows():
            expression = formula
            for key, value in values.items():
                expression = expression.replace(f"${{test/{key}}}", repr(float(value)))
            assert eval(expression) == pytest.approx(entry.deltas.per_seed.loc[seed, "delta_m"], abs=1e-6)


def test_no_bars_without_a_baseline_of_the_recipe(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, {"weighted_sum": 0.02})
    for run in sweep.glob("weighted_sum_*/results.csv"):
        run.write_text(run.read_text().replace("aaaa1111", "bbbb2222"))
    (comparison,) = compare_records(load(str(sweep)), Settings())
    board = from_comparison(comparison)
    assert board.delta_m is None
    assert "another recipe" in board.no_delta_m
    assert not of_type(sections(workspace(board, "p"))["Comparison"], "Bar Chart")


def test_experiment_without_runs_has_panels_from_its_config() -> None:
    board = from_tasks("made", {"a": ["accuracy", "f1"], "b": [], "c": ["accuracy"]}, "val")
    assert list(board.keys.values()) == ["val/a/accuracy", "val/a/f1", "val/loss/b", "val/c/accuracy"]
    panels = sections(workspace(board, "p"))["Comparison"]
    assert [panel["chartTitle"] for panel in of_type(panels, "Scatter Plot")] == [
        "a/accuracy and b/loss",
        "a/accuracy and c/accuracy",
        "b/loss and c/accuracy",
    ]
    (parallel,) = of_type(panels, "Parallel Coordinates Plot")
    assert [column.get("inverted") for column in parallel["columns"]] == [None, False, False, True, False]
    (chosen,) = of_type(
        sections(workspace(board, "p", scatter=[["a/f1", "b/loss"]]))["Comparison"], "Scatter Plot"
    )
    assert chosen["chartTitle"] == "a/f1 and b/loss"
    with pytest.raises(ComparisonError, match="choices: a/accuracy, a/f1, b/loss, c/accuracy"):
        workspace(board, "p", scatter=[["a/f1", "d/loss"]])


@pytest.fixture
def server() -> Iterator[WandbServer]:
    server = WandbServer()
    yield server
    server.close()


def isolate(folder: Path, env: dict[str, str]) -> None:
    """Change to a folder and replace the W&B variables of the environment."""
    os.chdir(folder)
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        del os.environ[name]
    os.environ.update(env, HOME=str(folder))


def run(folder: Path, *arguments: str, **env: str) -> Ran:
    scripts = Scripts(folder)
    return scripts.start_file(
        "scripts/dashboard.py", "project=p", *arguments, before=partial(isolate, folder, env)
    ).wait()


@pytest.mark.smoke
@pytest.mark.slow
def test_workspace_is_saved_and_replaces_an_earlier_one(tmp_path: Path, server: WandbServer) -> None:
    write_sweep(tmp_path / "sweep", {"weighted_sum": 0.02, "upgrad": 0.01}, range(2))
    env = {"WANDB_BASE_URL": server.base, "WANDB_API_KEY": KEY}
    done = run(tmp_path, "source=sweep", **env)
    assert done.code == 0, done.err
    (saved,) = server.views
    assert (saved["entityName"], saved["projectName"], saved["displayName"]) == (
        "entity",
        "p",
        "Comparison: toy",
    )
    assert "expressions" in saved["spec"]
    address = done.out.strip()
    assert address.startswith("http")
    assert "/entity/p?nw=" in address
    again = run(tmp_path, "experiment_name=multi_mnist", f"replace={address}", **env)
    assert again.code == 0, again.err
    assert again.out.splitlines()[-1] == address
    assert server.views[1]["name"] == saved["name"]
    assert server.views[1]["displayName"] == "Comparison: multi_mnist"
    assert "expressions" not in server.views[1]["spec"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment_name=multi_mnist"], "run `wandb login`"),
        ([], "give either source=<sweep folder> or experiment_name=<name>"),
        (["source=nowhere"], "source=nowhere matches no run folder"),
        (["experiment_name=multi_mnst"], "did you mean 'multi_mnist'?"),
    ],
)
def test_mistake_is_reported_in_one_sentence(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run(tmp_path, *arguments)
    assert done.code == 1
    assert_sentence(done.err, message)


@pytest.mark.slow
def test_unreachable_network_is_reported_in_one_sentence(tmp_path: Path) -> None:
    # W&B reads the timeout on import, so this needs a new interpreter.
    env = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_HTTP_TIMEOUT": "1"}
    arguments = ("project=p", "experiment_name=multi_mnist", "entity=e")
    done = run_python(
        str(ROOT / "scripts" / "dashboard.py"), *arguments, cwd=tmp_path, env={**env, "HOME": str(tmp_path)}
    )
    assert done.returncode == 1
    assert_sentence(done.stderr, "check the network")


def assert_sentence(printed: str, message: str) -> None:
    assert message in printed
    assert "Traceback" not in printed
    assert len(printed.strip().splitlines()) == 1
