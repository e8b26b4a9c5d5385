"""`Edges`: the neighbor edges of a batch of replicas while they move, on the device that the atoms are on."""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from simkit.errors import ConfigError, GeometryError
from simkit.md.cell_list import batch_neighbor_list
from simkit.neighbors import neighbor_list

SMALL = 32  # atoms of an isolated replica whose pairs are simply all kept
MARGIN = 1e-9  # angstrom: displacements are compared with a little less than the skin, because of rounding


class Edges:
    """Edges within the cutoff of each replica, found in lists that reach further and are kept while they are complete.

    Isolated replicas of up to 32 atoms keep all their pairs, which are listed once. The others have lists of cutoff + skin, and each is
    rebuilt on its own when it may have become incomplete: with F = 1 + e the linear map from the lattice of the build to the present
    one, and positions x = x0 F + u up to a common translation, no pair from beyond the list has come within the cutoff as long as
    2 max|u| <= s (cutoff + skin) - cutoff with the smallest singular value s of F, for which 1 - |e| (Frobenius norm) is a lower
    bound. At constant cell that is the familiar rule that no atom may have moved by more than half of the skin.

    What comes out depends on the present positions and cells only, not on when lists were built, nor on the rest of the batch: edges are
    cut to the cutoff and sorted. On a GPU, where cutting makes the step wait, a batch of small isolated replicas keeps all its pairs;
    models mask those beyond the cutoff by their smooth cutoff functions.

    Args:
        positions: [N, 3] angstrom, float64, never wrapped, and cells: [B, 3, 3] angstrom: they are read anew in every `update`.
        pbc: [B, 3]. offsets: [B + 1], where the atoms of each replica begin, and N.
        cutoff, skin: angstrom. Without a skin, lists are rebuilt in every update.

    Attributes:
        builds: [B] lists built so far.

    Raises:
        ConfigError: if the skin is negative or not finite.
    """

    def __init__(
        self,
        positions: Tensor,
        cells: Tensor,
        pbc: NDArray[np.bool_],
        offsets: NDArray[np.int64],
        cutoff: float,
        skin: float,
    ) -> None:
        if not (math.isfinite(skin) and skin >= 0):
            raise ConfigError(f"skin: expected a finite length >= 0 in angstrom, found {skin}")
        self._positions, self._cells, self._pbc, self._offsets = positions, cells, pbc, offsets
        self._cutoff, self._skin = cutoff, skin
        self._on_device = positions.is_cuda
        device, sizes = positions.device, np.diff(offsets)
        fixed = ~pbc.any(axis=1) & (sizes <= SMALL)
        self._all_fixed, self._has_cells = bool(fixed.all()), bool(pbc.any())
        self._moving = torch.from_numpy(~fixed).to(device)
        self._mask = torch.from_numpy(pbc[:, :, None].astype(np.float64)).to(device)
        self._bounds = torch.from_numpy(offsets).to(device)
        self._sizes = torch.from_numpy(sizes.astype(np.float64)).to(device)[:, None]
        self._replica = torch.repeat_interleave(torch.arange(len(pbc)), torch.from_numpy(sizes)).to(device)
        self.builds = np.zeros(len(pbc), dtype=np.int64)
        self._reference = torch.zeros_like(positions)
        self._lattice, self._inverse = torch.zeros_like(cells), torch.zeros_like(cells)
        nothing = (torch.empty((2, 0), dtype=torch.int64, device=device), positions.new_empty((0, 3)))
        self._lists = [self._all_pairs(k) if fixed[k] else nothing for k in range(len(pbc))]
        self._join()
        self._stale_at_first = not self._all_fixed

    def update(self) -> tuple[Tensor, Tensor | None]:
        """The present edges, ``edge_index`` [2, E] and ``edge_shift`` [E, 3] of an `AtomGraph`; None where nothing is periodic.

        Raises:
            GeometryError: if a list must be built and coordinates are not finite or a cell has no volume.
        """
        if not self._all_fixed:
            stale = self._moving if self._stale_at_first else self._stale()
            chosen = stale.nonzero().squeeze(1).cpu().numpy()
            if len(chosen):
                self._build(chosen)
                self._join()
                self._stale_at_first = False
        elif self._on_device:
            return self._edge_index, None
        return self._within()

    def _stale(self) -> Tensor:
        """Which lists may have become incomplete, [B] bool."""
        moved = self._positions - self._reference
        room: Tensor | float = self._skin
        if self._has_cells:
            strain = self._inverse @ (self._cells * self._mask - self._lattice)
            moved -= torch.matmul(self._reference[:, None], strain.index_select(0, self._replica)).squeeze(1)
            room = (1 - torch.linalg.matrix_norm(strain)) * (self._cutoff + self._skin) - self._cutoff
        mean = torch.segment_reduce(moved, "sum", offsets=self._bounds, axis=0) / self._sizes
        moved -= mean.index_select(0, self._replica)
        largest = torch.segment_reduce(moved.square().sum(1), "max", offsets=self._bounds)
        return ~(2 * largest.sqrt() <= room - MARGIN) & self._moving  # also true of what is not a number

    def _build(self, chosen: NDArray[np.int64]) -> None:
        """Build the lists of some replicas."""
        if self._on_device:
            self._build_on_device(chosen)
        else:
            for k in chosen:
                part = slice(self._offsets[k], self._offsets[k + 1])
                place, cell = self._positions[part].numpy(), self._cells[k].numpy()
                try:
                    found = neighbor_list(place, cell, self._pbc[k], self._cutoff + self._skin)
                except GeometryError as error:
                    raise GeometryError(f"replica {k}: {error}") from error
                edges = torch.from_numpy(found.edge_index + self._offsets[k])
                self._lists[k] = edges, torch.from_numpy(found.shift.astype(np.float64))
        self.builds[chosen] += 1
        now = torch.from_numpy(chosen).to(self._positions.device)
        again = torch.zeros_like(self._moving).index_fill_(0, now, True)
        self._reference = torch.where(again.index_select(0, self._replica)[:, None], self._positions, self._reference)
        self._lattice = torch.where(again[:, None, None], self._cells * self._mask, self._lattice)
        if self._has_cells:
            self._inverse = torch.linalg.pinv(self._lattice)

    def _build_on_device(self, chosen: NDArray[np.int64]) -> None:
        sizes = np.diff(self._offsets)[chosen]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        device = self._positions.device
        rows = torch.from_numpy(np.arange(offsets[-1]) + np.repeat(self._offsets[chosen] - offsets[:-1], sizes)).to(
            device
        )
        places, cells = self._positions.index_select(0, rows), self._cells[torch.from_numpy(chosen).to(device)]
        edges, shift = batch_neighbor_list(places, cells, self._pbc[chosen], offsets, self._cutoff + self._skin)
        ends = torch.searchsorted(edges[1], torch.from_numpy(offsets).to(device)).diff().tolist()
        parts = zip(chosen, rows[edges].split(ends, dim=1), shift.split(ends), strict=True)
        for k, edge_index, steps in parts:
            self._lists[k] = edge_index, steps

    def _all_pairs(self, k: int) -> tuple[Tensor, Tensor]:
        """All pairs of different atoms of a replica, sorted by receiver and sender."""
        first, last = self._offsets[k], self._offsets[k + 1]
        atoms = torch.arange(first, last, device=self._positions.device)
        pairs = torch.cartesian_prod(atoms, atoms)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        return pairs.T.flip(0).contiguous(), self._positions.new_zeros(len(pairs), 3)

    def _join(self) -> None:
        """Put the lists of all replicas end to end."""
        self._edge_index = torch.cat([edge_index for edge_index, _ in self._lists], dim=1)
        self._shift = torch.cat([shift for _, shift in self._lists]) if self._has_cells else None
        if not self._on_device:
            shift = np.empty((0, 3)) if self._shift is None else self._shift.numpy()
            self._near = torch.empty(self._edge_index.shape[1], dtype=torch.int64)
            self._arrays = self._edge_index.numpy(), shift, self._replica.numpy(), self._near.numpy()

    def _within(self) -> tuple[Tensor, Tensor | None]:
        """The edges shorter than the cutoff. Distances that are not a number stay in, for the model to refuse."""
        near = self._near_on_device() if self._on_device else self._near_on_host()
        if near is None:
            return self._edge_index, self._shift
        shift = None if self._shift is None else self._shift.index_select(0, near)
        return self._edge_index.index_select(1, near), shift

    def _near_on_host(self) -> Tensor | None:
        """Which edges these are; None where it is all of them."""
        count = _select(
            self._positions.numpy(), self._cells.numpy(), self._shift is not None, self._cutoff**2, *self._arrays
        )
        return None if count == len(self._near) else self._near[:count]

    def _near_on_device(self) -> Tensor:
        sender, receiver = self._edge_index.unbind(0)
        vectors = self._positions.index_select(0, sender) - self._positions.index_select(0, receiver)
        if self._shift is not None:
            # Written out: the rounding of a matrix product may depend on the size of the batch.
            x, y, z = self._shift.unsqueeze(2).unbind(1)
            a, b, c = self._cells.index_select(0, self._replica.index_select(0, receiver)).unbind(-2)
            vectors += x * a + y * b + z * c
        far = vectors.square_().sum(1) >= self._cutoff * self._cutoff
        return far.logical_not_().nonzero().squeeze(1)


@njit(cache=True)
def _select(positions, cells, periodic, square, edge_index, shift, replica, near):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Write the numbers of the edges shorter than the cutoff to ``near``, and return how many there are."""
    count = 0
    for e in range(edge_index.shape[1]):
        j, i = edge_index[0, e], edge_index[1, e]
        distance = 0.0
        for k in range(3):
            x = positions[j, k] - positions[i, k]
            if periodic:
                cell = cells[replica[i]]
                x += shift[e, 0] * cell[0, k] + shift[e, 1] * cell[1, k] + shift[e, 2] * cell[2, k]
            distance += x * x
        if not distance >= square:
            near[count] = e
            count += 1
    return count
