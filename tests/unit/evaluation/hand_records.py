"""Writes run folders and tables with given values, in the format of training."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = ["method", "seed", "task", "metric", "split", "value", "higher_is_better"]


def write_table(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    rows = list(rows)
    names = COLUMNS + [
        name for name in dict.fromkeys(key for row in rows for key in row) if name not in COLUMNS
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return file


def write_run(
    folder: Path,
    method: str,
    seed: int,
    results: Mapping[str, float],
    *,
    higher: bool | Mapping[str, bool] = True,
    experiment: str = "toy",
    digest: str = "aaaa1111",
    selection: str = "val/mean max",
    status: str = "completed",
    variant: str = "",
    split: str = "test",
    curves: list[dict[str, Any]] | None = None,
    digests: Mapping[str, str] | None = None,
    **run_json: Any,
) -> Path:
    """A run folder; `results`: task/metric → value; `digests`: task → digest of its recipe, else `digest`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for key, value in results.items():
        task, metric = key.split("/")
        better = higher if isinstance(higher, bool) else higher[key]
        rows.append(
            dict(zip(COLUMNS, [method, seed, task, metric, split, value, better], strict=True))
            | {"experiment": experiment, "run": folder.name, "epoch": 4, "selection": selection}
            | {"config_digest": (digests or {}).get(task, digest), "variant": variant}
        )
    if rows:
        write_table(folder / "results.csv", rows)
    known = {
        "status": status,
        "seed": seed,
        "method": method,
        "experiment": experiment,
        "config_digest": digest,
    }
    known |= {
        "selection": selection,
        "variant": variant,
        "versions": {"torch": "2.13.0"},
        "git_commit": "c0ffee",
    }
    (folder / "run.json").write_text(json.dumps(known | run_json), encoding="utf-8")
    if curves is not None:
        with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(
                stream, list(dict.fromkeys(key for row in curves for key in row)), restval=""
            )
            writer.writeheader()
            writer.writerows(curves)
    return folder


def write_sweep(
    folder: Path, methods: Mapping[str, float], seeds: Iterable[int] = range(5), **options: Any
) -> Path:
    """Write a sweep on two tasks with single-task runs; `methods`: name → loss of accuracy against them."""
    noise = np.random.default_rng(0)
    for seed in seeds:
        for task, accuracy in (("left", 0.9), ("right", 0.88)):
            results = {f"{task}/accuracy": accuracy + 0.002 * noise.standard_normal()}
            write_run(folder / f"single_{task}_{seed}", "single_task", seed, results, **options)
        shared = 0.002 * noise.standard_normal()  # seeds affect all methods alike
        for place, (method, loss) in enumerate(methods.items()):
            results = {
                f"{task}/accuracy": accuracy - loss + shared + 0.001 * noise.standard_normal()
                for task, accuracy in (("left", 0.9), ("right", 0.88))
            }
            curves = [
                {"step": step, "epoch": step // 50, "train/loss/left": np.exp(-step / 60) + 0.05 * place}
                | {
                    "train/loss/right": np.exp(-step / 90)
                    + 0.05 * place
                    + 0.02 * noise.standard_normal() ** 2
                }
                | {"val/loss/left": np.exp(-step / 55) + 0.06, "val/loss/right": np.exp(-step / 80) + 0.08}
                | {"weight/left": 0.5 + 0.05 * place * np.sin(step / 40), "weight/right": 0.5 + 0.02 * seed}
                | {
                    "conflict/cosine/left__right": 0.3 * np.exp(-step / 50)
                    - 0.1
                    + 0.05 * noise.standard_normal()
                }
                for step in range(0, 300, 10)
            ]
            write_run(
                folder / f"{method}_{seed}", method, seed, results, curves=curves,
                step_seconds=0.004 * (1 + 0.3 * place), peak_memory_mib=120 + 10 * place, **options,
            )  # fmt: skip
    return folder
