"""What labelling is made of: a method, the charge and spin of a frame, and the label that comes out."""

from dataclasses import dataclass
from importlib.metadata import version
from numbers import Real
from typing import Any

import numpy as np
from ase import Atoms
from scipy.spatial.distance import pdist

from simkit.errors import ConfigError, GeometryError, LabelError

CLOSEST = 0.1
"""Atoms of a molecule nearer than this (angstrom) are a mistake in the file."""

LABELS = ("energy", "forces", "dipole", "stress", "charges", "homo", "lumo", "gap")
"""The names of all labels."""


@dataclass(frozen=True)
class Method:
    """An electronic-structure method.

    ``name`` is its canonical string (``"gfn2-xtb"``, ``"dft:pbe/def2-svp"``), ``program`` the library that computes it
    (``"tblite"`` or ``"pyscf"``), ``model`` the Hamiltonian or functional as that library spells it, ``basis`` the
    basis set (empty for tight binding).
    """

    name: str
    program: str
    model: str
    basis: str = ""

    @property
    def level_of_theory(self) -> str:
        """The name for people, as in ``GFN2-xTB`` or ``PBE/def2-svp``."""
        return f"{self.model}/{self.basis}" if self.basis else self.model

    def program_version(self) -> str:
        """The library and its installed version, as in ``tblite 0.8.0``."""
        return f"{self.program} {version(self.program)}"


@dataclass(frozen=True)
class Label:
    """The labels of one frame with N atoms; None where the method does not give one.

    - ``energy``: total energy, eV. With tight binding it holds the electronic entropy term at 300 K, which makes it
      consistent with the forces.
    - ``forces`` [N, 3]: minus the derivative of ``energy`` by the positions, eV/angstrom.
    - ``dipole`` [3]: e*angstrom, pointing from minus to plus, about the coordinate origin (which matters for ions
      only); molecules only.
    - ``stress`` [3, 3]: derivative of ``energy`` by the strain over the volume, eV/angstrom^3 (ASE's sign: negative
      under compression); periodic only.
    - ``charges`` [N]: Mulliken atomic charges, e (tight binding only).
    - ``homo``, ``lumo``, ``gap``: highest occupied and lowest empty orbital energy and their difference, eV; over both
      spins when unrestricted. ``lumo`` and ``gap`` are None when the basis has no empty orbital.
    """

    energy: float
    forces: np.ndarray
    dipole: np.ndarray | None = None
    stress: np.ndarray | None = None
    charges: np.ndarray | None = None
    homo: float | None = None
    lumo: float | None = None

    @property
    def gap(self) -> float | None:
        """The orbital gap, eV."""
        return None if self.homo is None or self.lumo is None else self.lumo - self.homo

    def present(self) -> dict[str, Any]:
        """The labels that are there, by name."""
        return {name: getattr(self, name) for name in LABELS if getattr(self, name) is not None}

    def check_finite(self) -> "Label":
        """Return self.

        Raises:
            LabelError: if any value is not finite.
        """
        for name, value in self.present().items():
            if not np.all(np.isfinite(value)):
                raise LabelError(f"the calculation gave a value of {name} that is not finite")
        return self


def charge_and_multiplicity(
    atoms: Atoms, charge: int | None = None, multiplicity: int | None = None
) -> tuple[int, int | None]:
    """Return the charge and the multiplicity of a frame.

    Both are read from ``atoms.info["charge"]`` and ``atoms.info["multiplicity"]``, or given for all frames as
    arguments. Without either the charge is 0 and the multiplicity None, which stands for the lowest one (1 for an even,
    2 for an odd number of electrons).

    Raises:
        ConfigError: if a value is not a whole number, a multiplicity is below 1, or argument and frame differ.
    """
    found: dict[str, int | None] = {}
    for name, given in (("charge", charge), ("multiplicity", multiplicity)):
        stored = atoms.info.get(name)
        for value in (given, stored):
            if value is not None and not (isinstance(value, Real) and value == round(value)):
                raise ConfigError(f"the {name} is {value!r}, expected a whole number")
        if given is not None and stored is not None and int(given) != int(stored):
            raise ConfigError(
                f"{name} {int(given)} was asked for, but the frame says {int(stored)}; leave the option away or edit "
                "the frame"
            )
        value = given if given is not None else stored
        found[name] = None if value is None else int(value)
    if found["multiplicity"] is not None and found["multiplicity"] < 1:
        raise ConfigError(f"the multiplicity is {found['multiplicity']}, expected 1 (singlet), 2 (doublet), ...")
    return found["charge"] or 0, found["multiplicity"]


def unpaired_electrons(electrons: int, multiplicity: int | None) -> int:
    """Return the number of unpaired electrons, the lowest possible one without a ``multiplicity``.

    Raises:
        LabelError: if there are no electrons, or that many cannot have this multiplicity.
    """
    if electrons < 1:
        raise LabelError(f"the frame has {electrons} electrons; check its charge")
    unpaired = electrons % 2 if multiplicity is None else multiplicity - 1
    if (electrons - unpaired) % 2 or unpaired > electrons:
        raise LabelError(
            f"{electrons} electrons cannot have multiplicity {multiplicity}; check the frame's charge and multiplicity"
        )
    return unpaired


def check_frame(atoms: Atoms, method: Method) -> None:
    """Check that a frame is something the method can compute.

    Raises:
        GeometryError: if it has no atoms, coinciding atoms, coordinates that are not finite, or boundaries that the
        method does not support.
    """
    if len(atoms) == 0:
        raise GeometryError("the frame has no atoms")
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        raise GeometryError("the frame has coordinates that are not finite")
    if (atoms.numbers < 1).any():
        raise GeometryError("the frame has an atom of unknown element (atomic number 0)")
    if not atoms.pbc.any():
        if len(atoms) > 1 and pdist(atoms.positions).min() < CLOSEST:
            raise GeometryError(f"two atoms of the frame are less than {CLOSEST} angstrom apart")
        return
    if method.program == "pyscf":
        raise GeometryError(
            f"the frame is periodic (pbc {atoms.pbc.tolist()}), but {method.name} labels molecules only; use gfn2-xtb "
            "or gfn1-xtb, or set pbc to False if it is a molecule in a box"
        )
    if not atoms.pbc.all():
        # tblite silently takes any periodic direction as periodicity in all three.
        raise GeometryError(
            f"the frame is periodic in some directions only (pbc {atoms.pbc.tolist()}), which tblite does not support; "
            "make all three periodic with vacuum along the open ones"
        )
    if abs(atoms.cell.volume) < 1e-6:
        raise GeometryError("the frame is periodic, but its cell has no volume")
