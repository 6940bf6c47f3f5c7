"""weighting.engine: each name trains alike, and what an engine cannot do is refused in one sentence."""

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchjd.aggregation import UPGradWeighting

from multitask.gradients.autogram import Autogram
from multitask.gradients.task_gradients import Engine
from multitask.run.engines import ENGINES, build_engine, check_engine
from multitask.run.errors import ConfigError
from multitask.weighting.adapter import adapt
from multitask.weighting.instance_wise import InstanceWise
from tests.conftest import Arrays, arrays, build, fit


def config(engine: str = "autogram", **changes: Any) -> Any:
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


@pytest.mark.parametrize("rows", ["task", "example"])
def test_every_exact_engine_takes_the_same_steps(rows: str) -> None:
    found = {}
    for name in ENGINES.keys() - {"features"}:
        weighting: Any = adapt(UPGradWeighting())
        weighting = InstanceWise(weighting) if rows == "example" else weighting
        module = build(weighting, engine=build_engine(config(name), weighting))
        fit(module, Arrays(arrays(count=6)), steps=3)
        found[name] = torch.cat([p.detach().flatten() for p in module.parameters()])
    for name, values in found.items():
        torch.testing.assert_close(values, found["rows"], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"engine": "autogramm"}, "did you mean 'autogram'?"),
        ({"trainer__accumulate_grad_batches": 2}, "set trainer.accumulate_grad_batches=1"),
        ({"trainer__devices": 2}, "set trainer.devices=1"),
        ({"trainer__num_nodes": 2}, "set trainer.devices=1"),
        ({"compile": True}, "set compile=false"),
        ({"engine": "layerwise", "trainer__devices": 2}, "weighting.engine=auto"),
    ],
)  # fmt: skip
def test_refused_by_the_config(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_engine(config(**changes), adapt(UPGradWeighting()))


def test_accumulation_is_for_the_engines_that_add_rows_up() -> None:
    for name in ("auto", "rows", "features"):
        engine = build_engine(config(name, trainer__accumulate_grad_batches=2), adapt(UPGradWeighting()))
        assert isinstance(engine, Engine)


class Bypassed(nn.Module):
    """A layer's parameters are used without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(torch.tanh(self.first(x)), self.second.weight)


def tied() -> nn.Module:
    trunk = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 4))
    trunk[2].weight = trunk[0].weight
    return trunk


def normalized() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))


@pytest.mark.parametrize(
    ("trunk", "by_example", "says"),
    [
        (Bypassed, False, "another Gramian than plain rows"),
        (tied, False, "fails on this trunk"),
        (normalized, True, "BatchNorm1d"),
        (lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True)), False, None),
        (normalized, False, None),
    ],
)
def test_trunks_are_tried(trunk: Any, by_example: bool, says: str | None) -> None:
    weighting: Any = adapt(UPGradWeighting())
    module = build(InstanceWise(weighting) if by_example else weighting, trunk=trunk())
    batch = arrays(count=8)
    before = {name: value.clone() for name, value in module.named_buffers()}
    if says is None:
        check_engine(config(), module, batch)
    else:
        with pytest.raises(ConfigError, match=f"(?s){says}.*take weighting.engine=auto"):
            check_engine(config(), module, batch)
    assert all(torch.equal(value, before[name]) for name, value in module.named_buffers())
    assert all(part.training for part in module.trunk.modules())


@pytest.mark.parametrize("engine", ["autogram", "features"])
def test_penalties_are_refused(engine: str) -> None:
    with pytest.raises(ConfigError, match=r"tasks\.small is a penalty"):
        build_engine(config(engine), adapt(UPGradWeighting()), ["small"])


def test_examples_are_kept_apart_where_they_have_rows() -> None:
    weighting: Any = adapt(UPGradWeighting())
    engine = build_engine(config(), InstanceWise(weighting))
    assert isinstance(engine, Autogram)
    assert engine._by_example
