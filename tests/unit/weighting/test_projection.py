from collections.abc import Callable

import numpy as np
import pytest
import quadprog
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchjd.aggregation import DualProjWeighting, UPGradWeighting
from torchjd.linalg import QuadprogProjector

from multitask.weighting import complementarity, projection
from multitask.weighting.complementarity import solve
from multitask.weighting.projection import MOST_TASKS, ExactProjector
from multitask.weighting.splitting import likely_free
from multitask.weighting.upgrad import UPGrad


def gramian(m: int, rank: int, seed: int, spread: float = 0.0, common: float = 0.0) -> Tensor:
    """Return ``J Jᵀ`` in float64; ``spread`` varies the norms of the rows, ``common`` adds a shared direction."""
    generator = torch.Generator().manual_seed(seed)
    J = torch.randn(m, rank, generator=generator, dtype=torch.float64)
    J = J + common * torch.randn(rank, generator=generator, dtype=torch.float64)
    lengths = 10 ** (spread * (2 * torch.rand(m, 1, generator=generator, dtype=torch.float64) - 1))
    J = J * lengths
    return J @ J.T


gramians = st.builds(
    gramian,
    m=st.integers(1, 40),
    rank=st.integers(1, 60),
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.0, 0.0, 1.0, 3.0]),
    common=st.sampled_from([0.0, 0.0, 0.3, 1.0]),
)
vectors = st.sampled_from(["tasks", "mean", "preferences"])


def vectors_of(kind: str, m: int) -> Tensor:
    if kind == "mean":
        return torch.full((m,), 1 / m, dtype=torch.float64)
    if kind == "preferences":
        return torch.diag(torch.linspace(0, 1, m, dtype=torch.float64))
    return torch.eye(m, dtype=torch.float64) / m


def regularized(G: Tensor, reg_eps: float) -> Tensor:
    return G / G.trace() + reg_eps * torch.eye(len(G), dtype=G.dtype)


def reference(U: Tensor, G: Tensor, reg_eps: float = 1e-4) -> Tensor:
    """Minimize ``wᵀGw`` subject to ``w ≥ u`` by quadprog."""
    matrix = regularized(G, reg_eps).numpy()
    m = len(matrix)
    rows = [quadprog.solve_qp(matrix, np.zeros(m), np.eye(m), u)[0] for u in U.reshape(-1, m).numpy()]
    return torch.tensor(np.array(rows)).reshape(U.shape)


def assert_optimal(W: Tensor, U: Tensor, G: Tensor, reg_eps: float = 1e-4) -> None:
    """Assert ``w ≥ u``, ``G w ≥ 0``, and equality in one of the two for every task."""
    step, slope = W - U, W @ regularized(G, reg_eps)
    size = U.abs().max() + W.abs().amax(-1, keepdim=True)
    assert (step >= 0).all()
    assert (torch.minimum(step, slope).abs() <= 1e-11 * size).all()


@settings(max_examples=120, deadline=None)
@given(gramians, vectors)
@example(gramian(11, 2, seed=0, spread=3.0), "tasks")  # rows whose solutions differ a hundredfold in size
def test_equals_quadprog_and_is_optimal(G: Tensor, kind: str) -> None:
    U = vectors_of(kind, len(G))
    projector = ExactProjector()
    W = projector(U, G)
    torch.testing.assert_close(W, reference(U, G), rtol=1e-7, atol=1e-8)
    assert_optimal(W, U, G)
    assert projector.failures == 0


@pytest.mark.parametrize(("m", "rank"), [(128, 300), (128, 40), (256, 90)])
def test_hundreds_of_losses(m: int, rank: int) -> None:
    G, U = gramian(m, rank, seed=0), vectors_of("tasks", m)
    projector = ExactProjector()
    W = projector(U, G)
    assert_optimal(W, U, G)
    assert projector.failures == 0
    some = slice(0, 4)  # quadprog takes tens of milliseconds per row
    torch.testing.assert_close(W[some], reference(U[some], G), rtol=1e-7, atol=1e-8)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(0, 2**31), st.sampled_from([1e-8, 1e-6]))
def test_near_singular_with_little_regularization(m: int, seed: int, reg_eps: float) -> None:
    G, U = gramian(m, max(1, m // 2), seed), vectors_of("tasks", m)
    W = ExactProjector(reg_eps=reg_eps)(U, G)
    assert_optimal(W, U, G, reg_eps)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 20), st.integers(0, 2**31))
def test_no_regularization(m: int, seed: int) -> None:
    G, U = gramian(m, 2 * m + 5, seed), vectors_of("tasks", m)
    W = ExactProjector(reg_eps=0.0)(U, G)
    torch.testing.assert_close(W, reference(U, G, 0.0), rtol=1e-6, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(gramians, st.sampled_from([1e-300, 1e-12, 1e-6, 1e6, 1e12, 1e290]))
def test_invariant_to_the_scale_of_the_gramian(G: Tensor, scale: float) -> None:
    G = G / G.trace()
    U = vectors_of("tasks", len(G))
    torch.testing.assert_close(ExactProjector()(U, scale * G), ExactProjector()(U, G), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("m", [2, 3, 8, 20])
def test_float32_weights_are_invariant_to_the_scale_of_the_losses(m: int, scale: float) -> None:
    J = torch.randn(m, 30, generator=torch.Generator().manual_seed(m))
    weighting = UPGradWeighting(projector=ExactProjector())
    scaled = J * scale
    torch.testing.assert_close(weighting(scaled @ scaled.T), weighting(J @ J.T), rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(gramians, st.sampled_from([1e-9, 1e9]))
def test_solution_scales_with_the_vectors(G: Tensor, scale: float) -> None:
    U = vectors_of("tasks", len(G))
    torch.testing.assert_close(
        ExactProjector()(scale * U, G) / scale, ExactProjector()(U, G), rtol=1e-7, atol=1e-8
    )


@settings(max_examples=40, deadline=None)
@given(gramians, st.randoms(use_true_random=False))
def test_permutation_equivariance(G: Tensor, random: object) -> None:
    order = list(range(len(G)))
    random.shuffle(order)  # type: ignore[attr-defined]
    U = vectors_of("preferences", len(G))
    W = ExactProjector()(U[order][:, order], G[order][:, order])
    torch.testing.assert_close(W, ExactProjector()(U, G)[order][:, order], rtol=1e-7, atol=1e-8)


@settings(max_examples=60, deadline=None)
@given(gramians, st.integers(0, 2**31))
def test_vectors_with_negative_entries(G: Tensor, seed: int) -> None:
    U = torch.randn(3, len(G), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    W = ExactProjector()(U, G)
    torch.testing.assert_close(W, reference(U, G), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("m", [2, MOST_TASKS, MOST_TASKS + 1, 30])
def test_no_conflict_needs_no_program(m: int) -> None:
    J = torch.rand(m, 50, dtype=torch.float64)  # positive entries: no two rows conflict
    U = vectors_of("preferences", m)
    projector = ExactProjector()
    assert torch.equal(projector(U, J @ J.T), U)
    assert (projector.solves, projector.programs, projector.failures) == (1, 0, 0)


@pytest.mark.parametrize("m", [1, 2, MOST_TASKS, MOST_TASKS + 1, 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_gramian_returns_a_copy_of_the_vectors(m: int, dtype: torch.dtype) -> None:
    U = torch.randn(m, dtype=dtype)
    W = ExactProjector()(U, torch.zeros(m, m, dtype=dtype))
    assert torch.equal(W, U)
    assert W.data_ptr() != U.data_ptr()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("m", [2, MOST_TASKS + 1])
@pytest.mark.parametrize("index", [(0, 0), (0, 1)])
def test_non_finite_gramian_is_rejected(m: int, bad: float, index: tuple[int, int]) -> None:
    G = torch.eye(m)
    G[index] = bad
    with pytest.raises(FloatingPointError, match="Gramian of the task gradients is not finite"):
        ExactProjector()(torch.ones(m), G)


@pytest.mark.parametrize("m", [3, MOST_TASKS + 1])
def test_indefinite_gramian_is_rejected(m: int) -> None:
    with pytest.raises(ValueError, match="not positive semi-definite"):
        ExactProjector()(torch.ones(m), -torch.eye(m))
    indefinite = torch.full((m, m), -1.0) + 1.5 * torch.eye(m)
    with pytest.raises(ValueError, match="raise the projector's reg_eps"):
        ExactProjector()(torch.eye(m), indefinite)


def test_repeated_losses_without_regularization() -> None:
    """Equal losses make the Gramian singular; the solution still conflicts with no task."""
    for m in (3, MOST_TASKS + 2):
        J = torch.randn(m, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(m))
        J[1] = J[0]
        W = ExactProjector(reg_eps=0.0)(vectors_of("tasks", m), J @ J.T)
        assert torch.isfinite(W).all()
        slopes = W @ (J @ J.T)
        assert (slopes >= -1e-6 * W.abs().amax(1, keepdim=True)).all()


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
def test_constructor_rejects_invalid_reg_eps(value: float) -> None:
    with pytest.raises(ValueError, match="reg_eps"):
        ExactProjector(reg_eps=value)


def unsolved(G: np.ndarray, U: np.ndarray, Q: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    return np.full_like(Q, np.nan), np.full(len(Q), True)


@pytest.mark.parametrize("m", [4, 12, 30])
def test_rows_that_fail_the_check_are_counted_and_solved_by_quadprog(
    m: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "solve_row", lambda *_: None)
    monkeypatch.setattr(projection, "solve", unsolved)
    G, U = gramian(m, 40, seed=1), vectors_of("tasks", m)
    projector = ExactProjector()
    torch.testing.assert_close(projector(U, G), reference(U, G), rtol=1e-9, atol=1e-10)
    assert projector.failures == (m if m > MOST_TASKS else projector.programs) > 0


@pytest.mark.parametrize("m", [12, 30])
def test_wrong_solution_is_detected_and_corrected(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check uses the optimality conditions, not the status of the solver."""
    monkeypatch.setattr(complementarity, "_exchange_at_once", lambda G, Q, tolerance: np.abs(Q))
    monkeypatch.setattr(complementarity, "_exchange_by_row", lambda G, U, Q, tolerance: np.abs(Q))
    G, U = gramian(m, 12, seed=1), vectors_of("tasks", m)
    projector = ExactProjector()
    torch.testing.assert_close(projector(U, G), reference(U, G), rtol=1e-7, atol=1e-8)
    assert projector.failures == 0  # the active-set method solved them


def test_counters_and_time_add_up() -> None:
    projector = ExactProjector()
    G = torch.tensor([[1.0, -0.5], [-0.5, 2.0]])
    for _ in range(3):
        projector(torch.eye(2), G)
    assert (projector.solves, projector.programs, projector.failures) == (3, 6, 0)
    assert projector.seconds > 0
    assert repr(projector) == "ExactProjector(reg_eps=0.0001)"


def test_two_tasks_by_hand() -> None:
    """Without regularization the conflicting part is removed: ``w = u_i (e_i − G_ij / G_jj e_j)``."""
    G = torch.tensor([[1.0, -0.5], [-0.5, 2.0]], dtype=torch.float64)
    W = ExactProjector(reg_eps=0.0)(torch.eye(2, dtype=torch.float64), G)
    torch.testing.assert_close(W, torch.tensor([[1.0, 0.25], [0.5, 1.0]], dtype=torch.float64))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 2**31))
def test_tensors_and_arrays_agree(m: int, rank: int, seed: int) -> None:
    """The code for tensors, which CUDA devices use, runs here on the CPU."""
    G, U = regularized(gramian(m, rank, seed), 1e-4), vectors_of("tasks", m)
    by_tensors, _ = solve(G, U, U @ G, 1e-12)
    by_arrays, _ = solve(G.numpy(), U.numpy(), (U @ G).numpy(), 1e-12)
    np.testing.assert_allclose(by_tensors.numpy(), by_arrays, rtol=1e-7, atol=1e-9)


def test_many_tasks_stay_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path for CUDA devices end to end, with float32 inputs and outputs."""
    monkeypatch.setattr(projection, "_as_array", lambda tensor: tensor.double())
    G, U = gramian(20, 12, seed=3), vectors_of("tasks", 20)
    W = ExactProjector()(U.float(), G.float())
    assert W.dtype == torch.float32
    torch.testing.assert_close(W.double(), reference(U, G.float().double()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("m", [12, 40])
@pytest.mark.parametrize("convert", [torch.Tensor.clone, torch.Tensor.numpy])
def test_indefinite_matrix_has_no_solution(m: int, convert: Callable[[Tensor], object]) -> None:
    bad = torch.diag(torch.tensor([-1.0] + [1.0] * (m - 1), dtype=torch.float64))
    U = torch.ones(2, m, dtype=torch.float64)
    _, failed = solve(convert(bad), convert(U), convert(U @ bad), 1e-12)
    assert failed is not None
    assert bool(failed.all())


@pytest.mark.parametrize("kind", ["few", "low", "opposed"])
@pytest.mark.parametrize("m", [24, 40, 100])
def test_most_rows_are_guessed_correctly(m: int, kind: str) -> None:
    """The first-order guess of the free variables is exact for at least 60 % of the rows."""
    generator = torch.Generator().manual_seed(m)
    J = torch.randn(m, m // 2 if kind == "low" else 3000, generator=generator, dtype=torch.float64)
    J = J - 0.9 * J.mean(0) if kind == "opposed" else J
    G, U = regularized(J @ J.T, 1e-4), vectors_of("tasks", m)
    exact = solve(G, U, U @ G, 1e-12)[0] > 0
    for guess in (likely_free(G, U @ G), torch.from_numpy(likely_free(G.numpy(), (U @ G).numpy()))):
        assert (guess == exact).all(1).double().mean() >= 0.6


@settings(max_examples=40, deadline=None)
@given(st.integers(17, 60), st.integers(1, 60), st.integers(0, 2**31), st.sampled_from([1e-4, 1e-6, 1e-8]))
def test_objective_is_at_most_quadprogs(m: int, rank: int, seed: int, reg_eps: float) -> None:
    """A nearly singular Gramian determines the objective well, but not the weights."""
    G, U = gramian(m, rank, seed), vectors_of("tasks", m)[:3]
    W, expected = ExactProjector(reg_eps=reg_eps)(U, G), reference(U, G, reg_eps)
    matrix = regularized(G, reg_eps)
    ours, theirs = (torch.einsum("ij,jk,ik->i", V, matrix, V) for V in (W, expected))
    assert (ours <= theirs * (1 + 1e-7)).all()
    assert_optimal(W, U, G, reg_eps)


@settings(max_examples=60, deadline=None)
@given(gramians, st.booleans(), st.booleans())
def test_upgrad_is_the_sum_of_the_projections(G: Tensor, preferred: bool, single: bool) -> None:
    G = G.float() if single else G
    preferences = torch.linspace(0.0, 2.0, len(G), dtype=G.dtype) if preferred else None
    weighting = UPGrad(preferences)
    torch.testing.assert_close(
        weighting(G), UPGradWeighting(preferences, projector=ExactProjector())(G), rtol=1e-5, atol=1e-6
    )
    assert weighting(G).dtype == G.dtype


def test_upgrad_with_another_projector_or_wrong_preferences_equals_torchjds() -> None:
    G = gramian(5, 3, seed=0)
    projector = QuadprogProjector()
    torch.testing.assert_close(UPGrad(projector=projector)(G), UPGradWeighting(projector=projector)(G))
    with pytest.raises(ValueError, match="4 rows"):
        UPGrad(torch.ones(4, dtype=G.dtype))(G)


def test_upgrad_returns_a_copy_of_the_preferences() -> None:
    preferences = torch.ones(3)
    weights = UPGrad(preferences)(torch.eye(3))
    weights += 1.0
    assert torch.equal(preferences, torch.ones(3))


@pytest.mark.parametrize("m", [2, 3, 8, 20])
@pytest.mark.parametrize("make", [UPGradWeighting, DualProjWeighting])
def test_torchjd_weightings_accept_the_projector(make: Callable[..., torch.nn.Module], m: int) -> None:
    G = gramian(m, 15, seed=m).float()
    ours = make(projector=ExactProjector())(G)
    theirs = make(projector=QuadprogProjector())(G)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 30), st.integers(0, 2**31))
def test_the_projection_conflicts_with_no_task(m: int, seed: int) -> None:
    """Without regularization, UPGrad increases no loss to first order."""
    G = gramian(m, m + 5, seed)
    weights = UPGradWeighting(projector=ExactProjector(reg_eps=0.0))(G)
    assert (G @ weights >= -1e-9 * G.trace() * weights.max()).all()


def test_shapes_of_the_vectors() -> None:
    G = gramian(9, 20, seed=0)
    U = torch.rand(2, 3, 9, dtype=torch.float64)
    W = ExactProjector()(U, G)
    assert W.shape == U.shape
    torch.testing.assert_close(W[1, 2], ExactProjector()(U[1, 2], G), rtol=1e-9, atol=1e-10)
