"""Areas under curves, compared with torchmetrics."""

import pytest
import torch
from torchmetrics import classification

from multitask.metrics import BinaryAUROC


@pytest.mark.parametrize("thresholds", [None, 20])
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0], [-1, 1, 0, 0], [-1, 1, 1, 1]])
def test_auroc_equals_torchmetrics_and_is_nan_for_one_class(
    labels: list[int], thresholds: int | None
) -> None:
    scores, target = torch.tensor([0.1, 0.8, 0.6, 0.7]), torch.tensor(labels)
    options = {"thresholds": thresholds, "ignore_index": -1}
    ours, theirs = BinaryAUROC(**options), classification.BinaryAUROC(**options)
    for metric in (ours, theirs):
        metric.update(scores[:2], target[:2])
        metric.update(scores[2:], target[2:])
    if {0, 1} <= set(labels):
        assert torch.equal(ours.compute(), theirs.compute())
    else:
        assert ours.compute().isnan()
