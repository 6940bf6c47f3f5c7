"""Losses and metrics of every kind of task in configs/task/kinds equal references on user arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from multitask.errors import ConfigError
from multitask.module import MultiTaskModule
from tests.unit.in_process import made

COUNT = 60
FLAT = ["trunk=mlp", "trunk.widths=[8]"]
DENSE = ["trunk=segnet", "trunk.channels=[4]", "trunk.depths=[1]", "trunk.norm=group"]


def arrays() -> dict[str, Any]:
    random = np.random.default_rng(0)
    images = random.standard_normal((COUNT, 1, 4, 4)).astype(np.float32)
    labels = random.integers(0, 2, (COUNT, 4))
    labels[::7, 1] = -100
    vector = (images[:, 0, 0, :3] * [1, 10, 100] + [0, 5, 1000]).astype(np.float32)
    vector[::5, 2] = np.nan
    classes = random.integers(0, 3, COUNT)
    classes[::6] = -100
    return {
        "inputs": images,
        "binary": random.integers(0, 2, COUNT),
        "classes": classes,
        "labels": labels,
        "quantiles": images[:, 0, 0, 1],
        "scalar": 100 + 5 * images[:, 0, 0, 0],
        "vector": vector,
        "segmentation": random.integers(-1, 3, (COUNT, 4, 4)),
        "dense": 3 * images + 7,
        "mask/dense": random.random((COUNT, 1, 4, 4)) < 0.8,
    }


def built(
    folder: Path, content: dict[str, Any], *overrides: str
) -> tuple[MultiTaskModule, dict[str, Tensor]]:
    """Return the module, and the training split as one batch."""
    np.savez(folder / "file.npz", **content)
    _, data, module = made("data=npz", f"data.path={folder}/file.npz", "data.batch_size=null", *overrides)
    return module, data.splits["train"]  # type: ignore[return-value]


def measured(
    module: MultiTaskModule, batch: dict[str, Tensor], task: str
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Return loss, prediction, and metrics over two halves of a batch."""
    (outcome,) = module(batch)
    for half in (slice(None, 20), slice(20, None)):
        (part,) = module({name: values[half] for name, values in batch.items()})
        module.by_name[task].measure(part)
    values = module.by_name[task].metrics.compute()
    return (
        outcome.loss.detach(),
        outcome.prediction.detach(),
        {name: float(value) for name, value in values.items()},
    )


def test_binary(tmp_path: Path):
    module, batch = built(tmp_path, arrays(), "task=[kinds/binary]", *FLAT)
    loss, logits, metrics = measured(module, batch, "binary")
    target = batch["binary"].float()[:, None]
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(logits, target))
    assert metrics["accuracy"] == pytest.approx(float(((logits > 0) == target).float().mean()))
    pairs = (logits[target == 1][:, None] > logits[target == 0][None]).float().mean()
    assert metrics["auroc"] == pytest.approx(float(pairs), abs=1e-5)


def test_classes_with_weights_and_missing_ones(tmp_path: Path):
    module, batch = built(tmp_path, arrays(), "task=[kinds/weighted_classes]", *FLAT)
    loss, scores, metrics = measured(module, batch, "classes")
    weight = torch.tensor([1.0, 2.0, 0.5])
    torch.testing.assert_close(loss, F.cross_entropy(scores, batch["classes"], weight=weight))
    known = batch["classes"] >= 0
    assert 0 < known.sum() < COUNT
    right = scores[known].argmax(1) == batch["classes"][known]
    assert metrics["accuracy"] == pytest.approx(float(right.float().mean()))
    assert float(module.by_name["classes"].count(batch)) == pytest.approx(
        float(weight[batch["classes"][known]].sum())
    )


def test_balanced_classes_take_their_weights_from_the_training_split(tmp_path: Path):
    module, batch = built(
        tmp_path, arrays(), "task=[kinds/balanced_classes]", "+tasks.classes.missing=true", *FLAT
    )
    loss, scores, _ = measured(module, batch, "classes")
    classes = batch["classes"]
    counts = torch.bincount(classes[classes >= 0], minlength=3)
    assert len(classes) < COUNT
    torch.testing.assert_close(loss, F.cross_entropy(scores, classes, weight=counts.sum() / (3.0 * counts)))


def test_labels_with_missing_ones(tmp_path: Path):
    module, batch = built(tmp_path, arrays(), "task=[kinds/labels]", *FLAT)
    loss, logits, metrics = measured(module, batch, "labels")
    known = batch["labels"] >= 0
    expected = F.binary_cross_entropy_with_logits(logits[known], batch["labels"][known].float())
    torch.testing.assert_close(loss, expected)
    right = (logits > 0)[known] == batch["labels"][known]
    assert metrics["accuracy"] == pytest.approx(float(right.float().mean()))


def test_scalar_trains_in_standard_units_and_reports_in_original_units(tmp_path: Path):
    module, batch = built(tmp_path, arrays(), "task=[kinds/scalar]", *FLAT)
    loss, prediction, metrics = measured(module, batch, "scalar")
    target = batch["scalar"][:, None]
    mean, std = target.mean(), target.std(correction=0)
    torch.testing.assert_close(loss, F.mse_loss(prediction, (target - mean) / std))
    assert metrics["mae"] == pytest.approx(float((prediction * std + mean - target).abs().mean()), rel=1e-5)


def test_scaling_is_fitted_to_the_training_split_alone(tmp_path: Path):
    content = arrays()
    content["part"] = np.repeat([0, 1, 2], [20, 20, 20])
    content["scalar"][20:] += 1000
    module, batch = built(tmp_path, content, "task=[kinds/scalar]", "data.split=part", *FLAT)
    transform: Any = module.by_name["scalar"].transform
    assert len(batch["scalar"]) == 20
    assert float(transform.mean) == pytest.approx(content["scalar"][:20].mean(), rel=1e-5)
    assert "tasks.scalar.transform.mean" in module.state_dict()


def test_vector_scales_each_column_by_its_labelled_values(tmp_path: Path):
    module, batch = built(tmp_path, arrays(), "task=[kinds/vector]", *FLAT)
    loss, prediction, metrics = measured(module, batch, "vector")
    target = batch["vector"]
    known = ~target.isnan()
    assert (~known).any()
    mean = target.nanmean(0)
    std = (target - mean).square().nanmean(0).sqrt()
    expected = F.smooth_l1_loss(prediction[known], ((target - mean) / std)[known])
    torch.testing.assert_close(loss, expected)
    error = ((prediction * std + mean) - target).abs()[known].mean()
    assert metrics["mae"] == pytest.approx(float(error), rel=1e-5)


def test_segmentation_excludes_ignored_pixels(tmp_path: Path):
    module, batch = built(tmp_path, arrays(), "task=[kinds/segmentation]", *DENSE)
    loss, scores, metrics = measured(module, batch, "segmentation")
    target = batch["segmentation"]
    torch.testing.assert_close(loss, F.cross_entropy(scores, target, ignore_index=-1))
    right = (scores.argmax(1) == target)[target >= 0]
    assert metrics["accuracy"] == pytest.approx(float(right.float().mean()))


def test_dense_regression_with_a_mask(tmp_path: Path):
    module, batch = built(tmp_path, arrays(), "task=[kinds/dense]", *DENSE)
    loss, prediction, metrics = measured(module, batch, "dense")
    known, target = batch["mask/dense"], batch["dense"]
    mean, std = target[known].mean(), target[known].std(correction=0)
    torch.testing.assert_close(loss, F.l1_loss(prediction[known], ((target - mean) / std)[known]))
    error = (prediction * std + mean - target).abs()[known].mean()
    assert metrics["mae"] == pytest.approx(float(error), rel=1e-5)


def test_quantiles(tmp_path: Path):
    module, batch = built(tmp_path, arrays(), "task=[kinds/quantiles]", *FLAT)
    loss, prediction, metrics = measured(module, batch, "quantiles")
    error = batch["quantiles"][:, None] - prediction
    levels = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(loss, torch.where(error > 0, levels * error, (levels - 1) * error).mean())
    assert metrics["mae"] == pytest.approx(float(error[:, 1].abs().mean()), rel=1e-5)


def test_reconstruction(tmp_path: Path):
    module, batch = built(tmp_path, arrays(), "task=[kinds/reconstruction]", *DENSE)
    loss, prediction, metrics = measured(module, batch, "reconstruction")
    torch.testing.assert_close(loss, F.mse_loss(prediction, batch["inputs"]))
    assert metrics["mse"] == pytest.approx(float(loss), rel=1e-5)


def test_error_of_a_constant_target_names_the_task_and_the_remedy(tmp_path: Path):
    content = arrays() | {"scalar": np.ones(COUNT, dtype=np.float32)}
    with pytest.raises(ConfigError, match=r"tasks\.scalar: .*constant.*omit transform"):
        built(tmp_path, content, "task=[kinds/scalar]", *FLAT)


def test_penalties_alone_are_rejected(tmp_path: Path):
    with pytest.raises(ConfigError, match="no task has a head, only penalties: l1, l2"):
        built(tmp_path, arrays(), "task=[penalty/l1,penalty/l2]", *FLAT)
