"""SchNet's continuous-filter convolution over rows of edges with tabulated filters, forward and backward.

With features x at the sender j and the filter w of the edge i <- j, per channel (Schuett et al. 2017, equation 2):

    m_i = sum_j x_j w

The backward pass gathers, too, as in `simkit.fast.vector_rows`, where the arrays are described.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from simkit.kernels.blocks import begin, compile_blocks, compile_shared


@njit
def _knots(knot, channels):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """Where the values and slopes at both ends of an interval begin in a table."""
    f, n = begin(knot, 2 * channels, 0), np.uintp(channels)
    return f, f + n, f + n + n, f + n + n + n


@compile_blocks
def _convolve_rows(start, end, channels, ptr, sender, knot, basis, table, x, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    n = np.uintp(channels)
    for i in range(start, end):
        a = begin(i, channels, 0)
        for c in range(n):
            out[a + c] = out.dtype.type(0)
        for e in range(ptr[i], ptr[i + 1]):
            b, h = begin(sender[e], channels, 0), begin(e, 8, 0)
            f0, f1, f2, f3 = _knots(knot[e], channels)
            h0, h1, h2, h3 = basis[h], basis[h + np.uintp(1)], basis[h + np.uintp(2)], basis[h + np.uintp(3)]
            for c in range(n):
                out[a + c] += (h0 * table[f0 + c] + h1 * table[f1 + c] + h2 * table[f2 + c] + h3 * table[f3 + c]) * x[
                    b + c
                ]


@compile_blocks
def _derive_rows(  # type: ignore[no-untyped-def]  # pragma: no cover
    start, end, channels, ptr, sender, knot, basis, table, x, with_dx, g, dx, gradient
):
    n = np.uintp(channels)
    zero = g.dtype.type(0)
    for j in range(start, end):
        a = begin(j, channels, 0)
        if with_dx:
            for c in range(n):
                dx[a + c] = zero
        for e in range(ptr[j], ptr[j + 1]):
            b, h = begin(sender[e], channels, 0), begin(e, 8, 0)
            f0, f1, f2, f3 = _knots(knot[e], channels)
            h0, h1, h2, h3 = basis[h], basis[h + np.uintp(1)], basis[h + np.uintp(2)], basis[h + np.uintp(3)]
            h = h + np.uintp(4)
            d0, d1, d2, d3 = basis[h], basis[h + np.uintp(1)], basis[h + np.uintp(2)], basis[h + np.uintp(3)]
            along = zero
            for c in range(n):
                t0, t1, t2, t3, q = table[f0 + c], table[f1 + c], table[f2 + c], table[f3 + c], g[b + c]
                along += (d0 * t0 + d1 * t1 + d2 * t2 + d3 * t3) * x[a + c] * q
                if with_dx:
                    dx[a + c] += (h0 * t0 + h1 * t1 + h2 * t2 + h3 * t3) * q
            gradient[begin(e, 4, 0)] += along


# Each task takes its rows; a single task runs in the calling thread.


@compile_shared
def convolve(bounds, channels, ptr, sender, knot, basis, table, x, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write m [N, F] for x [N, F]."""
    if len(bounds) == 2:
        _convolve_rows(0, bounds[1], channels, ptr, sender, knot, basis, table, x, out)
        return
    for k in prange(len(bounds) - 1):
        _convolve_rows(bounds[k], bounds[k + 1], channels, ptr, sender, knot, basis, table, x, out)


@compile_shared
def derive(  # type: ignore[no-untyped-def]  # pragma: no cover
    bounds, channels, ptr, sender, knot, basis, table, x, with_dx, g, dx, gradient
):
    """Add the derivatives of edges, given that of m, g [N, F]; write those with respect to x where asked for."""
    if len(bounds) == 2:
        _derive_rows(0, bounds[1], channels, ptr, sender, knot, basis, table, x, with_dx, g, dx, gradient)
        return
    for k in prange(len(bounds) - 1):
        _derive_rows(
            bounds[k], bounds[k + 1], channels, ptr, sender, knot, basis, table, x, with_dx, g, dx, gradient
        )  # fmt: skip
