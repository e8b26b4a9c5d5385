"""Drawing diverse geometries of a structure: thermal dynamics and normal-mode displacements."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import ase.units
import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.md.langevin import Langevin
from ase.optimize import BFGS
from scipy.spatial.distance import pdist

from simkit.errors import ConfigError, GeometryError, SimkitError
from simkit.labeling.base import Method, charge_and_multiplicity
from simkit.labeling.methods import check_method, compute_label, method_calculator
from simkit.labeling.parallel import parallel_map
from simkit.progress import track
from simkit.units import BOLTZMANN, FORCE_TO_ACCELERATION

BONDED, BROKEN = 1.25, 1.6
"""Distances over the sum of covalent radii: atoms are bonded below the first, and a bond is broken beyond the second."""
EXPLODED = 20.0
"""A kinetic temperature of this many times the bath's means that the integration has failed."""
LIGHT_CM_PER_FS = 2.99792458e-5
"""Speed of light in cm/fs."""
HESSIAN_STEP = 0.005
"""Displacement for the finite differences of forces, angstrom."""


@dataclass(frozen=True)
class NormalModes:
    """A minimum and its M harmonic vibrations.

    ``atoms`` is the relaxed structure, ``curvatures`` [M] the squared angular frequencies in eV/angstrom^2/amu in
    rising order, ``modes`` [M, N, 3] the orthonormal mass-weighted displacements.
    """

    atoms: Atoms
    curvatures: np.ndarray
    modes: np.ndarray

    def wavenumbers(self) -> np.ndarray:
        """The wavenumbers in 1/cm, [M]."""
        return np.sqrt(self.curvatures * FORCE_TO_ACCELERATION) / (2 * np.pi * LIGHT_CM_PER_FS)


def sample_thermal(
    atoms: Atoms,
    method: str | Method,
    *,
    temperatures: Sequence[float],
    frames: int,
    seed: int,
    timestep_fs: float = 0.5,
    spacing_steps: int = 200,
    equilibration_steps: int = 2000,
    friction_per_fs: float = 0.01,
    charge: int | None = None,
    multiplicity: int | None = None,
    jobs: int = 1,
) -> list[Atoms]:
    """Draw geometries from Langevin dynamics, one run per temperature, ordered by temperature and time.

    Each run starts at ``atoms``, equilibrates, and then gives a frame every ``spacing_steps``. The result depends on
    the arguments only, not on ``jobs``. Frames carry ``info["source"] = "md"``, ``info["temperature"]`` (K) and, for
    molecules, ``info["changed_bonds"]``: bonds broken and formed with respect to ``atoms`` (see ``changed_bonds``). No
    frame is dropped for it: count and decide. Molecules are moved to their centre of mass.

    Args:
        atoms: the structure to start from.
        method: as for ``parse_method``.
        temperatures: in K.
        frames: how many in total, spread evenly over the temperatures.
        seed: of the velocities and the noise.
        timestep_fs: time step in fs.
        spacing_steps: steps between two frames (the default is 100 fs).
        equilibration_steps: steps before the first frame (the default is 1 ps).
        friction_per_fs: Langevin friction in 1/fs.
        charge, multiplicity: see ``compute_label``.
        jobs: runs at the same time.

    Raises:
        ConfigError: if an option is unusable or the method unknown.
        GeometryError: if a run explodes (the message names temperature and step).
        LabelError: if a calculation fails.
    """
    shares = _shares(temperatures, frames)
    for name, value in (
        ("timestep_fs", timestep_fs),
        ("spacing_steps", spacing_steps),
        ("friction_per_fs", friction_per_fs),
    ):
        if not value > 0:
            raise ConfigError(f"{name} is {value}, expected more than 0")
    if equilibration_steps < 0:
        raise ConfigError(f"equilibration_steps is {equilibration_steps}, expected 0 or more")
    method = check_method(method, atoms.numbers.tolist())
    start = _with_state(atoms, charge, multiplicity)
    runs = [
        _Run(index, float(temperature), share, np.random.SeedSequence([seed, index]))
        for index, (temperature, share) in enumerate(zip(temperatures, shares, strict=True))
        if share
    ]
    task = partial(
        _thermal_run,
        atoms=start,
        method=method,
        steps=(equilibration_steps, spacing_steps),
        timestep_fs=timestep_fs,
        friction_per_fs=friction_per_fs,
        progress=jobs == 1,
    )
    results = parallel_map(task, runs, jobs)
    if jobs > 1:
        results = iter(track(results, "Sampling, runs", total=len(runs)))
    done = dict(results)
    return [frame for run in runs for frame in done[run.index]]


@dataclass(frozen=True)
class _Run:
    """One thermal run: its place in the order, temperature in K, number of frames and seed."""

    index: int
    temperature: float
    frames: int
    seed: np.random.SeedSequence


def _thermal_run(
    run: _Run,
    atoms: Atoms,
    method: Method,
    steps: tuple[int, int],
    timestep_fs: float,
    friction_per_fs: float,
    progress: bool,
) -> tuple[int, list[Atoms]]:
    generator = np.random.default_rng(run.seed)
    moving = atoms.copy()
    moving.calc = method_calculator(method)
    masses = moving.get_masses()[:, None]
    moving.set_momenta(generator.standard_normal((len(moving), 3)) * np.sqrt(masses * BOLTZMANN * run.temperature))
    dynamics = Langevin(
        moving,
        timestep_fs * ase.units.fs,
        temperature_K=run.temperature,
        friction=friction_per_fs / ase.units.fs,
        fixcm=False,
        rng=generator,
    )
    equilibration, spacing = steps
    frames = []
    counts = [equilibration + spacing, *[spacing] * (run.frames - 1)]
    for count in track(counts, f"Sampling at {run.temperature:g} K") if progress else counts:
        try:
            dynamics.run(count)
        except SimkitError as error:
            raise type(error)(f"{run.temperature:g} K, step {dynamics.nsteps}: {error}") from error
        if not moving.get_temperature() < EXPLODED * run.temperature:
            raise GeometryError(
                f"the run at {run.temperature:g} K exploded (kinetic temperature {moving.get_temperature():.3g} K at "
                f"step {dynamics.nsteps}); use a shorter time step or relax the structure first"
            )
        frames.append(_frame(moving, atoms, source="md", temperature=run.temperature))
    return run.index, frames


def sample_normal_modes(
    atoms: Atoms,
    method: str | Method,
    *,
    temperatures: Sequence[float],
    frames: int,
    seed: int,
    charge: int | None = None,
    multiplicity: int | None = None,
    jobs: int = 1,
) -> list[Atoms]:
    """Draw geometries around the nearest minimum from the classical harmonic distribution, ordered by temperature.

    Every vibration i of squared angular frequency c_i gets a mass-weighted amplitude from a normal distribution of
    variance kT/c_i, so that the harmonic energy is kT/2 per vibration on average. Frames carry ``info["source"] =
    "normal_modes"``, ``info["temperature"]`` (K), ``info["harmonic_energy"]`` (eV above the minimum) and, for
    molecules, ``info["changed_bonds"]``; none is dropped.

    Args:
        atoms, method, temperatures, frames, charge, multiplicity: as for ``sample_thermal``.
        seed: of the amplitudes.
        jobs: processes for the finite differences.

    Raises:
        ConfigError: if an option is unusable or the method unknown.
        GeometryError: if the structure has constraints, does not relax, has no vibrations, or relaxes to a saddle
        point.
        LabelError: if a calculation fails.
    """
    shares = _shares(temperatures, frames)
    vibrations = normal_modes(atoms, method, charge=charge, multiplicity=multiplicity, jobs=jobs)
    generator = np.random.default_rng(seed)
    roots = np.sqrt(vibrations.atoms.get_masses())[:, None]
    drawn = []
    for temperature, share in zip(temperatures, shares, strict=True):
        for noise in generator.standard_normal((share, len(vibrations.curvatures))):
            amplitudes = noise * np.sqrt(BOLTZMANN * temperature / vibrations.curvatures)
            moved = vibrations.atoms.copy()
            moved.positions += np.tensordot(amplitudes, vibrations.modes, axes=1) / roots
            frame = _frame(moved, vibrations.atoms, source="normal_modes", temperature=float(temperature))
            frame.info["harmonic_energy"] = float(0.5 * vibrations.curvatures @ amplitudes**2)
            drawn.append(frame)
    return drawn


def normal_modes(
    atoms: Atoms,
    method: str | Method,
    *,
    charge: int | None = None,
    multiplicity: int | None = None,
    jobs: int = 1,
) -> NormalModes:
    """Relax a structure (fixed cell) to 1 meV/angstrom and return its vibrations, from central differences of forces.

    Overall translations and, for molecules, rotations are projected out of the mass-weighted Hessian. Raises as
    ``sample_normal_modes``.
    """
    method = check_method(method, atoms.numbers.tolist())
    if atoms.constraints:
        raise GeometryError("normal modes of a structure with constraints are not supported; remove the constraints")
    relaxed = _with_state(atoms, charge, multiplicity)
    relaxed.calc = method_calculator(method)
    if not BFGS(relaxed, logfile=None).run(fmax=1e-3, steps=1000):
        raise GeometryError("the structure did not relax to 0.001 eV/angstrom in 1000 steps; relax it first")
    relaxed.calc = None

    size = 3 * len(relaxed)
    task = partial(_force_difference, atoms=relaxed, method=method)
    hessian = np.zeros((size, size))
    for coordinate, column in track(parallel_map(task, range(size), jobs), "Hessian", total=size):
        hessian[:, coordinate] = column
    roots = np.repeat(np.sqrt(relaxed.get_masses()), 3)
    weighted = (hessian + hessian.T) / 2 / np.outer(roots, roots)

    internal = _internal_space(relaxed)
    if internal.shape[1] == 0:
        raise GeometryError("a single atom has no vibrations to sample")
    curvatures, vectors = np.linalg.eigh(internal.T @ weighted @ internal)
    if curvatures[0] <= 0:
        raise GeometryError(
            f"the relaxed structure has {(curvatures <= 0).sum()} imaginary or zero frequencies: it is no minimum; "
            "displace the atoms a little out of their symmetric places and try again"
        )
    return NormalModes(relaxed, curvatures, (internal @ vectors).T.reshape(-1, len(relaxed), 3))


def _force_difference(coordinate: int, atoms: Atoms, method: Method) -> tuple[int, np.ndarray]:
    """Return one column of the Hessian in eV/angstrom^2, with its index."""
    forces = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[divmod(coordinate, 3)] += sign * HESSIAN_STEP
        forces.append(compute_label(moved, method).forces.ravel())
    return coordinate, (forces[1] - forces[0]) / (2 * HESSIAN_STEP)


def _internal_space(atoms: Atoms) -> np.ndarray:
    """An orthonormal basis [3N, M] of the mass-weighted displacements without translations and (molecules) rotations."""
    roots = np.sqrt(atoms.get_masses())[:, None]
    axes = np.eye(3)
    rigid = [np.broadcast_to(axis, (len(atoms), 3)) * roots for axis in axes]
    if not atoms.pbc.any():
        centred = atoms.positions - atoms.get_center_of_mass()
        rigid += [np.cross(axis, centred) * roots for axis in axes]
    left, singular, _ = np.linalg.svd(np.reshape(rigid, (len(rigid), -1)).T)
    rank = int((singular > 1e-3 * singular[0]).sum())  # a linear molecule has one rotation less, an atom none
    return left[:, rank:]


def changed_bonds(reference: Atoms, atoms: Atoms) -> int:
    """Count the bonds of a molecule, judged by distances, that are broken or newly formed against ``reference``."""
    first, second = np.triu_indices(len(reference), 1)
    radii = covalent_radii[reference.numbers]
    sums = radii[first] + radii[second]
    bonded = pdist(reference.positions) < BONDED * sums
    distances = pdist(atoms.positions)
    return int((bonded & (distances > BROKEN * sums)).sum() + (~bonded & (distances < BONDED * sums)).sum())


def _with_state(atoms: Atoms, charge: int | None, multiplicity: int | None) -> Atoms:
    """A copy with charge and multiplicity in ``info``, which the frames drawn from it inherit."""
    copy = atoms.copy()
    copy.info["charge"], spin = charge_and_multiplicity(atoms, charge, multiplicity)
    if spin is not None:
        copy.info["multiplicity"] = spin
    return copy


def _frame(moved: Atoms, reference: Atoms, source: str, temperature: float) -> Atoms:
    """A bare copy (no momenta, calculator or constraints) with its provenance in ``info``."""
    frame = Atoms(numbers=moved.numbers, positions=moved.positions, cell=moved.cell, pbc=moved.pbc)
    frame.info.update({key: moved.info[key] for key in ("charge", "multiplicity") if key in moved.info})
    frame.info.update(source=source, temperature=temperature)
    if not moved.pbc.any():
        frame.positions -= frame.get_center_of_mass()
        frame.info["changed_bonds"] = changed_bonds(reference, moved)
    return frame


def _shares(temperatures: Sequence[float], frames: int) -> list[int]:
    """How many frames each temperature gets; the first ones get those left over."""
    if not temperatures or not all(0 < temperature < float("inf") for temperature in temperatures):
        raise ConfigError(f"the temperatures are {list(temperatures)}, expected one or more, each above 0 K")
    if frames < 1:
        raise ConfigError(f"{frames} frames were asked for, expected 1 or more")
    share, rest = divmod(frames, len(temperatures))
    return [share + (index < rest) for index in range(len(temperatures))]
