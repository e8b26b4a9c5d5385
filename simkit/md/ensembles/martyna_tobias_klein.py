"""`MartynaTobiasKlein`: constant pressure by a cell with inertia, and Nosé-Hoover chains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simkit.md.ensembles.chain import Chain, check_damping, propagate_chain
from simkit.md.ensembles.compiled import (
    atoms_of,
    compiled,
    inlined,
    kinetic_energy,
    kinetic_tensor,
    remove_momentum_of_one,
    scale_one,
)
from simkit.md.ensembles.degrees import remove_momentum
from simkit.md.ensembles.strain import (
    apply,
    apply_to_rows,
    check_coupling,
    deform,
    determinant,
    exponential,
    exponential_mean,
    exponentials,
    inner_virial,
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
from simkit.units import BOLTZMANN, FORCE_TO_ACCELERATION


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
        if state.device.type != "cpu":
            self.advance_torch(state, forces, steps)
            return
        atoms, cells = atoms_of(state), (state.cells.numpy(), state.stress.numpy(), state.extra["mtk.rate"].numpy())
        first, links = self.temperature.at_host(0, state.size) * BOLTZMANN, self.chain.links
        baths = (
            self.chain.shares, first * self.chain.damping**2, first * (self.pressure_damping**2 / 3),
            state.extra["mtk.chain"].view(-1, links).numpy(), state.extra["mtk.energy"].view(-1).numpy(),
            self.coupling == "isotropic",
        )  # fmt: skip
        work = state.extra["mtk.work"].numpy()
        for left in range(steps, 0, -1):
            targets = tuple(target.at_host(state.step, state.size) for target in (self.temperature, self.pressure))
            _before_forces(self.timestep, *atoms, *cells, targets, baths, work)
            forces.compute(state, energy=left == 1, stress=True)
            _after_forces(self.timestep, *atoms, *cells, targets, baths, self.remove_com)
            state.step += 1

    def advance_torch(self, state: State, forces: Forces, steps: int) -> None:
        """`advance` by PyTorch, on any device; a CPU takes compiled functions for the same arithmetic."""
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


@inlined
def _thermostat_one(r, time, kinetic, rate, degrees, temperature, baths):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """`MartynaTobiasKlein._thermostat` but for the velocities: their factor."""
    shares, unit, unit_cell, chain, energy, isotropic = baths
    kt, n = BOLTZMANN * temperature[r], degrees[r]
    cell = 0.0
    for a in range(3):
        for b in range(3):
            cell += rate[r, a, b] * rate[r, a, b]
    cell *= 0.5 * (n + 3) * unit_cell[r]
    free = 1.0 if isotropic else 6.0
    factor = propagate_chain(0.5 * time, shares, kinetic, n, kt, unit[r], chain, 2 * r, energy)
    scale_one(rate[r], 0, 3, propagate_chain(0.5 * time, shares, cell, free, kt, unit[r], chain, 2 * r + 1, energy))
    return factor


@inlined
def _push_one(r, time, volume, tensor, stress, rate, degrees, pressure, baths):  # type: ignore[no-untyped-def]  # pragma: no cover
    """`MartynaTobiasKlein._push`."""
    n, isotropic = degrees[r], baths[5]
    h = 0.5 * time / ((n + 3) * baths[2][r])
    diagonal = (tensor[0] + tensor[1] + tensor[2]) / n - pressure[r] * volume
    xx, yy, zz, yz, xz, xy = inner_virial(tensor, stress[r], volume)
    if isotropic:
        xx = yy = zz = (xx + yy + zz) / 3
        yz = xz = xy = 0.0
    rate[r, 0, 0] += h * (xx + diagonal)
    rate[r, 1, 1] += h * (yy + diagonal)
    rate[r, 2, 2] += h * (zz + diagonal)
    rate[r, 1, 2] += h * yz
    rate[r, 2, 1] = rate[r, 1, 2]
    rate[r, 0, 2] += h * xz
    rate[r, 2, 0] = rate[r, 0, 2]
    rate[r, 0, 1] += h * xy
    rate[r, 1, 0] = rate[r, 0, 1]


@inlined
def _symmetric(matrix, factor, diagonal):  # type: ignore[no-untyped-def]  # pragma: no cover
    """factor (matrix + diagonal 1) as a tuple."""
    return (
        factor * (matrix[0, 0] + diagonal), factor * (matrix[1, 1] + diagonal), factor * (matrix[2, 2] + diagonal),
        factor * matrix[1, 2], factor * matrix[0, 2], factor * matrix[0, 1],
    )  # fmt: skip


@inlined
def _kick_one(lo, hi, time, v, f, masses, rate, degrees):  # type: ignore[no-untyped-def]  # pragma: no cover
    """`MartynaTobiasKlein._kick`."""
    drag = (rate[0, 0] + rate[1, 1] + rate[2, 2]) / degrees
    decay, mean = exponentials(_symmetric(rate, -0.5 * time, drag))
    for i in range(lo, hi):
        a, b, c = apply(decay, v[i, 0], v[i, 1], v[i, 2])
        h = 0.5 * time * FORCE_TO_ACCELERATION / masses[i]
        d, e, g = apply(mean, h * f[i, 0], h * f[i, 1], h * f[i, 2])
        v[i, 0], v[i, 1], v[i, 2] = a + d, b + e, c + g


@inlined
def _drift_one(lo, hi, time, x, v, cell, rate):  # type: ignore[no-untyped-def]  # pragma: no cover
    """`MartynaTobiasKlein._drift`."""
    stretch, mean = exponentials(_symmetric(rate, time, 0.0))
    for i in range(lo, hi):
        a, b, c = apply(stretch, x[i, 0], x[i, 1], x[i, 2])
        d, e, g = apply(mean, v[i, 0], v[i, 1], v[i, 2])
        x[i, 0], x[i, 1], x[i, 2] = a + time * d, b + time * e, c + time * g
    apply_to_rows(stretch, cell, 0, 3)


@compiled
def _before_forces(  # type: ignore[no-untyped-def]  # pragma: no cover
    time, offsets, x, v, f, masses, mobile, degrees, cells, stress, rate, targets, baths, work
):
    """The part of a step that comes before the forces."""
    for r in range(len(degrees)):
        lo, hi = offsets[r], offsets[r + 1]
        kinetic = kinetic_energy(v, masses, mobile, lo, hi)
        scale_one(v, lo, hi, _thermostat_one(r, time, kinetic, rate, degrees, targets[0], baths))
        volume, tensor = abs(determinant(cells[r])), kinetic_tensor(v, masses, lo, hi)
        _push_one(r, time, volume, tensor, stress, rate, degrees, targets[1], baths)
        _kick_one(lo, hi, time, v, f, masses, rate[r], degrees[r])
        _drift_one(lo, hi, time, x, v, cells[r], rate[r])
        work[r] += targets[1][r] * (abs(determinant(cells[r])) - volume)


@compiled
def _after_forces(  # type: ignore[no-untyped-def]  # pragma: no cover
    time, offsets, x, v, f, masses, mobile, degrees, cells, stress, rate, targets, baths, remove_com
):
    """The part that comes after."""
    for r in range(len(degrees)):
        lo, hi = offsets[r], offsets[r + 1]
        _kick_one(lo, hi, time, v, f, masses, rate[r], degrees[r])
        tensor = kinetic_tensor(v, masses, lo, hi)
        _push_one(r, time, abs(determinant(cells[r])), tensor, stress, rate, degrees, targets[1], baths)
        kinetic = 0.5 * (tensor[0] + tensor[1] + tensor[2])
        scale_one(v, lo, hi, _thermostat_one(r, time, kinetic, rate, degrees, targets[0], baths))
        if remove_com:
            remove_momentum_of_one(v, masses, lo, hi)
