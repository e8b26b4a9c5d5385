"""Forces between a few hundred atoms of one kind in a cube, for many short simulations.

The pair potentials are those of `simkit.classical`, whose neighbor lists are made for boxes of any shape and size. Here every pair is seen
through its nearest image, and the list is a table of pairs that is filled in compiled code: no call of Python between two steps.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from simkit.classical.kernels import BLOCK, ROW_ENERGY, ROW_PULL, ROW_R2, ROW_X, ROW_Y, ROW_Z, ROWS
from simkit.classical.kernels import _pair as pair_of
from simkit.classical.kernels import _plain_lennard_jones as plain_lennard_jones
from simkit.classical.terms import LennardJones, Morse
from simkit.errors import ConfigError
from simkit.inference.priors import Array

FACE_CENTRED = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
_compile = functools.partial(njit, nogil=True, error_model="numpy", cache=True)


def lattice(atoms: int, length: float) -> Array:
    """Return a face-centred cubic lattice [N, 3] that fills a cube.

    Raises:
        ConfigError: if the number is not 4 n^3.
    """
    side = round((atoms / 4) ** (1 / 3))
    if side < 1 or 4 * side**3 != atoms:
        near = [4 * n**3 for n in range(max(side - 1, 2), max(side - 1, 2) + 3)]
        raise ConfigError(f"atoms must fill a face-centred lattice, such as {near}; found {atoms}")
    corners = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    return ((corners + FACE_CENTRED + 0.25) / side * length).reshape(-1, 3)


def lattice_order(x: Array, length: float) -> float:
    """Return how much of the lattice is left: the mean of |sum exp(i k x)| / N over its {111} waves, 1 at first, N^-1/2 in a liquid.

    L. Verlet, Phys. Rev. 165, 201 (1968).
    """
    side = round((len(x) / 4) ** (1 / 3))
    waves = 2 * np.pi * side / length * np.array([[1, 1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, -1]])
    return float(np.abs(np.exp(1j * x @ waves.T).mean(axis=0)).mean())


@dataclass
class SmallBox:
    """A pair term in a cube, and the arrays that `fill_forces` works on.

    Attributes:
        sums: energy and trace of the virial of the last evaluation, without what lies beyond the cutoff.
    """

    term: LennardJones | Morse
    length: float
    atoms: int
    skin: float

    def __post_init__(self) -> None:
        self.sums = np.zeros(2)
        n = self.atoms
        self._table = self.term.table(1).reshape(-1)
        reference = np.full((n, 3), np.inf)
        pairs = np.empty(n * (n - 1) // 2, dtype=np.int32), np.zeros(n + 1, dtype=np.int64)
        work = np.empty((ROWS, BLOCK)), np.empty(BLOCK, dtype=np.uintp)
        reach = (self.term.cutoff + self.skin) ** 2, (0.5 * self.skin) ** 2
        self.arguments: tuple[Any, ...] = (
            self.term.kernel(), self._table, self.length, reach, reference, *pairs, *work, self.sums
        )  # fmt: skip

    @property
    def volume(self) -> float:
        """In angstrom^3."""
        return self.length**3

    def beyond(self) -> tuple[float, float]:
        """What a uniform fluid beyond the cutoff adds to energy and pressure; zero for a term without tail."""
        if not (isinstance(self.term, LennardJones) and self.term.tail):
            return 0.0, 0.0
        energy, pressure = self.term.tail_correction(self.term.table(1), np.array([float(self.atoms)]))
        return energy / self.volume, pressure / self.volume**2


@_compile
def _list_pairs(x, length, limit, reference, neighbors, bounds):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """Pairs whose nearest images are within reach, each once. Written, and written over where too far: no branch."""
    inverse, at = 1.0 / length, np.uintp(0)
    for i in range(np.uintp(len(x))):
        bounds[i] = at
        xi, yi, zi = x[i, 0], x[i, 1], x[i, 2]
        reference[i, 0], reference[i, 1], reference[i, 2] = xi, yi, zi
        for j in range(i + np.uintp(1), np.uintp(len(x))):
            dx, dy, dz = x[j, 0] - xi, x[j, 1] - yi, x[j, 2] - zi
            dx -= length * np.rint(dx * inverse)
            dy -= length * np.rint(dy * inverse)
            dz -= length * np.rint(dz * inverse)
            neighbors[at] = j
            at += np.uintp(dx * dx + dy * dy + dz * dz <= limit)
    bounds[len(x)] = at


@_compile
def _moved(x, reference, limit):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Whether an atom is further from where it was than the root of ``limit``, or nowhere."""
    moved = False
    for i in range(np.uintp(len(x))):
        dx, dy, dz = x[i, 0] - reference[i, 0], x[i, 1] - reference[i, 1], x[i, 2] - reference[i, 2]
        moved |= not dx * dx + dy * dy + dz * dz <= limit
    return moved


@_compile
def _near(x, i, length, neighbors, begin, end, limit, d, who):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Gather neighbors within the cutoff as `simkit.classical.kernels` does, by nearest images; return their number."""
    xi, yi, zi, inverse = x[i, 0], x[i, 1], x[i, 2], 1.0 / length
    n = np.uintp(0)
    for k in range(np.uintp(begin), np.uintp(end)):
        j = np.uintp(neighbors[k])
        dx, dy, dz = x[j, 0] - xi, x[j, 1] - yi, x[j, 2] - zi
        dx -= length * np.rint(dx * inverse)
        dy -= length * np.rint(dy * inverse)
        dz -= length * np.rint(dz * inverse)
        r2 = dx * dx + dy * dy + dz * dz
        d[ROW_X, n], d[ROW_Y, n], d[ROW_Z, n], d[ROW_R2, n], who[n] = dx, dy, dz, r2, j
        n += np.uintp(r2 < limit)
    return n


@_compile
def fill_forces(x, f, pair, table, length, reach, reference, neighbors, bounds, d, who, sums):  # type: ignore[no-untyped-def]  # pragma: no cover
    """A force function of `simkit.integrators.cpu.Integrator`; the arguments after ``f`` are those of `SmallBox`."""
    if _moved(x, reference, reach[1]):
        _list_pairs(x, length, reach[0], reference, neighbors, bounds)
    kind, form, inner, cutoff = pair
    r2, energies, pulls = d[ROW_R2], d[ROW_ENERGY], d[ROW_PULL]
    f[:] = 0.0
    energy = virial = 0.0
    for i in range(np.uintp(len(x))):
        fx = fy = fz = 0.0
        for at in range(bounds[i], bounds[i + np.uintp(1)], BLOCK):
            end = min(at + BLOCK, bounds[i + np.uintp(1)])
            n = _near(x, i, length, neighbors, at, end, cutoff * cutoff, d, who)
            if kind == 0 and form == 0:
                plain_lennard_jones(n, table[0], table[1], table[3], r2, energies, pulls)
            else:
                for k in range(n):
                    energies[k], pulls[k] = pair_of(
                        kind, form, r2[k], table[0], table[1], table[2], table[3], table[4], inner, cutoff
                    )
            for k in range(n):
                g, j = pulls[k], who[k]
                gx, gy, gz = g * d[ROW_X, k], g * d[ROW_Y, k], g * d[ROW_Z, k]
                fx -= gx
                fy -= gy
                fz -= gz
                f[j, 0] += gx
                f[j, 1] += gy
                f[j, 2] += gz
                energy += energies[k]
                virial += g * r2[k]
        f[i, 0] += fx
        f[i, 1] += fy
        f[i, 2] += fz
    sums[0], sums[1] = energy, virial


@_compile
def count_distances(frames, length, low, width, counts):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Count pairs by the distance of their nearest images, in bins of a width from ``low`` on, others in the last; frames [T, N, 3]."""
    inverse, each = 1.0 / length, np.empty(frames.shape[1])
    outside = np.float64(len(counts) - 1)
    for t in range(frames.shape[0]):
        x = frames[t]
        for i in range(np.uintp(len(x))):
            xi, yi, zi = x[i, 0], x[i, 1], x[i, 2]
            for j in range(i + np.uintp(1), np.uintp(len(x))):
                dx, dy, dz = x[j, 0] - xi, x[j, 1] - yi, x[j, 2] - zi
                dx -= length * np.rint(dx * inverse)
                dy -= length * np.rint(dy * inverse)
                dz -= length * np.rint(dz * inverse)
                place = (np.sqrt(dx * dx + dy * dy + dz * dz) - low) / width
                each[j] = place if 0.0 <= place < outside else outside
            for j in range(i + np.uintp(1), np.uintp(len(x))):
                counts[np.uintp(each[j])] += 1
