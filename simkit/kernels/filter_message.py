"""SchNet's continuous-filter convolution and its first and second derivatives, each as one pass over the edges.

With features x at the sender j, filters W and the weight f of the edge e = (i <- j), per channel:

    m_i = sum_e f x_j W        (Schuett et al. 2017, equation 2; f is the cutoff function)

S = <g, m> is linear in each of x, W, f and g. The backward pass returns the partial derivatives of S; its own backward pass those of
T, the derivative of S along the cotangents (hx, hw, hf). An edge may stand for its reverse as well, which has the same filter and the
same weight. Only W and its derivative have the size [E, C], where composing PyTorch's operations stores a dozen such arrays.

The work is cut into blocks of channels, which share no output except df (summed over blocks afterwards): no atomics, and the result
does not depend on the number of threads. Arrays are passed flat.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from simkit.kernels.blocks import BLOCK, begin, compile_blocks, compile_shared, count_blocks, flat, sizes


def filter_message_reference(
    x: Tensor, filters: Tensor, weight: Tensor, sender: Tensor, receiver: Tensor, *, both: bool = False
) -> Tensor:
    """Return m [N, C] in plain PyTorch, on any device.

    Args:
        x: [N, C]. filters: [E, C]. weight: [E].
        sender, receiver: [E] int64.
        both: let each edge stand for its reverse as well.
    """
    filters = filters * weight.unsqueeze(1)
    total = torch.zeros_like(x).index_add(0, receiver, x.index_select(0, sender) * filters)
    if both:
        total = total.index_add(0, sender, x.index_select(0, receiver) * filters)
    return total


def filter_message(
    x: Tensor, filters: Tensor, weight: Tensor, sender: Tensor, receiver: Tensor, *, both: bool = False
) -> Tensor:
    """Return the same as `filter_message_reference`; on a CPU by the fused kernels, differentiable twice."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return filter_message_reference(x, filters, weight, sender, receiver, both=both)
    total: Tensor = _Message.apply(x, filters, weight, sender, receiver, both)
    return total


class _Message(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, f: Tensor, sender: Tensor, receiver: Tensor, both: bool) -> Tensor:
        ctx.save_for_backward(x, w, f, sender, receiver)
        ctx.both = both
        out = x.new_zeros(x.shape)
        _forward(*sizes(x.shape[1]), *flat(x, w, f, sender, receiver), both, *flat(out))
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w, f, sender, receiver = ctx.saved_tensors
        return (*_MessageBackward.apply(x, w, f, g, sender, receiver, ctx.both), None, None, None)


class _MessageBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, f: Tensor, g: Tensor, sender: Tensor, receiver: Tensor, both: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(x, w, f, g, sender, receiver)
        ctx.both = both
        # Outputs are made from their shapes: one "like" a transposed argument would be transposed, too, and `flat` a copy of it.
        dx, dw, df = x.new_zeros(x.shape), w.new_empty(w.shape), f.new_empty(count_blocks(x.shape[1]), f.shape[0])
        _backward(*sizes(x.shape[1]), *flat(x, w, f, sender, receiver), both, *flat(g, dx, dw, df))
        return dx, dw, df.sum(dim=0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, hx: Tensor | None, hw: Tensor | None, hf: Tensor | None) -> tuple[Tensor | None, ...]:
        x, w, f, g, sender, receiver = ctx.saved_tensors
        hx = torch.zeros_like(x) if hx is None else hx
        hw = torch.zeros_like(w) if hw is None else hw
        hf = torch.zeros_like(f) if hf is None else hf
        dx, dw, df = x.new_zeros(x.shape), w.new_empty(w.shape), f.new_empty(count_blocks(x.shape[1]), f.shape[0])
        dg = x.new_zeros(x.shape)
        _second_backward(
            *sizes(x.shape[1]), *flat(x, w, f, sender, receiver), ctx.both, *flat(g, hx, hw, hf, dx, dw, df, dg)
        )
        return dx, dw, df.sum(dim=0), dg, None, None, None


@compile_blocks
def _forward_blocks(start, end, c_all, x, w, f, sender, receiver, both, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    for e in range(len(sender)):
        for lo in range(start * BLOCK, end * BLOCK, BLOCK):
            n = np.uintp(min(BLOCK, c_all - lo))
            i, j, b = begin(receiver[e], c_all, lo), begin(sender[e], c_all, lo), begin(e, c_all, lo)
            for c in range(n):
                out[i + c] += f[e] * w[b + c] * x[j + c]
            if both:
                for c in range(n):
                    out[j + c] += f[e] * w[b + c] * x[i + c]


@compile_blocks
def _backward_blocks(  # type: ignore[no-untyped-def]  # pragma: no cover
    start, end, c_all, x, w, f, sender, receiver, both, g, dx, dw, df
):
    for e in range(len(sender)):
        for lo in range(start * BLOCK, end * BLOCK, BLOCK):
            n = np.uintp(min(BLOCK, c_all - lo))
            i, j, b = begin(receiver[e], c_all, lo), begin(sender[e], c_all, lo), begin(e, c_all, lo)
            total = x.dtype.type(0)
            for c in range(n):
                product = g[i + c] * x[j + c]
                dx[j + c] += f[e] * w[b + c] * g[i + c]
                dw[b + c] = f[e] * product
                total += w[b + c] * product
            if both:
                for c in range(n):
                    product = g[j + c] * x[i + c]
                    dx[i + c] += f[e] * w[b + c] * g[j + c]
                    dw[b + c] += f[e] * product
                    total += w[b + c] * product
            df[lo // BLOCK * len(sender) + e] = total


@compile_blocks
def _second_blocks(  # type: ignore[no-untyped-def]  # pragma: no cover
    start, end, c_all, x, w, f, sender, receiver, both, g, hx, hw, hf, dx, dw, df, dg
):
    # T = sum_e g_i (f hx_j W + f x_j hw + hf x_j W)
    for e in range(len(sender)):
        for lo in range(start * BLOCK, end * BLOCK, BLOCK):
            n = np.uintp(min(BLOCK, c_all - lo))
            i, j, b = begin(receiver[e], c_all, lo), begin(sender[e], c_all, lo), begin(e, c_all, lo)
            total = x.dtype.type(0)
            for c in range(n):
                t = f[e] * hw[b + c] + hf[e] * w[b + c]
                dx[j + c] += g[i + c] * t
                dg[i + c] += hx[j + c] * f[e] * w[b + c] + x[j + c] * t
                dw[b + c] = g[i + c] * (f[e] * hx[j + c] + hf[e] * x[j + c])
                total += g[i + c] * (hx[j + c] * w[b + c] + x[j + c] * hw[b + c])
            if both:
                for c in range(n):
                    t = f[e] * hw[b + c] + hf[e] * w[b + c]
                    dx[i + c] += g[j + c] * t
                    dg[j + c] += hx[i + c] * f[e] * w[b + c] + x[i + c] * t
                    dw[b + c] += g[j + c] * (f[e] * hx[i + c] + hf[e] * x[i + c])
                    total += g[j + c] * (hx[i + c] * w[b + c] + x[i + c] * hw[b + c])
            df[lo // BLOCK * len(sender) + e] = total


# Each task takes its share of the blocks, edge by edge; a single task runs in the calling thread.


@compile_shared
def _forward(c_all, tasks, x, w, f, sender, receiver, both, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    blocks = (c_all + BLOCK - 1) // BLOCK
    if tasks == 1:
        _forward_blocks(0, blocks, c_all, x, w, f, sender, receiver, both, out)
        return
    for k in prange(tasks):
        start, end = k * blocks // tasks, (k + 1) * blocks // tasks
        _forward_blocks(start, end, c_all, x, w, f, sender, receiver, both, out)


@compile_shared
def _backward(  # type: ignore[no-untyped-def]  # pragma: no cover
    c_all, tasks, x, w, f, sender, receiver, both, g, dx, dw, df
):
    blocks = (c_all + BLOCK - 1) // BLOCK
    if tasks == 1:
        _backward_blocks(0, blocks, c_all, x, w, f, sender, receiver, both, g, dx, dw, df)
        return
    for k in prange(tasks):
        start, end = k * blocks // tasks, (k + 1) * blocks // tasks
        _backward_blocks(start, end, c_all, x, w, f, sender, receiver, both, g, dx, dw, df)


@compile_shared
def _second_backward(  # type: ignore[no-untyped-def]  # pragma: no cover
    c_all, tasks, x, w, f, sender, receiver, both, g, hx, hw, hf, dx, dw, df, dg
):
    blocks = (c_all + BLOCK - 1) // BLOCK
    if tasks == 1:
        _second_blocks(0, blocks, c_all, x, w, f, sender, receiver, both, g, hx, hw, hf, dx, dw, df, dg)
        return
    for k in prange(tasks):
        start, end = k * blocks // tasks, (k + 1) * blocks // tasks
        _second_blocks(start, end, c_all, x, w, f, sender, receiver, both, g, hx, hw, hf, dx, dw, df, dg)
