"""Run records, result files and digests of the recipe."""

import csv
import json
import re
from copy import deepcopy
from pathlib import Path

from multitask.run.record import COLUMNS, RunRecord, recipe_digest, write_results
from multitask.run.resolvers import slug

CONFIG = {
    "paths": {"root": "/here"},
    "data": {"path": "/here/data/x.npz", "seed": 0},
    "trunk": {"width": 8},
    "optimizer": {"lr": 0.1},
    "trainer": {"max_epochs": 3, "devices": 1},
    "tasks": {"a": {"target": "a"}, "b": {"target": "b"}},
    "weighting": {"_target_": "x"},
    "seed": 0,
}


def changed(*path: str, value: object) -> dict:
    config = deepcopy(CONFIG)
    node = config
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return config


def test_digest_depends_on_the_recipe_alone() -> None:
    base = recipe_digest(CONFIG)
    assert recipe_digest(changed("seed", value=1)) == base
    assert recipe_digest(changed("weighting", value={})) == base
    assert recipe_digest(changed("trainer", "devices", value=4)) == base
    assert recipe_digest(changed("trainer", "max_epochs", value=4)) != base
    assert recipe_digest(changed("trunk", "width", value=9)) != base
    moved = changed("paths", "root", value="/there")
    moved["data"]["path"] = "/there/data/x.npz"
    assert recipe_digest(moved) == base


def test_single_task_digest_equals_that_of_the_joint_run() -> None:
    alone = changed("tasks", value={"a": {"target": "a"}})
    assert recipe_digest(alone, "a") == recipe_digest(CONFIG, "a")
    assert recipe_digest(CONFIG, "a") != recipe_digest(CONFIG, "b")


def test_record_and_results_are_written(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, {"seed": 1})
    record.update(status="running")
    record.update(status="completed")
    assert json.loads((tmp_path / "run.json").read_text()) == {"seed": 1, "status": "completed"}
    write_results(tmp_path / "results.csv", [{"method": "upgrad", "value": "0.1"}])
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert COLUMNS[:7] == ("method", "seed", "task", "metric", "split", "value", "higher_is_better")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results.csv", "run.json"]


def test_slugs_are_readable_distinct_and_safe() -> None:
    a, b = slug(["seed=0", "trunk.width=8", "weighting=upgrad"]), slug(["weighting=upgrad", "seed=1"])
    assert a.startswith("weighting_upgrad-seed_0-width_8-")
    assert a != b
    assert slug(["weighting=upgrad", "seed=0", "sweep=x", "trunk.width=8"], {"sweep"}) == a
    assert slug(["x=1", "y=2"]) != slug(["x=1,y=2"])
    assert re.fullmatch(r"[\w.+-]+", slug(["data.path='/some/where x'", "task=[a,b]", "+a={b:c}"]))
    assert len(slug(["key=" + "v" * 300])) < 100
