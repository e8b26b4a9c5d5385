"""Edges as rows on a GPU: what `simkit.fast.rows` is on a CPU."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numba import cuda
from torch import Tensor

from simkit.fast import cuda_scalar_rows, cuda_vector_rows
from simkit.fast.cuda_workspace import DeviceWorkspace
from simkit.fast.rows import UnorderedEdgesError
from simkit.fast.workspace import REALS
from simkit.graph import AtomGraph
from simkit.kernels.gpu import Grid, launch, view, warps

WHOLE, EXACT = np.dtype(np.int64), np.dtype(np.float64)


class CudaRows:
    """The edges of a graph as rows; attributes that are not said here are those of `simkit.fast.rows.Rows`, flat and on the GPU.

    The order of the edges and their pairs are found, and checked, when there is another list: that is the one time when the host waits
    for the GPU. Positions are not checked, as the reference path does not check them there: the forces of atoms at the same place,
    or at one that is not a number, are not numbers, which a simulation notices.

    Args:
        workspace: active; what was there before is overwritten.
        graph: on its device. cutoff: angstrom; edges that are longer have no weight.
        intervals: of the tables of filters. dtype: of the network. channels: that kernels run over.

    Attributes:
        bounds: the grid of kernels over rows.
        gradient: [E, warps, 4], zero: for each warp of a row its part of the derivatives of each edge.

    Raises:
        UnorderedEdgesError: if the edges are not sorted by receiver and sender, or lack their reverse.
    """

    scalar_kernels: ClassVar[Any] = cuda_scalar_rows
    vector_kernels: ClassVar[Any] = cuda_vector_rows

    def __init__(
        self,
        workspace: DeviceWorkspace,
        graph: AtomGraph,
        cutoff: float,
        intervals: int,
        dtype: torch.dtype,
        channels: int,
    ) -> None:
        self.workspace, self.atoms, self.edges = workspace, graph.pos.shape[0], graph.edge_index.shape[1]
        self.bounds, self.parts = Grid(self.atoms, workspace.stream), warps(channels)
        get, keep, edges, real = workspace.get, workspace.keep, self.edges, REALS[dtype]
        order = keep("order", (graph.edge_index, graph.batch), partial(_order, graph.edge_index, graph.batch))
        self.ptr, self.sender, self.reverse = order.ptr, order.sender, order.reverse
        self.vector, self.distance = get("vector", (edges, 3), EXACT).flat, get("distance", (edges,), EXACT).flat
        self.unit, self.basis = get("unit", (edges, 3), real), get("basis", (edges, 8), real)
        self.knot, self.gradient = get("knot", (edges,), WHOLE).flat, get("gradient", (edges, self.parts, 4), real)
        self.gradient.tensor.zero_()
        positions, cells = get("positions", (self.atoms, 3), EXACT), get("cells", (graph.num_structures, 3, 3), EXACT)
        positions.tensor.copy_(graph.pos.detach())
        cells.tensor.copy_(graph.cell)
        shift = graph._store.get("edge_shift")
        steps = positions.flat  # which is not read
        if shift is not None:
            steps = keep("steps", (shift,), lambda: view(shift.double().contiguous().view(-1)))
        launch(
            _geometry, edges, workspace.stream, edges, positions.flat, cells.flat, order.batch, order.receiver,
            self.sender, steps, shift is not None, intervals / cutoff, intervals, self.vector, self.distance,
            self.unit.flat, self.knot, self.basis.flat,
        )  # fmt: skip

    def forces(self, virial: bool) -> tuple[Tensor, Tensor]:
        """Return forces [N, 3] and the virial of each atom, sum of vector times gradient, [N, 3, 3] (empty where not asked for)."""
        get, stream, atoms = self.workspace.get, self.workspace.stream, self.atoms
        slots, forces = get("slots", (self.edges, 3), EXACT), get("forces", (atoms, 3), EXACT)
        virials = get("virials", (atoms if virial else 0, 3, 3), EXACT)
        given = self.parts, self.vector, self.distance, self.gradient.flat
        launch(_edge_gradients, self.edges, stream, self.edges, *given, slots.flat)
        launch(_forces, 3 * atoms, stream, 3 * atoms, self.ptr, self.reverse, slots.flat, forces.flat)
        if virial:  # apart: forces must not depend on what else is computed, not even by their rounding
            launch(_virials, 9 * atoms, stream, 9 * atoms, self.ptr, self.vector, slots.flat, virials.flat)
        return forces.tensor.clone(), virials.tensor.clone()


class _Order(NamedTuple):
    """Where rows begin, both ends of edges, the reverse of each, and the structures of atoms, as kernels take them."""

    ptr: Any
    sender: Any
    receiver: Any
    reverse: Any
    batch: Any


def _order(edge_index: Tensor, batch: Tensor) -> _Order:
    """Find rows and reverses.

    Pairs have numbers that rise along a list that is sorted. Edges between the same two atoms, by several images of one, are in the
    opposite order in the row of the other, because shifts change their sign.
    """
    sender, receiver = edge_index.contiguous().unbind()
    atoms, edges = batch.shape[0], edge_index.shape[1]
    ptr = torch.searchsorted(receiver, torch.arange(atoms + 1, device=batch.device))
    pair, other = receiver * atoms + sender, sender * atoms + receiver
    place = torch.arange(edges, device=batch.device) - torch.searchsorted(pair, pair)
    reverse = torch.searchsorted(pair, other, right=True) - 1 - place
    if edges:
        low, high = edge_index.aminmax()
        back = reverse.clamp(0, edges - 1)
        good = (pair.diff() >= 0).all() & (low >= 0) & (high < atoms) & (reverse == back).all()
        if not bool(good & (other == pair.index_select(0, back)).all()):
            raise UnorderedEdgesError
    return _Order(*map(view, (ptr, sender, receiver, reverse, batch.contiguous())))


@cuda.jit
def _geometry(  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    edges, positions, cells, structure, receiver, sender, steps, periodic, scale, intervals, vector, distance, unit, knot, basis
):  # fmt: skip
    """Vectors, distances, unit vectors, and the Hermite basis in the interval of each distance with its derivatives."""
    e = cuda.grid(1)
    if e >= edges:
        return
    i, j = receiver[e], sender[e]
    square = 0.0
    for d in range(3):
        x = positions[3 * j + d] - positions[3 * i + d]
        if periodic:
            a = 9 * structure[i] + d
            x += steps[3 * e] * cells[a] + steps[3 * e + 1] * cells[a + 3] + steps[3 * e + 2] * cells[a + 6]
        vector[3 * e + d] = x
        square += x * x
    r = math.sqrt(square)
    distance[e] = r
    for d in range(3):
        unit[3 * e + d] = vector[3 * e + d] / r
    s = r * scale
    if not s < intervals:  # true of what is not a number, too
        s = float(intervals)
    k = min(int(s), intervals - 1)
    t = s - k
    q = 1.0 - t
    knot[e] = k
    h = 8 * e
    basis[h] = q * q * (1.0 + 2.0 * t)
    basis[h + 1] = t * q * q
    basis[h + 2] = t * t * (3.0 - 2.0 * t)
    basis[h + 3] = -t * t * q
    basis[h + 4] = -6.0 * t * q * scale
    basis[h + 5] = q * (1.0 - 3.0 * t) * scale
    basis[h + 6] = 6.0 * t * q * scale
    basis[h + 7] = t * (3.0 * t - 2.0) * scale


@cuda.jit
def _edge_gradients(edges, parts, vector, distance, gradient, slots):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Derivatives with respect to the vectors of what neighbors receive, in float64: along the vector, and across it."""
    e = cuda.grid(1)
    if e >= edges:
        return
    along, gx, gy, gz = 0.0, 0.0, 0.0, 0.0
    for k in range(4 * parts * e, 4 * parts * (e + 1), 4):
        along += gradient[k]
        gx += gradient[k + 1]
        gy += gradient[k + 2]
        gz += gradient[k + 3]
    r = distance[e]
    x, y, z = -vector[3 * e] / r, -vector[3 * e + 1] / r, -vector[3 * e + 2] / r
    along -= (gx * x + gy * y + gz * z) / r
    slots[3 * e] = along * x + gx / r
    slots[3 * e + 1] = along * y + gy / r
    slots[3 * e + 2] = along * z + gz / r


@cuda.jit
def _forces(components, ptr, reverse, slots, forces):  # type: ignore[no-untyped-def]  # pragma: no cover
    k = cuda.grid(1)
    if k >= components:
        return
    j, d = k // 3, k % 3
    total = 0.0
    for e in range(ptr[j], ptr[j + 1]):
        total += slots[3 * reverse[e] + d] - slots[3 * e + d]
    forces[k] = total


@cuda.jit
def _virials(components, ptr, vector, slots, virials):  # type: ignore[no-untyped-def]  # pragma: no cover
    k = cuda.grid(1)
    if k >= components:
        return
    j, p, q = k // 9, k % 9 // 3, k % 3
    total = 0.0
    for e in range(ptr[j], ptr[j + 1]):
        total -= vector[3 * e + p] * slots[3 * e + q]
    virials[k] = total
