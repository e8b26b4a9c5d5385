"""`Posterior`: what every method of inference gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from simkit.errors import DataError
from simkit.inference.priors import Array, Prior
from simkit.inference.simulator import Observable


class Posterior(ABC):
    """Draws parameters given an observation.

    Attributes:
        method: its name in `simkit.inference.infer.METHODS`.
        prior: of the parameters.
        observables: of the simulator.
        amortised: whether any observation will do, at no cost in simulations.
        reference: the observation it was made for, [K], where it is not amortised; what it is used with by default.
    """

    method: str
    prior: Prior
    observables: tuple[Observable, ...]
    amortised: bool
    reference: Array | None = None

    @abstractmethod
    def sample(self, count: int, observation: Array | None = None, *, seed: int = 0) -> Array:
        """Return parameters [count, D] float64 drawn given an observation [K], the `reference` where not given.

        Raises:
            DataError: if there is no observation, or it does not fit.
        """

    def sample_many(self, observations: Array, count: int, *, seed: int = 0) -> Array:
        """Return parameters [M, count, D] given each of M observations [M, K]; a subclass may do all at once."""
        return np.stack([self.sample(count, x, seed=seed + i) for i, x in enumerate(observations)])

    def draw_parameters(self, count: int, seed: int) -> Array:
        """Return parameters [count, D] that the posterior should be right for: from the prior, or the part of it that was simulated."""
        return self.prior.sample(count, seed)

    def log_prob(self, theta: Array, observation: Array | None = None) -> Array:
        """Return the log density, [N], of parameters [N, D] given an observation; up to a constant where `normalised` is False.

        Raises:
            DataError: if the method gives samples alone.
        """
        raise DataError(f"{self.method} gives samples, not densities; use npe, fmpe, nle or nre for densities")

    @property
    def checkable(self) -> bool:
        """Whether it can be checked on other observations, simulated with parameters from `draw_parameters`."""
        return self.amortised

    @property
    def normalised(self) -> bool:
        """Whether `log_prob` is a density and not only proportional to one."""
        return False

    def resolve(self, observation: Array | None) -> Array:
        """Return the observation to use, [K].

        Raises:
            DataError: if there is none, or it has another length or values that are not finite.
        """
        if observation is None:
            if self.reference is None:
                raise DataError(f"{self.method} needs an observation to draw from its posterior")
            return self.reference
        size = sum(o.size for o in self.observables)
        values = np.asarray(observation, dtype=np.float64)
        if values.shape != (size,) or not np.isfinite(values).all():
            raise DataError(f"expected an observation of {size} finite values; found an array of shape {values.shape}")
        if not self.amortised and self.reference is not None and not np.array_equal(values, self.reference):
            raise DataError(
                f"this {self.method} posterior was made for one observation; infer anew for another, or use an amortised method such as npe"
            )
        return values

    def describe(self) -> dict[str, Any]:
        """Return, in plain types, what is worth knowing: method, numbers of simulations, networks."""
        return {"method": self.method, "amortised": self.amortised}
