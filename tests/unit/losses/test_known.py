"""Losses of targets with missing values are means over the labelled values of each column."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from multitask.losses.class_weights import BalancedBinaryCrossEntropy
from multitask.losses.pixels import DepthL1, NormalCosine, PixelCrossEntropy
from multitask.task.task import Task

COLUMNS = 4


def task(loss: Any, **options: Any) -> Task:
    return Task(nn.Identity(), loss, target="y", missing=True, **options)


def some(shape: tuple[int, ...], share: float, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


BY_VALUE = [
    nn.MSELoss(),
    nn.L1Loss(),
    nn.SmoothL1Loss(beta=0.3),
    nn.HuberLoss(delta=0.5),
    nn.SoftMarginLoss(),
    nn.PoissonNLLLoss(),
    nn.BCEWithLogitsLoss(),
    nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0, 4.0])),
    nn.BCEWithLogitsLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0])),
]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(BY_VALUE), st.floats(0.05, 1), st.integers(0, 99))
def test_loss_is_the_mean_over_known_values(loss: Any, share: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randn(7, COLUMNS, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(2, (7, COLUMNS), generator=generator).double()
    known = some((7, COLUMNS), share, seed)
    of = task(loss.double())
    outcome = of(prediction, {"y": target.masked_fill(~known, torch.nan)})
    single = [
        # The loss of one value, with the arguments of its column.
        type(loss)(**arguments(loss, j))(prediction[i, j], target[i, j])
        for i, j in known.nonzero().tolist()
    ]
    expected = torch.stack(single).mean() if single else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(outcome.loss, expected)
    assert outcome.count == of.count({"y": target.masked_fill(~known, torch.nan)}) == known.sum()
    (gradient,) = torch.autograd.grad(outcome.loss, prediction)
    assert gradient.isfinite().all()
    assert (gradient[~known] == 0).all()


def arguments(loss: nn.Module, column: int) -> dict[str, Any]:
    """Return a loss's arguments for one column."""
    found = {key: getattr(loss, key) for key in ("beta", "delta") if hasattr(loss, key)}
    for key in ("weight", "pos_weight"):
        if getattr(loss, key, None) is not None:
            found[key] = getattr(loss, key)[column]
    return found


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(0, 99))
def test_parts_weighted_by_their_counts_give_the_whole(cut: int, seed: int):
    of = task(nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0])))
    prediction = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))
    target = prediction.roll(1, 0).gt(0).float().masked_fill(~some((6, 3), 0.6, seed), torch.nan)
    outcomes = [of(prediction[part], {"y": target[part]}) for part in (slice(0, cut), slice(cut, 6))]
    counts = torch.tensor([float(outcome.count) for outcome in outcomes])
    joined = sum(o.loss * c for o, c in zip(outcomes, counts, strict=True)) / counts.sum().clamp(min=1)
    torch.testing.assert_close(joined, of(prediction, {"y": target}).loss)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0])),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0]), label_smoothing=0.2),
    ],
)
def test_dense_classes_equal_torchs_ignore_index(loss: Any):
    prediction, target = torch.randn(4, 3, 5, 5), torch.randint(3, (4, 5, 5))
    target = target.masked_fill(~some((4, 5, 5), 0.7, 0), -100)
    outcome = task(loss)(prediction, {"y": target})
    torch.testing.assert_close(outcome.loss, loss(prediction, target))
    weights = torch.ones(3) if loss.weight is None else loss.weight
    assert float(outcome.count) == pytest.approx(float(weights[target[target >= 0]].sum()))


@pytest.mark.parametrize(
    ("loss", "shape", "channels"), [(DepthL1(), (3, 1, 4, 4), 1), (NormalCosine(), (3, 3, 4, 4), 3)]
)
def test_losses_that_exclude_invalid_pixels_accept_a_mask(loss: Any, shape: Any, channels: int):
    prediction, target = torch.randn(shape), torch.rand(shape) + 0.1
    mask = some((3, 1, 4, 4), 0.5, 0)
    outcome = task(loss)(prediction, {"y": target, "mask/y": mask.expand(shape)})
    valid = mask.squeeze(1)
    expected = loss.error(prediction, target)[valid].mean()
    torch.testing.assert_close(outcome.loss, expected)
    assert outcome.count == valid.sum()


def test_mask_with_another_ignore_index():
    loss = PixelCrossEntropy(ignore_index=-1)
    prediction, target = torch.randn(3, 4, 5, 5), torch.randint(-1, 4, (3, 5, 5))
    mask = some((3, 5, 5), 0.5, 0)
    outcome = task(loss, ignore_index=-1)(prediction, {"y": target, "mask/y": mask})
    expected = nn.functional.cross_entropy(prediction, target.masked_fill(~mask, -1), ignore_index=-1)
    torch.testing.assert_close(outcome.loss, expected)


def test_balanced_loss_with_missing_labels():
    loss = BalancedBinaryCrossEntropy()
    target = torch.tensor([[1.0, 0.0, torch.nan], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    loss.observe(target)
    loss.finish()
    prediction = torch.randn(3, 3)
    expected = nn.functional.binary_cross_entropy_with_logits(
        prediction, target.nan_to_num(), pos_weight=loss.pos_weight, reduction="none"
    )[~target.isnan()].mean()
    torch.testing.assert_close(task(loss)(prediction, {"y": target}).loss, expected)


def test_a_loss_of_whole_examples_rejects_partial_ones():
    of = task(lambda p, t: (p - t).square().mean(), loss_checks_shapes=True)
    with pytest.raises(ValueError, match="lacks some values of the target 'y'"):
        of(torch.randn(2, 2), {"y": torch.tensor([[1.0, torch.nan], [0.0, 1.0]])})
    outcome = of(torch.randn(2, 2), {"y": torch.tensor([[torch.nan, torch.nan], [0.0, 1.0]])})
    assert outcome.count == 2
