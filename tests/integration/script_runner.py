"""Runs the scripts as a user does, each in a fork of a server that has imported their dependencies."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.forks import ROOT, program, server

# Small runs without W&B.
QUICK = ["logger=csv", "trainer.limit_train_batches=6", "trainer.max_epochs=3", "data.batch_size=32"]


@dataclass
class Ran:
    """A finished script: its exit code and its output."""

    code: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        """The run's folder, which is the last printed line."""
        return Path(self.out.strip().splitlines()[-1])

    @property
    def record(self) -> dict[str, Any]:
        """The run's ``run.json``."""
        return json.loads((self.folder / "run.json").read_text())

    def assert_error(self, message: str) -> None:
        """Require exit code 1 and an error message without a traceback."""
        assert self.code == 1, self.err
        assert message in self.err, self.err
        assert "Traceback" not in self.err, self.err


class Running:
    """A script that has been started."""

    def __init__(self, process: BaseProcess, output: Path) -> None:
        self.process = process
        self._output = output

    def signal(self, number: int) -> None:
        """Send a signal to the run's process alone."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait until a condition holds, while the script runs."""
        until = time.monotonic() + seconds
        while not condition():
            assert self.process.is_alive(), self.wait().err
            assert time.monotonic() < until, "the condition never held"
            time.sleep(0.005)

    def wait(self, seconds: float = 120.0) -> Ran:
        """Wait for the end of the script and return its result."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise AssertionError(f"still running after {seconds} s")
        assert self.process.exitcode is not None
        out, err = (self._output.with_suffix(s).read_text(errors="replace") for s in (".out", ".err"))
        return Ran(self.process.exitcode, out, err)


class Scripts:
    """Starts scripts with ``paths.logs`` in the test's own folder."""

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
        given = [*arguments, f"paths.logs={self.logs}"]
        return self.start_file(f"scripts/{script}.py", *given, env=env, before=before)

    def start_file(
        self,
        path: str,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> Running:
        """Start a file of the repository."""
        self._count += 1
        output = self._folder / f"run-{self._count}"
        process = server().Process(
            target=program, args=(str(ROOT / path), arguments, output, dict(env or {}), before)
        )
        process.start()
        return Running(process, output)

    def run(self, *arguments: str, **keywords: Any) -> Ran:
        """Run a script and return its result."""
        return self.start(*arguments, **keywords).wait()

    def train(self, *arguments: str, **keywords: Any) -> Ran:
        """Run scripts/train.py on little data and require success."""
        ran = self.run(*QUICK, *arguments, **keywords)
        assert ran.code == 0, ran.err
        return ran


def import_from(folder: str) -> None:
    """Add a folder to the module search path; for ``before``."""
    sys.path.insert(0, folder)


def run_python(
    *arguments: str, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python with the arguments in a new interpreter."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
    )
