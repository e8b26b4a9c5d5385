"""Neighbor lists of many replicas at once by binning, in torch on the device that the positions are on."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simkit.errors import GeometryError
from simkit.neighbors import LARGEST_COORDINATE, SEARCH_MARGIN, SHORTEST_CELL_VECTOR, SMALLEST_RELATIVE_VOLUME


def check_cell(cell: NDArray[np.float64], pbc: NDArray[np.bool_], what: str) -> None:
    """Refuse a cell [3, 3] without extent along its periodic directions.

    Raises:
        GeometryError: if a vector is too short or not finite, or the vectors are (nearly) linearly dependent.
    """
    rows = cell[pbc]
    lengths = np.linalg.norm(rows, axis=1)
    usable = bool(np.isfinite(rows).all() and (lengths >= SHORTEST_CELL_VECTOR).all())
    if usable and len(rows):
        usable = bool(np.linalg.svd(rows / lengths[:, None], compute_uv=False).prod() >= SMALLEST_RELATIVE_VOLUME)
    if not usable:
        raise GeometryError(
            f"the cell of {what} has no volume: expected independent vectors of at least {SHORTEST_CELL_VECTOR} angstrom along the "
            f"periodic directions, found {cell.tolist()} (pbc {pbc.tolist()}); give the cell in angstrom or switch pbc off"
        )


def batch_neighbor_list(
    positions: Tensor, cells: Tensor, pbc: NDArray[np.bool_], offsets: NDArray[np.int64], cutoff: float
) -> tuple[Tensor, Tensor]:
    """All pairs closer than the cutoff within each replica: `simkit.neighbors.neighbor_list` replica by replica, on any device.

    Each replica's atoms and their images near the cell are put into bins as long as the cutoff, along the normals of the cell's faces.
    An atom's neighbors lie in nine columns of three bins, each column a range of the atoms sorted by bin. Time and memory are linear
    in the number of edges.

    Args:
        positions: [N, 3] angstrom, float64, anywhere.
        cells: [R, 3, 3] angstrom. pbc: [R, 3]. offsets: [R + 1], where the replicas' atoms begin, and N.
        cutoff: angstrom.

    Returns:
        edge_index [2, E] int64 (sender, receiver), sorted by receiver, sender and shift; shift [E, 3] float64.

    Raises:
        GeometryError: if coordinates are not finite or a cell has no volume.
    """
    if not bool((positions.abs() <= LARGEST_COORDINATE).all()):
        raise GeometryError(
            f"positions: expected finite coordinates up to {LARGEST_COORDINATE:g} angstrom; a simulation may have exploded "
            "(time step too long?)"
        )
    device, reach = positions.device, cutoff + SEARCH_MARGIN
    replica = torch.repeat_interleave(torch.arange(len(pbc)), torch.from_numpy(np.diff(offsets))).to(device)
    box = torch.from_numpy(_boxes(cells.cpu().numpy(), pbc)).to(device)
    periodic = torch.from_numpy(pbc).to(device)
    inverse = torch.linalg.inv(box)
    heights = 1.0 / torch.linalg.vector_norm(inverse, dim=1)  # [R, 3]
    scaled = torch.einsum("nd,nde->ne", positions, inverse.index_select(0, replica))
    wraps = torch.where(periodic.index_select(0, replica), scaled.floor(), 0.0)
    place = (scaled - wraps) * heights.index_select(0, replica)

    owner, image = _images(place, heights, periodic, replica, reach)
    places = place.index_select(0, owner) + image * heights.index_select(0, replica.index_select(0, owner))
    receiver, slot = _candidates(place, places, replica, owner, reach)
    sender = owner.index_select(0, slot)
    shift = image.index_select(0, slot) + wraps.index_select(0, receiver) - wraps.index_select(0, sender)
    lattice = (cells * periodic[:, :, None]).index_select(0, replica.index_select(0, receiver))
    vectors = positions.index_select(0, sender) - positions.index_select(0, receiver)
    vectors = vectors + torch.einsum("ed,edk->ek", shift, lattice)
    near = vectors.square().sum(1) < cutoff * cutoff
    near &= (sender != receiver) | (shift != 0).any(1)
    chosen = near.nonzero().squeeze(1)
    return _sorted(receiver[chosen], sender[chosen], shift[chosen], len(positions))


def _boxes(cells: NDArray[np.float64], pbc: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The cells with unit vectors orthogonal to the rest along directions that are not periodic, [R, 3, 3]."""
    boxes = np.where(pbc[:, :, None], cells, 0.0)
    for k in range(len(boxes)):
        check_cell(cells[k], pbc[k], f"replica {k}")
    _, _, axes = np.linalg.svd(boxes / np.maximum(np.linalg.norm(boxes, axis=2, keepdims=True), 1e-300))
    for k in np.flatnonzero(~pbc.all(axis=1)).tolist():
        boxes[k, ~pbc[k]] = axes[k, pbc[k].sum() :]
    return boxes


def _images(place: Tensor, heights: Tensor, periodic: Tensor, replica: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """The atoms in the cells and those of their images that lie within reach of it: owners [G] and lattice steps [G, 3]."""
    owner = torch.arange(len(place), device=place.device)
    image = place.new_zeros(len(place), 3)
    for d in range(3):
        along = periodic[:, d]
        most = int(torch.where(along, torch.ceil(reach / heights[:, d]), 0.0).max())
        steps = torch.arange(-most, most + 1, device=place.device, dtype=place.dtype)
        own = replica.index_select(0, owner)
        height = heights[:, d].index_select(0, own)[:, None]
        moved = place[:, d].index_select(0, owner)[:, None] + steps * height
        wanted = (moved >= -reach) & (moved <= height + reach) & along.index_select(0, own)[:, None]
        wanted |= steps == 0
        row, column = wanted.nonzero().unbind(1)
        owner, image = owner.index_select(0, row), image.index_select(0, row)
        image[:, d] = steps.index_select(0, column)
    return owner, image


def _candidates(place: Tensor, places: Tensor, replica: Tensor, owner: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """Pairs of an atom and a slot in its bin or one beside it, [C] each: sorted by atoms.

    place: [N, 3], of the atoms in their cells, angstrom along the normals of the cell's faces; places: [G, 3], likewise with images.
    """
    low = places.amin(0) - reach
    bins = ((places - low) / reach).floor().long()
    count = (bins.amax(0) + 2).tolist()
    if float(count[0]) * count[1] * count[2] * (int(replica[-1]) + 1) > 2.0**62:
        raise GeometryError(
            "the atoms lie too far apart to count bins of the cutoff's length in 64 bits; has one escaped?"
        )

    def key(of: Tensor, bin_: Tensor) -> Tensor:
        return ((of * count[0] + bin_[..., 0]) * count[1] + bin_[..., 1]) * count[2] + bin_[..., 2]

    keys, order = key(replica.index_select(0, owner), bins).sort()
    own = ((place - low) / reach).floor().long()
    beside = torch.tensor([[x, y, 0] for x in (-1, 0, 1) for y in (-1, 0, 1)], device=place.device)
    middle = key(replica[:, None], own[:, None] + beside)  # [N, 9]
    first = torch.searchsorted(keys, middle - 1)
    found = (torch.searchsorted(keys, middle + 1, right=True) - first).flatten()
    total = int(found.sum())
    column = torch.repeat_interleave(found, output_size=total)
    begin = first.flatten() - found.cumsum(0) + found
    slot = torch.arange(total, device=place.device) + begin.index_select(0, column)
    return column // len(beside), order.index_select(0, slot)


def _sorted(receiver: Tensor, sender: Tensor, shift: Tensor, atoms: int) -> tuple[Tensor, Tensor]:
    """Sort by receiver, sender and shift."""
    if len(receiver) == 0:
        return torch.stack([sender, receiver]), shift
    low = shift.amin(0)
    x, y, z = ((shift - low).long()).unbind(1)
    _, wide, deep = (shift.amax(0) - low + 1).long().tolist()
    order = ((x * wide + y) * deep + z).argsort(stable=True)
    pair = (receiver * atoms + sender).index_select(0, order)
    order = order.index_select(0, pair.argsort(stable=True))
    return torch.stack([sender, receiver]).index_select(1, order), shift.index_select(0, order)
