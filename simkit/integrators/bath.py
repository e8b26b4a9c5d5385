"""The heat bath of the noise operator, and how its numbers are keyed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simkit.errors import ConfigError


@dataclass(frozen=True)
class Bath:
    """Friction and temperature of Langevin dynamics, and the key of its random numbers.

    The numbers depend on the seed, the step, the replica and the atom within the replica only (`simkit.integrators.philox`): a replica
    moves the same in any batch, on any device and with any number of threads.

    Attributes:
        friction: 1/time; a number, or one for each replica.
        kT: Boltzmann's constant times temperature, energy; a number, or one for each replica.
        seed: from 0 to 2^64 - 1.
        replicas: the identity of each replica, from 0 to 2^32 - 1; by default its place in the batch.
    """

    friction: Any
    kT: Any
    seed: int
    replicas: Any = None

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**64:
            raise ConfigError(f"the seed must be a whole number from 0 to 2^64 - 1; found {self.seed!r}")
