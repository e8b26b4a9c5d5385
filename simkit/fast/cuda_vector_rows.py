"""`simkit.fast.vector_rows` on a GPU: the same functions of the same arrays, with a `Grid` in the place of bounds.

How rows are shared among threads is said in `simkit.fast.cuda_scalar_rows`.
"""

from __future__ import annotations

import math

from numba import cuda

from simkit.fast.cuda_scalar_rows import PADDED
from simkit.kernels.gpu import WARP, over_rows
from simkit.kernels.vector_update import EPSILON

TILE = WARP // 4
"""Edges whose four derivatives are summed over the channels together, one sum by each thread."""


@cuda.jit(device=True)
def _mixture(table, f, n, w0, w1, w2, w3):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """Values and slopes at both ends of an interval, ``n`` apart, with their weights."""
    return w0 * table[f] + w1 * table[f + n] + w2 * table[f + 2 * n] + w3 * table[f + 3 * n]


@over_rows
@cuda.jit
def gather(channels, ptr, sender, knot, basis, unit, table, phi, v, has_v, s, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Add the messages to s [N, C] and write v plus them to ``out`` [N, 3C]."""
    i, c = cuda.blockIdx.x, cuda.blockIdx.y * WARP + cuda.threadIdx.x
    if c >= channels:
        return
    n = 3 * channels
    zero = s.dtype.type(0)
    scalar, x, y, z = zero, zero, zero, zero
    for e in range(ptr[i], ptr[i + 1]):
        p, f, h = n * sender[e] + c, 2 * n * knot[e] + c, 8 * e
        h0, h1, h2, h3 = basis[h], basis[h + 1], basis[h + 2], basis[h + 3]
        scalar += _mixture(table, f, n, h0, h1, h2, h3) * phi[p]
        t = _mixture(table, f + channels, n, h0, h1, h2, h3) * phi[p + channels]
        x += t * unit[3 * e]
        y += t * unit[3 * e + 1]
        z += t * unit[3 * e + 2]
        if has_v:
            t = _mixture(table, f + 2 * channels, n, h0, h1, h2, h3) * phi[p + 2 * channels]
            x += t * v[p]
            y += t * v[p + channels]
            z += t * v[p + 2 * channels]
    b = n * i + c
    if has_v:
        x += v[b]
        y += v[b + channels]
        z += v[b + 2 * channels]
    s[channels * i + c] += scalar
    out[b], out[b + channels], out[b + 2 * channels] = x, y, z


@over_rows
@cuda.jit
def derive(  # type: ignore[no-untyped-def]  # pragma: no cover
    channels, ptr, sender, knot, basis, unit, table, phi, v, has_v, gs, gv, dphi, dv, gradient
):
    """Write the derivatives with respect to phi and v [N, 3C], given gs and gv, and add those of edges; without v, only the latter."""
    j, k, lane = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
    parts, c, n = cuda.gridDim.y, k * WARP + lane, 3 * channels
    tile = cuda.shared.array((WARP, PADDED), gs.dtype)  # derivatives of edges, four for each, and channels
    zero = gs.dtype.type(0)
    b = n * j + c
    inside = c < channels
    p0, p1, p2, v0, v1, v2 = zero, zero, zero, zero, zero, zero
    q0, q1, q2, u0, u1, u2 = zero, zero, zero, zero, zero, zero
    if inside:
        p0, p1 = phi[b], phi[b + channels]
        if has_v:
            p2, v0, v1, v2 = phi[b + 2 * channels], v[b], v[b + channels], v[b + 2 * channels]
            u0, u1, u2 = gv[b], gv[b + channels], gv[b + 2 * channels]
    for first in range(ptr[j], ptr[j + 1], TILE):
        last = min(first + TILE, ptr[j + 1])
        for e in range(first, last):
            along, gx, gy, gz = zero, zero, zero, zero
            if inside:
                i, f, h = n * sender[e] + c, 2 * n * knot[e] + c, 8 * e
                h0, h1, h2, h3 = basis[h], basis[h + 1], basis[h + 2], basis[h + 3]
                d0, d1, d2, d3 = basis[h + 4], basis[h + 5], basis[h + 6], basis[h + 7]
                g = gs[channels * sender[e] + c]
                along = _mixture(table, f, n, d0, d1, d2, d3) * p0 * g
                q0 += _mixture(table, f, n, h0, h1, h2, h3) * g
                # The neighbor sees this atom along the opposite vector
                vx, vy, vz = gv[i], gv[i + channels], gv[i + 2 * channels]
                g = -(vx * unit[3 * e] + vy * unit[3 * e + 1] + vz * unit[3 * e + 2])
                w = _mixture(table, f + channels, n, h0, h1, h2, h3)
                along += _mixture(table, f + channels, n, d0, d1, d2, d3) * p1 * g
                q1 += w * g
                t = w * p1
                gx, gy, gz = t * vx, t * vy, t * vz
                if has_v:
                    w = _mixture(table, f + 2 * channels, n, h0, h1, h2, h3)
                    g = vx * v0 + vy * v1 + vz * v2
                    along += _mixture(table, f + 2 * channels, n, d0, d1, d2, d3) * p2 * g
                    q2 += w * g
                    t = w * p2
                    u0 += t * vx
                    u1 += t * vy
                    u2 += t * vz
            row = 4 * (e - first)
            tile[row, lane], tile[row + 1, lane], tile[row + 2, lane], tile[row + 3, lane] = along, gx, gy, gz
        cuda.syncthreads()
        e = first + lane // 4
        if e < last:
            total = zero
            for q in range(WARP):
                total += tile[lane, q]
            gradient[4 * (e * parts + k) + lane % 4] += total
        cuda.syncthreads()
    if has_v and inside:
        dphi[b], dphi[b + channels], dphi[b + 2 * channels] = q0, q1, q2
        dv[b], dv[b + channels], dv[b + 2 * channels] = u0, u1, u2


@over_rows
@cuda.jit
def invariants(channels, s, mixed, x, d):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write (s | norms of w) [N, 2C] and <u, w> [N, C] from mixed [N, 3, 2C], u and w side by side."""
    i, c = cuda.blockIdx.x, cuda.blockIdx.y * WARP + cuda.threadIdx.x
    if c >= channels:
        return
    n = 2 * channels
    u = 3 * n * i + c
    w = u + channels
    wx, wy, wz = mixed[w], mixed[w + n], mixed[w + 2 * n]
    x[n * i + c] = s[channels * i + c]
    x[n * i + channels + c] = math.sqrt(wx * wx + wy * wy + wz * wz + s.dtype.type(EPSILON))
    d[channels * i + c] = mixed[u] * wx + mixed[u + n] * wy + mixed[u + 2 * n] * wz


@over_rows
@cuda.jit
def gate(channels, gates, mixed, d, s, v):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Add a_ss + a_sv d to s, and a_vv u to v, in place; gates [N, 3C]: a_vv, a_sv and a_ss."""
    i, c = cuda.blockIdx.x, cuda.blockIdx.y * WARP + cuda.threadIdx.x
    if c >= channels:
        return
    a, b, u = channels * i + c, 3 * channels * i + c, 6 * channels * i + c
    s[a] += gates[b + 2 * channels] + gates[b + channels] * d[a]
    for k in range(3):
        v[b + k * channels] += gates[b] * mixed[u + 2 * k * channels]


@over_rows
@cuda.jit
def gates_backward(channels, mixed, d, gs, gv, dgates):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write the derivatives with respect to the gates."""
    i, c = cuda.blockIdx.x, cuda.blockIdx.y * WARP + cuda.threadIdx.x
    if c >= channels:
        return
    a, b, u = channels * i + c, 3 * channels * i + c, 6 * channels * i + c
    total = gv[b] * mixed[u]
    for k in range(1, 3):
        total += gv[b + k * channels] * mixed[u + 2 * k * channels]
    dgates[b] = total
    dgates[b + channels] = gs[a] * d[a]
    dgates[b + 2 * channels] = gs[a]


@over_rows
@cuda.jit
def mixed_backward(channels, mixed, x, gates, dx, gs, gv, dmixed):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write the derivative with respect to mixed, and add the first half of dx [N, 2C], that of (s | norms), to gs."""
    i, c = cuda.blockIdx.x, cuda.blockIdx.y * WARP + cuda.threadIdx.x
    if c >= channels:
        return
    n = 2 * channels
    a, b, u, norm = channels * i + c, 3 * channels * i + c, 3 * n * i + c, n * i + channels + c
    # Of the product <u, w>, then of the norm of w
    g, f = gs[a] * gates[b + channels], dx[norm] / x[norm]
    gs[a] += dx[norm - channels]
    for k in range(3):
        p = u + k * n
        q = p + channels
        dmixed[p] = gates[b] * gv[b + k * channels] + g * mixed[q]
        dmixed[q] = g * mixed[p] + f * mixed[q]
