"""Spherical Bessel functions, Legendre polynomials and the envelope of DimeNet, all differentiable and stable in float32.

Gasteiger, Gross & Guennemann, "Directional message passing for molecular graphs", ICLR 2020 (arXiv 2003.03123), section 4.
"""

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import spherical_jn
from torch import Tensor, nn


class PolynomialEnvelope(nn.Module):
    """u(x) / x with u = 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2) (eq. 8), x = r / rc and p = exponent + 1.

    u is (1 - x)^3 times the first p terms of the series of (1 - x)^-3. In this form no digits cancel near the cutoff, where u vanishes
    with its first and second derivative.
    """

    def __init__(self, exponent: int) -> None:
        super().__init__()
        self.coefficients = [math.comb(k + 2, 2) for k in range(exponent + 1)]

    def forward(self, x: Tensor) -> Tensor:
        """Map distances in units of the cutoff to weights of the same shape."""
        series = torch.full_like(x, float(self.coefficients[-1]))
        for coefficient in reversed(self.coefficients[:-1]):
            series = series * x + coefficient
        return (1.0 - x).clamp(min=0.0) ** 3 * series / x


class SphericalBesselBasis(nn.Module):
    """N_ln j_l(z_ln x) for l = 0..orders-1 and n = 1..roots: [E] -> [E, orders * roots], l-major (the radial part of eq. 6).

    z_ln is the n-th positive root of j_l. N_ln makes the integral of the square times x^2 from 0 to 1 equal to one.

    The formulas in sines, cosines and powers of 1/x lose all digits at small arguments, and so does upward recurrence. But j_l(z x)
    is a superposition of waves cos(k x), or sin(k x) for odd l, with k up to z alone: it is the Fourier transform of a Legendre polynomial
    on [-1, 1]. So all functions are one matrix times the cosines and sines of k pi x / 2, fitted by least squares where the basis is
    built. In float64 the error is below 1e-13 of the largest value, and below 1e-12 of the largest derivative; the coefficients
    are of the size of the functions, so that float32 loses no digits either.
    """

    waves: Tensor  # whole numbers, which a change of dtype leaves exact
    coefficients: Tensor

    def __init__(self, orders: int, roots: int) -> None:
        super().__init__()
        coefficients = _wave_coefficients(orders, roots)
        self.register_buffer("waves", torch.arange(0.0, len(coefficients) // 2), persistent=False)
        self.register_buffer("coefficients", torch.from_numpy(coefficients), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Expand distances in units of the cutoff, 0 < x <= 1; beyond 1 the values mean nothing but stay finite."""
        phase = (0.5 * math.pi * x).unsqueeze(-1) * self.waves
        return torch.cat([torch.cos(phase), torch.sin(phase)], dim=-1) @ self.coefficients


def spherical_bessel_roots(orders: int, roots: int) -> NDArray[np.float64]:
    """Return the first positive roots of j_0 .. j_(orders-1), [orders, roots]; those of j_l lie between those of j_(l-1)."""
    count = roots + orders - 1
    found = np.arange(1, count + 1) * np.pi
    table = [found[:roots]]
    for order in range(1, orders):
        pairs = zip(found[:-1], found[1:], strict=True)
        found = np.array([brentq(functools.partial(spherical_jn, order), a, b, xtol=1e-14) for a, b in pairs])
        table.append(found[:roots])
    return np.stack(table)


@functools.cache
def _wave_coefficients(orders: int, roots: int) -> NDArray[np.float64]:
    """Return the coefficients of cos(k pi x / 2) and sin(k pi x / 2), k = 0, 1, ..: [2 * waves, orders * roots]."""
    z = spherical_bessel_roots(orders, roots)
    waves = math.ceil(2 * z.max() / math.pi) + 18  # those beyond the band limit bring the error down to rounding
    points = 8 * waves
    x = np.cos(
        0.5 * math.pi * (np.arange(points) + 0.5) / points
    )  # denser towards 1, where a fit would be loose otherwise
    phase = 0.5 * math.pi * np.outer(x, np.arange(waves))
    table = np.zeros((2, waves, orders, roots))
    for order in range(orders):
        norm = np.sqrt(2.0) / np.abs(spherical_jn(order + 1, z[order]))
        values = norm * spherical_jn(order, np.outer(x, z[order]))
        odd = order % 2
        design = np.sin(phase) if odd else np.cos(phase)
        table[odd, :, order] = np.linalg.lstsq(design, values, rcond=1e-15)[0]
    return table.reshape(2 * waves, orders * roots)


def legendre(x: Tensor, orders: int, first: Tensor | None = None) -> Tensor:
    """Return sqrt((2l + 1) / 4 pi) P_l(x) for l = 0..orders-1, [..., orders]: the spherical harmonics Y_l0 with x = cos(theta).

    Polynomials in the cosine have derivatives everywhere; the angle itself has none where three atoms lie on a line.

    Args:
        x: cosines, of any shape.
        first: what every value is multiplied by, of the shape of ``x``.
    """
    values = [torch.ones_like(x) if first is None else first]
    if orders > 1:
        values.append(x * values[0])
    for n in range(1, orders - 1):
        values.append(((2 * n + 1) / (n + 1)) * (x * values[n]) - (n / (n + 1)) * values[n - 1])
    norms = [math.sqrt((2 * n + 1) / (4 * math.pi)) for n in range(orders)]
    return torch.stack(values, dim=-1) * x.new_tensor(norms)
