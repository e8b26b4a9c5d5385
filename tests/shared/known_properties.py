"""Molecules whose properties are sums over atoms that bonds disturb a little."""

from typing import Any

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.collections import g2

from simkit import potentials
from simkit.datasets.qm9 import REFERENCES, UNITS
from simkit.datasets.store import Store
from simkit.potential import Potential
from simkit.training.recipe import Recipe, read_recipe
from simkit.units import unit_factor

ELEMENTS = [1, 6, 7, 8, 9]
ELECTRONS_OF = {1: 0.9, 6: 6.1, 7: 7.1, 8: 8.0, 9: 9.2}
OWN_EXTENT = {1: 1.0, 6: 3.0, 7: 2.9, 8: 2.8, 9: 2.3}


def recipe(*settings: str, data: str = "qm9") -> Recipe:
    return read_recipe(None, settings, {"data": {"name": data}})


def molecules() -> list[Atoms]:
    """Small molecules of the G2 set, of the elements of QM9."""
    found = [molecule(name) for name in g2.names]
    return [atoms for atoms in found if 3 <= len(atoms) <= 12 and set(atoms.numbers.tolist()) <= set(ELEMENTS)]


def extent(atoms: Atoms) -> float:
    """Electrons and extents of the atoms, in angstrom^2."""
    local = atoms.positions - atoms.get_center_of_mass()
    return sum(ELECTRONS_OF[z] * (r @ r) + OWN_EXTENT[z] for z, r in zip(atoms.numbers.tolist(), local, strict=True))


def known_labels(frames: list[Atoms]) -> dict[str, np.ndarray]:
    """Labels in simkit's units: sums over atoms that bonds disturb a little."""
    rng = np.random.default_rng(6)
    disturbed = np.array([rng.normal(0, 0.05) * len(a) for a in frames])
    labels = {}
    for name in ("U0", "U", "H", "G", "Cv"):
        table = {z: value * unit_factor(UNITS[name]) for z, value in REFERENCES[name].items()}
        small = 1e-4 if name == "Cv" else 1.0
        labels[name] = np.array([sum(table[z] for z in a.numbers.tolist()) for a in frames]) + small * (disturbed - 2.0)
    labels["energy"] = labels["U0"]
    labels["zpve"] = np.array([0.2 * len(a) + 0.1 * a.numbers.tolist().count(1) for a in frames]) + 0.1 * disturbed
    labels["alpha"] = np.array([0.2 * float(a.numbers.sum()) for a in frames]) + disturbed
    labels["homo"], labels["lumo"] = rng.normal(-6.5, 0.5, len(frames)), rng.normal(0.5, 1.0, len(frames))
    labels["gap"] = labels["lumo"] - labels["homo"]
    labels["mu"] = np.array([np.linalg.norm(np.where(a.numbers == 1, 0.1, -0.05) @ a.positions) for a in frames])
    labels["r2"] = np.array([extent(a) for a in frames])
    return labels


def store_of(frames: list[Atoms], labels: dict[str, np.ndarray], **info: Any) -> Store:
    ptr = np.concatenate([[0], np.cumsum([len(a) for a in frames])])
    return Store(
        np.concatenate([a.numbers for a in frames]),
        np.concatenate([a.positions for a in frames]),
        ptr,
        labels,
        info=info,
    )


def model_for(*names: str, **kwargs: Any) -> Potential:
    return potentials.build("painn", elements=ELEMENTS, channels=8, layers=1, outputs=names, **kwargs)
