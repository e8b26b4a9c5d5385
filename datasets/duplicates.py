"""Finding geometries that occur in more than one part of a split, up to rotation, reflection and order of the atoms."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from simkit.datasets.splits import Ints, Splits
from simkit.datasets.store import Store
from simkit.progress import track

_CUTOFF = 5.0
_POWERS = 6
_CHUNK_ATOMS = 20_000
_CHUNK_PAIRS = 500


def duplicates_across(
    store: Store, splits: Splits, tolerance: float = 1e-4, limit: int = 1000
) -> list[tuple[int, int]]:
    """Return pairs of structures ``(i, j)``, in different parts of the split, that are the same geometry.

    The same are structures of one composition whose sorted distances up to 5 angstrom agree for every pair of elements. All
    structures are first compared by a few sums over their distances, so that the cost is linear for distinct ones.

    Args:
        tolerance: by how much the position of an atom may differ, angstrom.
        limit: return so many pairs at most, and search no further.
    """
    store = store.to("cpu").with_neighbors(_CUTOFF)
    sums, slopes = _fingerprints(store)
    _, kind = np.unique(store.composition().numpy(), axis=0, return_inverse=True)
    window = 2 * tolerance * slopes + 1e-12
    order = np.lexsort((sums[:, 0], kind.reshape(-1)))
    kind, sums, window = kind.reshape(-1)[order], sums[order], window[order]
    codes = splits.codes[order]
    found: list[Ints] = []
    for step in range(1, len(order)):
        near = (kind[:-step] == kind[step:]) & (sums[step:, 0] - sums[:-step, 0] <= window[:-step, 0])
        if not near.any() or sum(map(len, found)) >= limit:
            break
        across = near & (codes[:-step] != codes[step:]) & (codes[:-step] >= 0) & (codes[step:] >= 0)
        across[across] = (np.abs(sums[step:][across] - sums[:-step][across]) <= window[:-step][across]).all(1)
        places = np.flatnonzero(across)
        for start in range(0, len(places), _CHUNK_PAIRS):
            part = places[start : start + _CHUNK_PAIRS]
            pairs = np.sort(np.stack([order[part], order[part + step]], axis=1), axis=1)
            found.append(pairs[_same(store, pairs, tolerance)])
    pairs = np.concatenate(found) if found else np.zeros((0, 2), dtype=np.int64)
    return sorted((int(i), int(j)) for i, j in pairs[:limit])


def _fingerprints(store: Store) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return, per structure, sums over its distances and bounds on their change per change of a distance, [F, powers] each."""
    starts = np.unique(np.searchsorted(store.ptr.numpy(), np.arange(0, len(store.z), _CHUNK_ATOMS)))
    edges = [*starts[starts < len(store)].tolist(), len(store)]
    sums, slopes = np.zeros((len(store), _POWERS)), np.zeros((len(store), _POWERS))
    for first, last in track(list(zip(edges[:-1], edges[1:], strict=True)), "compare geometries"):
        graph = store.batch(torch.arange(first, last))
        distance, z = graph.edge_vectors().norm(dim=1), graph.z.double()
        weight = (z[graph.edge_index[0]] * z[graph.edge_index[1]]).sqrt()
        frame = graph.batch[graph.edge_index[1]]
        x = (distance / _CUTOFF).clamp(max=1.0)
        damping = (1 - x**2) ** 2
        for power in range(_POWERS):
            value = weight * damping * x**power
            slope = weight * ((1 - x**2) * (4 * x ** (power + 1)) + power * damping * x ** max(power - 1, 0)) / _CUTOFF
            for target, values in ((sums, value), (slopes, slope)):
                target[first:last, power] = torch.bincount(frame, values, last - first).numpy()
    return sums, slopes


def _same(store: Store, pairs: Ints, tolerance: float) -> NDArray[np.bool_]:
    """Return for pairs of structures [P, 2] whether their sorted distances agree for every pair of elements, [P]."""
    graph = store.batch(pairs.reshape(-1))
    z = graph.z[graph.edge_index].sort(dim=0).values
    kind, frame = (z[0] * 1000 + z[1]).numpy(), graph.batch[graph.edge_index[1]].numpy()
    distance = graph.edge_vectors().norm(dim=1).numpy()
    counts = np.bincount(frame, minlength=len(graph.ptr) - 1).reshape(-1, 2)
    same: NDArray[np.bool_] = counts[:, 0] == counts[:, 1]
    order = np.lexsort((distance, kind, frame))
    order = order[same[frame[order] // 2]]
    first, second = order[frame[order] % 2 == 0], order[frame[order] % 2 == 1]
    differs = (kind[first] != kind[second]) | (np.abs(distance[first] - distance[second]) > 2 * tolerance)
    same[frame[first[differs]] // 2] = False
    return same
