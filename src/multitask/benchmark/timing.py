"""Interleaved timing, and peak memory."""

import gc
import json
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Self

import torch

# Minimum length of one sample, so that the clock's resolution and the interpreter's jitter do not matter.
_SAMPLE_SECONDS = 0.005
# After the first rounds, a setting slower than the fastest of its method by this factor is no longer measured.
_HOPELESS = 1.25
_FIRST_ROUNDS = 2


@dataclass(frozen=True)
class Effort:
    """The length of a measurement: at least ``seconds`` in total, and ``rounds`` samples of each step."""

    seconds: float
    rounds: int


def interleaved(
    steps: Mapping[str, Sequence[Callable[[], object]]], effort: Effort
) -> dict[str, tuple[float, int]]:
    """Return the median seconds of the fastest setting of each method, and its index.

    The steps take turns, so that all are slowed alike by other load on the machine. Each runs once beforehand to fill
    caches and buffers.
    """
    shuffle = random.Random(0).shuffle
    running = [(name, i) for name, settings in steps.items() for i in range(len(settings))]
    repeats = {(n, i): max(1, round(_SAMPLE_SECONDS / _seconds(steps[n][i], 1))) for n, i in running}
    samples: dict[tuple[str, int], list[float]] = {key: [] for key in running}
    end = time.perf_counter() + effort.seconds
    gc.collect()
    # Collections between rounds would otherwise traverse all imported objects and evict the caches.
    gc.freeze()
    gc.disable()
    try:
        done = 0
        while done < effort.rounds or time.perf_counter() < end:
            # The order changes, since each step leaves caches and the allocator in a different state.
            shuffle(running)
            for name, i in running:
                samples[name, i].append(_seconds(steps[name][i], repeats[name, i]))
            done += 1
            if done == _FIRST_ROUNDS:
                best = {name: min(min(samples[key]) for key in running if key[0] == name) for name in steps}
                running = [key for key in running if min(samples[key]) <= _HOPELESS * best[key[0]]]
            gc.collect()
    finally:
        gc.enable()
        gc.unfreeze()
    return {name: min((median(samples[key]), key[1]) for key in running if key[0] == name) for name in steps}


def _seconds(step: Callable[[], object], repeats: int) -> float:
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    synchronize()
    return (time.perf_counter() - start) / repeats


def synchronize() -> None:
    """Wait for the CUDA device, if CUDA is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class PeakMemory:
    """Context manager that measures the peak memory of torch's tensors, beyond that at its start.

    The memory of the interpreter and of libraries called by torch is not included.
    """

    mib: float
    """The peak in MiB."""

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
        allocations = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])
        self.mib = max(accumulate((e["args"]["Bytes"] for e in allocations), initial=0)) / 2**20


def peak_mib(step: Callable[[], object]) -> float:
    """Return the peak memory of a step in MiB, including buffers that a first step keeps for later ones."""
    with PeakMemory() as memory:
        step()
    return memory.mib
