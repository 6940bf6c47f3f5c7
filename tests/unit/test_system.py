"""The package imports and runs without modules and functions of particular operating systems."""

import ast
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from multitask import system
from multitask.sweep.claim import claimed, holder
from tests.integration.script_runner import QUICK

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
# Modules that exist only on Unix or only on Windows.
PLATFORM_MODULES = {
    "fcntl",
    "resource",
    "grp",
    "pwd",
    "termios",
    "tty",
    "pty",
    "posix",
    "msvcrt",
    "winreg",
    "nt",
    "_winapi",
}

# Neither Unix nor Windows: no such module for this package's own code, and no function of Unix.
BARE = f"""
import builtins, os, sys

absent, plain = {PLATFORM_MODULES!r}, builtins.__import__

def without(name, globals=None, locals=None, fromlist=(), level=0):
    if name in absent and (globals or {{}}).get("__name__", "").startswith(("multitask", "hydra_plugins")):
        raise ImportError(f"{{name}} is of another system")
    return plain(name, globals, locals, fromlist, level)

builtins.__import__ = without
for name in ("sched_getaffinity", "getuid", "getgid", "getpgid", "getloadavg"):
    delattr(os, name)
"""


def bare(code: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SRC), str(ROOT)])}
    command = [sys.executable, "-c", f"{BARE}\n{code}", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def modules() -> list[str]:
    files = [path for path in SRC.rglob("*.py") if "project" not in path.parts and path.name != "__main__.py"]
    names = [
        ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__") for path in files
    ]
    # Needs an extra.
    return sorted(name for name in names if name != "multitask.evaluation.dashboard")


@pytest.mark.slow
def test_every_module_imports_and_a_sweep_runs(tmp_path: Path) -> None:
    imports = f"import importlib\nfor name in {modules()}: importlib.import_module(name)"
    command = "from multitask.commands import main\nsys.argv[0] = 'multitask'\nmain()"
    one = [*QUICK, "trainer.max_epochs=1", f"paths.logs={tmp_path}"]
    done = bare(f"{imports}\n{command}", "train", "-m", "weighting=upgrad", *one, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("multi_mnist/sweeps/*/*/run.json")
    record = json.loads(run.read_text())
    assert record["status"] == "completed"
    assert "peak_memory_mib" not in record


def test_one_module_imports_platform_modules() -> None:
    found = set()
    for path in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {path.name for name in names if name.partition(".")[0] in PLATFORM_MODULES}
    assert found == {"system.py"}


def test_text_files_are_opened_with_an_encoding() -> None:
    """The default encoding of Windows is not UTF-8."""
    for path in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            modes = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            binary = any(isinstance(mode, str) and "b" in mode for mode in modes)
            text = node.func.attr in ("read_text", "write_text") or (
                node.func.attr == "open" and not binary and not isinstance(node.func.value, ast.Call)
            )
            named = {keyword.arg for keyword in node.keywords}
            owner = ast.unparse(node.func.value)
            if text and owner not in ("Image", "os", "webbrowser") and not owner.startswith(("Tap", "self")):
                assert "encoding" in named, f"{path.name}: {ast.unparse(node)}"


class Windows(ModuleType):
    """Stands in for ``msvcrt``, and keeps the locked bytes in a set."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        super().__init__("msvcrt")
        self.held: set[tuple[int, int]] = set()

    def locking(self, number: int, mode: int, count: int) -> None:
        assert (mode, count) == (self.LK_NBLCK, 1)
        byte = (os.fstat(number).st_ino, os.lseek(number, 0, os.SEEK_CUR))
        if byte in self.held:
            raise OSError(errno.EACCES, "Permission denied")
        self.held.add(byte)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Windows:
    msvcrt = Windows()
    monkeypatch.setattr(system, "fcntl", None)
    monkeypatch.setattr(system, "msvcrt", msvcrt)
    return msvcrt


def test_windows_locks_a_byte_past_the_end_of_the_file(windows: Windows, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("a+") as file, path.open("r+") as other:
        file.write("holder")
        file.flush()
        assert system.lock(file) is True
        assert system.lock(other) is False
        other.seek(0)
        assert other.read() == "holder"
        ((_, position),) = windows.held
        assert position > path.stat().st_size
    assert path.read_text() == "holder"


def test_a_folder_has_one_holder_on_windows(windows: Windows, tmp_path: Path) -> None:
    with claimed(tmp_path) as held, claimed(tmp_path) as again:
        assert (held, again) == (True, False)
        found = holder(tmp_path)
        assert found is not None
        assert found.pid == os.getpid()


def test_errors_of_a_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Failing(Windows):
        def locking(self, *arguments: Any) -> None:
            raise OSError(self.number, "")

    for number, expected in ((errno.ENOLCK, None), (errno.EIO, OSError)):
        failing = Failing()
        failing.number = number
        monkeypatch.setattr(system, "fcntl", None)
        monkeypatch.setattr(system, "msvcrt", failing)
        with (tmp_path / "file").open("a") as file:
            if expected is None:
                assert system.lock(file) is None
            else:
                with pytest.raises(expected):
                    system.lock(file)


def test_properties_of_the_system() -> None:
    assert 1 <= system.cores() <= (os.cpu_count() or 1)
    assert system.lives(os.getpid())
    assert system.same_group(os.getpid())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not system.lives(ended.pid)
    assert (system.peak_memory_mib() or 1.0) > 0.0
