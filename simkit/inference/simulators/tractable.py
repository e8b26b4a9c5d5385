"""`TractableSimulator`: a simulator whose likelihood can be computed."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from simkit.inference.simulator import Simulator


class TractableSimulator(Simulator):
    """A simulator that knows how probable its outputs are, so that samplers can draw from the exact posterior."""

    @abstractmethod
    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return ln p(x | theta), [...], up to a term without theta; differentiable once in theta.

        Args:
            theta: parameters within the prior's support, [..., D] float64.
            x: one output, [K] float64.
        """
