"""Promises that hold for every member of the weighting group."""

import io
import re
import sys
from itertools import combinations

import pytest
import torch
from torch import Tensor

from multitask.weighting.base import JacobianMethod
from tests.unit.weighting.members import (
    CONFIGS,
    NAMES,
    NEEDS_THREE,
    STOCHASTIC,
    N,
    Toy,
    ToyTraining,
    conflicting,
    losses_of,
    make,
    names,
    update,
    update_rows,
)
from tests.unit.weighting.promises import POSITIVE, SCALARIZATIONS, keeping

GROUP = set(
    """
    weighted_sum mean uw imtl_l dwa rlw gls si loss_balanced stch famo cosmos pbi scheduled_sum
    upgrad dualproj mgda cagrad pcgrad gradvac imtl_g imtl nash_mtl fairgrad aligned_mtl cr_mogm pcd
    krum random graddrop config trimmed_mean excess_mtl modo sdmgrad gradnorm moco db_mtl iwmtl
    softadapt relobralo lr_annealing m_config ntk
    """.split()  # noqa: SIM905
)
NO_PAPER = {"weighted_sum", "mean", "scheduled_sum", "loss_balanced"}


def test_group_is_complete() -> None:
    assert sorted(GROUP) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_yaml_starts_with_its_command_and_paper(name: str) -> None:
    text = (CONFIGS / "weighting" / f"{name}.yaml").read_text()
    assert re.match(rf"# python scripts/train.py (.* )?weighting={name}\b", text)
    comment = "".join(line.lstrip("# ") for line in text.splitlines(True) if line.startswith("#"))
    assert name in NO_PAPER or re.search(r'"[^"]+"[^"]*\b(19|20)\d\d\b', comment, re.DOTALL)


@pytest.mark.parametrize("m", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_tasks(name: str, m: int) -> None:
    if name in NEEDS_THREE and m < 3:
        with pytest.raises(ValueError, match=rf"weighting\b.*needs 3 tasks.*there are {m}"):
            make(name, m)
        return
    combiner = make(name, m)
    done = update_rows(losses_of(m), conflicting(m, max(N, m + 4)), combiner)
    assert done.vector.isfinite().all()
    assert done.heads.isfinite().all()
    rows = 2 * m if getattr(combiner, "rows", "task") == "half" else m
    assert done.weights is None or done.weights.shape == (rows,)
    assert combiner.failures == 0


@pytest.mark.parametrize("name", sorted(set(NAMES) - STOCHASTIC))
def test_permutation_equivariance(name: str) -> None:
    order = [2, 0, 3, 1]
    primary = {"pcd": {"primary": "t1"}, "lr_annealing": {"residual": "t1"}}.get(name, {})
    straight = ToyTraining(make(name, 4, **primary), Toy(4)).run(7)
    permuted = ToyTraining(make(name, [names(4)[i] for i in order], **primary), Toy(4, keep=order)).run(7)
    torch.testing.assert_close(permuted.x, straight.x, rtol=1e-8, atol=1e-10)


def _equal(m: int) -> Tensor:
    return conflicting(1).repeat(m, 1)


def _opposed(m: int) -> Tensor:
    """Every two rows conflict: the corners of a simplex around zero."""
    J = torch.eye(m, N, dtype=torch.float64)
    return J - J.mean(0)


def _zero_row(m: int) -> Tensor:
    J = conflicting(m)
    J[1] = 0
    return J


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("jacobian", [_zero_row, _equal, _opposed, lambda m: 0 * conflicting(m)])
@pytest.mark.parametrize("name", NAMES)
def test_degenerate_gradients(name: str, jacobian: object, dtype: torch.dtype) -> None:
    combiner = make(name, 4).to(dtype)
    J = jacobian(4).to(dtype)  # type: ignore[operator]
    for _ in range(3):
        done = update_rows(losses_of(4).to(dtype), J, combiner)
        assert done.vector.isfinite().all()
        assert done.heads.isfinite().all()
        # For cancelling gradients, exact solvers return large weights with a small combination.
        assert done.vector.norm() <= 1e3 * max(1.0, float(J.norm()))
    assert combiner.failures == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NAMES)
def test_losses_between_1e_minus_8_and_1e8(name: str, dtype: torch.dtype) -> None:
    scales = torch.tensor([1e-8, 1.0, 1e8], dtype=torch.float64)
    combiner = make(name, 3).to(dtype)
    for _ in range(3):
        done = update_rows(scales.to(dtype), (scales[:, None] * conflicting(3)).to(dtype), combiner)
        assert done.vector.isfinite().all()
        assert done.heads.isfinite().all()
    assert combiner.failures == 0


@pytest.mark.parametrize("name", NAMES)
def test_update_of_a_zero_loss_is_finite_or_rejected(name: str) -> None:
    combiner = make(name, 3)
    losses = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    if name in POSITIVE.split():
        with pytest.raises(ValueError, match=f"weighting={name} needs losses above zero, and one is 0"):
            update_rows(losses, conflicting(3), combiner)
        return
    done = update_rows(losses, conflicting(3), combiner)
    assert done.vector.isfinite().all()
    assert done.heads.isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
# The trimmed mean discards it as an extreme value.
@pytest.mark.parametrize("name", sorted(set(NAMES) - set(SCALARIZATIONS) - {"trimmed_mean"}))
def test_non_finite_gradient_is_rejected(name: str, value: float) -> None:
    J = conflicting(3)
    J[1, 2] = value
    with pytest.raises(FloatingPointError, match="not finite"):
        update_rows(losses_of(3), J, make(name, 3))


def test_different_members_give_different_updates() -> None:
    changes = {
        "weighted_sum": {"weights": {"t0": 0.3}},
        "scheduled_sum": {"schedule": {"t1": [[0, 1], [10, 0.1]]}},
        "excess_mtl": {"warmup_epochs": 1},
    }
    updates: dict[str, Tensor] = {}
    for name in keeping("own"):
        training = ToyTraining(make(name, 3, **changes.get(name, {})), Toy(3)).run(9)
        torch.manual_seed(0)
        rows = getattr(training.combiner, "rows", "task")
        losses, J = training.toy.rows(
            torch.zeros(N, dtype=torch.float64), rows, torch.ones(3, dtype=torch.bool)
        )
        done = update(training.combiner, losses, J)
        heads = done.heads.view(-1, 3).mean(0)
        updates[name] = torch.cat([done.vector, heads])
    same = [
        (a, b)
        for a, b in combinations(updates, 2)
        if torch.allclose(updates[a], updates[b], rtol=1e-6, atol=1e-9)
    ]
    assert same == []


@pytest.mark.parametrize("name", NAMES)
def test_training_resumes_from_the_state(name: str) -> None:
    training = ToyTraining(make(name, 4), Toy(4)).run(7)
    file = io.BytesIO()
    torch.save(training.combiner.state_dict(), file)
    file.seek(0)
    again = make(name, 4)
    again.load_state_dict(torch.load(file, weights_only=True), strict=True)
    resumed = ToyTraining(again, Toy(4), x=training.x, step=training.step).run(7)
    straight = training.run(7)
    assert torch.equal(resumed.x, straight.x)


@pytest.mark.parametrize("name", NAMES)
def test_reset_restores_the_initial_state(name: str) -> None:
    used = ToyTraining(make(name, 4), Toy(4)).run(7).combiner
    used.reset()
    assert torch.equal(ToyTraining(used, Toy(4)).run(7).x, ToyTraining(make(name, 4), Toy(4)).run(7).x)


@pytest.mark.parametrize("name", NAMES)
def test_absent_task_does_not_affect_the_others(name: str) -> None:
    left = [0, 2, 3, 4]
    absent = ToyTraining(make(name, 5), Toy(5)).run(8, absent=[1])
    without = ToyTraining(make(name, [names(5)[i] for i in left]), Toy(5, keep=left)).run(8)
    torch.testing.assert_close(absent.x, without.x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_state_of_an_absent_task_is_unchanged(name: str) -> None:
    training = ToyTraining(make(name, 5), Toy(5)).run(7)
    before = _state_of(training.combiner, 1)
    training.run(4, absent=[1, 2], epoch=100)
    for key, value in _state_of(training.combiner, 1).items():
        assert torch.equal(value, before[key]), key
    training.run(4)
    assert training.x.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_task_can_be_absent_at_first(name: str) -> None:
    training = ToyTraining(make(name, 4), Toy(4)).run(5, absent=[1]).run(5)
    assert training.x.isfinite().all()


def _state_of(combiner: object, task: int) -> dict[str, Tensor]:
    """Return a combiner's state of one task: its entries of the buffers per task, and its parameters."""
    found = {}
    assert isinstance(combiner, torch.nn.Module)
    for path, module in combiner.named_modules():
        for key, kind in getattr(module, "per_task", {}).items():
            value = getattr(module, key)
            if value is not None:
                part = torch.cat([value[task], value[:, task]]) if kind == "matrix" else value[task]
                found[f"{path}.{key}"] = part.clone()
    parameters = combiner.parameters_of(task)  # type: ignore[operator]
    return found | {f"own {i}": p.detach().clone() for i, p in enumerate(parameters)}


def test_error_restores_the_state_of_all_tasks() -> None:
    combiner = make("gradvac", 3)
    J = conflicting(2)
    J[0] = torch.nan
    present = torch.tensor([True, False, True])
    with pytest.raises(FloatingPointError), combiner.restricted_to(present):
        update_rows(losses_of(2), J, combiner)
    assert combiner.targets.shape == (3, 3)
    assert combiner.targets.isfinite().all()


SCALE_FREE = set(
    """
    upgrad dualproj mgda cagrad pcgrad gradvac imtl_g imtl aligned_mtl cr_mogm krum config random
    sdmgrad iwmtl
    """.split()  # noqa: SIM905
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("name", sorted(SCALE_FREE))
def test_weights_do_not_depend_on_the_scale_of_the_losses(
    name: str, scale: float, dtype: torch.dtype
) -> None:
    J, losses = conflicting(4).to(dtype), losses_of(4).to(dtype)
    torch.manual_seed(0)
    plain = update_rows(losses, J, make(name, 4).to(dtype)).weights
    torch.manual_seed(0)
    scaled = update_rows(scale * losses, scale * J, make(name, 4).to(dtype)).weights
    assert plain is not None
    assert scaled is not None
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(scaled, plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("name", ["nash_mtl", "fairgrad", "pcd", "si", "gls", "loss_balanced", "db_mtl"])
def test_directions_do_not_depend_on_the_scale_of_the_losses(name: str, scale: float) -> None:
    """The weights of these members change with the scale, all by the same factor."""
    exact = {"pcd": {"eps": 0.0}, "db_mtl": {}}.get(name, {})
    plain = update_rows(losses_of(4), conflicting(4), make(name, 4, **exact)).vector
    scaled = update_rows(scale * losses_of(4), scale * conflicting(4), make(name, 4, **exact)).vector
    cosine = torch.nn.functional.cosine_similarity(plain, scaled, dim=0)
    assert cosine > 1 - (1e-4 if name == "db_mtl" else 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_no_member_needs_an_extra_solver(name: str) -> None:
    """No member imports cvxpy, which slows every start by a second."""
    make(name, 4)
    assert not {"cvxpy", "ecos", "clarabel"} & set(sys.modules)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(SCALARIZATIONS)))
def test_head_weights_are_available_before_the_first_step(name: str) -> None:
    combiner = make(name, 3)
    assert isinstance(combiner, JacobianMethod)
    heads = combiner.head_weights(losses_of(3))
    assert heads is None or heads.shape == (3,)
