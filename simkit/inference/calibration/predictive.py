"""Posterior predictive check: does the simulator, with parameters from the posterior, give what was observed?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from simkit.inference.calibration.outliers import OutlierTest
from simkit.inference.priors import Array

LEVELS = (0.025, 0.16, 0.5, 0.84, 0.975)


@dataclass(frozen=True)
class PredictiveCheck:
    """Outputs simulated with parameters from the posterior given the observation (Gelman, Meng & Stern, Statistica Sinica 6, 733 (1996)).

    The observation has been used to find the parameters, so that p-values gather around 0.5: small ones are rarer than they say.

    Attributes:
        observation: [K].
        theta: parameters [S, D]; x: their outputs [S, K], failures left out.
        failures: simulations that failed.
        outside: parameters that lay outside the prior and were not simulated.
        test: of the observation among the outputs; None where there are too few.
    """

    observation: Array
    theta: Array
    x: Array
    failures: int
    outside: int
    test: OutlierTest | None

    def bands(self) -> Array:
        """Return quantiles of each value at `LEVELS`, [5, K]."""
        result: Array = np.quantile(self.x, LEVELS, axis=0)
        return result

    def share_inside(self) -> float:
        """Return the share of the observed values that lie within the bands of 95 %."""
        bands = self.bands()
        return float(((self.observation >= bands[0]) & (self.observation <= bands[-1])).mean())

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        result: dict[str, Any] = {"count": len(self.x), "failures": self.failures, "outside_prior": self.outside}
        if len(self.x):
            result |= {"share_inside_95": self.share_inside(), "levels": list(LEVELS), "bands": self.bands().tolist()}
        return result | {"test": None if self.test is None else self.test.to_dict()}
