"""Forwards a sweep's SIGINT and SIGTERM to its jobs' processes, which save their state."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from multitask.sweep.claim import holder
from multitask.sweep.plan import Job
from multitask.system import same_group

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether a sweep with these jobs has received a signal."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._number: int | None = None

    def check(self) -> None:
        """Exit with 128 + the signal's number if a signal was received; called once the jobs have stopped."""
        if self._number is not None:
            raise SystemExit(128 + self._number)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: the first waits for the jobs of other processes, the second exits at once."""
        again, self._number = self._number is not None, number
        if again or not self._forward(number):
            self.check()

    def _forward(self, number: int) -> bool:
        """Send SIGTERM to the jobs' processes on this machine, and return whether there are any."""
        found = {holder(job.folder) for job in self._jobs}
        others = {h.pid for h in found if h is not None and h.local and h.pid not in (0, os.getpid())}
        for pid in others:
            # Ctrl-C already reaches the whole process group, and a second signal would stop it at once.
            if number == signal.SIGTERM or not same_group(pid):
                os.kill(pid, signal.SIGTERM)
        return bool(others)


@contextmanager
def forwarded_signals(jobs: Sequence[Job]) -> Iterator[Stop]:
    """Handle signals while the block runs; more jobs can be added to the list."""
    stop = Stop(jobs)
    before: dict[int, Any] = {number: signal.signal(number, stop.note) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
