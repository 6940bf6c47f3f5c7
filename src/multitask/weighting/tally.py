"""Counts of a solver's work, to be read by telemetry."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)


class Tally:
    """Counts the calls of a solver, its failures and its seconds.

    Args:
        name: The method's name, for the log.
    """

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
        """Count a failure, and log it: each of the first three, then each power of ten."""
        self.failures += 1
        if self.failures <= 3 or str(self.failures).strip("0") == "1":
            _log.warning(
                "%s: %s (failure %d of %d solves)",
                self.name,
                why,
                self.failures,
                max(self.solves, self.failures),
            )
