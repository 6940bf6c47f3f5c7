"""Micro-batches equal one batch, and batches give the loss of a split, for losses with any denominator."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchjd.aggregation import UPGradWeighting
from torchjd.scalarization import Sum

from multitask.task.task import Task
from multitask.weighting.adapter import adapt
from tests.conftest import Arrays, build, fit
from tests.unit.losses.test_counts import Focal

WEIGHT = torch.tensor([1.0, 5.0, 20.0], dtype=torch.float64)
LOSSES: dict[str, tuple[Any, dict[str, Any]]] = {
    "margin": (nn.MultiMarginLoss(weight=WEIGHT), {}),
    "focal": (Focal(WEIGHT), {}),
    "weighted": (nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1), {"missing": True, "ignore_index": -1}),
    "columns": (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), {"missing": True}),
}


def data() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(2, (24, 3), generator=generator).double()
    classes = torch.randint(3, (24,), generator=generator).sort().values
    known = torch.rand(24, 3, generator=generator) < torch.linspace(0.1, 1, 24)[:, None]
    return {
        "inputs": torch.randn(24, 5, generator=generator, dtype=torch.float64),
        "margin": classes,
        "focal": classes,
        "weighted": classes.masked_fill(torch.rand(24, generator=generator) < 0.3, -1),
        "columns": target.masked_fill(~known, torch.nan),
    }


def heads() -> dict[str, Task]:
    torch.manual_seed(0)
    return {
        name: Task(nn.Linear(4, 3), deepcopy(loss), target=name, **options)
        for name, (loss, options) in LOSSES.items()
    }


@pytest.mark.parametrize("weighting", [UPGradWeighting, Sum])
def test_micro_batches_equal_one_batch(weighting: Any) -> None:
    of = heads()
    whole = build(adapt(weighting()), heads=deepcopy(of), accumulate_grad_batches=1)
    parts = build(adapt(weighting()), heads=deepcopy(of), accumulate_grad_batches=3)
    fit(whole, Arrays(data()))
    fit(parts, Arrays(data(), batch_size=8))
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_the_loss_of_a_split_does_not_depend_on_its_batches() -> None:
    module = build(adapt(Sum()), heads=heads(), accumulate_grad_batches=1)
    module.eval()
    batch = data()
    found = []
    for size in (24, 7, 1):
        for part in range(0, 24, size):
            rows = {name: values[part : part + size] for name, values in batch.items()}
            module._measurement.update(module.by_name, module(rows))
        metrics = module._measurement.finish(module.by_name)
        found.append(torch.tensor([metrics[name, "loss"] for name in LOSSES], dtype=torch.float64))
    expected = torch.stack([outcome.loss for outcome in module(batch)]).detach()
    for values in found:
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
