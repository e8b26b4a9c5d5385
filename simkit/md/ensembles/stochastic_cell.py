"""`StochasticCell`: constant pressure by stochastic cell rescaling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simkit.integrators.philox import four_normals
from simkit.md.ensembles.compiled import (
    atoms_of,
    compiled,
    drift_one,
    inlined,
    kick_one,
    kinetic_tensor,
    remove_momentum_of_one,
    scale_one,
    words,
)
from simkit.md.ensembles.degrees import remove_momentum
from simkit.md.ensembles.noise import ReplicaNoise
from simkit.md.ensembles.rescaling import VelocityRescaling, rescaling_factor
from simkit.md.ensembles.strain import (
    apply_to_rows,
    check_coupling,
    deform,
    determinant,
    exponential,
    exponentials,
    inner_virial,
    multiply,
    project,
    start_barostat,
    trace,
    virial,
)
from simkit.md.ensembles.targets import Ramp, Target, Values, positive
from simkit.md.ensembles.verlet import drift, half_kick, kick, scale_velocities, total_energy, zeros
from simkit.md.protocols import Forces
from simkit.md.state import State
from simkit.units import BOLTZMANN

_STREAM = 65533


class StochasticCell:
    """Constant number of atoms, pressure and temperature: the cell diffuses in the potential of its enthalpy; `VelocityRescaling`.

    Isotropic: M. Bernetti, G. Bussi, J. Chem. Phys. 153, 114107 (2020), doi:10.1063/5.0020514. With every shape of the cell:
    V. Del Tatto, P. Raiteri, M. Bernetti, G. Bussi, Appl. Sci. 12, 1139 (2022), doi:10.3390/app12031139. The strain of a step is

        isotropic:    eps = (-(beta / (3 tau)) (P_0 - tr P / 3) h + sqrt(2 kT beta h / (V tau)) R / 3) 1
        anisotropic:  eps =  -(beta / (3 tau)) (P_0 1 - P) h     + sqrt(2 kT beta h / (3 V tau)) R_sym

    with symmetric normal numbers R_sym (variance 1 on the diagonal, 1/2 beside it): the same diffusion as with nine independent
    numbers, less the rotation of the cell. Applied as exp(eps), the terms in kT/V of the equations for the volume and for the cell
    follow from the noise. Positions and cell are multiplied with exp(eps), velocities with exp(-eps), halfway through the drift.

    | Symbol | Meaning | Variable |
    | --- | --- | --- |
    | P | pressure tensor at the start of the step | ``pull`` is V (P_0 1 - P) |
    | P_0, T | targets | ``pressure``, ``temperature`` |
    | beta, tau | compressibility, time constant | ``compressibility``, ``pressure_time`` |
    | h | timestep | ``timestep`` |

    Sampling is right to first order in timestep / pressure_time, and does not depend on the compressibility, which only sets the pace.
    Momentum: as in `Bussi`; with a centre of mass at rest, an ideal gas of N atoms has the volume N kT/P_0 in the mean.

    Conserved: kinetic plus potential energy, less the heat of the thermostat and the work of the barostat since the start. It is the
    effective enthalpy of Bernetti and Bussi but for a constant, and holds for ramps of either target, too. The work is summed by the
    trapezoidal rule along the cell's random path, which leaves an error of first order in the timestep, without a drift.

    | Quantity | Variable |
    | --- | --- |
    | heat and work, eV | ``state.extra["scr.heat"]`` [B], ``state.extra["scr.work"]`` [B] |

    Attributes:
        timestep, temperature_time, pressure_time: fs. temperature: K. pressure: eV/angstrom^3. compressibility: angstrom^3/eV.
        seed: of the random numbers. coupling: "isotropic", or "anisotropic" for cells that change their shape.
        remove_com: whether to stop the centre of mass after each step, for forces whose sum is not quite zero.
    """

    name = "scr"
    needs_stress = True

    def __init__(
        self,
        timestep: float,
        temperature: Values | Ramp,
        pressure: Values | Ramp,
        compressibility: float,
        temperature_time: float,
        pressure_time: float,
        seed: int,
        coupling: str = "isotropic",
        remove_com: bool = False,
    ) -> None:
        """Raises ConfigError if a value is not usable."""
        self.timestep, self.remove_com = positive("timestep", timestep), remove_com
        self.temperature = Target("temperature", temperature, positive=True)
        self.pressure = Target("pressure", pressure, positive=False)
        self.compressibility = positive("compressibility", compressibility)
        self.pressure_time = positive("pressure_time", pressure_time)
        self.thermostat = VelocityRescaling(self.timestep, positive("temperature_time", temperature_time), seed)
        self.coupling = check_coupling(coupling)
        self._noise = ReplicaNoise(seed, _STREAM)

    def settings(self) -> dict[str, Any]:
        """Name and parameters as plain values."""
        return {
            "ensemble": self.name, "timestep": self.timestep, "temperature": self.temperature.plain(),
            "pressure": self.pressure.plain(), "compressibility": self.compressibility,
            "temperature_time": self.thermostat.time_constant, "pressure_time": self.pressure_time,
            "seed": self._noise.seed, "coupling": self.coupling, "remove_com": self.remove_com,
        }  # fmt: skip

    def start(self, state: State) -> None:
        """Count the degrees of freedom, and begin to count heat and work.

        Raises:
            ConfigError: if there is not one target or one for each replica, or a replica cannot have a constant pressure.
        """
        self.temperature.check(state.size)
        self.pressure.check(state.size)
        start_barostat(state, self.name, self.remove_com)
        self.thermostat.prepare(state)
        for variable in ("heat", "work"):
            state.extra.setdefault(f"scr.{variable}", zeros(state, state.size))

    def advance(self, state: State, forces: Forces, steps: int) -> None:
        """Make steps."""
        if state.device.type != "cpu":
            self.advance_torch(state, forces, steps)
            return
        atoms, cells = atoms_of(state), (state.cells.numpy(), state.stress.numpy())
        heat, work = (state.extra[f"scr.{name}"].numpy() for name in ("heat", "work"))
        memory = np.empty((2, state.size, 6))  # pressure tensor times volume, and strain
        mobility = self.compressibility / (3 * self.pressure_time), self.coupling == "isotropic"
        for left in range(steps, 0, -1):
            targets = tuple(target.at_host(state.step, state.size) for target in (self.temperature, self.pressure))
            key = words(self._noise.seed, state.step, _STREAM)
            _before_forces(self.timestep, *atoms, *cells, state.replicas, targets, mobility, key, memory)
            forces.compute(state, energy=left == 1, stress=True)
            numbers = self.thermostat.numbers(state.step)
            _after_forces(
                self.timestep, *atoms, *cells, state.replicas, targets[0], numbers, memory, heat, work, self.remove_com
            )
            state.step += 1

    def advance_torch(self, state: State, forces: Forces, steps: int) -> None:
        """`advance` by PyTorch, on any device; a CPU takes compiled functions for the same arithmetic."""
        factor, half = half_kick(state, self.timestep), 0.5 * self.timestep
        heat, work = state.extra["scr.heat"], state.extra["scr.work"]
        for left in range(steps, 0, -1):
            temperature, pressure = (target.at(state.step, heat) for target in (self.temperature, self.pressure))
            inner = state.kinetic_tensor() - virial(state)
            strain = self._strain(state, inner, temperature, pressure)
            kick(state, factor)
            drift(state, half)
            scale, back = exponential(strain), exponential(-strain)
            state.positions.copy_(multiply(state.positions, scale, state.structure))
            state.velocities.copy_(multiply(state.velocities, back, state.structure))
            deform(state.cells, scale)
            drift(state, half)
            forces.compute(state, energy=left == 1, stress=True)
            kick(state, factor)
            tensor = state.kinetic_tensor()
            work.sub_(0.5 * ((inner + tensor - virial(state)) * strain).sum((1, 2)))
            kinetic = 0.5 * trace(tensor)
            alpha = self.thermostat.factor(state, kinetic, temperature)
            scale_velocities(state, alpha)
            heat.add_((alpha**2 - 1) * kinetic)
            if self.remove_com:
                remove_momentum(state)
            state.step += 1

    def conserved(self, state: State) -> Tensor:
        """Total energy less heat and work, [B] eV."""
        return total_energy(state) - state.extra["scr.heat"] - state.extra["scr.work"]

    def _strain(self, state: State, inner: Tensor, temperature: Tensor, pressure: Tensor) -> Tensor:
        """The strain of the step that comes, [B, 3, 3]; ``inner`` is the pressure tensor times the volume."""
        volume = state.volume()
        pull = project(torch.diag_embed((pressure * volume)[:, None].expand(-1, 3)) - inner, self.coupling)
        pace = (self.compressibility * self.timestep / (3 * self.pressure_time)) / volume
        numbers = self._noise.rows(state, np.full(state.size, 2)).reshape(-1, 8)
        if self.coupling == "isotropic":
            noise = torch.diag_embed(numbers[:, :1].expand(-1, 3)) / math.sqrt(3)
        else:
            beside = numbers[:, 3:6] / math.sqrt(2)
            rows = [numbers[:, 0], beside[:, 0], beside[:, 1], beside[:, 0], numbers[:, 1], beside[:, 2]]
            noise = torch.stack([*rows, beside[:, 1], beside[:, 2], numbers[:, 2]], dim=1).reshape(-1, 3, 3)
        spread = (2 * BOLTZMANN * temperature * pace).sqrt()
        return spread[:, None, None] * noise - pace[:, None, None] * pull


@inlined
def _strain_of_one(time, volume, inner, temperature, pressure, replica, mobility, key):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """`StochasticCell._strain`."""
    rate, isotropic = mobility
    pace = rate * time / volume
    spread = math.sqrt(2 * BOLTZMANN * temperature * pace)
    name = np.uint64(replica)
    a, b, c, yx = four_normals(np.uint64(0), name, *key)
    if isotropic:
        pull = pressure * volume - (inner[0] + inner[1] + inner[2]) / 3
        strain = spread * (a / math.sqrt(3)) - pace * pull
        return strain, strain, strain, 0.0, 0.0, 0.0
    zx, zy, _, _ = four_normals(np.uint64(1), name, *key)
    beside = spread / math.sqrt(2)
    return (
        spread * a - pace * (pressure * volume - inner[0]),
        spread * b - pace * (pressure * volume - inner[1]),
        spread * c - pace * (pressure * volume - inner[2]),
        beside * zy + pace * inner[3],
        beside * zx + pace * inner[4],
        beside * yx + pace * inner[5],
    )


@compiled
def _before_forces(  # type: ignore[no-untyped-def]  # pragma: no cover
    time, offsets, x, v, f, masses, mobile, degrees, cells, stress, replicas, targets, mobility, key, memory
):
    """The part of a step that comes before the forces."""
    temperature, pressure = targets
    for r in range(len(degrees)):
        lo, hi = offsets[r], offsets[r + 1]
        volume = abs(determinant(cells[r]))
        inner = inner_virial(kinetic_tensor(v, masses, lo, hi), stress[r], volume)
        m = _strain_of_one(time, volume, inner, temperature[r], pressure[r], replicas[r], mobility, key)
        for k in range(6):
            memory[0, r, k], memory[1, r, k] = inner[k], m[k]
        kick_one(v, f, masses, mobile, lo, hi, 0.5 * time)
        drift_one(x, v, lo, hi, 0.5 * time)
        there, _ = exponentials(m)
        back, _ = exponentials((-m[0], -m[1], -m[2], -m[3], -m[4], -m[5]))
        apply_to_rows(there, x, lo, hi)
        apply_to_rows(back, v, lo, hi)
        apply_to_rows(there, cells[r], 0, 3)
        drift_one(x, v, lo, hi, 0.5 * time)


@compiled
def _after_forces(  # type: ignore[no-untyped-def]  # pragma: no cover
    time, offsets, x, v, f, masses, mobile, degrees, cells, stress, replicas, temperature, numbers, memory, heat, work,
    remove_com,
):  # fmt: skip
    """The part that comes after."""
    for r in range(len(degrees)):
        lo, hi = offsets[r], offsets[r + 1]
        kick_one(v, f, masses, mobile, lo, hi, 0.5 * time)
        tensor = kinetic_tensor(v, masses, lo, hi)
        inner = inner_virial(tensor, stress[r], abs(determinant(cells[r])))
        for k in range(6):
            work[r] -= (0.5 if k < 3 else 1.0) * (memory[0, r, k] + inner[k]) * memory[1, r, k]
        kinetic = 0.5 * (tensor[0] + tensor[1] + tensor[2])
        alpha = rescaling_factor(kinetic, degrees[r], temperature[r], replicas[r], numbers)
        scale_one(v, lo, hi, alpha)
        heat[r] += (alpha * alpha - 1) * kinetic
        if remove_com:
            remove_momentum_of_one(v, masses, lo, hi)
