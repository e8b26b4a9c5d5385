"""Radial distribution functions of periodic systems, and histograms of the distances in molecules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simkit.errors import ConfigError, GeometryError
from simkit.neighbors import neighbor_list

Floats = NDArray[np.float64]
Pair = tuple[str, str]

CHUNK = 2**20
"""Distances that are computed together in isolated molecules: bounds the memory."""
MOST_PAIRS, MOST_BINS = 1e8, 100_000
"""What one frame of a periodic system, and the result, may hold: beyond, r_max or bins are a slip of the pen."""
ALL_PAIRS = 400
"""Atoms up to which isolated molecules are done without neighbor lists."""


@dataclass(frozen=True)
class RadialDistribution:
    """Distances between atoms, averaged over frames, in B bins of one width.

    Attributes:
        distances: [B] centres of the bins, angstrom; width: of a bin, angstrom.
        total: [B] all atoms; pairs: [B] for each pair of elements, such as ("O", "H").
        normalised: True for g(r), without a unit, which is 1 where nothing is correlated (periodic along all directions); False for
            the number of pairs per structure and angstrom, whose integral over a peak counts the pairs in it (all other systems: they
            have no density to divide by).
        neighbors: [B] for each ordered pair (a, b): mean number of b within the outer edge of the bin around an a.
    """

    distances: Floats
    width: float
    total: Floats
    pairs: Mapping[Pair, Floats]
    normalised: bool
    neighbors: Mapping[Pair, Floats]


def radial_distribution(
    positions: ArrayLike,
    cells: ArrayLike,
    pbc: ArrayLike,
    species: Mapping[str, ArrayLike],
    *,
    r_max: float,
    bins: int = 200,
) -> RadialDistribution:
    """Count distances between atoms, in total and for every pair of elements.

    Every periodic image within r_max counts, also beyond half the cell (where a liquid in a small cell shows the order of its own
    images) and images of an atom itself. g_ab(r) = <V n_ab> / (N_a N_b 4 pi/3 (r_2^3 - r_1^3)) with n_ab ordered pairs in the shell from
    r_1 to r_2 (Allen & Tildesley, Computer Simulation of Liquids, 2nd ed., ch. 8). With N_a N_b for a = b, too, crystals have exactly
    their coordination numbers, while an ideal gas of N atoms has 1 - 1/N within half the cell.

    Args:
        positions: [T, N, 3] angstrom; cells: [T, 3, 3] or [3, 3] angstrom; pbc: [3] bool.
        species: name -> [N] bool, which atoms belong to it; each atom to exactly one.
        r_max: longest distance, angstrom; bins: their number from 0 to there.

    Raises:
        ConfigError: if r_max or bins are not positive, or far too large.
        GeometryError: for wrong shapes, species that do not share out the atoms, and unusable cells or coordinates.
    """
    path, periodic = np.asarray(positions, dtype=float), np.asarray(pbc, dtype=bool)
    if not (np.isfinite(r_max) and r_max > 0 and 1 <= bins <= MOST_BINS):
        raise ConfigError(f"r_max must be positive and bins 1 to {MOST_BINS}, found {r_max} angstrom and {bins}")
    if path.ndim != 3 or path.shape[2] != 3 or 0 in path.shape or periodic.shape != (3,):
        raise GeometryError(f"expected positions [T, N, 3] and pbc [3], found {path.shape} and {periodic.shape}")
    lattice = np.asarray(cells, dtype=float)
    if lattice.shape not in {(3, 3), (len(path), 3, 3)}:
        raise GeometryError(f"expected cells [3, 3] or [{len(path)}, 3, 3], found {lattice.shape}")
    lattice = np.broadcast_to(lattice, (len(path), 3, 3))
    kinds = _kinds(species, path.shape[1])
    if periodic.all():
        pairs = path.shape[1] ** 2 * 4 * np.pi / 3 * r_max**3 / max(float(np.abs(np.linalg.det(lattice)).min()), 1e-9)
        if pairs > MOST_PAIRS:
            raise ConfigError(
                f"there are {pairs:.1g} pairs within {r_max:g} angstrom in one frame; choose a shorter r_max"
            )
    if periodic.any() or path.shape[1] > ALL_PAIRS:
        counts, weighted = _count_lists(path, lattice, periodic, kinds, len(species), r_max, bins)
    else:
        counts = weighted = _count_all_pairs(path, kinds, len(species), r_max, bins)
    return _normalise(counts, weighted, list(species), np.bincount(kinds), r_max, bool(periodic.all()))


def _kinds(species: Mapping[str, ArrayLike], n_atoms: int) -> NDArray[np.int64]:
    """The number of its species for every atom."""
    masks = np.array([np.asarray(mask, dtype=bool) for mask in species.values()])
    if masks.shape != (len(species), n_atoms) or not len(species) or (masks.sum(axis=0) != 1).any():
        raise GeometryError(
            f"expected masks of {n_atoms} atoms that give each atom to one species, found {masks.shape}"
        )
    return masks.argmax(axis=0)


def _count_lists(
    path: Floats,
    lattice: Floats,
    periodic: NDArray[np.bool_],
    kinds: NDArray[np.int64],
    n_species: int,
    r_max: float,
    bins: int,
) -> tuple[Floats, Floats]:
    """Ordered pairs [S, S, B], mean over frames: as they are, and times the volume of their frame."""
    shape = (n_species, n_species, bins)
    counts, weighted = np.zeros(shape), np.zeros(shape)
    for positions, cell in zip(path, lattice, strict=True):
        edges = neighbor_list(positions, cell, periodic, r_max)
        vectors = edges.vectors(positions, np.where(periodic[:, None], cell, 0.0))
        sender, receiver = edges.edge_index
        found = _histogram(_lengths(vectors), kinds[receiver] * n_species + kinds[sender], shape, r_max)
        counts += found
        weighted += found * abs(float(np.linalg.det(cell)))
    return counts / len(path), weighted / len(path)


def _count_all_pairs(path: Floats, kinds: NDArray[np.int64], n_species: int, r_max: float, bins: int) -> Floats:
    """Ordered pairs [S, S, B] of isolated molecules, mean over frames."""
    first, second = np.triu_indices(path.shape[1], k=1)
    counts = np.zeros((n_species, n_species, bins))
    if len(first):
        pair = kinds[first] * n_species + kinds[second]
        step = max(1, CHUNK // len(first))
        for start in range(0, len(path), step):
            part = path[start : start + step]
            vectors = part[:, first] - part[:, second]
            counts += _histogram(_lengths(vectors).ravel(), np.tile(pair, len(part)), counts.shape, r_max)
    return (counts + counts.transpose(1, 0, 2)) / len(path)


def _lengths(vectors: Floats) -> Floats:
    return np.sqrt(np.einsum("...x,...x->...", vectors, vectors))


def _histogram(distances: Floats, pair: NDArray[np.int64], shape: tuple[int, ...], r_max: float) -> Floats:
    """Count distances in bins for every pair of species."""
    bins = shape[-1]
    near = distances < r_max
    place = np.minimum((distances[near] * (bins / r_max)).astype(np.int64), bins - 1)
    return np.bincount(pair[near] * bins + place, minlength=math.prod(shape)).reshape(shape).astype(float)


def _normalise(
    counts: Floats, weighted: Floats, names: list[str], members: NDArray[np.int64], r_max: float, periodic: bool
) -> RadialDistribution:
    """Turn mean counts of ordered pairs [S, S, B] into the result."""
    bins = counts.shape[2]
    edges = np.linspace(0.0, r_max, bins + 1)
    width = r_max / bins
    n_atoms = int(members.sum())
    indices = [(a, b) for a in range(len(names)) for b in range(a, len(names))]
    if periodic:
        shells = 4 * np.pi / 3 * np.diff(edges**3)
        total = weighted.sum(axis=(0, 1)) / (n_atoms**2 * shells)
        pairs = {(names[a], names[b]): weighted[a, b] / (members[a] * members[b] * shells) for a, b in indices}
    else:
        total = counts.sum(axis=(0, 1)) / (2 * width)
        # Ordered pairs of one species count twice; those of two species stand in both triangles.
        pairs = {(names[a], names[b]): counts[a, b] / (2 * width if a == b else width) for a, b in indices}
    neighbors = {
        (names[a], names[b]): counts[a, b].cumsum() / members[a] for a in range(len(names)) for b in range(len(names))
    }
    return RadialDistribution((edges[:-1] + edges[1:]) / 2, width, total, pairs, periodic, neighbors)
