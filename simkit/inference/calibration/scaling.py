"""Outputs of any unit, size and tail on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simkit.inference.priors import Array
from simkit.inference.simulator import Observable

QUARTILES = 1.349
"""Distance of the quartiles of a normal distribution in standard deviations."""
SMALLEST_SHARE = 1e-3
"""Differences below this share of an observable's own spread count for little: of a constant value, or by rounding in a file."""

LARGEST = 1e100
"""Further out makes no difference, so that simulations that nearly overflow are compared all the same."""


@dataclass(frozen=True)
class RobustScale:
    """Brings outputs to their distance from the median in units of the spread, with tails drawn in by asinh.

    Attributes:
        centre: median of each value, [K].
        spread: standard deviation that belongs to the quartiles, [K]; larger than zero also for constant values.
    """

    centre: Array
    spread: Array

    @classmethod
    def of(cls, x: Array, observables: Sequence[Observable]) -> RobustScale:
        """Return the scale of outputs [N, K]."""
        first, centre, third = np.quantile(x, [0.25, 0.5, 0.75], axis=0)
        floor = np.empty_like(centre)
        ends = np.cumsum([0] + [o.size for o in observables])
        for start, stop in zip(ends[:-1], ends[1:], strict=True):
            low, high = np.quantile(x[:, start:stop], [0.05, 0.95])
            floor[start:stop] = SMALLEST_SHARE * ((high - low) or abs(high) or 1.0)
        return cls(centre, np.maximum((third - first) / QUARTILES, floor))

    def apply(self, x: Array) -> Array:
        """Return outputs [..., K] on this scale."""
        with np.errstate(over="ignore"):
            result: Array = np.arcsinh(np.clip((x - self.centre) / self.spread, -LARGEST, LARGEST))
        return result
