"""Every chosen logger receives the curves of metrics.csv and the run's config."""

import json
import re
import zipfile
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from multitask.errors import ConfigError
from multitask.places import CONFIGS
from multitask.run.checks import check_loggers
from multitask.run.resolvers import register
from tests.integration.script_runner import Scripts
from tests.integration.small import rows

SMALL = [
    "trainer.limit_train_batches=4",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=2",
    "weighting=upgrad",
]
CURVE = "train/loss/left"
LOGGERS = sorted({path.stem for path in (CONFIGS / "logger").glob("*.yaml")} - {"many_loggers"})


def curve(folder: Path, key: str = CURVE) -> list[tuple[int, float]]:
    """Return a curve of metrics.csv as steps and values."""
    found = [(int(row["step"]), float(row[key])) for row in rows(folder / "metrics.csv") if row[key]]
    assert len(found) >= 2
    return found


@pytest.mark.slow
def test_several_loggers_receive_curves_config_and_tags(scripts: Scripts) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("comet_ml")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ran = scripts.run("logger=[wandb,tensorboard,mlflow,comet]", "tags=[first,try]", *SMALL)
    assert ran.code == 0, ran.err
    # Nothing is printed on success.
    assert "COMET" not in ran.err
    target = "multitask.weighting.upgrad.UPGrad"

    board = EventAccumulator(str(ran.folder / "tensorboard"))
    board.Reload()
    for key in (CURVE, "weight/right"):
        events = [(event.step, event.value) for event in board.Scalars(key)]
        assert events == [(step, pytest.approx(value)) for step, value in curve(ran.folder, key)]
    assert "val/mean/accuracy" in board.Tags()["scalars"]
    config = yaml.safe_load((ran.folder / "tensorboard" / "hparams.yaml").read_text())
    assert config["weighting"]["_target_"] == target
    assert "git_commit" in config

    client = mlflow.MlflowClient(f"sqlite:///{scripts.logs}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("multi_mnist").experiment_id])
    assert (run.info.run_name, run.info.status) == ("upgrad-seed0", "FINISHED")
    history = sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, CURVE))
    assert history == [(step, pytest.approx(value)) for step, value in curve(ran.folder)]
    assert run.data.params["weighting/_target_"] == target
    assert run.data.tags["run_folder"] == str(ran.folder)
    assert run.data.tags["tags"] == "upgrad, multi_mnist, first, try"

    (archive,) = ran.folder.glob("*.zip")
    with zipfile.ZipFile(archive) as files:
        payloads = [json.loads(line)["payload"] for line in files.read("messages.json").splitlines()]
    metrics = [payload["metric"] for payload in payloads if "metric" in payload]
    logged = {(m["step"], m["metricValue"]) for m in metrics if m["metricName"] == CURVE}
    assert sorted(logged) == [(step, pytest.approx(value)) for step, value in curve(ran.folder)]
    assert any(payload.get("param", {}).get("paramValue") == target for payload in payloads)
    assert list(ran.folder.glob("wandb/offline-run-*"))


@pytest.mark.slow
def test_mlflow_marks_a_failed_run(scripts: Scripts) -> None:
    mlflow = pytest.importorskip("mlflow")
    assert scripts.run("logger=mlflow", *SMALL, "optimizer.lr=1e30").code == 1
    client = mlflow.MlflowClient(f"sqlite:///{scripts.logs}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("multi_mnist").experiment_id])
    assert run.info.status == "FAILED"


@pytest.mark.parametrize("name", [name for name in LOGGERS if name not in ("csv", "wandb")])
def test_missing_logger_package_is_reported_with_its_install_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multitask.run.checks.find_spec", lambda package: package == "multitask" or None)
    install = "pip install aim" if name == "aim" else f'pip install -e ".[{name}]"'
    with pytest.raises(
        ConfigError, match=f"^logger={name} needs the package .*; install it with {re.escape(install)}"
    ):
        check_loggers(OmegaConf.create({"logger": {"csv": {"version": None}, name: {"_target_": "x"}}}))
    assert install in (CONFIGS / "logger" / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", LOGGERS)
def test_loggers_combine(name: str) -> None:
    register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(
            "train", overrides=[f"logger=[csv,wandb,{name}]"] if name != "wandb" else ["logger=[wandb]"]
        )
    assert set(config.logger) >= {"wandb"} | ({name} - {"csv"})


def test_many_loggers_combines_several() -> None:
    register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        one, several = (
            compose("train", overrides=[f"logger={chosen}"]).logger
            for chosen in ("many_loggers", "[wandb,tensorboard,mlflow]")
        )
    assert one == several
