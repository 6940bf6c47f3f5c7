"""Wrappers of a member: weights kept for some steps, rescaling, groups of parameters, rows of examples."""

import pytest
import torch
from torch import Tensor
from torchjd import aggregation

from multitask.weighting.base import JacobianMethod
from multitask.weighting.wrapper import Differentiated
from tests.unit.weighting.members import (
    NAMES,
    NEEDS_THREE,
    PARAMETERS,
    STOCHASTIC,
    N,
    Toy,
    ToyTraining,
    conflicting,
    losses_of,
    make,
    names,
    update,
)
from tests.unit.weighting.promises import keeping, refusing


@pytest.mark.parametrize("name", keeping("every"))
def test_weights_are_kept_for_some_steps(name: str) -> None:
    combiner = make(name, 4, every=3)
    toy, x = Toy(4), torch.zeros(N, dtype=torch.float64)
    present = torch.ones(4, dtype=torch.bool)
    weights = []
    for step in range(7):
        torch.manual_seed(step)
        losses, J = toy.rows(x + 0.1 * step, combiner.rows, present)
        done = update(combiner, losses, J)
        assert done.weights is not None
        torch.testing.assert_close(done.vector, done.weights @ J)
        weights.append(done.weights)
    assert torch.equal(weights[0], weights[2])
    assert torch.equal(weights[3], weights[5])
    torch.manual_seed(0)
    fresh = update(make(name, 4), *toy.rows(x, combiner.rows, present))
    torch.testing.assert_close(fresh.weights, weights[0])


@pytest.mark.parametrize("name", refusing("every"))
def test_every_needs_one_weight_per_task(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"weighting\.every=3 needs a weighting that gives one weight per task"
    ):
        make(name, 4, every=3)


def test_task_without_a_kept_weight_triggers_recomputation() -> None:
    combiner = make("mgda", 3, every=100)
    losses, J = losses_of(3), conflicting(3)
    present = torch.tensor([True, True, False])
    with combiner.restricted_to(present):
        update(combiner, losses[present], J[present])
    found = update(combiner, losses, J).vector
    torch.testing.assert_close(found, update(make("mgda", 3), losses, J).vector)


@pytest.mark.parametrize("name", keeping("rescale"))
def test_rescaling_gives_the_norm_of_the_mean_gradient(name: str) -> None:
    plain, rescaled = make(name, 4), make(name, 4, rescale=True)
    assert isinstance(rescaled, JacobianMethod)
    losses, J = Toy(4).rows(
        torch.zeros(N, dtype=torch.float64), rescaled.rows, torch.ones(4, dtype=torch.bool)
    )
    torch.manual_seed(0)
    direction = update(plain, losses, J).vector
    torch.manual_seed(0)
    found = update(rescaled, losses, J)
    torch.testing.assert_close(found.vector.norm(), J.mean(0).norm(), rtol=1e-7, atol=0.0)
    torch.testing.assert_close(
        found.vector / found.vector.norm(), direction / direction.norm(), rtol=1e-6, atol=1e-9
    )
    if found.weights is not None:
        torch.testing.assert_close(found.weights @ J, found.vector)


def test_rescaling_keeps_a_zero_gradient() -> None:
    J = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    assert update(make("mgda", 2, rescale=True), losses_of(2), J).vector.norm() < 1e-12


def by_hand(J: Tensor, by: str) -> Tensor:
    """Aggregate each group's columns by torchjd's UPGrad, and concatenate the results."""
    sizes = [8, 4] if by == "layer" else [size for _, size in PARAMETERS]
    return torch.cat([aggregation.UPGrad()(part) for part in J.split(sizes, 1)])


@pytest.mark.parametrize("by", ["layer", "tensor"])
def test_groups_are_aggregated_separately(by: str) -> None:
    J = conflicting(3)
    found = update(make("upgrad", 3, groups=by), losses_of(3), J)
    torch.testing.assert_close(found.vector, by_hand(J, by), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", keeping("groups"))
def test_one_group_equals_no_groups(name: str) -> None:
    grouped, plain = make(name, 4, groups="layer"), make(name, 4)
    copies = {"half": 2, "example": 1, "task": 1}[grouped.rows]
    for step in range(5):
        J, losses = conflicting(4 * copies, N + 1, step), losses_of(4 * copies)
        torch.manual_seed(step)
        found = update(grouped, losses, J)
        torch.manual_seed(step)
        expected = update(plain, losses, J)
        torch.testing.assert_close(found.vector, expected.vector, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(found.heads, expected.heads)
        if step == 2:
            grouped.on_epoch_end()
            plain.on_epoch_end()


@pytest.mark.parametrize("name", refusing("groups"))
def test_groups_reject_trainable_parameters(name: str) -> None:
    with pytest.raises(ValueError, match=r"weighting\.groups=layer cannot split the trainable parameters"):
        make(name, 4, groups="layer")


@pytest.mark.parametrize("name", ["gradvac", "famo", "moco", "cr_mogm"])
@pytest.mark.parametrize(
    "changes", [{"groups": "tensor"}, {"groups": "layer", "rescale": True}, {"rescale": True}]
)
def test_wrapped_members_resume_from_the_state(name: str, changes: dict) -> None:
    training = ToyTraining(make(name, 4, **changes), Toy(4)).run(7)
    again = make(name, 4, **changes)
    again.load_state_dict(training.combiner.state_dict(), strict=True)
    resumed = ToyTraining(again, Toy(4), x=training.x, step=training.step).run(5)
    assert torch.equal(resumed.x, training.run(5).x)


@pytest.mark.parametrize("name", ["mgda", "dwa", "gradvac"])
def test_kept_weights_are_saved_in_the_state(name: str) -> None:
    training = ToyTraining(make(name, 4, every=4), Toy(4)).run(6)
    again = make(name, 4, every=4)
    again.load_state_dict(training.combiner.state_dict(), strict=True)
    assert torch.equal(ToyTraining(again, Toy(4), x=training.x, step=6).run(5).x, training.run(5).x)


@pytest.mark.parametrize("name", sorted(set(NAMES) - NEEDS_THREE))
@pytest.mark.parametrize("changes", [{"every": 2}, {"groups": "tensor"}, {"rescale": True}])
def test_absent_task_does_not_affect_the_others(name: str, changes: dict) -> None:
    if any(name in refusing(key) for key in changes):
        with pytest.raises(ValueError, match="weighting"):
            make(name, 4, **changes)
        return
    absent = ToyTraining(make(name, 5, **changes), Toy(5)).run(5, absent=[1])
    left = [0, 2, 3, 4]
    without = ToyTraining(make(name, [names(5)[i] for i in left], **changes), Toy(5, keep=left)).run(5)
    torch.testing.assert_close(absent.x, without.x, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", keeping("example"))
def test_weighting_of_the_gramian_runs_instance_wise(name: str) -> None:
    combiner = make(name, 3, rows="example")
    assert combiner.rows == "example"
    toy = Toy(3)
    losses, J = toy.rows(torch.zeros(N, dtype=torch.float64), "example", torch.ones(3, dtype=torch.bool))
    torch.manual_seed(0)
    found = update(combiner, losses, J)
    torch.manual_seed(0)
    torch.testing.assert_close(found.vector, update(make(name, 12), losses, J).vector)
    assert found.weights is not None
    assert found.weights.shape == (12,)


@pytest.mark.parametrize("name", refusing("example"))
def test_other_weightings_are_rejected_instance_wise(name: str) -> None:
    with pytest.raises(ValueError, match=r"weighting\.rows=example needs a weighting of the Gramian"):
        make(name, 4, rows="example")


def test_preferences_are_rejected_instance_wise() -> None:
    with pytest.raises(ValueError, match="without state or numbers per task"):
        make("upgrad", 2, rows="example", pref_vector={"t0": 2})


@pytest.mark.parametrize(
    "name", sorted(name for name in NAMES if not isinstance(make(name, 3), JacobianMethod))
)
def test_differentiated_scalarization_gives_the_same_update(name: str) -> None:
    plain = ToyTraining(make(name, 3), Toy(3)).run(7)
    differentiated = ToyTraining(Differentiated(make(name, 3)), Toy(3)).run(7)  # type: ignore[arg-type]
    torch.testing.assert_close(differentiated.x, plain.x, rtol=1e-10, atol=1e-12)
    torch.manual_seed(0)
    expected = update(plain.combiner, losses_of(3), conflicting(3))
    torch.manual_seed(0)
    found = update(differentiated.combiner, losses_of(3), conflicting(3))
    torch.testing.assert_close(found.heads, expected.heads)
    torch.testing.assert_close(found.vector, expected.vector)


def test_wrappers_forward_the_parameters_of_the_tasks() -> None:
    combiner = make("imtl", 3, rescale=True, every=2)
    assert combiner.parameters_of(1) == [list(combiner.parameters())[1]]
    assert list(combiner.logged_values()) == ["log_scale"]
    assert set(NAMES) >= STOCHASTIC
