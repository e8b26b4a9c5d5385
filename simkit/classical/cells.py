"""Half neighbor lists by a search in cells, for open and periodic boxes of any shape and size.

Atoms are wrapped into the box and sorted by cells, and every periodic image within reach of the box gets a slot of its own behind them
("ghosts"). A pair of two atoms in the box is listed once, by the one that comes first; a pair of an atom and a ghost is listed by both
of its atoms, so that nothing is ever written to a ghost. Distances need no minimum image, and cells smaller than the cutoff no care.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from simkit.errors import GeometryError
from simkit.kernels.threads import task_count

CHUNK = 1024  # atoms that share a buffer of forces at least
CHUNKS = 16  # buffers at most; their number must not depend on the threads, or sums would
FINENESS = np.array([2.0, 2.0, 4.0])  # cells within the reach, along each direction
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
def _carefully(x, owner, i, j0, j1, limit, bounds, partners, at, room, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    """List those of the slots ``j0`` to ``j1`` that are neighbors of slot i from ``at`` on; return where the list ends then."""
    for j in range(j0, j1):
        dx, dy, dz = x[j, 0] - x[i, 0], x[j, 1] - x[i, 1], x[j, 2] - x[i, 2]
        if dx * dx + dy * dy + dz * dz <= limit and not _excluded(owner[i], owner[j], bounds, partners):
            if at < room:
                out[at] = j
            at += 1
    return at


# Inlined: a call would count references to each array up and down, which costs more than listing an atom's neighbors.
@_compile(forceinline=True)
def _fill(  # type: ignore[no-untyped-def]  # pragma: no cover
    x, owner, cell, start, ghost_start, bins, span, limit, bounds, partners,
    lo, hi, base, room, out, first, split, last,
):  # fmt: skip
    """List the neighbors of slots ``lo`` to ``hi`` from ``base`` on; return their number and the highest slot.

    Nothing is written from ``room`` on.
    """
    atoms, at, highest = len(cell), base, hi - 1
    wide, deep, nx, ny, nz = span.shape[0] // 2, span.shape[1] // 2, bins[0], bins[1], bins[2]
    for i in range(lo, hi):
        bz, by, bx = cell[i] % nz, cell[i] // nz % ny, cell[i] // (nz * ny)
        u, own = np.uintp(i), np.uintp(owner[i])
        xi, yi, zi = x[u, 0], x[u, 1], x[u, 2]
        some = bounds[own + np.uintp(1)] > bounds[own]
        first[u] = at
        for kind in range(2):
            begin, shift = (start, 0) if kind == 0 else (ghost_start, atoms)
            if kind == 1:
                split[u] = at
            for cx in range(bx if kind == 0 else max(bx - wide, 0), min(bx + wide + 1, nx)):
                for cy in range(by if kind == 0 and cx == bx else max(by - deep, 0), min(by + deep + 1, ny)):
                    away = span[np.uintp(cx - bx + wide), np.uintp(cy - by + deep)]
                    row = (cx * ny + cy) * nz
                    j0 = max(begin[np.uintp(row + max(bz - away, 0))] + shift, i + 1)
                    j1 = begin[np.uintp(row + min(bz + away, nz - 1) + 1)] + shift
                    if j1 <= j0:  # also where the column is too far: away is -1
                        continue
                    before = at
                    if some or at + j1 - j0 > room:
                        at = _carefully(x, owner, i, j0, j1, limit, bounds, partners, at, room, out)
                    else:  # Each is written, and the next one over it where it is no neighbor: no branch to be mispredicted.
                        end = np.uintp(at)
                        for j in range(np.uintp(j0), np.uintp(j1)):
                            dx, dy, dz = x[j, 0] - xi, x[j, 1] - yi, x[j, 2] - zi
                            out[end] = j
                            end += np.uintp(dx * dx + dy * dy + dz * dz <= limit)
                        at = np.int64(end)
                    if kind == 0 and before < at <= room:
                        highest = max(highest, np.int64(out[np.uintp(at - 1)]))
        last[u] = at
    return at - base, highest


@_compile
def _fill_serial(chunks, parts, tables, lists, needed, highest):  # type: ignore[no-untyped-def]  # pragma: no cover
    for c in range(len(chunks) - 1):
        needed[c], highest[c] = _fill(*tables, chunks[c], chunks[c + 1], parts[c], parts[c + 1], *lists)


@_compile(parallel=True)
def _fill_parallel(chunks, parts, tables, lists, needed, highest):  # type: ignore[no-untyped-def]  # pragma: no cover
    for c in prange(len(chunks) - 1):
        needed[c], highest[c] = _fill(*tables, chunks[c], chunks[c + 1], parts[c], parts[c + 1], *lists)


@_compile
def _follow(cell, lattice, inverse, steps, reference, offset, expected):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Put images and expected positions where the map 1 + e from the lattice to the cell takes them.

    Returns:
        The root of e's largest sum of a column times that of a row, which is no less than its largest singular value.
    """
    strain = np.zeros((3, 3))
    for a in range(3):
        for b in range(3):
            for c in range(3):
                strain[a, b] += inverse[a, c] * (cell[c, b] - lattice[c, b])
    for k in range(len(steps)):
        for d in range(3):
            offset[k, d] = steps[k, 0] * cell[0, d] + steps[k, 1] * cell[1, d] + steps[k, 2] * cell[2, d]
    for i in range(len(reference)):
        x, y, z = reference[i, 0], reference[i, 1], reference[i, 2]
        for d in range(3):
            expected[i, d] = reference[i, d] + (x * strain[0, d] + y * strain[1, d] + z * strain[2, d])
    column = row = 0.0
    for a in range(3):
        column = max(column, abs(strain[0, a]) + abs(strain[1, a]) + abs(strain[2, a]))
        row = max(row, abs(strain[a, 0]) + abs(strain[a, 1]) + abs(strain[a, 2]))
    return math.sqrt(column * row)


@_compile
def _place(positions, owner, offset, expected, limit, x):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Copy positions to the slots; return whether an atom is further from where it is expected than the root of ``limit``.

    So it is where it is not a number, and where the limit is negative.
    """
    moved = False
    for i in range(len(expected)):
        dx = positions[i, 0] - expected[i, 0]
        dy = positions[i, 1] - expected[i, 1]
        dz = positions[i, 2] - expected[i, 2]
        if not dx * dx + dy * dy + dz * dz <= limit:
            moved = True
    for k in range(len(owner)):
        i = owner[k]
        for d in range(3):
            x[k, d] = positions[i, d] + offset[k, d]
    return moved


class HalfList:
    """Half neighbor list with a skin, rebuilt when it may have become incomplete.

    With 1 + e the linear map from the lattice of the build to the present one, and positions x = x0 (1 + e) + u, no pair from beyond
    the list has come within the cutoff as long as 2 max|u| <= (1 - |e|) (cutoff + skin) - cutoff, where |e| is e's largest singular value
    or a bound of it. At constant cell that is the familiar rule that no atom may have moved by more than half of the skin.

    Attributes:
        builds: lists built so far.
        reference: [N, 3], the positions that the last one was built from.
        x: [M, 3], positions of the slots: the N atoms sorted by cells, then their images.
        owner: [M], the atom that a slot shows.
        neighbors: slots, those of slot i < N at ``first[i]`` to ``last[i]``, ghosts from ``split[i]`` on.
        chunks: [C + 1], the slots of each chunk of atoms. A chunk's atoms have neighbors up to ``highest[c]`` among the atoms.
    """

    def __init__(self, cell: Array, pbc: Array, reach: float, skin: float, exclusions: tuple[Array, Array]) -> None:
        """cell [3, 3], zero along open directions; pbc [3]; longest cutoff; skin; excluded partners as bounds [N + 1] and atoms."""
        self.cell, self.pbc, self.reach, self.skin = cell, pbc, reach + skin, skin
        self._bounds, self._partners = exclusions
        self.builds = 0
        self.reference = np.empty((0, 3))
        self.neighbors = np.empty(0, dtype=np.int32)
        self._needed = np.zeros(0, dtype=np.int64)

    def update(self, positions: Array) -> None:
        """Bring the slots to the positions [N, 3], and build the list again if it may have become incomplete.

        Raises:
            GeometryError: if a coordinate is not finite, or the cell has no volume.
        """
        fresh = self.builds > 0 and len(positions) == len(self.reference)
        if fresh:
            fresh = not _place(positions, self.owner, self._offset, self._expected, self._limit, self.x)
        if not fresh:
            self._build(positions)

    def deform(self, cell: Array) -> None:
        """Go on in another cell [3, 3]."""
        self.cell = cell
        if self.builds:
            self._follow()

    def _follow(self) -> None:
        """Where images are and atoms are expected in the present cell, and how far from there an atom may be."""
        tables = (self._steps, self.reference, self._offset, self._expected)
        room = self.skin - self.reach * _follow(self.cell, self._lattice, self._inverse, *tables)
        self._limit = 0.25 * room * room if room >= 0.0 else -1.0

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
        heights *= 1.0 + 2.0 * margin
        bins = _cells(np.maximum(1.0, FINENESS * heights / self.reach), len(frac) + len(owner))
        gram = box @ box.T
        span = _span(heights / bins, bins, self.reach, orthogonal=bool((gram == np.diag(np.diag(gram))).all()))
        order, cell, start = _sort(frac, margin, bins)
        ghost_order, _, ghost_start = _sort(ghost_frac, margin, bins)
        self.owner = np.concatenate([order, owner[ghost_order]]).astype(np.int32)
        self._steps = np.concatenate([-wraps[order], image[ghost_order] - wraps[owner[ghost_order]]])
        self._lattice, self._inverse = self.cell, np.linalg.pinv(self.cell)
        self.reference = positions.copy()
        self._offset, self._expected = np.empty_like(self._steps), np.empty_like(self.reference)
        self._follow()
        self.x = positions[self.owner] + self._offset
        self._fill(cell, start, ghost_start, bins, span)
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

    def _fill(self, cell: Array, start: Array, ghost_start: Array, bins: Array, span: Array) -> None:
        atoms = len(cell)
        count = min(CHUNKS, max(1, atoms // CHUNK))
        self.chunks = np.arange(count + 1) * atoms // count
        self.first, self.split, self.last = (np.empty(atoms, dtype=np.int64) for _ in range(3))
        self.highest = np.empty(count, dtype=np.int64)
        limit = self.reach * self.reach
        tables = (self.x, self.owner, cell, start, ghost_start, bins, span, limit, self._bounds, self._partners)
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


def _span(widths: Array, bins: Array, reach: float, *, orthogonal: bool) -> Array:
    """How many cells of each column around one, up and down, may have atoms within the reach; -1 for none.

    The columns run along the third direction, and lie as many rows of cells away along the first and second as the index is from the
    middle. Where the directions are not orthogonal, the distance of two columns is the longer of those along the two at least.
    """
    most = np.minimum(np.ceil(reach / widths - 1e-13), bins - 1).astype(np.int64)
    gaps = [
        np.maximum(np.abs(np.arange(-n, n + 1)) - 1, 0) * width for n, width in zip(most[:2], widths[:2], strict=True)
    ]
    if orthogonal:
        rest = reach**2 - gaps[0][:, None] ** 2 - gaps[1][None, :] ** 2
    else:
        rest = np.where(np.maximum(gaps[0][:, None], gaps[1][None, :]) < reach, reach**2, -1.0)
    cells = np.ceil(np.sqrt(np.maximum(rest, 0.0)) / widths[2] - 1e-13)
    return np.where(rest > 0.0, np.minimum(cells, most[2]), -1).astype(np.int64)


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
