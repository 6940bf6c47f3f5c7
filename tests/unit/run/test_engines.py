"""weighting.engine: exact engines train alike, and unsupported settings are rejected in one sentence."""

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torchjd.aggregation import UPGradWeighting

from multitask.errors import ConfigError
from multitask.gradients.engines import ENGINES, make_engine
from multitask.run.combiner import step_options
from multitask.task.penalty import Penalty
from multitask.weighting.adapter import adapt
from multitask.weighting.wrapper import InstanceWise
from tests.conftest import Arrays, arrays, build, fit


def config(engine: str, **changes: Any) -> Any:
    made = OmegaConf.create(
        {
            "method": "upgrad",
            "compile": False,
            "weighting": {"engine": engine},
            "trainer": {"accumulate_grad_batches": 1, "devices": 1, "num_nodes": 1},
        }
    )
    for key, value in changes.items():
        OmegaConf.update(made, key.replace("__", "."), value)
    return made


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("rows", ["task", "example"])
def test_every_exact_engine_takes_the_same_steps(rows: str, norm: bool) -> None:
    """Also with batch normalization, where engines fall back to rows."""
    found = {}
    for name in ENGINES.keys() - {"features"}:
        weighting: Any = adapt(UPGradWeighting())
        weighting = InstanceWise(weighting) if rows == "example" else weighting
        torch.manual_seed(0)
        middle = [nn.BatchNorm1d(6, affine=False)] if norm else []
        trunk = nn.Sequential(nn.Linear(5, 6), *middle, nn.Tanh(), nn.Linear(6, 4), nn.Tanh())
        module = build(weighting, trunk=trunk, engine=make_engine(name))
        fit(module, Arrays(arrays(count=6)), steps=3)
        found[name] = torch.cat([p.detach().flatten() for p in module.parameters()])
    for name, values in found.items():
        torch.testing.assert_close(values, found["rows"], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize(
    ("engine", "changes", "message"),
    [
        ("layerwise", {"trainer__accumulate_grad_batches": 2}, "set trainer.accumulate_grad_batches=1"),
        ("layerwise", {"trainer__devices": 2}, "set trainer.devices=1"),
        ("layerwise", {"trainer__num_nodes": 2}, "weighting.engine=auto"),
        ("layerwise", {"compile": True}, "set compile=false"),
    ],
)  # fmt: skip
def test_unsupported_setting_is_rejected(engine: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        step_options(config(engine, **changes), adapt(UPGradWeighting()), {})


@pytest.mark.parametrize("engine", ["auto", "rows", "features"])
def test_engines_that_support_accumulation(engine: str) -> None:
    options = step_options(config(engine, trainer__accumulate_grad_batches=2), adapt(UPGradWeighting()), {})
    assert options["engine"] == engine


def test_features_engine_rejects_penalties() -> None:
    with pytest.raises(ConfigError, match=r"tasks\.small is a penalty"):
        step_options(config("features"), adapt(UPGradWeighting()), {"small": Penalty()})
