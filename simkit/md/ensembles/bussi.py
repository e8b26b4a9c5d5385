"""`Bussi`: constant temperature by stochastic velocity rescaling."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from simkit.md.ensembles.compiled import (
    atoms_of,
    compiled,
    drift_one,
    kick_one,
    kinetic_energy,
    remove_momentum_of_one,
    scale_one,
)
from simkit.md.ensembles.degrees import remove_momentum, start_global_thermostat
from simkit.md.ensembles.rescaling import VelocityRescaling, rescaling_factor
from simkit.md.ensembles.targets import Ramp, Target, Values, positive
from simkit.md.ensembles.verlet import half_kick, scale_velocities, total_energy, verlet, zeros
from simkit.md.protocols import Forces
from simkit.md.state import State


class Bussi:
    """Constant number of atoms, volume and temperature: velocity Verlet, and after each step one of `VelocityRescaling`.

    The thermostat scales all velocities of a replica alike: a total momentum of zero stays zero. Degrees of freedom are those of
    `simkit.md.ensembles.degrees.conserving`. A momentum that is not zero and no force changes would be scaled with the rest, and warm or
    cool as a whole: remove it before.

    Conserved: kinetic plus potential energy, less the heat of the thermostat since the start (Bussi et al. 2007, equation 15), which holds
    for ramps of the temperature, too. With ``remove_com`` the energy taken out with the centre of mass is missing.

    | Quantity | Variable |
    | --- | --- |
    | heat, eV | ``state.extra["bussi.heat"]`` [B] |

    Attributes:
        timestep, time_constant: fs. temperature: K, the target. seed: of the random numbers.
        remove_com: whether to stop the centre of mass after each step, for forces whose sum is not quite zero.
    """

    name = "bussi"
    needs_stress = False

    def __init__(
        self, timestep: float, temperature: Values | Ramp, time_constant: float, seed: int, remove_com: bool = False
    ) -> None:
        """Raises ConfigError if a value is not usable."""
        self.timestep, self.remove_com = positive("timestep", timestep), remove_com
        self.temperature = Target("temperature", temperature, positive=True)
        self.thermostat = VelocityRescaling(self.timestep, time_constant, seed)

    def settings(self) -> dict[str, Any]:
        """Name and parameters as plain values."""
        return {
            "ensemble": self.name, "timestep": self.timestep, "temperature": self.temperature.plain(),
            "time_constant": self.thermostat.time_constant, "seed": self.thermostat.noise.seed,
            "remove_com": self.remove_com,
        }  # fmt: skip

    def start(self, state: State) -> None:
        """Stop frozen atoms, count the degrees of freedom, and begin to count heat.

        Raises:
            ConfigError: if there is not one temperature or one for each replica, or the centre of mass cannot be stopped.
        """
        self.temperature.check(state.size)
        start_global_thermostat(state, self.name, self.remove_com)
        self.thermostat.prepare(state)
        state.extra.setdefault("bussi.heat", zeros(state, state.size))

    def advance(self, state: State, forces: Forces, steps: int) -> None:
        """Make steps."""
        if state.device.type != "cpu":
            self.advance_torch(state, forces, steps)
            return
        atoms, heat = atoms_of(state), state.extra["bussi.heat"].numpy()
        for left in range(steps, 0, -1):
            temperature, numbers = self.temperature.at_host(state.step, state.size), self.thermostat.numbers(state.step)
            _before_forces(self.timestep, *atoms)
            forces.compute(state, energy=left == 1)
            _after_forces(self.timestep, *atoms, state.replicas, temperature, numbers, heat, self.remove_com)
            state.step += 1

    def advance_torch(self, state: State, forces: Forces, steps: int) -> None:
        """`advance` by PyTorch, on any device; a CPU takes compiled functions for the same arithmetic."""
        factor, heat = half_kick(state, self.timestep), state.extra["bussi.heat"]
        for left in range(steps, 0, -1):
            verlet(state, forces, factor, self.timestep, energy=left == 1)
            kinetic = state.kinetic_energy()
            alpha = self.thermostat.factor(state, kinetic, self.temperature.at(state.step, heat))
            scale_velocities(state, alpha)
            heat.add_((alpha**2 - 1) * kinetic)
            if self.remove_com:
                remove_momentum(state)
            state.step += 1

    def conserved(self, state: State) -> Tensor:
        """Total energy less heat, [B] eV."""
        return total_energy(state) - state.extra["bussi.heat"]


@compiled
def _before_forces(time, offsets, x, v, f, masses, mobile, degrees):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as below
    """The part of a step that comes before the forces."""
    lo, hi = offsets[0], offsets[-1]  # replicas do not differ here
    kick_one(v, f, masses, mobile, lo, hi, 0.5 * time)
    drift_one(x, v, lo, hi, time)


@compiled
def _after_forces(  # type: ignore[no-untyped-def]  # pragma: no cover
    time, offsets, x, v, f, masses, mobile, degrees, replicas, temperature, numbers, heat, remove_com
):
    """The part that comes after."""
    for r in range(len(degrees)):
        lo, hi = offsets[r], offsets[r + 1]
        kick_one(v, f, masses, mobile, lo, hi, 0.5 * time)
        kinetic = kinetic_energy(v, masses, mobile, lo, hi)
        alpha = rescaling_factor(kinetic, degrees[r], temperature[r], replicas[r], numbers)
        scale_one(v, lo, hi, alpha)
        heat[r] += (alpha * alpha - 1) * kinetic
        if remove_com:
            remove_momentum_of_one(v, masses, lo, hi)
