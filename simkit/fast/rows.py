"""Edges as rows: all edges of a receiver side by side, with everything about them that kernels need, and the forces that they give.

Lists of neighbors are symmetric, so that what an atom sends can be summed over its own row, like what it receives: each row is written by
one thread, and results depend neither on their number nor on any order of events.

Slot e of row j, with the neighbor i, stands for both edges between them: kernels that gather what j receives take the vector from j to i,
kernels that differentiate what j sends to i take the same vector with the other sign. The gradients of the latter are kept in slot e.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from simkit.errors import GeometryError
from simkit.fast import scalar_rows, vector_rows
from simkit.fast.workspace import REALS, Buffer, Workspace
from simkit.graph import AtomGraph
from simkit.kernels.blocks import compile_shared
from simkit.kernels.threads import task_count

ROW_EDGES = 400
"""Edges that one thread takes at least: below that, starting another one takes longer."""
NO_SHIFT = np.zeros((0, 3))
COINCIDING = 1e-5
"""Angstrom."""


class UnorderedEdgesError(Exception):
    """Edges are not sorted by receiver and sender, or lack their reverse: rows cannot be made of them."""


class EdgeRows(Protocol):
    """Rows on any device, and the modules of kernels that take them, which are alike; see `Rows`."""

    scalar_kernels: ClassVar[Any]
    vector_kernels: ClassVar[Any]
    bounds: Any
    ptr: Any
    sender: Any
    knot: Any
    unit: Buffer
    basis: Buffer
    gradient: Buffer

    def forces(self, virial: bool) -> tuple[Tensor, Tensor]:
        """Return forces and virials."""


class Rows:
    """The edges of a graph as rows.

    Args:
        workspace: whose memory is used: what was there before is overwritten.
        graph: on a CPU. cutoff: angstrom; edges that are longer have no weight.
        intervals: of the tables of filters. dtype: of the network.

    Attributes:
        ptr: [N + 1] where rows begin. sender: [E]. reverse: [E] the slot of the same pair in the row of the sender.
        unit: [E, 3] from the row's atom to its neighbor. distance: [E].
        knot: [E] the interval of the table. basis: [E, 8] the Hermite basis there, and its derivatives with respect to distance.
        gradient: [E, 4], zero: derivatives of the energy with respect to distance and unit vector, for kernels to add to.
        bounds: [tasks + 1] rows of each thread.

    Raises:
        GeometryError: if atoms coincide or are not finite.
        UnorderedEdgesError: if the edges are not sorted by receiver and sender, or lack their reverse.
    """

    scalar_kernels: ClassVar[Any] = scalar_rows
    vector_kernels: ClassVar[Any] = vector_rows

    def __init__(
        self, workspace: Workspace, graph: AtomGraph, cutoff: float, intervals: int, dtype: torch.dtype
    ) -> None:
        positions = graph.pos.detach().double().numpy()
        self.sender, receiver = graph.edge_index.numpy()
        edges, atoms, real = len(receiver), len(positions), REALS[dtype]

        def whole(name: str, *shape: int) -> np.ndarray:
            return workspace.get(name, shape, np.dtype(np.int64)).array

        def exact(name: str, *shape: int) -> np.ndarray:
            return workspace.get(name, shape, np.dtype(np.float64)).array

        self.ptr, self.reverse, self.knot = whole("ptr", atoms + 1), whole("reverse", edges), whole("knot", edges)
        self.bounds = whole("bounds", task_count(max(1, edges // ROW_EDGES)) + 1)
        if not _order(self.sender, receiver, self.ptr, self.reverse, whole("next", atoms), self.bounds):
            raise UnorderedEdgesError
        self.vector, self.distance = exact("vector", edges, 3), exact("distance", edges)
        self.unit, self.basis = workspace.get("unit", (edges, 3), real), workspace.get("basis", (edges, 8), real)
        self.gradient = workspace.get("gradient", (edges, 4), real)
        shift = graph._store.get("edge_shift")
        steps = NO_SHIFT if shift is None else shift.double().numpy()
        bad = whole("bad", len(self.bounds) - 1)
        _geometry(
            self.bounds, positions, graph.cell.double().numpy(), graph.batch.numpy(), self.ptr, self.sender, steps, cutoff,
            intervals, self.vector, self.distance,
            self.unit.array, self.knot, self.basis.array, self.gradient.array, bad,
        )  # fmt: skip
        if bad.any():
            self._refuse(graph, receiver)

    def forces(self, virial: bool) -> tuple[Tensor, Tensor]:
        """Return forces [N, 3] and the virial of each atom, sum of vector times gradient, [N, 3, 3] (empty where not asked for)."""
        atoms = len(self.ptr) - 1
        forces, virials = np.empty((atoms, 3)), np.zeros((atoms if virial else 0, 3, 3))
        slots = np.empty((len(self.sender), 3))
        _edge_gradients(self.bounds, self.ptr, self.vector, self.distance, self.gradient.array, slots)
        _forces(self.bounds, self.ptr, self.reverse, slots, forces)
        if virial:  # apart: forces must not depend on what else is computed, not even by their rounding
            _virials(self.bounds, self.ptr, self.vector, slots, virials)
        return torch.from_numpy(forces), torch.from_numpy(virials)

    def _refuse(self, graph: AtomGraph, receiver: np.ndarray) -> None:
        slot = int(np.argmin(np.nan_to_num(self.distance, nan=-1.0)))
        structure = int(graph.batch[receiver[slot]])
        start = int(graph.ptr[structure])
        raise GeometryError(
            f"atoms {receiver[slot] - start} and {self.sender[slot] - start} of structure {structure} are at the same place or not "
            f"finite (distance {self.distance[slot]:.2g} angstrom); remove one of them or correct the coordinates"
        )


@njit(cache=True)
def _order(sender, receiver, ptr, reverse, following, bounds):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """Find rows and reverses; False where the list is not as it should be.

    Rows are sorted by sender. When they are visited in order, the edges that are found in one other row rise, too; those between the same
    two atoms, by several images of one, are in the opposite order, because shifts change their sign.
    """
    atoms, edges = len(ptr) - 1, len(sender)
    e = 0
    for i in range(atoms):
        ptr[i] = e
        while e < edges and receiver[e] == i:
            e += 1
    ptr[atoms] = e
    if e != edges:
        return False
    following[:] = ptr[:-1]
    for i in range(atoms):
        e = ptr[i]
        while e < ptr[i + 1]:
            j, count = sender[e], 1
            if j < 0 or j >= atoms:
                return False
            while e + count < ptr[i + 1] and sender[e + count] == j:
                count += 1
            first = following[j]
            if first + count > ptr[j + 1]:
                return False
            for q in range(count):
                if sender[first + q] != i:
                    return False
                reverse[e + q] = first + count - 1 - q
            following[j] = first + count
            e += count
    # Rows of equal numbers of edges for each thread
    tasks = len(bounds) - 1
    row = 0
    for k in range(tasks + 1):
        while row < atoms and ptr[row] * tasks < edges * k:
            row += 1
        bounds[k] = row
    bounds[0], bounds[tasks] = 0, atoms
    return True


@njit(error_model="numpy", nogil=True)
def _geometry_rows(  # type: ignore[no-untyped-def]  # pragma: no cover
    start,
    end,
    positions,
    cells,
    structure,
    ptr,
    sender,
    steps,
    cutoff,
    intervals,
    vector,
    distance,
    unit,
    knot,
    basis,
    gradient,
):
    bad = 0
    scale = intervals / cutoff
    periodic = len(steps) > 0
    for i in range(start, end):
        for e in range(ptr[i], ptr[i + 1]):
            j = sender[e]
            square = 0.0
            for d in range(3):
                x = positions[j, d] - positions[i, d]
                if periodic:
                    b = structure[i]
                    x += steps[e, 0] * cells[b, 0, d] + steps[e, 1] * cells[b, 1, d] + steps[e, 2] * cells[b, 2, d]
                vector[e, d] = x
                square += x * x
            r = np.sqrt(square)
            distance[e] = r
            if not r > COINCIDING:  # true of what is not a number, too
                bad += 1
            for d in range(3):
                unit[e, d] = vector[e, d] / r
            s = r * scale
            if not s < intervals:
                s = float(intervals)
            k = min(int(s), intervals - 1)
            t = s - k
            knot[e] = k
            q = 1.0 - t
            basis[e, 0] = q * q * (1.0 + 2.0 * t)
            basis[e, 1] = t * q * q
            basis[e, 2] = t * t * (3.0 - 2.0 * t)
            basis[e, 3] = -t * t * q
            basis[e, 4] = -6.0 * t * q * scale
            basis[e, 5] = q * (1.0 - 3.0 * t) * scale
            basis[e, 6] = 6.0 * t * q * scale
            basis[e, 7] = t * (3.0 * t - 2.0) * scale
            for d in range(4):
                gradient[e, d] = 0.0
    return bad


@compile_shared
def _geometry(  # type: ignore[no-untyped-def]  # pragma: no cover
    bounds,
    positions,
    cells,
    structure,
    ptr,
    sender,
    steps,
    cutoff,
    intervals,
    vector,
    distance,
    unit,
    knot,
    basis,
    gradient,
    bad,
):
    tasks = len(bounds) - 1
    if tasks == 1:
        bad[0] = _geometry_rows(
            0, bounds[1], positions, cells, structure, ptr, sender, steps, cutoff, intervals, vector, distance, unit, knot, basis, gradient
        )  # fmt: skip
        return
    for k in prange(tasks):
        bad[k] = _geometry_rows(
            bounds[k], bounds[k + 1], positions, cells, structure, ptr, sender, steps, cutoff, intervals, vector, distance, unit,
            knot, basis, gradient,
        )  # fmt: skip


@njit(error_model="numpy")
def _edge_gradient_rows(start, end, ptr, vector, distance, gradient, slots):  # type: ignore[no-untyped-def]  # pragma: no cover
    for e in range(ptr[start], ptr[end]):
        r = distance[e]
        x, y, z = -vector[e, 0] / r, -vector[e, 1] / r, -vector[e, 2] / r
        gx, gy, gz = np.float64(gradient[e, 1]), np.float64(gradient[e, 2]), np.float64(gradient[e, 3])
        along = gradient[e, 0] - (gx * x + gy * y + gz * z) / r
        slots[e, 0] = along * x + gx / r
        slots[e, 1] = along * y + gy / r
        slots[e, 2] = along * z + gz / r


@njit(error_model="numpy")
def _force_rows(start, end, ptr, reverse, slots, forces):  # type: ignore[no-untyped-def]  # pragma: no cover
    for j in range(start, end):
        x = y = z = 0.0
        for e in range(ptr[j], ptr[j + 1]):
            b = reverse[e]
            x += slots[b, 0] - slots[e, 0]
            y += slots[b, 1] - slots[e, 1]
            z += slots[b, 2] - slots[e, 2]
        forces[j, 0], forces[j, 1], forces[j, 2] = x, y, z


@njit(error_model="numpy")
def _virial_rows(start, end, ptr, vector, slots, virial):  # type: ignore[no-untyped-def]  # pragma: no cover
    for j in range(start, end):
        for e in range(ptr[j], ptr[j + 1]):
            for p in range(3):
                for q in range(3):
                    virial[j, p, q] -= vector[e, p] * slots[e, q]


# A single task runs in the calling thread: a forked process may not start others.


@compile_shared
def _edge_gradients(bounds, ptr, vector, distance, gradient, slots):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Derivatives with respect to the vectors of what neighbors receive, in float64: along the vector, and across it."""
    if len(bounds) == 2:
        _edge_gradient_rows(0, bounds[1], ptr, vector, distance, gradient, slots)
        return
    for k in prange(len(bounds) - 1):
        _edge_gradient_rows(bounds[k], bounds[k + 1], ptr, vector, distance, gradient, slots)


@compile_shared
def _forces(bounds, ptr, reverse, slots, forces):  # type: ignore[no-untyped-def]  # pragma: no cover
    if len(bounds) == 2:
        _force_rows(0, bounds[1], ptr, reverse, slots, forces)
        return
    for k in prange(len(bounds) - 1):
        _force_rows(bounds[k], bounds[k + 1], ptr, reverse, slots, forces)


@compile_shared
def _virials(bounds, ptr, vector, slots, virial):  # type: ignore[no-untyped-def]  # pragma: no cover
    if len(bounds) == 2:
        _virial_rows(0, bounds[1], ptr, vector, slots, virial)
        return
    for k in prange(len(bounds) - 1):
        _virial_rows(bounds[k], bounds[k + 1], ptr, vector, slots, virial)
