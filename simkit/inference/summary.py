"""A posterior as a table: mean, median, standard deviation and credible intervals, with units and no more digits than are known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from simkit.errors import DataError
from simkit.inference.priors import Array, Prior

QUANTILES = {"median": 0.5, "low_68": 0.16, "high_68": 0.84, "low_95": 0.025, "high_95": 0.975}
LAST_DIGIT = 5.0
"""The standard error is so many units of the last digit that is shown, or less."""


@dataclass(frozen=True)
class Estimate:
    """A number computed from samples.

    Attributes:
        value: the number.
        error: its standard error, since there are only so many samples.
    """

    value: float
    error: float

    def __str__(self) -> str:
        """Return the digits that are known."""
        if not (math.isfinite(self.value) and self.error > 0):
            return f"{self.value:.6g}"
        decimals = -math.ceil(math.log10(self.error / LAST_DIGIT))
        size = math.floor(math.log10(abs(self.value))) if self.value else -decimals
        if -4 <= size < 6 and decimals <= 8:
            return f"{round(self.value, decimals):.{max(decimals, 0)}f}"
        return f"{self.value:.{max(size + decimals, 0)}e}"


@dataclass(frozen=True)
class ParameterSummary:
    """One parameter of a posterior.

    Attributes:
        name, unit: of the parameter.
        mean, median, sd: of its samples; low_68, high_68, low_95, high_95: ends of the central credible intervals.
    """

    name: str
    unit: str
    mean: Estimate
    sd: Estimate
    median: Estimate
    low_68: Estimate
    high_68: Estimate
    low_95: Estimate
    high_95: Estimate


@dataclass(frozen=True)
class Summary:
    """A posterior as a table.

    Attributes:
        count: samples; distinct: those that differ, which the errors are computed with.
        parameters: one entry each.
    """

    count: int
    distinct: int
    parameters: tuple[ParameterSummary, ...]

    HEADER: ClassVar[tuple[str, ...]] = ("parameter", "mean", "sd", "median", "68 % interval", "95 % interval", "unit")

    def rows(self) -> list[list[str]]:
        """Return the table's rows of text, to go with `HEADER`."""
        return [
            [
                p.name,
                str(p.mean),
                str(p.sd),
                str(p.median),
                f"{p.low_68} to {p.high_68}",
                f"{p.low_95} to {p.high_95}",
                p.unit,
            ]
            for p in self.parameters
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain types: name of a parameter -> unit, and all numbers with their Monte Carlo errors."""
        names = ("mean", "sd", *QUANTILES)
        return {
            p.name: {"unit": p.unit}
            | {n: getattr(p, n).value for n in names}
            | {"monte_carlo_errors": {n: getattr(p, n).error for n in names}}
            for p in self.parameters
        }


def summarise(samples: ArrayLike, prior: Prior) -> Summary:
    """Summarise samples of a posterior, [N, D], of a prior's parameters.

    Raises:
        DataError: if there are less than two samples, of another number of parameters, or values that are not finite.
    """
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != prior.dim or len(values) < 2 or not np.isfinite(values).all():
        raise DataError(
            f"expected two or more finite samples [N, {prior.dim}] of {', '.join(prior.names)}; found an array of shape {values.shape}"
        )
    # Samples that were drawn with replacement, as from weighted populations, tell no more than the distinct ones.
    distinct = len(np.unique(values, axis=0))
    parts = [
        ParameterSummary(name, unit, **_numbers(column, distinct))
        for name, unit, column in zip(prior.names, prior.units, values.T, strict=True)
    ]
    return Summary(len(values), distinct, tuple(parts))


def _numbers(values: Array, distinct: int) -> dict[str, Estimate]:
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    fourth = float(((values - mean) ** 4).mean())
    # Kendall & Stuart, The Advanced Theory of Statistics, volume 1, chapter 10: the standard error of a standard deviation.
    sd_error = math.sqrt(max(fourth - sd**4, 0.0) / distinct) / (2 * sd) if sd else 0.0
    result = {"mean": Estimate(mean, sd / math.sqrt(distinct)), "sd": Estimate(sd, sd_error)}
    for name, level in QUANTILES.items():
        # The values at one standard error of the share that lies below (Woodruff, JASA 47, 635 (1952)).
        half = math.sqrt(level * (1 - level) / distinct)
        low, value, high = np.quantile(values, np.clip([level - half, level, level + half], 0, 1)).tolist()
        result[name] = Estimate(value, (high - low) / 2)
    return result
