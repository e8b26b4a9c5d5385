"""PaiNN's messages over rows of edges with tabulated filters, forward and backward, and the elementwise parts of its update block.

With phi = (p0, p1, p2) and v at the sender j, filters W = (w0, w1, w2) and the unit vector u of the edge i <- j, per channel:

    s_i += sum_j p0 w0,    v_i += sum_j p1 w1 u + p2 w2 v_j        (Schuett et al. 2021, equations 7 and 8)

An atom's row holds what it receives; the list being symmetric, what it sends goes to the same neighbors along the opposite vectors, so that
the backward pass gathers, too: derivatives of phi_j and v_j from row j alone, and those of the distance and the unit vector of each edge
i <- j into slot e of row j. Nothing of the size edges times channels is stored.

Arrays are flat: in a row of three sections of C, section k begins at k C; a row of a table holds values and slopes of three sections each.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from simkit.kernels.blocks import begin, compile_blocks, compile_shared
from simkit.kernels.vector_update import EPSILON

# Offsets are sums of unsigned numbers: a product with a plain number would be signed, and be looked at for being negative.


@njit
def _sections(row, channels):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """Where the three sections of a row begin."""
    k, n = begin(row, 3 * channels, 0), np.uintp(channels)
    return k, k + n, k + n + n


@njit
def _halves(row, channels):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Where the three components of u and those of w begin in the mixed vectors of an atom."""
    m, n = begin(row, 6 * channels, 0), np.uintp(channels)
    return m, m + n + n, m + n + n + n + n, m + n, m + n + n + n, m + n + n + n + n + n


@njit
def _knots(knot, channels):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Where the values and slopes at both ends of an interval begin in a table."""
    f, n = begin(knot, 6 * channels, 0), np.uintp(3 * channels)
    return f, f + n, f + n + n, f + n + n + n


@compile_blocks
def _gather_rows(  # type: ignore[no-untyped-def]  # pragma: no cover
    start, end, channels, ptr, sender, knot, basis, unit, table, phi, v, has_v, s, out
):
    n = np.uintp(channels)
    for i in range(start, end):
        a = begin(i, channels, 0)
        b0, b1, b2 = _sections(i, channels)
        for c in range(np.uintp(3 * channels)):
            out[b0 + c] = v[b0 + c] if has_v else out.dtype.type(0)
        for e in range(ptr[i], ptr[i + 1]):
            p0, p1, p2 = _sections(sender[e], channels)
            f0, f1, f2, f3 = _knots(knot[e], channels)
            h, d = begin(e, 8, 0), begin(e, 3, 0)
            h0, h1, h2, h3 = basis[h], basis[h + np.uintp(1)], basis[h + np.uintp(2)], basis[h + np.uintp(3)]
            x, y, z = unit[d], unit[d + np.uintp(1)], unit[d + np.uintp(2)]
            for c in range(n):
                s[a + c] += (h0 * table[f0 + c] + h1 * table[f1 + c] + h2 * table[f2 + c] + h3 * table[f3 + c]) * phi[
                    p0 + c
                ]
            f0, f1, f2, f3 = f0 + n, f1 + n, f2 + n, f3 + n
            for c in range(n):
                t = (h0 * table[f0 + c] + h1 * table[f1 + c] + h2 * table[f2 + c] + h3 * table[f3 + c]) * phi[p1 + c]
                out[b0 + c] += t * x
                out[b1 + c] += t * y
                out[b2 + c] += t * z
            if has_v:
                f0, f1, f2, f3 = f0 + n, f1 + n, f2 + n, f3 + n
                for c in range(n):
                    t = (h0 * table[f0 + c] + h1 * table[f1 + c] + h2 * table[f2 + c] + h3 * table[f3 + c]) * phi[
                        p2 + c
                    ]
                    out[b0 + c] += t * v[p0 + c]
                    out[b1 + c] += t * v[p1 + c]
                    out[b2 + c] += t * v[p2 + c]


@compile_blocks
def _derive_rows(  # type: ignore[no-untyped-def]  # pragma: no cover
    start, end, channels, ptr, sender, knot, basis, unit, table, phi, v, has_v, gs, gv, dphi, dv, gradient
):
    n = np.uintp(channels)
    zero = gs.dtype.type(0)
    for j in range(start, end):
        b0, b1, b2 = _sections(j, channels)
        if has_v:
            for c in range(np.uintp(3 * channels)):
                dphi[b0 + c] = zero
                dv[b0 + c] = gv[b0 + c]
        for e in range(ptr[j], ptr[j + 1]):
            a = begin(sender[e], channels, 0)
            i0, i1, i2 = _sections(sender[e], channels)
            f0, f1, f2, f3 = _knots(knot[e], channels)
            h, d, q = begin(e, 8, 0), begin(e, 3, 0), begin(e, 4, 0)
            h0, h1, h2, h3 = basis[h], basis[h + np.uintp(1)], basis[h + np.uintp(2)], basis[h + np.uintp(3)]
            h = h + np.uintp(4)
            d0, d1, d2, d3 = basis[h], basis[h + np.uintp(1)], basis[h + np.uintp(2)], basis[h + np.uintp(3)]
            x, y, z = -unit[d], -unit[d + np.uintp(1)], -unit[d + np.uintp(2)]
            along, gx, gy, gz = zero, zero, zero, zero
            for c in range(n):
                t0, t1, t2, t3 = table[f0 + c], table[f1 + c], table[f2 + c], table[f3 + c]
                g = gs[a + c]
                along += (d0 * t0 + d1 * t1 + d2 * t2 + d3 * t3) * phi[b0 + c] * g
                if has_v:
                    dphi[b0 + c] += (h0 * t0 + h1 * t1 + h2 * t2 + h3 * t3) * g
            f0, f1, f2, f3 = f0 + n, f1 + n, f2 + n, f3 + n
            for c in range(n):
                t0, t1, t2, t3 = table[f0 + c], table[f1 + c], table[f2 + c], table[f3 + c]
                vx, vy, vz, p = gv[i0 + c], gv[i1 + c], gv[i2 + c], phi[b1 + c]
                w, g = h0 * t0 + h1 * t1 + h2 * t2 + h3 * t3, vx * x + vy * y + vz * z
                along += (d0 * t0 + d1 * t1 + d2 * t2 + d3 * t3) * p * g
                t = w * p
                gx += t * vx
                gy += t * vy
                gz += t * vz
                if has_v:
                    dphi[b1 + c] += w * g
            if has_v:
                f0, f1, f2, f3 = f0 + n, f1 + n, f2 + n, f3 + n
                for c in range(n):
                    t0, t1, t2, t3 = table[f0 + c], table[f1 + c], table[f2 + c], table[f3 + c]
                    vx, vy, vz, p = gv[i0 + c], gv[i1 + c], gv[i2 + c], phi[b2 + c]
                    w = h0 * t0 + h1 * t1 + h2 * t2 + h3 * t3
                    g = vx * v[b0 + c] + vy * v[b1 + c] + vz * v[b2 + c]
                    along += (d0 * t0 + d1 * t1 + d2 * t2 + d3 * t3) * p * g
                    dphi[b2 + c] += w * g
                    t = w * p
                    dv[b0 + c] += t * vx
                    dv[b1 + c] += t * vy
                    dv[b2 + c] += t * vz
            gradient[q] += along
            gradient[q + np.uintp(1)] += gx
            gradient[q + np.uintp(2)] += gy
            gradient[q + np.uintp(3)] += gz


@compile_blocks
def _invariants_rows(start, end, channels, s, mixed, x, d):  # type: ignore[no-untyped-def]  # pragma: no cover
    n, tiny = np.uintp(channels), s.dtype.type(EPSILON)
    for i in range(start, end):
        a, x0 = begin(i, channels, 0), begin(i, 2 * channels, 0)
        x1 = x0 + n
        u0, u1, u2, w0, w1, w2 = _halves(i, channels)
        for c in range(n):
            wx, wy, wz = mixed[w0 + c], mixed[w1 + c], mixed[w2 + c]
            x[x0 + c] = s[a + c]
            x[x1 + c] = math.sqrt(wx * wx + wy * wy + wz * wz + tiny)
            d[a + c] = mixed[u0 + c] * wx + mixed[u1 + c] * wy + mixed[u2 + c] * wz


@compile_blocks
def _gate_rows(start, end, channels, gates, mixed, d, s, v):  # type: ignore[no-untyped-def]  # pragma: no cover
    for i in range(start, end):
        a = begin(i, channels, 0)
        b0, b1, b2 = _sections(i, channels)
        u0, u1, u2, _, _, _ = _halves(i, channels)
        for c in range(np.uintp(channels)):
            gate = gates[b0 + c]
            s[a + c] += gates[b2 + c] + gates[b1 + c] * d[a + c]
            v[b0 + c] += gate * mixed[u0 + c]
            v[b1 + c] += gate * mixed[u1 + c]
            v[b2 + c] += gate * mixed[u2 + c]


@compile_blocks
def _gates_backward_rows(start, end, channels, mixed, d, gs, gv, dgates):  # type: ignore[no-untyped-def]  # pragma: no cover
    for i in range(start, end):
        a = begin(i, channels, 0)
        b0, b1, b2 = _sections(i, channels)
        u0, u1, u2, _, _, _ = _halves(i, channels)
        for c in range(np.uintp(channels)):
            g = gs[a + c]
            dgates[b0 + c] = gv[b0 + c] * mixed[u0 + c] + gv[b1 + c] * mixed[u1 + c] + gv[b2 + c] * mixed[u2 + c]
            dgates[b1 + c] = g * d[a + c]
            dgates[b2 + c] = g


@compile_blocks
def _mixed_backward_rows(start, end, channels, mixed, x, gates, dx, gs, gv, dmixed):  # type: ignore[no-untyped-def]  # pragma: no cover
    n = np.uintp(channels)
    for i in range(start, end):
        a, x0 = begin(i, channels, 0), begin(i, 2 * channels, 0)
        x1 = x0 + n
        b0, b1, b2 = _sections(i, channels)
        u0, u1, u2, w0, w1, w2 = _halves(i, channels)
        for c in range(n):
            # Of the product <u, w>, then of the norm of w
            g, f, gate = gs[a + c] * gates[b1 + c], dx[x1 + c] / x[x1 + c], gates[b0 + c]
            gs[a + c] += dx[x0 + c]
            wx, wy, wz = mixed[w0 + c], mixed[w1 + c], mixed[w2 + c]
            dmixed[u0 + c] = gate * gv[b0 + c] + g * wx
            dmixed[u1 + c] = gate * gv[b1 + c] + g * wy
            dmixed[u2 + c] = gate * gv[b2 + c] + g * wz
            dmixed[w0 + c] = g * mixed[u0 + c] + f * wx
            dmixed[w1 + c] = g * mixed[u1 + c] + f * wy
            dmixed[w2 + c] = g * mixed[u2 + c] + f * wz


# Each task takes its rows; a single task runs in the calling thread.


@compile_shared
def gather(  # type: ignore[no-untyped-def]  # pragma: no cover
    bounds, channels, ptr, sender, knot, basis, unit, table, phi, v, has_v, s, out
):
    """Add the messages to s [N, C] and write v plus them to ``out`` [N, 3C]."""
    if len(bounds) == 2:
        _gather_rows(0, bounds[1], channels, ptr, sender, knot, basis, unit, table, phi, v, has_v, s, out)
        return
    for k in prange(len(bounds) - 1):
        _gather_rows(
            bounds[k], bounds[k + 1], channels, ptr, sender, knot, basis, unit, table, phi, v, has_v, s, out
        )  # fmt: skip


@compile_shared
def derive(  # type: ignore[no-untyped-def]  # pragma: no cover
    bounds, channels, ptr, sender, knot, basis, unit, table, phi, v, has_v, gs, gv, dphi, dv, gradient
):
    """Write the derivatives with respect to phi and v [N, 3C], given gs and gv, and add those of edges; without v, only the latter."""
    if len(bounds) == 2:
        _derive_rows(
            0, bounds[1], channels, ptr, sender, knot, basis, unit, table, phi, v, has_v, gs, gv, dphi, dv, gradient
        )
        return
    for k in prange(len(bounds) - 1):
        _derive_rows(
            bounds[k], bounds[k + 1], channels, ptr, sender, knot, basis, unit, table, phi, v, has_v, gs, gv, dphi, dv, gradient
        )  # fmt: skip


@compile_shared
def invariants(bounds, channels, s, mixed, x, d):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write (s | norms of w) [N, 2C] and <u, w> [N, C] from mixed [N, 3, 2C], u and w side by side."""
    if len(bounds) == 2:
        _invariants_rows(0, bounds[1], channels, s, mixed, x, d)
        return
    for k in prange(len(bounds) - 1):
        _invariants_rows(bounds[k], bounds[k + 1], channels, s, mixed, x, d)


@compile_shared
def gate(bounds, channels, gates, mixed, d, s, v):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Add a_ss + a_sv d to s, and a_vv u to v, in place; gates [N, 3C]: a_vv, a_sv and a_ss."""
    if len(bounds) == 2:
        _gate_rows(0, bounds[1], channels, gates, mixed, d, s, v)
        return
    for k in prange(len(bounds) - 1):
        _gate_rows(bounds[k], bounds[k + 1], channels, gates, mixed, d, s, v)


@compile_shared
def gates_backward(bounds, channels, mixed, d, gs, gv, dgates):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write the derivatives with respect to the gates."""
    if len(bounds) == 2:
        _gates_backward_rows(0, bounds[1], channels, mixed, d, gs, gv, dgates)
        return
    for k in prange(len(bounds) - 1):
        _gates_backward_rows(bounds[k], bounds[k + 1], channels, mixed, d, gs, gv, dgates)


@compile_shared
def mixed_backward(bounds, channels, mixed, x, gates, dx, gs, gv, dmixed):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write the derivative with respect to mixed, and add the first half of dx [N, 2C], that of (s | norms), to gs."""
    if len(bounds) == 2:
        _mixed_backward_rows(0, bounds[1], channels, mixed, x, gates, dx, gs, gv, dmixed)
        return
    for k in prange(len(bounds) - 1):
        _mixed_backward_rows(bounds[k], bounds[k + 1], channels, mixed, x, gates, dx, gs, gv, dmixed)
