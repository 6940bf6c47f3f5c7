"""Programs in separate processes that do not repeat the imports.

A server process imports the heavy libraries and the package once. Each program is a fork of it that executes a file
from its first line, with its own arguments, environment, output, signals and exit code.
"""

import gc
import multiprocessing
import os
import pkgutil
import runpy
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import multitask

ROOT = Path(__file__).parents[1]
PRELOAD = [
    *("lightning", "torchmetrics", "torchjd", "hydra", "wandb", "rich.table", "quadprog"),
    *(
        name
        for _, name, _ in pkgutil.walk_packages(multitask.__path__, "multitask.")
        if name != "multitask.__main__"
    ),
    "tests.unit.weighting.promises",  # composes each weighting's config
]


def server() -> BaseContext:
    """Return a context that forks the server, or spawns processes on systems without fork."""
    # One thread, so that forks are safe and results are the same on every machine.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def into(output: Path) -> None:
    """Redirect this process's output to files, and handle signals and garbage as a new interpreter does."""
    for stream, suffix in ((sys.stdout, ".out"), (sys.stderr, ".err")):
        stream.flush()
        file = os.open(f"{output}{suffix}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(file, stream.fileno())
    gc.freeze()  # exclude the server's imports from every collection
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def execute(path: str, arguments: Sequence[str]) -> None:
    """Execute ``python <path> <arguments>``, including an error's traceback and the exit code."""
    sys.argv = [path, *arguments]
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
    if "joblib" in sys.modules:
        # Its workers stop when an interpreter exits, which a fork does not do.
        sys.modules["joblib.externals.loky"].get_reusable_executor().shutdown(kill_workers=True)
    sys.exit(code)  # type: ignore[arg-type]


class SecondProcess:
    """SecondProcess process of a run: a fork made in advance that waits for the command from Lightning."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("fork")
        receiving, self._sending = context.Pipe(duplex=False)
        self._process = context.Process(target=self._wait, args=(receiving,))
        self._process.start()
        receiving.close()
        self.pid = self._process.pid

    def _wait(self, receiving: Any) -> None:
        self._sending.close()
        with suppress(EOFError):  # closed without a command
            (_, path, *arguments), env, cwd = receiving.recv()
            os.environ.clear()
            os.environ.update(env)
            os.chdir(cwd)
            execute(path, arguments)

    def begin(self, command: Sequence[str], env: dict[str, str], cwd: str) -> None:
        """Start the command."""
        self._sending.send((command, env, cwd))
        self.close()

    def close(self) -> None:
        """End the process, unless it has received a command."""
        self._sending.close()

    def poll(self) -> int | None:
        """Return the exit code, or ``None`` while the process runs."""
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        """The exit code, or ``None`` while the process runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.returncode is None and self.pid is not None:
            os.kill(self.pid, number)


class SecondProcesses:
    """Replaces ``subprocess`` in Lightning's launcher of the second processes of a run or of a sweep's jobs."""

    def __init__(self, count: int) -> None:
        import subprocess

        from lightning.pytorch.strategies.launchers import subprocess_script

        self._popen = subprocess.Popen
        self._waiting = [SecondProcess() for _ in range(count)]
        subprocess_script.subprocess = self  # type: ignore[assignment]

    def Popen(self, command: Sequence[str], env: dict[str, str], cwd: str) -> Any:  # noqa: N802
        """Start the command in a waiting process, or in a new one when none is left."""
        if not self._waiting:
            return self._popen(command, env=env, cwd=cwd)
        second = self._waiting.pop(0)
        second.begin(command, env, cwd)
        return second

    def close(self) -> None:
        """End the processes that still wait."""
        for second in self._waiting:
            second.close()


def program(
    path: str,
    arguments: Sequence[str],
    output: Path,
    env: Mapping[str, str],
    before: Callable[[], None] | None = None,
) -> None:
    """Execute ``python <path> <arguments>`` with its output in files; ``before`` runs first."""
    into(output)
    os.environ.update(env)
    if before is not None:
        before()
    two = any(a.startswith(("trainer=ddp", "trainer=fsdp")) for a in arguments)
    seconds = SecondProcesses(2 if "-m" in arguments else 1) if two else None
    try:
        execute(path, arguments)
    finally:
        if seconds is not None:
            seconds.close()
