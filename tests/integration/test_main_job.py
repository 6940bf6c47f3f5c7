"""The default run, in a new interpreter and another folder, as on a fresh machine."""

from pathlib import Path

import pytest

from tests.integration.script_runner import QUICK, ROOT, Scripts, run_python
from tests.integration.small import rows

pytestmark = pytest.mark.slow


@pytest.mark.smoke
def test_output_and_files_of_the_default_run(tmp_path: Path) -> None:
    arguments = [argument for argument in QUICK if argument != "logger=csv"]
    home = tmp_path / "home"
    home.mkdir()
    ran = run_python(
        str(ROOT / "scripts" / "train.py"),
        *arguments,
        f"paths.logs={tmp_path}/logs",
        cwd=home,
        env={"HOME": str(home)},
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    lines = ran.stdout.splitlines()
    assert lines[0].strip() == "model"
    epochs = [line for line in lines if line.startswith("Epoch ")]
    assert [line.partition(":")[0] for line in epochs] == ["Epoch 1/3", "Epoch 2/3", "Epoch 3/3"]
    assert all("6/6" in line and "val/loss=" in line for line in epochs)
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("test set")) :]
    assert any("left" in line for line in table)
    assert any("right" in line for line in table)
    folder = Path(lines[-1])
    assert folder.parent == tmp_path / "logs" / "multi_mnist" / "runs"
    assert "\x1b" not in ran.stdout
    assert {path.name for path in folder.iterdir()} == {
        "checkpoints",
        "config.yaml",
        "metrics.csv",
        "overrides.yaml",
        "results.csv",
        "run.json",
        "wandb",
    }
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert not list(home.rglob("*netrc*"))
    assert not list(home.glob("[!.]*"))


def test_results_depend_on_the_seed_alone(scripts: Scripts) -> None:
    runs = [scripts.train(f"seed={seed}", "tags=[paper]", "print_config=true") for seed in (1, 1, 2)]
    first, again, other = (ran.folder for ran in runs)
    assert runs[0].record["tags"] == ["paper"]
    assert runs[0].out.splitlines()[:2] == ["config", "├── seed: 1"]
    assert rows(first / "results.csv", "run") == rows(again / "results.csv", "run")
    assert rows(first / "metrics.csv") == rows(again / "metrics.csv")
    assert rows(first / "metrics.csv") != rows(other / "metrics.csv")


def test_interruption_before_the_first_step_is_recorded(scripts: Scripts) -> None:
    """The signal arrives while data and model are constructed, or right after."""
    running = scripts.start(*QUICK, "trainer.max_epochs=1000")
    running.wait_for(lambda: any(scripts.logs.glob("*/runs/*/run.json")))
    running.signal(15)
    ran = running.wait()
    assert ran.code == 143
    assert ran.record["status"] == "interrupted"
    assert ran.err.startswith("error: stopped by SIGTERM; ")
    assert "Traceback" not in ran.err
