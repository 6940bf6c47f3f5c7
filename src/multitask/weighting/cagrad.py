import numpy as np
from scipy.optimize import brentq
from torch import Tensor

from multitask.weighting.gramian import Array, CosineMethod
from multitask.weighting.simplex import least
from multitask.weighting.solver_stats import SolverStats


class CAGrad(CosineMethod):
    """The direction within c ‖g₀‖ of the mean gradient g₀ that maximizes the smallest decrease of a loss.

    It is g₀ + c ‖g₀‖ g_w / ‖g_w‖, with g_w the convex combination that minimizes g_wᵀ g₀ + c ‖g₀‖ ‖g_w‖. If g_w
    is zero, the parameters are considered Pareto stationary and the direction is zero.

    "Conflict-Averse Gradient Descent for Multi-task Learning" (Liu et al., 2021), Algorithm 1.

    Args:
        c: Radius of the ball around the mean gradient, in units of its norm, at least zero.
        norm_eps: Threshold below which ‖g_w‖ counts as zero, relative to the smallest gradient norm, above zero.
    """

    def __init__(self, c: float = 0.4, norm_eps: float = 1e-4) -> None:
        super().__init__()
        if c < 0:
            raise ValueError(f"weighting.c={c} must not be negative.")
        if norm_eps <= 0:
            raise ValueError(f"weighting.norm_eps={norm_eps} must be positive.")
        self.c = c
        self.norm_eps = norm_eps
        self.solver = SolverStats("cagrad")

    def solve(self, C: Array, norms: Array, ridge: float, losses: Tensor) -> Array:
        """Return 1/k + c ‖g₀‖ w / ‖g_w‖."""
        k = len(C)
        weights = np.full(k, 1 / k)
        if self.c == 0:
            return weights
        moving = norms > 0
        if not moving.any():
            return np.zeros(k)
        unit = norms / norms.max()
        length = np.sqrt(max(float(unit @ C @ unit), 0.0)) / k
        slope = (C @ unit)[moving] / k
        with self.solver.timed():
            direction = self._direction(C[np.ix_(moving, moving)], norms[moving], slope, length, ridge)
        if direction is None:
            return np.zeros(k)
        beta, value = direction
        if not moving.all() and value >= 0:
            # The optimal combination is the zero gradient of a task.
            return np.zeros(k)
        # g_w / ‖g_w‖ = Σ β u / ‖Σ β u‖, for unit gradients u = g / ‖g‖.
        weights[moving] += self.c * length * norms.max() * beta / norms[moving]
        return weights

    def _direction(
        self, C: Array, norms: Array, slope: Array, length: float, ridge: float
    ) -> tuple[Array, float] | None:
        """Return β with ‖Σ β u‖ = 1 of the direction, and its objective; ``None`` if g_w is zero."""
        # For fixed η, minimizing g_wᵀg₀ + c‖g₀‖ (‖g_w‖²/η + η)/2 is a quadratic program. Its minimum is convex in η
        # and smallest at η = ‖g_w‖, in units of the smallest gradient norm.
        radius = self.c * length
        shares = norms.min() / norms
        if radius <= ridge:
            return None
        C = C + ridge * np.eye(len(C))

        def at(log_eta: float) -> tuple[Array, float]:
            # In units of η, so that the values are close to one.
            gamma = least(C, shares * np.exp(log_eta), slope / radius, 0.0)
            return gamma, 0.5 * np.log(float(gamma @ C @ gamma))

        low = np.log(self.norm_eps)
        high = 0.0
        try:
            if at(low)[1] <= 0:
                return None
            while at(high)[1] > 0:
                low, high = high, high + 2.0
            gamma, _ = at(brentq(lambda x: at(x)[1], low, high, xtol=1e-12, rtol=1e-12))
        except ValueError as error:
            self.solver.failed(f"no solution ({error}); the trunk is not updated in this step")
            return None

        def checked(gamma: Array) -> tuple[float, Array, float]:
            beta = gamma / np.sqrt(gamma @ C @ gamma)
            cost = slope + radius * (C @ beta)
            value = float(beta @ cost)
            # Optimality: no share has a lower cost than the optimal value.
            return float((cost - value * shares / (shares @ beta)).min()), beta, value

        # Where C is nearly singular, the program leaves some 1e-8 in entries that are zero.
        without = np.where(gamma < 1e-7 * gamma.max(), 0.0, gamma)
        slack, beta, value = max(checked(gamma), checked(without), key=lambda each: each[0])
        if slack < -1e-6 * (np.abs(slope).max() + radius):
            self.solver.failed("the optimality conditions hold only to a tolerance worse than 1e-6")
        return beta, value
