"""A perceptron of two layers with all that training on forces asks of it, as plain values in four passes.

    y = W2 f(z) + b2,    z = W1 x + b1,    f: silu, or ln(0.5 exp(z) + 0.5)

In the order in which they are made: `forward` (values), `backward` (gradients g of a scalar S), `tangent` (the derivative of the forward
pass along a change of its inputs, marked h; at the end of a network it is the derivative of <h, gradient of S> with respect to the
gradients that came in) and `adjoint` (the derivatives a of a loss that holds both S and its gradients). Each matrix product is made once
in each pass, and the gradients of weights come from adjoints and inputs, and from gradients and tangents.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from simkit.kernels.activations import shifted_softplus, shifted_softplus_second
from simkit.kernels.blocks import compile_blocks, flat


def layer_weights(net: nn.Sequential) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return W1, b1, W2 and b2 of two linear layers with an activation between them."""
    first, second = cast(nn.Linear, net[0]), cast(nn.Linear, net[2])
    return first.weight, first.bias, second.weight, second.bias


class Perceptron:
    """One evaluation of the perceptron.

    Args:
        weights: W1 [H, I], b1 [H], W2 [O, H], b2 [O].
        softplus: the activation is the shifted softplus, not silu.
    """

    def __init__(self, weights: tuple[Tensor, Tensor, Tensor, Tensor], *, softplus: bool = False) -> None:
        self.w1, self.b1, self.w2, self.b2 = weights
        self.softplus = softplus
        self.tangents: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return y [N, O] for x [N, I]."""
        self.x = x
        self.z = torch.addmm(self.b1, x, self.w1.t())
        self.hidden = torch.empty_like(self.z)
        if self.softplus:
            self.slope = shifted_softplus(self.z, self.hidden)
        else:
            self.s, self.slope = torch.sigmoid(self.z), torch.empty_like(self.z)
            _activate(*flat(self.z, self.s, self.hidden, self.slope))
        return torch.addmm(self.b2, self.hidden, self.w2.t())

    def backward(self, g: Tensor) -> Tensor:
        """Return the gradient of x, [N, I], from that of y, [N, O]."""
        self.g, self.g_hidden = g, g @ self.w2
        self.g_z = self.g_hidden * self.slope
        return self.g_z @ self.w1

    def tangent(self, hx: Tensor) -> Tensor:
        """Return the change of y along that of x, after `backward`."""
        hz = hx @ self.w1.t()
        if self.softplus:
            h_hidden, source = shifted_softplus_second(hz, self.g_hidden, self.slope)
        else:
            h_hidden, source = torch.empty_like(hz), torch.empty_like(hz)
            _bend(*flat(self.z, self.s, self.slope, hz, self.g_hidden, h_hidden, source))
        self.tangents = hx, h_hidden, source
        return h_hidden @ self.w2.t()

    def adjoint(self, ay: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Return the derivatives of the loss with respect to x, and to the four weights; without `tangent` before, that of S alone."""
        az = (ay @ self.w2).mul_(self.slope)
        dw2 = ay.t() @ self.hidden
        if self.tangents is None:
            dw1 = az.t() @ self.x
        else:
            hx, h_hidden, source = self.tangents
            az += source
            dw1 = (az.t() @ self.x).addmm_(self.g_z.t(), hx)
            dw2.addmm_(self.g.t(), h_hidden)
            self.tangents = None
        return az @ self.w1, (dw1, az.sum(dim=0), dw2, ay.sum(dim=0))


@compile_blocks
def _activate(z: Any, s: Any, y: Any, slope: Any) -> None:  # pragma: no cover - compiled, as below
    """silu(z) and its derivative from z and s, the logistic function of it."""
    one = z.dtype.type(1)
    for k in range(np.uintp(len(z))):
        y[k] = z[k] * s[k]
        slope[k] = s[k] * (one + z[k] * (one - s[k]))


@compile_blocks
def _bend(z: Any, s: Any, slope: Any, hz: Any, g: Any, h: Any, source: Any) -> None:  # pragma: no cover
    """The change of silu(z), and of its gradient g silu'(z) with respect to z."""
    one, two = z.dtype.type(1), z.dtype.type(2)
    for k in range(np.uintp(len(z))):
        h[k] = slope[k] * hz[k]
        source[k] = s[k] * (one - s[k]) * (two + z[k] * (one - two * s[k])) * hz[k] * g[k]
