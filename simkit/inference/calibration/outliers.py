"""Does an observation belong to simulations? A test that assumes nothing about their distribution, and which values are responsible.

Half of the simulations, drawn at random, say what outputs look like; the other half and the observation are measured by that. If the
observation is one more output, all of these are exchangeable, and the share of simulations that lie as far out is an exact p-value
(Vovk, Gammerman & Shafer, "Algorithmic learning in a random world", 2005: split conformal prediction).

Three numbers say how far out an output lies, after a robust scaling of every value with tails drawn in by asinh:

| Number | What it sees |
| --- | --- |
| mean distance to the nearest neighbours in principal components of unit variance | combinations of values that do not occur |
| the same without components, over that of the neighbours (Breunig et al., SIGMOD 2000) | gaps and sharp edges |
| largest single value or component | one bad value among many |

Each is ranked among the simulations, and the smallest of the three shares is what is compared, ties by the next one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree
from scipy.stats import rankdata

from simkit.inference.calibration.scaling import SMALLEST_SHARE, RobustScale
from simkit.inference.priors import Array
from simkit.inference.simulator import Observable

NEIGHBOURS = 5
SIMULATIONS_PER_COMPONENT = 5
MOST_VALUES = 5
"""As many unusual values are listed at most."""


@dataclass(frozen=True)
class UnusualValue:
    """A value of the observation that few simulations reach.

    Attributes:
        label: such as "rdf[12]"; unit: its unit; value: observed.
        low, high: between which 95 % of the simulations lie.
        share: of the simulations at least as far from the median on that side, doubled.
    """

    label: str
    unit: str
    value: float
    low: float
    high: float
    share: float

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.label} = {self.value:.4g}{unit} (95 % of the simulations: {self.low:.4g} to {self.high:.4g})"


@dataclass(frozen=True)
class OutlierTest:
    """How far out an observation lies.

    Attributes:
        count: simulations used.
        p_value: the share of simulations as far out as the observation; not below 1 / (count / 2 + 1).
        distance: of the observation, in units of what 95 % of the simulations stay below.
        distances: of the second half of the simulations, in the same units.
        observables: p-values of each observable by itself.
        values: those furthest out, the first one most.
    """

    count: int
    p_value: float
    distance: float
    distances: Array
    observables: dict[str, float]
    values: tuple[UnusualValue, ...]

    def reasons(self, level: float) -> str:
        """Return in words what is unusual."""
        if self.values:
            return "; ".join(map(str, self.values))
        blamed = [name for name, p in self.observables.items() if p <= level]
        if blamed:
            return f"no single value is unusual, but those of {', '.join(blamed)} do not occur together"
        return "no value is unusual, but they do not occur together"

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        own = {"count": self.count, "p_value": self.p_value, "distance": self.distance}
        return own | {"observables": self.observables, "values": [vars(value) for value in self.values]}


def needed_simulations(level: float) -> int:
    """Return with how many simulations a p-value can be as low as a level."""
    return 2 * math.ceil(1 / level)


def outlier_test(
    x: Array, observation: Array, observables: Sequence[Observable], labels: Sequence[str], *, seed: int
) -> OutlierTest:
    """Compare an observation [K] with simulated outputs [N, K], all finite.

    Args:
        observables: what the outputs consist of; labels: of their values, [K].
        seed: of the choice of the first half.
    """
    order = np.random.default_rng(seed).permutation(len(x))
    first, second = x[order[: len(x) // 2]], x[order[len(x) // 2 :]]
    points = np.vstack([second, observation])
    numbers = _numbers(first, points, observables)
    largest = (numbers / _usual(numbers)).max(axis=1, keepdims=True)
    distances = (largest / _usual(largest))[:, 0]
    alone = {observables[0].name: _p_value(numbers)}
    if len(observables) > 1:
        parts = np.split(np.arange(len(observation)), np.cumsum([o.size for o in observables])[:-1])
        pairs = zip(observables, parts, strict=True)
        alone = {o.name: _p_value(_numbers(first[:, k], points[:, k], [o])) for o, k in pairs}
    units = [o.unit for o in observables for _ in range(o.size)]
    values = _unusual(x, observation, labels, units, RobustScale.of(x, observables).spread)
    return OutlierTest(len(x), _p_value(numbers), float(distances[-1]), distances[:-1], alone, values)


def _usual(numbers: Array) -> Array:
    """Return what 95 % of the rows but the last stay below, in each column; larger than zero also where all simulations are alike."""
    result: Array = np.maximum(np.quantile(numbers[:-1], 0.95, axis=0), SMALLEST_SHARE)
    return result


def _p_value(numbers: Array) -> float:
    """Return the share of the rows, [M, S], that are as unusual as the last, itself included; large numbers are unusual."""
    count = len(numbers)
    shares = np.stack([count - rankdata(column, method="min") + 1 for column in numbers.T], axis=1) / count
    # Sorted shares are compared like words in a dictionary; they are multiples of 1 / count.
    order = (np.sort(shares, axis=1) * (count + 1.0) ** -np.arange(shares.shape[1])).sum(axis=1)
    return float((order <= order[-1] * (1 + 1e-12)).mean())


def _numbers(reference: Array, points: Array, observables: Sequence[Observable]) -> Array:
    """How far points [M, K] lie out of a reference [N, K], [M, 3]; a row does not depend on the other points."""
    scale = RobustScale.of(reference, observables)
    known, new = scale.apply(reference), scale.apply(points)
    components, tested = _whiten(known, new)
    distances, neighbours = _nearest(new, known)
    own, _ = _nearest(known, known, skip=1)
    least = SMALLEST_SHARE * math.sqrt(known.shape[1])
    density = (distances + least) / (own[neighbours].mean(axis=1) + least)
    single = np.maximum(np.abs(new).max(axis=1), np.abs(tested).max(axis=1))
    return np.stack([_nearest(tested, components)[0], density, single], axis=1)


def _nearest(points: Array, reference: Array, skip: int = 0) -> tuple[Array, NDArray[np.intp]]:
    """Return the mean distance to the nearest of the reference, [M], and which those are, [M, k]; the first ``skip`` do not count."""
    count = min(NEIGHBOURS, len(reference) - skip) + skip
    distances, found = KDTree(reference).query(points, k=np.arange(1 + skip, count + 1))
    return distances.mean(axis=1), found


def _whiten(reference: Array, points: Array) -> tuple[Array, Array]:
    """Return both in principal components of the reference, of unit variance; what the components leave over is one more coordinate."""
    mean = reference.mean(axis=0)
    _, singular, directions = np.linalg.svd(reference - mean, full_matrices=False)
    kept = max(1, min(reference.shape[1], len(reference) // SIMULATIONS_PER_COMPONENT))
    sd = np.sqrt(np.square(singular[:kept]) / max(len(reference) - 1, 1) + SMALLEST_SHARE**2)

    def project(x: Array) -> Array:
        parts = (x - mean) @ directions[:kept].T
        rest = np.linalg.norm(x - mean - parts @ directions[:kept], axis=1, keepdims=True)
        return np.hstack([parts / sd, rest])

    known, new = project(reference), project(points)
    middle, width = np.median(known[:, -1]), float(np.std(known[:, -1])) + SMALLEST_SHARE
    for values in (known, new):
        values[:, -1] = (values[:, -1] - middle) / width
    return known, new


def _unusual(
    x: Array, observation: Array, labels: Sequence[str], units: Sequence[str], spread: Array
) -> tuple[UnusualValue, ...]:
    """Return the values that at most 1 % of the simulations reach, those furthest from the median in units of the 95 % range first."""
    low, middle, high = np.quantile(x, [0.025, 0.5, 0.975], axis=0)
    share = np.minimum(1.0, 2 * np.minimum((x <= observation).mean(axis=0), (x >= observation).mean(axis=0)))
    side = np.where(observation < middle, middle - low, high - middle)
    distance = np.abs(observation - middle) / np.maximum(side, spread)
    found = [k for k in np.argsort(-distance, kind="stable") if share[k] <= 0.01 and distance[k] > 1][:MOST_VALUES]
    columns = (observation, low, high, share)
    return tuple(UnusualValue(labels[k], units[k], *(float(values[k]) for values in columns)) for k in found)
