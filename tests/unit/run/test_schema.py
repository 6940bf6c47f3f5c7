"""Values of the wrong type are rejected in one sentence."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from multitask.errors import ConfigError
from multitask.gradients.engines import ENGINES
from multitask.run.schema import BENCHMARK, COMPARE, TRAIN, Schema, check_values


@pytest.mark.parametrize(
    ("schema", "key", "value", "message"),
    [
        (TRAIN, "weighting.engine", "row", "weighting.engine=row is not one of auto, rows, layerwise, features; "),
        (TRAIN, "weighting.heads", "both", "weighting.heads=both is not one of own, weighted; choices: own, weighted."),
        (TRAIN, "weighting.rows", "half", "weighting.rows=half is not one of task, example"),
        (TRAIN, "weighting.every", 0, "weighting.every=0 is not a whole number of at least 1."),
        (TRAIN, "trainer.max_steps", True, "trainer.max_steps=True is not a whole number of at least -1."),
        (TRAIN, "trainer.gradient_clip_val", float("nan"), "=nan is not a number of at least 0, or null."),
        (TRAIN, "trainer.gradient_clip_algorithm", "nrm", "or null; did you mean 'norm'? Choices: norm, value."),
        (TRAIN, "parameter_groups", {"trunk.*": 5}, "={'trunk.*': 5} is not settings by name in braces, or null."),
        (TRAIN, "callbacks.schedule.tasks", ["right"], "=['right'] is not settings by name in braces, or null."),
        (TRAIN, "callbacks.per_task.patience", 1.5, "patience=1.5 is not a whole number of at least 1, or null."),
        (TRAIN, "evaluation.splits", None, "evaluation.splits=null is not a list of names in brackets."),
        (COMPARE, "metrics", "accuracy", "metrics=accuracy is not a list of names in brackets, or null."),
        (COMPARE, "targets", 0.1, "targets=0.1 is not numbers by name in braces, or null."),
        (BENCHMARK, "tasks", [2, 1], "tasks=[2, 1] is not a list in brackets, each a whole number of at least 2,"),
    ],
)  # fmt: skip
def test_value_of_the_wrong_type_is_rejected(schema: Schema, key: str, value: Any, message: str) -> None:
    config = OmegaConf.create()
    OmegaConf.update(config, key, value)
    with pytest.raises(ConfigError) as caught:
        check_values(config, schema)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{key}=")


def test_engine_names_are_those_of_the_library() -> None:
    for engine in ENGINES:
        check_values(OmegaConf.create({"weighting": {"engine": engine}}), TRAIN)
    with pytest.raises(ConfigError, match=rf"is not one of {', '.join(ENGINES)};"):
        check_values(OmegaConf.create({"weighting": {"engine": "none"}}), TRAIN)
