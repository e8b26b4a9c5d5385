"""Loops over the numbers of one or two-dimensional blocks.

They stand for NumPy's own assignments and operators, whose checks of shapes Numba compiles, with their messages, wherever they occur.
"""

from __future__ import annotations

import numpy as np

from simkit.kernels.elementary import vectorizable


@vectorizable(cache=True)
def fill(y, value):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """y = value."""
    target = y.reshape(-1)
    for k in range(np.uintp(target.size)):
        target[k] = value


@vectorizable(cache=True)
def copy(x, y):  # type: ignore[no-untyped-def]  # pragma: no cover
    """y = x."""
    source, target = x.reshape(-1), y.reshape(-1)
    for k in range(np.uintp(target.size)):
        target[k] = source[k]


@vectorizable(cache=True)
def add(x, factor, y):  # type: ignore[no-untyped-def]  # pragma: no cover
    """y += factor x, for a number."""
    source, target = x.reshape(-1), y.reshape(-1)
    for k in range(np.uintp(target.size)):
        target[k] += factor * source[k]


@vectorizable(cache=True)
def add_product(x, z, factor, y):  # type: ignore[no-untyped-def]  # pragma: no cover
    """y += factor x z, for a number and two blocks."""
    source, other, target = x.reshape(-1), z.reshape(-1), y.reshape(-1)
    for k in range(np.uintp(target.size)):
        target[k] += factor * source[k] * other[k]


@vectorizable(cache=True)
def multiply(x, y):  # type: ignore[no-untyped-def]  # pragma: no cover
    """y *= x."""
    source, target = x.reshape(-1), y.reshape(-1)
    for k in range(np.uintp(target.size)):
        target[k] *= source[k]


@vectorizable(cache=True)
def divide(x, y):  # type: ignore[no-untyped-def]  # pragma: no cover
    """y /= x."""
    source, target = x.reshape(-1), y.reshape(-1)
    for k in range(np.uintp(target.size)):
        target[k] /= source[k]


@vectorizable(cache=True)
def set_sum(x, factor, z, y):  # type: ignore[no-untyped-def]  # pragma: no cover
    """y = x + factor z."""
    source, other, target = x.reshape(-1), z.reshape(-1), y.reshape(-1)
    for k in range(np.uintp(target.size)):
        target[k] = source[k] + factor * other[k]
