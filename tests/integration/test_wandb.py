"""W&B runs: offline without login, prompt or network by default, online by config, always finished."""

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
import wandb.util
import yaml

from tests.integration.small import Small, rows, stop
from tests.integration.wandb_server import WandbServer

pytestmark = pytest.mark.slow
KEY = "0123456789012345678901234567890123456789"


@pytest.fixture
def no_account(server: WandbServer, tmp_path: Path) -> dict[str, str]:
    """Environment of a user without a W&B account; the server receives every request to any host."""
    home = tmp_path / "home"
    home.mkdir()
    return {
        "HOME": str(home),
        "WANDB_BASE_URL": server.base,
        "HTTP_PROXY": server.base,
        "HTTPS_PROXY": server.base,
        "ALL_PROXY": server.base,
    }


class Logged:
    """An offline run, read back by W&B itself."""

    def __init__(self, folder: Path) -> None:
        (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
        command = [wandb.util.get_core_path(), "leet", "inspect", "--json", "--no-observability"]
        done = subprocess.run(
            [*command, "--run-file", str(path)], capture_output=True, text=True, check=True, cwd=folder
        )
        self._records = [json.loads(line) for line in done.stdout.splitlines()]
        (self.run,) = self.of("run")
        self.history = [each["item"] for each in self.of("history")]
        self.config: dict[str, Any] = {}
        for each in self.of("config"):
            self.config |= each["update"]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the records of one kind."""
        return [record[kind] for record in self._records if record["type"] == kind]

    @property
    def exit_code(self) -> int:
        """The exit code of the run."""
        (end,) = self.of("exit")
        return end.get("exit_code", 0)


def assert_same_curves(history: list[dict[str, Any]], folder: Path) -> None:
    curves = rows(folder / "metrics.csv", leave_out="-")
    assert len(history) == len(curves)
    for logged, row in zip(history, curves, strict=True):
        written = {key: float(value) for key, value in row.items() if value != ""}
        written["trainer/global_step"] = written.pop("step")
        read = {key: value for key, value in logged.items() if not key.startswith("_")}
        assert read.keys() == written.keys()
        assert all(math.isclose(read[key], written[key], rel_tol=1e-12) for key in read)


@pytest.mark.smoke
def test_runs_are_offline_by_default(small: Small, server: WandbServer, no_account: dict[str, str]) -> None:
    ran = small.run("logger=wandb", "weighting=imtl_l", env=no_account)
    assert server.requests == []
    assert "wandb" not in ran.out + ran.err
    assert ran.out.splitlines()[-1] == str(ran.folder)
    assert not list(Path(no_account["HOME"]).rglob("*netrc*"))
    logged = Logged(ran.folder)
    assert logged.exit_code == 0
    assert logged.run["project"] == "lightning-hydra-multitask"
    assert logged.run["display_name"] == "imtl_l-seed0"
    assert logged.run["job_type"] == "train"
    assert logged.run["tags"] == ["imtl_l", "npz"]
    assert_same_curves(logged.history, ran.folder)
    keys = {key for row in logged.history for key in row}
    assert {
        f"{kind}/{task}" for kind in ("train/loss", "val/loss", "test/loss", "weight") for task in "ab"
    } <= keys
    steps = {"name": "trainer/global_step"}, {"glob_name": "*", "step_metric": "trainer/global_step"}
    for metric, wanted in zip(logged.of("metric"), steps, strict=True):
        assert wanted.items() <= metric.items()
    config, record = logged.config, ran.record
    assert config["optimizer"] == {"_target_": "torch.optim.Adam", "lr": 0.02, "weight_decay": 0}
    assert config["weighting"]["_target_"] == record_config(ran.folder)["weighting"]["_target_"]
    assert config["tasks"].keys() == {"a", "b"}
    assert "weighting=imtl_l" in config["overrides"]
    assert config["git_commit"] == record["git_commit"]
    assert config["versions"] == record["versions"]


def record_config(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "config.yaml").read_text())


def test_environment_variables_do_not_change_the_mode(
    small: Small, server: WandbServer, no_account: dict[str, str]
) -> None:
    ran = small.run(
        "logger=wandb",
        "trainer.max_epochs=1",
        env={**no_account, "WANDB_MODE": "online", "WANDB_API_KEY": KEY},
    )
    assert server.requests == []
    assert Logged(ran.folder).exit_code == 0


def test_failed_run_finishes_with_exit_code_1(small: Small) -> None:
    ran = small.any("logger=wandb", "optimizer=sgd", "optimizer.lr=1e18")
    assert ran.code == 1
    logged = Logged(ran.folder)
    assert logged.exit_code == 1
    assert_same_curves(logged.history, ran.folder)


def test_interrupted_run_finishes_with_exit_code_1(small: Small) -> None:
    ran = small.stop("logger=wandb", *stop("on_train_batch_end", 12, "SIGTERM"))
    assert ran.code == 143
    logged = Logged(ran.folder)
    assert logged.exit_code == 1
    assert_same_curves(logged.history, ran.folder)


def test_each_sweep_job_is_one_run_in_the_group_of_the_sweep(small: Small) -> None:
    small.run("-m", "logger=wandb", "weighting=weighted_sum,upgrad", "seed=0,1", "trainer.max_epochs=1")
    (sweep,) = small.scripts.logs.glob("small/sweeps/*")
    jobs = [path.parent for path in sweep.glob("*/run.json")]
    runs = [Logged(job) for job in jobs]
    assert len(runs) == len({each.run["run_id"] for each in runs}) == 4
    assert {each.run["run_group"] for each in runs} == {sweep.name}
    assert {each.run["display_name"] for each in runs} == {
        f"{method}-seed{seed}" for method in ("weighted_sum", "upgrad") for seed in (0, 1)
    }
    for each, job in zip(runs, jobs, strict=True):
        assert each.exit_code == 0
        assert_same_curves(each.history, job)


@pytest.mark.smoke
def test_online_mode_uploads_config_and_curves(
    small: Small, server: WandbServer, no_account: dict[str, str]
) -> None:
    env = {"HOME": no_account["HOME"], "WANDB_BASE_URL": server.base, "WANDB_API_KEY": KEY}
    ran = small.run("logger=wandb", "logger.wandb.mode=online", env=env)
    assert ran.out.splitlines()[-1] == str(ran.folder)
    first = server.upserts[0]
    assert first["project"] == "lightning-hydra-multitask"
    assert first["displayName"] == "weighted_sum-seed0"
    assert first["jobType"] == "train"
    assert first["tags"] == ["weighted_sum", "npz"]
    config: dict[str, Any] = {}
    for upsert in server.upserts:
        config |= json.loads(upsert.get("config") or "{}")
    assert config["optimizer"]["value"]["lr"] == 0.02
    assert "logger.wandb.mode=online" in config["overrides"]["value"]
    assert_same_curves(server.history(), ran.folder)
    assert server.exit_codes == [0]


def test_online_without_api_key_names_wandb_login(
    small: Small, no_account: dict[str, str], server: WandbServer
) -> None:
    env = {"HOME": no_account["HOME"], "WANDB_BASE_URL": server.base}
    ran = small.any("logger=wandb", "logger.wandb.mode=online", env=env)
    ran.assert_error("run `wandb login`, or use offline mode.")


def test_disabled_mode_writes_no_files(small: Small) -> None:
    ran = small.run("logger=wandb", "logger.wandb.mode=disabled", "trainer.max_epochs=1")
    assert not (ran.folder / "wandb").exists()
