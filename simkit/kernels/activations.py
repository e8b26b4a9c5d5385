"""The activation function of SchNet and PhysNet, whose first and second derivatives take as few passes as they can.

PyTorch makes the logistic function s(x), which both derivatives consist of, anew in each of them; here the forward pass makes it once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

_times_slope = torch.ops.aten.sigmoid_backward  # (g, s) -> g s (1 - s)


class ShiftedSoftplus(nn.Module):
    """ln(0.5 exp(x) + 0.5); its derivatives are s and s (1 - s). Differentiable twice."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply elementwise."""
        if x.device.type != "cpu":
            return nn.functional.softplus(x) - math.log(2.0)
        y: Tensor = _ShiftedSoftplus.apply(x)
        return y


class _ShiftedSoftplus(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x, torch.sigmoid(x))
        return nn.functional.softplus(x).sub_(math.log(2.0))

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
        return h * s, _times_slope(h * g, s), None
