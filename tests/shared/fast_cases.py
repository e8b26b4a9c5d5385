"""Models and structures that the tests of the fast path share."""

from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule

from simkit import potentials
from simkit.graph import AtomGraph
from simkit.potential import Potential, Representation

CUTOFF = 4.0
ARCHITECTURES = [
    name for name in potentials.available() if potentials.architecture(name)[0].fused is not Representation.fused
]
"""All that say they have a fast path: a new one is tested with the others."""


def model(architecture: str, **options: Any) -> Potential:
    """A small model of H, C, O and Si with scale, shift and references that are not trivial."""
    chosen: dict[str, Any] = {"cutoff": CUTOFF, "channels": 16, "layers": 3, "dtype": "float64", "seed": 5}
    built = potentials.build(architecture, elements=[1, 6, 8, 14], **{**chosen, **options})
    built.set_references({1: -13.6, 6: -1030.0, 8: -2040.0, 14: -7870.0})
    built.scale.fill_(0.05)
    built.shift.fill_(-0.4)
    return built


def ethanol(seed: int = 0) -> Atoms:
    """A molecule out of equilibrium."""
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=seed)
    return atoms


def silicon(repeat: int = 1, seed: int = 0) -> Atoms:
    """A crystal out of equilibrium."""
    atoms = bulk("Si", cubic=True) * (repeat, 1, 1)
    atoms.rattle(0.1, seed=seed)
    return atoms


def narrow() -> Atoms:
    """A crystal so small that atoms are their own neighbors, and several images of one are."""
    cell = [[2.1, 0.2, 0.0], [0.9, 2.3, 0.3], [-0.4, 0.6, 3.3]]
    return Atoms("CO", scaled_positions=[[0.1, 0.2, 0.9], [0.55, 0.5, 0.4]], cell=cell, pbc=True)


def slab() -> Atoms:
    """Periodic in two directions."""
    places = np.array([[0.1, 0.2, 0.0], [1.9, 1.4, 0.3], [0.3, 2.2, 1.5]])
    return Atoms("SiOH", places, cell=[[4.0, 0.1, 0], [0.3, 3.8, 0], [0, 0, 0]], pbc=[True, True, False])


def beyond() -> Atoms:
    """Two atoms that do not see each other."""
    return Atoms("HO", [[0, 0, 0], [0, 0, CUTOFF + 0.5]])


def graph(*frames: Atoms, cutoff: float = CUTOFF) -> AtomGraph:
    """One graph of all."""
    return AtomGraph.from_ase(list(frames), cutoff)


def everything() -> AtomGraph:
    """Structures of all kinds in one batch."""
    return graph(ethanol(), silicon(2), Atoms("C"), narrow(), slab(), beyond(), molecule("C6H6"))


def differences(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    """The largest difference of each output."""
    assert set(found) == set(expected)
    result = {}
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert not found[name].requires_grad
        result[name] = float((found[name].double() - value.detach().double()).abs().max())
    return result
