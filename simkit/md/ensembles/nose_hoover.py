"""`NoseHooverChain`: constant temperature by a Nosé-Hoover chain."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from simkit.md.ensembles.chain import Chain, check_damping, propagate_chain
from simkit.md.ensembles.compiled import (
    atoms_of,
    compiled,
    drift_one,
    inlined,
    kick_one,
    kinetic_energy,
    remove_momentum_of_one,
    scale_one,
)
from simkit.md.ensembles.degrees import remove_momentum, start_global_thermostat
from simkit.md.ensembles.targets import Ramp, Target, Values, positive
from simkit.md.ensembles.verlet import half_kick, scale_velocities, total_energy, verlet, zeros
from simkit.md.protocols import Forces
from simkit.md.state import State
from simkit.units import BOLTZMANN


class NoseHooverChain:
    """Constant number of atoms, volume and temperature: velocity Verlet between two half steps of a `Chain` on all velocities.

    Martyna, Tuckerman, Tobias, Klein 1996 (see `simkit.md.ensembles.chain`), equation 24. The step is reversible: with all velocities
    and those of the chain turned around, the simulation runs back.

    The chain scales all velocities of a replica alike: a total momentum of zero stays zero. Degrees of freedom are those of
    `simkit.md.ensembles.degrees.conserving`. Harmonic systems of few atoms are not sampled well: take `Langevin`.

    Conserved: kinetic and potential energy of the atoms and of the chain, which holds for ramps of the temperature, too (see `Chain`).

    | Quantity | Variable |
    | --- | --- |
    | velocities of the links, 1/fs | ``state.extra["nose-hoover.chain"]`` [B, M] |
    | potential energy of the bath, eV | ``state.extra["nose-hoover.energy"]`` [B] |

    Attributes:
        timestep, damping: fs; the damping time is the period of the coupling over 2 pi, or so. temperature: K, the target.
        chain: number of links. substeps, suzuki_yoshida: repetitions and weights of the chain's factorization.
        remove_com: whether to stop the centre of mass after each step, for forces whose sum is not quite zero.
    """

    name = "nose-hoover"
    needs_stress = False

    def __init__(
        self,
        timestep: float,
        temperature: Values | Ramp,
        damping: float,
        chain: int = 3,
        substeps: int = 1,
        suzuki_yoshida: int = 3,
        remove_com: bool = False,
    ) -> None:
        """Raises ConfigError if a value is not usable."""
        self.timestep, self.remove_com = positive("timestep", timestep), remove_com
        self.temperature = Target("temperature", temperature, positive=True)
        self.chain = Chain(check_damping("damping", damping, self.timestep), chain, substeps, suzuki_yoshida)

    def settings(self) -> dict[str, Any]:
        """Name and parameters as plain values."""
        return {
            "ensemble": self.name, "timestep": self.timestep, "temperature": self.temperature.plain(),
            "remove_com": self.remove_com, **self.chain.settings(),
        }  # fmt: skip

    def start(self, state: State) -> None:
        """Stop frozen atoms, count the degrees of freedom, and put the chain at rest.

        Raises:
            ConfigError: if there is not one temperature or one for each replica, or the centre of mass cannot be stopped.
        """
        self.temperature.check(state.size)
        start_global_thermostat(state, self.name, self.remove_com)
        state.extra.setdefault("nose-hoover.chain", zeros(state, state.size, self.chain.links))
        state.extra.setdefault("nose-hoover.energy", zeros(state, state.size))

    def advance(self, state: State, forces: Forces, steps: int) -> None:
        """Make steps."""
        if state.device.type != "cpu":
            self.advance_torch(state, forces, steps)
            return
        atoms = atoms_of(state)
        unit = self.temperature.at_host(0, state.size) * (BOLTZMANN * self.chain.damping**2)
        bath = (self.chain.shares, unit, *(state.extra[f"nose-hoover.{name}"].numpy() for name in ("chain", "energy")))
        for left in range(steps, 0, -1):
            temperature = self.temperature.at_host(state.step, state.size)
            _before_forces(self.timestep, *atoms, temperature, bath)
            forces.compute(state, energy=left == 1)
            _after_forces(self.timestep, *atoms, temperature, bath, self.remove_com)
            state.step += 1

    def advance_torch(self, state: State, forces: Forces, steps: int) -> None:
        """`advance` by PyTorch, on any device; a CPU takes compiled functions for the same arithmetic."""
        factor, mass = half_kick(state, self.timestep), self._masses(state)
        for left in range(steps, 0, -1):
            self._thermostat(state, mass)
            verlet(state, forces, factor, self.timestep, energy=left == 1)
            self._thermostat(state, mass)
            if self.remove_com:
                remove_momentum(state)
            state.step += 1

    def conserved(self, state: State) -> Tensor:
        """Extended energy, [B] eV."""
        links = self.chain.kinetic_energy(self._masses(state), state.extra["nose-hoover.chain"])
        return total_energy(state) + links + state.extra["nose-hoover.energy"]

    def _masses(self, state: State) -> Tensor:
        return self.chain.masses(state.degrees, self.temperature.at(0, state.degrees))

    def _thermostat(self, state: State, mass: Tensor) -> None:
        """Half a step of the chain."""
        scale = self.chain.propagate(
            0.5 * self.timestep, state.kinetic_energy(), state.degrees, self.temperature.at(state.step, state.degrees), mass,
            state.extra["nose-hoover.chain"], state.extra["nose-hoover.energy"],
        )  # fmt: skip
        scale_velocities(state, scale)


@inlined
def _thermostat(r, lo, hi, time, v, masses, mobile, degrees, temperature, bath):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """Half a step of a replica's chain."""
    shares, unit, chain, energy = bath
    kinetic, kt = kinetic_energy(v, masses, mobile, lo, hi), BOLTZMANN * temperature[r]
    scale_one(v, lo, hi, propagate_chain(0.5 * time, shares, kinetic, degrees[r], kt, unit[r], chain, r, energy))


@compiled
def _before_forces(time, offsets, x, v, f, masses, mobile, degrees, temperature, bath):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The part of a step that comes before the forces."""
    for r in range(len(degrees)):
        lo, hi = offsets[r], offsets[r + 1]
        _thermostat(r, lo, hi, time, v, masses, mobile, degrees, temperature, bath)
        kick_one(v, f, masses, mobile, lo, hi, 0.5 * time)
        drift_one(x, v, lo, hi, time)


@compiled
def _after_forces(time, offsets, x, v, f, masses, mobile, degrees, temperature, bath, remove_com):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The part that comes after."""
    for r in range(len(degrees)):
        lo, hi = offsets[r], offsets[r + 1]
        kick_one(v, f, masses, mobile, lo, hi, 0.5 * time)
        _thermostat(r, lo, hi, time, v, masses, mobile, degrees, temperature, bath)
        if remove_com:
            remove_momentum_of_one(v, masses, lo, hi)
