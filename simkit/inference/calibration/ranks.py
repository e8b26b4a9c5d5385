"""Simulation-based calibration and expected coverage: ranks of true parameters among samples of their posteriors.

If the parameters are drawn from the prior, simulated, and the posteriors given these outputs are right, then the true parameters and
the L samples of the posterior are exchangeable. Any number that is computed from parameters and outputs ranks the truth uniformly
among the samples, from 0 to L. Three kinds of numbers are used:

| Kind | Number | What it sees best | Source |
| --- | --- | --- | --- |
| parameter | the parameter itself | bias and width of one parameter | Talts et al., arXiv:1804.06788 |
| random | distance to a random point | joint bias and width | Lemos et al., ICML 2023 (TARP) |
| similar | distance to the parameters of a similar output | joint width; posteriors that make too little of the output | as before |

A posterior that is equal to the prior passes the first two. The last one, whose points depend on the output as Lemos et al. require
for sufficiency, finds it. Its points come from earlier simulations only, which keeps the ranks independent of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta

from simkit.inference.calibration.scaling import RobustScale
from simkit.inference.calibration.uniformity import Ints, RankBand, rank_band
from simkit.inference.priors import Array, Prior
from simkit.inference.simulator import Observable

RankKind = Literal["parameter", "random", "similar"]
CREDIBILITIES = (0.5, 0.68, 0.9, 0.95)


@dataclass(frozen=True)
class IntervalCoverage:
    """How often central credible intervals hold the truth.

    Attributes:
        nominal: how often they should.
        observed: how often they did.
        low, high: 95 % confidence interval of it (Clopper and Pearson).
    """

    nominal: float
    observed: float
    low: float
    high: float


@dataclass(frozen=True)
class RankTest:
    """The ranks of the truth by one number.

    Attributes:
        kind: of the number; name: of the parameter, or of the kind.
        ranks: [N], from 0 to ``samples``.
        samples: L.
        band: of their cumulative distribution.
        p_value: for the number of tests that are made together (Bonferroni).
    """

    kind: RankKind
    name: str
    ranks: Ints
    samples: int
    band: RankBand
    p_value: float

    def fault(self) -> str:
        """Return in words what the largest departure from uniform ranks means for the posterior."""
        u = (self.ranks + 0.5) / (self.samples + 1) - 0.5
        # In standard deviations: a uniform variable has variance 1/12, and its squared distance from the middle variance 1/180.
        centre, spread = u.mean() * np.sqrt(12 * len(u)), (np.square(u).mean() - 1 / 12) * np.sqrt(180 * len(u))
        if self.kind == "similar":
            return "too narrow or biased" if centre > 0 else "too wide: it makes too little of the observation"
        if abs(spread) >= abs(centre):
            return "too narrow" if spread > 0 else "too wide"
        if self.kind == "random":
            return "too narrow or biased" if centre > 0 else "too wide or biased"
        return "biased towards " + ("low" if centre > 0 else "high") + " values"

    def coverage(self) -> list[IntervalCoverage]:
        """Return how often central credible intervals of the `CREDIBILITIES` hold the truth; of a parameter's ranks."""
        total, result = self.samples + 1, []
        for wanted in CREDIBILITIES:
            cut = max(round((1 - wanted) / 2 * total), 1)
            inside = int(((self.ranks >= cut) & (self.ranks < total - cut)).sum())
            low, high = binomial_interval(inside, len(self.ranks))
            result.append(IntervalCoverage(max(0.0, 1 - 2 * cut / total), inside / len(self.ranks), low, high))
        return result

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        result: dict[str, Any] = {"kind": self.kind, "name": self.name, "p_value": self.p_value}
        result |= {"samples": self.samples, "ranks": self.ranks.tolist()}
        if self.kind == "parameter":
            result["coverage"] = [vars(interval) for interval in self.coverage()]
        return result


def binomial_interval(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of a probability (Clopper and Pearson, Biometrika 26, 404 (1934))."""
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, successes, count - successes + 1)) if successes else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, count - successes)) if successes < count else 1.0
    return low, high


def rank_tests(
    theta: Array, samples: Array, x: Array, prior: Prior, observables: Sequence[Observable], *, level: float, seed: int
) -> list[RankTest]:
    """Rank true parameters among samples of their posteriors: every parameter, and the distance to random and to similar points.

    Args:
        theta: true parameters [N, D].
        samples: [N, L, D], of the posteriors given x.
        x: outputs [N, K], all finite.
        prior: distances are taken in the standard normal variables that it maps to.
        observables: what the outputs consist of.
        level: probability with which a right posterior fails any of the tests, at most.
        seed: of the random points, and of ties.
    """
    rng = np.random.default_rng(seed)
    everything = np.concatenate([theta[:, None], samples], axis=1)
    z = prior.to_normal(torch.from_numpy(everything)).numpy()
    anywhere = rng.standard_normal(theta.shape)
    numbers: list[tuple[RankKind, str, Array]] = [
        ("parameter", name, everything[:, :, k]) for k, name in enumerate(prior.names)
    ]
    numbers.append(("random", "distance to random points", _distances(z, anywhere)))
    scale = RobustScale.of(x, observables)
    similar = _earlier_neighbours(scale.apply(x))
    near = np.where(similar[:, None] < 0, anywhere, z[similar, 0])
    numbers.append(("similar", "distance to similar simulations", _distances(z, near, own_units=True)))
    tests = []
    for kind, name, values in numbers:
        ranks = _ranks(values, rng)
        band = rank_band(ranks, samples.shape[1], level / len(numbers))
        tests.append(RankTest(kind, name, ranks, samples.shape[1], band, min(1.0, band.p_value * len(numbers))))
    return tests


def _ranks(values: Array, rng: np.random.Generator) -> Ints:
    """Return the rank of the first of the values, [N, 1 + L], among the others; at random among equal ones."""
    truth, others = values[:, :1], values[:, 1:]
    below, equal = (others < truth).sum(axis=1), (others == truth).sum(axis=1)
    result: Ints = below + rng.integers(0, equal + 1)
    return result


def _distances(z: Array, points: Array, *, own_units: bool = False) -> Array:
    """Return the distances of z, [N, 1 + L, D], from points [N, D].

    Args:
        own_units: every parameter in units of its standard deviation in the posterior. The truth counts among the samples here, or
            the two would not be exchangeable.
    """
    # Samples outside the prior's support, which an estimator may give, have no z, and are far from everything.
    inside = np.asarray(np.isfinite(z).all(axis=2))
    known = np.where(inside[:, :, None], z, np.nan)
    units = np.nanstd(known, axis=1, keepdims=True) if own_units else np.ones(1)
    squares = np.square((known - points[:, None]) / np.where(units > 0, units, 1.0)).sum(axis=2)
    result: Array = np.where(inside, np.sqrt(squares), np.inf)
    return result


def _earlier_neighbours(x: Array) -> NDArray[np.int64]:
    """Return which of the outputs before each is the most similar to it, [N]; -1 for the first, which has none before it."""
    found = np.full(len(x), -1)
    for row in range(1, len(x)):
        found[row] = np.square(x[:row] - x[row]).sum(axis=1).argmin()
    return found
