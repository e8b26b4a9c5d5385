"""Small potentials of every architecture, and structures, that the tests of their contract share."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from simkit import potentials
from simkit.errors import ConfigError
from simkit.graph import AtomGraph
from simkit.potential import Potential

CUTOFF = 4.0
ELEMENTS = [1, 6, 8]
REFERENCES = {1: -13.6, 6: -1027.5, 8: -2041.3}

# Small networks, and pairs that attract at the distances of these structures; an architecture takes those that it knows.
SMALL = {"channels": 36, "layers": 2, "sigma": 1.2, "epsilon": 0.2, "r0": 1.3, "depth": 0.8}

every = pytest.mark.parametrize("name", potentials.available())
seeds = st.integers(min_value=0, max_value=2**32 - 1)
few = settings(max_examples=8)


@functools.cache
def abilities(name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The small options that the architecture knows, and the heads that it can have."""
    options = {key: value for key, value in SMALL.items() if key in potentials.build(name, elements=[1]).options}
    try:
        potentials.build(name, elements=[1], outputs=["energy", "dipole"])
    except ConfigError:
        return options, ("energy",)
    return options, ("energy", "dipole")


def make(name: str, dtype: str = "float64", anchored: bool = False, seed: int = 0, dipole: bool = True) -> Potential:
    """A small potential whose energies and forces are not tiny, with all the heads it can have."""
    options, heads = abilities(name)
    heads = heads if dipole else ("energy",)
    potential = potentials.build(
        name, cutoff=CUTOFF, elements=ELEMENTS, outputs=heads, dtype=dtype, anchored=anchored, seed=seed, **options
    )
    potential.set_references(REFERENCES)
    potential.scale.fill_(20.0)
    potential.shift.fill_(0.37)
    return potential


def graph_of(frames: Atoms | Sequence[Atoms]) -> AtomGraph:
    return AtomGraph.from_ase(frames, CUTOFF)


def evaluate(potential: Potential, frames: Atoms | Sequence[Atoms], *outputs: str) -> dict[str, NDArray[np.float64]]:
    results = potential(
        graph_of(frames), outputs or tuple(n for n in potential.outputs if n not in ("stress", "dipole", "mu"))
    )
    return {key: value.detach().double().numpy() for key, value in results.items()}


def ethanol() -> Atoms:
    frame = molecule("CH3CH2OH")
    frame.rattle(0.1, seed=3)
    return frame


def crystal() -> Atoms:
    """A skewed cell so small that atoms see their own images."""
    cell = [[3.1, 0.2, 0.0], [0.9, 2.9, 0.3], [-0.4, 0.6, 3.3]]
    return Atoms("HCO", scaled_positions=[[0.1, 0.2, 0.9], [0.55, 0.5, 0.4], [0.0, 0.75, 0.35]], cell=cell, pbc=True)


def with_pbc(*pbc: bool) -> Atoms:
    frame = crystal()
    frame.pbc = pbc
    return frame


def random_structure(rng: np.random.Generator) -> Atoms:
    """Two to six atoms at least 0.9 angstrom apart, images included, in a skewed cell with any mix of periodic directions."""
    cell = 3.5 * (np.eye(3) + rng.uniform(-0.2, 0.2, (3, 3)))
    points = [rng.uniform(size=3)]
    images = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    count = int(rng.integers(2, 7))
    for point in rng.uniform(size=(500, 3)):
        separations = (np.array(points)[:, None] - point + images) @ cell
        if len(points) < count and np.linalg.norm(separations, axis=-1).min() > 0.9:
            points.append(point)
    frame = Atoms(rng.choice(ELEMENTS, len(points)), scaled_positions=points, cell=cell, pbc=rng.integers(0, 2, 3) > 0)
    frame.positions += rng.uniform(-20, 20, 3)
    return frame


def random_rotation(rng: np.random.Generator, improper: bool) -> NDArray[np.float64]:
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.linalg.det(q) * (-1.0 if improper else 1.0)


def assert_close(actual: Any, expected: Any, relative: float = 1e-9) -> None:
    """Compare arrays of one quantity; errors count against its largest value, so that zeros by symmetry are no problem."""
    bound = relative * max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound)
