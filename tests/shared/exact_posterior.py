"""A simulator whose posterior is known, that posterior, and ones that are wrong in known ways."""

import time

import numpy as np
from numpy.typing import NDArray

from simkit.inference.posterior import Posterior
from simkit.inference.priors import Array, IndependentPrior, LogNormal, Normal
from simkit.inference.simulator import Observable, Seeds, Simulator

PRIOR = IndependentPrior(
    {"stiffness": LogNormal(0.5, 0.8), "offset": Normal(-1.0, 2.0)}, {"stiffness": "eV/Å²", "offset": "Å"}
)
MAP = np.array([[1.0, 0.5], [0.3, -1.0], [0.0, 0.7], [-0.6, 0.2]])
NOISE = np.array([0.5, 0.4, 0.8, 0.3])


def normal_parameters(theta: Array) -> Array:
    """Standard normal variables of stiffness and offset."""
    return np.stack([(np.log(theta[..., 0]) - 0.5) / 0.8, (theta[..., 1] + 1.0) / 2.0], axis=-1)


def parameters(z: Array) -> Array:
    """The inverse of `normal_parameters`."""
    return np.stack([np.exp(0.5 + 0.8 * z[..., 0]), -1.0 + 2.0 * z[..., 1]], axis=-1)


class LinearSimulator(Simulator):
    """x = A z(theta) + noise: a number and a series of three.

    Args:
        failing: share of the simulations that fail.
        pause: seconds for each simulation.
    """

    name, prior = "linear", PRIOR
    observables = (
        Observable("energy", (), "eV"),
        Observable("signal", (3,), "mV", "series", (0.0, 0.5, 1.0), "time (ps)"),
    )

    def __init__(self, failing: float = 0.0, pause: float = 0.0) -> None:
        self.failing, self.pause = failing, pause

    def simulate(self, theta: Array, seeds: Seeds) -> Array:
        time.sleep(self.pause * len(theta))
        numbers = [np.random.default_rng(int(seed)) for seed in seeds]
        noise = np.array([rng.standard_normal(4) for rng in numbers])
        x = normal_parameters(theta) @ MAP.T + NOISE * noise
        x[np.array([rng.random() for rng in numbers]) < self.failing] = np.nan
        return x


class GaussianPosterior(Posterior):
    """The exact posterior of `LinearSimulator`, by its normal equations, or one that is wrong in standard normal parameters.

    Args:
        width: factor to its standard deviations.
        shift: of its mean, in its standard deviations, of the first parameter.
        prior_only: gives the prior whatever was observed.
        pause: seconds for each observation.
    """

    method = "npe"

    def __init__(
        self,
        width: float = 1.0,
        shift: float = 0.0,
        *,
        prior_only: bool = False,
        amortised: bool = True,
        reference: Array | None = None,
        pause: float = 0.0,
    ) -> None:
        self.prior, self.observables = PRIOR, LinearSimulator.observables
        self.width, self.shift, self.prior_only, self.pause = width, shift, prior_only, pause
        self.amortised, self.reference = amortised, reference

    def moments(self, x: Array) -> tuple[Array, Array]:
        """Mean [..., 2] and covariance [2, 2] of the standard normal parameters given outputs."""
        precision = np.eye(2) + MAP.T @ np.diag(NOISE**-2) @ MAP
        covariance = np.linalg.inv(precision)
        return (x / NOISE**2) @ MAP @ covariance, covariance

    def sample_z(self, observations: Array, count: int, seed: int) -> NDArray[np.float64]:
        """Standard normal parameters [M, count, 2]."""
        time.sleep(self.pause * len(observations))
        draws = np.random.default_rng(seed).standard_normal((len(observations), count, 2))
        if self.prior_only:
            return draws
        mean, covariance = self.moments(observations)
        mean = mean + self.shift * np.sqrt(np.diag(covariance)) * np.array([1.0, 0.0])
        return mean[:, None] + self.width * draws @ np.linalg.cholesky(covariance).T

    def sample_many(self, observations: Array, count: int, *, seed: int = 0) -> Array:
        return parameters(self.sample_z(observations, count, seed))

    def sample(self, count: int, observation: Array | None = None, *, seed: int = 0) -> Array:
        return self.sample_many(self.resolve(observation)[None], count, seed=seed)[0]
