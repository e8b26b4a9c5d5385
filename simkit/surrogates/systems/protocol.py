"""`Protocol`: how a data set is drawn from a system, as its paper describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simkit.errors import ConfigError


@dataclass(frozen=True)
class Protocol:
    """Numbers of trajectories, times and noise of a data set.

    Attributes:
        source: paper and section, or the script of its authors; what is from memory or a choice of ours is said.
        parts: trajectories of each part, in the order in which they are drawn.
        duration: from the first to the last point.
        points: of each trajectory, equally spaced and with both ends; 1 asks for states without motion.
        noise: standard deviation of the noise on q, p and v.
        initial: name of the distribution of initial states, where the system has several.
        equilibration: time before the first point, left out of the data.
    """

    source: str
    parts: Mapping[str, int]
    duration: float
    points: int
    noise: float = 0.0
    initial: str = ""
    equilibration: float = 0.0

    def __post_init__(self) -> None:
        if self.points < 1 or (self.points > 1 and not self.duration > 0) or min(self.parts.values(), default=0) < 1:
            raise ConfigError(
                "a protocol needs points, a positive duration and at least one trajectory in each part; "
                f"found {self.points} points, duration {self.duration}, parts {dict(self.parts)}"
            )

    @property
    def trajectories(self) -> int:
        """The trajectories of all parts together."""
        return sum(self.parts.values())

    @property
    def times(self) -> NDArray[np.float64]:
        """The times [T], from 0."""
        return np.linspace(0.0, self.duration, self.points) if self.points > 1 else np.zeros(1)
