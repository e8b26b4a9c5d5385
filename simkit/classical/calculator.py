"""`ClassicalCalculator`: a `ClassicalPotential` as an ASE calculator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import ArrayLike

from simkit.classical.potential import ClassicalPotential
from simkit.classical.terms import Term


class ClassicalCalculator(Calculator):
    """Energy, free_energy (the same), forces, and stress in boxes that are periodic in all directions.

    Takes the terms and options of `ClassicalPotential`; cell and periodicity are those of the structure. With ASE's units, parameters
    are in eV and angstrom.
    """

    implemented_properties = ("energy", "free_energy", "forces", "stress")
    results: dict[str, Any]
    atoms: Atoms

    def __init__(self, terms: Sequence[Term], *, species: Any = None, skin: float = 0.5, exclude: Any = None) -> None:
        super().__init__()
        self._terms, self._species, self._skin, self._exclude = tuple(terms), species, skin, exclude
        self._potential: ClassicalPotential | None = None

    def in_box(self, cell: ArrayLike, pbc: ArrayLike) -> ClassicalPotential:
        """Return the terms as a `ClassicalPotential` for the atoms of a box."""
        return ClassicalPotential(
            self._terms, cell=cell, pbc=pbc, species=self._species, skin=self._skin, exclude=self._exclude
        )

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute everything. Errors as for `ClassicalPotential.evaluate`."""
        super().calculate(atoms, properties, system_changes)
        cell, pbc = self.atoms.cell.array, self.atoms.pbc
        if self._potential is None or (pbc != self._potential.pbc).any():
            self._potential = self.in_box(cell, pbc)
        elif (cell != self._potential.cell).any():
            self._potential.set_cell(cell)
        forces = np.empty((len(self.atoms), 3))
        energy, virial = self._potential.evaluate(np.ascontiguousarray(self.atoms.positions), forces)
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}
        if pbc.all():
            self.results["stress"] = full_3x3_to_voigt_6_stress(-virial / self.atoms.get_volume())
