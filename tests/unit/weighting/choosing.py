"""Measures the table of docs/choosing.md, which ``python -m tests.unit.weighting.choosing`` rewrites."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from multitask.gradients.rows import RowGradients
from multitask.weighting.base import Combiner, JacobianMethod, hooks_of
from tests.unit.weighting.members import (
    NAMES,
    STOCHASTIC,
    config,
    conflicting,
    losses_of,
    make,
    names,
    number_of_tasks,
    update_rows,
)

PAGE = Path(__file__).parents[3] / "docs" / "choosing.md"
BEGIN = "<!-- table: made by tests/unit/weighting/choosing.py -->\n"
END = "<!-- end of table -->\n"
DRAWS = 8
SAME = 1e-3
"""Relative tolerance within which directions are equal and a conflict is ignored."""


def direction(name: str, losses: Tensor, jacobian: Tensor) -> Tensor:
    """Return the combined gradient of a new member's first step."""
    torch.manual_seed(0)
    return update_rows(losses, jacobian, member(name, len(losses))).vector


def member(name: str, m: int) -> Combiner:
    """Return a new member, with the regularization of its Gramian switched off."""
    return deepcopy(_made(name, m))


@cache
def _made(name: str, m: int) -> Combiner:
    given = config(name, names(m)).get("projector")
    return make(name, m, **({} if given is None else {"projector": {**given, "reg_eps": 1e-14}}))


def problems(name: str) -> list[tuple[Tensor, Tensor]]:
    """Return losses and Jacobians: random gradients, and gradients that mostly oppose each other."""
    m = number_of_tasks(name)
    found = []
    for seed in range(DRAWS):
        J = conflicting(m, seed=seed)
        found += [(losses_of(m), J), (losses_of(m), J - 0.9 * J.mean(0))]
    return found


def parallel(first: Tensor, second: Tensor) -> bool:
    if not first.norm() or not second.norm():
        return not first.norm() and not second.norm()
    return bool((first / first.norm() - second / second.norm()).norm() < SAME)


def non_conflicting(name: str) -> bool:
    """Whether no loss increases to first order."""
    for losses, J in problems(name):
        d = direction(name, losses, J)
        if (J @ d < -SAME * J.norm(dim=1) * d.norm()).any():
            return False
    return True


def ignores_one_scale(name: str) -> bool:
    """Whether rescaling one loss leaves the direction unchanged."""

    def scaled(losses: Tensor, J: Tensor) -> tuple[Tensor, Tensor]:
        c = torch.ones_like(losses)
        c[0] = 3.0
        return losses * c, J * c[:, None]

    return _same_direction(name, scaled)


def ignores_all_scales(name: str) -> bool:
    """Whether rescaling all losses by one factor leaves the direction unchanged."""
    return _same_direction(name, lambda losses, J: (3 * losses, 3 * J))


def ignores_order(name: str) -> bool:
    """Whether reordering the tasks leaves the direction unchanged."""
    return _same_direction(name, lambda losses, J: (losses.flip(0), J.flip(0)))


def _same_direction(name: str, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> bool:
    return all(
        parallel(direction(name, *change(losses, J)), direction(name, losses, J))
        for losses, J in problems(name)
    )


def linear_under_scaling(name: str) -> bool:
    """Whether the gradient of diag(c) J is linear in c > 0."""
    for i, (losses, J) in enumerate(problems(name)):
        random = torch.Generator().manual_seed(i)
        a, b = 0.2 + torch.rand(2, len(losses), generator=random, dtype=torch.float64)

        def of(c: Tensor, losses: Tensor = losses, J: Tensor = J) -> Tensor:
            return direction(name, c * losses, c[:, None] * J)

        whole = of(a + b)
        if (of(a) + of(b) - whole).norm() > SAME * whole.norm():
            return False
    return True


def is_zero_where_stationary(name: str) -> bool:
    """Whether the update is zero at Pareto-stationary points at which no task gradient is zero."""
    for losses, J in problems(name):
        weights = torch.linspace(1.0, 2.0, len(J) - 1, dtype=torch.float64)
        J[-1] = -(weights @ J[:-1])
        if direction(name, losses, J).norm() > 10 * SAME * J.norm(dim=1).mean():
            return False
    return True


def is_stateful(name: str) -> bool:
    """Whether a step depends on earlier steps or on trainable parameters."""
    losses, J = problems(name)[0]
    combiner = member(name, len(losses))
    first = direction(name, losses, J)
    for i in range(6):  # losses that fall at different rates, each step an epoch
        fallen = losses * torch.linspace(0.5, 1.0, len(losses), dtype=losses.dtype) ** i
        with combiner.restricted_to(torch.ones(len(losses), dtype=torch.bool)):
            update_rows(fallen, J.flip(0), combiner)
        combiner.after_step(lambda fallen=fallen: fallen * torch.linspace(0.5, 1.0, len(losses)))
        combiner.on_epoch_end()
    torch.manual_seed(0)
    again = update_rows(losses, J, deepcopy(combiner)).vector
    return bool((first - again).norm() > 1e-9 * first.norm()) or any(True for _ in combiner.parameters())


def needs(name: str) -> str:
    """Return what a member reads: the losses, the Gramian or the Jacobian."""
    losses, J = problems(name)[0]
    combiner = member(name, len(losses))
    if not isinstance(combiner, JacobianMethod):
        return "losses"
    read = []
    whole = RowGradients.jacobian

    def spied(rows: RowGradients) -> Tensor:
        read.append(True)
        return whole(rows)

    with patch.object(RowGradients, "jacobian", spied):
        update_rows(losses, J, combiner)
    return ("Jacobian" if read else "Gramian") + {
        "task": "",
        "half": " of two halves",
        "example": " of examples",
    }[combiner.rows]


def cost(name: str) -> str:
    """Return the number of backward passes through the shared parameters per step."""
    combiner = member(name, number_of_tasks(name))
    if not isinstance(combiner, JacobianMethod):
        if combiner.recomputed == "traces":
            return "1, and per point where traces are due"
        return "1, and a forward pass" if "after_step" in hooks_of(combiner) else "1"
    return {"task": "m", "half": "2m", "example": "batch · m"}[combiner.rows]


def memory(name: str) -> str:
    """Return how many gradients of the shared parameters are kept between steps."""
    m, n = number_of_tasks(name), 1000
    combiner = member(name, m)
    update_rows(losses_of(m), conflicting(m, n), combiner)
    kept = sum(value.numel() for value in _tensors(combiner)) // n
    return "" if not kept else "m" if kept == m else str(kept)


def _tensors(combiner: Combiner) -> list[Tensor]:
    found = {id(b): b for b in combiner.buffers() if b is not None}
    return list(found.values())


PROPERTIES: dict[str, Callable[[str], bool]] = {
    "no conflict": non_conflicting,
    "one scale": ignores_one_scale,
    "all scales": ignores_all_scales,
    "order": ignores_order,
    "linear": linear_under_scaling,
    "rests": is_zero_where_stationary,
}


@cache
def properties(name: str) -> dict[str, bool]:
    """Return which properties a member's first step has."""
    return {title: bool(measure(name)) for title, measure in PROPERTIES.items()}


def table() -> str:
    """Return the table, one row per weighting."""
    head = ["weighting", "reads", "backward passes", "keeps", *PROPERTIES]
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * 4 + [':--'] * len(PROPERTIES))} |"]
    for name in NAMES:
        marks = "°" * is_stateful(name) + "~" * (name in STOCHASTIC)
        cells = [f"`{name}`{' ' * bool(marks)}{marks}", needs(name), cost(name), memory(name)]
        cells += ["✓" if holds else "" for holds in properties(name).values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def regenerated(page: str) -> str:
    """Return the page with the table measured again."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    PAGE.write_text(regenerated(PAGE.read_text()))
