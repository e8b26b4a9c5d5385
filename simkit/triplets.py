"""Triplets k -> j -> i: pairs of an edge that ends at an atom and one that starts there, as dense blocks around the atoms."""

from typing import NamedTuple

import torch
from torch import Tensor

SAME_PLACE = 1e-4
"""Squared distance, angstrom^2, below which two neighbors are the same image of the same atom: real atoms are never that close."""


class TripletBlock(NamedTuple):
    """The triplets around ``A`` central atoms j that have up to ``K`` neighbors each.

    Attributes:
        incoming: [A, K] int64, the edges k -> j; entries beyond an atom's neighbors are any edges.
        outgoing: [A, K] int64, the edges j -> i, likewise.
        exists: [A, K, K] bool, for outgoing edge and incoming edge.
        in_order: whether ``incoming`` is all edges as they come, so that nothing needs to be gathered.
    """

    incoming: Tensor
    outgoing: Tensor
    exists: Tensor
    in_order: bool


class Triplets(NamedTuple):
    """All triplets of a graph.

    Attributes:
        blocks: the atoms by their number of neighbors; those with more than half as many as the largest of a block share it, so that
            less than three quarters of it are padding.
        position: [E] int64, where the edge j -> i is found in the outgoing edges of all blocks, flattened and put end to end.
    """

    blocks: list[TripletBlock]
    position: Tensor


def make_triplets(edge_index: Tensor, vectors: Tensor, num_atoms: int, *, one_block: bool = False) -> Triplets:
    """Return all pairs of edges k -> j and j -> i but those where k is i.

    In a periodic structure an atom may be a neighbor several times, through several images; only the edge j -> i itself backwards is
    left out, the same image, because two different images of an atom span an angle as any two neighbors do.

    Args:
        edge_index: [2, E], sorted by receiver unless ``one_block``, every pair both ways.
        vectors: [E, 3], from receiver to sender, angstrom.
        one_block: whether one block has all atoms, whatever their number of neighbors; then edges come in any order.
    """
    sender, receiver = edge_index[0], edge_index[1]
    num_edges, device = sender.shape[0], sender.device
    count = torch.zeros(num_atoms, dtype=torch.int64, device=device)
    count = count.index_add(0, receiver, torch.ones_like(receiver))
    start = count.cumsum(0) - count
    by_sender = torch.argsort(sender, stable=True)  # as many edges start at an atom as end there
    by_receiver = torch.argsort(receiver, stable=True) if one_block else None
    # Counts from 2^(e-1) to 2^e - 1 share the exponent e.
    octave = torch.zeros_like(count) if one_block else torch.frexp(count.double()).exponent.long()
    largest = torch.zeros(64, dtype=torch.int64, device=device).scatter_reduce(0, octave, count, "amax")
    position = torch.zeros(num_edges + 1, dtype=torch.int64, device=device)
    # The only wait for the device: shapes depend on the numbers of neighbors.
    widths = [(exponent, width) for exponent, width in enumerate(largest.tolist()) if width]
    blocks, end = [], 0
    for exponent, width in widths:
        atoms = (octave == exponent).nonzero().squeeze(1)
        offset = torch.arange(width, device=device)
        valid = offset < count.index_select(0, atoms).unsqueeze(1)
        slots = (start.index_select(0, atoms).unsqueeze(1) + offset).clamp(max=num_edges - 1)
        outgoing = by_sender[slots]
        places = end + torch.arange(slots.numel(), device=device).view_as(slots)
        position[torch.where(valid, outgoing, num_edges)] = places
        incoming = slots if by_receiver is None else by_receiver[slots]
        exists = _exists(vectors.detach(), incoming, outgoing, valid)
        in_order = by_receiver is None and len(widths) == 1 and slots.numel() == num_edges
        blocks.append(TripletBlock(incoming, outgoing, exists, in_order))
        end += slots.numel()
    return Triplets(blocks, position[:num_edges])


def _exists(vectors: Tensor, incoming: Tensor, outgoing: Tensor, valid: Tensor) -> Tensor:
    """Which pairs of an outgoing and an incoming edge are triplets, [A, K, K]."""
    # From k to i: zero for the edge backwards, to the same image.
    span = vectors[outgoing].unsqueeze(2) + vectors[incoming].unsqueeze(1)
    return valid.unsqueeze(2) & valid.unsqueeze(1) & (span.square().sum(dim=3) > SAME_PLACE)
