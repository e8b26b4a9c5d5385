"""Functions of distance as tables: cubic Hermite interpolation with as many knots as a bound on the error asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from simkit.errors import ConfigError

Function = Callable[[Tensor], Tensor]
"""float64 distances [K] to values [K, F]."""

FEWEST, MOST = 64, 8192
"""Intervals of a table."""
SLOPE_ERROR = {torch.float32: 1e-5, torch.float64: 1e-7}
"""Largest error of a derivative, relative to the largest derivative of the function. That of values is far smaller."""
STEP = 1e-4
"""Angstrom, of the central differences that give derivatives: their error is below 1e-9 for what varies over 0.1 angstrom."""
TESTED = (0.211, 0.5, 0.789)
"""Places within an interval: at the outer ones the second derivative of a cubic is exact, and that of the error of its slope largest."""


class HermiteTables:
    """Functions of distance with many values each, tabulated at equal steps from zero to a cutoff, where they vanish with their slopes.

    Forces are the derivatives of the interpolated functions, so that the energy is conserved whatever the error of the tables.

    Args:
        functions: defined for distances a little beyond both ends.
        cutoff: angstrom. dtype, device: of the tables.

    Attributes:
        intervals: number of them, the same for all. values: for each function [intervals + 1, 2, F], values and derivatives times the step.
        error: the largest error of a derivative relative to the largest derivative of the same function.

    Raises:
        ConfigError: if a function is too rough for the largest table.
    """

    def __init__(
        self, functions: Sequence[Function], cutoff: float, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.intervals, bound = FEWEST, SLOPE_ERROR[dtype]
        while True:
            found = [_tabulated(function, cutoff, self.intervals) for function in functions]
            self.error = max(error for _, error in found)
            if self.error <= bound:
                break
            # Errors fall with the third power of the step.
            self.intervals *= 2 ** max(1, math.ceil(math.log2(self.error / bound) / 3))
            if self.intervals > MOST:
                raise ConfigError(
                    f"the filters of this model vary too fast for tables of {MOST} intervals: the error of their derivatives is "
                    f"{self.error:.1e} of the largest, {bound:.0e} is allowed; use the reference path (fast=False)"
                )
        self.values = [table.to(device, dtype).contiguous() for table, _ in found]


def hermite_slopes(t: float) -> Tensor:
    """Derivatives with respect to t of the basis (value and slope at 0, value and slope at 1), [4] float64."""
    return torch.tensor(
        [6 * t * (t - 1), (3 * t - 1) * (t - 1), -6 * t * (t - 1), t * (3 * t - 2)], dtype=torch.float64
    )


def _tabulated(function: Function, cutoff: float, intervals: int) -> tuple[Tensor, float]:
    """A table, and the relative error of its slopes between the knots."""
    step = cutoff / intervals
    knots = torch.arange(intervals + 1, dtype=torch.float64) * step
    table = torch.stack([function(_nonzero(knots)), _slope(function, knots) * step], 1)
    table[-1] = 0.0
    ends = torch.cat([table[:-1], table[1:]], 1)
    largest, error = 0.0, 0.0
    for t in TESTED:
        exact = _slope(function, knots[:-1] + t * step)
        interpolated = torch.einsum("w,kwf->kf", hermite_slopes(t), ends) / step
        largest = max(largest, float(exact.abs().max()))
        error = max(error, float((interpolated - exact).abs().max()))
    return table, error / max(largest, torch.finfo(torch.float64).tiny)


def _nonzero(r: Tensor) -> Tensor:
    """Distances with those at zero moved by too little to be seen: bases divide by them."""
    return torch.where(r.abs() < 1e-12, 1e-12, r)


def _slope(function: Function, r: Tensor) -> Tensor:
    """The derivative by central differences of fourth order."""
    at = [function(_nonzero(r + k * STEP)) for k in (-2, -1, 1, 2)]
    return (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * STEP)
