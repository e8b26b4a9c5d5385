"""Perceptrons with one hidden layer and their backward passes, into memory that is kept."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from numba import prange
from torch import Tensor, nn

from simkit.fast.workspace import REALS, Workspace
from simkit.kernels.activations import ELEMENTS, ShiftedSoftplus, shifted_softplus
from simkit.kernels.blocks import compile_blocks, compile_shared
from simkit.kernels.threads import task_count


class Perceptron:
    """W2 a(W1 x + b1) + b2, and the derivative with respect to x of what is linear in it.

    Args:
        net: of two linear layers with biases around `nn.SiLU` or `ShiftedSoftplus`.
        name: of its memory in the workspace.
    """

    def __init__(self, net: nn.Sequential, workspace: Workspace, name: str) -> None:
        first, second = cast(nn.Linear, net[0]), cast(nn.Linear, net[2])
        self.w1, self.b1, self.w2, self.b2 = (
            t.detach().clone() for t in (first.weight, first.bias, second.weight, second.bias)
        )
        self.w1_t, self.w2_t = self.w1.t().contiguous(), self.w2.t().contiguous()
        self.width, self.silu = first.out_features, isinstance(net[1], nn.SiLU)
        self.workspace, self.name, self.real = workspace, name, REALS[self.w1.dtype]
        self.slope = self.b1

    @staticmethod
    def takes(net: nn.Module) -> bool:
        """Whether this is a network of that kind."""
        return (
            isinstance(net, nn.Sequential)
            and len(net) == 3
            and isinstance(net[0], nn.Linear)
            and isinstance(net[1], nn.SiLU | ShiftedSoftplus)
            and isinstance(net[2], nn.Linear)
            and net[0].bias is not None
            and net[2].bias is not None
        )

    def forward(self, x: Tensor, out: Tensor, *, add: bool = False) -> None:
        """Write, or add, the outputs [N, F] of x [N, C]."""
        shape = (x.shape[0], self.width)
        value, hidden = self.workspace.get(self.name, shape, self.real), self.workspace.get("hidden", shape, self.real)
        torch.addmm(self.b1, x, self.w1_t, out=hidden.tensor)
        if self.workspace.on_gpu:
            self.slope = _activate(self.silu, hidden.tensor, value.tensor)
            hidden = value
        elif self.silu:
            torch.sigmoid(hidden.tensor, out=value.tensor)
            _silu(task_count(max(1, hidden.flat.size // ELEMENTS)), hidden.flat, value.flat)
            self.slope = value.tensor
        else:
            # Its slope comes as a new array, in which the activation would be no smaller.
            self.slope = shifted_softplus(hidden.tensor, value.tensor)
            hidden = value
        if add:
            torch.addmm(out, hidden.tensor, self.w2_t, out=out).add_(self.b2)
        else:
            torch.addmm(self.b2, hidden.tensor, self.w2_t, out=out)

    def backward(self, g: Tensor, out: Tensor, *, add: bool = False) -> None:
        """Write, or add, the derivative with respect to x, given that with respect to the outputs, [N, F]."""
        hidden = self.workspace.get("hidden", (g.shape[0], self.width), self.real).tensor
        torch.mm(g, self.w2, out=hidden)
        hidden.mul_(self.slope)
        if add:
            torch.addmm(out, hidden, self.w1, out=out)
        else:
            torch.mm(hidden, self.w1, out=out)


def _activate(silu: bool, x: Tensor, out: Tensor) -> Tensor:
    """Write the activation of x on any device, and return its derivative."""
    s = torch.sigmoid(x)
    if silu:
        torch.mul(x, s, out=out)
        return torch.addcmul(s, out, 1 - s)
    torch.sub(nn.functional.softplus(x, threshold=40.0), math.log(2.0), out=out)
    return s


@compile_blocks
def _silu_range(start, end, x, s):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """x s(x) in the place of x, its derivative s (1 + x (1 - s)) in that of the logistic function s."""
    one = s.dtype.type(1)
    for k in range(np.uintp(start), np.uintp(end)):
        value, logistic = x[k], s[k]
        x[k] = value * logistic
        s[k] = logistic * (one + value * (one - logistic))


@compile_shared
def _silu(tasks, x, s):  # type: ignore[no-untyped-def]  # pragma: no cover
    if tasks == 1:
        _silu_range(0, len(s), x, s)
        return
    for k in prange(tasks):
        _silu_range(k * len(s) // tasks, (k + 1) * len(s) // tasks, x, s)
