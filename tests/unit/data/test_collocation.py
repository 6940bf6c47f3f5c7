"""Collocation points: Latin hypercubes inside and on each face, new in each step and reproducible."""

from typing import Any

import pytest
import torch
from torch import Tensor

from multitask.data.collocation import Collocation, grid_of
from multitask.physics.beltrami import Beltrami
from multitask.physics.burgers import Burgers
from multitask.physics.kovasznay import Kovasznay
from multitask.physics.problem import INSIDE, Problem

POINTS = {INSIDE: 60, "boundary": 20}


def burgers(**changes: Any) -> Collocation:
    options: dict[str, Any] = {"points": {**POINTS, "initial": 9}, "steps": 5, "grids": [[8, 6], [5, 4]]}
    return Collocation(Burgers(), **{**options, **changes})


def is_latin(points: Tensor, ends: tuple[float, float]) -> bool:
    """Return whether each of n equal intervals of an axis contains one of the n points."""
    strata = ((points - ends[0]) / (ends[1] - ends[0]) * len(points)).floor()
    return strata.sort()[0].tolist() == list(range(len(points)))


@pytest.mark.parametrize("problem", [Burgers(), Kovasznay()])
def test_draws_are_latin_hypercubes_inside_and_on_each_face(problem: Problem) -> None:
    points = {INSIDE: 40} | dict.fromkeys(problem.faces, 23)
    draws = Collocation(problem, points, steps=3).load()["train"]
    assert {place: list(p.shape) for place, p in draws.items()} == {p: [3, n, 2] for p, n in points.items()}  # type: ignore[union-attr]
    names = list(problem.axes)
    for step in range(3):
        for i, name in enumerate(names):
            assert is_latin(draws[INSIDE][step, :, i], problem.axes[name])  # type: ignore[index]
        for condition, faces in problem.faces.items():
            left: Tensor = draws[condition][step]  # type: ignore[index]
            for axis, at in faces:
                on = left[:, names.index(axis)] == at
                assert on.any()
                other = 1 - names.index(axis)
                assert is_latin(left[on, other], problem.axes[names[other]])
                left = left[~on]
            assert not len(left)


def test_faces_have_points_in_proportion_to_their_size() -> None:
    draws = Collocation(Kovasznay(), {INSIDE: 1, "boundary": 70}, steps=1).load()["train"]
    x, y = draws["boundary"][0].unbind(1)  # type: ignore[index]
    found = [int((x == -0.5).sum()), int((x == 1).sum()), int((y == -0.5).sum()), int((y == 1.5).sum())]
    assert sum(found) == 70
    assert all(abs(a - b) <= 1 for a, b in zip(found, [20, 20, 15, 15], strict=True))


def test_points_are_new_in_each_step_and_epoch_and_depend_on_the_seed() -> None:
    data = burgers(seed=3)
    loader = data.loader("train", training=True)

    def epoch(number: int) -> Tensor:
        loader.set_epoch(number)  # type: ignore[union-attr]
        return torch.cat([batch[INSIDE] for batch in loader])

    first, second, again = epoch(0), epoch(1), epoch(0)
    assert len(torch.cat([first, second]).flatten(0, 1).unique(dim=0)) == 2 * 5 * 60
    assert torch.equal(first, again)
    assert torch.equal(burgers(seed=3).load()["train"]["initial"], burgers(seed=3).load()["train"]["initial"])  # type: ignore[index]
    assert not torch.equal(first, burgers(seed=4).load()["train"][INSIDE])  # type: ignore[index]


def test_resumed_epoch_has_the_points_of_the_whole_epoch() -> None:
    whole, cut = burgers().loader("train", training=True), burgers().loader("train", training=True)
    for loader in (whole, cut):
        loader.set_epoch(2)  # type: ignore[union-attr]
    cut.load_state_dict({"position": 3})  # type: ignore[union-attr]
    for expected, found in zip(list(whole)[3:], cut, strict=True):
        assert all(torch.equal(expected[place], found[place]) for place in expected)


def test_fixed_points_are_the_same_in_all_steps_and_epochs() -> None:
    data = burgers(fixed=True)
    loader = data.loader("train", training=True)
    found = []
    for number in range(2):
        loader.set_epoch(number)  # type: ignore[union-attr]
        found += [batch["boundary"] for batch in loader]
    assert len(found) == 10
    assert all(torch.equal(points, found[0]) for points in found)


def test_validation_and_test_are_the_same_for_all_seeds_and_share_the_solution() -> None:
    first, second = burgers(seed=0).load(), burgers(seed=1).load()
    for split, sizes in (("val", [8, 6]), ("test", [5, 4])):
        here, there = first[split], second[split]
        assert all(torch.equal(here[key], there[key]) for key in here)  # type: ignore[index,union-attr]
        grid = here["grid"].flatten(0, 1)  # type: ignore[index]
        assert torch.equal(grid, grid_of(Burgers(), sizes))
        assert torch.equal(here["solution"].flatten(0, 1), Burgers().solution(grid))  # type: ignore[index]
        assert here[INSIDE].flatten(0, 1).shape[0] >= 60  # type: ignore[index]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": POINTS}, r"data\.points=.* of inside, boundary, initial"),
        ({"points": {**POINTS, "initial": 0}}, r"data\.points=.* a positive count"),
        ({"points": {**POINTS, "initial": 3, "boundary": 1}}, r"data\.points\.boundary=1 must be at least 2"),
        ({"steps": 0}, r"data\.steps=0 must be 1 or more"),
        ({"grids": [[8, 6]]}, r"data\.grids=.* two grids of 2 counts above 1"),
        ({"grids": [[8, 6], [5, 1]]}, r"data\.grids=.* two grids of 2 counts above 1"),
    ],
)
def test_errors_name_the_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        burgers(**changes)


def test_axes_with_one_point_are_at_the_midpoint() -> None:
    grid = grid_of(Beltrami(), [3, 2])
    assert grid.shape == (6, 4)
    assert grid[:, 0].tolist() == [-1, -1, 0, 0, 1, 1]
    assert grid[:, 1].tolist() == [-1, 1] * 3
    assert grid[:, 2:].unique(dim=0).tolist() == [[0.0, 0.5]]
