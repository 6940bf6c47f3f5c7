"""Runs the measurements that a config selects, and writes results, tables and plot."""

import csv
import json
import platform
import warnings
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console

from multitask.benchmark import tables
from multitask.benchmark.cells import COLUMNS, Cell, measure
from multitask.benchmark.framework import measure_framework
from multitask.benchmark.methods import (
    MICRO_BATCHES,
    accumulated_methods,
    compiled_methods,
    instance_methods,
    step_methods,
    text_methods,
)
from multitask.benchmark.plot import scaling
from multitask.benchmark.problems import TEXTS, TRUNKS, make
from multitask.benchmark.solver import CONFLICTS, measure_solver
from multitask.benchmark.timing import Effort
from multitask.errors import ConfigError, choices
from multitask.run.console import quiet
from multitask.run.record import git_commit, package_versions
from multitask.run.resolvers import plain
from multitask.run.schema import BENCHMARK, check_values
from multitask.system import cores
from multitask.terminal import terminal

_METHODS = {"step": step_methods, "compile": compiled_methods, "text": text_methods}
CASES = ("step", "instance_wise", "solver", "framework", "scaling", "accumulate", "compile", "text")
_INSTANCE_TASKS = 2
# Batch normalization computes another function of micro-batches than of the whole batch.
_ACCUMULATED = ("mlp", "lenet", "transformer")
# The scaling cases change one of these values; only some methods are plotted.
_SCALED = {"tasks": 8, "batch": 128, "width": 512}
_PLOTTED = ("weighted_sum", "ours", "torchjd_autojac")
_FULL: dict[str, Sequence[Any]] = {
    "trunks": list(TRUNKS),
    "tasks": [2, 3, 8, 40],
    "text_tasks": [2, 3, 8],
    "compile_tasks": [3, 8],
    "accumulate_tasks": [8],
    "instances": [32, 128, 256],
    "solver_tasks": [2, 8, 40, 128],
    "framework_tasks": [2, 8, 40],
    "scaling_tasks": [2, 4, 8, 16, 32, 64],
    "scaling_batch": [16, 32, 64, 128, 256, 512],
    "scaling_width": [64, 128, 256, 512, 1024],
}
_QUICK = _FULL | {
    "tasks": [3],
    "instances": [32],
    "solver_tasks": [2, 8, 40],
    "framework_tasks": [2],
    "scaling_tasks": [2, 8],
    "scaling_batch": [32, 128],
    "scaling_width": [128, 512],
}


def run(config: DictConfig) -> None:
    """Measure what the config selects, and write results, tables and plot.

    Each result is written to the CSV file as soon as it is measured.

    Raises:
        ConfigError: If the config names something unknown.
    """
    console = terminal()
    if config.source is not None:
        cells, conditions = _read(Path(config.source))
        for grid in tables.grids(cells):
            tables.show(grid, console)
    else:
        _check(config)
        quiet()
        # The warning is about one of TorchJD's settings, which is slow for this reason; the fastest counts.
        warnings.filterwarnings("ignore", message=".*not yet implemented the batching rule.*")
        torch.set_num_threads(config.threads)
        _measure(config, console)
        cells, conditions = _read(Path(config.output))
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    text = tables.markdown(cells, conditions)
    (output / "table.md").write_text(text, encoding="utf-8")
    plot = scaling(cells)
    if plot is not None:
        (output / "scaling.png").write_bytes(plot)
    if config.page is not None:
        page = Path(config.page)
        try:
            page.write_text(tables.into_page(page.read_text(encoding="utf-8"), text), encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"page={page} cannot take the table ({error}); give a file with the marks of docs/benchmark.md."
            ) from error
    console.print(f"{tables.sentence(conditions)}\n{output}", highlight=False, soft_wrap=True)


def _check(config: DictConfig) -> None:
    check_values(config, BENCHMARK)
    for key, known in (("cases", CASES), ("trunks", TRUNKS)):
        for name in config[key] or ():
            if name not in known:
                raise ConfigError(f"{key} names {name}, which is unknown; {choices(name, known)}")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda needs a GPU and torch finds none here; choose device=cpu.")
    if "UPGrad" not in config.weighting._target_:
        raise ConfigError(
            "the benchmark compares ways to compute UPGrad's step with one another; leave weighting=upgrad."
        )


def _measure(config: DictConfig, console: Console) -> None:
    output = Path(config.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output={output} cannot be made ({error.strerror}); choose another.") from error
    conditions = _conditions(Path(config.paths.root), config.device) | {"quick": config.quick}
    (output / "benchmark.json").write_text(json.dumps(conditions, indent=2) + "\n", encoding="utf-8")
    with (output / "benchmark.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for case in CASES:
            if case not in config.cases:
                continue
            cells: list[Cell] = []
            for cell in _cells(case, config):
                cells.append(cell)
                writer.writerow(cell.row())
                file.flush()
            for grid in tables.grids(cells):
                tables.show(grid, console)


def _conditions(root: Path, device: str) -> dict[str, Any]:
    """Return the conditions of a measurement."""
    return {
        "processor": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchjd": package_versions().get("torchjd", ""),
        "date": date.today().isoformat(),
        "commit": git_commit(root),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cells(case: str, config: DictConfig) -> Iterator[Cell]:
    values = {k: config.get(k) or default for k, default in (_QUICK if config.quick else _FULL).items()}
    effort = Effort(
        seconds=config.seconds if config.seconds is not None else 0.3 if config.quick else 6.0,
        rounds=config.rounds or (3 if config.quick else 5),
    )
    weighting = plain(config.weighting)
    options = {"device": config.device, "seed": config.seed}
    if case in _METHODS:
        tasks = config.tasks or values.get(f"{case}_tasks", values["tasks"])
        for trunk in TEXTS if case == "text" else values["trunks"]:
            for m in tasks:
                yield from measure(case, make(trunk, m, **options), _METHODS[case](weighting), effort)
    elif case == "accumulate":
        for trunk in (trunk for trunk in _ACCUMULATED if trunk in values["trunks"]):
            for m in config.tasks or values["accumulate_tasks"]:
                for batch in (TRUNKS[trunk].batch, MICRO_BATCHES * TRUNKS[trunk].batch):
                    problem = make(trunk, m, batch=batch, **options)
                    yield from measure(case, problem, accumulated_methods(weighting), effort)
    elif case == "instance_wise":
        for n in values["instances"]:
            problem = make("mlp", _INSTANCE_TASKS, batch=n // _INSTANCE_TASKS, **options)
            yield from measure(case, problem, instance_methods(weighting), effort, by_example=True)
    elif case == "solver":
        for conflicts in CONFLICTS:
            for m in values["solver_tasks"]:
                yield from measure_solver(m, conflicts, weighting, effort, **options)
    elif case == "framework":
        for m in values["framework_tasks"]:
            yield from measure_framework(m, effort, **options)
    else:
        plotted = {name: made for name, made in step_methods(weighting).items() if name in _PLOTTED}
        for name in _SCALED:
            for value in values[f"scaling_{name}"]:
                scaled = f"scaling_width_{value}" if name == "width" else f"scaling_{name}"
                problem = make("mlp", **{**_SCALED, name: value}, **options)
                yield from measure(scaled, problem, plotted, effort)


def _read(folder: Path) -> tuple[list[Cell], dict[str, Any]]:
    try:
        conditions = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))
        with (folder / "benchmark.csv").open(newline="", encoding="utf-8") as file:
            return [Cell.read(row) for row in csv.DictReader(file)], conditions
    except (KeyError, OSError, ValueError) as error:
        raise ConfigError(
            f"source={folder} has no benchmark.csv and benchmark.json of an earlier run ({error})."
        ) from error
