"""`Store`: a data set as flat arrays, all atoms of all structures end to end, from which batches are gathered."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simkit.datasets.array_checks import (
    check_cells,
    check_column,
    check_label,
    check_numbers,
    check_positions,
    check_ptr,
)
from simkit.datasets.neighbor_table import NeighborTable
from simkit.datasets.npz_file import Array, digest, read_npz
from simkit.datasets.ragged import Ragged
from simkit.errors import DataError, LabelError
from simkit.files import atomic_path
from simkit.graph import LABELS, AtomGraph

if TYPE_CHECKING:
    from ase import Atoms

Indices = Tensor | Array | Sequence[int]

# Keeps the memory of a batch bounded, whatever the size of the structures.
MAX_ATOMS = 4096
_FORMAT = "simkit-store-1"


class Store:
    """``F`` structures with ``A`` atoms in all, held as flat tensors on one device.

    Args:
        z: atomic numbers [A].
        pos: positions [A, 3], angstrom, float32 or float64; kept as they are.
        ptr: where each structure's atoms begin, [F+1], from 0 to A.
        labels: arrays under the names of `simkit.graph.LABELS`, [F, ...] or [A, ...]. Labels per structure are held in
            float64; labels per atom keep float32 or float64.
        cell: lattice vectors [F, 3, 3] as rows, angstrom; None where no structure has a cell.
        pbc: periodic directions [F, 3] bool; None where nothing is periodic.
        info: facts about the whole set: ``name``, ``level_of_theory``, ``source``, ``references`` (per label, the value
            of an isolated atom of each atomic number, in the label's unit), and whatever else can be written as JSON.
        groups: the group of every structure [F], for splits and reports.
        columns: other values per structure [F, ...] that are no labels, such as an identifier.

    Raises:
        DataError: if the arrays do not fit together, are empty, or hold positions that are not finite.
        LabelError: if a label is unknown, of a wrong shape or not finite; it names the label and the frame.
    """

    def __init__(
        self,
        z: Tensor | Array,
        pos: Tensor | Array,
        ptr: Tensor | Array,
        labels: Mapping[str, Tensor | Array] | None = None,
        *,
        cell: Tensor | Array | None = None,
        pbc: Tensor | Array | None = None,
        info: Mapping[str, Any] | None = None,
        groups: Array | None = None,
        columns: Mapping[str, Array] | None = None,
    ) -> None:
        self.info: dict[str, Any] = dict(info or {})
        self.ptr = check_ptr(torch.as_tensor(ptr), self.name)
        self.z = check_numbers(torch.as_tensor(z), self.ptr, self.name)
        self.pos = check_positions(torch.as_tensor(pos), self.ptr, self.name)
        self.cell, self.pbc = check_cells(
            None if cell is None else torch.as_tensor(cell),
            None if pbc is None else torch.as_tensor(pbc),
            self.ptr,
            self.name,
        )
        self.labels = {
            name: check_label(name, torch.as_tensor(value), self.ptr, self.name)
            for name, value in (labels or {}).items()
        }
        self.columns = {
            name: check_column(name, value, len(self), self.name) for name, value in (columns or {}).items()
        }
        self.groups = None if groups is None else check_column("groups", groups, len(self), self.name)
        self.neighbors: NeighborTable | None = None
        self._atoms = Ragged(self.ptr)

    # ------------------------------------------------------------------------------------------------ what it holds

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def __repr__(self) -> str:
        return f"Store({self.name}: {len(self)} structures, {len(self.z)} atoms, labels {list(self.labels)})"

    @property
    def name(self) -> str:
        """The name of the data set."""
        return str(self.info.get("name", "data set"))

    @property
    def device(self) -> torch.device:
        """Where the arrays lie."""
        return self.z.device

    @property
    def n_atoms(self) -> Tensor:
        """The number of atoms of each structure, [F] int64."""
        return self._atoms.counts

    @property
    def elements(self) -> list[int]:
        """The atomic numbers that occur, sorted."""
        return torch.nonzero(torch.bincount(self.z, minlength=1)).flatten().tolist()

    def has(self, label: str) -> bool:
        """Return whether there is a label of this name."""
        return label in self.labels

    def composition(self) -> Tensor:
        """Return how many atoms of each of `elements` every structure has, [F, n_elements] float64."""
        elements = self.elements
        column = torch.zeros(elements[-1] + 1, dtype=torch.long, device=self.device)
        column[torch.tensor(elements, device=self.device)] = torch.arange(len(elements), device=self.device)
        frame = torch.repeat_interleave(self.n_atoms, output_size=len(self.z))
        flat = frame.mul_(len(elements)).add_(column[self.z.long()])
        counts = torch.bincount(flat, minlength=len(self) * len(elements))
        return counts.reshape(len(self), len(elements)).double()

    def formulas(self) -> NDArray[np.str_]:
        """Return the formula of every structure in Hill's order, [F]."""
        from ase.data import chemical_symbols
        from ase.formula import Formula

        symbols = [chemical_symbols[number] for number in self.elements]
        rows, inverse = np.unique(self.composition().cpu().numpy().astype(np.int32), axis=0, return_inverse=True)
        names = [
            Formula.from_dict({s: int(n) for s, n in zip(symbols, row, strict=True) if n}).format("hill")
            for row in rows
        ]
        return np.asarray(names)[inverse.reshape(-1)]

    def describe(self) -> str:
        """Return what the data set holds, as text: labels with count, unit and range, and warnings on doubtful units."""
        from simkit.datasets.checks import description

        return description(self)

    # ------------------------------------------------------------------------------------------------- other stores

    def _replace(self, **changes: Any) -> Store:
        """Return a copy with some attributes exchanged, without checking them again."""
        other = copy.copy(self)
        other.info = copy.deepcopy(self.info)
        for name, value in changes.items():
            setattr(other, name, value)
        return other

    def to(self, device: torch.device | str) -> Store:
        """Return the store with all arrays on ``device``."""
        return self._replace(
            **{name: None if (value := getattr(self, name)) is None else value.to(device) for name in _TENSORS},
            labels={name: value.to(device) for name, value in self.labels.items()},
            neighbors=None if self.neighbors is None else self.neighbors.to(device),
            _atoms=self._atoms.to(device),
        )

    def _rows(self, indices: Indices) -> tuple[Tensor, Tensor | None]:
        """Return indices on the store's device and, where they come from there, on the host."""
        # A copy of NumPy arrays, which may be read-only: PyTorch shares memory and knows no such thing.
        rows = torch.as_tensor(np.array(indices) if isinstance(indices, np.ndarray) else indices)
        if rows.dtype == torch.bool or rows.is_floating_point() or rows.ndim != 1 or len(rows) == 0:
            raise DataError(
                f"expected a non-empty list of structure indices, found {list(rows.shape)} of type {rows.dtype}"
            )
        rows = rows.long()
        if rows.device.type != "cpu":
            return rows.to(self.device), None
        low, high = torch.aminmax(rows)
        if int(low) < 0 or int(high) >= len(self):
            raise DataError(
                f"structure indices {int(low)} to {int(high)} are not all within 0 to {len(self) - 1} of {self.name}"
            )
        return rows.to(self.device, non_blocking=True), rows

    def select(self, indices: Indices) -> Store:
        """Return a store of the structures ``indices`` [k] in that order, with their neighbor lists.

        Raises:
            DataError: if there are no indices, or some are out of range.
        """
        rows, host = self._rows(indices)
        items, _, ptr = self._atoms.gather(rows, host)
        kept = rows.cpu().numpy()
        return self._replace(
            z=self.z.index_select(0, items),
            pos=self.pos.index_select(0, items),
            ptr=ptr,
            cell=None if self.cell is None else self.cell.index_select(0, rows),
            pbc=None if self.pbc is None else self.pbc.index_select(0, rows),
            labels={
                name: value.index_select(0, rows if LABELS[name].per == "graph" else items)
                for name, value in self.labels.items()
            },
            groups=None if self.groups is None else self.groups[kept],
            columns={name: value[kept] for name, value in self.columns.items()},
            neighbors=None if self.neighbors is None else self.neighbors.select(rows, host),
            _atoms=Ragged(ptr),
        )

    def with_neighbors(self, cutoff: float, mode: str = "auto") -> Store:
        """Return the store with neighbors up to ``cutoff`` angstrom, so that `batch` can make graphs.

        Args:
            mode: "stored" finds all pairs now and keeps them; "on_the_fly" finds them when a batch is made, for isolated
                molecules only; "auto" stores them unless there are many small molecules (more than 20 million pairs).

        Raises:
            ConfigError: if the mode is unknown, impossible here, or the cutoff is not positive.
        """
        table = NeighborTable.build(self.pos, self.ptr, self.cell, self.pbc, cutoff, mode)
        return self._replace(neighbors=table)

    # ------------------------------------------------------------------------------------------------------ batches

    def batches(self, size: int) -> tuple[Tensor, ...]:
        """Return the indices of all structures in order, ``size`` to a batch, or fewer where the structures are large."""
        return torch.arange(len(self)).split(max(1, min(size, MAX_ATOMS // int(self.n_atoms.max()))))

    def batch(self, indices: Indices, dtype: torch.dtype = torch.float64) -> AtomGraph:
        """Return the structures ``indices`` [k] as one graph on the store's device.

        Positions, cells, shifts and labels per atom get ``dtype``; labels per structure stay in float64, which total
        energies need.

        Raises:
            DataError: if `with_neighbors` was not called, there are no indices or some are out of range.
        """
        if self.neighbors is None:
            raise DataError("this store has no neighbors yet; call store.with_neighbors(cutoff) before making batches")
        rows, host = self._rows(indices)
        items, owner, ptr = self._atoms.gather(rows, host)
        k = len(rows)
        pos = self.pos.index_select(0, items).to(dtype)
        edge_index, shift = self.neighbors.edges(rows, host, ptr, pos)
        labels = {
            name: value.index_select(0, rows) if LABELS[name].per == "graph" else value.index_select(0, items).to(dtype)
            for name, value in self.labels.items()
        }
        return AtomGraph(
            z=self.z.index_select(0, items).long(),
            pos=pos,
            cell=pos.new_zeros((k, 3, 3)) if self.cell is None else self.cell.index_select(0, rows).to(dtype),
            pbc=rows.new_zeros((k, 3), dtype=torch.bool) if self.pbc is None else self.pbc.index_select(0, rows),
            edge_index=edge_index,
            edge_shift=None if shift is None else shift.to(dtype),
            batch=owner,
            ptr=ptr,
            **labels,
        )

    def to_atoms(self, indices: Indices | None = None) -> list[Atoms]:
        """Return structures as ASE atoms with the labels that ASE knows as stored results; all of them by default."""
        rows, host = self._rows(torch.arange(len(self)) if indices is None else indices)
        bare = self._replace(neighbors=NeighborTable.empty())
        return bare.batch(rows if host is None else host).to_ase()

    # --------------------------------------------------------------------------------------------------- persistence

    def _arrays(self) -> dict[str, Array]:
        """Return everything but `info` and the neighbors as NumPy arrays."""
        tensors = {name: getattr(self, name) for name in _TENSORS} | {
            f"label:{name}": value for name, value in self.labels.items()
        }
        arrays = {name: value.cpu().numpy() for name, value in tensors.items() if value is not None}
        arrays |= {f"column:{name}": value for name, value in self.columns.items()}
        return arrays if self.groups is None else arrays | {"groups": self.groups}

    def hash(self) -> str:
        """Return the SHA-256 of the content (structures, labels, columns, groups), the same on every device."""
        return digest(self._arrays())

    def save(self, path: str | Path, compress: bool = False) -> None:
        """Write the store and its neighbor lists to an ``.npz`` file with a checksum, replacing the file atomically.

        Raises:
            OutputError: if the file cannot be written.
        """
        arrays = self._arrays() | ({} if self.neighbors is None else self.neighbors.arrays())
        arrays["info"] = np.asarray(json.dumps({"format": _FORMAT, "info": self.info}))
        arrays["checksum"] = np.asarray(digest(arrays))
        target = Path(path)
        if target.suffix != ".npz":
            raise DataError(f"a store is written to a file that ends in .npz, found {target}")
        with atomic_path(target) as temporary, temporary.open("wb") as stream:
            (np.savez_compressed if compress else np.savez)(stream, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Store:
        """Read a store written by `save`.

        Raises:
            DataError: if the file is missing, is no store, is truncated or was altered.
        """
        arrays = read_npz(path)
        checksum = str(arrays.pop("checksum", ""))
        if "info" not in arrays or not checksum:
            raise DataError(f"{path} is no store written by simkit: it has no checksum; load it as 'frames' instead")
        if digest(arrays) != checksum:
            raise DataError(f"{path} was altered: its checksum does not fit its content; make it again")
        header = json.loads(str(arrays.pop("info")))
        if header["format"] != _FORMAT:
            raise DataError(f"{path} has the format {header['format']!r}, this version of simkit reads {_FORMAT!r}")
        info = header["info"]
        if "references" in info:  # JSON has turned the atomic numbers into text
            info["references"] = {
                label: {int(number): value for number, value in values.items()}
                for label, values in info["references"].items()
            }
        store = cls(
            arrays["z"],
            arrays["pos"],
            arrays["ptr"],
            labels={name[6:]: value for name, value in arrays.items() if name.startswith("label:")},
            columns={name[7:]: value for name, value in arrays.items() if name.startswith("column:")},
            cell=arrays.get("cell"),
            pbc=arrays.get("pbc"),
            groups=arrays.get("groups"),
            info=info,
        )
        return store._replace(neighbors=NeighborTable.from_arrays(arrays))


_TENSORS = ("z", "pos", "ptr", "cell", "pbc")


def concatenate(stores: Sequence[Store], info: Mapping[str, Any] | None = None) -> Store:
    """Return one store with the structures of several, in order; neighbors have to be asked for again.

    Args:
        info: what to say about the whole; by default that of the first store, which all others must agree with in
            level of theory and references.

    Raises:
        DataError: if there is none, or levels of theory or references differ and no ``info`` is given.
        LabelError: if they do not have the same labels.
    """
    if not stores:
        raise DataError("expected at least one store to concatenate, found none")
    first = stores[0]
    for store in stores[1:]:
        if set(store.labels) != set(first.labels):
            raise LabelError(
                f"cannot concatenate: {first.name} has the labels {sorted(first.labels)}, {store.name} has "
                f"{sorted(store.labels)}; load both with the same labels"
            )
        for key in ("level_of_theory", "references"):
            if info is None and store.info.get(key) != first.info.get(key):
                raise DataError(
                    f"cannot concatenate: {key} differs, {first.name} has {first.info.get(key)!r}, {store.name} has "
                    f"{store.info.get(key)!r}; pass info= if they do belong together"
                )
    columns = [name for name in first.columns if all(name in store.columns for store in stores)]
    return Store(
        torch.cat([store.z for store in stores]),
        torch.cat([store.pos for store in stores]),
        torch.cat([first.ptr.new_zeros(1), torch.cat([store.n_atoms for store in stores]).cumsum(0)]),
        labels={name: torch.cat([store.labels[name] for store in stores]) for name in first.labels},
        cell=torch.cat([_zeros_if_none(store.cell, store, (3, 3), torch.float64) for store in stores]),
        pbc=torch.cat([_zeros_if_none(store.pbc, store, (3,), torch.bool) for store in stores]),
        groups=None
        if any(store.groups is None for store in stores)
        else np.concatenate([np.asarray(store.groups) for store in stores]),
        columns={name: np.concatenate([store.columns[name] for store in stores]) for name in columns},
        info=first.info if info is None else info,
    )


def _zeros_if_none(value: Tensor | None, store: Store, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.zeros((len(store), *shape), dtype=dtype, device=store.device) if value is None else value
