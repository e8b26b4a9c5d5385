"""The structure and the model of a run: bare copies, and hashes that tell whether a run is continued with the same ones."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

from simkit.calculator import Calculator
from simkit.errors import DataError
from simkit.potential import Potential

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import BaseCalculator

Model = Potential | str | os.PathLike[str]


def as_calculator(model: BaseCalculator | Model) -> BaseCalculator:
    """Return an ASE calculator as it is, and a `Calculator` with default settings for a potential or the path of one."""
    return Calculator(model) if isinstance(model, (Potential, str, os.PathLike)) else model


def bare_copy(atoms: Atoms, calculator: BaseCalculator) -> Atoms:
    """Copy what a simulation depends on and attach the calculator.

    Labels and notes of the input structure (other arrays and ``info``) are left behind: they would be wrong for any other geometry.
    """
    from ase import Atoms

    if len(atoms) == 0:
        raise DataError("expected a structure with at least one atom, found an empty one")
    copy = Atoms(
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell,
        pbc=atoms.pbc,
        masses=atoms.get_masses(),
        constraint=atoms.copy().constraints,
    )
    if "charge" in atoms.info:
        copy.info["charge"] = float(atoms.info["charge"])
    copy.calc = calculator
    return copy


def model_hash(calculator: BaseCalculator) -> str:
    """SHA-256 over what decides the forces: architecture, weights and dtype; of other calculators, the name and the parameters."""
    if not isinstance(calculator, Calculator):
        return hashlib.sha256(_encode([calculator.name, calculator.todict()])).hexdigest()
    return potential_hash(calculator.potential)


def potential_hash(potential: Potential) -> str:
    """SHA-256 over architecture, weights and dtype."""
    header = {key: value for key, value in potential.header().items() if key != "info"}
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(potential.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _encode(content: object) -> bytes:
    from ase.io.jsonio import encode

    return str(encode(content)).encode()
