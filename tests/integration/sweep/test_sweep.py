"""Sweeps through the command line."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.script_runner import Scripts
from tests.integration.sweep.small import SMALL, progress_of, records_of, results_of, runs_of, table_of
from tests.integration.wandb_server import WandbServer

pytestmark = pytest.mark.slow


def test_sweeps_started_together_share_no_run(scripts: Scripts, arrays: Path) -> None:
    small = ("-m", *SMALL, f"data.path={arrays}", "seed=0,1")
    started = [
        scripts.start(*small, "weighting=weighted_sum,imtl_l,upgrad"),
        scripts.start(*small, "weighting=upgrad"),
    ]
    ran = [each.wait() for each in started]
    assert [each.code for each in ran] == [0, 0], [each.err for each in ran]
    sweeps = [each.folder for each in ran]
    assert {sweep.parent for sweep in sweeps} == {scripts.logs / "npz" / "sweeps"}
    assert len(set(sweeps)) == 2
    for sweep, count, each in zip(sweeps, (6, 2), ran, strict=True):
        assert len(runs_of(sweep)) == count
        expected = []
        for run, record in zip(runs_of(sweep), records_of(sweep), strict=True):
            assert record["status"] == "completed"
            assert record["sweep"] == sweep.name
            rows = [row for row in results_of(run) if row["split"] == "test" and row["task"] != "combined"]
            assert {(row["method"], row["seed"]) for row in rows} == {(record["method"], str(record["seed"]))}
            metrics = [f"{float(row['value']):.4f}" for row in rows]
            expected.append([record["method"], str(record["seed"]), "completed", *metrics])
        assert sorted(table_of(each.out)) == sorted(expected)
        assert progress_of(each.out)[-1].endswith(f"{count} of {count} done, 0 running, 0 failed")


def test_failed_jobs_record_their_error_and_do_not_affect_others(scripts: Scripts, arrays: Path) -> None:
    # lr=1e30 makes the second step's loss infinite; a width of -1 is invalid.
    grid = ("optimizer.lr=1e30,0.01", "trunk.widths=[8],[-1]")
    ran = scripts.run("-m", *SMALL, f"data.path={arrays}", *grid)
    assert ran.code == 1
    assert "3 of 4 jobs did not complete (3 failed)" in ran.err
    records = records_of(ran.folder)
    (good,) = [record for record in records if record["status"] == "completed"]
    assert {"optimizer.lr=0.01", "trunk.widths=[8]"} <= set(good["overrides"])
    errors = [record["error"] for record in records if record["status"] == "failed"]
    assert len(errors) == 3
    assert all(error in ran.out for error in errors)


def test_one_command_syncs_a_sweep_to_wandb_as_one_group(
    scripts: Scripts, arrays: Path, server: WandbServer
) -> None:
    grid = ("logger=wandb", "seed=0,1", "weighting=upgrad", "optimizer.lr=0.01,1e30")
    ran = scripts.run("-m", *SMALL, f"data.path={arrays}", *grid)
    assert ran.code == 1
    assert server.requests == []
    again = scripts.run("-m", *SMALL, f"data.path={arrays}", *grid, f"sweep={ran.folder.name}")
    assert again.code == 1
    # The line of docs/sweeps.md.
    line = "wandb sync $sweep/{,*/}wandb/offline-run-*"
    key = {"WANDB_BASE_URL": server.base, "WANDB_API_KEY": "0" * 40, "sweep": str(ran.folder)}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    synced = subprocess.run(["bash", "-c", line], env={**os.environ, **key, "PATH": path}, check=False)
    assert synced.returncode == 0
    begun = [each for each in server.upserts if each.get("groupName")]
    assert {each["groupName"] for each in begun} == {ran.folder.name}
    kinds = Counter(each["jobType"] for each in begun)
    assert kinds["sweep"] == 1  # after two invocations
    assert kinds["train"] >= 4
    (table,) = (
        json.loads(body) for name, body in server.uploads.items() if name.startswith("media/table/jobs")
    )
    assert table["columns"] == ["method", "optimizer.lr", "seed", "status", "a/loss", "b/loss", "run"]
    rows = sorted(table["data"])
    assert [row[1:4] for row in rows] == [
        ["0.01", 0, "completed"],
        ["0.01", 1, "completed"],
        ["1e+30", 0, "failed"],
        ["1e+30", 1, "failed"],
    ]
    for row in rows[:2]:
        metrics = results_of(ran.folder / row[-1])
        assert row[4:6] == [float(r["value"]) for r in metrics if r["split"] == "test" and r["task"] in "ab"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["weighting=weighted_sum,upgrd"], "did you mean 'upgrad'?"),
        (["weighting=weighted_sum", "+weighting.weights.lft=1,2"], "there is no task 'lft'"),
        (["task=[two_head/a],[]"], "leaves no task"),
        (["only=a,c"], "only=c: there is no such task"),
        (["seed=0,0"], "give each value once"),
        (["sweep=a/b"], "sweep=a/b cannot be the name of a folder"),
    ],
)
def test_invalid_value_is_rejected_before_any_job(
    scripts: Scripts, arrays: Path, arguments: list[str], message: str
) -> None:
    ran = scripts.run("-m", *SMALL, f"data.path={arrays}", *arguments)
    ran.assert_error(message)
    assert not scripts.logs.exists()


@pytest.mark.smoke
def test_one_sweep_runs_methods_and_their_baseline(scripts: Scripts, arrays: Path) -> None:
    grid = ("baseline=none,single_task", "weighting=imtl_l,uw", "weighting.learning_rate=0.1")
    ran = scripts.run("-m", *SMALL, f"data.path={arrays}", "weighting.heads=own", *grid)
    assert ran.code == 0, ran.err
    assert sorted(record["method"] for record in records_of(ran.folder)) == [
        "imtl_l",
        "single_task",
        "single_task",
        "uw",
    ]
    assert "…" not in ran.out  # the closing table is not truncated
    digests = {(row["task"], row["config_digest"]) for run in runs_of(ran.folder) for row in results_of(run)}
    assert len({digest for task, digest in digests if task == "a"}) == 1


def test_single_task_baseline_has_the_recipe_of_the_joint_run(
    scripts: Scripts, arrays: Path, tmp_path: Path
) -> None:
    small = (*SMALL, f"data.path={arrays}", "weighting=weighted_sum", "weighting.weights={a:0.3}")
    alone = scripts.run("-m", *small, "baseline=single_task", "seed=0,1")
    assert alone.code == 0, alone.err
    assert [row[:4] for row in table_of(alone.out)] == [
        ["single_task", task, seed, "completed"] for seed in ("0", "1") for task in ("a", "b")
    ]
    joint = scripts.run(*small)
    digests = {row["task"]: row["config_digest"] for row in results_of(joint.folder)}
    written = scripts.run(f"source={alone.folder}", f"output={tmp_path}/baselines", script="baselines")
    assert written.code == 0, written.err
    rows = [line.split(",") for line in (tmp_path / "baselines" / "npz.csv").read_text().splitlines()]
    kept = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert {(r["method"], r["task"], r["seed"], r["split"]) for r in kept} == {
        ("single_task", task, seed, split) for task in "ab" for seed in "01" for split in ("val", "test")
    }
    assert all(row["config_digest"] == digests[row["task"]] for row in kept)
    assert {row["variant"] for row in kept} == {""}
    assert {row["variant"] for row in results_of(joint.folder)} == {"weights={a:0.3}"}
    refused = scripts.run(*small, "baseline=single_task")
    assert refused.code == 1
    assert "baseline=single_task trains one task per run" in refused.err
