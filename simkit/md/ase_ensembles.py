"""The ensembles that `run_md` knows, on ASE's integrators; starting velocities, and the degrees of freedom that carry temperature."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from ase import units
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ase import Atoms
    from ase.md.md import MolecularDynamics

    from simkit.md.options import MDOptions


def _nve(atoms: Atoms, options: MDOptions, rng: np.random.Generator) -> MolecularDynamics:
    """Velocity Verlet."""
    return VelocityVerlet(atoms, timestep=options.timestep * units.fs)


def _nvt(atoms: Atoms, options: MDOptions, rng: np.random.Generator) -> MolecularDynamics:
    """Langevin dynamics (Vanden-Eijnden & Ciccotti, Chem. Phys. Lett. 429, 310 (2006)), which thermalises all 3N directions.

    ASE's ``fixcm=True``, which held the centre of mass, does not sample the canonical ensemble and is deprecated.
    """
    return Langevin(
        atoms,
        timestep=options.timestep * units.fs,
        temperature_K=options.temperature,
        friction=options.friction / units.fs,
        fixcm=False,
        rng=rng,
    )


ENSEMBLES: dict[str, Callable[[Atoms, MDOptions, np.random.Generator], MolecularDynamics]] = {"nve": _nve, "nvt": _nvt}
"""Name -> what makes the integrator. All state of an integrator between steps must lie in the atoms and the generator."""


def draw_velocities(atoms: Atoms, temperature: float, rng: np.random.Generator) -> None:
    """Give the atoms velocities from the Maxwell-Boltzmann distribution at ``temperature`` (K).

    The total momentum is zero, and so is the angular momentum of an isolated structure; constrained atoms stay where they are.
    """
    masses = atoms.get_masses()
    noise = rng.standard_normal((len(atoms), 3))
    momenta = noise * np.sqrt(masses * units.kB * temperature)[:, None]
    if not atoms.constraints and len(atoms) > 1:
        momenta -= masses[:, None] * (momenta.sum(axis=0) / masses.sum())
        if not atoms.pbc.any():
            position, inertia = _inertia(atoms)
            angular = np.cross(position, momenta).sum(axis=0)
            omega = np.linalg.pinv(inertia, rcond=1e-8, hermitian=True) @ angular
            momenta -= masses[:, None] * np.cross(omega, position)
    atoms.set_momenta(momenta)


def scale_velocities(atoms: Atoms, temperature: float, directions: int) -> None:
    """Scale the velocities to exactly ``temperature`` (K) over the given number of degrees of freedom."""
    found = temperature_of(atoms, directions)
    if found > 0:
        atoms.set_momenta(atoms.get_momenta() * np.sqrt(temperature / found))


def thermal_directions(atoms: Atoms, ensemble: str) -> int:
    """Number of degrees of freedom that share the kinetic energy, for the momenta that a run starts with.

    A thermostat acts on all of them, so that 3N less constraints are left. Without one, momenta that are zero stay zero.
    """
    return mobile_directions(atoms) if ensemble == "nve" else _unconstrained(atoms)


def _unconstrained(atoms: Atoms) -> int:
    return 3 * len(atoms) - sum(int(constraint.get_removed_dof(atoms)) for constraint in atoms.constraints)


def mobile_directions(atoms: Atoms) -> int:
    """Number of degrees of freedom of dynamics that keeps the momenta: 3N less constraints, or less conserved momenta that are zero."""
    if atoms.constraints:
        return _unconstrained(atoms)
    momenta = atoms.get_momenta()
    scale = np.abs(momenta).max(initial=0.0) * 1e-8
    free = 3 * len(atoms)
    if len(atoms) == 1 or np.abs(momenta.sum(axis=0)).max() > scale:
        return free
    free -= 3
    if not atoms.pbc.any():
        position, inertia = _inertia(atoms)
        if np.abs(np.cross(position, momenta).sum(axis=0)).max() <= scale * max(1.0, np.abs(position).max()):
            free -= int(np.linalg.matrix_rank(inertia, tol=1e-8 * max(np.trace(inertia), 1e-300), hermitian=True))
    return free


def temperature_of(atoms: Atoms, directions: int) -> float:
    """Kinetic temperature in K over the given number of degrees of freedom; 0 where there are none."""
    return float(2 * atoms.get_kinetic_energy() / (directions * units.kB)) if directions else 0.0


def _inertia(atoms: Atoms) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions relative to the centre of mass [N, 3], and the tensor of inertia [3, 3] in amu angstrom^2."""
    position = atoms.positions - atoms.get_center_of_mass()
    weighted = atoms.get_masses()[:, None] * position
    return position, np.eye(3) * (weighted * position).sum() - weighted.T @ position
