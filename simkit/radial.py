"""Radial bases and cutoff functions that the architectures share. Distances are in angstrom."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

CutoffName = Literal["cosine", "polynomial"]


class CosineCutoff(nn.Module):
    """f(r) = (cos(pi r / rc) + 1) / 2 inside the cutoff (Behler, J. Chem. Phys. 134, 074106 (2011)); f'' jumps at rc."""

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff

    def forward(self, r: Tensor) -> Tensor:
        """Map distances to weights of the same shape."""
        return 0.5 * (torch.cos(r * (math.pi / self.cutoff)) + 1.0) * (r < self.cutoff).to(r.dtype)

    def slope(self, r: Tensor) -> Tensor:
        """Return the derivative f'(r)."""
        k = math.pi / self.cutoff
        return -0.5 * k * torch.sin(r * k) * (r < self.cutoff).to(r.dtype)


class PolynomialCutoff(nn.Module):
    """f(x) = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2) with x = r / rc (Gasteiger et al., ICLR 2020, eq. 8).

    Value, first and second derivative vanish at the cutoff. With ``power`` 3 it is 1 - 10 x^3 + 15 x^4 - 6 x^5 (Unke & Meuwly,
    J. Chem. Theory Comput. 15, 3678 (2019), eq. 8), within 0.044 of the cosine cutoff; a larger one stays near 1 for longer.
    """

    def __init__(self, cutoff: float, power: int = 3) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.power = power

    def forward(self, r: Tensor) -> Tensor:
        """Map distances to weights of the same shape."""
        x, p = (r / self.cutoff).clamp(max=1.0), self.power
        return 1.0 + x**p * (x * (p * (p + 2.0) - 0.5 * p * (p + 1.0) * x) - 0.5 * (p + 1.0) * (p + 2.0))

    def slope(self, r: Tensor) -> Tensor:
        """Return the derivative f'(r) = -p (p+1) (p+2) / (2 rc) x^(p-1) (1 - x)^2."""
        x, p = (r / self.cutoff).clamp(max=1.0), self.power
        return x ** (p - 1) * (1.0 - x).square() * (-0.5 * p * (p + 1.0) * (p + 2.0) / self.cutoff)


def make_cutoff(name: CutoffName, cutoff: float) -> CosineCutoff | PolynomialCutoff:
    """Return the cutoff function called ``name``."""
    return CosineCutoff(cutoff) if name == "cosine" else PolynomialCutoff(cutoff)


class SineBasis(nn.Module):
    """sin(n pi r / rc) / r for n = 1..count (PaiNN, Schuett et al. 2021, eq. 11); [E] -> [E, count].

    Args:
        trainable: let training change the frequencies n.
    """

    orders: Tensor  # whole numbers, which a change of dtype leaves exact

    def __init__(self, count: int, cutoff: float, *, trainable: bool = False) -> None:
        super().__init__()
        self.cutoff = cutoff
        orders = torch.arange(1.0, count + 1.0)
        if trainable:
            self.orders = nn.Parameter(orders)
        else:
            self.register_buffer("orders", orders, persistent=False)

    def forward(self, r: Tensor) -> Tensor:
        """Expand distances."""
        r = r.unsqueeze(-1)
        return torch.sin(r * (math.pi / self.cutoff) * self.orders) / r

    def with_slopes(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """Return the basis and its derivative with respect to r, [E, count] each."""
        r, k = r.unsqueeze(-1), self.orders * (math.pi / self.cutoff)
        values = torch.sin(r * (math.pi / self.cutoff) * self.orders) / r
        return values, (k * torch.cos(r * k) - values) / r


class GaussianBasis(nn.Module):
    """exp(-(r - mu_k)^2 / (2 d^2)) on ``count`` evenly spaced centres a distance d apart (SchNet, 2017, eq. 3)."""

    orders: Tensor  # whole numbers, which a change of dtype leaves exact

    def __init__(self, count: int, cutoff: float) -> None:
        super().__init__()
        self.spacing = cutoff / (count - 1)
        # The squares of Gaussians one width apart add up to sqrt(pi): times this, their average is one.
        self.unit_scale = math.sqrt(count / math.sqrt(math.pi))
        self.register_buffer("orders", torch.arange(0.0, count), persistent=False)

    def forward(self, r: Tensor) -> Tensor:
        """Expand distances."""
        return torch.exp(-0.5 * (r.unsqueeze(-1) / self.spacing - self.orders) ** 2)

    def with_slopes(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """Return the basis and its derivative with respect to r, [E, count] each."""
        offset = r.unsqueeze(-1) / self.spacing - self.orders
        values = torch.exp(-0.5 * offset.square())
        return values, offset * values * (-1.0 / self.spacing)
