"""Programs in processes of their own, without paying for the imports each time.

A server process imports the heavy libraries and the package once; each program is a fork of it that executes the
program's file from its first line: with its own arguments, environment, output, signals and exit code.
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
    """Return the context whose processes are forks of the server, or new ones where the system has no forks."""
    # One thread: a fork is safe, and figures are the same on every machine.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def into(output: Path) -> None:
    """Write this process's output into files; take signals and collect garbage as a new interpreter does."""
    for stream, suffix in ((sys.stdout, ".out"), (sys.stderr, ".err")):
        stream.flush()
        file = os.open(f"{output}{suffix}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(file, stream.fileno())
    gc.freeze()  # what the server has imported is garbage to no program, and takes long to look through
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def execute(path: str, arguments: Sequence[str]) -> None:
    """Be ``python <path> <arguments>``: with a traceback of what is raised, and its exit code."""
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
        # Its processes end with an interpreter, which a fork has no end of.
        sys.modules["joblib.externals.loky"].get_reusable_executor().shutdown(kill_workers=True)
    sys.exit(code)  # type: ignore[arg-type]


class Second:
    """A run's second process: a fork of this one, made before, that waits for the command that Lightning gives."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("fork")
        receiving, self._sending = context.Pipe(duplex=False)
        self._process = context.Process(target=self._wait, args=(receiving,))
        self._process.start()
        receiving.close()
        self.pid = self._process.pid

    def _wait(self, receiving: Any) -> None:
        self._sending.close()
        with suppress(EOFError):  # no second process was wanted
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
        """Let the process end, unless the command has been started."""
        self._sending.close()

    def poll(self) -> int | None:
        """Return the exit code, if it has ended."""
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        """The exit code, if it has ended."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.returncode is None and self.pid is not None:
            os.kill(self.pid, number)


class Seconds:
    """Stands for ``subprocess`` where Lightning starts the second processes, of one run or of a sweep's jobs."""

    def __init__(self, count: int) -> None:
        import subprocess

        from lightning.pytorch.strategies.launchers import subprocess_script

        self._popen = subprocess.Popen
        self._waiting = [Second() for _ in range(count)]
        subprocess_script.subprocess = self  # type: ignore[assignment]

    def Popen(self, command: Sequence[str], env: dict[str, str], cwd: str) -> Any:  # noqa: N802
        """Start the command in a process that waits, or as Lightning would where none does any more."""
        if not self._waiting:
            return self._popen(command, env=env, cwd=cwd)
        second = self._waiting.pop(0)
        second.begin(command, env, cwd)
        return second

    def close(self) -> None:
        """Let the processes end that still wait."""
        for second in self._waiting:
            second.close()


def program(
    path: str,
    arguments: Sequence[str],
    output: Path,
    env: Mapping[str, str],
    before: Callable[[], None] | None = None,
) -> None:
    """Be ``python <path> <arguments>``; ``before`` runs first."""
    into(output)
    os.environ.update(env)
    if before is not None:
        before()
    two = any(a.startswith(("trainer=ddp", "trainer=fsdp")) for a in arguments)
    seconds = Seconds(2 if "-m" in arguments else 1) if two else None
    try:
        execute(path, arguments)
    finally:
        if seconds is not None:
            seconds.close()
