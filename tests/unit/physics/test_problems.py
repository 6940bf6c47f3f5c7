"""Reference solutions satisfy the equations and conditions of their problems."""

import math

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from multitask.data.collocation import Collocation
from multitask.physics.beltrami import Beltrami
from multitask.physics.burgers import Burgers
from multitask.physics.helmholtz import Helmholtz
from multitask.physics.kovasznay import Kovasznay
from multitask.physics.problem import INSIDE, Problem

PROBLEMS: dict[str, Problem] = {
    "burgers": Burgers(),
    "viscous burgers": Burgers(nu=0.1),
    "kovasznay": Kovasznay(),
    "slow kovasznay": Kovasznay(reynolds=5.0),
    "beltrami": Beltrami(),
    "slow beltrami": Beltrami(reynolds=3.0),
    "helmholtz": Helmholtz(),
    "other helmholtz": Helmholtz(k=2.5, modes=[3, 2]),
}


def drawn(problem: Problem, count: int = 200) -> dict[str, Tensor]:
    """Return one draw of points per place."""
    points = {INSIDE: count} | dict.fromkeys(problem.faces, count)
    grids = [[2] * len(problem.axes)] * 2
    split = Collocation(problem, points, steps=1, grids=grids).load()["train"]
    return {place: p[0] for place, p in split.items()}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_solution_has_no_residual(name: str) -> None:
    problem = PROBLEMS[name]
    points = drawn(problem)[INSIDE]
    if isinstance(problem, Burgers):
        points = points[points[:, 1] > 0.01]  # derivatives of √t
    points.requires_grad_()
    residuals = problem.residuals(problem.solution(points), points)
    assert list(residuals) == list(problem.equations)
    for residual in residuals.values():
        assert len(residual) == len(points)
        # Burgers' second derivative at the shock is of the order of 1 / ν².
        assert residual.abs().max() < 1e-6


@pytest.mark.parametrize("name", PROBLEMS)
def test_another_function_has_a_residual(name: str) -> None:
    problem = PROBLEMS[name]
    points = drawn(problem)[INSIDE].requires_grad_()
    values = problem.solution(points) + 0.1 * points.prod(1, keepdim=True).square()
    for residual in problem.residuals(values, points).values():
        assert residual.square().mean() > 1e-6


@pytest.mark.parametrize("name", PROBLEMS)
def test_conditions_equal_the_solution(name: str) -> None:
    problem = PROBLEMS[name]
    places = drawn(problem)
    for face in problem.faces:
        found = problem.condition(face, places[face])
        torch.testing.assert_close(found, problem.solution(places[face]), rtol=0.0, atol=1e-9)


def test_residuals_of_polynomials() -> None:
    """The derivatives of polynomials are known in closed form."""
    x, y = (points := drawn(Burgers(), 50)[INSIDE].requires_grad_()).unbind(1)
    u = x**2 * y + y
    found = Burgers(nu=0.3).residuals(u[:, None], points)["residual"]
    torch.testing.assert_close(found, x**2 + 1 + u * 2 * x * y - 0.3 * 2 * y)
    found = Helmholtz(k=2.0, modes=[1, 1]).residuals(u[:, None], points)["residual"]
    source = (4 - 2 * math.pi**2) * torch.sin(math.pi * x) * torch.sin(math.pi * y)
    torch.testing.assert_close(found, 2 * y + 4 * u - source)
    v, p = x * y**2, x * y
    terms = Kovasznay(reynolds=2.0).residuals(torch.stack([u, v, p], 1), points)
    torch.testing.assert_close(terms["continuity"], 2 * x * y + 2 * x * y)
    first = u * 2 * x * y + v * (x**2 + 1) + y - 0.5 * 2 * y
    second = u * y**2 + v * 2 * x * y + x - 0.5 * 2 * x
    torch.testing.assert_close(terms["momentum"], torch.stack([first, second], 1))


def test_beltrami_equals_the_published_flow() -> None:
    """Compare one point with the printed formulas for a = d = 1."""
    x, y, z, t = 0.3, -0.7, 0.5, 0.4
    e, s, c = math.exp, math.sin, math.cos
    u = -(e(x) * s(y + z) + e(z) * c(x + y)) * e(-t)
    v = -(e(y) * s(z + x) + e(x) * c(y + z)) * e(-t)
    w = -(e(z) * s(x + y) + e(y) * c(z + x)) * e(-t)
    crossed = s(x + y) * c(z + x) * e(y + z) + s(y + z) * c(x + y) * e(z + x) + s(z + x) * c(y + z) * e(x + y)
    p = -(e(2 * x) + e(2 * y) + e(2 * z) + 2 * crossed) * e(-2 * t) / 2
    found = Beltrami().solution(torch.tensor([[x, y, z, t]], dtype=torch.float64))
    np.testing.assert_allclose(found[0].numpy(), [u, v, w, p], rtol=1e-13)


@pytest.mark.smoke("point0")
@pytest.mark.slow
@pytest.mark.parametrize("point", [(0.01, 1.0), (0.003, 0.9), (0.25, 0.5), (-0.5, 0.75), (0.9, 0.1)])
def test_burgers_solution_is_the_cole_hopf_integral(point: tuple[float, float]) -> None:
    x, t = (mpmath.mpf(v) for v in point)
    nu = mpmath.mpf("0.01") / mpmath.pi

    def heat(z: mpmath.mpf) -> mpmath.mpf:
        y = x - mpmath.sqrt(4 * nu * t) * z
        return mpmath.exp(-mpmath.cos(mpmath.pi * y) / (2 * mpmath.pi * nu) - z * z)

    def weighted(z: mpmath.mpf) -> mpmath.mpf:
        return -mpmath.sin(mpmath.pi * (x - mpmath.sqrt(4 * nu * t) * z)) * heat(z)

    with mpmath.workdps(40):
        pieces = mpmath.linspace(-16, 16, 65)
        expected = float(mpmath.quad(weighted, pieces) / mpmath.quad(heat, pieces))
    found = Burgers().solution(torch.tensor([point], dtype=torch.float64))
    np.testing.assert_allclose(float(found), expected, rtol=1e-11)


def test_burgers_is_odd_and_starts_as_a_sine() -> None:
    x = torch.linspace(-1, 1, 21, dtype=torch.float64)
    start = torch.stack([x, torch.zeros_like(x)], 1)
    torch.testing.assert_close(Burgers().solution(start)[:, 0], -torch.sin(math.pi * x))
    later = torch.stack([x, torch.full_like(x, 0.7)], 1)
    found = Burgers().solution(later)[:, 0]
    torch.testing.assert_close(found, -found.flip(0), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Burgers(nu=0.0), r"data\.problem\.nu=0.0 must be positive"),
        (lambda: Beltrami(reynolds=0.0), r"data\.problem\.reynolds=0.0 must be positive"),
        (lambda: Kovasznay(reynolds=-1.0), r"data\.problem\.reynolds=-1.0 must be positive"),
        (lambda: Helmholtz(modes=[1]), r"data\.problem\.modes=\[1\] must be two whole numbers"),
        (lambda: Helmholtz(modes=[1, 1.5]), r"data\.problem\.modes=\[1, 1.5\] must be two whole numbers"),
    ],
)
def test_errors_name_the_key(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
