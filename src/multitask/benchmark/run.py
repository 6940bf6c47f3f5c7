"""From a config to measurements, tables and a picture."""

import csv
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console

from multitask.benchmark import machine, tables
from multitask.benchmark.cells import COLUMNS, Cell, measure
from multitask.benchmark.framework import measure_framework
from multitask.benchmark.methods import compiled_methods, instance_methods, step_methods, text_methods
from multitask.benchmark.plot import scaling
from multitask.benchmark.problems import TEXTS, TRUNKS, make
from multitask.benchmark.solver import CONFLICTS, measure_solver
from multitask.benchmark.timing import Effort
from multitask.errors import ConfigError, choices
from multitask.run.console import quiet
from multitask.run.resolvers import plain
from multitask.run.schema import BENCHMARK, check_values
from multitask.terminal import terminal

CASES = ("step", "instance_wise", "solver", "framework", "scaling", "compile", "text")
# Tasks of an instance-wise step.
_TASKS = 2
# Heads where each cell takes minutes, or seconds to compile.
_WITH_TEXT, _COMPILED = (2, 3, 8), (3, 8)
# What stays the same while the scaling cases change the rest; the methods whose curves are drawn.
_MIDDLE = {"tasks": 8, "batch": 128, "width": 512}
_CURVES = ("weighted_sum", "ours", "torchjd_autojac")


def _lists(quick: bool) -> dict[str, list[Any]]:
    """Return what is measured where the config says nothing."""
    if quick:
        return {
            "trunks": list(TRUNKS),
            "tasks": [3],
            "instances": [32],
            "solver_tasks": [2, 8, 40],
            "framework_tasks": [2],
            "scaling_tasks": [2, 8],
            "scaling_batch": [32, 128],
            "scaling_width": [128, 512],
        }
    return {
        "trunks": list(TRUNKS),
        "tasks": [2, 3, 8, 40],
        "instances": [32, 128, 256],
        "solver_tasks": [2, 8, 40, 128],
        "framework_tasks": [2, 8, 40],
        "scaling_tasks": [2, 4, 8, 16, 32, 64],
        "scaling_batch": [16, 32, 64, 128, 256, 512],
        "scaling_width": [64, 128, 256, 512, 1024],
    }


def run(config: DictConfig) -> None:
    """Measure what the config names; every cell is on disk as soon as it is known.

    Raises:
        ConfigError: If the config names something unknown.
    """
    console = terminal()
    if config.source is not None:
        cells, known = _read(Path(config.source))
        for grid in tables.grids(cells):
            tables.show(grid, console)
    else:
        _check(config)
        quiet()
        # It is one of TorchJD's settings that is slow for this reason, and the fastest counts.
        warnings.filterwarnings("ignore", message=".*not yet implemented the batching rule.*")
        torch.set_num_threads(config.threads)
        known = machine.facts(Path(config.paths.root), config.device) | {"quick": config.quick}
        _measure(config, known, console)
        cells, known = _read(Path(config.output))
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    text = tables.markdown(cells, known)
    (output / "table.md").write_text(text, encoding="utf-8")
    picture = scaling(cells)
    if picture is not None:
        (output / "scaling.png").write_bytes(picture)
    if config.page is not None:
        _write_page(Path(config.page), text)
    console.print(f"{machine.sentence(known)}\n{output}", highlight=False, soft_wrap=True)


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


def _measure(config: DictConfig, known: dict[str, Any], console: Console) -> None:
    output = Path(config.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output={output} cannot be made ({error.strerror}); choose another.") from error
    (output / "benchmark.json").write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    with (output / "benchmark.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for case in CASES:
            if case not in config.cases:
                continue
            of_case: list[Cell] = []
            for cell in _cells(case, config):
                of_case.append(cell)
                writer.writerow(cell.row())
                file.flush()
            for grid in tables.grids(of_case):
                tables.show(grid, console)


def _cells(case: str, config: DictConfig) -> Iterator[Cell]:
    lists = {key: config.get(key) or values for key, values in _lists(config.quick).items()}
    effort = Effort(
        seconds=config.seconds if config.seconds is not None else 0.3 if config.quick else 6.0,
        rounds=config.rounds or (3 if config.quick else 5),
    )
    where = {"device": config.device, "seed": config.seed}
    weighting = plain(config.weighting)
    if case == "step":
        for trunk in lists["trunks"]:
            for m in lists["tasks"]:
                yield from measure(case, make(trunk, m, **where), step_methods(weighting), effort)
    elif case == "compile":
        for trunk in lists["trunks"]:
            for m in config.tasks or _COMPILED:
                yield from measure(case, make(trunk, m, **where), compiled_methods(weighting), effort)
    elif case == "text":
        for trunk in TEXTS:
            for m in config.tasks or _WITH_TEXT:
                yield from measure(case, make(trunk, m, **where), text_methods(weighting), effort)
    elif case == "instance_wise":
        for n in lists["instances"]:
            problem = make("mlp", _TASKS, batch=n // _TASKS, **where)
            yield from measure(case, problem, instance_methods(weighting), effort, by_example=True)
    elif case == "solver":
        for conflicts in CONFLICTS:
            for m in lists["solver_tasks"]:
                yield from measure_solver(m, conflicts, weighting, effort, **where)
    elif case == "framework":
        for m in lists["framework_tasks"]:
            yield from measure_framework(m, effort, **where)
    else:
        yield from _scaling(lists, weighting, effort, where)


def _scaling(
    lists: dict[str, list[Any]], weighting: dict[str, Any], effort: Effort, where: dict[str, Any]
) -> Iterator[Cell]:
    methods = {name: of_name for name, of_name in step_methods(weighting).items() if name in _CURVES}
    for name in _MIDDLE:
        for value in lists[f"scaling_{name}"]:
            case = f"scaling_width_{value}" if name == "width" else f"scaling_{name}"
            problem = make("mlp", **{**_MIDDLE, name: value}, **where)
            yield from measure(case, problem, methods, effort)


def _read(folder: Path) -> tuple[list[Cell], dict[str, Any]]:
    try:
        known = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))
        with (folder / "benchmark.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"source={folder} has no benchmark.csv and benchmark.json of an earlier run ({error})."
        ) from error
    kinds: Sequence[Any] = [field.type for field in fields(Cell)]
    return [
        Cell(*(kind(row[name]) for name, kind in zip(COLUMNS, kinds, strict=True))) for row in rows
    ], known


def _write_page(page: Path, text: str) -> None:
    try:
        page.write_text(tables.into_page(page.read_text(encoding="utf-8"), text), encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"page={page} cannot take the table ({error}); give a file with the marks of docs/benchmark.md."
        ) from error
