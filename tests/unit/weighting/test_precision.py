"""Every member agrees with fifty-digit arithmetic on float32 gradients whose norms differ by 1e6."""

from itertools import permutations

import mpmath
import pytest
import torch
from mpmath import matrix, mp, mpf
from torch import Tensor
from torchjd import aggregation

from multitask.weighting.base import JacobianMethod
from tests.unit.weighting.members import (
    NAMES,
    NEEDS_THREE,
    conflicting,
    losses_of,
    make,
    update,
    update_rows,
)
from tests.unit.weighting.promises import READS_JACOBIAN, SCALARIZATIONS

NORMS = [list(norms) for norms in permutations([1e-3, 1.0, 1e3])] + [
    [1e-3, 1e3, 1e-3, 1e3],
    [1e3, 1e-3, 1e3, 1.0],
]
Vector = list[mpf]


def rows(norms: list[float]) -> Tensor:
    """Return float32 rows of approximately these norms."""
    J = torch.nn.functional.normalize(conflicting(len(norms), seed=2), dim=1)
    return (J * torch.tensor(norms, dtype=torch.float64)[:, None]).float()


def exact(J: Tensor) -> tuple[list[Vector], Vector]:
    """Return the rows and their norms, in fifty digits."""
    found = [[mpf(x) for x in row] for row in J.tolist()]
    return found, [mpmath.sqrt(dot(g, g)) for g in found]


def dot(a: Vector, b: Vector) -> mpf:
    return mpmath.fdot(a, b)


def combined(weights: Vector, found: list[Vector]) -> Vector:
    return [dot(weights, [g[j] for g in found]) for j in range(len(found[0]))]


def close(found: Vector, expected: Vector, tolerance: float = 2e-5) -> None:
    """Assert that the norm of the difference is small relative to that of ``expected``."""
    difference = [a - b for a, b in zip(found, expected, strict=True)]
    assert mpmath.sqrt(dot(difference, difference)) <= tolerance * mpmath.sqrt(dot(expected, expected))


def weights_of(name: str, J: Tensor, **changes: object) -> Vector:
    torch.manual_seed(0)
    weights = update(make(name, len(J), **changes).float(), losses_of(len(J)).float(), J).weights
    assert weights is not None
    assert weights.dtype == torch.float32
    return [mpf(w) for w in weights.tolist()]


@pytest.fixture(autouse=True)
def fifty_digits() -> object:
    with mpmath.workdps(50):
        yield


def cosines(found: list[Vector], lengths: Vector) -> matrix:
    units = [[x / n for x in g] for g, n in zip(found, lengths, strict=True)]
    return matrix([[dot(a, b) for b in units] for a in units])


def equal_cosines(found: list[Vector], lengths: Vector) -> Vector:
    """Return the weights of the combination whose products with the unit gradients are all one."""
    beta = mp.lu_solve(cosines(found, lengths), matrix([mpf(1)] * len(found)))
    return [b / n for b, n in zip(beta, lengths, strict=True)]


@pytest.mark.parametrize("norms", NORMS, ids=str)
@pytest.mark.parametrize("name", ["imtl_g", "imtl"])
def test_imtl_g(name: str, norms: list[float]) -> None:
    J = rows(norms)
    found, lengths = exact(J)
    weights = equal_cosines(found, lengths)
    total = mpmath.fsum(weights)
    # The sum of weights of both signs can be smaller than the weights.
    cancelled = float(mpmath.fsum(map(abs, weights)) / abs(total))
    expected = combined([w / total for w in weights], found)
    close(combined(weights_of(name, J), found), expected, 2e-5 * cancelled)


@pytest.mark.parametrize("norms", NORMS, ids=str)
def test_config(norms: list[float]) -> None:
    J = rows(norms)
    found, lengths = exact(J)
    direction = combined(equal_cosines(found, lengths), found)
    size = mpmath.sqrt(dot(direction, direction))
    unit = [x / size for x in direction]
    length = mpmath.fsum(dot(g, unit) for g in found)
    close(combined(weights_of("config", J), found), [length * x for x in unit])


@pytest.mark.parametrize("norms", NORMS, ids=str)
@pytest.mark.parametrize("mode", ["min", "median", "rmse"])
def test_aligned_mtl(mode: str, norms: list[float]) -> None:
    J = rows(norms)
    found, _ = exact(J)
    values, V = mp.eigsy(matrix([[dot(a, b) for b in found] for a in found]))
    values, k = list(values), len(J)
    size = {"min": values[0], "median": values[(k - 1) // 2], "rmse": mpmath.fsum(values) / k}[mode]
    balance = V * mpmath.diag([mpmath.sqrt(size / value) for value in values]) * V.T
    expected = combined(list(balance * matrix([mpf(1) / k] * k)), found)
    close(combined(weights_of("aligned_mtl", J, scale_mode=mode), found), expected)


@pytest.mark.parametrize("norms", NORMS, ids=str)
def test_pcgrad(norms: list[float]) -> None:
    J = rows(norms)
    found, _ = exact(J)
    torch.manual_seed(0)
    total = [mpf(0)] * J.shape[1]
    for i in range(len(J)):
        g = found[i]
        for j in torch.randperm(len(J)).tolist():
            conflict = dot(g, found[j])
            if j != i and conflict < 0:
                factor = conflict / dot(found[j], found[j])
                g = [a - factor * b for a, b in zip(g, found[j], strict=True)]
        total = [a + b for a, b in zip(total, g, strict=True)]
    close(combined(weights_of("pcgrad", J), found), total)


@pytest.mark.parametrize("norms", NORMS, ids=str)
def test_gradvac(norms: list[float]) -> None:
    """In the first step all target cosines are zero, as in PCGrad with another random order."""
    J = rows(norms)
    found, _ = exact(J)
    torch.manual_seed(0)
    total = [mpf(0)] * J.shape[1]
    for i in range(len(J)):
        others = [j for j in range(len(J)) if j != i]
        g = found[i]
        for j in [others[j] for j in torch.randperm(len(others)).tolist()]:
            conflict = min(mpf(0), dot(g, found[j]))
            factor = conflict / dot(found[j], found[j])
            g = [a - factor * b for a, b in zip(g, found[j], strict=True)]
        total = [a + b for a, b in zip(total, g, strict=True)]
    close(combined(weights_of("gradvac", J), found), total)


@pytest.mark.parametrize("norms", NORMS, ids=str)
@pytest.mark.parametrize(("name", "alpha"), [("nash_mtl", 1.0), ("fairgrad", 0.5), ("fairgrad", 2.0)])
def test_bargaining(name: str, alpha: float, norms: list[float]) -> None:
    """Compare with Newton's method for G w = w^(−1/α) in fifty digits, started at the float64 solution."""
    J = rows(norms)
    found, lengths = exact(J)
    C, k, power = cosines(found, lengths), len(J), 1 / mpf(alpha)
    changes = {"max_norm": 0.0} if name == "nash_mtl" else {"alpha": alpha}
    start = update(make(name, k, **changes), losses_of(k), J.double()).weights
    assert start is not None
    v = [mpf(w) * n for w, n in zip(start.tolist(), lengths, strict=True)]
    for _ in range(9):
        right = [n ** (power - 1) * x**-power for x, n in zip(v, lengths, strict=True)]
        slope = C + mpmath.diag([power * r / x for r, x in zip(right, v, strict=True)])
        v = list(matrix(v) - mp.lu_solve(slope, C * matrix(v) - matrix(right)))
    assert mpmath.norm(C * matrix(v) - matrix(right)) < mpf(10) ** -30 * mpmath.norm(matrix(right))
    expected = combined([x / n for x, n in zip(v, lengths, strict=True)], found)
    close(combined(weights_of(name, J, **changes), found), expected)


@pytest.mark.parametrize("norms", NORMS, ids=str)
def test_mgda(norms: list[float]) -> None:
    J = rows(norms)
    found, lengths = exact(J)
    weights = weights_of("mgda", J)
    shortest = combined(weights, found)
    square = dot(shortest, shortest)
    assert min(weights) >= 0
    assert abs(mpmath.fsum(weights) - 1) < 1e-6
    for w, g, n in zip(weights, found, lengths, strict=True):
        gap = (dot(g, shortest) - square) / n / mpmath.sqrt(square)
        assert gap >= -1e-5
        assert w * n * gap <= 1e-5 * mpmath.sqrt(square)


@pytest.mark.parametrize("norms", NORMS, ids=str)
@pytest.mark.parametrize("c", [0.4, 0.9])
def test_cagrad(c: float, norms: list[float]) -> None:
    J = rows(norms)
    found, lengths = exact(J)
    k = len(J)
    weights = weights_of("cagrad", J, c=c)
    direction, mean = combined(weights, found), combined([mpf(1) / k] * k, found)
    away = [a - b for a, b in zip(direction, mean, strict=True)]
    radius = c * mpmath.sqrt(dot(mean, mean))
    assert abs(mpmath.sqrt(dot(away, away)) / radius - 1) < 1e-5
    size = mpmath.sqrt(dot(direction, direction))
    gains = [dot(g, direction) for g in found]
    worst = min(range(k), key=lambda i: gains[i])
    for w, n, gain in zip(weights, lengths, gains, strict=True):
        pushes = (w - mpf(1) / k) * n > 1e-5 * radius
        # Only a task whose gain is the smallest, to float32 precision, has more weight than in the mean.
        assert not pushes or gain - gains[worst] <= 1e-5 * size * max(n, lengths[worst])


@pytest.mark.parametrize("norms", NORMS, ids=str)
@pytest.mark.parametrize("name", ["upgrad", "dualproj"])
def test_projections_onto_the_dual_cone(name: str, norms: list[float]) -> None:
    """Compare with torchjd's in float64, which add 1e-4 of the trace to the Gramian."""
    J = rows(norms)
    torchjds = {"upgrad": aggregation.UPGradWeighting, "dualproj": aggregation.DualProjWeighting}[name]()
    expected = torchjds(J.double() @ J.double().T).tolist()
    close(weights_of(name, J), [mpf(w) for w in expected])


@pytest.mark.parametrize("norms", NORMS, ids=str)
@pytest.mark.parametrize("tau", [0.02, 0.5])
def test_pcd(tau: float, norms: list[float]) -> None:
    """Every minimum gain is met, and only the gradients of binding minima are added to the primary one."""
    J = rows(norms)
    found, lengths = exact(J)
    weights = weights_of("pcd", J, tau=tau, eps=0.0)
    shares = [w * n for w, n in zip(weights, lengths, strict=True)]
    shares = [share / shares[0] for share in shares]
    units = [[x / n for x in g] for g, n in zip(found, lengths, strict=True)]
    direction = combined(shares, units)
    assert min(shares) >= 0
    for share, u in list(zip(shares, units, strict=True))[1:]:
        gain = dot(u, direction) - tau
        assert gain >= -1e-5
        assert share * gain <= 1e-5
    update_ = combined(weights, found)
    assert abs(mpmath.sqrt(dot(update_, update_)) / lengths[0] - 1) < 1e-5


def test_krum() -> None:
    J = rows([1e3, 1e-3, 1e-3, 1e-3, 1.0])
    found, _ = exact(J)
    for n_byzantine in (0, 1):
        scores = []
        for g in found:
            gaps = sorted(mpmath.norm([a - b for a, b in zip(g, h, strict=True)]) for h in found)
            scores.append(mpmath.fsum(gaps[1 : len(J) - n_byzantine - 1]))
        weights = weights_of("krum", J, n_byzantine=n_byzantine)
        assert weights.index(1) == scores.index(min(scores))


@pytest.mark.parametrize("norms", [[1e-3, 1.0, 1e3], [1e3, 1.0, 1e-3]], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_float32_agrees_with_float64(name: str, norms: list[float]) -> None:
    """The updates and head weights of every member agree for a few steps."""
    if name in NEEDS_THREE:
        norms = [*norms, 2.0, 0.5]
    J = rows(norms)
    losses = torch.tensor(norms)
    single, double = make(name, len(J)).float(), make(name, len(J))
    for step in range(3):
        torch.manual_seed(step)
        found = update_rows(losses * (1 + step), J, single)
        torch.manual_seed(step)
        expected = update_rows((losses * (1 + step)).double(), J.double(), double)
        for a, b in ((found.vector, expected.vector), (found.heads, expected.heads)):
            # The epsilons of some papers cause part of the difference.
            assert float((a.double() - b).norm()) <= 1e-4 * float(b.norm())


def test_every_method_of_the_gramian_has_a_reference() -> None:
    covered = {
        "imtl_g",
        "imtl",
        "config",
        "aligned_mtl",
        "pcgrad",
        "gradvac",
        "nash_mtl",
        "fairgrad",
        "mgda",
        "cagrad",
    }
    covered |= {"upgrad", "dualproj", "pcd", "krum"}
    same = {"iwmtl": "UPGrad of other rows", "cr_mogm": "MGDA smoothed", "random": "sees no gradient"}
    halves = {"modo", "sdmgrad"}
    jacobian = set(READS_JACOBIAN.split())
    assert covered | same.keys() | halves | jacobian | set(SCALARIZATIONS) == set(NAMES)
    assert all(isinstance(make(name, 5), JacobianMethod) for name in covered)
