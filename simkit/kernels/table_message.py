"""SchNet's continuous-filter convolution with filters read from a table of distances, and its derivatives, each as one pass over pairs.

A filter is a function of one distance. Once there are more pairs than places at which such functions need to be known, the network is
asked at these places only, and each pair reads its filter w and the slope w' by cubic Hermite interpolation. With T the four rows around
a pair (values and slopes at the knots before and behind it), the eight numbers A and B of the pair hold the polynomials and the cutoff f:

    m_i = sum_e x_j v,    v = f w = A T,    v' = f' w + f w' = B T         (Schuett et al. 2017, equation 2)

No array of the size [pairs, channels] exists. The backward pass returns the partial derivatives of S = <g, m>, that of the distance being
sum_c g_i x_j v'. Its own backward pass returns those of T2, the derivative of S along the cotangents (hx, hr).

The work is cut into blocks of channels, which share no output except dr (summed over blocks afterwards), as in `filter_message`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from simkit.kernels.blocks import BLOCK, add_blocks, begin, compile_blocks, compile_shared, flat, sizes


class TablePairs:
    """Pairs of neighbors, each of which stands for both of its directions, and where in the table they read.

    Args:
        sender, receiver: [E] int64, on a CPU.
        r: [E], within the table. cutoff: [2, E], the cutoff function and its derivative at r.
        first: number of the first knot, which lies at ``first * step``. step: distance of the knots, angstrom.
    """

    def __init__(self, sender: Tensor, receiver: Tensor, r: Tensor, cutoff: Tensor, first: int, step: float) -> None:
        self.count = len(r)
        knot, weights = torch.empty_like(sender), r.new_empty(8 * len(r))
        _interpolation(first, step, *flat(r, cutoff, knot, weights))
        self.arrays = flat(sender, receiver, knot, weights)


@dataclass(frozen=True)
class TableFilters:
    """The filters of one layer in a table: the message and its derivatives as plain values, without a record.

    Args:
        values, slopes: [K, C]. pairs: that read them.
    """

    values: Tensor
    slopes: Tensor
    pairs: TablePairs

    def forward(self, x: Tensor) -> Tensor:
        """Return m [N, C]."""
        out = x.new_zeros(x.shape)
        _forward(*sizes(x.shape[1]), *flat(x, self.values, self.slopes), *self.pairs.arrays, *flat(out))
        return out

    def forces(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives of <g, m> with respect to x [N, C] and r [E]."""
        return self._backward(x, g, self.values, self.slopes, False)

    def backward(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the derivatives of <g, m> with respect to x, r, values and slopes."""
        dvalues, dslopes = self.values.new_zeros(self.values.shape), self.values.new_zeros(self.values.shape)
        return *self._backward(x, g, dvalues, dslopes, True), dvalues, dslopes

    def second(self, x: Tensor, g: Tensor, hx: Tensor | None, hr: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the derivatives of T2 with respect to x, values, slopes and g; a cotangent of None is zero."""
        hx = torch.zeros_like(x) if hx is None else hx
        dx, dg = x.new_zeros(x.shape), x.new_zeros(x.shape)
        dvalues, dslopes = self.values.new_zeros(self.values.shape), self.values.new_zeros(self.values.shape)
        arrays = flat(g, hx, hr, dx, dvalues, dslopes, dg)
        _second_backward(*sizes(x.shape[1]), *flat(x, self.values, self.slopes), *self.pairs.arrays, *arrays)
        return dx, dvalues, dslopes, dg

    def _backward(self, x: Tensor, g: Tensor, dvalues: Tensor, dslopes: Tensor, wanted: bool) -> tuple[Tensor, Tensor]:
        dx, dr = x.new_zeros(x.shape), x.new_empty(self.pairs.count)
        arrays = flat(g, dx, dvalues, dslopes, dr)
        _backward(*sizes(x.shape[1]), *flat(x, self.values, self.slopes), *self.pairs.arrays, *arrays, wanted)
        return dx, dr


@njit(cache=True)
def _interpolation(first, step, r, cutoff, knot, weights):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    edges = len(r)
    for e in range(edges):
        f, df, place = cutoff[e], cutoff[edges + e], r[e] / step
        k = int(place)
        t = place - k
        knot[e] = k - first
        a0, a1 = (2 * t - 3) * t * t + 1, ((t - 2) * t + 1) * t * step
        a2, a3 = (3 - 2 * t) * t * t, (t - 1) * t * t * step
        b0, b1, b3 = 6 * t * (t - 1) / step, (3 * t - 1) * (t - 1), (3 * t - 2) * t
        row = weights[8 * e : 8 * e + 8]
        row[0], row[1], row[2], row[3] = f * a0, f * a1, f * a2, f * a3
        row[4], row[5], row[6], row[7] = df * a0 + f * b0, df * a1 + f * b1, df * a2 - f * b0, df * a3 + f * b3


@njit
def _four(weights, k):  # type: ignore[no-untyped-def]  # pragma: no cover
    return weights[k], weights[k + 1], weights[k + 2], weights[k + 3]


@compile_blocks
def _forward_blocks(start, end, c_all, x, values, slopes, sender, receiver, knot, weights, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    v = np.empty(BLOCK, x.dtype)
    for e in range(len(sender)):
        a0, a1, a2, a3 = _four(weights, 8 * e)
        for lo in range(start * BLOCK, end * BLOCK, BLOCK):
            n = np.uintp(min(BLOCK, c_all - lo))
            i, j = begin(receiver[e], c_all, lo), begin(sender[e], c_all, lo)
            k, l = begin(knot[e], c_all, lo), begin(knot[e] + 1, c_all, lo)  # noqa: E741
            for c in range(n):
                v[c] = a0 * values[k + c] + a1 * slopes[k + c] + a2 * values[l + c] + a3 * slopes[l + c]
            # One after the other: an atom may be its own neighbor.
            for c in range(n):
                out[i + c] += v[c] * x[j + c]
            for c in range(n):
                out[j + c] += v[c] * x[i + c]


@compile_blocks
def _backward_blocks(  # type: ignore[no-untyped-def]  # pragma: no cover
    start, end, c_all, x, values, slopes, sender, receiver, knot, weights, g, dx, dvalues, dslopes, dr, wanted
):
    v, a = np.empty(BLOCK, x.dtype), np.empty(BLOCK, x.dtype)
    edges = len(sender)
    for e in range(edges):
        a0, a1, a2, a3 = _four(weights, 8 * e)
        b0, b1, b2, b3 = _four(weights, 8 * e + 4)
        for lo in range(start * BLOCK, end * BLOCK, BLOCK):
            n = np.uintp(min(BLOCK, c_all - lo))
            i, j = begin(receiver[e], c_all, lo), begin(sender[e], c_all, lo)
            k, l = begin(knot[e], c_all, lo), begin(knot[e] + 1, c_all, lo)  # noqa: E741
            total = x.dtype.type(0)
            for c in range(n):
                v[c] = a0 * values[k + c] + a1 * slopes[k + c] + a2 * values[l + c] + a3 * slopes[l + c]
                slope = b0 * values[k + c] + b1 * slopes[k + c] + b2 * values[l + c] + b3 * slopes[l + c]
                a[c] = g[i + c] * x[j + c] + g[j + c] * x[i + c]
                total += a[c] * slope
            for c in range(n):
                dx[j + c] += v[c] * g[i + c]
            for c in range(n):
                dx[i + c] += v[c] * g[j + c]
            dr[lo // BLOCK * edges + e] = total
            if not wanted:
                continue
            for c in range(n):
                dvalues[k + c] += a0 * a[c]
                dslopes[k + c] += a1 * a[c]
            for c in range(n):
                dvalues[l + c] += a2 * a[c]
                dslopes[l + c] += a3 * a[c]


@compile_blocks
def _second_blocks(  # type: ignore[no-untyped-def]  # pragma: no cover
    start,
    end,
    c_all,
    x,
    values,
    slopes,
    sender,
    receiver,
    knot,
    weights,
    g,
    hx,
    hr,
    dx,
    dvalues,
    dslopes,
    dg,
):
    # T2 = sum_e (g_i hx_j + g_j hx_i) v + hr (g_i x_j + g_j x_i) v'
    v, s = np.empty(BLOCK, x.dtype), np.empty(BLOCK, x.dtype)
    a, p = np.empty(BLOCK, x.dtype), np.empty(BLOCK, x.dtype)
    for e in range(len(sender)):
        h = hr[e]
        a0, a1, a2, a3 = _four(weights, 8 * e)
        b0, b1, b2, b3 = _four(weights, 8 * e + 4)
        b0, b1, b2, b3 = h * b0, h * b1, h * b2, h * b3
        for lo in range(start * BLOCK, end * BLOCK, BLOCK):
            n = np.uintp(min(BLOCK, c_all - lo))
            i, j = begin(receiver[e], c_all, lo), begin(sender[e], c_all, lo)
            k, l = begin(knot[e], c_all, lo), begin(knot[e] + 1, c_all, lo)  # noqa: E741
            for c in range(n):
                v[c] = a0 * values[k + c] + a1 * slopes[k + c] + a2 * values[l + c] + a3 * slopes[l + c]
                s[c] = b0 * values[k + c] + b1 * slopes[k + c] + b2 * values[l + c] + b3 * slopes[l + c]
            for c in range(n):
                a[c] = g[i + c] * x[j + c] + g[j + c] * x[i + c]
                p[c] = g[i + c] * hx[j + c] + g[j + c] * hx[i + c]
            for c in range(n):
                dx[j + c] += g[i + c] * s[c]
                dg[i + c] += hx[j + c] * v[c] + x[j + c] * s[c]
            for c in range(n):
                dx[i + c] += g[j + c] * s[c]
                dg[j + c] += hx[i + c] * v[c] + x[i + c] * s[c]
            for c in range(n):
                dvalues[k + c] += a0 * p[c] + b0 * a[c]
                dslopes[k + c] += a1 * p[c] + b1 * a[c]
            for c in range(n):
                dvalues[l + c] += a2 * p[c] + b2 * a[c]
                dslopes[l + c] += a3 * p[c] + b3 * a[c]


# Each task takes its share of the blocks, pair by pair; a single task runs in the calling thread.


@compile_shared
def _forward(c_all, tasks, x, values, slopes, sender, receiver, knot, weights, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    blocks = (c_all + BLOCK - 1) // BLOCK
    if tasks == 1:
        _forward_blocks(0, blocks, c_all, x, values, slopes, sender, receiver, knot, weights, out)
        return
    for k in prange(tasks):
        start, end = k * blocks // tasks, (k + 1) * blocks // tasks
        _forward_blocks(start, end, c_all, x, values, slopes, sender, receiver, knot, weights, out)


@compile_shared
def _backward(  # type: ignore[no-untyped-def]  # pragma: no cover
    c_all, tasks, x, values, slopes, sender, receiver, knot, weights, g, dx, dvalues, dslopes, dr, wanted
):
    blocks = (c_all + BLOCK - 1) // BLOCK
    parts = np.empty(blocks * len(sender), x.dtype)
    if tasks == 1:
        _backward_blocks(
            0, blocks, c_all, x, values, slopes, sender, receiver, knot, weights, g, dx, dvalues, dslopes, parts, wanted
        )
    else:
        for k in prange(tasks):
            start, end = k * blocks // tasks, (k + 1) * blocks // tasks
            _backward_blocks(
                start,
                end,
                c_all,
                x,
                values,
                slopes,
                sender,
                receiver,
                knot,
                weights,
                g,
                dx,
                dvalues,
                dslopes,
                parts,
                wanted,
            )
    add_blocks(parts, dr)


@compile_shared
def _second_backward(  # type: ignore[no-untyped-def]  # pragma: no cover
    c_all, tasks, x, values, slopes, sender, receiver, knot, weights, g, hx, hr, dx, dvalues, dslopes, dg
):
    blocks = (c_all + BLOCK - 1) // BLOCK
    if tasks == 1:
        _second_blocks(
            0, blocks, c_all, x, values, slopes, sender, receiver, knot, weights, g, hx, hr, dx, dvalues, dslopes, dg
        )
        return
    for k in prange(tasks):
        start, end = k * blocks // tasks, (k + 1) * blocks // tasks
        _second_blocks(
            start, end, c_all, x, values, slopes, sender, receiver, knot, weights, g, hx, hr, dx, dvalues, dslopes, dg
        )
