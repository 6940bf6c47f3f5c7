"""The complementarity problems of complementarity.py for a handful of tasks, in plain Python numbers.

For so few every array operation costs more than the arithmetic of a row.
"""

from collections.abc import Iterable
from operator import mul

Matrix = list[list[float]]

# Beyond this many tasks the arrays of complementarity.py are as fast.
MOST_TASKS = 4


def normalize(G: Matrix, trace: float, regularization: float) -> Matrix:
    """Return ``G`` divided by its trace, plus the regularization on the diagonal."""
    normalized = [[value / trace for value in row] for row in G]
    for i, row in enumerate(normalized):
        row[i] += regularization
    return normalized


def multiply(u: list[float], G: Matrix) -> list[float]:
    """Return ``G u`` for symmetric ``G``."""
    return _add(u, range(len(u)), G, [0.0] * len(u))


def _add(values: list[float], free: Iterable[int], G: Matrix, start: list[float]) -> list[float]:
    """Return ``start + G x``, where ``x`` has the given values at its free entries and zeros elsewhere."""
    for value, i in zip(values, free, strict=True):
        if value:
            start = [a + value * b for a, b in zip(start, G[i], strict=True)]
    return start


def solve_row(G: Matrix, q: list[float], tolerance: float) -> list[float] | None:
    """Find the ``x ≥ 0`` with ``y = q + G x ≥ 0`` and ``x · y = 0``.

    One or two free entries are solved in closed form. Wrong signs are exchanged all at once, later one at a
    time, which ends for certain.

    Args:
        G: Positive definite, shape ``[m, m]``.
        q: Shape ``[m]``.
        tolerance: Largest ``|min(x, y)|`` of a solution, relative to ``max |q| + max |x|``.

    Returns:
        The solution; None where none is found, because ``G`` is not positive definite.
    """
    size = max(max(q), -min(q))
    free = [i for i, value in enumerate(q) if value < 0.0]
    for exchange in range(2 ** len(q)):
        try:
            values = _solve_on(free, G, q)
        except ZeroDivisionError:
            return None
        signed = _add(values, free, G, q)
        slack = tolerance * (size + max(values, default=0.0))
        exact = True
        for value, i in zip(values, free, strict=True):
            exact &= -slack <= signed[i] <= slack
            signed[i] = value
        if min(signed) >= -slack:
            if not exact:
                return None
            x = [0.0] * len(q)
            for value, i in zip(values, free, strict=True):
                x[i] = max(value, 0.0)
            return x
        wrong = [i for i, value in enumerate(signed) if value < -slack]
        if not wrong:
            return None
        if exchange >= len(q):
            wrong = wrong[-1:]
        free = sorted(set(free) ^ set(wrong))
    return None


def _solve_on(free: list[int], G: Matrix, q: list[float]) -> list[float]:
    """Solve ``G x = −q`` on the free entries, the others being zero; return the values of these."""
    if len(free) == 1:
        (i,) = free
        return [-q[i] / G[i][i]]
    if len(free) == 2:
        i, j = free
        a, b, c = G[i][i], G[i][j], G[j][j]
        determinant = a * c - b * b
        return [(b * q[j] - c * q[i]) / determinant, (b * q[i] - a * q[j]) / determinant]
    rows = [[G[i][j] for j in free] + [-q[i]] for i in free]
    for k, pivot in enumerate(rows, start=1):
        for n, row in enumerate(rows[k:], start=k):
            factor = row[k - 1] / pivot[k - 1]
            rows[n] = [a - factor * b for a, b in zip(row, pivot, strict=True)]
    values: list[float] = []  # of the last entries, in their order
    for k, row in enumerate(reversed(rows), start=1):
        rest = sum(map(mul, row[-k:-1], values))
        values.insert(0, (row[-1] - rest) / row[-k - 1])
    return values
