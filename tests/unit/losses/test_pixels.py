"""Dense losses equal torch's losses on the valid pixels."""

import pytest
import torch
from torch import Tensor, nn

from multitask.losses.pixels import DepthL1, NormalCosine, Pinball, PixelCrossEntropy
from multitask.task.task import Task


def depth(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(3, 1, 4, 5, generator=generator) + 0.5
    target[torch.rand(target.shape, generator=generator) < 0.4] = 0
    return torch.rand(3, 1, 4, 5, generator=generator), target


def normals(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = nn.functional.normalize(torch.randn(3, 3, 4, 5, generator=generator), dim=1)
    return torch.randn(3, 3, 4, 5, generator=generator), target * (
        torch.rand(3, 1, 4, 5, generator=generator) > 0.4
    )


def classes(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 6, 4, 5, generator=generator), torch.randint(-1, 6, (3, 4, 5), generator=generator)


def reference_depth(prediction: Tensor, target: Tensor) -> Tensor:
    kept = target != 0
    return nn.functional.l1_loss(prediction[kept], target[kept])


def reference_normals(prediction: Tensor, target: Tensor) -> Tensor:
    kept = target.norm(dim=1) > 0
    u, v = prediction.movedim(1, -1)[kept], target.movedim(1, -1)[kept]
    return (1 - (u * v).sum(-1) / u.norm(dim=-1)).mean()


def reference_classes(prediction: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(prediction, target, ignore_index=-1)


CASES = {
    "depth": (DepthL1, depth, reference_depth, 0.0),
    "normals": (NormalCosine, normals, reference_normals, 0.0),
    "classes": (PixelCrossEntropy, classes, reference_classes, -1),
}


@pytest.mark.parametrize("name", CASES)
def test_mean_over_valid_pixels(name: str):
    loss, data, reference, _ = CASES[name]
    prediction, target = data()
    torch.testing.assert_close(loss()(prediction, target), reference(prediction, target))


@pytest.mark.parametrize("name", CASES)
def test_reduction_none_is_the_mean_per_example(name: str):
    loss, data, reference, invalid = CASES[name]
    prediction, target = data()
    target[1] = invalid
    expected = torch.stack(
        [reference(prediction[:1], target[:1]), torch.zeros(()), reference(prediction[2:], target[2:])]
    )
    torch.testing.assert_close(loss(reduction="none")(prediction, target), expected)


@pytest.mark.parametrize("name", CASES)
def test_parts_weighted_by_their_counts_give_the_whole(name: str):
    loss, data, _, _ = CASES[name]
    prediction, target = data()
    mean = loss()
    counts = torch.tensor([float(mean.count(target[i : i + 1])) for i in range(3)])
    parts = torch.stack([mean(prediction[i : i + 1], target[i : i + 1]) for i in range(3)])
    assert mean.count(target) == counts.sum()
    torch.testing.assert_close(mean(prediction, target), (counts * parts).sum() / counts.sum())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_invalid_pixels_get_no_gradient(name: str, reduction: str):
    loss, data, _, invalid = CASES[name]
    prediction, target = data()
    target[0] = invalid
    prediction.requires_grad_()
    loss(reduction=reduction)(prediction, target).sum().backward()
    grad = prediction.grad
    assert grad is not None
    assert grad.isfinite().all()
    dense = target if target.ndim == 4 else target.unsqueeze(1)
    valid = (dense != invalid).any(1, keepdim=True).expand_as(grad)
    assert (grad[~valid] == 0).all()
    assert (grad[valid] != 0).float().mean() > 0.9


@pytest.mark.parametrize("name", CASES)
def test_loss_without_valid_pixels_is_zero_with_zero_gradient(name: str):
    loss, data, _, invalid = CASES[name]
    prediction, target = data()
    prediction.requires_grad_()
    value = loss()(prediction, torch.full_like(target, invalid))
    value.backward()
    assert value == 0
    assert (prediction.grad == 0).all()


@pytest.mark.parametrize("name", ["depth", "normals"])
def test_nan_targets_are_invalid_too(name: str):
    loss, data, reference, _ = CASES[name]
    prediction, target = data()
    prediction.requires_grad_()
    value = loss()(prediction, torch.where(target == 0, torch.nan, target))
    value.backward()
    torch.testing.assert_close(value, reference(prediction, target))
    assert prediction.grad.isfinite().all()


def test_class_weights_equal_torchs():
    prediction, target = classes()
    weight = [0.5, 1.0, 2.0, 1.0, 3.0, 0.1]
    expected = nn.functional.cross_entropy(prediction, target, ignore_index=-1, weight=torch.tensor(weight))
    torch.testing.assert_close(PixelCrossEntropy(weight=weight)(prediction, target), expected)


def test_normals_depend_only_on_direction():
    prediction, target = normals()
    loss = NormalCosine()
    torch.testing.assert_close(loss(5 * prediction, target), loss(prediction, target))
    torch.testing.assert_close(loss(target, target), torch.zeros(()), atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", [DepthL1, NormalCosine])
def test_other_shapes_are_rejected(loss: type):
    with pytest.raises(ValueError, match="head"):
        loss()(torch.rand(2, 1, 4, 5), torch.rand(2, 4, 5))


@pytest.mark.parametrize("loss", [DepthL1, NormalCosine, PixelCrossEntropy])
def test_other_reductions_are_rejected(loss: type):
    with pytest.raises(ValueError, match="reduction"):
        loss(reduction="sum")


@pytest.mark.parametrize("name", CASES)
def test_a_task_counts_valid_pixels_and_returns_losses_per_example(name: str):
    loss, data, reference, _ = CASES[name]
    prediction, target = data()
    task = Task(nn.Identity(), loss(), target="t")
    outcome = task(prediction, {"t": target})
    assert outcome.count == loss().count(target)
    torch.testing.assert_close(outcome.loss, reference(prediction, target))
    expected = torch.stack([reference(prediction[i : i + 1], target[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(task.each(prediction, {"t": target}), expected)


def test_the_pinball_loss_of_a_constant_is_minimal_at_the_quantiles():
    generator = torch.Generator().manual_seed(0)
    target, quantiles = torch.randn(999, generator=generator), torch.tensor([0.1, 0.5, 0.9])
    loss = Pinball(quantiles.tolist())
    best = target.quantile(quantiles)
    least = loss(best.expand(999, 3), target)
    for column in range(3):
        for step in (-0.05, 0.05):
            shifted = best.clone()
            shifted[column] += step
            assert loss(shifted.expand(999, 3), target) > least
    torch.testing.assert_close(2 * Pinball([0.5])(target[:, None] * 0, target), target.abs().mean())


def test_invalid_quantiles_and_shapes_are_rejected():
    with pytest.raises(ValueError, match=r"loss\.quantiles are numbers between 0 and 1"):
        Pinball([0.5, 1.0])
    with pytest.raises(ValueError, match="as wide as the quantiles"):
        Pinball([0.5, 0.9])(torch.rand(4, 3), torch.rand(4))
    with pytest.raises(ValueError, match="for one target"):
        Pinball([0.5])(torch.rand(4, 1), torch.rand(4, 2))
