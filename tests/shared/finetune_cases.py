"""What the tests of fine-tuning start from."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import molecule

from simkit import potentials
from simkit.datasets.store import Store
from simkit.graph import AtomGraph
from simkit.potential import Potential
from simkit.training.finetune import start_from
from simkit.training.recipe import StartOptions

CUTOFF = 4.0
ELEMENTS = [1, 6, 8]
SMALL = {"channels": 16, "layers": 2}
"""Options of the models."""
EMBEDDED = {"name": "embedded", "split": "train"}
"""The data of the first training."""


@functools.cache
def small_options(name: str) -> tuple[tuple[str, int], ...]:
    known = potentials.build(name, elements=[1]).options
    return tuple((key, value) for key, value in SMALL.items() if key in known)


def small(name: str = "painn", dtype: str = "float64", **changes: Any) -> Potential:
    """A small potential with references, scale and shift that are not the defaults."""
    given = {"cutoff": CUTOFF, "elements": ELEMENTS, "dtype": dtype, **dict(small_options(name)), **changes}
    potential = potentials.build(name, **given)
    potential.set_references({z: -10.0 * z for z in potential.elements})
    potential.scale.fill_(3.0)
    potential.shift.fill_(0.2)
    return potential


def saved(potential: Potential, folder: Path) -> str:
    path = folder / "parent.safetensors"
    potential.save(path)
    return str(path)


def started(potential: Potential, folder: Path, elements: list[int] = ELEMENTS, **options: Any) -> Potential:
    """The potential as `start_from` gives it back from a file."""
    return start_from(StartOptions(model=saved(potential, folder), **options), elements, seed=3)


def clusters(count: int = 12, seed: int = 0) -> Store:
    """Small molecules of H, C and O near their shapes, with energies and forces of a Morse potential and per-element energies."""
    rng = np.random.default_rng(seed)
    frames = [molecule(name) for name in ("H2O", "CH4", "CO2", "H2CO", "CH3OH", "CO")]
    teacher = potentials.build("morse", cutoff=CUTOFF, elements=ELEMENTS, r0=1.3, depth=0.8)
    teacher.set_references({1: -13.6, 6: -1027.0, 8: -2041.0})
    made = []
    for k in range(count):
        atoms = frames[k % len(frames)].copy()
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        made.append(atoms)
    graph = AtomGraph.from_ase(made, CUTOFF)
    labels = teacher(graph)
    store = Store(graph.z, graph.pos, graph.ptr, labels, info={"name": "clusters", "level_of_theory": "Morse"})
    return store.with_neighbors(CUTOFF)
