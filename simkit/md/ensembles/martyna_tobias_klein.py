"""`MartynaTobiasKlein`: constant pressure by a cell with inertia, and Nosé-Hoover chains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simkit.md.ensembles.chain import Chain, check_damping
from simkit.md.ensembles.degrees import remove_momentum
from simkit.md.ensembles.strain import (
    check_coupling,
    deform,
    exponential,
    exponential_mean,
    multiply,
    project,
    start_barostat,
    trace,
    virial,
)
from simkit.md.ensembles.targets import Ramp, Target, Values, positive
from simkit.md.ensembles.verlet import half_kick, scale_velocities, total_energy, zeros
from simkit.md.protocols import Forces
from simkit.md.state import State
from simkit.units import BOLTZMANN


class MartynaTobiasKlein:
    """Constant number of atoms, pressure and temperature: a cell that moves like a particle, and chains on the atoms and on the cell.

    G. J. Martyna, D. J. Tobias, M. L. Klein, J. Chem. Phys. 101, 4177 (1994), doi:10.1063/1.467468, equations 2.2 (isotropic) and 2.9
    (flexible); the factorization of Martyna, Tuckerman, Tobias, Klein, Mol. Phys. 87, 1117 (1996), doi:10.1080/00268979600100761, section
    5, with the exact flows of section 5.12 of M. E. Tuckerman, Statistical Mechanics (2010), for velocities and positions:

        dr/dt = v + v_g r           dv/dt = F/m - v_g v - (tr v_g / N_f) v           dh/dt = v_g h
        W dv_g/dt = V (P - P_0 1) + (2 K / N_f) 1

    | Symbol | Meaning | Variable |
    | --- | --- | --- |
    | v_g | rate of strain of the cell, 1/fs | ``state.extra["mtk.rate"]`` [B, 3, 3] |
    | W | (N_f + 3) kT tau_p^2 / 3, eV fs^2 | ``_inertia`` |
    | N_f, K | degrees of freedom and kinetic energy of the atoms | ``state.degrees``, ``kinetic`` |
    | P, P_0 | pressure tensor, target | ``_push``, ``pressure`` |
    | tau_p, tau | damping times of cell and chains | ``pressure_damping``, ``damping`` |
    | v_xi | velocities of the links, of the atoms' and the cell's chain | ``state.extra["mtk.chain"]`` [B, 2, M] |
    | | potential energy of the two baths, eV | ``state.extra["mtk.energy"]`` [B, 2] |
    | | integral of P_0 dV, from P_0 V at the start, eV | ``state.extra["mtk.work"]`` [B] |

    One matrix does both couplings: where the coupling is isotropic, v_g is a multiple of one (1 degree of freedom). Otherwise it is
    symmetric (6 degrees of freedom), so that the cell does not gain angular momentum. The step is reversible.

    Momentum: as in `NoseHooverChain`; with a centre of mass at rest, an ideal gas of N atoms has the volume N kT/P_0 in the mean.

    Conserved: kinetic and potential energy of atoms, cell and chains, and the work, also with ramps of either target. Inertia and the
    masses of the chains are those of the temperature in the first step of the simulation.

    Attributes:
        timestep, damping, pressure_damping: fs. temperature: K. pressure: eV/angstrom^3.
        coupling: "isotropic", or "anisotropic" for cells that change their shape.
        chain: number of links. substeps, suzuki_yoshida: repetitions and weights of the chains' factorization.
        remove_com: whether to stop the centre of mass after each step, for forces whose sum is not quite zero.
    """

    name = "mtk"
    needs_stress = True

    def __init__(
        self,
        timestep: float,
        temperature: Values | Ramp,
        pressure: Values | Ramp,
        damping: float,
        pressure_damping: float,
        coupling: str = "isotropic",
        chain: int = 3,
        substeps: int = 1,
        suzuki_yoshida: int = 3,
        remove_com: bool = False,
    ) -> None:
        """Raises ConfigError if a value is not usable."""
        self.timestep, self.remove_com = positive("timestep", timestep), remove_com
        self.temperature = Target("temperature", temperature, positive=True)
        self.pressure = Target("pressure", pressure, positive=False)
        self.chain = Chain(check_damping("damping", damping, self.timestep), chain, substeps, suzuki_yoshida)
        self.pressure_damping = check_damping("pressure_damping", pressure_damping, self.timestep)
        self.coupling = check_coupling(coupling)

    def settings(self) -> dict[str, Any]:
        """Name and parameters as plain values."""
        return {
            "ensemble": self.name, "timestep": self.timestep, "temperature": self.temperature.plain(),
            "pressure": self.pressure.plain(), "pressure_damping": self.pressure_damping, "coupling": self.coupling,
            "remove_com": self.remove_com, **self.chain.settings(),
        }  # fmt: skip

    def start(self, state: State) -> None:
        """Count the degrees of freedom, and put cell and chains at rest.

        Raises:
            ConfigError: if there is not one target or one for each replica, or a replica cannot have a constant pressure.
        """
        self.temperature.check(state.size)
        self.pressure.check(state.size)
        start_barostat(state, self.name, self.remove_com)
        b = state.size
        shapes = {"rate": (b, 3, 3), "chain": (b, 2, self.chain.links), "energy": (b, 2)}
        for variable, shape in shapes.items():
            state.extra.setdefault(f"mtk.{variable}", zeros(state, *shape))
        state.extra.setdefault("mtk.work", self.pressure.at(state.step, state.degrees) * state.volume())

    def advance(self, state: State, forces: Forces, steps: int) -> None:
        """Make steps."""
        factor, mass, inertia = half_kick(state, self.timestep), self._masses(state), self._inertia(state)
        work = state.extra["mtk.work"]
        for left in range(steps, 0, -1):
            pressure = self.pressure.at(state.step, work)
            self._thermostat(state, mass, inertia)
            self._push(state, pressure, inertia)
            self._kick(state, factor)
            before = state.volume()
            self._drift(state)
            work.add_(pressure * (state.volume() - before))
            forces.compute(state, energy=left == 1, stress=True)
            self._kick(state, factor)
            self._push(state, pressure, inertia)
            self._thermostat(state, mass, inertia)
            if self.remove_com:
                remove_momentum(state)
            state.step += 1

    def conserved(self, state: State) -> Tensor:
        """Extended enthalpy, [B] eV."""
        mass, extra = self._masses(state), state.extra
        links = self.chain.kinetic_energy(mass, extra["mtk.chain"]) + extra["mtk.energy"]
        return total_energy(state) + self._cell_energy(state, self._inertia(state)) + links.sum(1) + extra["mtk.work"]

    def _degrees(self, state: State) -> Tensor:
        """Of atoms and cell, [B, 2]."""
        return torch.stack([state.degrees, torch.full_like(state.degrees, 1 if self.coupling == "isotropic" else 6)], 1)

    def _masses(self, state: State) -> Tensor:
        """Of the links, [B, 2, M]."""
        return self.chain.masses(self._degrees(state), self.temperature.at(0, state.degrees)[:, None])

    def _inertia(self, state: State) -> Tensor:
        """W, [B]."""
        kt = BOLTZMANN * self.temperature.at(0, state.degrees)
        return (state.degrees + 3) * kt * (self.pressure_damping**2 / 3)

    def _cell_energy(self, state: State, inertia: Tensor) -> Tensor:
        """Kinetic energy of the cell, [B] eV."""
        return 0.5 * inertia * (state.extra["mtk.rate"] ** 2).sum((1, 2))

    def _thermostat(self, state: State, mass: Tensor, inertia: Tensor) -> None:
        """Half a step of both chains."""
        kinetic = torch.stack([state.kinetic_energy(), self._cell_energy(state, inertia)], dim=1)
        temperature = self.temperature.at(state.step, state.degrees)[:, None]
        scale = self.chain.propagate(
            0.5 * self.timestep, kinetic, self._degrees(state), temperature, mass,
            state.extra["mtk.chain"], state.extra["mtk.energy"],
        )  # fmt: skip
        scale_velocities(state, scale[:, 0])
        state.extra["mtk.rate"].mul_(scale[:, 1, None, None])

    def _push(self, state: State, pressure: Tensor, inertia: Tensor) -> None:
        """Half a step of the cell's velocity: V (P - P_0) + (2 K / N_f) 1 over W."""
        tensor = state.kinetic_tensor()
        diagonal = trace(tensor) / state.degrees - pressure * state.volume()
        force = tensor - virial(state) + torch.diag_embed(diagonal[:, None].expand(-1, 3))
        time = 0.5 * self.timestep / inertia
        state.extra["mtk.rate"].add_(project(force, self.coupling) * time[:, None, None])

    def _kick(self, state: State, factor: Tensor) -> None:
        """Half a step of the velocities with the cell's velocity fixed, solved exactly."""
        rate = state.extra["mtk.rate"]
        drag = rate + torch.diag_embed((trace(rate) / state.degrees)[:, None].expand(-1, 3))
        exponent = drag * (-0.5 * self.timestep)
        velocities = multiply(state.velocities, exponential(exponent), state.structure)
        push = multiply(state.forces * factor, exponential_mean(exponent), state.structure)
        torch.add(velocities, push, out=state.velocities)

    def _drift(self, state: State) -> None:
        """A step of positions and cell with velocities fixed, solved exactly."""
        exponent = state.extra["mtk.rate"] * self.timestep
        scale = exponential(exponent)
        positions = multiply(state.positions, scale, state.structure)
        moved = multiply(state.velocities, exponential_mean(exponent), state.structure)
        torch.add(positions, moved, alpha=self.timestep, out=state.positions)
        deform(state.cells, scale)
