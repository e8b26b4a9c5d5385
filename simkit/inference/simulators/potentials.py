"""`PotentialSimulator`: energies and geometries that a neural potential with unknown parameters gives."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from ase import Atoms

from simkit.calculator import Calculator
from simkit.config import nearest
from simkit.errors import ConfigError, SimkitError
from simkit.inference.priors import Array, Prior, prior_from
from simkit.inference.simulator import Observable, Seeds, Simulator
from simkit.inference.simulators.potential_changes import Change, changed, read_change
from simkit.inference.simulators.quantities import Quantities, Quantity, positive
from simkit.inference.simulators.streams import standard_normals
from simkit.md.ensembles import Langevin
from simkit.md.simulation import Simulation
from simkit.md.system import potential_hash
from simkit.potential import Potential
from simkit.potentials import load

FS_PER_PS = 1000.0
_MEASURES = {"distance": (2, "angstrom"), "angle": (3, "degree"), "dihedral": (4, "degree")}
At = Literal["given", "relaxed", "md"]


class PotentialSimulator(Simulator):
    """A neural potential with named free parameters, seen through energies and geometries of structures.

    What a parameter changes is said by `simkit.inference.simulators.potential_changes.Change`: the strength of the interaction,
    reference energies of elements, single weights, options of the physics in it, the way from one model to another. ``temperature`` (K)
    and ``friction`` (1/ps) of the dynamics are there, too.

    Observables, of each structure: "energy" (eV), "forces" (eV/angstrom), "distance 0 1" (angstrom), "angle 0 1 2" and
    "dihedral 0 1 2 3" (degrees) of atoms by their numbers, nearest images in periodic structures. They are those of the structures as
    ``given``, as ``relaxed``, or averages over Langevin ``md`` from there (forces cannot be averaged: their mean is zero).

    A simulation fails where a relaxation does not converge, dynamics break down or the model refuses a geometry.

    Args:
        potential: a model or its file. structures: one or several, or a file that ASE reads.
        prior: of what is free, a `Prior` or what `prior_from` takes.
        parameters: name -> what it changes, such as {"strength": {"scale": "scale"}, "shift": {"add": "reference", "element": "C"}}.
        observables: names; their values end to end are the output.
        at: "given", "relaxed" or "md".
        noise: standard deviation of errors of measurement, by observable; none where not given.
        fixed: values of parameters that are not free; by default 300 K and 10/ps.
        fmax: eV/angstrom, below which a structure is relaxed. relax_steps: at most.
        timestep: ps. equilibration, steps: of the dynamics. every: steps between two frames.

    Raises:
        ConfigError: if a setting is not usable.
        ModelFileError: if the file is not a valid model.
    """

    name = "potential"
    vectorised: ClassVar[bool] = False

    def __init__(
        self,
        potential: Potential | str | os.PathLike[str],
        structures: Atoms | Sequence[Atoms] | str | os.PathLike[str],
        prior: Prior | Mapping[str, Any],
        *,
        parameters: Mapping[str, Mapping[str, Any]] | None = None,
        observables: Sequence[str] = ("energy",),
        at: At = "given",
        noise: Mapping[str, float] | None = None,
        fixed: Mapping[str, float] | None = None,
        fmax: float = 0.01,
        relax_steps: int = 200,
        timestep: float = 0.0005,
        equilibration: int = 200,
        steps: int = 1000,
        every: int = 10,
    ) -> None:
        self.potential = potential if isinstance(potential, Potential) else load(potential)
        self.structures = _structures(structures)
        self.prior = prior if isinstance(prior, Prior) else prior_from(prior)
        entries = parameters or {}
        self._changes: dict[str, Change] = {k: read_change(k, v, self.potential) for k, v in entries.items()}
        self._entries = {k: dict(v) | {"towards": potential_hash(c.target)} if isinstance(c.target, Potential) else dict(v)
                         for (k, v), c in zip(entries.items(), self._changes.values(), strict=True)}  # fmt: skip
        units = dict(zip(self.prior.names, self.prior.units, strict=True))
        known = {name: Quantity(units.get(name, "")) for name in self._changes}
        known |= {
            "temperature": Quantity("K", 300.0, 0.0, open=True),
            "friction": Quantity("1/ps", 10.0, 0.0, open=True),
        }
        self._quantities = Quantities(self.name, known, self.prior, fixed)
        if at not in ("given", "relaxed", "md"):
            raise ConfigError(f"{self.name}: at must be given, relaxed or md; found {at!r}")
        positive(self.name, fmax=fmax, timestep=timestep)
        if min(relax_steps, equilibration, every) < 1 or steps < every:
            raise ConfigError(
                f"{self.name}: relax_steps, equilibration and every must be positive, and steps at least every"
            )
        self.at, self.fmax, self.relax_steps = at, fmax, relax_steps
        self.timestep, self.equilibration, self.steps, self.every = timestep, equilibration, steps, every
        self.potential.check_elements(np.concatenate([a.numbers for a in self.structures]).tolist())
        self.observables = tuple(self._observable(text) for text in observables)
        if not self.observables or len(set(observables)) < len(self.observables):
            raise ConfigError(f"{self.name}: expected observables, each once; found {list(observables)}")
        self._noise = dict(noise or {})
        for key, value in self._noise.items():
            if key not in observables:
                raise ConfigError(f"{self.name}: noise of {key!r}, which is not observed{nearest(key, observables)}")
            positive(self.name, **{f"noise of {key}": value})

    def settings(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for atoms in self.structures:
            for values in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, atoms.get_masses()):
                digest.update(np.ascontiguousarray(values).tobytes())
        names = ("at", "fmax", "relax_steps", "timestep", "equilibration", "steps", "every")
        return self._quantities.describe() | {name: getattr(self, name) for name in names} | {
            "potential": potential_hash(self.potential), "structures": digest.hexdigest(), "parameters": self._entries,
            "noise": self._noise,
        }  # fmt: skip

    def simulate(self, theta: Array, seeds: Seeds) -> Array:
        out = np.full((len(theta), self.size), np.nan)
        spread = np.concatenate([np.full(o.size, self._noise.get(o.name, 0.0)) for o in self.observables])
        for i in np.flatnonzero(self._quantities.possible(theta)):
            values = {name: float(self._quantities.value(theta[i], name)) for name in self._quantities.names}
            try:
                model = changed(self.potential, list(self._changes.values()), [values[name] for name in self._changes])
                out[i] = self._observe(model, values, int(seeds[i]))
            except SimkitError:
                continue
        out += spread * standard_normals(seeds, self.size)
        out[~np.isfinite(out).all(axis=1)] = np.nan
        return out

    def _observe(self, model: Potential, values: Mapping[str, float], seed: int) -> Array:
        if self.at == "md":
            return self._average(model, values, seed)
        found = []
        for atoms in self.structures:
            copy = atoms.copy()
            copy.calc = Calculator(model, dtype="float64")
            if self.at == "relaxed":
                _relax(copy, self.fmax, self.relax_steps)
            energy, forces = float(copy.get_potential_energy()), copy.get_forces(apply_constraint=False)
            found.append([self._measure(o.name, copy, energy, forces) for o in self.observables])
        return np.concatenate([np.concatenate(column) for column in zip(*found, strict=True)])

    def _average(self, model: Potential, values: Mapping[str, float], seed: int) -> Array:
        """Means over dynamics of all structures at once; angles are averaged as they are, dihedrals on the circle."""
        h, temperature = self.timestep * FS_PER_PS, values["temperature"]
        ensemble = Langevin(h, temperature, values["friction"] / FS_PER_PS, seed)
        simulation = Simulation(model, self.structures, ensemble, temperature=temperature, seed=seed, dtype="float64")
        simulation.run(self.equilibration)
        series: list[list[Array]] = []
        for _ in range(self.steps // self.every):
            simulation.run(self.every)
            energies, none = simulation.state.energy.tolist(), np.empty((0, 3))
            frames = zip(simulation.atoms(), energies, strict=True)
            row = [[self._measure(o.name, atoms, e, none) for o in self.observables] for atoms, e in frames]
            series.append([np.concatenate(column) for column in zip(*row, strict=True)])
        columns = zip(self.observables, zip(*series, strict=True), strict=True)
        return np.concatenate([_mean(np.array(values), o.name.startswith("dihedral")) for o, values in columns])

    def _measure(self, name: str, atoms: Atoms, energy: float, forces: Array) -> Array:
        kind, *numbers = name.split()
        if kind == "energy":
            return np.array([energy])
        if kind == "forces":
            return forces.ravel()
        method = {"distance": atoms.get_distance, "angle": atoms.get_angle, "dihedral": atoms.get_dihedral}[kind]
        return np.array([method(*map(int, numbers), mic=bool(atoms.pbc.any()))])

    def _observable(self, text: str) -> Observable:
        kind, *numbers = text.split() or [""]
        count = len(self.structures)
        fewest = min(map(len, self.structures))
        if kind == "energy" and not numbers:
            return Observable(text, () if count == 1 else (count,), "eV")
        if kind == "forces" and not numbers and self.at != "md":
            return Observable(text, (sum(map(len, self.structures)), 3), "eV/angstrom")
        if (
            kind in _MEASURES
            and len(numbers) == _MEASURES[kind][0]
            and all(n.isdigit() and int(n) < fewest for n in numbers)
        ):
            if len(set(numbers)) == len(numbers):
                return Observable(text, () if count == 1 else (count,), _MEASURES[kind][1])
        raise ConfigError(
            f"{self.name}: expected energy, forces (not of md), or like 'distance 0 1', 'angle 0 1 2', 'dihedral 0 1 2 3' of different "
            f"atoms below {fewest}; found {text!r}"
        )


def _mean(values: Array, circular: bool) -> Array:
    """Return the mean of [T, S] over T."""
    if not circular:
        return np.asarray(values.mean(axis=0))
    wave = np.exp(1j * np.radians(values)).mean(axis=0)
    return np.asarray(np.degrees(np.angle(wave)) % 360.0)


def _relax(atoms: Atoms, fmax: float, steps: int) -> None:
    from ase.optimize import BFGS

    if not BFGS(atoms, logfile=None).run(fmax=fmax, steps=steps):
        raise SimkitError(f"the structure was not relaxed to {fmax} eV/angstrom in {steps} steps; allow more")


def _structures(given: Atoms | Sequence[Atoms] | str | os.PathLike[str]) -> list[Atoms]:
    if isinstance(given, str | os.PathLike):
        from ase.io import read

        try:
            given = read(given, index=":")
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"cannot read structures from {given}: {error}") from error
    found = [given] if isinstance(given, Atoms) else list(given)
    if not found or not all(isinstance(atoms, Atoms) and len(atoms) for atoms in found):
        raise ConfigError("expected one structure of ASE at least, none of them empty")
    return found
