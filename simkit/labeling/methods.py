"""Electronic-structure methods by name: labels of a frame, an ASE calculator, and energies of isolated atoms."""

import re
from collections.abc import Iterable

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.data import atomic_numbers, chemical_symbols, ground_state_magnetic_moments

from simkit.errors import ConfigError, SimkitError
from simkit.labeling.base import Label, Method, charge_and_multiplicity, check_frame
from simkit.labeling.dft import check_dft_method, dft_label
from simkit.labeling.xtb import tblite_interface, xtb_label

XTB_MODELS = {"gfn2-xtb": "GFN2-xTB", "gfn1-xtb": "GFN1-xTB"}
KNOWN = "gfn2-xtb, gfn1-xtb, dft:<functional>/<basis> (as in dft:pbe/def2-svp), hf/<basis> (as in hf/sto-3g)"


def parse_method(text: str | Method) -> Method:
    """Return the method that a string such as ``"gfn2-xtb"``, ``"dft:pbe/def2-svp"`` or ``"hf/sto-3g"`` names (upper or
    lower case).

    Raises:
        ConfigError: if it names none; the message lists the known ones.
    """
    if isinstance(text, Method):
        return text
    name = text.strip().lower()
    if name in XTB_MODELS:
        return Method(name, "tblite", XTB_MODELS[name])
    match = re.fullmatch(r"(?:dft:)?([^/:\s]+)/([^/:\s]+)", name)
    if match and (name.startswith("dft:") or match[1] == "hf"):
        model, basis = match.groups()
        return Method(f"hf/{basis}" if model == "hf" else f"dft:{model}/{basis}", "pyscf", model, basis)
    raise ConfigError(f"unknown method {text!r}; known methods: {KNOWN}")


def check_method(method: str | Method, elements: Iterable[int] = ()) -> Method:
    """Return the parsed method after checking that its library is installed and knows functional and basis set for
    ``elements``.

    Raises:
        ConfigError: if the method, its functional or its basis set is unknown.
        MissingDependencyError: if the library is not installed; the message names the extra that brings it.
    """
    method = parse_method(method)
    if method.program == "tblite":
        tblite_interface()
    else:
        check_dft_method(method, sorted(set(elements)))
    return method


def compute_label(
    atoms: Atoms, method: str | Method, *, charge: int | None = None, multiplicity: int | None = None
) -> Label:
    """Compute energy, forces, dipole, stress, charges and orbital energies of one frame; see ``Label`` for units and
    conventions.

    Charge and multiplicity come from ``atoms.info`` or from the arguments; see ``charge_and_multiplicity``. Constraints
    are ignored: the forces are those of the method. The result depends on nothing but the arguments (no restart from an
    earlier density).

    Raises:
        ConfigError: if the method is unknown, or charge or multiplicity are unusable.
        GeometryError: if the frame is empty, not finite, or has boundaries that the method does not support.
        LabelError: if the calculation fails or does not converge.
        MissingDependencyError: if the library of the method is not installed.
    """
    method = parse_method(method)
    check_frame(atoms, method)
    state = charge_and_multiplicity(atoms, charge, multiplicity)
    return (xtb_label if method.program == "tblite" else dft_label)(atoms, method, *state)


def isolated_atom_energies(method: str | Method, elements: Iterable[int | str]) -> dict[int, float]:
    """Return the energies in eV of single neutral atoms in their ground-state multiplicity, by atomic number.

    Use them as reference energies for a data set that is labelled with the same method.

    Raises:
        LabelError: if one does not converge.
        ConfigError, MissingDependencyError: as ``compute_label``.
    """
    numbers = sorted({atomic_numbers[item] if isinstance(item, str) else int(item) for item in elements})
    energies: dict[int, float] = {}
    for number in numbers:
        multiplicity = round(float(ground_state_magnetic_moments[number])) + 1
        try:
            energies[number] = compute_label(Atoms(numbers=[number]), method, multiplicity=multiplicity).energy
        except SimkitError as error:
            raise type(error)(f"isolated atom {chemical_symbols[number]}: {error}") from error
    return energies


class MethodCalculator(Calculator):
    """A method as an ASE calculator; made by ``method_calculator``."""

    implemented_properties = ("energy", "free_energy", "forces", "stress", "dipole", "charges")

    def __init__(self, method: Method, charge: int | None, multiplicity: int | None) -> None:
        super().__init__()
        self.method, self.charge, self.multiplicity = method, charge, multiplicity

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Iterable[str] = ("energy",),
        system_changes: list[str] = all_changes,
    ) -> None:
        """Compute everything the method gives, whatever is asked for."""
        super().calculate(atoms, properties, system_changes)
        label = compute_label(self.atoms, self.method, charge=self.charge, multiplicity=self.multiplicity)
        self.results = ase_results(label)


def method_calculator(
    method: str | Method, *, charge: int | None = None, multiplicity: int | None = None
) -> MethodCalculator:
    """Return an ASE calculator for a method: energy, forces, dipole, and stress and charges where the method gives
    them.

    Raises:
        ConfigError, MissingDependencyError: as ``check_method``.
    """
    return MethodCalculator(check_method(method), charge, multiplicity)


def ase_results(label: Label) -> dict[str, float | np.ndarray]:
    """The results that ASE knows, with stress in its Voigt order (xx, yy, zz, yz, xz, xy)."""
    results: dict[str, float | np.ndarray] = {
        name: value for name, value in label.present().items() if name not in ("homo", "lumo", "gap")
    }
    results["free_energy"] = label.energy
    if label.stress is not None:
        results["stress"] = label.stress.flat[[0, 4, 8, 5, 2, 1]]
    return results
