"""What a model has seen: how close pairs of elements came in the training data, and how dense it was."""

from __future__ import annotations

from typing import Any

import torch
from ase.data import chemical_symbols

from simkit.datasets.store import Store
from simkit.graph import AtomGraph

CHUNK_ATOMS = 20000


def closest_distances(store: Store) -> dict[str, float]:
    """Return the least distance, angstrom, between each pair of elements that come within the neighbor cutoff, as {"C-H": 0.98}.

    Args:
        store: structures with neighbors.
    """
    least: dict[str, float] = {}
    size = max(1, CHUNK_ATOMS // int(store.n_atoms.max()))
    for indices in torch.arange(len(store)).split(size):
        for pair, distance in graph_distances(store.batch(indices)).items():
            least[pair] = min(distance, least.get(pair, distance))
    return dict(sorted(least.items()))


def graph_distances(graph: AtomGraph) -> dict[str, float]:
    """Return the least distance between each pair of elements among the edges of a graph."""
    if graph.edge_index.shape[1] == 0:
        return {}
    distances = graph.edge_vectors().norm(dim=1)
    low, high = torch.aminmax(graph.z[graph.edge_index], dim=0)
    keys, inverse = torch.unique(low * 200 + high, return_inverse=True)
    least = torch.full((len(keys),), torch.inf, dtype=distances.dtype, device=distances.device)
    least = least.scatter_reduce(0, inverse, distances, "amin")
    return {
        f"{chemical_symbols[key // 200]}-{chemical_symbols[key % 200]}": round(value, 4)
        for key, value in zip(keys.tolist(), least.tolist(), strict=True)
    }


def extrapolation_warnings(domain: dict[str, Any], distances: dict[str, float], what: str) -> list[str]:
    """Say where structures lie outside what a model was trained on.

    Args:
        domain: ``info["domain"]`` of a model, with ``closest``: least distances in the training data, angstrom.
        distances: least distances of the structures in question.
        what: what they are, for the message.
    """
    seen = domain.get("closest", {})
    messages = []
    for pair, distance in distances.items():
        if pair not in seen:
            messages.append(
                f"{what}: the pair {pair} comes to {distance:.2f} angstrom, but was never within the cutoff in the training data"
            )
        elif distance < 0.95 * seen[pair]:
            messages.append(
                f"{what}: the pair {pair} comes to {distance:.2f} angstrom; the closest in the training data is {seen[pair]:.2f}"
            )
    return messages
