import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)


class SolverStats:
    """Number of calls, number of failures and run time of a solver, whose name is for the log."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.solves = 0
        self.failures = 0
        self.seconds = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count one call and its time."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.solves += 1
            self.seconds += time.perf_counter() - start

    def failed(self, why: str) -> None:
        """Count a failure, and log the first three and then every power of ten."""
        self.failures += 1
        if self.failures <= 3 or str(self.failures).strip("0") == "1":
            solves = max(self.solves, self.failures)
            _log.warning("%s: %s (failure %d of %d solves)", self.name, why, self.failures, solves)
