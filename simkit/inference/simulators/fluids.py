"""Liquids of one kind of atom: a short molecular dynamics simulation for each set of parameters."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from simkit import integrators
from simkit.classical import LennardJones, Morse
from simkit.errors import ConfigError, SimkitError
from simkit.inference.priors import Array, Prior
from simkit.inference.simulator import Seeds, Simulator
from simkit.inference.simulators.fluid_observables import FS_PER_PS, Measurement, Motion
from simkit.inference.simulators.quantities import Quantities, Quantity, positive
from simkit.inference.simulators.small_box import SmallBox, fill_forces, lattice, lattice_order
from simkit.inference.simulators.streams import INITIAL, RESCALING
from simkit.integrators import Bath, cpu
from simkit.integrators.philox import normals
from simkit.kernels.threads import run_tasks, task_count
from simkit.md.ensembles.compiled import words
from simkit.md.ensembles.rescaling import rescaling_factor
from simkit.units import BOLTZMANN, FORCE_TO_ACCELERATION

AMU_PER_CUBIC_ANGSTROM = 1.66053906660
"""In g/cm^3."""
MELTING = 3.0
"""kT over the depth of the potential at which the lattice is melted: more than any density of a liquid withstands."""
BATH_FRICTION, THERMOSTAT_TIME = 2e-3, 1000.0
"""1/fs before anything is measured, and fs while it is."""
SKIN = 1.0
LAGS = tuple(np.linspace(0.1, 2.0, 20).round(6).tolist())
"""ps, of the mean squared displacement and the autocorrelation of velocities."""
SOLID = 0.5
"""`lattice_order` from which a lattice counts as not molten: crystals below their melting point have more, liquids 0.1."""
HOT = 0.2
"""Relative deviation of the mean temperature that a sound simulation of a hundred atoms never has."""
_STATE = {"temperature": Quantity("K", 94.4, 0.0, open=True), "friction": Quantity("1/ps", 0.0, 0.0)}


class Fluid(Simulator):
    """What the fluids have in common: see `LennardJonesFluid`. A subclass gives the pair potential and its quantities."""

    known: ClassVar[Mapping[str, Quantity]]
    default_prior: ClassVar[Mapping[str, Any]]

    def __init__(
        self,
        prior: Prior | Mapping[str, Any] | None = None,
        *,
        fixed: Mapping[str, float] | None = None,
        density: float = 1.374,
        mass: float = 39.948,
        atoms: int = 108,
        observables: Sequence[str] = ("rdf", "pressure", "diffusion"),
        rdf_range: tuple[float, float] = (3.0, 8.4),
        rdf_bins: int = 27,
        lags: Sequence[float] = LAGS,
        diffusion_lags: tuple[float, float] = (1.0, 4.0),
        viscosity: float | None = None,
        cutoff: float = 8.5,
        timestep: float = 0.01,
        equilibration: int = 1500,
        steps: int = 3000,
        every: int = 10,
    ) -> None:
        self._quantities = Quantities(self.name, self.known, self.default_prior if prior is None else prior, fixed)
        self.prior = self._quantities.prior
        positive(self.name, density=density, mass=mass, cutoff=cutoff, timestep=timestep)
        if min(equilibration, every) < 1 or steps < 10 * every:
            raise ConfigError(
                f"{self.name}: expected positive equilibration and every, and steps of ten frames at least; found {equilibration}, "
                f"{every} and {steps}"
            )
        self.density, self.mass, self.atoms = float(density), float(mass), atoms
        self.length = (atoms * self.mass * AMU_PER_CUBIC_ANGSTROM / self.density) ** (1 / 3)
        self._lattice = lattice(atoms, self.length)
        if not 2 * cutoff <= self.length:
            raise ConfigError(
                f"{self.name}: the cutoff must be at most half of the cube, {self.length / 2:.3f} angstrom; found {cutoff}; take more "
                "atoms or a shorter cutoff"
            )
        self.cutoff, self.timestep = float(cutoff), float(timestep)
        self.equilibration, self.steps, self.every = equilibration, steps, every
        bounds = (float(rdf_range[0]), float(rdf_range[1])), (float(diffusion_lags[0]), float(diffusion_lags[1]))
        self._measure = Measurement(tuple(observables), bounds[0], rdf_bins, tuple(lags), bounds[1], viscosity)
        self._measure.check(self.name, self.length, timestep * every, steps // every)
        self.observables = self._measure.observables()

    @abstractmethod
    def term(self, values: Mapping[str, float]) -> LennardJones | Morse:
        """Return the pair potential in eV and angstrom."""

    @abstractmethod
    def depth(self, values: Mapping[str, float]) -> float:
        """Return the depth of the potential, K."""

    def settings(self) -> dict[str, Any]:
        measured = {
            "rdf_range": list(self._measure.rdf_range), "diffusion_lags": list(self._measure.diffusion_lags),
            "viscosity": self._measure.viscosity,
        }  # fmt: skip
        names = ("density", "mass", "atoms", "cutoff", "timestep", "equilibration", "steps", "every")
        return self._quantities.describe() | {name: getattr(self, name) for name in names} | measured

    def simulate(self, theta: Array, seeds: Seeds) -> Array:
        out = np.full((len(theta), self.size), np.nan)
        rows = np.flatnonzero(self._quantities.possible(theta))
        columns = {name: self._quantities.column(theta, name) for name in self.known}
        tasks = task_count(max(1, len(rows)))

        def run(task: int) -> None:
            for i in rows[task::tasks]:
                values = {name: float(column[i]) for name, column in columns.items()}
                with np.errstate(all="ignore"):  # what overflows ends as NaN
                    found = self._run(values, int(seeds[i]))
                if found is not None and np.isfinite(found).all():
                    out[i] = found

        run_tasks(run, tasks)
        return out

    def _run(self, values: Mapping[str, float], seed: int) -> Array | None:
        """Return the observables of one simulation, None where it failed."""
        box = SmallBox(self.term(values), self.length, self.atoms, SKIN)
        inertia, kt = self.mass / FORCE_TO_ACCELERATION, BOLTZMANN * values["temperature"]
        hot = max(kt, MELTING * BOLTZMANN * self.depth(values))
        x = self._lattice.copy()
        v = normals(seed, 0, 0, np.arange(self.atoms), INITIAL)[:, :3] * math.sqrt(hot / inertia)
        arrays = (x, v, np.empty_like(x), np.full(self.atoms, inertia))
        engine = cpu.Integrator(integrators.get("baoab"), fill_forces, *arrays, arguments=box.arguments)
        engine.evaluate_forces()
        h, melting = self.timestep * FS_PER_PS, self.equilibration // 3
        engine.run(melting, timestep=h, bath=Bath(BATH_FRICTION, hot, seed))
        bath = Bath(BATH_FRICTION, kt, seed)
        engine.run(self.equilibration - melting, timestep=h, first_step=melting, bath=bath)
        if not np.isfinite(x).all() or lattice_order(x, self.length) > SOLID:
            return None
        try:
            motion = self._observe(values, seed, box, engine, arrays)
            return None if motion is None else self._measure(motion)
        except SimkitError:
            return None

    def _observe(
        self, values: Mapping[str, float], seed: int, box: SmallBox, engine: cpu.Integrator, arrays: tuple[Array, ...]
    ) -> Motion | None:
        x, v, _, masses = arrays
        frames, h = self.steps // self.every, self.timestep * FS_PER_PS
        kt, friction = BOLTZMANN * values["temperature"], values["friction"] / FS_PER_PS
        bath = Bath(friction, kt, seed) if self._damped else None
        degrees = float(v.size if self._damped else v.size - 3)
        if not self._damped:
            v -= v.mean(axis=0)
            engine = cpu.Integrator(integrators.get("velocity-verlet"), fill_forces, *arrays, arguments=box.arguments)
        decay = self.every * h / THERMOSTAT_TIME
        positions, energies, virials = np.empty((frames, *x.shape)), np.empty(frames), np.empty(frames)
        velocities = np.empty((frames if self._measure.needs_velocities() else 0, *x.shape))
        kinetic = np.empty(frames)
        for k in range(frames):
            engine.run(self.every, timestep=h, first_step=self.equilibration + k * self.every, bath=bath)
            positions[k], (energies[k], virials[k]) = x, box.sums
            kinetic[k] = 0.5 * masses[0] * np.vdot(v, v)
            if len(velocities):
                velocities[k] = v
            if not self._damped:
                numbers = (math.exp(-decay), -math.expm1(-decay), *words(seed, k, RESCALING))
                v *= rescaling_factor(kinetic[k], degrees, values["temperature"], np.uint64(0), numbers)
        if not abs(2 * kinetic.mean() / (degrees * kt) - 1) < HOT or not np.isfinite(positions).all():
            return None
        energy, pressure = box.beyond()
        pressures = (self.atoms * kt + virials / 3) / box.volume + pressure
        return Motion(positions, velocities, self.every * h, energies + energy, pressures, self.length, kt)

    @property
    def _damped(self) -> bool:
        """Whether friction and noise act while anything is measured."""
        return self._quantities.is_free("friction") or self._quantities.fixed["friction"] > 0


class LennardJonesFluid(Fluid):
    """A liquid of Lennard-Jones atoms at a given density and temperature, by molecular dynamics.

    A face-centred lattice in a periodic cube is melted at kT = 3 epsilon, brought to the temperature, and followed while observables
    are averaged. Without friction the equation of motion is Newton's (velocity Verlet), and between two frames velocities are rescaled
    by the thermostat of `simkit.md.ensembles.rescaling` with a time constant of 1 ps: temperatures fluctuate as they should, and
    the motion of an atom is left almost as it is. With friction it is Langevin's (BAOAB).

    The potential is cut, energy and pressure are corrected for what lies beyond. Diffusion is that of the periodic cell, unless
    ``viscosity`` is given. `simkit.inference.simulators.fluid_observables.MEASURED` lists the observables with their units.

    A simulation fails where the lattice has not molten, numbers overflow, or the temperature is not what was asked for. What freezes
    from the melt is not a failure: its observables are those of a solid.

    | Quantity | Unit | Default |
    | --- | --- | --- |
    | epsilon, depth over Boltzmann's constant | K | 120 |
    | sigma, diameter | angstrom | 3.4 |
    | temperature | K | 94.4 |
    | friction | 1/ps | 0 |

    The defaults are those of A. Rahman, Phys. Rev. 136, A405 (1964).

    Args:
        prior: of those quantities that are free, a `Prior` or what `prior_from` takes; by default of epsilon and sigma.
        fixed: values of quantities that are not free.
        density: g/cm^3. mass: of an atom, amu.
        atoms: 4 n^3.
        observables: names, in the order of the output.
        rdf_range, rdf_bins, lags, diffusion_lags, viscosity: see `simkit.inference.simulators.fluid_observables.Measurement`.
        cutoff: angstrom, at most half of the cube.
        timestep: ps.
        equilibration: steps before anything is measured, a third of them for melting. steps: while it is.
        every: steps between two frames.

    Raises:
        ConfigError: if a setting is not usable.
    """

    name = "lennard_jones"
    known = _STATE | {
        "epsilon": Quantity("K", 120.0, 0.0, open=True),
        "sigma": Quantity("angstrom", 3.4, 0.0, open=True),
    }
    default_prior: ClassVar[Mapping[str, Any]] = {
        "epsilon": {"uniform": [90.0, 150.0]},
        "sigma": {"uniform": [3.2, 3.6]},
    }

    def term(self, values: Mapping[str, float]) -> LennardJones:
        return LennardJones(values["epsilon"] * BOLTZMANN, values["sigma"], self.cutoff, tail=True)

    def depth(self, values: Mapping[str, float]) -> float:
        return values["epsilon"]


class MorseFluid(Fluid):
    """A liquid of atoms under the Morse potential, otherwise as `LennardJonesFluid`, without a correction beyond the cutoff.

    | Quantity | Unit | Default |
    | --- | --- | --- |
    | depth over Boltzmann's constant | K | 120 |
    | alpha, inverse width | 1/angstrom | 1.572 |
    | distance of the minimum | angstrom | 3.816 |
    | temperature | K | 94.4 |
    | friction | 1/ps | 0 |

    The defaults have minimum and curvature of the default Lennard-Jones potential: 2^(1/6) sigma, and alpha = 6 / (2^(1/6) sigma).
    """

    name = "morse"
    known = _STATE | {
        "depth": Quantity("K", 120.0, 0.0, open=True),
        "alpha": Quantity("1/angstrom", 6 / (2 ** (1 / 6) * 3.4), 0.0, open=True),
        "distance": Quantity("angstrom", 2 ** (1 / 6) * 3.4, 0.0, open=True),
    }
    default_prior: ClassVar[Mapping[str, Any]] = {
        "depth": {"uniform": [90.0, 150.0]}, "alpha": {"uniform": [1.2, 2.0]}, "distance": {"uniform": [3.6, 4.0]},
    }  # fmt: skip

    def term(self, values: Mapping[str, float]) -> Morse:
        return Morse(values["depth"] * BOLTZMANN, values["alpha"], values["distance"], self.cutoff)

    def depth(self, values: Mapping[str, float]) -> float:
        return values["depth"]
