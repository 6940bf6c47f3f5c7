"""Measures the memory and CPU time of a step: ``python -m tests.unit.memory_costs`` prints a table."""

import time
from functools import partial

import torch

from multitask.benchmark.methods import Autojac, Make, Ours, WeightedSum
from multitask.benchmark.problems import make
from multitask.benchmark.timing import peak_mib

UPGRAD = {"_target_": "torchjd.aggregation.UPGradWeighting"}
METHODS: dict[str, Make] = {
    "weighted sum": WeightedSum,
    "`memory=rows`": partial(Ours, weighting=UPGRAD),
    "`memory=rows`, `engine=rows`": partial(Ours, weighting=UPGRAD, engine="rows"),
    "`memory=stream`": partial(Ours, weighting=UPGRAD, memory="stream"),
    "torchjd": partial(Autojac, chunk=1, optimized=True),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for trunk, tasks, rounds in (
        ("transformer", 8, 7),
        ("mlp", 8, 7),
        ("resnet18", 8, 3),
        ("resnet18", 40, 1),
    ):
        problem = make(trunk, tasks)
        methods = {name: make_method(problem.copy()) for name, make_method in METHODS.items()}
        memory = {name: peak_mib(method.step) for name, method in methods.items()}
        times = dict.fromkeys(methods, float("inf"))
        for _ in range(rounds):
            for name, method in methods.items():
                start = time.process_time()
                method.step()
                times[name] = min(times[name], time.process_time() - start)
        for name, mib in memory.items():
            ratios = [f"{values[name] / values['weighted sum']:.2f}" for values in (memory, times)]
            print(f"| {trunk}, m = {tasks} | {name} | {mib:.1f} | {ratios[0]} | {ratios[1]} |", flush=True)
