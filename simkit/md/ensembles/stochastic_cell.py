"""`StochasticCell`: constant pressure by stochastic cell rescaling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simkit.md.ensembles.degrees import remove_momentum
from simkit.md.ensembles.noise import ReplicaNoise
from simkit.md.ensembles.rescaling import VelocityRescaling
from simkit.md.ensembles.strain import (
    check_coupling,
    deform,
    exponential,
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
