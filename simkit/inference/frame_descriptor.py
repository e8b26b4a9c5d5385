"""A simple descriptor of whole structures, which tells geometries apart: smooth histograms of distances between elements."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from simkit.errors import ElementError
from simkit.graph import AtomGraph

CENTRES = 32
"""Radial functions for each pair of elements; their width is the distance of two."""
CHUNK = 256


def describe_frames(frames: Sequence[Atoms], elements: Sequence[int], cutoff: float = 5.0) -> NDArray[np.float64]:
    """Return a descriptor of each frame, [C, P * `CENTRES`] for P pairs of elements; it knows no order of atoms and no orientation.

    For each pair of elements, the sum over all pairs of atoms of Gaussians of their distance, each weighted by a cosine that falls to zero
    at the cutoff (the radial functions G2 of Behler, J. Chem. Phys. 134, 074106 (2011)), divided by the number of atoms.

    Args:
        frames: of any composition, periodic or not. elements: atomic numbers that may occur. cutoff: angstrom.

    Raises:
        ElementError: if a frame holds another element.
    """
    numbers = sorted(set(elements))
    pairs = list(combinations_with_replacement(range(len(numbers)), 2))
    table = torch.zeros((len(numbers), len(numbers)), dtype=torch.int64)
    for k, (a, b) in enumerate(pairs):
        table[a, b] = table[b, a] = k
    parts = [
        _histograms(AtomGraph.from_ase(list(frames[start : start + CHUNK]), cutoff), numbers, table, cutoff)
        for start in range(0, len(frames), CHUNK)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, len(pairs) * CENTRES))


def _histograms(graph: AtomGraph, numbers: list[int], table: torch.Tensor, cutoff: float) -> NDArray[np.float64]:
    species = torch.searchsorted(torch.tensor(numbers), graph.z).clamp(max=len(numbers) - 1)
    if bool((torch.tensor(numbers)[species] != graph.z).any()):
        raise ElementError(f"expected frames of the elements {numbers}, found {sorted(set(graph.z.tolist()))}")
    sender, receiver = graph.edge_index
    r = graph.edge_vectors().norm(dim=1)
    centres = torch.linspace(0.5, cutoff, CENTRES, dtype=r.dtype)
    width = centres[1] - centres[0]
    values = (
        torch.exp(-0.5 * ((r[:, None] - centres) / width) ** 2)
        * (0.5 + 0.5 * torch.cos(torch.pi * r / cutoff))[:, None]
    )
    count = int(table.max()) + 1
    row = graph.batch[receiver] * count + table[species[sender], species[receiver]]
    sums = values.new_zeros(graph.num_structures * count, CENTRES).index_add(0, row, values)
    sizes = (graph.ptr[1:] - graph.ptr[:-1]).to(sums)
    found: NDArray[np.float64] = (sums.view(graph.num_structures, -1) / sizes[:, None]).numpy()
    return found
