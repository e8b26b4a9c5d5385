"""The activation function of SchNet and PhysNet, whose value and derivatives take as few passes as they can.

PyTorch makes an exponential in the value and in each derivative; here all three follow from one logistic function s(x), which PyTorch
computes faster than its softplus. With q = s(|x|), which is between 1/2 and 1,

    ln(0.5 exp(x) + 0.5) = max(x, 0) - ln(2q),    ln(2q) = 2 artanh(t),    t = (2q - 1) / (2q + 1) < 1/3,

and the series of artanh converges fast enough to be cheaper than a logarithm.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor, nn

from simkit.kernels.blocks import compile_blocks, compile_shared, flat
from simkit.kernels.threads import task_count
from simkit.kernels.tracing import arrangement

TERMS = 17  # of the series: the next is 3^-34 / 35 of the first, below the rounding of float64
ELEMENTS = 32768  # that one thread takes at least


class ShiftedSoftplus(nn.Module):
    """ln(0.5 exp(x) + 0.5); its derivatives are s and s (1 - s). Differentiable twice."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply elementwise."""
        plain = x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64)
        if plain or arrangement() is not None:
            return nn.functional.softplus(x) - math.log(2.0)
        y: Tensor = _ShiftedSoftplus.apply(x)
        return y


def shifted_softplus(x: Tensor, out: Tensor) -> Tensor:
    """Write the activation of x into ``out``, both contiguous and on a CPU, and return its derivative s; without a record."""
    s = torch.sigmoid(x)
    _value(_tasks(s), *flat(x, s, out))
    return s


def shifted_softplus_second(h: Tensor, g: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Return the derivatives of <h, g s(x)> with respect to g and x, all contiguous and on a CPU; without a record."""
    dg, dx = s.new_empty(s.shape), s.new_empty(s.shape)
    _second(_tasks(s), *flat(h, g, s, dg, dx))
    return dg, dx


class _ShiftedSoftplus(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.new_empty(x.shape)
        s = shifted_softplus(x.contiguous(), y)
        ctx.save_for_backward(x, s)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        dx: Tensor = _ShiftedSoftplusBackward.apply(g, *ctx.saved_tensors)
        return dx


class _ShiftedSoftplusBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, s: Tensor) -> Tensor:
        ctx.save_for_backward(g, s)
        return g * s

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor, Tensor, None]:
        g, s = ctx.saved_tensors
        return *shifted_softplus_second(h, g, s), None


def _tasks(x: Tensor) -> int:
    return task_count(max(1, x.numel() // ELEMENTS))


@compile_blocks
def _value_range(start, end, x, s, y):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    one, two, zero = s.dtype.type(1), s.dtype.type(2), s.dtype.type(0)
    for k in range(np.uintp(start), np.uintp(end)):
        q = max(s[k], one - s[k])
        t = (two * q - one) / (two * q + one)
        square, total = t * t, zero
        for n in range(TERMS, 0, -1):
            total = total * square + s.dtype.type(2 / (2 * n - 1))
        y[k] = max(x[k], zero) - t * total


@compile_blocks
def _second_range(start, end, h, g, s, dg, dx):  # type: ignore[no-untyped-def]  # pragma: no cover
    # T = <h, g s>, and the derivative of s is s (1 - s)
    one = s.dtype.type(1)
    for k in range(np.uintp(start), np.uintp(end)):
        dg[k] = h[k] * s[k]
        dx[k] = h[k] * g[k] * s[k] * (one - s[k])


# Each task takes its share of the elements; a single task runs in the calling thread.


@compile_shared
def _value(tasks, x, s, y):  # type: ignore[no-untyped-def]  # pragma: no cover
    if tasks == 1:
        _value_range(0, len(s), x, s, y)
        return
    for k in prange(tasks):
        _value_range(k * len(s) // tasks, (k + 1) * len(s) // tasks, x, s, y)


@compile_shared
def _second(tasks, h, g, s, dg, dx):  # type: ignore[no-untyped-def]  # pragma: no cover
    if tasks == 1:
        _second_range(0, len(s), h, g, s, dg, dx)
        return
    for k in prange(tasks):
        _second_range(k * len(s) // tasks, (k + 1) * len(s) // tasks, h, g, s, dg, dx)
