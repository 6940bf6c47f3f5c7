"""Transforms of targets and predictions for losses and metrics, and balanced losses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import BinaryAccuracy

from multitask.losses.class_weights import BalancedBinaryCrossEntropy, BalancedCrossEntropy
from multitask.metrics import precision
from multitask.task.targets import Binary, Classes, Fitted, Shown, Standardized, Transform


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from([(37,), (37, 1), (37, 3), (37, 2, 4, 5)]),
    st.integers(1, 40),
    st.floats(0, 0.6),
    st.integers(0, 99),
)
def test_moments_of_labelled_values_for_any_batch_size(
    shape: tuple[int, ...], size: int, missing: float, seed: int
):
    generator = torch.Generator().manual_seed(seed)
    targets = 100 + 5 * torch.randn(shape, generator=generator)
    targets[torch.rand(shape, generator=generator) < missing] = torch.nan
    columns = targets.view(37, 1, -1) if targets.ndim == 1 else targets.view(37, shape[1], -1)
    known = [column[~column.isnan()].double() for column in columns.unbind(1)]
    transform = Standardized()
    for batch in targets.split(size):
        transform.observe(batch)
    transform.finish()
    torch.testing.assert_close(transform.mean, torch.stack([k.mean() for k in known]))
    torch.testing.assert_close(transform.std, torch.stack([k.std(correction=0) for k in known]))


def test_moments_of_large_numbers_do_not_cancel():
    targets = torch.tensor([1e6, 1e6 + 1, 1e6 + 2])
    transform = Standardized()
    for value in targets:
        transform.observe(value[None])
    transform.finish()
    assert float(transform.std) == pytest.approx((2 / 3) ** 0.5, rel=1e-6)


CASTS = {
    "unchanged": lambda module: module,
    "half()": lambda module: module.half(),
    "to(bfloat16)": lambda module: module.to(torch.bfloat16),
    "float()": lambda module: module.float(),
    "to_empty": lambda module: _emptied(module),
}


def _emptied(module: torch.nn.Module) -> torch.nn.Module:
    kept = {key: value.clone() for key, value in module.state_dict().items()}
    module.to("meta").to_empty(device="cpu").load_state_dict(kept)
    return module


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("offset", [1e3, -1e5, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_standard_units_do_not_depend_on_the_offset(offset: float, cast: str, dtype: torch.dtype):
    around_zero = (0.3 * torch.randn(50, 2, dtype=torch.float64) * 2**10).round() / 2**10
    shifted = (around_zero + offset).to(dtype)
    unshifted = shifted.double() - offset  # as rounded to the dtype
    units = []
    for target in (shifted, unshifted):
        transform = Standardized()
        transform.observe(target)
        transform.finish()
        units.append(CASTS[cast](transform)(target))
    assert units[0].dtype == dtype
    torch.testing.assert_close(units[0].double(), units[1], rtol=2e-7, atol=2e-7)
    assert transform.mean.dtype == transform.std.dtype == torch.float64


def test_statistics_stay_on_the_cpu_if_the_device_has_no_float64(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision, "_WITHOUT_FLOAT64", ("meta",))
    transform = Standardized()
    transform.observe(torch.tensor([1e6, 1e6 + 1], dtype=torch.float64))
    transform.finish()
    transform.to("meta")
    assert (transform.mean.device.type, transform.mean.dtype) == ("cpu", torch.float64)
    standard = transform(torch.empty(3, device="meta"))
    assert (standard.device.type, standard.dtype) == ("meta", torch.float32)


def test_checkpoints_of_float32_statistics_load():
    transform = Standardized()
    transform.observe(torch.tensor([[0.1, 5.0], [0.4, 7.0]]))
    transform.finish()
    transform.load_state_dict({"mean": torch.tensor([1.5, 2.5]), "std": torch.tensor([3.0, 4.0])})
    assert transform.mean.tolist() == [1.5, 2.5]
    assert transform.mean.dtype == torch.float64


def test_numbers_that_differ_by_rounding_are_constant():
    transform = Standardized()
    transform.observe(torch.tensor([0.3, 0.1 + 0.2, 0.3], dtype=torch.float64))
    with pytest.raises(ValueError, match="constant"):
        transform.finish()


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3), (6, 2, 4, 5)])
def test_standard_units_and_back(shape: tuple[int, ...]):
    targets = 7 + 3 * torch.randn(shape)
    transform = Standardized()
    transform.observe(targets)
    transform.finish()
    scaled = transform(targets)
    over = [d for d in range(len(shape)) if d != 1]
    torch.testing.assert_close(scaled.mean(over), torch.zeros_like(scaled.mean(over)), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(over, correction=0), torch.ones_like(scaled.std(over)))
    shown = transform.shown(scaled, scaled)
    torch.testing.assert_close(shown, (targets, targets))


def test_zero_stays_zero_without_centering():
    transform = Standardized(center=False)
    transform.observe(torch.tensor([1.0, 3.0]))
    transform.finish()
    assert torch.equal(transform(torch.tensor([0.0, 5.0])), torch.tensor([0.0, 5.0]))


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        ([2.0, 2.0], "constant"),
        ([float("nan")], "no labelled value"),
        ([1.0, float("inf")], "infinite, or too large"),
    ],
)
def test_targets_that_cannot_be_standardized_are_rejected(targets: list[float], reason: str):
    transform = Standardized()
    transform.observe(torch.tensor(targets))
    with pytest.raises(ValueError, match=reason):
        transform.finish()


def test_binary_shows_probabilities_even_if_all_logits_are_between_zero_and_one():
    logits, target = torch.tensor([0.1, 0.2, 0.9]), torch.tensor([1, 1, 1])
    assert float(BinaryAccuracy()(logits, target)) == pytest.approx(1 / 3), (
        "torchmetrics takes them for probabilities"
    )
    assert float(BinaryAccuracy()(*Binary().shown(logits, Binary()(target)))) == 1.0


def test_classes_show_probabilities():
    scores = torch.randn(4, 3, 2)
    shown, _ = Classes().shown(scores, torch.zeros(4, 2, dtype=torch.int64))
    torch.testing.assert_close(shown, scores.exp() / scores.exp().sum(1, keepdim=True))


def test_classes_show_the_largest_of_shares():
    shares = torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    _, shown = Classes().shown(torch.randn(2, 3), shares)
    assert shown.tolist() == [1, 0]


def test_shown_changes_only_the_prediction():
    prediction, target = Shown(torch.exp).shown(torch.ones(3), torch.ones(3))
    assert torch.equal(prediction, torch.ones(3).exp())
    assert torch.equal(target, torch.ones(3))


def test_only_parts_with_a_fit_are_fitted():
    fits = [
        part
        for part in (
            Standardized(),
            BalancedCrossEntropy(2),
            BalancedBinaryCrossEntropy(),
            Transform(),
            Binary(),
        )
        if isinstance(part, Fitted)
    ]
    assert len(fits) == 3


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-1, 3), min_size=1, max_size=40).filter(lambda classes: max(classes) >= 0))
def test_balanced_classes_have_equal_total_weights(classes: list[int]):
    loss = BalancedCrossEntropy(4, ignore_index=-1)
    targets = torch.tensor(classes)
    for batch in targets.split(7):
        loss.observe(batch)
    loss.finish()
    known = targets[targets >= 0]
    shares = torch.zeros(4).index_add(0, known, loss.weight[known])
    present = torch.bincount(known, minlength=4) > 0
    torch.testing.assert_close(shares[present], (len(known) / present.sum()).expand(int(present.sum())))
    assert (loss.weight[~present] == 1).all()
    scores = torch.randn(len(classes), 4)
    expected = torch.nn.functional.cross_entropy(scores, targets, weight=loss.weight, ignore_index=-1)
    torch.testing.assert_close(loss(scores, targets), expected)


def test_balanced_classes_reject_an_unknown_class():
    with pytest.raises(ValueError, match=r"loss\.num_classes=2 does not include the class 5"):
        BalancedCrossEntropy(2).observe(torch.tensor([0, 5]))
    with pytest.raises(ValueError, match="no labelled class"):
        BalancedCrossEntropy(2).finish()


def test_balanced_ones_weigh_as_much_as_zeros():
    targets = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, torch.nan], [0.0, 0.0]])
    loss = BalancedBinaryCrossEntropy()
    loss.observe(targets[:3])
    loss.observe(targets[3:])
    loss.finish()
    assert loss.pos_weight.tolist() == [3.0, 1.0]
