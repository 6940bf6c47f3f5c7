"""Reserved names of tasks and metrics are rejected, and every other name works."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchmetrics import MeanAbsoluteError, MetricCollection

from multitask.callbacks.conflict import Conflict
from multitask.errors import ConfigError
from multitask.lightning.metric_keys import to_keys
from multitask.module import MultiTaskModule
from multitask.run.names import OF_COLLECTIONS, OF_MODULES, check_names
from multitask.run.weights import _is_model
from multitask.task.task import Task
from multitask.weighting.upgrad import UPGrad

TASKS = [
    "mean",
    "combined",
    "loss",
    "type",
    "forward",
    "half",
    "to",
    "keys",
    "a.b",
    "a/b",
    "class",
    "_modules",
    "trunk",
]
METRICS = [
    "loss",
    "delta_m",
    "delta_p",
    "type",
    "compute",
    "prefix",
    "update",
    "items",
    "a.b",
    "",
    "__class__",
]


def tasks(*names: str, metrics: tuple[str, ...] = ("mae",)) -> dict[str, dict[str, dict[str, int]]]:
    return {name: {"metrics": dict.fromkeys(metrics, 0)} for name in names}


@pytest.mark.parametrize("name", TASKS)
def test_reserved_task_name_is_rejected_in_one_sentence(name: str) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"^tasks\.{re.escape(name)} cannot be the name of a task: .*; rename it .*_task\.$",
    ):
        check_names(tasks("left", name))


@pytest.mark.parametrize("name", METRICS)
def test_reserved_metric_name_is_rejected_in_one_sentence(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^tasks\.left\.metrics\.{re.escape(name)} cannot be the name of a metric: .*\.$"
    ):
        check_names(tasks("left", metrics=("mae", name)))


def attributes(of: object) -> set[str]:
    """Return the public attributes defined by torch and torchmetrics; other libraries may add some on import."""
    public = {name: getattr(of, name) for name in dir(of) if not name.startswith("_")}
    return {
        name for name, value in public.items() if getattr(value, "__module__", "torch").startswith("torch")
    }


def test_reserved_names_cover_the_installed_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "added_by_another", lambda self: None, raising=False)
    assert attributes(nn.ModuleDict()) <= OF_MODULES
    assert attributes(MetricCollection({})) <= OF_COLLECTIONS


WORDS = (
    sorted(OF_COLLECTIONS)
    + TASKS
    + METRICS
    + ["left", "right", "train", "weight", "trunk", "epoch", "step", "head"]
)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.sampled_from(WORDS) | st.from_regex(r"[a-z_]{1,6}", fullmatch=True),
        min_size=1,
        max_size=4,
        unique=True,
    ),
    st.lists(st.sampled_from(WORDS) | st.text("ab_/.@-1", max_size=4), max_size=4, unique=True),
)
def test_accepted_names_have_distinct_keys(names: list[str], metrics: list[str]) -> None:
    try:
        check_names(tasks(*names, metrics=tuple(metrics)))
    except ConfigError:
        return
    made = {
        name: Task(nn.Identity(), nn.MSELoss(), {m: MeanAbsoluteError() for m in metrics}) for name in names
    }
    assert list(nn.ModuleDict(made)) == names
    values = {
        (name, metric): torch.tensor(10.0 * i + j)
        for i, name in enumerate(names)
        for j, metric in enumerate(["loss", *metrics])
    }
    found = to_keys(values, "val")
    assert len(found) == len(values) + len(metrics) + 1  # each value, and each metric's mean over tasks
    for (name, metric), value in values.items():
        assert found[f"val/loss/{name}" if metric == "loss" else f"val/{name}/{metric}"] == value


def test_pairs_of_tasks_with_the_same_key_are_rejected() -> None:
    names = ("a", "b__c", "a__b", "c")
    made = {name: Task(nn.Identity(), nn.MSELoss()) for name in names}
    module = MultiTaskModule(nn.Identity(), made, weighting=UPGrad())
    with pytest.raises(
        ValueError, match="conflict/cosine/a__b__c would mean a and b__c as well as a__b and c; rename"
    ):
        Conflict().check(module)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("trunk.0.weight", True),
        ("tasks.head.head.weight", True),
        ("tasks.head.loss.weight", False),
        ("tasks.left.metrics.head.total", False),
        ("weighting.head.logits", False),
    ],
)
def test_parameters_of_tasks_named_head_are_classified_correctly(name: str, given: bool) -> None:
    module = MultiTaskModule(nn.Identity(), {})
    assert _is_model(module, name) is given  # whether init_from loads it from a checkpoint
