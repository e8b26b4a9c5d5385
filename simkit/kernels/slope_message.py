"""SchNet's continuous-filter convolution with filters that bring their slopes, and its derivatives, each as one pass over the edges.

Per channel, with features x at the sender j, filter w(r) and cutoff function f(r) of the edge e = (i <- j), and its reverse:

    m_i = sum_e x_j v,    v = f w,    v' = f' w + f w'         (Schuett et al. 2017, equation 2)

The backward pass returns the partial derivatives of S = <g, m>, that of the distance being sum_c g_i x_j v'. Its own backward pass
returns those of T, the derivative of S along the cotangents (hx, hw, hr).

The work is cut into blocks of channels, which share no output except dr (summed over blocks afterwards), as in `filter_message`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from simkit.kernels.blocks import BLOCK, begin, compile_blocks, compile_shared, flat, sizes


class Pairs:
    """Pairs of neighbors, in the form that the kernels take; each stands for both of its directions.

    Args:
        sender, receiver: [E] int64, on a CPU.
        cutoff: [2, E], the cutoff function f and its derivative f' at the distances.
    """

    def __init__(self, sender: Tensor, receiver: Tensor, cutoff: Tensor) -> None:
        self.arrays = flat(cutoff, sender, receiver)


def slope_message(x: Tensor, w: Tensor, slope: Tensor, r: Tensor, pairs: Pairs) -> Tensor:
    """Return m [N, C], on a CPU in float32 or float64.

    Differentiable twice with respect to x, w and slope, once with respect to r: the second derivative is taken to be zero. It is meant
    for where no more is asked for (`simkit.kernels.orders`); `filter_message` has all second derivatives.

    Args:
        x: [N, C]. w, slope: [E, C], filters and their derivatives with respect to r; as functions of weights, not of r.
        r: [E], which enters through the derivatives only.
    """
    total: Tensor = _Message.apply(x, w, slope, r, pairs)
    return total


def convolve(x: Tensor, w: Tensor, pairs: Pairs) -> Tensor:
    """Return m [N, C] without a record for derivatives."""
    out = x.new_zeros(x.shape)
    _forward(*sizes(x.shape[1]), *flat(x, w), *pairs.arrays, *flat(out))
    return out


def convolve_backward(
    x: Tensor, w: Tensor, slope: Tensor, pairs: Pairs, g: Tensor, dw: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the derivatives of <g, m> with respect to x [N, C] and r [E]; write that with respect to w into ``dw`` where given."""
    dx, dr = x.new_zeros(x.shape), x.new_empty(len(w))
    with_dw = dw is not None
    arrays = flat(x, w, slope, g, dx, w if dw is None else dw, dr)
    _backward(*sizes(x.shape[1]), *arrays, *pairs.arrays, with_dw)
    return dx, dr


class _Message(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, slope: Tensor, r: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(x, w, slope)
        ctx.pairs = pairs
        return convolve(x, w, pairs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw, dr = _MessageBackward.apply(*ctx.saved_tensors, g, ctx.pairs)
        return dx, dw, None, dr, None


class _MessageBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, slope: Tensor, g: Tensor, pairs: Pairs
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w, slope, g)
        ctx.pairs = pairs
        dw = w.new_empty(w.shape)
        dx, dr = convolve_backward(x, w, slope, pairs, g, dw)
        return dx, dw, dr

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, hx: Tensor | None, hw: Tensor | None, hr: Tensor | None) -> tuple[Tensor | None, ...]:
        x, w, slope, g = ctx.saved_tensors
        has_hw = hw is not None
        hx = torch.zeros_like(x) if hx is None else hx
        hw = w if hw is None else hw
        hr = x.new_zeros(len(w)) if hr is None else hr
        dx, dg = x.new_zeros(x.shape), x.new_zeros(x.shape)
        dw, dslope = w.new_empty(w.shape), w.new_empty(w.shape)
        arrays = flat(x, w, slope, g, hx, hw, hr, dx, dw, dslope, dg)
        _second_backward(*sizes(x.shape[1]), *arrays, *ctx.pairs.arrays, has_hw)
        return dx, dw, dslope, dg, None


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
    start, end, c_all, x, w, slope, g, hx, hw, hr, dx, dw, dslope, dg, f, sender, receiver, has_hw
):
    # T = sum_e g_i (hx_j v + x_j t),    t = hr v' + f hw
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
                if has_hw:
                    t += f[e] * hw[b + c]
                dx[j + c] += g[i + c] * t
                dg[i + c] += hx[j + c] * f[e] * w[b + c] + x[j + c] * t
            for c in range(n):
                t = hr[e] * (df * w[b + c] + f[e] * slope[b + c])
                if has_hw:
                    t += f[e] * hw[b + c]
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
    blocks, edges = (c_all + BLOCK - 1) // BLOCK, len(sender)
    parts = np.empty(blocks * edges, x.dtype)
    if tasks == 1:
        _backward_blocks(0, blocks, c_all, x, w, slope, g, dx, dw, parts, f, sender, receiver, with_dw)
    else:
        for k in prange(tasks):
            start, end = k * blocks // tasks, (k + 1) * blocks // tasks
            _backward_blocks(start, end, c_all, x, w, slope, g, dx, dw, parts, f, sender, receiver, with_dw)
    dr[:] = parts[:edges]
    for block in range(1, blocks):
        for e in range(edges):
            dr[e] += parts[block * edges + e]


@compile_shared
def _second_backward(  # type: ignore[no-untyped-def]  # pragma: no cover
    c_all, tasks, x, w, slope, g, hx, hw, hr, dx, dw, dslope, dg, f, sender, receiver, has_hw
):
    blocks = (c_all + BLOCK - 1) // BLOCK
    if tasks == 1:
        _second_blocks(0, blocks, c_all, x, w, slope, g, hx, hw, hr, dx, dw, dslope, dg, f, sender, receiver, has_hw)
        return
    for k in prange(tasks):
        start, end = k * blocks // tasks, (k + 1) * blocks // tasks
        _second_blocks(start, end, c_all, x, w, slope, g, hx, hw, hr, dx, dw, dslope, dg, f, sender, receiver, has_hw)
