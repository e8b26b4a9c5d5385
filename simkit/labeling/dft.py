"""Labels of molecules from density-functional theory and Hartree-Fock with Gaussian basis sets, through PySCF.

PySCF: Sun et al., J. Chem. Phys. 153, 024109 (2020). Restricted for singlets, unrestricted otherwise; SCF converged to
1e-10 hartree; PySCF's default integration grid (level 3), whose response is part of the forces, so that they are the
derivative of the energy. Effective core potentials that belong to the basis set (def2 beyond krypton, LANL2DZ, ...) are
used. Functionals mean what PySCF makes of their names; dispersion corrections such as ``-d3bj`` need pyscf-dispersion.
"""

import re
import warnings
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from simkit.errors import ConfigError, LabelError, MissingDependencyError
from simkit.labeling.base import Label, Method, unpaired_electrons
from simkit.units import BOHR, HARTREE

CONVERGENCE = 1e-10
"""Energy threshold of the self-consistent field, hartree."""
MAX_ITERATIONS = 100


def import_pyscf() -> Any:
    """Return the package pyscf.

    Raises:
        MissingDependencyError: if it is not installed.
    """
    try:
        import pyscf
        import pyscf.dft
        import pyscf.scf
    except ImportError as error:
        raise MissingDependencyError(
            f"DFT and Hartree-Fock labels need PySCF ({error}); install it with: pip install 'simkit[dft]'"
        ) from error
    return pyscf


def check_dft_method(method: Method, elements: list[int]) -> None:
    """Check that PySCF knows the functional, and the basis set for every element.

    Raises:
        ConfigError: if it does not.
        MissingDependencyError: if PySCF is not installed.
    """
    pyscf = import_pyscf()
    try:
        # PySCF itself splits off a dispersion correction such as -d3bj, which changes some functionals.
        if method.model != "hf" and not re.search(r"-d[34]", method.model):
            pyscf.dft.libxc.parse_xc(method.model)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"PySCF does not know the functional {method.model!r} of {method.name!r}; write it as in dft:pbe/def2-svp"
        ) from error
    for number in elements:
        _basis(pyscf, method, chemical_symbols[number])


def _basis(pyscf: Any, method: Method, symbol: str) -> tuple[Any, Any]:
    """Return the basis set of an element and its effective core potential (empty without one)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Basis may be available")  # an advert; the error below says more
        try:
            basis = pyscf.gto.basis.load(method.basis, symbol)
        except (KeyError, RuntimeError, FileNotFoundError) as error:
            raise ConfigError(
                f"PySCF has no basis set {method.basis!r} for {symbol} (method {method.name!r}); check the name"
            ) from error
        try:
            return basis, pyscf.gto.basis.load_ecp(method.basis, symbol)
        except (KeyError, RuntimeError, FileNotFoundError):
            return basis, []


def dft_label(atoms: Atoms, method: Method, charge: int, multiplicity: int | None) -> Label:
    """Compute the label of one molecule; see ``Label`` for units and conventions.

    Raises:
        ConfigError: if PySCF does not know the functional or the basis set.
        LabelError: if the calculation fails or does not converge.
        MissingDependencyError: if PySCF is not installed.
    """
    check_dft_method(method, sorted(set(atoms.numbers.tolist())))
    pyscf = import_pyscf()
    unpaired = unpaired_electrons(int(atoms.numbers.sum()) - charge, multiplicity)
    symbols = atoms.get_chemical_symbols()
    tables = {symbol: _basis(pyscf, method, symbol) for symbol in set(symbols)}
    molecule = pyscf.gto.Mole(
        atom=list(zip(symbols, (atoms.positions / BOHR).tolist(), strict=True)),
        unit="Bohr",
        basis={symbol: basis for symbol, (basis, _) in tables.items()},
        ecp={symbol: ecp for symbol, (_, ecp) in tables.items() if ecp},
        charge=charge,
        spin=unpaired,
        verbose=0,
    )
    try:
        molecule.build(dump_input=False, parse_arg=False)
        field = _mean_field(pyscf, molecule, method, restricted=unpaired == 0)
        energy = field.kernel()
        if not field.converged:
            raise LabelError(f"{method.name}: SCF not converged in {MAX_ITERATIONS} cycles")
        gradient = field.nuc_grad_method()
        if method.model != "hf":
            gradient.grid_response = True
        forces = -gradient.kernel() * (HARTREE / BOHR)
        dipole = field.dip_moment(unit="AU", verbose=0) * BOHR
    except LabelError:
        raise
    except (ArithmeticError, LookupError, RuntimeError, ValueError) as error:
        raise LabelError(f"{method.name}: {error}") from error
    occupied = np.asarray(field.mo_occ) > 0
    orbitals = np.asarray(field.mo_energy) * HARTREE
    lumo = None if occupied.all() else float(orbitals[~occupied].min())
    homo = float(orbitals[occupied].max())
    return Label(float(energy) * HARTREE, forces, dipole, homo=homo, lumo=lumo).check_finite()


def _mean_field(pyscf: Any, molecule: Any, method: Method, restricted: bool) -> Any:
    """The SCF object of the method, not yet run."""
    if method.model == "hf":
        field = pyscf.scf.RHF(molecule) if restricted else pyscf.scf.UHF(molecule)
    else:
        field = pyscf.dft.RKS(molecule) if restricted else pyscf.dft.UKS(molecule)
        field.xc = method.model
    field.conv_tol = CONVERGENCE
    field.max_cycle = MAX_ITERATIONS
    return field
