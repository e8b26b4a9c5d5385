"""`simkit.fast.scalar_rows` on a GPU: the same functions of the same arrays, with a `Grid` in the place of bounds.

One warp gathers one row for 32 channels, one for each thread, whose sums stay in registers; nobody else writes what it writes, so that
results do not depend on any order of events. What an edge gets is a sum over channels: each warp writes its part, of which an edge has as
many as there are warps to a row, [E, warps, 4].
"""

from __future__ import annotations

from numba import cuda

from simkit.kernels.gpu import WARP, over_rows

PADDED = WARP + 1
"""Width of a tile: with one more than there are threads, those that read down a column do not wait for each other."""


@over_rows
@cuda.jit
def convolve(channels, ptr, sender, knot, basis, table, x, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """Write m [N, F] for x [N, F]."""
    i, c = cuda.blockIdx.x, cuda.blockIdx.y * WARP + cuda.threadIdx.x
    if c >= channels:
        return
    total = out.dtype.type(0)
    for e in range(ptr[i], ptr[i + 1]):
        f, h = 2 * channels * knot[e] + c, 8 * e
        w = (
            basis[h] * table[f]
            + basis[h + 1] * table[f + channels]
            + basis[h + 2] * table[f + 2 * channels]
            + basis[h + 3] * table[f + 3 * channels]
        )
        total += w * x[channels * sender[e] + c]
    out[channels * i + c] = total


@over_rows
@cuda.jit
def derive(channels, ptr, sender, knot, basis, table, x, with_dx, g, dx, gradient):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Add the derivatives of edges, given that of m, g [N, F]; write those with respect to x where asked for."""
    j, k, lane = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    parts, c = cuda.gridDim.y, k * WARP + lane
    tile = cuda.shared.array((WARP, PADDED), g.dtype)  # edges and channels
    zero = g.dtype.type(0)
    inside = c < channels
    own, total = zero, zero
    if inside:
        own = x[channels * j + c]
    for first in range(ptr[j], ptr[j + 1], WARP):
        last = min(first + WARP, ptr[j + 1])
        for e in range(first, last):
            along = zero
            if inside:
                f, h = 2 * channels * knot[e] + c, 8 * e
                t0, t1 = table[f], table[f + channels]
                t2, t3 = table[f + 2 * channels], table[f + 3 * channels]
                q = g[channels * sender[e] + c]
                along = (basis[h + 4] * t0 + basis[h + 5] * t1 + basis[h + 6] * t2 + basis[h + 7] * t3) * own * q
                total += (basis[h] * t0 + basis[h + 1] * t1 + basis[h + 2] * t2 + basis[h + 3] * t3) * q
            tile[e - first, lane] = along
        cuda.syncthreads()
        if first + lane < last:
            along = zero
            for q in range(WARP):
                along += tile[lane, q]
            gradient[4 * ((first + lane) * parts + k)] += along
        cuda.syncthreads()
    if with_dx and inside:
        dx[channels * j + c] = total
