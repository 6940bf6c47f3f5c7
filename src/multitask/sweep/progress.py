"""Prints a sweep's progress, one line per change."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from multitask.sweep.plan import Job
from multitask.sweep.state import COMPLETED, FAILED, RUNNING, status_of

# Seconds between checks of the folders.
PAUSE = 1.0


@contextmanager
def printed_progress(name: str, jobs: Sequence[Job], total: int) -> Iterator[None]:
    """Print the progress of a sweep's jobs, also of other processes, while the block runs; jobs can be added."""
    over = threading.Event()
    thread = threading.Thread(target=_follow, args=(name, jobs, total, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _follow(name: str, jobs: Sequence[Job], total: int, over: threading.Event) -> None:
    start = time.monotonic()
    ended: dict[Job, str] = {}
    first: int | None = None
    last = None
    while True:
        ends = over.is_set()  # before the folders are read, so that the last line counts every job
        statuses = {job: ended.get(job) or status_of(job.folder) for job in list(jobs)}
        ended |= {job: status for job, status in statuses.items() if status == COMPLETED}
        counts = Counter(statuses.values())
        done = counts[COMPLETED] + counts[FAILED]
        first = done if first is None else first
        # Between two jobs of one process, none runs for a moment.
        between = not counts[RUNNING] and done < total and not ends
        if counts != last and not between:
            print(line(name, counts, total, time.monotonic() - start, done - first), flush=True)
            last = counts
        if ends:
            return
        over.wait(PAUSE)


def line(name: str, counts: Counter[str], total: int, seconds: float, done_now: int) -> str:
    """Return a line of progress; ``done_now`` jobs have ended in the ``seconds`` since this command started."""
    left = total - counts[COMPLETED] - counts[FAILED]
    text = f"sweep {name}: {counts[COMPLETED]} of {total} done, {counts[RUNNING]} running, {counts[FAILED]} failed"
    if left and done_now:
        text += f", about {_duration(seconds / done_now * left)} left"
    return text


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
