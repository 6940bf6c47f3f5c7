"""Locks a run's folder for one process at a time, on this machine and on others that share the disk."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from multitask import system

NAME = ".claim"
# Seconds between the holder's heartbeats, and without one after which it counts as dead.
HEARTBEAT = 10.0
STALE_AFTER = 60.0


@dataclass(frozen=True)
class Holder:
    """The process that holds a folder: ``?`` and 0 while the file is being written."""

    host: str
    pid: int

    @property
    def local(self) -> bool:
        """Whether the process runs on this machine."""
        return self.host == socket.gethostname()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Hold a folder while the block runs, and yield whether it could be taken; the folder is created if necessary.

    The operating system's lock decides; it ends with the process. If locks do not reach another machine, the time of
    the holder's last heartbeat decides.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    with path.open("a+", encoding="utf-8") as file:
        if _holder(path, file, _lock(file, patience=0.5)) is not None:
            yield False
            return
        file.truncate(0)
        json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
        file.flush()
        over = threading.Event()
        beat = threading.Thread(target=_beat, args=(path, over), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            over.set()
            beat.join()
            # The file stays: if it were removed, two processes could lock two files of one name.
            file.truncate(0)


def holder(folder: Path) -> Holder | None:
    """Return the process that holds a folder, ``None`` if there is none."""
    path = folder / NAME
    if not path.is_file():
        return None
    with path.open("r+", encoding="utf-8") as file:
        return _holder(path, file, _lock(file, patience=0.1))


def _holder(path: Path, file: TextIO, locked: bool | None) -> Holder | None:
    """Return the process that holds the folder, given whether this process could lock the file."""
    file.seek(0)
    try:
        content = json.loads(file.read() or "null")
    except ValueError:
        content = {}  # read while it was being written
    if locked is False:
        return Holder(**(content or {"host": "?", "pid": 0}))
    if not content:
        return None
    found = Holder(**content)
    if found.local:
        # The lock was free: the holder has died.
        return found if locked is None and system.lives(found.pid) else None
    return found if _now(path.parent) - path.stat().st_mtime < STALE_AFTER else None


def _lock(file: TextIO, patience: float = 0.0) -> bool | None:
    """Return whether the lock was acquired within ``patience`` seconds; ``None`` if the file system has no locks.

    Closing the file releases the lock. A process that only checks holds it for a moment.
    """
    until = time.monotonic() + patience
    while True:
        locked = system.lock(file)
        if locked is not False or time.monotonic() >= until:
            return locked
        time.sleep(0.02)


def _now(folder: Path) -> float:
    """Return the disk's time, which is the same for all machines that share it."""
    probe = folder / f"{NAME}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _beat(path: Path, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT):
        path.touch()
