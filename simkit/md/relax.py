"""`relax`: minimise the energy of a structure, and of its cell where wanted, with ASE's optimisers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simkit import plotting
from simkit.config import nearest
from simkit.errors import ConfigError, GeometryError, OutputError, SimkitError
from simkit.files import atomic_path, ensure_output_dir, write_text
from simkit.md.system import Model, as_calculator, bare_copy
from simkit.progress import track

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import BaseCalculator
    from ase.filters import FrechetCellFilter
    from ase.optimize.optimize import Optimizer

OPTIMIZERS = ("bfgs", "fire", "lbfgs")
LOG, TRAJECTORY, STRUCTURE, PLOT = "relax.csv", "trajectory.traj", "relaxed.xyz", "relax.png"


@dataclass(frozen=True)
class Relaxation:
    """What came out of `relax`.

    Attributes:
        atoms: the last structure, with calculator.
        converged: whether the largest force fell below the threshold; if not, the structure is not a minimum.
        energies: eV; max_forces: eV/angstrom (with the cell relaxed, the gradient with respect to it counts); one for each step,
            from the starting structure on.
        folder: where the files are.
    """

    atoms: Atoms
    converged: bool
    energies: NDArray[np.float64]
    max_forces: NDArray[np.float64]
    folder: Path


def relax(
    calculator: BaseCalculator | Model,
    atoms: Atoms,
    *,
    out: str | os.PathLike[str],
    fmax: float = 0.01,
    steps: int = 500,
    optimizer: str = "bfgs",
    cell: bool = False,
) -> Relaxation:
    """Relax a structure; write ``trajectory.traj``, ``relax.csv``, ``relaxed.xyz`` and ``relax.png`` into ``out``.

    The structure passed in is not changed. Look at ``converged`` of the result: running out of steps is no error.

    Args:
        calculator: any ASE calculator, a `Potential`, or the path of one.
        fmax: threshold for the largest force on an atom, eV/angstrom.
        steps: give up after so many.
        optimizer: "bfgs", "lbfgs" or "fire".
        cell: relax the cell too (ASE's FrechetCellFilter); needs a structure periodic in all directions.

    Raises:
        ConfigError: if a setting is unusable.
        OutputError: if the folder cannot be written or holds a relaxation already.
        SimkitError: if energy or forces are no longer finite.
    """
    from ase.filters import FrechetCellFilter

    if optimizer not in OPTIMIZERS:
        raise ConfigError(f"unknown optimizer {optimizer!r}{nearest(optimizer, OPTIMIZERS)}")
    if not (0 < fmax < float("inf") and steps >= 1):
        raise ConfigError(
            f"fmax must be a positive force in eV/angstrom and steps at least 1, found {fmax} and {steps}"
        )
    if cell and not atoms.pbc.all():
        raise GeometryError(
            f"relaxing the cell needs a structure periodic in all directions; pbc is {atoms.pbc.tolist()}"
        )
    folder = ensure_output_dir(out)
    present = [name for name in (LOG, TRAJECTORY, STRUCTURE) if (folder / name).exists()]
    if present:
        raise OutputError(f"{folder} holds a relaxation already ({', '.join(present)}); choose another folder")
    system = bare_copy(atoms, as_calculator(calculator))
    energies, forces = [], []
    target = FrechetCellFilter(system) if cell else system
    with _make(optimizer, target, folder / TRAJECTORY) as method:
        for energy, force in track(_steps(method, target, fmax, steps), "relaxing", total=steps):
            energies.append(energy)
            forces.append(force)
    result = Relaxation(system, forces[-1] < fmax, np.array(energies), np.array(forces), folder)
    _write(result, fmax)
    return result


def _make(name: str, target: Atoms | FrechetCellFilter, trajectory: Path) -> Optimizer:
    from ase.optimize import BFGS, FIRE, LBFGS

    return {"bfgs": BFGS, "fire": FIRE, "lbfgs": LBFGS}[name](target, logfile=None, trajectory=str(trajectory))


def _steps(
    method: Optimizer, target: Atoms | FrechetCellFilter, fmax: float, steps: int
) -> Iterator[tuple[float, float]]:
    """Energy and largest force before and after each step of the optimiser."""
    for _ in method.irun(fmax=fmax, steps=steps):
        energy, force = float(target.get_potential_energy()), float(np.linalg.norm(target.get_forces(), axis=1).max())
        if not (np.isfinite(energy) and np.isfinite(force)):
            raise SimkitError(
                f"the relaxation broke down in step {method.nsteps}: energy {energy} eV, largest force {force} eV/angstrom; "
                "start from a structure that is closer to what the model was trained on"
            )
        yield energy, force


def _write(result: Relaxation, fmax: float) -> None:
    from ase.io import write

    rows = [
        f"{k},{e!r},{f!r}"
        for k, (e, f) in enumerate(zip(result.energies.tolist(), result.max_forces.tolist(), strict=True))
    ]
    write_text(result.folder / LOG, "\n".join(["step,energy_eV,max_force_eV_per_angstrom", *rows]) + "\n")
    with atomic_path(result.folder / STRUCTURE) as temporary:
        write(temporary, result.atoms, format="extxyz")
    plotting.save(plotting.relaxation(result.energies, result.max_forces, fmax)[0], result.folder / PLOT)
