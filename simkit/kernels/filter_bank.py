"""The filters of all layers of SchNet together with their slopes, for forces and for training on forces.

A filter is a function of one distance, so that its derivative costs as much as the filter itself when it is carried forward beside it:

    z  = W1 phi(r) + b1,    h  = ssp(z),     w  = W2 h + b2
    z' = W1 phi'(r),        h' = s(z) z',    w' = W2 h'

The backward pass of forces then has no filter network in it, and the loss on forces reaches the weights through w and w' in a single
pass, with values and slopes side by side as the rows of a few large matrix products.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from simkit.kernels.activations import shifted_softplus
from simkit.kernels.blocks import compile_blocks, compile_shared, flat
from simkit.kernels.threads import task_count

EDGES = 32  # that one thread takes at least


def filter_bank_reference(phi: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor, ...]:
    """Return filters [E, F], the values of all L layers and then the slopes of all, in plain PyTorch on any device.

    Args:
        phi: [2 E, K], the basis of the distances, and below it the derivative of the basis.
        w1: [K, L F]. b1: [L F]. w2: [L, F, F], the output first. b2: [L, F].
    """
    shape = (-1, *b2.shape)
    basis, basis_slope = phi.chunk(2)
    z = basis @ w1 + b1
    h = torch.nn.functional.softplus(z) - math.log(2.0)
    dh = torch.sigmoid(z) * (basis_slope @ w1)
    values = torch.einsum("elf,lgf->leg", h.view(shape), w2) + b2.unsqueeze(1)
    return (*values.unbind(), *torch.einsum("elf,lgf->leg", dh.view(shape), w2).unbind())


def filter_bank(phi: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor, ...]:
    """Return the same as `filter_bank_reference`; on a CPU, and differentiable once with respect to the weights.

    The basis is taken as a constant: whoever uses the filters hands their derivatives on to the distances by means of the slopes.
    """
    filters: tuple[Tensor, ...] = _Bank.apply(phi, w1, b1, w2, b2)
    return filters


def evaluate_filters(
    phi: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Return the filters [L, 2, E, F] and what their derivatives are made of: z', s and (h | h'), without a record.

    Args:
        phi, w1, b1, w2, b2: as in `filter_bank_reference`.
    """
    edges, (layers, width) = len(phi) // 2, b2.shape
    z = phi @ w1
    z[:edges] += b1
    hidden = torch.empty_like(z)
    s = shifted_softplus(z[:edges], hidden[:edges])
    torch.mul(s, z[edges:], out=hidden[edges:])
    rows = hidden.view(2 * edges, layers, width).transpose(0, 1)
    out = torch.bmm(rows, w2.transpose(1, 2)).view(layers, 2, edges, width)
    out[:, 0] += b2.unsqueeze(1)
    return out, (z[edges:], s, hidden)


class _Bank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, phi: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor, ...]:
        out, kept = evaluate_filters(phi, w1, b1, w2, b2)
        ctx.save_for_backward(phi, w2, *kept)
        return (*out[:, 0].unbind(), *out[:, 1].unbind())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        phi, w2, slopes, s, hidden = ctx.saved_tensors
        layers, width, _ = w2.shape
        edges = len(s)
        g = torch.stack([gradients[k % 2 * layers + k // 2] for k in range(2 * layers)])
        db2 = g[::2].sum(dim=1)
        g = g.view(layers, 2 * edges, width)
        dw2 = torch.bmm(g.transpose(1, 2), hidden.view(2 * edges, layers, width).transpose(0, 1))
        dz = torch.empty_like(hidden)
        tasks = task_count(max(1, edges // EDGES))
        _activation_backward(tasks, edges, layers, width, *flat(torch.bmm(g, w2), slopes, s, dz))
        return None, phi.t() @ dz, dz[:edges].sum(dim=0), dw2, db2


@compile_blocks
def _activation_edges(start, end, edges, layers, width, g, slopes, s, dz):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as below
    # The derivatives of <g, ssp(z)> + <g', s(z) z'>; rows of g are sorted by layer, those of the others by edge.
    one, shift = s.dtype.type(1), np.uintp(edges * layers * width)
    for e in range(start, end):
        for layer in range(layers):
            i = np.uintp((e * layers + layer) * width)
            j = np.uintp((2 * layer * edges + e) * width)
            k = np.uintp(((2 * layer + 1) * edges + e) * width)
            for c in range(np.uintp(width)):
                a = s[i + c] * g[k + c]
                dz[i + c] = s[i + c] * g[j + c] + a * (one - s[i + c]) * slopes[i + c]
                dz[shift + i + c] = a


@compile_shared
def _activation_backward(tasks, edges, layers, width, g, slopes, s, dz):  # type: ignore[no-untyped-def]  # pragma: no cover
    if tasks == 1:
        _activation_edges(0, edges, edges, layers, width, g, slopes, s, dz)
        return
    for k in prange(tasks):
        start, end = k * edges // tasks, (k + 1) * edges // tasks
        _activation_edges(start, end, edges, layers, width, g, slopes, s, dz)
