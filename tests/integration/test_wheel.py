"""The package installed from a wheel, in a separate environment."""

import csv
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from multitask.places import EMBEDDED_FILES
from tests.integration.script_runner import ROOT

pytestmark = pytest.mark.slow

SMALL = [
    "logger=csv",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=4",
    "trainer.enable_progress_bar=false",
]


class Environment:
    """A virtual environment with the wheel; dependencies come from the environment of the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        scripts = "Scripts" if os.name == "nt" else "bin"
        self.python = folder / scripts / "python"
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(self.python),
            "install",
            "-q",
            "--no-deps",
            "--no-index",
        ]
        subprocess.run([*pip, _wheel(folder / "wheel")], check=True, env=_environment())
        (site,) = folder.rglob("multitask/__init__.py")
        # A plain path entry: .pth files in it, as of editable installs, are not read.
        (site.parents[1] / "outer.pth").write_text(sysconfig.get_path("purelib"))
        self.package = site.parent
        self.command = str(folder / scripts / "multitask")

    def run(self, *command: str, cwd: Path) -> str:
        """Run a command, require success and return its output."""
        done = subprocess.run(command, cwd=cwd, env=_environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def multitask(self, *arguments: str, cwd: Path) -> str:
        """Run the command `multitask`."""
        return self.run(self.command, *arguments, cwd=cwd)


def _environment() -> dict[str, str]:
    """Return the environment without the sources, which contain the metadata of an editable install."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the files in git, since a build writes files beside its sources."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("needs a git checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/")):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "source" / name)
    (folder / "source/configs/local/default.yaml").write_text("# one's own: it stays out\n")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*pip, str(folder / "source")], check=True)
    (wheel,) = folder.glob("*.whl")
    shutil.rmtree(folder / "source")
    return wheel


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("fresh"))


def test_package_contains_all_configs_and_embedded_data(fresh: Environment) -> None:
    def names(folder: Path) -> set[str]:
        return {
            str(path.relative_to(folder)) for path in folder.rglob("*.yaml") if path.parent.name != "local"
        }

    assert names(fresh.package / "configs") == names(ROOT / "configs")
    assert not (fresh.package / "configs" / "local").exists()
    assert {path.name for path in (fresh.package / "embedded").iterdir()} == {"NOTICE.md", *EMBEDDED_FILES}


def test_train_eval_and_compare_use_the_current_folder(fresh: Environment, tmp_path: Path) -> None:
    run = Path(fresh.multitask("train", "weighting=upgrad", *SMALL, cwd=tmp_path).splitlines()[-1])
    assert run.parent == tmp_path / "logs" / "multi_mnist" / "runs"
    assert json.loads((run / "run.json").read_text())["status"] == "completed"
    again = fresh.multitask(
        "eval", f"ckpt_path={run / 'checkpoints' / 'best.ckpt'}", cwd=tmp_path
    ).splitlines()[-1]
    metrics = [
        {(row["split"], row["task"], row["metric"]): row["value"] for row in csv.DictReader(path.open())}
        for path in (run / "results.csv", Path(again) / "results.csv")
    ]
    assert metrics[0] == metrics[1] != {}
    fresh.multitask("compare", f"source={run}", cwd=tmp_path)
    assert (tmp_path / "logs" / "comparison" / "index.html").is_file()


def test_new_project_trains_and_passes_its_test(fresh: Environment, tmp_path: Path) -> None:
    printed = fresh.multitask("new", "my_project", cwd=tmp_path)
    project = tmp_path / "my_project"
    # The README has the printed commands.
    assert printed.splitlines() == ["cd my_project", "multitask train experiment=waves", "python -m pytest"]
    assert all(
        f"    {command}\n" in (project / "README.md").read_text() for command in printed.splitlines()[1:]
    )
    fresh.run(str(fresh.python), "-m", "pytest", "-q", cwd=project)
    small = ["experiment=waves", "data.examples=100", *SMALL]
    run = Path(fresh.multitask("train", "trainer=ddp_cpu", *small, cwd=project).splitlines()[-1])
    assert run.parent == project / "logs" / "waves" / "runs"
    assert json.loads((run / "run.json").read_text())["status"] == "completed"
