"""`ClassicalPotential`: a sum of classical terms as a force function for many atoms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from simkit.classical import kernels
from simkit.classical.cells import HalfList
from simkit.classical.terms import Coulomb, DampedShiftedCoulomb, HarmonicBonds, LennardJones, PairTerm, Term
from simkit.errors import ConfigError, GeometryError
from simkit.kernels.threads import task_count

DIRECT_TASK = 64  # atoms whose direct Coulomb sums are worth a thread
Array = NDArray[Any]


class ClassicalPotential:
    """A sum of classical terms for the atoms of one box.

    ``potential(positions, forces)`` fills the forces, as `simkit.integrators.cpu.Integrator` wants it; `evaluate` returns energy and
    virial besides. Positions need not be wrapped. Neighbor lists are kept between calls, also where the cell changes, as long as no pair
    can have crossed the skin. Forces are the same to the last bit for any number of threads.

    Args:
        terms: what to add up.
        cell: [3, 3], lattice vectors in rows; needed where the box is periodic. It may have any shape, and be smaller than the cutoff.
        pbc: periodic along which vectors: one truth value or three.
        species: [N] integers from 0, the rows of the tables of parameters; by default all atoms are of species 0.
        skin: what the neighbor list adds to the longest cutoff.
        exclude: [K, 2], pairs of atoms that pair terms and Coulomb sums leave out with all their images, such as those that are bonded.

    Attributes:
        cell, pbc: as arrays; `set_cell` changes the cell.
        builds: neighbor lists built so far.

    Raises:
        ConfigError: if an argument is not usable.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        *,
        cell: ArrayLike | None = None,
        pbc: ArrayLike | None = None,
        species: ArrayLike | None = None,
        skin: float = 0.5,
        exclude: ArrayLike | None = None,
    ) -> None:
        if not terms:
            raise ConfigError("terms: expected at least one")
        if not (math.isfinite(skin) and skin >= 0):
            raise ConfigError(f"skin: expected a finite length >= 0, found {skin}")
        self.terms, self._skin = tuple(terms), skin
        periodic = cell is not None if pbc is None else pbc
        self.pbc = np.broadcast_to(np.asarray(periodic, dtype=np.bool_), (3,)).copy()
        if cell is None and self.pbc.any():
            raise ConfigError("cell: a periodic box needs one, found none")
        if self.pbc.any() and any(isinstance(term, Coulomb) for term in terms):
            raise ConfigError("Coulomb: direct sums are for open systems; use DampedShiftedCoulomb in a periodic box")
        if not self.pbc.all() and any(isinstance(term, LennardJones) and term.tail for term in terms):
            raise ConfigError("tail: corrections need a box that is periodic in all directions")
        self._species = None if species is None else _integers("species", species, 1)
        self._exclude = np.empty((0, 2), dtype=np.int64) if exclude is None else _integers("exclude", exclude, 2)
        self._pairs = [term for term in terms if isinstance(term, PairTerm)]
        self._atoms = -1
        self._past_builds = 0
        self._list: HalfList | None = None
        self.set_cell(np.zeros((3, 3)) if cell is None else cell)

    @property
    def builds(self) -> int:
        """Neighbor lists built so far."""
        return self._past_builds + (0 if self._list is None else self._list.builds)

    def in_box(self, cell: ArrayLike, pbc: ArrayLike) -> ClassicalPotential:
        """Return the same terms, species and exclusions in another box, with neighbor lists of its own."""
        return ClassicalPotential(
            self.terms, cell=cell, pbc=pbc, species=self._species, skin=self._skin, exclude=self._exclude
        )

    def atoms_and_skin(self) -> tuple[Array | None, Array, float]:
        """Species (None if all are the same), exclusions and skin, as they were given."""
        return self._species, self._exclude, self._skin

    @property
    def list_positions(self) -> Array | None:
        """Positions [N, 3] that the present neighbor list was built from, None without one.

        The order of sums, and the last bits of forces with it, depend on them.
        """
        return None if self._list is None or self._list.builds == 0 else self._list.reference

    def build_list(self, positions: Any) -> None:
        """Build the neighbor list from these positions [N, 3], as a call with them would without a list. Errors as for a call."""
        x = _array("positions", positions)
        if len(x) != self._atoms:
            self._prepare(len(x))
        self._past_builds, self._list = self.builds, None
        if self._pairs and len(x):
            self._updated_list(x)

    def set_cell(self, cell: ArrayLike) -> None:
        """Change the cell [3, 3]. Raises ConfigError if it is not of this shape or not finite."""
        array = np.array(cell, dtype=np.float64)
        if array.shape != (3, 3) or not np.isfinite(array).all():
            raise ConfigError(f"cell: expected finite vectors [3, 3], found {array.tolist()}")
        self.cell = array
        self._lattice = np.where(self.pbc[:, None], array, 0.0)
        if any(isinstance(term, HarmonicBonds) for term in self.terms):
            self._inverse = np.ascontiguousarray(np.linalg.pinv(self._lattice))
        if self._list is not None:
            self._list.deform(self._lattice)

    def __call__(self, positions: Any, forces: Any) -> None:
        """Fill ``forces`` [N, 3] from ``positions`` [N, 3]: float64 arrays or CPU tensors.

        Raises:
            ConfigError: if an array or a term does not fit the others.
            GeometryError: if a coordinate is not finite, or the cell has no volume.
        """
        self._add_up(positions, forces, False)

    def evaluate(self, positions: Any, forces: Any) -> tuple[float, Array]:
        """Fill the forces, and return the energy and the virial [3, 3], the sum over pairs of (r_j - r_i) (force on j).

        The pressure is (2 K + trace of the virial) / (3 V) with the kinetic energy K. Errors as for a call.
        """
        sums = self._add_up(positions, forces, True)
        energy, xx, yy, zz, yz, xz, xy = sums.tolist()
        virial = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        for k, term in enumerate(self._pairs):
            if isinstance(term, DampedShiftedCoulomb):
                energy += term.self_energy(self._charges[id(term)])
            if isinstance(term, LennardJones) and term.tail:
                volume = abs(float(np.linalg.det(self.cell)))
                beyond, pressure = term.tail_correction(self._tables[k], self._counts)
                energy += beyond / volume
                virial += np.eye(3) * pressure / volume
        return energy, virial

    def _add_up(self, positions: Any, forces: Any, measure: bool) -> Array:
        """Fill the forces; return energy, xx, yy, zz, yz, xz, xy if they are measured."""
        x, f = _array("positions", positions), _array("forces", forces)
        if x.shape != f.shape:
            raise ConfigError(f"forces: expected the shape {list(x.shape)} of the positions, found {list(f.shape)}")
        if len(x) != self._atoms:
            self._prepare(len(x))
        f[:] = 0.0
        total = np.zeros(7)
        if len(x) == 0:
            return total
        if self._pairs:
            total += self._pair_terms(x, f, measure)
        for term in self.terms:
            if isinstance(term, Coulomb):
                sums = np.empty((len(x), 7))
                several = task_count(len(x) // DIRECT_TASK) > 1
                direct = kernels.direct_parallel if several else kernels.direct_serial
                direct(term.constant, self._charges[id(term)], x, *self._exclusions, f, sums)
                total += sums.sum(axis=0)
            elif isinstance(term, HarmonicBonds):
                sums = np.zeros((1, 7))
                kernels.bonds(*self._bonds[id(term)], x, self._lattice, self._inverse, f, sums)
                total += sums[0]
        if measure and not np.isfinite(total).all():
            raise GeometryError(
                "the energy or the virial is not finite: expected atoms apart from each other, found some that coincide"
            )
        return total

    def _updated_list(self, x: Array) -> HalfList:
        """The neighbor list, complete for these positions."""
        if self._list is None:
            reach = max(term.cutoff for term in self._pairs)
            self._list = HalfList(self._lattice, self.pbc, reach, self._skin, self._exclusions)
        current, before = self._list, self._list.builds
        current.update(x)
        if current.builds != before:
            self._gather(current)
        return current

    def _pair_terms(self, x: Array, f: Array, measure: bool) -> Array:
        current = self._updated_list(x)
        chunks, total = current.chunks, np.zeros(7)
        lists = (current.x, current.neighbors, current.first, current.split, current.last)
        run = kernels.pairs_parallel if task_count(len(chunks) - 1) > 1 else kernels.pairs_serial
        for term, table, (species, charges) in zip(self._pairs, self._tables, self._sorted, strict=True):
            sums = np.zeros((len(chunks) - 1, 7))
            arrays = (table.reshape(-1), species, charges)
            run(term.kernel(), arrays, lists, chunks, self._starts, self._buffers, sums, measure)
            total += sums.sum(axis=0)
        kernels.add_up(chunks, self._starts, self._buffers, current.owner, f)
        return total

    def _gather(self, current: HalfList) -> None:
        """Species and charges of the slots of a new list, and buffers for the forces of its chunks."""
        none = np.empty(0)
        kinds = self._kinds[current.owner]
        self._sorted = [
            (kinds, self._charges[id(term)][current.owner] if isinstance(term, DampedShiftedCoulomb) else none)
            for term in self._pairs
        ]
        self._starts = np.concatenate([[0], np.cumsum(current.highest + 1 - current.chunks[:-1])])
        self._buffers = np.zeros((self._starts[-1], 3))

    def _prepare(self, atoms: int) -> None:
        """Tables for a number of atoms."""
        kinds = np.zeros(atoms, dtype=np.int64) if self._species is None else self._species
        if len(kinds) != atoms:
            raise ConfigError(f"species: expected one for each of {atoms} atoms, found {len(kinds)}")
        self._kinds = kinds.astype(np.int32)
        self._counts = np.bincount(kinds, minlength=1).astype(np.float64)
        self._tables = [term.table(len(self._counts)) for term in self._pairs]
        charged = [term for term in self.terms if isinstance(term, Coulomb | DampedShiftedCoulomb)]
        self._charges = {id(term): _numbers("charges", term.charges, atoms) for term in charged}
        self._bonds = {}
        for term in self.terms:
            if isinstance(term, HarmonicBonds):
                pairs = _within("bonds", _integers("bonds", term.pairs, 2), atoms)
                values = (_numbers(name, getattr(term, name), len(pairs)) for name in ("stiffness", "length"))
                self._bonds[id(term)] = (pairs, *values)
        both = _within("exclude", self._exclude, atoms)
        both = np.unique(np.concatenate([both, both[:, ::-1]]), axis=0)
        bounds = np.searchsorted(both[:, 0], np.arange(atoms + 1))
        self._exclusions = (bounds, np.ascontiguousarray(both[:, 1]))
        self._past_builds, self._list = self.builds, None
        self._atoms = atoms


def _array(name: str, array: Any) -> Array:
    """An array [N, 3] of float64 that shares the memory of the argument."""
    if isinstance(array, torch.Tensor):
        array = array.detach().numpy()
    if not isinstance(array, np.ndarray) or array.dtype != np.float64 or array.ndim != 2 or array.shape[1] != 3:
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ConfigError(f"{name}: expected an array [N, 3] of float64, found {found}")
    if not array.flags.c_contiguous:
        raise ConfigError(f"{name}: expected a contiguous array; pass numpy.ascontiguousarray({name})")
    return array


def _integers(name: str, values: ArrayLike, ndim: int) -> Array:
    array = np.asarray(values)
    if array.size == 0:
        array = np.empty((0, 2)[:ndim], dtype=np.int64)
    shape_fits = array.ndim == ndim and (ndim == 1 or array.shape[1] == 2)
    if not np.issubdtype(array.dtype, np.integer) or not shape_fits or (array < 0).any():
        raise ConfigError(f"{name}: expected {'[N]' if ndim == 1 else '[K, 2]'} integers >= 0, found {array.tolist()}")
    return array.astype(np.int64)


def _within(name: str, pairs: Array, atoms: int) -> Array:
    if len(pairs) and (pairs.max() >= atoms or (pairs[:, 0] == pairs[:, 1]).any()):
        raise ConfigError(f"{name}: expected pairs of two of the {atoms} atoms, found {pairs.tolist()}")
    return pairs


def _numbers(name: str, values: ArrayLike, count: int) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0 and name != "charges":
        array = np.full(count, float(array))
    if array.shape != (count,) or not np.isfinite(array).all():
        raise ConfigError(f"{name}: expected {count} finite numbers, found {array.tolist()}")
    return array
