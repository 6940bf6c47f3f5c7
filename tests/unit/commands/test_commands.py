"""The command `multitask`: one subcommand per script, configs of the current folder, and new projects."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from multitask import commands
from multitask.commands import COMMANDS
from multitask.places import CONFIGS
from multitask.run.checkpoint import _folders_by_origin, _relocated
from multitask.run.record import recipe_digest

ROOT = Path(__file__).parents[3]


def multitask(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "multitask", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )


def test_commands_modules_and_scripts_correspond() -> None:
    modules = {path.stem for path in (ROOT / "src/multitask/commands").glob("*.py")} - {"__init__"}
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    assert set(COMMANDS) == modules == scripts | {"new"}


def test_help_lists_all_commands(tmp_path: Path) -> None:
    out = multitask("--help", cwd=tmp_path).stdout
    assert all(f"  {name} " in out for name in COMMANDS)
    assert out == multitask(cwd=tmp_path).stdout


def test_unknown_command_is_rejected(tmp_path: Path) -> None:
    done = multitask("tran", cwd=tmp_path)
    assert (done.returncode, done.stderr.splitlines()) == (
        1,
        [f"error: multitask tran is not a command; choose one of {', '.join(COMMANDS)}."],
    )


@pytest.mark.parametrize("given", [[], ["--config-dir=elsewhere"], ["--config-dir", "elsewhere"]])
def test_configs_of_the_current_folder_are_found(tmp_path: Path, given: list[str]) -> None:
    assert commands._own_configs(tmp_path, given) == []
    (tmp_path / "configs").mkdir()
    assert commands._own_configs(tmp_path, given) == (
        [] if given else [f"--config-dir={tmp_path / 'configs'}"]
    )


def test_configs_of_the_package_are_not_added_again() -> None:
    assert commands._own_configs(CONFIGS.parent, []) == []


def test_failed_command_prints_one_sentence_and_exits_with_1(tmp_path: Path) -> None:
    done = multitask("compare", cwd=tmp_path)
    assert done.returncode == 1
    assert (
        done.stderr == "error: source is missing; give a sweep folder, a run folder, a CSV file or a glob.\n"
    )


def test_help_of_a_command_shows_its_usage(tmp_path: Path) -> None:
    assert "multitask compare key=value" in multitask("compare", "--help", cwd=tmp_path).stdout


def test_new_project_has_the_given_name(tmp_path: Path) -> None:
    done = multitask("new", "somewhere/tides", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    project = tmp_path / "somewhere" / "tides"
    files = [path for path in project.rglob("*") if path.is_file()]
    assert project / "tides" / "data.py" in files
    assert project / ".gitignore" in files
    assert not [path for path in files if "my_project" in path.name + path.read_text(encoding="utf-8")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-project", "my-project cannot be the name of a Python package; choose one such as my_project."),
        ("class", "class cannot be the name of a Python package; choose one such as my_project."),
        ("torch", "torch is the name of another package or folder; choose one such as my_project."),
        ("tests", "tests is the name of another package or folder; choose one such as my_project."),
        ("there", "there exists already; choose another folder."),
        ("there/tides", "cannot write there/tides: Not a directory; choose a writable folder."),
    ],
)
def test_invalid_project_name_is_rejected(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "there").touch()
    done = multitask("new", name, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, f"error: {message}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def _config(paths: dict[str, str], file: str) -> dict[str, object]:
    return {"paths": paths, "data": {"path": file}, "trainer": {}, "trunk": {}, "tasks": {}}


def test_recipe_digest_does_not_depend_on_the_location_of_the_package() -> None:
    old = _config({"root": "/a/größe", "data": "/a/größe/data"}, "/a/größe/data/mnist_5k.npz")
    checkout = _config({"root": "/b", "data": "/b/data", "embedded": "/b/data"}, "/b/data/mnist_5k.npz")
    wheel = _config(
        {"root": "/c", "data": "/c/data", "embedded": "/py/multitask/embedded"},
        "/py/multitask/embedded/mnist_5k.npz",
    )
    assert recipe_digest(old) == recipe_digest(checkout) == recipe_digest(wheel)
    assert recipe_digest(wheel) != recipe_digest(_config(wheel["paths"], "/c/data/other.npz"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("paths", "file", "here"),
    [
        ({"root": "/b", "data": "/b/data"}, "/b/data/mnist_5k.npz", "${paths.embedded}/mnist_5k.npz"),
        ({"root": "/b", "data": "/b/data", "embedded": "/b/data"}, "/b/data/nyuv2", "${paths.data}/nyuv2"),
        (
            {"root": "/c", "data": "/d", "embedded": "/py/embedded"},
            "/py/embedded/abalone.csv.gz",
            "${paths.embedded}/abalone.csv.gz",
        ),
        ({"root": "/c", "data": "/d", "embedded": "/py"}, "/d/mnist_5k.npz", "${paths.data}/mnist_5k.npz"),
        ({"root": "/c", "data": "/d", "embedded": "/py"}, "/c/mine.npz", "${paths.root}/mine.npz"),
        ({"root": "/c", "data": "/d", "embedded": "/py"}, "/elsewhere/mine.npz", "/elsewhere/mine.npz"),
    ],
)
def test_data_path_of_a_checkpoint_is_relocated(paths: dict[str, str], file: str, here: str) -> None:
    assert _relocated({"path": file}, _folders_by_origin(paths)) == {"path": here}
