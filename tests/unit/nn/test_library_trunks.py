"""Trunks of other libraries by ``_target_``, without torchvision: MONAI's networks, and modules with tuples."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from multitask.nn.pick import Pick
from tests.conftest import Arrays, fit
from tests.unit.task.test_kinds import arrays, built

TRUNKS = {
    "monai_resnet": ["task=[kinds/scalar,kinds/binary]", "trunk._target_=monai.networks.nets.resnet10"],
    "monai_segresnet": [
        "task=[kinds/segmentation,kinds/dense]",
        "trunk.in_channels=1",
        "trunk.blocks_down=[1,1]",
        "trunk.blocks_up=[1]",
    ],
}


def parameters_after_step(folder: Path, trunk: str, *overrides: str) -> dict[str, Tensor]:
    given = [*TRUNKS[trunk], f"trunk={trunk}", "weighting=upgrad", "optimizer=sgd", "optimizer.lr=0.1"]
    module, batch = built(folder, arrays(), *given, *overrides)
    few = {
        key: values[:6].double() if values.is_floating_point() else values[:6]
        for key, values in batch.items()
    }
    fit(module.double(), Arrays(few))
    return dict(module.named_parameters())


@pytest.mark.parametrize("trunk", TRUNKS)
def test_step_of_a_library_network_is_exact(tmp_path: Path, trunk: str):
    """The layer-wise engine supports their in-place ReLUs."""
    plain = parameters_after_step(tmp_path, trunk, "weighting.engine=rows")
    for name, parameter in parameters_after_step(tmp_path, trunk).items():
        torch.testing.assert_close(parameter, plain[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.slow
def test_torchvision_is_not_needed():
    """Every module that trunks use can be imported without torchvision."""
    modules = "multitask.run.train, multitask.nn.resnet, multitask.nn.segnet, multitask.nn.tokens, monai.networks.nets"
    code = f"import sys; sys.modules['torchvision'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("key", [0, "hidden"])
def test_pick_returns_one_part(key: Any):
    class Named(nn.Module):
        def forward(self, inputs: Tensor) -> Any:
            return SimpleNamespace(hidden=inputs + 1)

    tokens = torch.randn(2, 5, 3)
    module = nn.GRU(3, 4, batch_first=True) if key == 0 else Named()
    expected = module(tokens)[0] if key == 0 else tokens + 1
    assert torch.equal(Pick(module, key)(tokens), expected)


@pytest.mark.parametrize("key", [2, "pooled"])
def test_pick_names_a_missing_key(key: Any):
    with pytest.raises(ValueError, match=rf"trunk\.key={key}: GRU gives a tuple without it"):
        Pick(nn.GRU(3, 4), key)(torch.randn(2, 5, 3))


def test_pick_accepts_mappings():
    class Mapped(nn.Module):
        def forward(self, inputs: Tensor) -> dict[str, Tensor]:
            return {"out": inputs}

    assert Pick(Mapped(), "out")(torch.ones(1)) == 1
