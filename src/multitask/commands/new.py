"""Create a project of your own: multitask new my_project."""

import argparse
import keyword
import sys
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path

_NAME = "my_project"
# The folders of a project beside its package.
_FOLDERS = ("configs", "data", "logs", "tests")


def command() -> None:
    """Create the project that ``sys.argv`` names."""
    parser = argparse.ArgumentParser("multitask new", description="Create a project of your own.")
    parser.add_argument("folder", type=Path, help="the folder to create; the Python package gets its name")
    folder: Path = parser.parse_args().folder
    name = folder.name
    if not name.isidentifier() or keyword.iskeyword(name):
        sys.exit(f"error: {name} cannot be the name of a Python package; choose one such as {_NAME}.")
    if folder.exists():
        sys.exit(f"error: {folder} exists already; choose another folder.")
    if name in _FOLDERS or find_spec(name) is not None:
        sys.exit(f"error: {name} is the name of another package or folder; choose one such as {_NAME}.")
    try:
        write(files("multitask.commands").joinpath("project"), folder, name)
    except OSError as error:
        sys.exit(f"error: cannot write {error.filename}: {error.strerror}; choose a writable folder.")
    print(f"cd {folder}\nmultitask train experiment=waves\npython -m pytest")


def write(source: Traversable, target: Path, name: str) -> None:
    """Write the project's files.

    The name replaces ``my_project`` in file names and contents.
    """
    target.mkdir(parents=True)
    for entry in source.iterdir():
        if entry.name == "__pycache__":
            continue
        # Stored as gitignore, since .gitignore would apply to this repository.
        to = target / entry.name.replace(_NAME, name).replace("gitignore", ".gitignore")
        if entry.is_dir():
            write(entry, to, name)
        else:
            to.write_text(entry.read_text(encoding="utf-8").replace(_NAME, name), encoding="utf-8")


if __name__ == "__main__":
    command()
