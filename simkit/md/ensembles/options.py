"""Options of an ensemble as the command line and recipes give them, and the ensemble that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self

from pydantic import Field, model_validator

from simkit.config import Options
from simkit.md.ensembles.bussi import Bussi
from simkit.md.ensembles.langevin import Langevin
from simkit.md.ensembles.martyna_tobias_klein import MartynaTobiasKlein
from simkit.md.ensembles.nose_hoover import NoseHooverChain
from simkit.md.ensembles.nve import NVE
from simkit.md.ensembles.stochastic_cell import StochasticCell
from simkit.md.ensembles.targets import Ramp
from simkit.md.protocols import Ensemble
from simkit.units import GPA

EnsembleName = Literal["nve", "langevin", "nvt", "nose-hoover", "bussi", "scr", "npt", "mtk"]


class EnsembleOptions(Options):
    """Which ensemble, and its parameters. What an ensemble does not know must be left out.

    Attributes:
        ensemble: "nve"; at constant temperature "langevin" (or "nvt"), "nose-hoover", "bussi"; at constant pressure, too, "scr" (or
            "npt"; stochastic cell rescaling), "mtk" (Martyna, Tobias, Klein).
        timestep: fs.
        scheme: integrator of "nve" and "langevin" (`simkit.integrators.available`); None for velocity Verlet and BAOAB.
        temperature: K; a number, or one for each replica. final_temperature: where a ramp from it ends.
        pressure: GPa, positive under compression; likewise final_pressure.
        ramp_steps: length of the ramps of temperature and pressure.
        friction: of "langevin", 1/fs.
        damping: fs, of the chains of "nose-hoover" and "mtk". pressure_damping: fs, of the cell of "mtk".
        chain: links of the chains.
        time_constant: fs, of the velocity rescaling of "bussi" and "scr". pressure_time: fs, of the cell of "scr".
        compressibility: of "scr", 1/GPa; a guess is enough, it sets the pace only. Water has 0.45, silicon 0.01.
        coupling: of the cell, "isotropic" or "anisotropic" (all of its shape).
        seed: of the random numbers of "langevin", "bussi" and "scr".
        remove_com: whether to stop the centre of mass after each step; not for "nve" and "langevin".
    """

    ensemble: EnsembleName = "nve"
    timestep: float = Field(0.5, gt=0, allow_inf_nan=False)
    scheme: str | None = None
    temperature: float | list[float] = 300.0
    final_temperature: float | list[float] | None = None
    pressure: float | list[float] = 1e-4
    final_pressure: float | list[float] | None = None
    ramp_steps: int | None = Field(None, ge=1)
    friction: float = Field(0.01, gt=0, allow_inf_nan=False)
    damping: float = Field(100.0, gt=0, allow_inf_nan=False)
    pressure_damping: float = Field(1000.0, gt=0, allow_inf_nan=False)
    chain: int = Field(3, ge=1)
    time_constant: float = Field(100.0, gt=0, allow_inf_nan=False)
    pressure_time: float = Field(1000.0, gt=0, allow_inf_nan=False)
    compressibility: float = Field(0.1, gt=0, allow_inf_nan=False)
    coupling: Literal["isotropic", "anisotropic"] = "isotropic"
    seed: int = Field(0, ge=0, lt=2**64)
    remove_com: bool = False

    @model_validator(mode="after")
    def _only_what_the_ensemble_knows(self) -> Self:
        foreign = sorted(self.model_fields_set - KNOWN[self.ensemble] - {"ensemble", "timestep"})
        foreign = [name for name in foreign if getattr(self, name) != type(self).model_fields[name].default]
        if foreign:
            raise ValueError(f"the ensemble {self.ensemble} has no {foreign[0]}; leave it out")
        if (self.ramp_steps is None) != (self.final_temperature is None and self.final_pressure is None):
            raise ValueError("a ramp needs ramp_steps and final_temperature or final_pressure")
        return self


_THERMAL = {"temperature", "final_temperature", "ramp_steps"}
_BARIC = {"pressure", "final_pressure", "coupling", "remove_com"}
_LANGEVIN = _THERMAL | {"friction", "seed", "scheme"}
_SCR = _THERMAL | _BARIC | {"time_constant", "pressure_time", "compressibility", "seed"}
KNOWN: dict[str, set[str]] = {
    "nve": {"scheme"},
    "langevin": _LANGEVIN,
    "nvt": _LANGEVIN,
    "nose-hoover": _THERMAL | {"damping", "chain", "remove_com"},
    "bussi": _THERMAL | {"time_constant", "seed", "remove_com"},
    "scr": _SCR,
    "npt": _SCR,
    "mtk": _THERMAL | _BARIC | {"damping", "pressure_damping", "chain"},
}
"""The options that each ensemble knows, besides its name and the timestep."""


def _nve(o: EnsembleOptions) -> NVE:
    return NVE(o.timestep, o.scheme or "velocity-verlet")


def _langevin(o: EnsembleOptions) -> Langevin:
    return Langevin(o.timestep, _temperature(o), o.friction, o.seed, o.scheme or "baoab")


def _nose_hoover(o: EnsembleOptions) -> NoseHooverChain:
    return NoseHooverChain(o.timestep, _temperature(o), o.damping, o.chain, remove_com=o.remove_com)


def _bussi(o: EnsembleOptions) -> Bussi:
    return Bussi(o.timestep, _temperature(o), o.time_constant, o.seed, o.remove_com)


def _scr(o: EnsembleOptions) -> StochasticCell:
    return StochasticCell(
        o.timestep, _temperature(o), _pressure(o), o.compressibility / GPA, o.time_constant, o.pressure_time, o.seed,
        o.coupling, o.remove_com,
    )  # fmt: skip


def _mtk(o: EnsembleOptions) -> MartynaTobiasKlein:
    return MartynaTobiasKlein(
        o.timestep, _temperature(o), _pressure(o), o.damping, o.pressure_damping, o.coupling, o.chain,
        remove_com=o.remove_com,
    )  # fmt: skip


ENSEMBLES: dict[str, Callable[[EnsembleOptions], Ensemble]] = {
    "nve": _nve, "langevin": _langevin, "nvt": _langevin, "nose-hoover": _nose_hoover, "bussi": _bussi, "scr": _scr,
    "npt": _scr, "mtk": _mtk,
}  # fmt: skip
"""Name -> what makes the ensemble of options."""


def ensemble_from_options(options: EnsembleOptions) -> Ensemble:
    """Return the ensemble that options stand for.

    Raises:
        ConfigError: if a value is not usable.
    """
    return ENSEMBLES[options.ensemble](options)


def _temperature(o: EnsembleOptions) -> float | list[float] | Ramp:
    if o.final_temperature is None or o.ramp_steps is None:
        return o.temperature
    return Ramp(o.temperature, o.final_temperature, o.ramp_steps)


def _pressure(o: EnsembleOptions) -> list[float] | Ramp:
    first = _internal(o.pressure)
    if o.final_pressure is None or o.ramp_steps is None:
        return first
    return Ramp(first, _internal(o.final_pressure), o.ramp_steps)


def _internal(pressure: float | list[float]) -> list[float]:
    """GPa in eV/angstrom^3."""
    return [p * GPA for p in (pressure if isinstance(pressure, list) else [pressure])]
