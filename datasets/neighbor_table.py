"""`NeighborTable`: the neighbors of a store's structures, kept as flat arrays or found when a batch is made."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simkit.datasets.ragged import Ragged
from simkit.errors import ConfigError, DataError, GeometryError
from simkit.neighbors import molecule_edges, neighbor_list
from simkit.progress import track

_ALL_PAIRS_ATOMS = 200
"""Up to this size of a molecule trying all its pairs is quicker than a cell list."""
_STORED_PAIRS = 20_000_000
"""So many pairs (160 MB) are stored without being asked to: gathering them is twice as fast as finding them again."""
_CHUNK_ATOMS = 10_000


@dataclass(frozen=True, eq=False)
class NeighborTable:
    """Neighbors up to ``cutoff`` angstrom; found on the fly while ``rows`` is None.

    Attributes:
        rows: where each structure's edges begin.
        pairs: sender and receiver of every edge, [2, E] int32, counted from the structure's first atom.
        shift: lattice multiples of the sender's image, [E, 3] int16; None where nothing is periodic.
    """

    cutoff: float
    rows: Ragged | None = None
    pairs: Tensor | None = None
    shift: Tensor | None = None

    @classmethod
    def build(
        cls, pos: Tensor, ptr: Tensor, cell: Tensor | None, pbc: Tensor | None, cutoff: float, mode: str
    ) -> NeighborTable:
        """See `Store.with_neighbors`."""
        if not cutoff > 0 or not np.isfinite(cutoff):
            raise ConfigError(f"expected a positive cutoff in angstrom, found {cutoff}")
        if mode not in ("auto", "on_the_fly", "stored"):
            raise ConfigError(f"expected a mode of auto, on_the_fly or stored, found {mode!r}")
        if mode == "on_the_fly" and pbc is not None:
            raise ConfigError("periodic structures need mode='stored' (or 'auto'): on the fly only isolated molecules")
        counts = ptr.diff()
        small = pbc is None and int(counts.max()) <= _ALL_PAIRS_ATOMS
        if mode == "on_the_fly" or (mode == "auto" and small and int((counts * (counts - 1)).sum()) > _STORED_PAIRS):
            return cls(float(cutoff))
        if small:
            return cls._stored_molecules(pos, ptr, float(cutoff))
        return cls._stored_frames(pos, ptr, cell, pbc, float(cutoff))

    @classmethod
    def _stored_molecules(cls, pos: Tensor, ptr: Tensor, cutoff: float) -> NeighborTable:
        """All pairs within isolated molecules, a few thousand atoms at a time, on the device of the positions."""
        counts, pairs = [], []
        bounds = torch.unique(torch.searchsorted(ptr, torch.arange(0, int(ptr[-1]), _CHUNK_ATOMS, device=ptr.device)))
        edges_of = [*bounds.tolist(), len(ptr) - 1]
        for first, last in track(list(pairwise(edges_of)), "neighbor lists"):
            start, offsets = ptr[first], ptr[first : last + 1] - ptr[first]
            edges = molecule_edges(pos[start : ptr[last]].double(), offsets, cutoff)
            frame = torch.searchsorted(offsets, edges[1], right=True) - 1
            counts.append(torch.bincount(frame, minlength=last - first))
            pairs.append((edges - offsets.index_select(0, frame)).int())
        rows = torch.cat([ptr.new_zeros(1), torch.cat(counts).cumsum(0)])
        return cls(cutoff, Ragged(rows), torch.cat(pairs, dim=1))

    @classmethod
    def _stored_frames(
        cls, pos: Tensor, ptr: Tensor, cell: Tensor | None, pbc: Tensor | None, cutoff: float
    ) -> NeighborTable:
        """One neighbor list per structure, on the CPU."""
        places, offsets = pos.double().cpu().numpy(), ptr.cpu().numpy()
        frames = len(offsets) - 1
        cells = np.zeros((frames, 3, 3)) if cell is None else cell.cpu().numpy()
        periodic = np.zeros((frames, 3), dtype=bool) if pbc is None else pbc.cpu().numpy()
        pairs: list[NDArray[np.int32]] = []
        shifts: list[NDArray[np.int16]] = []
        for k in track(range(frames), "neighbor lists"):
            found = neighbor_list(places[offsets[k] : offsets[k + 1]], cells[k], periodic[k], cutoff)
            if found.shift.size and np.abs(found.shift).max() > np.iinfo(np.int16).max:
                raise GeometryError(f"atoms of frame {k} lie more than 32767 cells apart; wrap them into the cell")
            pairs.append(found.edge_index.astype(np.int32))
            shifts.append(found.shift.astype(np.int16))
        rows = torch.from_numpy(np.cumsum([0] + [pair.shape[1] for pair in pairs]))
        shift = torch.from_numpy(np.concatenate(shifts)) if pbc is not None else None
        return cls(cutoff, Ragged(rows), torch.from_numpy(np.concatenate(pairs, axis=1)), shift).to(pos.device)

    @classmethod
    def empty(cls) -> NeighborTable:
        """Return a table for graphs whose edges nobody will read."""
        return cls(0.0)

    def to(self, device: torch.device | str) -> NeighborTable:
        """Return the table on ``device``."""
        if self.rows is None or self.pairs is None:
            return self
        shift = None if self.shift is None else self.shift.to(device)
        return NeighborTable(self.cutoff, self.rows.to(device), self.pairs.to(device), shift)

    def select(self, rows: Tensor, host: Tensor | None) -> NeighborTable:
        """Return the table of some structures."""
        if self.rows is None or self.pairs is None:
            return self
        items, _, ptr = self.rows.gather(rows, host)
        shift = None if self.shift is None else self.shift.index_select(0, items)
        return NeighborTable(self.cutoff, Ragged(ptr), self.pairs.index_select(1, items), shift)

    def edges(self, rows: Tensor, host: Tensor | None, ptr: Tensor, pos: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return ``edge_index`` [2, E] int64 and lattice multiples [E, 3] of a batch.

        Args:
            rows: the structures [k]; ``host`` the same on the host, if there.
            ptr: where their atoms begin in the batch, [k+1].
            pos: their positions.
        """
        if self.rows is None or self.pairs is None:
            if self.cutoff == 0.0:
                return rows.new_zeros((2, 0)), None
            return molecule_edges(pos, ptr, self.cutoff), None
        items, owner, _ = self.rows.gather(rows, host)
        edge_index = self.pairs.index_select(1, items) + ptr.index_select(0, owner)
        return edge_index, None if self.shift is None else self.shift.index_select(0, items)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the table as NumPy arrays for a file."""
        arrays = {"neighbors:cutoff": np.asarray(self.cutoff)}
        if self.rows is not None and self.pairs is not None:
            arrays["neighbors:ptr"] = self.rows.ptr.cpu().numpy()
            arrays["neighbors:pairs"] = self.pairs.cpu().numpy()
        if self.shift is not None:
            arrays["neighbors:shift"] = self.shift.cpu().numpy()
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> NeighborTable | None:
        """Return the table that `arrays` wrote, or None if there was none."""
        if "neighbors:cutoff" not in arrays:
            return None
        cutoff = float(arrays["neighbors:cutoff"])
        if "neighbors:ptr" not in arrays:
            return cls(cutoff)
        if "neighbors:pairs" not in arrays:
            raise DataError("the file has offsets of neighbors but no neighbors; make it again")
        shift = torch.from_numpy(arrays["neighbors:shift"]) if "neighbors:shift" in arrays else None
        return cls(
            cutoff,
            Ragged(torch.from_numpy(arrays["neighbors:ptr"])),
            torch.from_numpy(arrays["neighbors:pairs"]),
            shift,
        )
