"""`Langevin`: Newton's equation with friction and noise."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from simkit import integrators
from simkit.errors import ConfigError
from simkit.integrators import Bath
from simkit.md.ensembles.degrees import keep_degrees, unconstrained
from simkit.md.ensembles.splitting import BoundScheme
from simkit.md.ensembles.targets import Ramp, Target, Values, positive
from simkit.md.ensembles.verlet import total_energy, zeros
from simkit.md.protocols import Forces
from simkit.md.state import State
from simkit.units import BOLTZMANN


class Langevin:
    """Constant number of atoms, volume and temperature by Langevin dynamics, with any splitting scheme that has noise.

    BAOAB: B. Leimkuhler, C. Matthews, Appl. Math. Res. Express 2013, 34 (2013), doi:10.1093/amrx/abs010. The operators are those of
    `simkit.integrators.scheme`.

    The bath acts on each atom, so that no momentum is conserved: the degrees of freedom are three for each mobile atom, and the centre
    of mass diffuses. Frozen atoms feel nothing of it.

    Conserved: kinetic plus potential energy, less the heat that the noise operators brought in since the start, which holds for ramps of
    the temperature, too (G. Bussi, M. Parrinello, Phys. Rev. E 75, 056707 (2007), doi:10.1103/PhysRevE.75.056707).

    | Quantity | Variable |
    | --- | --- |
    | heat to each component of each atom, eV | ``state.extra["langevin.heat"]`` [N, 3] |

    Attributes:
        timestep: fs. friction: 1/fs.
        temperature: K, the target. seed: of the random numbers.
        scheme: a name of `simkit.integrators.available`.
    """

    name = "langevin"
    needs_stress = False

    def __init__(
        self, timestep: float, temperature: Values | Ramp, friction: float, seed: int, scheme: str = "baoab"
    ) -> None:
        """Raises ConfigError if a value is not usable, or the scheme is unknown or has no noise."""
        self.timestep = positive("timestep", timestep)
        self.temperature = Target("temperature", temperature, positive=True)
        self.friction, self.seed = positive("friction", friction), seed
        self.scheme = integrators.get(scheme.lower())
        if not self.scheme.stochastic:
            raise ConfigError(f"the scheme {scheme!r} has no noise; Langevin takes one with noise, such as 'baoab'")
        Bath(self.friction, 0.0, seed)  # checks the seed
        self._bound = BoundScheme(self.scheme)

    def settings(self) -> dict[str, Any]:
        """Name and parameters as plain values."""
        return {
            "ensemble": self.name, "timestep": self.timestep, "temperature": self.temperature.plain(),
            "friction": self.friction, "seed": self.seed, "scheme": self.scheme.name,
        }  # fmt: skip

    def start(self, state: State) -> None:
        """Stop frozen atoms, set the degrees of freedom, and begin to count heat.

        Raises:
            ConfigError: if there is not one temperature or one for each replica.
        """
        self.temperature.check(state.size)
        state.velocities.mul_(state.mobile[:, None])
        keep_degrees(state, "langevin.degrees", unconstrained(state))
        state.extra.setdefault("langevin.heat", zeros(state, len(state.masses), 3))

    def advance(self, state: State, forces: Forces, steps: int) -> None:
        """Make steps; with a ramp one at a time."""
        at_once = 1 if self.temperature.varies else max(steps, 1)
        for _ in range(0, steps, at_once):
            kt = self.temperature.at_host(state.step, state.size) * BOLTZMANN
            bath = Bath(self.friction, kt, self.seed, state.replicas)
            self._bound.run(state, forces, at_once, self.timestep, bath, state.extra["langevin.heat"])

    def conserved(self, state: State) -> Tensor:
        """Total energy less heat, [B] eV."""
        return total_energy(state) - state.total(state.extra["langevin.heat"].sum(1))
