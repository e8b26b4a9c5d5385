"""`NVE`: Newton's equation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from simkit import integrators
from simkit.errors import ConfigError
from simkit.md.ensembles.degrees import conserving, keep_degrees
from simkit.md.ensembles.splitting import BoundScheme
from simkit.md.ensembles.targets import positive
from simkit.md.ensembles.verlet import total_energy
from simkit.md.protocols import Forces
from simkit.md.state import State


class NVE:
    """Constant number of atoms, volume and energy, by any splitting scheme without noise.

    Degrees of freedom: those of `simkit.md.ensembles.degrees.conserving`. Conserved: kinetic plus potential energy.

    Attributes:
        timestep: fs.
        scheme: a name of `simkit.integrators.available`.
    """

    name = "nve"
    needs_stress = False

    def __init__(self, timestep: float, scheme: str = "velocity-verlet") -> None:
        """Raises ConfigError if the timestep is not positive, or the scheme is unknown or has noise."""
        self.timestep = positive("timestep", timestep)
        self.scheme = integrators.get(scheme)
        if self.scheme.stochastic:
            raise ConfigError(f"the scheme {scheme!r} has noise; NVE takes one without, such as 'velocity-verlet'")
        self._bound = BoundScheme(self.scheme)

    def settings(self) -> dict[str, Any]:
        """Name and parameters as plain values."""
        return {"ensemble": self.name, "timestep": self.timestep, "scheme": self.scheme.name}

    def start(self, state: State) -> None:
        """Stop frozen atoms and count the degrees of freedom."""
        state.velocities.mul_(state.mobile[:, None])
        keep_degrees(state, "nve.degrees", conserving(state))

    def advance(self, state: State, forces: Forces, steps: int) -> None:
        """Make steps."""
        self._bound.run(state, forces, steps, self.timestep)

    def conserved(self, state: State) -> Tensor:
        """Total energy, [B] eV."""
        return total_energy(state)
