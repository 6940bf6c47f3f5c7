"""The complementarity problems of block_pivoting.py for a handful of tasks, in plain Python numbers.

For so few every array operation costs more than the arithmetic of a row.
"""

import math
from operator import mul

Matrix = list[list[float]]

# Beyond this many tasks the arrays of block_pivoting.py are as fast.
MOST_TASKS = 6


def normalize(G: Matrix, trace: float, regularization: float) -> Matrix:
    """Return ``G`` divided by its trace, plus the regularization on the diagonal."""
    normalized = [[value / trace for value in row] for row in G]
    for i, row in enumerate(normalized):
        row[i] += regularization
    return normalized


def multiply(u: list[float], G: Matrix) -> list[float]:
    """Return ``G u`` for symmetric ``G``."""
    q = [0.0] * len(u)
    for weight, row in zip(u, G, strict=True):
        if weight:
            q = [a + weight * b for a, b in zip(q, row, strict=True)]
    return q


def solve_row(G: Matrix, q: list[float], tolerance: float) -> list[float] | None:
    """Find the ``x ≥ 0`` with ``y = q + G x ≥ 0`` and ``x · y = 0``.

    :param G: Positive definite matrix, ``[m, m]``.
    :param q: Right-hand side, ``[m]``.
    :param tolerance: Largest ``|min(x, y)|`` of a solution, relative to ``max |q| + max |x|``.
    :return: The solution; None where none is found, because ``G`` is not positive definite.
    """
    tasks = range(len(q))
    free = [i for i in tasks if q[i] < 0.0]  # where x may be positive and y is zero; elsewhere the reverse
    for exchange in range(2 ** len(q)):
        try:
            x = _solve_on(free, G, q)
        except ZeroDivisionError:
            return None
        y = [b + sum(map(mul, row, x)) for b, row in zip(q, G, strict=True)]
        slack = tolerance * (max(map(abs, q)) + max(map(abs, x)))
        if not slack < math.inf:
            return None
        if max(map(abs, map(min, x, y))) <= slack:
            return [max(value, 0.0) for value in x]
        wrong = [i for i in tasks if (x[i] if i in free else y[i]) < -slack]
        if not wrong:
            return None
        if exchange >= len(q):  # one at a time, always the last, ends for certain
            wrong = wrong[-1:]
        free = [i for i in tasks if (i in free) != (i in wrong)]
    return None


def _solve_on(free: list[int], G: Matrix, q: list[float]) -> list[float]:
    """Solve ``G x = −q`` on the free variables, the others being zero."""
    x = [0.0] * len(q)
    if len(free) == 1:
        (i,) = free
        x[i] = -q[i] / G[i][i]
    elif len(free) == 2:
        i, j = free
        determinant = G[i][i] * G[j][j] - G[i][j] * G[j][i]
        x[i] = (G[i][j] * q[j] - G[j][j] * q[i]) / determinant
        x[j] = (G[j][i] * q[i] - G[i][i] * q[j]) / determinant
    elif free:
        rows = [[G[i][j] for j in free] + [-q[i]] for i in free]
        for k, pivot in enumerate(rows, start=1):
            for n, row in enumerate(rows[k:], start=k):
                factor = row[k - 1] / pivot[k - 1]
                rows[n] = [a - factor * b for a, b in zip(row, pivot, strict=True)]
        values: list[float] = []  # of the last tasks, in their order
        for k, row in enumerate(reversed(rows), start=1):
            rest = sum(map(mul, row[-k:-1], values))
            values.insert(0, (row[-1] - rest) / row[-k - 1])
        for i, value in zip(free, values, strict=True):
            x[i] = value
    return x
