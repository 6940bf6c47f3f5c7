"""Times of things that take turns, and the memory of one of them."""

import gc
import json
import random
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Self, TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)

# One sample lasts at least so long, so that the clock and the interpreter's jitter do not count.
_SAMPLE_SECONDS = 0.005
# A setting so much slower than the best of its group after the first rounds is measured no further.
_HOPELESS = 1.25
_FIRST_ROUNDS = 2


@dataclass(frozen=True)
class Effort:
    """The length of a measurement.

    Args:
        seconds: For all together.
        rounds: How often each takes its turn at least.
    """

    seconds: float
    rounds: int


def interleaved(
    steps: Mapping[Key, Sequence[Callable[[], object]]], effort: Effort
) -> dict[Key, tuple[float, int]]:
    """Return for each key the median seconds of its fastest callable, and which that is.

    The callables take turns, round by round, so that whatever slows the machine slows them all alike. Each has
    run once before, so that caches and buffers are filled.

    Args:
        steps: Callables by key; several are settings of one thing.
        effort: How long to measure.
    """
    groups = list(steps.values())
    shuffle = random.Random(0).shuffle
    repeats = [[_repeats(step) for step in group] for group in groups]
    running = [list(range(len(group))) for group in groups]
    times: list[list[list[float]]] = [[[] for _ in group] for group in groups]
    until = time.perf_counter() + effort.seconds
    gc.collect()
    # Else each collection between two rounds would walk over all that was ever imported, and leave the caches cold.
    gc.freeze()
    gc.disable()
    try:
        done = 0
        while done < effort.rounds or time.perf_counter() < until:
            turns = [(g, s) for g, of_group in enumerate(running) for s in of_group]
            # In another order each time, since what runs before leaves caches and the allocator as it does.
            shuffle(turns)
            for g, s in turns:
                times[g][s].append(_seconds(groups[g][s], repeats[g][s]))
            done += 1
            if done == _FIRST_ROUNDS:
                running = [_promising(of_group) for of_group in times]
            gc.collect()
    finally:
        gc.enable()
        gc.unfreeze()
    found: dict[Key, tuple[float, int]] = {}
    for key, of_group, chosen in zip(steps, times, running, strict=True):
        medians = {s: median(of_group[s]) for s in chosen}
        best = min(medians, key=medians.__getitem__)
        found[key] = medians[best], best
    return found


def _promising(times: Sequence[Sequence[float]]) -> list[int]:
    best = min(map(min, times))
    return [s for s, of_setting in enumerate(times) if min(of_setting) <= _HOPELESS * best]


def _repeats(step: Callable[[], object]) -> int:
    return max(1, round(_SAMPLE_SECONDS / _seconds(step, 1)))


def _seconds(step: Callable[[], object], repeats: int) -> float:
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    synchronize()
    return (time.perf_counter() - start) / repeats


def synchronize() -> None:
    """Wait for the CUDA device, where there is one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class PeakMemory:
    """The most memory that torch's tensors hold in a ``with`` block, beyond what they hold at its start.

    The memory of the interpreter and of libraries below torch does not count.
    """

    mib: float
    """The result, in MiB."""

    def __enter__(self) -> Self:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            self._profile = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
            )
            self._profile.start()
        return self

    def __exit__(self, *error: object) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            self.mib = (torch.cuda.max_memory_allocated() - self._before) / 2**20
            return
        self._profile.stop()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            self._profile.export_chrome_trace(str(path))
            events = json.loads(path.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
        held, most = 0, 0
        for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
            held += event["args"]["Bytes"]
            most = max(most, held)
        self.mib = most / 2**20


def peak_mib(first_step: Callable[[], object]) -> float:
    """Return the memory of a step in MiB; buffers kept for the next one count if it is the first of its kind."""
    with PeakMemory() as memory:
        first_step()
    return memory.mib
