"""Initial weights that several architectures share."""

import torch
from torch import Tensor, nn


def glorot_orthogonal_(weight: Tensor) -> Tensor:
    """Fill a matrix [out, in] with a random semi-orthogonal one whose entries have the mean square 2 / (in + out); return it.

    Used by PhysNet (Unke & Meuwly, 2019) and DimeNet (Gasteiger et al., 2020).
    """
    with torch.no_grad():
        nn.init.orthogonal_(weight)
        mean_square = weight.square().mean()
        return weight.mul_(torch.sqrt(2.0 / (sum(weight.shape) * mean_square)))


def glorot_linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """Return a linear layer with `glorot_orthogonal_` weights and a bias of zero."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    glorot_orthogonal_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def softplus_inverse(value: Tensor) -> Tensor:
    """Return x with softplus(x) = value, for what must stay positive while it is trained."""
    return value + torch.log(-torch.expm1(-value))
