"""Hyperparameter searches: search space, objectives, and resumption."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from multitask.errors import ConfigError
from multitask.sweep.objectives import Objective, objectives
from multitask.sweep.space import space
from tests.integration.script_runner import Scripts
from tests.integration.sweep.small import SMALL, progress_of, records_of, results_of, table_of

CONFIG = OmegaConf.create(
    {
        "selection": {"metric": "val/loss", "mode": "min"},
        "evaluation": {"splits": ["val", "test"]},
        "tasks": {"a": {"head": {}, "metrics": {"accuracy": {}}}, "b": {"head": {}}, "penalty": {}},
    }
)


def parsed(*arguments: str) -> Any:
    return space(OverridesParser.create().parse_overrides(list(arguments)))


def test_overrides_become_distributions() -> None:
    found = parsed(
        "weighting=upgrad,famo",
        "optimizer.lr=tag(log,interval(1e-4,1e-1))",
        "trunk.width=int(interval(10,50))",
        "data.batch_size=range(32,129,32)",
        "+weighting.weights.a=interval(0,1)",
        "optimizer.momentum=0.9",
        "seed=range(0,3)",
        "weighting=pcgrad,famo",
    )
    assert found.distributions == {
        "weighting": CategoricalDistribution(["pcgrad", "famo"]),
        "optimizer.lr": FloatDistribution(1e-4, 1e-1, log=True),
        "trunk.width": IntDistribution(10, 50),
        "data.batch_size": IntDistribution(32, 128, step=32),
        "+weighting.weights.a": FloatDistribution(0, 1),
    }
    drawn = {"weighting": "famo", "optimizer.lr": 1e-4, "trunk.width": 20, "data.batch_size": 64}
    jobs = found.jobs({**drawn, "+weighting.weights.a": 0.25})
    assert [job[-1] for job in jobs] == ["seed=0", "seed=1", "seed=2"]
    assert jobs[0][:-1] == (
        "optimizer.momentum=0.9",
        "weighting=famo",
        "optimizer.lr=0.0001",
        "trunk.width=20",
        "data.batch_size=64",
        "+weighting.weights.a=0.25",
    )
    with pytest.raises(ConfigError, match="has nothing to search"):
        parsed("weighting=upgrad", "seed=0,1")


def test_objectives_are_validation_metrics() -> None:
    assert objectives(None, CONFIG) == [Objective("val/loss", "min")]
    assert objectives("tasks", CONFIG) == [Objective("val/loss/a", "min"), Objective("val/loss/b", "min")]
    given = {"val/a/accuracy": "max", "val/loss/b": "min"}
    assert [each.direction for each in objectives(given, CONFIG)] == ["maximize", "minimize"]
    for wrong, message in (
        ({"test/a/accuracy": "max"}, "chosen on the test split"),
        ({"val/a/acuracy": "max"}, "did you mean 'val/a/accuracy'"),
        ({"val/loss/a": "down"}, "choose min or max"),
        ("task", "give tasks, or {key:min}"),
    ):
        with pytest.raises(ConfigError, match=message):
            objectives(wrong, CONFIG)  # type: ignore[arg-type]


def found_in(sweep: Path) -> dict[str, Any]:
    return json.loads((sweep / "search.json").read_text())


@pytest.mark.slow
def test_killed_search_resumes_its_trial(scripts: Scripts, arrays: Path) -> None:
    long = (*(argument for argument in SMALL if "max_epochs" not in argument), "trainer.max_epochs=10")
    command = (*long, f"data.path={arrays}", "hparams_search=optuna", "hydra.sweeper.n_trials=2", "seed=0,1")
    sweep = scripts.logs / "npz" / "sweeps" / "found"
    running = scripts.start(*command, "sweep=found")
    running.wait_for(lambda: len(list(sweep.glob("*/checkpoints/last.ckpt"))) == 3)
    running.signal(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    assert not (sweep / "search.json").exists()
    before = {path: path.stat().st_mtime_ns for path in sweep.glob("*/results.csv")}
    assert len(before) == 2

    ran = scripts.run("sweep=found")
    assert ran.code == 0, ran.err
    assert ran.folder == sweep
    assert progress_of(ran.out)[-1].endswith("4 of 4 done, 0 running, 0 failed")
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert sum("resumed_from" in record for record in records_of(sweep)) == 1
    found = found_in(sweep)
    assert [trial["state"] for trial in found["trials"]] == ["complete"] * 2
    values = {}
    for trial in found["trials"]:
        assert len({trial["params"]["optimizer.lr"] for trial in found["trials"]}) == 2
        chosen = [
            json.loads((sweep / run / "run.json").read_text())["selected_value"] for run in trial["runs"]
        ]
        assert trial["values"] == [pytest.approx(sum(chosen) / 2)]
        values[trial["trial"]] = trial["values"][0]
    assert found["best"] == [min(values, key=lambda number: values[number])]
    assert f"best: trial {found['best'][0]} of 2" in ran.out

    more = scripts.run("sweep=found", "hydra.sweeper.n_trials=3")
    assert more.code == 0, more.err
    assert len(found_in(sweep)["trials"]) == 3
    other = scripts.run("sweep=found", "hydra.sweeper.objectives=tasks")
    assert other.code == 1
    assert "has other objectives" in other.err


@pytest.mark.smoke
@pytest.mark.slow
def test_best_trials_are_the_pareto_front_of_the_tasks(scripts: Scripts, arrays: Path) -> None:
    # Two trials at a time; the second learning rate always fails.
    rates = ("optimizer.lr=choice(0.1,1e30)", "+weighting.weights.a=interval(0.05,0.95)")
    options = ("hydra.sweeper.n_trials=5", "hydra.sweeper.max_batch_size=2", "hydra.sweeper.sampler.seed=1")
    ran = scripts.run(*SMALL, f"data.path={arrays}", "hparams_search=optuna_tasks", *options, *rates)
    found = found_in(ran.folder)
    assert found["objectives"] == {"val/loss/a": "min", "val/loss/b": "min"}
    by_state = {state: [t for t in found["trials"] if t["state"] == state] for state in ("complete", "fail")}
    assert len(by_state["complete"]) + len(by_state["fail"]) == 5
    assert by_state["fail"]
    assert ran.code == 1
    assert f"{len(by_state['fail'])} of 5 jobs did not complete" in ran.err
    assert all(float(trial["params"]["optimizer.lr"]) == 1e30 for trial in by_state["fail"])
    points = {}
    for trial in by_state["complete"]:
        (run,) = trial["runs"]
        rows = {row["task"]: row for row in results_of(ran.folder / run) if row["split"] == "val"}
        points[trial["trial"]] = [float(rows[task]["value"]) for task in "ab"]
        assert trial["values"] == points[trial["trial"]]
    front = [
        number
        for number, point in points.items()
        if not any(o != point and all(x <= y for x, y in zip(o, point, strict=True)) for o in points.values())
    ]
    assert found["best"] == front
    assert len(table_of(ran.out)) == 5


@pytest.mark.slow
def test_invalid_search_writes_no_files(scripts: Scripts, arrays: Path) -> None:
    ran = scripts.run(*SMALL, f"data.path={arrays}", "hparams_search=optuna", "optimizer.lrr=interval(0,1)")
    ran.assert_error("optimizer.lrr")
    assert not scripts.logs.exists()
