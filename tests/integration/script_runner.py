"""The scripts as a user runs them, without paying for the imports each time.

A server process imports the heavy libraries and the package once; each run is a fork of it that executes the
script's file from its first line, in a process of its own: with its own arguments, environment, output, signals
and exit code.
"""

import json
import multiprocessing
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import multitask

ROOT = Path(__file__).parents[2]
PRELOAD = [
    *("lightning", "torchmetrics", "torchjd", "hydra", "wandb", "rich.table", "quadprog"),
    *(
        name
        for _, name, _ in pkgutil.walk_packages(multitask.__path__, "multitask.")
        if name != "multitask.__main__"
    ),
]
# Small, and without W&B where it is not what is tested.
QUICK = ["logger=csv", "trainer.limit_train_batches=6", "trainer.max_epochs=3", "data.batch_size=32"]


@dataclass
class Ran:
    """What a run left."""

    code: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        """The run's folder: the last line that it printed."""
        return Path(self.out.strip().splitlines()[-1])

    @property
    def record(self) -> dict[str, Any]:
        """The run's ``run.json``."""
        return json.loads((self.folder / "run.json").read_text())


class Running:
    """A run that has been started."""

    def __init__(self, process: ForkServerProcess, output: Path) -> None:
        self.process = process
        self._output = output

    def signal(self, number: int) -> None:
        """Send a signal to the run's process alone."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def when(self, happened: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait until something happened, while the run is under way."""
        until = time.monotonic() + seconds
        while not happened():
            assert self.process.is_alive(), self.wait().err
            assert time.monotonic() < until, "it did not happen"
            time.sleep(0.005)

    def wait(self, seconds: float = 120.0) -> Ran:
        """Return what the run left, once it has ended."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise AssertionError(f"still running after {seconds} s")
        assert self.process.exitcode is not None
        out, err = (self._output.with_suffix(s).read_text(errors="replace") for s in (".out", ".err"))
        return Ran(self.process.exitcode, out, err)


class Scripts:
    """Starts scripts; each gets ``paths.logs`` in the test's own folder."""

    def __init__(self, folder: Path) -> None:
        self.logs = folder / "logs"
        self._folder = folder
        self._count = 0

    def start(
        self,
        *arguments: str,
        script: str = "train",
        env: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> Running:
        """Start a script and return at once; ``before`` runs first in its process."""
        self._count += 1
        output = self._folder / f"run-{self._count}"
        given = [*arguments, f"paths.logs={self.logs}"]
        process = multiprocessing.get_context("forkserver").Process(
            target=_script,
            args=(str(ROOT / "scripts" / f"{script}.py"), given, output, dict(env or {}), before),
        )
        process.start()
        return Running(process, output)

    def run(self, *arguments: str, **keywords: Any) -> Ran:
        """Run a script to its end."""
        return self.start(*arguments, **keywords).wait()

    def train(self, *arguments: str, **keywords: Any) -> Ran:
        """Run scripts/train.py on little data, and expect it to succeed."""
        ran = self.run(*QUICK, *arguments, **keywords)
        assert ran.code == 0, ran.err
        return ran


def _script(
    path: str, arguments: list[str], output: Path, env: Mapping[str, str], before: Callable[[], None] | None
) -> None:
    for stream, suffix in ((sys.stdout, ".out"), (sys.stderr, ".err")):
        stream.flush()
        os.dup2(os.open(output.with_suffix(suffix), os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream.fileno())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.environ.update(env)
    sys.argv = [path, *arguments]
    if before is not None:
        before()
    # As `python scripts/train.py` would: a traceback of what is raised, and its exit code.
    code: object = 0
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as stopped:
        code = stopped.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    sys.exit(code)  # type: ignore[arg-type]


def plainly(
    *arguments: str, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script by the interpreter, imports and all."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
    )
