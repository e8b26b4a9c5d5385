"""Half neighbor lists by a search in cells, for open and periodic boxes of any shape and size.

Atoms are wrapped into the box and sorted by cells, and every periodic image within reach of the box gets a slot of its own behind them
("ghosts"). A pair of two atoms in the box is listed once, by the one that comes first; a pair of an atom and a ghost is listed by both
of its atoms, so that nothing is ever written to a ghost. Distances need no minimum image, and cells smaller than the cutoff no care.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from simkit.errors import GeometryError
from simkit.kernels.threads import task_count

CHUNK = 1024  # atoms that share a buffer of forces at least
CHUNKS = 16  # buffers at most; their number must not depend on the threads, or sums would
LARGEST_COORDINATE = 1e9
SMALLEST_RELATIVE_VOLUME = 1e-6
MOST_SLOTS = 2**31 - 1
Array = NDArray[Any]

_compile = functools.partial(njit, nogil=True, error_model="numpy", cache=True)


@_compile
def _ghosts(frac, margin, most, owner, image):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """Find the images within the margin around the box; return their number, and store them as far as there is room."""
    n = 0
    for a in range(-most[0], most[0] + 1):
        for b in range(-most[1], most[1] + 1):
            for c in range(-most[2], most[2] + 1):
                if a == 0 and b == 0 and c == 0:
                    continue
                for i in range(len(frac)):
                    x, y, z = frac[i, 0] + a, frac[i, 1] + b, frac[i, 2] + c
                    if (
                        -margin[0] <= x <= 1.0 + margin[0]
                        and -margin[1] <= y <= 1.0 + margin[1]
                        and -margin[2] <= z <= 1.0 + margin[2]
                    ):
                        if n < len(owner):
                            owner[n] = i
                            image[n, 0], image[n, 1], image[n, 2] = a, b, c
                        n += 1
    return n


@_compile
def _sort(frac, margin, bins):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Counting sort by cells: the order [n], the cell of each in that order [n] and where each cell begins [cells + 1]."""
    n, total = len(frac), bins[0] * bins[1] * bins[2]
    cell = np.empty(n, dtype=np.int64)
    start = np.zeros(total + 1, dtype=np.int64)
    for i in range(n):
        index = 0
        for d in range(3):
            k = int((frac[i, d] + margin[d]) / (1.0 + 2.0 * margin[d]) * bins[d])
            index = index * bins[d] + min(max(k, 0), bins[d] - 1)
        cell[i] = index
        start[index + 1] += 1
    for k in range(total):
        start[k + 1] += start[k]
    place = start[:-1].copy()
    order, sorted_cell = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    for i in range(n):
        k = place[cell[i]]
        order[k], sorted_cell[k] = i, cell[i]
        place[cell[i]] = k + 1
    return order, sorted_cell, start


@_compile
def _excluded(i, j, bounds, partners):  # type: ignore[no-untyped-def]  # pragma: no cover
    found = False
    for k in range(bounds[i], bounds[i + 1]):
        found = found or partners[k] == j
    return found


@_compile
def _fill(  # type: ignore[no-untyped-def]  # pragma: no cover
    x, owner, cell, start, ghost_start, bins, reach, bounds, partners,
    lo, hi, base, room, out, first, split, last,
):  # fmt: skip
    """List the neighbors of slots ``lo`` to ``hi`` from ``base`` on; return their number and the highest slot.

    Nothing is written from ``room`` on.
    """
    atoms, used, highest, limit = len(cell), 0, hi - 1, reach * reach
    for i in range(lo, hi):
        bz = cell[i] % bins[2]
        by = cell[i] // bins[2] % bins[1]
        bx = cell[i] // (bins[2] * bins[1])
        xi, yi, zi = x[i, 0], x[i, 1], x[i, 2]
        some = bounds[owner[i] + 1] > bounds[owner[i]]
        first[i] = base + used
        for kind in range(2):
            begin, shift = (start, 0) if kind == 0 else (ghost_start, atoms)
            if kind == 1:
                split[i] = base + used
            for cx in range(bx if kind == 0 else max(bx - 1, 0), min(bx + 2, bins[0])):
                for cy in range(max(by - 1, 0), min(by + 2, bins[1])):
                    row = (cx * bins[1] + cy) * bins[2]
                    j0 = begin[row + max(bz - 1, 0)] + shift
                    j1 = begin[row + min(bz + 1, bins[2] - 1) + 1] + shift
                    for j in range(max(j0, i + 1), j1):
                        dx, dy, dz = x[j, 0] - xi, x[j, 1] - yi, x[j, 2] - zi
                        if dx * dx + dy * dy + dz * dz <= limit:
                            if some and _excluded(owner[i], owner[j], bounds, partners):
                                continue
                            if base + used < room:
                                out[base + used] = j
                            used += 1
                            if kind == 0 and j > highest:
                                highest = j
        last[i] = base + used
    return used, highest


@_compile
def _fill_serial(chunks, parts, tables, lists, needed, highest):  # type: ignore[no-untyped-def]  # pragma: no cover
    for c in range(len(chunks) - 1):
        needed[c], highest[c] = _fill(*tables, chunks[c], chunks[c + 1], parts[c], parts[c + 1], *lists)


@_compile(parallel=True)
def _fill_parallel(chunks, parts, tables, lists, needed, highest):  # type: ignore[no-untyped-def]  # pragma: no cover
    for c in prange(len(chunks) - 1):
        needed[c], highest[c] = _fill(*tables, chunks[c], chunks[c + 1], parts[c], parts[c + 1], *lists)


@_compile
def _place(positions, owner, offset, reference, limit, x):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Copy positions to the slots; return whether an atom has moved by more than the root of ``limit``, or is not a number."""
    moved = False
    for i in range(len(reference)):
        dx = positions[i, 0] - reference[i, 0]
        dy = positions[i, 1] - reference[i, 1]
        dz = positions[i, 2] - reference[i, 2]
        if not dx * dx + dy * dy + dz * dz <= limit:
            moved = True
    for k in range(len(owner)):
        i = owner[k]
        for d in range(3):
            x[k, d] = positions[i, d] + offset[k, d]
    return moved


class HalfList:
    """Half neighbor list with a skin, rebuilt when an atom has moved by more than half of the skin since the last build.

    Attributes:
        builds: lists built so far.
        x: [M, 3], positions of the slots: the N atoms sorted by cells, then their images.
        owner: [M], the atom that a slot shows.
        neighbors: slots, those of slot i < N at ``first[i]`` to ``last[i]``, ghosts from ``split[i]`` on.
        chunks: [C + 1], the slots of each chunk of atoms. A chunk's atoms have neighbors up to ``highest[c]`` among the atoms.
    """

    def __init__(self, cell: Array, pbc: Array, reach: float, skin: float, exclusions: tuple[Array, Array]) -> None:
        """cell [3, 3], pbc [3], the longest cutoff, the skin, and excluded partners of each atom as bounds [N + 1] and atoms."""
        self.cell, self.pbc, self.reach, self.skin = cell, pbc, reach + skin, skin
        self._bounds, self._partners = exclusions
        self.builds = 0
        self._reference = np.empty((0, 3))
        self.neighbors = np.empty(0, dtype=np.int32)
        self._needed = np.zeros(0, dtype=np.int64)

    def update(self, positions: Array) -> None:
        """Bring the slots to the positions [N, 3], and build the list again if it may have become incomplete.

        Raises:
            GeometryError: if a coordinate is not finite, or the cell has no volume.
        """
        fresh = self.builds > 0 and len(positions) == len(self._reference)
        if fresh:
            limit = 0.25 * self.skin * self.skin
            fresh = not _place(positions, self.owner, self._offset, self._reference, limit, self.x)
        if not fresh:
            self._build(positions)

    def _build(self, positions: Array) -> None:
        if not (np.abs(positions) <= LARGEST_COORDINATE).all():
            bad = int(np.flatnonzero(~(np.abs(positions) <= LARGEST_COORDINATE).all(axis=1))[0])
            raise GeometryError(
                f"positions: expected finite coordinates up to {LARGEST_COORDINATE:g}, found {positions[bad].tolist()} at atom {bad}; "
                "a simulation may have exploded (time step too long?)"
            )
        box, origin = _bounding_box(positions, self.cell, self.pbc)
        inverse = np.linalg.inv(box)
        heights = 1.0 / np.linalg.norm(inverse, axis=0)
        frac = (positions - origin) @ inverse
        wraps = np.where(self.pbc, np.floor(frac), 0.0)
        frac -= wraps
        margin = np.where(self.pbc, self.reach / heights, 0.0)
        owner, image = self._find_ghosts(frac, margin)
        ghost_frac = frac[owner] + image
        bins = _cells(np.maximum(1.0, (1.0 + 2.0 * margin) * heights / self.reach), len(frac) + len(owner))
        order, cell, start = _sort(frac, margin, bins)
        ghost_order, _, ghost_start = _sort(ghost_frac, margin, bins)
        self.owner = np.concatenate([order, owner[ghost_order]]).astype(np.int32)
        steps = np.concatenate([-wraps[order], image[ghost_order] - wraps[owner[ghost_order]]])
        self._offset = steps @ box
        self.x = positions[self.owner] + self._offset
        self._reference = positions.copy()
        self._fill(cell, start, ghost_start, bins)
        self.builds += 1

    def _find_ghosts(self, frac: Array, margin: Array) -> tuple[Array, Array]:
        """The atoms [G] that have images near the box, and the steps [G, 3] to these."""
        most = np.where(self.pbc, np.ceil(margin), 0.0).astype(np.int64)
        room = int(len(frac) * (np.prod(1.0 + 2.0 * margin) - 1.0) * 1.2) + 64
        while True:
            owner, image = np.empty(room, dtype=np.int32), np.empty((room, 3), dtype=np.int32)
            found = _ghosts(frac, margin, most, owner, image)
            if len(frac) + found > MOST_SLOTS:
                raise GeometryError(f"the cutoff reaches {found} periodic images, too many to count in 32 bits")
            if found <= room:
                return owner[:found], image[:found]
            room = found

    def _fill(self, cell: Array, start: Array, ghost_start: Array, bins: Array) -> None:
        atoms = len(cell)
        count = min(CHUNKS, max(1, atoms // CHUNK))
        self.chunks = np.arange(count + 1) * atoms // count
        self.first, self.split, self.last = (np.empty(atoms, dtype=np.int64) for _ in range(3))
        self.highest = np.empty(count, dtype=np.int64)
        tables = (self.x, self.owner, cell, start, ghost_start, bins, self.reach, self._bounds, self._partners)
        # As much room as the last list took and a little more; where that is not enough, the second pass has what the first counted.
        room = self._needed * 21 // 20 + 64 if len(self._needed) == count else np.diff(self.chunks) * 32
        fill = _fill_parallel if task_count(count) > 1 else _fill_serial
        while True:
            parts = np.concatenate([[0], np.cumsum(room)])
            if len(self.neighbors) < parts[-1]:
                self.neighbors = np.empty(parts[-1], dtype=np.int32)
            needed = np.empty(count, dtype=np.int64)
            lists = (self.neighbors, self.first, self.split, self.last)
            fill(self.chunks, parts, tables, lists, needed, self.highest)
            if (needed <= room).all():
                self._needed = needed
                return
            room = needed


def _cells(most: Array, slots: int) -> Array:
    """Cells along each direction, at most as many as keep cells no shorter than the reach, and not many more than there are slots."""
    bins = np.minimum(most, 1e6).astype(np.int64)
    while np.prod(bins) > 4 * slots + 64:
        longest = int(np.argmax(bins))
        bins[longest] = max(1, bins[longest] // 2)
    return bins


def _bounding_box(positions: Array, cell: Array, pbc: Array) -> tuple[Array, Array]:
    """The cell with vectors that are not periodic made orthogonal to the others and as long as the atoms need; and its origin."""
    lattice = np.where(pbc[:, None], cell, 0.0)
    lengths = np.linalg.norm(lattice, axis=1)
    if not np.isfinite(lattice).all() or (lengths[pbc] == 0.0).any():
        raise GeometryError(
            f"cell: expected vectors of finite, positive length along periodic directions, found {cell.tolist()}"
        )
    _, singular, axes = np.linalg.svd(lattice / np.where(pbc, lengths, 1.0)[:, None])
    periodic = int(pbc.sum())
    if np.prod(singular[:periodic]) < SMALLEST_RELATIVE_VOLUME:
        raise GeometryError(
            f"cell: the periodic vectors of {cell.tolist()} are linearly dependent, the cell has no volume"
        )
    box, normals = lattice.copy(), axes[periodic:]
    heights = positions @ normals.T
    low, high = heights.min(axis=0), heights.max(axis=0)
    slack = 1e-9 * (1.0 + np.abs(low) + np.abs(high))
    box[~pbc] = normals * (high - low + 2.0 * slack)[:, None]
    return box, (low - slack) @ normals
