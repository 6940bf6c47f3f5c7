"""Every member equals torchjd's class, a closed form, or its paper's algorithm in NumPy, in float64."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torchjd import aggregation, scalarization

from multitask.weighting.present import restrict
from tests.unit.weighting.members import Toy, ToyTraining, conflicting, losses_of, make, names, update

M = 4
STEPS = 5


def jacobians(m: int = M, steps: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    """Return losses and Jacobians of a few steps."""
    return [((1 + 0.1 * s) * losses_of(m), conflicting(m, seed=s)) for s in range(steps)]


def follow(
    name: str, reference: Callable[[Tensor], Tensor], m: int = M, tolerance: float = 1e-10, **changes: object
) -> None:
    """Assert that a member's updates equal ``reference(J)`` in every step."""
    combiner = make(name, m, **changes)
    for step, (losses, J) in enumerate(jacobians(m)):
        torch.manual_seed(step)
        found = update(combiner, losses, J).vector
        torch.manual_seed(step)
        torch.testing.assert_close(found, reference(J), rtol=tolerance, atol=tolerance)


AGGREGATORS: dict[str, Callable[[], aggregation.Aggregator]] = {
    "upgrad": aggregation.UPGrad,
    "dualproj": aggregation.DualProj,
    "pcgrad": aggregation.PCGrad,
    "imtl_g": aggregation.IMTLG,
    "aligned_mtl": aggregation.AlignedMTL,
    "krum": lambda: aggregation.Krum(0, 1),
    "random": aggregation.Random,
    "graddrop": aggregation.GradDrop,
    "config": aggregation.ConFIG,
    "trimmed_mean": lambda: aggregation.TrimmedMean(1),
    "pcd": aggregation.PCD,
}


@pytest.mark.parametrize("m", [3, 4, 8])
@pytest.mark.parametrize("name", sorted(AGGREGATORS))
def test_torchjds_aggregator(name: str, m: int) -> None:
    follow(name, AGGREGATORS[name](), m)


@pytest.mark.parametrize("m", [1, 2, 3, 8])
def test_mgda_is_the_shortest_convex_combination(m: int) -> None:
    J = conflicting(m)
    vector = update(make("mgda", m), losses_of(m), J).vector
    # Its product with every row is at least its squared norm: the optimality condition.
    assert (J @ vector).min() >= vector @ vector - 1e-9


def test_torchjds_mgda_converges_to_ours() -> None:
    follow("mgda", aggregation.MGDA(epsilon=1e-9, max_iters=1000), 3, 1e-2)


@pytest.mark.parametrize("normalization", ["l2", "loss", "loss+"])
def test_mgda_normalizes_as_in_the_paper(normalization: str) -> None:
    losses, J = losses_of(M), conflicting(M)
    divisor = {"l2": J.norm(dim=1), "loss": losses, "loss+": losses * J.norm(dim=1)}[normalization]
    found = update(make("mgda", M, normalization=normalization), losses, J).vector
    plain = update(make("mgda", M), losses, J / divisor[:, None]).vector
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-12)


def test_gradvac_equals_torchjds_up_to_epsilon() -> None:
    follow("gradvac", aggregation.GradVac(beta=0.5, eps=1e-12), tolerance=1e-8, beta=0.5)
    follow("gradvac", aggregation.GradVac(beta=0.01, eps=1e-12), tolerance=1e-8)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("m", [1, 2, 3, 8])
def test_fairgrad_solves_its_equation(m: int, alpha: float) -> None:
    J = conflicting(m)
    weights = update(make("fairgrad", m, alpha=alpha), losses_of(m), J).weights
    assert weights is not None
    assert (weights > 0).all()
    torch.testing.assert_close(J @ (weights @ J), weights ** (-1 / alpha), rtol=1e-8, atol=0.0)
    if m < 8:
        torch.testing.assert_close(aggregation.FairGrad(alpha)(J), weights @ J, rtol=1e-3, atol=1e-3)


def test_fairgrad_of_alpha_zero_is_the_mean() -> None:
    follow("fairgrad", lambda J: J.mean(0), alpha=0.0)


@pytest.mark.parametrize("m", [1, 2, 3, 8, 40])
def test_nash_mtl_solves_its_equation(m: int) -> None:
    J = conflicting(m, max(12, m + 3))
    weights = update(make("nash_mtl", m, max_norm=0.0), losses_of(m), J).weights
    assert weights is not None
    torch.testing.assert_close(J @ J.T @ weights, 1 / weights, rtol=1e-8, atol=0.0)


def test_nash_mtl_shortens_the_combined_gradient() -> None:
    J = conflicting(M)
    free = update(make("nash_mtl", M, max_norm=0.0), losses_of(M), J).vector
    short = update(make("nash_mtl", M), losses_of(M), J).vector
    assert float(free.norm()) == pytest.approx(M**0.5)
    torch.testing.assert_close(short, free / free.norm(), rtol=1e-8, atol=0.0)
    long = update(make("nash_mtl", M, max_norm=9.0), losses_of(M), J).vector
    torch.testing.assert_close(long, free, rtol=1e-8, atol=0.0)


def test_cagrad_of_radius_zero_is_the_mean() -> None:
    follow("cagrad", lambda J: J.mean(0), c=0.0)


@pytest.mark.parametrize("c", [0.2, 0.4, 0.9])
@pytest.mark.parametrize("m", [1, 2, 3, 8])
def test_cagrad_solves_its_program(m: int, c: float) -> None:
    J = conflicting(m)
    vector = update(make("cagrad", m, c=c), losses_of(m), J).vector.numpy()
    rows = J.numpy()
    mean = rows.mean(0)
    radius = c * np.linalg.norm(mean)
    assert np.linalg.norm(vector - mean) <= radius * (1 + 1e-9)

    def dual(w: np.ndarray) -> float:
        return float(w @ rows @ mean + radius * np.linalg.norm(w @ rows))

    simplex = {"type": "eq", "fun": lambda w: w.sum() - 1}
    found = minimize(
        dual, np.full(m, 1 / m), bounds=[(0, 1)] * m, constraints=simplex, options={"ftol": 1e-13}
    )
    # No duality gap: the worst gain equals the minimum of the dual.
    assert (rows @ vector).min() == pytest.approx(found.fun, rel=1e-5, abs=1e-6)


def test_cagrad_is_zero_where_the_gradients_cancel() -> None:
    J = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    assert update(make("cagrad", 2), losses_of(2), J).vector.norm() < 1e-9


def test_config_has_equal_cosines() -> None:
    J = conflicting(M)
    vector = update(make("config", M), losses_of(M), J).vector
    cosines = torch.nn.functional.cosine_similarity(J, vector[None])
    torch.testing.assert_close(cosines, cosines[:1].expand(M), rtol=1e-9, atol=0.0)
    follow(
        "config", aggregation.ConFIG(torch.arange(1.0, 5.0, dtype=torch.float64)), pref_vector=[1, 2, 3, 4]
    )


@pytest.mark.parametrize("name", ["upgrad", "dualproj", "aligned_mtl"])
def test_preferences_are_given_by_task_name(name: str) -> None:
    torchjds = {
        "upgrad": aggregation.UPGrad,
        "dualproj": aggregation.DualProj,
        "aligned_mtl": aggregation.AlignedMTL,
    }
    preference = torch.tensor([1.0, 3.0, 1.0, 0.5], dtype=torch.float64)
    follow(name, torchjds[name](preference), pref_vector={"t3": 0.5, "t1": 3})


def test_primary_task_is_given_by_name() -> None:
    order = [2, 0, 1, 3]
    torchjds = aggregation.PCD()
    follow("pcd", lambda J: torchjds(J[order]), primary="t2")


def test_cr_mogm_smooths_weights() -> None:
    smoothed = aggregation.GramianWeightedAggregator(
        aggregation.CRMOGMWeighting(aggregation.UPGradWeighting())
    )
    follow("cr_mogm", smoothed, method={"_target_": "torchjd.aggregation.UPGradWeighting"})


def test_modo_and_sdmgrad_use_the_product_of_the_halves() -> None:
    pairs = {"modo": aggregation.MoDoWeighting(), "sdmgrad": aggregation.SDMGradWeighting()}
    for name, torchjds in pairs.items():
        combiner = make(name, M)
        for seed in range(STEPS):
            first, second = conflicting(M, seed=seed), conflicting(M, seed=seed + 50)
            found = update(combiner, losses_of(M).repeat(2), torch.cat([first, second])).vector
            expected = torchjds(first @ second.T) @ (first + second) / 2
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_excess_mtl_after_its_warmup() -> None:
    torchjds = aggregation.ExcessMTL(robust_step_size=0.01, n_warmup_steps=2)
    combiner = make("excess_mtl", M, warmup_epochs=1)
    for step, (losses, J) in enumerate(jacobians()):
        found = update(combiner, losses, J).vector
        torch.testing.assert_close(found, torchjds(J), rtol=1e-10, atol=1e-10)
        if step == 1:
            combiner.on_epoch_end()


VECTOR = partial(torch.tensor, dtype=torch.float64)
SCALARIZERS: dict[str, tuple[Callable[[], scalarization.Scalarizer], dict]] = {
    "weighted_sum": (lambda: scalarization.Constant(VECTOR([1.0, 2.0, 1.0, 1.0])), {"weights": {"t1": 2}}),
    "mean": (scalarization.Mean, {}),
    "rlw": (scalarization.Random, {}),
    "gls": (scalarization.GeometricMean, {}),
    "stch": (lambda: scalarization.STCH(0.1), {}),
    "cosmos": (
        lambda: scalarization.COSMOS(2.0, VECTOR([0.125, 0.125, 0.125, 0.625])),
        {"weights": {"t3": 5}},
    ),
    "pbi": (lambda: scalarization.PBI(5.0, VECTOR([1.0, 1.0, 3.0, 1.0])), {"weights": {"t2": 3}}),
    "uw": (lambda: scalarization.UW(M), {}),
    "imtl_l": (lambda: scalarization.IMTLL(M), {}),
}


@pytest.mark.parametrize("name", sorted(SCALARIZERS))
def test_torchjds_scalarizer(name: str) -> None:
    method, changes = SCALARIZERS[name]
    combiner, torchjds = make(name, M, **changes), method().double()
    for step, (losses, _) in enumerate(jacobians()):
        torch.manual_seed(step)
        found = combiner(losses)
        torch.manual_seed(step)
        torch.testing.assert_close(found, torchjds(losses), rtol=1e-7, atol=1e-9)
        theirs = list(torchjds.parameters())
        if theirs:
            ours = torch.autograd.grad(found, list(combiner.parameters()))
            torch.testing.assert_close(
                torch.stack(ours), *torch.autograd.grad(torchjds(losses), theirs), rtol=1e-9, atol=0.0
            )
            with torch.no_grad():
                theirs[0] += 0.3 * (step + 1) * torch.arange(M, dtype=torch.float64)
                for i, parameter in enumerate(combiner.parameters()):
                    parameter += 0.3 * (step + 1) * i


def test_dwa_equals_torchjds() -> None:
    combiner, torchjds = make("dwa", M), scalarization.DWA()
    for epoch in range(4):
        for step in range(3):
            losses = losses_of(M) ** (1 + 0.1 * epoch + 0.01 * step)
            torch.testing.assert_close(combiner(losses), torchjds(losses), rtol=1e-10, atol=0.0)
            combiner.observe(losses)
        combiner.on_epoch_end()
        torchjds.step()


def test_famo_equals_torchjds() -> None:
    bounds = {f"t{i}": 0.05 * i for i in range(M)}
    combiner = make("famo", M, min_losses=bounds)
    torchjds = scalarization.FAMO(M, torch.tensor(list(bounds.values()), dtype=torch.float64)).double()
    for losses, J in jacobians():
        leaf = losses.clone().requires_grad_()
        torchjds(leaf).backward()
        torch.testing.assert_close(update(combiner, losses, J).heads, leaf.grad, rtol=1e-7, atol=1e-9)
        after = losses * torch.linspace(0.8, 1.05, M)
        torchjds.update(after)
        combiner.after_step(lambda after=after: after)
    torch.testing.assert_close(combiner.logits, torchjds._w.detach(), rtol=1e-6, atol=1e-9)


def test_closed_forms() -> None:
    losses = losses_of(M)
    torch.testing.assert_close(make("si", M)(losses), losses.log().sum())
    leaf = losses.clone().requires_grad_()
    make("loss_balanced", M)(leaf).backward()
    torch.testing.assert_close(leaf.grad, 1 / (M * losses))


def test_scheduled_sum_is_linear_between_its_points() -> None:
    combiner = make("scheduled_sum", 2, schedule={"t1": [[2, 1.0], [4, 0.0]]})
    weights = []
    for _ in range(7):
        weights.append(float(update(combiner, losses_of(2), conflicting(2)).heads[1]))
    assert weights == [1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0]
    by_epoch = make("scheduled_sum", 2, schedule={"t0": [[0, 3.0], [1, 4.0]]}, unit="epoch")
    update(by_epoch, losses_of(2), conflicting(2))
    assert float(by_epoch(torch.tensor([1.0, 0.0]))) == 3.0
    by_epoch.on_epoch_end()
    assert float(by_epoch(torch.tensor([1.0, 0.0]))) == 4.0


def test_imtl_balances_losses_for_the_heads_and_gradients_for_the_trunk() -> None:
    combiner = make("imtl", M)
    s = np.array([0.3, -0.2, 0.5, 0.0])
    with torch.no_grad():
        for parameter, value in zip(combiner.parameters(), s, strict=True):
            parameter.fill_(value)
    losses, J = losses_of(M), conflicting(M)
    done = update(combiner, losses, J)
    scaled = torch.tensor(np.exp(s))[:, None] * J
    torch.testing.assert_close(done.vector, aggregation.IMTLG()(scaled), rtol=1e-9, atol=1e-10)
    projections = (scaled / scaled.norm(dim=1, keepdim=True)) @ done.vector
    torch.testing.assert_close(projections, projections[:1].expand(M), rtol=1e-8, atol=0.0)
    np.testing.assert_allclose(done.heads.numpy(), np.exp(s))
    own = [float(p.grad) for p in combiner.parameters()]
    np.testing.assert_allclose(own, np.exp(s) * losses.numpy() - 1)


class Adam:
    """Adam in NumPy (Kingma and Ba, 2015)."""

    def __init__(self, lr: float) -> None:
        self.lr, self.t, self.mean, self.square = lr, 0, 0.0, 0.0

    def step(self, x: np.ndarray, g: np.ndarray) -> np.ndarray:
        self.t += 1
        self.mean = 0.9 * self.mean + 0.1 * g
        self.square = 0.999 * self.square + 0.001 * g * g
        mean, square = self.mean / (1 - 0.9**self.t), self.square / (1 - 0.999**self.t)
        return x - self.lr * mean / (np.sqrt(square) + 1e-8)


def test_gradnorm_follows_its_paper() -> None:
    alpha, lr = 1.5, 0.025
    combiner, adam = make("gradnorm", M), Adam(lr)
    w, first = np.ones(M), None
    for losses, J in jacobians():
        done = update(combiner, losses, J)
        g, L = J.numpy(), losses.numpy()
        first = L if first is None else first
        np.testing.assert_allclose(done.vector.numpy(), w @ g, rtol=1e-10)
        np.testing.assert_allclose(done.heads.numpy(), w, rtol=1e-10)
        # The last layer holds the last four of the twelve columns.
        norms = np.linalg.norm(g[:, 8:], axis=1)
        rates = (L / first) / (L / first).mean()
        target = (w * norms).mean() * rates**alpha
        w = adam.step(w, np.sign(w * norms - target) * norms)
        w = M * w / w.sum()


def simplex(v: np.ndarray) -> np.ndarray:
    """Return the nearest point of the simplex, by bisection of the multiplier."""
    low, high = v.min() - 1, v.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(v - middle, 0, None).sum() > 1 else (low, middle)
    return np.clip(v - low, 0, None)


def test_moco_follows_its_paper() -> None:
    combiner = make("moco", M, rho=0.01)
    Y, w = np.zeros((M, 12)), np.full(M, 1 / M)
    for t, (losses, J) in enumerate(jacobians(), start=1):
        Y = Y - 0.5 / np.sqrt(t) * (Y - J.numpy())
        w = simplex(w - 0.1 / np.sqrt(t) * (Y @ Y.T + 0.01 * np.eye(M)) @ w)
        np.testing.assert_allclose(update(combiner, losses, J).vector.numpy(), Y.T @ w, rtol=1e-8, atol=1e-10)


def test_db_mtl_follows_its_paper() -> None:
    combiner = make("db_mtl", M)
    average = np.zeros((M, 12))
    for t, (losses, J) in enumerate(jacobians(), start=1):
        g = J.numpy() / losses.numpy()[:, None]
        average = g + 0.9 / np.sqrt(t) * (average - g)
        norms = np.linalg.norm(average, axis=1, keepdims=True)
        done = update(combiner, losses, J)
        expected = (norms.max() * average / norms).sum(0)
        np.testing.assert_allclose(done.vector.numpy(), expected, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(done.heads.numpy(), 1 / losses.numpy(), rtol=1e-7)


def rates(seen: list[np.ndarray], order: int) -> np.ndarray:
    """Return the derivative at the newest point of the polynomial through the last losses."""
    last = np.array(seen[-order - 1 :])
    powers = np.vander(np.arange(1 - len(last), 1), len(last), increasing=True)
    return np.linalg.solve(powers, last)[1] if len(last) > 1 else np.zeros(M)


@pytest.mark.parametrize("order", [1, 2, 5])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("loss_weighted", [False, True])
def test_softadapt_follows_its_paper(order: int, normalized: bool, loss_weighted: bool) -> None:
    combiner = make("softadapt", M, order=order, normalized=normalized, loss_weighted=loss_weighted)
    seen: list[np.ndarray] = []
    for step in range(8):
        losses = losses_of(M) ** (1 + 0.3 * np.sin(step))
        seen.append(losses.numpy())
        s = rates(seen, order)
        s = s / (np.abs(s).sum() + 1e-8) if normalized else s
        w = np.exp(0.1 * s) / np.exp(0.1 * s).sum()
        if loss_weighted:
            w = w * np.mean(seen[-order - 1 :], 0)
            w = w / w.sum()
        done = update(combiner, losses, conflicting(M))
        np.testing.assert_allclose(done.heads.numpy(), w, rtol=1e-7)


def test_softadapt_without_temperature_is_the_mean() -> None:
    for losses, J in jacobians():
        torch.testing.assert_close(update(make("softadapt", M, beta=0.0), losses, J).vector, J.mean(0))


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_relobralo_follows_its_paper(rho: float) -> None:
    alpha, tau = 0.7, 0.3
    combiner = make("relobralo", M, alpha=alpha, rho=rho, tau=tau)
    w, first, last, drawn = np.ones(M), None, None, 1.0

    def balance(now: np.ndarray, then: np.ndarray) -> np.ndarray:
        e = np.exp(now / (tau * then))
        return M * e / e.sum()

    draws = []
    for step in range(12):
        losses = losses_of(M) ** (1 + 0.3 * np.sin(step))
        L = losses.numpy()
        first, last = (L, L) if first is None or last is None else (first, last)
        draws.append(drawn)
        w = alpha * (drawn * w + (1 - drawn) * balance(L, first)) + (1 - alpha) * balance(L, last)
        torch.manual_seed(step)
        done = update(combiner, losses, conflicting(M))
        np.testing.assert_allclose(done.heads.numpy(), w, rtol=1e-10)
        last = L
        torch.manual_seed(step)
        drawn = float(torch.rand((), dtype=torch.float64) < rho)
    assert {0.0: sum(draws) == 1, 0.5: 2 < sum(draws) < 11, 1.0: sum(draws) == 12}[rho]


def test_relobralo_draws_once_per_step() -> None:
    combiner = make("relobralo", M, rho=0.5)
    for losses, J in jacobians():
        update(combiner, losses, J)
        assert torch.equal(combiner(2 * losses), combiner(2 * losses))


@pytest.mark.parametrize("residual", [None, "t2"])
def test_lr_annealing_follows_its_paper(residual: str | None) -> None:
    combiner = make("lr_annealing", M, residual=residual, alpha=0.6)
    of_residual = 0 if residual is None else 2
    w = np.ones(M)
    for losses, J in jacobians():
        g = np.abs(J.numpy())
        w = 0.6 * w + 0.4 * g[of_residual].max() / g.mean(1)
        w[of_residual] = 1.0
        done = update(combiner, losses, J)
        np.testing.assert_allclose(done.weights.numpy(), w, rtol=1e-12)
        np.testing.assert_allclose(done.vector.numpy(), w @ J.numpy(), rtol=1e-10)


def test_lr_annealing_keeps_its_weights_without_the_residual() -> None:
    combiner = make("lr_annealing", M)
    for losses, J in jacobians():
        update(combiner, losses, J)
    before = combiner.factors
    present = torch.arange(M) > 0
    with combiner.restricted_to(present):
        done = update(combiner, losses_of(M)[present], conflicting(M)[present])
    torch.testing.assert_close(done.weights, before[1:])
    assert torch.equal(combiner.factors, before)


def test_ntk_recomputes_its_ratios_of_traces_at_an_interval() -> None:
    combiner, traces = make("ntk", M, steps=2), np.geomspace(0.1, 30.0, M)
    w, asked = np.ones(M), 0
    for i, (losses, J) in enumerate(jacobians()):
        done = update(combiner, losses, J)
        np.testing.assert_allclose(done.weights.numpy(), w, rtol=1e-12)

        def recompute(i: int = i) -> torch.Tensor:
            nonlocal asked
            asked += 1
            return torch.from_numpy(traces * (i + 1) ** np.arange(M))

        combiner.after_step(recompute)
        if i % 2 == 0:
            now = traces * (i + 1) ** np.arange(M)
            w = now.sum() / now
    assert asked == -(-(i + 1) // 2)


def test_ntk_keeps_the_weights_of_tasks_without_a_trace() -> None:
    combiner = make("ntk", M, steps=1)
    present = torch.arange(M) != 1
    with combiner.restricted_to(present):
        combiner.after_step(lambda: torch.tensor([4.0, 0.0, 12.0][: M - 1] + [1.0] * max(0, M - 4)))
    assert combiner.factors[1] == 1.0
    assert combiner.factors[2] == 1.0
    assert combiner.factors[0] == combiner.factors[3] * 3


def config_direction(rows: np.ndarray) -> np.ndarray:
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    direction = np.linalg.pinv(units) @ np.ones(len(rows))
    direction = direction / np.linalg.norm(direction)
    return (rows @ direction).sum() * direction


def test_m_config_with_adam_follows_its_paper() -> None:
    lr, beta, beta2 = 0.01, 0.9, 0.999
    combiner, toy = make("m_config", M), Toy(M)
    x = torch.zeros(12, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([x], lr=lr, betas=(beta, beta2), eps=1e-8)
    theirs = np.zeros(12)
    m, s, fake_m, seen = np.zeros((M, 12)), np.zeros(12), np.zeros(12), np.zeros(M)
    for t in range(1, 20):
        # The authors' operator, given all gradients in the first step and then one per step.
        taken = list(range(M)) if t == 1 else [(t - 2) % M]
        losses, J = toy.rows(torch.from_numpy(theirs), "task", torch.ones(M, dtype=torch.bool))
        m[taken] = beta * m[taken] + (1 - beta) * J.numpy()[taken]
        seen[taken] += 1
        direction = config_direction(m / (1 - beta**seen)[:, None])
        new = direction * (1 - beta**t)
        fake_gradient, fake_m = (new - beta * fake_m) / (1 - beta), new
        s = beta2 * s + (1 - beta2) * fake_gradient**2
        theirs = theirs - lr * direction / (np.sqrt(s / (1 - beta2**t)) + 1e-8)
        losses, J = toy.rows(x.detach(), "task", torch.ones(M, dtype=torch.bool))
        x.grad = update(combiner, losses, J).vector
        adam.step()
        np.testing.assert_allclose(x.detach().numpy(), theirs, rtol=1e-7, atol=1e-10)


def test_m_config_updates_one_task_per_step_in_turn() -> None:
    combiner = make("m_config", 3)
    update(combiner, losses_of(3), conflicting(3))
    order = []
    for _ in range(7):
        before = combiner.steps
        update(combiner, losses_of(3), conflicting(3))
        order += (combiner.steps - before).nonzero().flatten().tolist()
    assert order == [0, 1, 2, 0, 1, 2, 0]


def test_m_config_gives_a_formerly_absent_task_the_next_turn() -> None:
    training = ToyTraining(make("m_config", 4), Toy(4)).run(6, absent=[1])
    steps = training.combiner.steps
    training.run(1)  # its first gradient
    assert (training.combiner.steps - steps).tolist() == [0, 1, 0, 0]
    training.run(3, absent=[2])
    steps = training.combiner.steps
    training.run(1)
    assert (training.combiner.steps - steps).tolist() == [0, 0, 1, 0]


def test_iwmtl_weights_every_loss_of_every_example() -> None:
    toy = Toy(3)
    training = ToyTraining(make("iwmtl", 3), toy)
    losses, J = toy.rows(training.x, "example", torch.ones(3, dtype=torch.bool))
    done = update(training.combiner, losses, J)
    assert done.weights is not None
    assert done.weights.shape == (12,)
    torch.testing.assert_close(done.vector, aggregation.UPGrad()(J), rtol=1e-8, atol=1e-10)


def test_stateless_torchjd_weighting_is_restricted_to_the_present_tasks() -> None:
    weighting = aggregation.UPGradWeighting(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    J = conflicting(2)
    with restrict(weighting, torch.tensor([True, False, True])):
        found = weighting(J @ J.T)
    expected = aggregation.UPGradWeighting(torch.tensor([1.0, 3.0], dtype=torch.float64))(J @ J.T)
    assert torch.equal(found, expected)
    assert weighting.pref_vector is not None
    assert weighting.pref_vector.tolist() == [1.0, 2.0, 3.0]


def test_stateful_torchjd_weighting_rejects_absent_tasks() -> None:
    with (
        pytest.raises(ValueError, match="GradVacWeighting of torchjd has state"),
        restrict(aggregation.GradVacWeighting(), torch.tensor([True, False])),
    ):
        pass


def test_names_are_in_the_order_of_the_losses() -> None:
    assert names(3) == ["t0", "t1", "t2"]
