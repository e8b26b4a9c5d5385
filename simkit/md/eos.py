"""The equation of state of a crystal: energy against volume, fitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simkit.errors import ConfigError, GeometryError
from simkit.md.system import Model, as_calculator, bare_copy
from simkit.units import GPA

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import BaseCalculator


@dataclass(frozen=True)
class EquationOfState:
    """Energies of a crystal over isotropic strain, and a Birch-Murnaghan curve through them.

    Attributes:
        volumes: [P] angstrom^3; energies: [P] eV; both of the whole structure.
        fit_volumes, fit_energies: the curve.
        volume: at the minimum, angstrom^3; energy: there, eV; bulk_modulus: there, GPa.
    """

    volumes: NDArray[np.float64]
    energies: NDArray[np.float64]
    fit_volumes: NDArray[np.float64]
    fit_energies: NDArray[np.float64]
    volume: float
    energy: float
    bulk_modulus: float


def equation_of_state(
    calculator: BaseCalculator | Model, atoms: Atoms, *, strain: float = 0.05, points: int = 11
) -> EquationOfState:
    """Stretch and squeeze a crystal evenly and fit its energies (Birch, Phys. Rev. 71, 809 (1947), through `ase.eos`).

    Atoms keep their scaled positions: for crystals with internal freedom these are not relaxed at each volume.

    Args:
        calculator: any ASE calculator, a `Potential`, or the path of one.
        atoms: periodic in all directions, near its minimum.
        strain: the cell vectors are scaled from 1 - strain to 1 + strain; points: so many times, 5 at least.

    Raises:
        ConfigError: if strain or points are unusable.
        GeometryError: if the structure is not periodic, or the energies have no minimum in the range of volumes.
    """
    from ase.eos import EquationOfState as Fit

    if not 0 < strain < 0.5 or points < 5:
        raise ConfigError(f"strain must be between 0 and 0.5 and points at least 5, found {strain} and {points}")
    if not atoms.pbc.all():
        raise GeometryError(
            f"an equation of state needs a structure periodic in all directions; pbc is {atoms.pbc.tolist()}"
        )
    system = bare_copy(atoms, as_calculator(calculator))
    cell = system.cell.array.copy()
    volumes, energies = np.empty(points), np.empty(points)
    for k, scale in enumerate(np.linspace(1 - strain, 1 + strain, points)):
        system.set_cell(cell * scale, scale_atoms=True)
        volumes[k], energies[k] = system.get_volume(), system.get_potential_energy()
    if not 0 < energies.argmin() < points - 1:
        raise GeometryError(
            f"no minimum of the energy between {volumes[0]:.4g} and {volumes[-1]:.4g} angstrom^3; "
            "start closer to it (relax the cell), or use a larger strain"
        )
    # Energies relative to the lowest and per atom keep the least-squares fit well conditioned.
    n, lowest = len(system), energies.min()
    fit = Fit(volumes / n, (energies - lowest) / n, eos="birchmurnaghan")
    volume, energy, modulus = fit.fit(warn=False)
    curve = fit.getplotdata()
    return EquationOfState(
        volumes=volumes,
        energies=energies,
        fit_volumes=np.asarray(curve[4]) * n,
        fit_energies=np.asarray(curve[5]) * n + lowest,
        volume=float(volume) * n,
        energy=float(energy) * n + lowest,
        bulk_modulus=float(modulus) / GPA,
    )
