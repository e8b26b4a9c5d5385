"""Neighbor lists: any cell on the CPU (vesin), batches of isolated molecules on any device (torch), and a Verlet-skin cache.

Conventions, everywhere: `edge_index[0]` is the sender j, `edge_index[1]` the receiver i; the vector of an edge is
`(positions[j] - positions[i]) + shift @ cell`, from the receiver to the sender. Lists are full (every pair stands in both directions),
hold every pair with distance < cutoff however many there are, and are sorted by receiver, then sender, then shift.
Atoms that coincide are listed like any others.
"""

from dataclasses import dataclass

import numpy as np
import torch
import vesin
from numpy.typing import ArrayLike, NDArray

from simkit.errors import GeometryError

# Beyond 1 cm the spacing of float64 numbers grows past 1e-8 angstrom; such coordinates come from a simulation that exploded.
LARGEST_COORDINATE = 1e8
SHORTEST_CELL_VECTOR = 0.1
SMALLEST_RELATIVE_VOLUME = 1e-6
# vesin shrinks its grid above this many cells, see _search_radius.
VESIN_MAX_CELLS = 1e5
# Wrapping moves coordinates by rounding errors, so the search reaches a little further; the exact distances decide afterwards.
SEARCH_MARGIN = 1e-6


@dataclass(frozen=True)
class NeighborList:
    """Directed edges between atoms.

    edge_index: [2, E] int64, row 0 the sender j, row 1 the receiver i, sorted by receiver.
    shift: [E, 3] int32, the lattice vectors to add to the sender; always zero along directions that are not periodic.
    """

    edge_index: NDArray[np.int64]
    shift: NDArray[np.int32]

    def vectors(self, positions: NDArray[np.float64], cell: NDArray[np.float64]) -> NDArray[np.float64]:
        """Edge vectors [E, 3] in angstrom, from receiver to sender."""
        sender, receiver = self.edge_index
        return _vectors(positions, cell, sender, receiver, self.shift)


def neighbor_list(positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike, cutoff: float) -> NeighborList:
    """All pairs closer than the cutoff, with periodic images along any mix of the three cell vectors.

    positions: [N, 3] angstrom, anywhere (atoms may lie outside the cell). cell: [3, 3] angstrom, one vector per row; rows along
    directions that are not periodic are ignored and may be zero. pbc: [3] bool. cutoff: angstrom.

    Raises GeometryError for wrong shapes, coordinates that are not finite or beyond 1e8 angstrom, periodic cell vectors that are not
    finite, shorter than 0.1 angstrom or (nearly) linearly dependent, and a cutoff that is not a positive number.
    """
    _check_length("cutoff", cutoff)
    positions, cell, pbc = _as_arrays(positions, cell, pbc)
    _check_positions(positions)
    lattice = np.where(pbc[:, None], cell, 0.0)
    if len(positions) == 0:
        return NeighborList(np.empty((2, 0), dtype=np.int64), np.empty((0, 3), dtype=np.int32))

    reach = cutoff + SEARCH_MARGIN
    box, wrapped, images = _search_box(positions, lattice, pbc, reach)
    radius = _search_radius(1.0 / np.linalg.norm(np.linalg.inv(box), axis=0), reach)
    search = vesin.NeighborList(cutoff=radius, full_list=True, sorted=True)
    first, second, steps = search.compute(wrapped, box, True, "ijS")
    receiver, sender = first.astype(np.int64), second.astype(np.int64)
    order = _order(receiver, sender, steps, len(positions))
    if order is not None:
        receiver, sender, steps = receiver[order], sender[order], steps[order]

    shift = steps.astype(np.int64)
    if images.any():
        shift += images.take(receiver, axis=0) - images.take(sender, axis=0)
    near = _squared_norm(_vectors(positions, lattice, sender, receiver, shift)) < cutoff * cutoff
    for direction in np.flatnonzero(~pbc):  # the box repeats along all directions, the system does not
        near &= steps[:, direction] == 0
    if not near.all():
        receiver, sender, shift = receiver[near], sender[near], shift[near]
    return NeighborList(np.stack([sender, receiver]), _as_int32(shift))


def molecule_edges(pos: torch.Tensor, ptr: torch.Tensor, cutoff: float) -> torch.Tensor:
    """All pairs closer than the cutoff within each isolated molecule of a batch; the same pairs as `neighbor_list` molecule by molecule.

    pos: [N, 3] angstrom, any float dtype (distances are computed in it) and device. ptr: [B + 1] int64 on the same device, molecule b
    owns the atoms ptr[b] to ptr[b + 1] - 1. Returns edge_index [2, E] int64 (sender, receiver) on that device, sorted by receiver,
    then sender. Time and memory grow with the sum of the squared molecule sizes: made for small molecules.

    Raises GeometryError for wrong shapes, a ptr that does not partition the atoms, coordinates that are not finite, and a cutoff that
    is not a positive number.
    """
    _check_length("cutoff", cutoff)
    if pos.ndim != 2 or pos.shape[1] != 3 or not pos.is_floating_point():
        raise GeometryError(f"pos: expected floats of shape [N, 3], found {pos.dtype} of shape {list(pos.shape)}")
    if ptr.ndim != 1 or len(ptr) < 1 or ptr.dtype != torch.int64:
        raise GeometryError(f"ptr: expected int64 of shape [B + 1], found {ptr.dtype} of shape {list(ptr.shape)}")
    pos, n_atoms = pos.detach(), pos.shape[0]
    sizes = ptr.diff()
    # One transfer to the host for everything that is needed there.
    facts = [(sizes * sizes).sum(), ptr[0], ptr[-1], (sizes < 0).any(), torch.isfinite(pos).all()]
    n_pairs, start, stop, decreasing, finite = torch.stack([fact.long() for fact in facts]).tolist()
    if start != 0 or stop != n_atoms or decreasing:
        raise GeometryError(
            f"ptr: expected offsets rising from 0 to the {n_atoms} atoms of pos, found {start} to {stop}"
        )
    if not finite:
        raise GeometryError("pos holds coordinates that are not finite (nan or inf); check where they come from")

    # Receiver by receiver, every atom of its molecule: senders count up from the first atom of the molecule.
    candidates = torch.repeat_interleave(sizes, sizes, output_size=n_atoms)
    first_atom = torch.repeat_interleave(ptr[:-1], sizes, output_size=n_atoms)
    receiver = torch.repeat_interleave(candidates, output_size=n_pairs)
    offset = first_atom - candidates.cumsum(0) + candidates
    sender = torch.arange(n_pairs, device=pos.device) + offset.index_select(0, receiver)
    # index_select on one contiguous row per coordinate: several times faster than pos[sender] and boolean masks.
    vectors = pos.T.contiguous()
    x, y, z = vectors.index_select(1, sender) - vectors.index_select(1, receiver)
    near = ((x * x + y * y + z * z < cutoff * cutoff) & (sender != receiver)).nonzero().squeeze(1)
    return torch.stack([sender.index_select(0, near), receiver.index_select(0, near)])


class SkinCache:
    """Verlet-skin cache of one system's neighbor list: built with cutoff + skin, handed out again while it is still complete.

    `update` returns a superset: all pairs within the cutoff, and some up to roughly cutoff + skin. Functions that vanish at the cutoff
    need nothing more; anything else must mask the edges by their distance. With skin = 0 the list is exact and any change rebuilds it.

    How long a list stays complete. With F the linear map that takes the lattice of the build to the present one, write the present
    positions as x = x0 F + u, up to lattice vectors for atoms that were wrapped since. An edge vector r0 of the build is now
    r0 F + u_j - u_i, at least s |r0| - 2 max|u| long, s being the smallest singular value of F. A pair that was beyond cutoff + skin
    cannot be within the cutoff as long as 2 max|u| <= s (cutoff + skin) - cutoff. At constant cell that is the familiar rule: no atom
    may have moved by more than skin / 2. Atoms that were wrapped get their shifts corrected.

    Attributes: builds, the number of lists built so far; rebuilt, whether the last update built one.
    """

    def __init__(self, cutoff: float, skin: float) -> None:
        """cutoff and skin in angstrom. Raises GeometryError if they are not finite, cutoff <= 0 or skin < 0."""
        _check_length("cutoff", cutoff)
        if not (np.isfinite(skin) and skin >= 0):
            raise GeometryError(f"skin: expected a finite length >= 0 in angstrom, found {skin}")
        self.cutoff = cutoff
        self.skin = skin
        self.builds = 0
        self.rebuilt = False
        self._list: NeighborList | None = None
        self._positions = np.empty((0, 3))
        self._lattice = np.empty((3, 3))
        self._pbc = np.zeros(3, dtype=bool)

    def update(self, positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike) -> NeighborList:
        """The list for the present geometry: arguments and errors as in `neighbor_list`.

        The very same object comes back as long as edges and shifts are unchanged, so that the caller may keep what it derived from it.
        """
        positions, cell, pbc = _as_arrays(positions, cell, pbc)
        lattice = np.where(pbc[:, None], cell, 0.0)
        if (
            len(positions)
            and self._list is not None
            and positions.shape == self._positions.shape
            and (pbc == self._pbc).all()
        ):
            kept = self._reuse(self._list, positions, lattice)
            if kept is not None:
                self._list, self.rebuilt = kept, False
                return kept
        built = neighbor_list(positions, cell, pbc, self.cutoff + self.skin)
        self._list, self._positions, self._lattice, self._pbc = built, positions.copy(), lattice, pbc.copy()
        self.builds += 1
        self.rebuilt = True
        return built

    def _reuse(
        self, current: NeighborList, positions: NDArray[np.float64], lattice: NDArray[np.float64]
    ) -> NeighborList | None:
        """The cached list, with shifts corrected for wrapping, or None if it may have become incomplete."""
        same_lattice = (lattice == self._lattice).all()
        if self.skin == 0:
            return current if same_lattice and (positions == self._positions).all() else None
        with np.errstate(over="ignore"):  # of coordinates that exploded: refused when the list is rebuilt
            moved = positions - self._positions
            if same_lattice and 4 * _squared_norm(moved).max() <= self.skin * self.skin:
                return current
        if not (np.abs(positions).max() <= LARGEST_COORDINATE and np.abs(lattice).max() <= LARGEST_COORDINATE):
            return None

        # The smallest change of space that maps one lattice onto the other: the identity plus `strain`.
        strain = np.linalg.pinv(self._lattice) @ (lattice - self._lattice)
        stretch = np.linalg.svd(np.eye(3) + strain, compute_uv=False)[-1]
        moved -= self._positions @ strain
        jumps = np.rint(moved @ np.linalg.pinv(lattice))
        moved -= jumps @ lattice
        moved -= moved.mean(axis=0)  # only differences count
        if not 2 * np.sqrt(_squared_norm(moved).max()) <= stretch * (self.cutoff + self.skin) - self.cutoff:
            return None
        if not jumps.any():
            return current
        sender, receiver = current.edge_index
        steps = jumps.astype(np.int64)
        shifted = NeighborList(current.edge_index, _as_int32(current.shift + steps[receiver] - steps[sender]))
        self._positions = self._positions + jumps @ self._lattice
        return shifted


def _search_box(
    positions: NDArray[np.float64], lattice: NDArray[np.float64], pbc: NDArray[np.bool_], reach: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """A compact, fully periodic stand-in for the system, with the same pairs within reach.

    Returns the box [3, 3], the positions inside it [N, 3] and the whole lattice vectors taken off them [N, 3]. Directions that are not
    periodic get a vector orthogonal to the lattice, and gaps that no pair can bridge are shortened along it.
    """
    n_periodic = int(pbc.sum())
    finite = (np.abs(lattice) <= LARGEST_COORDINATE).all()
    lengths = np.linalg.norm(lattice, axis=1) if finite else np.zeros(3)
    if (lengths[pbc] < SHORTEST_CELL_VECTOR).any():
        raise GeometryError(
            f"cell: expected vectors of {SHORTEST_CELL_VECTOR} to {LARGEST_COORDINATE:g} angstrom along periodic directions, "
            f"found {lattice[pbc].tolist()} (pbc {pbc.tolist()}); give the cell in angstrom or switch pbc off"
        )
    _, singular, axes = np.linalg.svd(lattice / np.where(pbc, lengths, 1.0)[:, None])
    if np.prod(singular[:n_periodic]) < SMALLEST_RELATIVE_VOLUME:
        raise GeometryError(
            f"cell: the periodic vectors {lattice[pbc].tolist()} are linearly dependent, the cell has no volume; "
            "give independent vectors or switch pbc off"
        )
    box = lattice.copy()
    normals = axes[n_periodic:]
    heights = positions @ normals.T
    order = heights.argsort(axis=0)
    gaps = np.diff(np.take_along_axis(heights, order, axis=0), axis=0, prepend=-np.inf)
    packed = np.empty_like(heights)
    np.put_along_axis(packed, order, np.minimum(gaps, 2 * reach).cumsum(axis=0), axis=0)
    box[~pbc] = normals * (packed.max(axis=0) + 2 * reach)[:, None]

    images = np.floor(positions @ np.linalg.inv(box))
    images[:, ~pbc] = 0.0
    wrapped = positions - images @ box + (packed - heights) @ normals
    return box, wrapped, images.astype(np.int64)


def _search_radius(heights: NDArray[np.float64], reach: float) -> float:
    """The radius to search with: `reach`, or more where vesin could not cope with the box.

    Up to vesin 0.6.2 at least, a grid of more than 1e5 cells is shrunk by one factor along all directions. In a box that is flat
    compared with its length this leaves zero cells along the short side, and a division by zero that kills the process.
    """
    radius = reach
    while True:
        cells = np.maximum(1.0, np.floor(heights / radius))
        shrink = np.cbrt(VESIN_MAX_CELLS / np.prod(cells))
        if shrink > 1.05 or cells.min() * shrink >= 4.0:
            return radius
        radius *= 1.1


def _order(
    receiver: NDArray[np.int64], sender: NDArray[np.int64], steps: NDArray[np.int32], n_atoms: int
) -> NDArray[np.int64] | None:
    """Permutation that sorts edges by receiver, sender, steps (which sort the edges of one pair of atoms as their shifts do).

    None if they are sorted already: recent versions of vesin do that, without promising it, and far faster than numpy.
    """
    pair = receiver * n_atoms + sender
    a, b, c = (column - column.min(initial=0) for column in steps.T.astype(np.int64, order="C"))
    image = (a * (b.max(initial=0) + 1) + b) * (c.max(initial=0) + 1) + c
    rising = (pair[1:] > pair[:-1]) | ((pair[1:] == pair[:-1]) & (image[1:] > image[:-1]))
    return None if rising.all() else np.lexsort((image, pair))


def _vectors(
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    sender: NDArray[np.int64],
    receiver: NDArray[np.int64],
    shift: NDArray[np.integer],
) -> NDArray[np.float64]:
    return (positions.take(sender, axis=0) - positions.take(receiver, axis=0)) + shift.astype(np.float64) @ cell


def _squared_norm(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.einsum("ij,ij->i", vectors, vectors)


def _as_int32(shift: NDArray[np.int64]) -> NDArray[np.int32]:
    if np.abs(shift).max(initial=0) > np.iinfo(np.int32).max:
        raise GeometryError("atoms lie too many cells apart to count them in 32 bits; wrap the positions into the cell")
    return shift.astype(np.int32)


def _as_arrays(
    positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    try:
        positions = np.asarray(positions, dtype=np.float64)
        cell = np.asarray(cell, dtype=np.float64)
        pbc = np.asarray(pbc, dtype=np.bool_)
    except (TypeError, ValueError) as error:
        raise GeometryError(f"expected arrays of numbers: positions [N, 3], cell [3, 3], pbc [3] ({error})") from error
    if positions.ndim != 2 or positions.shape[1] != 3 or cell.shape != (3, 3) or pbc.shape != (3,):
        raise GeometryError(
            "expected positions of shape [N, 3], cell [3, 3] and pbc [3], found "
            f"{list(positions.shape)}, {list(cell.shape)} and {list(pbc.shape)}"
        )
    return positions, cell, pbc


def _check_positions(positions: NDArray[np.float64]) -> None:
    bad = np.flatnonzero(~(np.abs(positions) <= LARGEST_COORDINATE).all(axis=1))
    if len(bad):
        raise GeometryError(
            f"positions: expected finite coordinates up to {LARGEST_COORDINATE:g} angstrom; {len(bad)} of {len(positions)} atoms have "
            f"others, the first is atom {bad[0]} at {positions[bad[0]].tolist()}. A simulation may have exploded (time step too long?)"
        )


def _check_length(name: str, value: float) -> None:
    if not (np.isfinite(value) and value > 0):
        raise GeometryError(f"{name}: expected a positive, finite length in angstrom, found {value}")
