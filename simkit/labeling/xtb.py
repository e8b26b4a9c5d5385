"""Labels from the extended tight-binding methods GFN1-xTB and GFN2-xTB through tblite.

GFN2-xTB: Bannwarth, Ehlert, Grimme, J. Chem. Theory Comput. 15, 1652 (2019). GFN1-xTB: Grimme, Bannwarth, Shushkov, J.
Chem. Theory Comput.
13, 1989 (2017). Electronic temperature 300 K, no spin polarisation (the methods as published). Periodic frames are
computed at the Gamma point.
"""

from importlib.metadata import version
from typing import Any

import numpy as np
from ase import Atoms

from simkit.errors import LabelError, MissingDependencyError
from simkit.labeling.base import Label, Method, unpaired_electrons
from simkit.units import BOHR, HARTREE

ACCURACY = 0.01
"""tblite's accuracy: thresholds a hundred times tighter than its default, so that noise in forces stays below 1e-5
eV/angstrom."""
MAX_ITERATIONS = 250
OLDEST = (0, 8)
"""The oldest tblite to trust: before it, supercells do not repeat the energy of their cell and stress is not its derivative."""


def tblite_interface() -> Any:
    """Return the module ``tblite.interface``.

    Raises:
        MissingDependencyError: if tblite is not installed or too old.
    """
    try:
        from tblite import interface
    except ImportError as error:
        raise MissingDependencyError(
            f"GFN1-xTB and GFN2-xTB need tblite ({error}); install it with: pip install 'simkit[xtb]'"
        ) from error
    found = version("tblite")
    if tuple(map(int, found.split(".")[:2])) < OLDEST:
        raise MissingDependencyError(
            f"tblite {found} gives wrong energies and stresses of periodic structures; install 0.8 or newer with: "
            "pip install -U 'simkit[xtb]'"
        )
    return interface


def xtb_label(atoms: Atoms, method: Method, charge: int, multiplicity: int | None) -> Label:
    """Compute the label of one frame; see ``Label`` for units and conventions.

    Raises:
        LabelError: if the calculation fails or does not converge.
        MissingDependencyError: if tblite is not installed.
    """
    interface = tblite_interface()
    periodic = bool(atoms.pbc.all())
    try:
        calculator = interface.Calculator(
            method.model,
            np.asarray(atoms.numbers),
            atoms.positions / BOHR,
            charge=float(charge),
            uhf=0 if multiplicity is None else multiplicity - 1,  # tblite makes 0 the lowest possible number
            lattice=atoms.cell.array / BOHR if periodic else None,
            periodic=np.array(atoms.pbc) if periodic else None,
        )
        calculator.set("verbosity", 0)
        calculator.set("accuracy", ACCURACY)
        calculator.set("max-iter", MAX_ITERATIONS)
        result = calculator.singlepoint()
    except (RuntimeError, ValueError) as error:
        raise LabelError(f"{method.level_of_theory}: {error}") from error

    electrons = round(float(np.sum(result.get("orbital-occupations"))))
    alpha = (electrons + unpaired_electrons(electrons, multiplicity)) // 2
    orbitals = np.sort(result.get("orbital-energies")) * HARTREE
    virial = np.asarray(result.get("virial")) * HARTREE
    return Label(
        energy=float(result.get("energy")) * HARTREE,
        forces=-np.asarray(result.get("gradient")) * (HARTREE / BOHR),
        dipole=None if periodic else np.asarray(result.get("dipole")) * BOHR,
        stress=(virial + virial.T) / 2 / atoms.get_volume() if periodic else None,
        charges=np.array(result.get("charges")),
        homo=float(orbitals[alpha - 1]),
        lumo=float(orbitals[alpha]) if alpha < len(orbitals) else None,
    ).check_finite()
