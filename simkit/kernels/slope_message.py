"""SchNet's continuous-filter convolution with filters that bring their slopes, and its derivatives, each as one pass over the edges.

Per channel, with features x at the sender j, filter w(r) and cutoff function f(r) of the edge e = (i <- j), and its reverse:

    m_i = sum_e x_j v,    v = f w,    v' = f' w + f w'         (Schuett et al. 2017, equation 2)

The backward pass returns the partial derivatives of S = <g, m>, that of the distance being sum_c g_i x_j v'. Its own backward pass
returns those of T, the derivative of S along the cotangents (hx, hr). There are no second derivatives with respect to distances.

The work is cut into blocks of channels, which share no output except dr (summed over blocks afterwards), as in `filter_message`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numba import prange
from torch import Tensor

from simkit.kernels.blocks import BLOCK, add_blocks, begin, compile_blocks, compile_shared, flat, sizes


class Pairs:
    """Pairs of neighbors, in the form that the kernels take; each stands for both of its directions.

    Args:
        sender, receiver: [E] int64, on a CPU.
        cutoff: [2, E], the cutoff function f and its derivative f' at the distances.
    """

    def __init__(self, sender: Tensor, receiver: Tensor, cutoff: Tensor) -> None:
        self.arrays = flat(cutoff, sender, receiver)


@dataclass(frozen=True)
class SlopeFilters:
    """Filters with slopes of one layer: the message and its derivatives as plain values, without a record.

    Args:
        values, slopes: [E, C]. pairs: what they belong to.
    """

    values: Tensor
    slopes: Tensor
    pairs: Pairs

    def forward(self, x: Tensor) -> Tensor:
        """Return m [N, C]."""
        out = x.new_zeros(x.shape)
        _forward(*sizes(x.shape[1]), *flat(x, self.values), *self.pairs.arrays, *flat(out))
        return out

    def forces(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivatives of <g, m> with respect to x [N, C] and r [E]."""
        return self._backward(x, g, None)

    def backward(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the derivatives of <g, m> with respect to x, r, values and slopes, which have no part in it."""
        dvalues = self.values.new_empty(self.values.shape)
        dx, dr = self._backward(x, g, dvalues)
        return dx, dr, dvalues, None

    def _backward(self, x: Tensor, g: Tensor, dvalues: Tensor | None) -> tuple[Tensor, Tensor]:
        w = self.values
        dx, dr = x.new_zeros(x.shape), x.new_empty(len(w))
        arrays = flat(x, w, self.slopes, g, dx, w if dvalues is None else dvalues, dr)
        _backward(*sizes(x.shape[1]), *arrays, *self.pairs.arrays, dvalues is not None)
        return dx, dr

    def second(self, x: Tensor, g: Tensor, hx: Tensor | None, hr: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the derivatives of T with respect to x, values, slopes and g; a cotangent of None is zero."""
        w = self.values
        hx = torch.zeros_like(x) if hx is None else hx
        dx, dg = x.new_zeros(x.shape), x.new_zeros(x.shape)
        dw, dslope = w.new_empty(w.shape), w.new_empty(w.shape)
        arrays = flat(x, w, self.slopes, g, hx, hr, dx, dw, dslope, dg)
        _second_backward(*sizes(x.shape[1]), *arrays, *self.pairs.arrays)
        return dx, dw, dslope, dg


@compile_blocks
def _forward_blocks(start, end, c_all, x, w, f, sender, receiver, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    for e in range(len(sender)):
        for lo in range(start * BLOCK, end * BLOCK, BLOCK):
            n = np.uintp(min(BLOCK, c_all - lo))
            i, j, b = begin(receiver[e], c_all, lo), begin(sender[e], c_all, lo), begin(e, c_all, lo)
            # One after the other: an atom may be its own neighbor.
            for c in range(n):
                out[i + c] += f[e] * w[b + c] * x[j + c]
            for c in range(n):
                out[j + c] += f[e] * w[b + c] * x[i + c]


@compile_blocks
def _backward_blocks(  # type: ignore[no-untyped-def]  # pragma: no cover
    start, end, c_all, x, w, slope, g, dx, dw, dr, f, sender, receiver, with_dw
):
    edges = len(sender)
    for e in range(edges):
        df = f[edges + e]
        for lo in range(start * BLOCK, end * BLOCK, BLOCK):
            n = np.uintp(min(BLOCK, c_all - lo))
            i, j, b = begin(receiver[e], c_all, lo), begin(sender[e], c_all, lo), begin(e, c_all, lo)
            total = x.dtype.type(0)
            for c in range(n):
                dx[j + c] += f[e] * w[b + c] * g[i + c]
            for c in range(n):
                dx[i + c] += f[e] * w[b + c] * g[j + c]
            for c in range(n):
                product = g[i + c] * x[j + c] + g[j + c] * x[i + c]
                total += product * (df * w[b + c] + f[e] * slope[b + c])
                if with_dw:
                    dw[b + c] = f[e] * product
            dr[lo // BLOCK * edges + e] = total


@compile_blocks
def _second_blocks(  # type: ignore[no-untyped-def]  # pragma: no cover
    start, end, c_all, x, w, slope, g, hx, hr, dx, dw, dslope, dg, f, sender, receiver
):
    # T = sum_e g_i (hx_j v + x_j t),    t = hr v'
    edges = len(sender)
    for e in range(edges):
        df = f[edges + e]
        for lo in range(start * BLOCK, end * BLOCK, BLOCK):
            n = np.uintp(min(BLOCK, c_all - lo))
            i, j, b = begin(receiver[e], c_all, lo), begin(sender[e], c_all, lo), begin(e, c_all, lo)
            for c in range(n):
                a = g[i + c] * x[j + c] + g[j + c] * x[i + c]
                dw[b + c] = f[e] * (g[i + c] * hx[j + c] + g[j + c] * hx[i + c]) + hr[e] * df * a
                dslope[b + c] = hr[e] * f[e] * a
            for c in range(n):
                t = hr[e] * (df * w[b + c] + f[e] * slope[b + c])
                dx[j + c] += g[i + c] * t
                dg[i + c] += hx[j + c] * f[e] * w[b + c] + x[j + c] * t
            for c in range(n):
                t = hr[e] * (df * w[b + c] + f[e] * slope[b + c])
                dx[i + c] += g[j + c] * t
                dg[j + c] += hx[i + c] * f[e] * w[b + c] + x[i + c] * t


# Each task takes its share of the blocks, edge by edge; a single task runs in the calling thread.


@compile_shared
def _forward(c_all, tasks, x, w, f, sender, receiver, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    blocks = (c_all + BLOCK - 1) // BLOCK
    if tasks == 1:
        _forward_blocks(0, blocks, c_all, x, w, f, sender, receiver, out)
        return
    for k in prange(tasks):
        _forward_blocks(k * blocks // tasks, (k + 1) * blocks // tasks, c_all, x, w, f, sender, receiver, out)


@compile_shared
def _backward(  # type: ignore[no-untyped-def]  # pragma: no cover
    c_all, tasks, x, w, slope, g, dx, dw, dr, f, sender, receiver, with_dw
):
    blocks = (c_all + BLOCK - 1) // BLOCK
    parts = np.empty(blocks * len(sender), x.dtype)
    if tasks == 1:
        _backward_blocks(0, blocks, c_all, x, w, slope, g, dx, dw, parts, f, sender, receiver, with_dw)
    else:
        for k in prange(tasks):
            start, end = k * blocks // tasks, (k + 1) * blocks // tasks
            _backward_blocks(start, end, c_all, x, w, slope, g, dx, dw, parts, f, sender, receiver, with_dw)
    add_blocks(parts, dr)


@compile_shared
def _second_backward(  # type: ignore[no-untyped-def]  # pragma: no cover
    c_all, tasks, x, w, slope, g, hx, hr, dx, dw, dslope, dg, f, sender, receiver
):
    blocks = (c_all + BLOCK - 1) // BLOCK
    if tasks == 1:
        _second_blocks(0, blocks, c_all, x, w, slope, g, hx, hr, dx, dw, dslope, dg, f, sender, receiver)
        return
    for k in prange(tasks):
        start, end = k * blocks // tasks, (k + 1) * blocks // tasks
        _second_blocks(start, end, c_all, x, w, slope, g, hx, hr, dx, dw, dslope, dg, f, sender, receiver)
