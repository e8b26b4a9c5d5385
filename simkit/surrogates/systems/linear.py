"""Small linear systems inside compiled vector fields."""

from __future__ import annotations

import math

from numba import njit


@njit(cache=True, error_model="numpy")
def cholesky_solve(matrix, vector):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Solve ``matrix x = vector`` in place for a symmetric positive definite matrix [D, D], whose lower triangle is overwritten."""
    size = vector.size
    for j in range(size):
        for k in range(j):
            for i in range(j, size):
                matrix[i, j] -= matrix[i, k] * matrix[j, k]
        root = math.sqrt(matrix[j, j])
        for i in range(j, size):
            matrix[i, j] /= root
    for i in range(size):
        for k in range(i):
            vector[i] -= matrix[i, k] * vector[k]
        vector[i] /= matrix[i, i]
    for i in range(size - 1, -1, -1):
        for k in range(i + 1, size):
            vector[i] -= matrix[k, i] * vector[k]
        vector[i] /= matrix[i, i]
