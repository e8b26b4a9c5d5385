"""`AtomGraph`: one or several structures as tensors, the only thing that a `Potential` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from simkit.errors import DataError, GeometryError, LabelError
from simkit.kernels.tracing import arrangement
from simkit.neighbors import neighbor_list
from simkit.units import unit_factor, unit_text

if TYPE_CHECKING:
    from ase import Atoms


@dataclass(frozen=True)
class LabelSpec:
    """What a label is: per structure or per atom, its shape for one of them, and its unit.

    ``error_unit`` is the one that the literature gives errors in: meV for energies, debye for the norm of the dipole.
    """

    name: str
    per: Literal["graph", "atom"]
    shape: tuple[int, ...]
    unit: str
    error_unit: str
    description: str = ""

    def in_error_unit(self, value: float) -> tuple[float, str]:
        """Return a value, which is in ``unit``, in ``error_unit``, and what to print behind it."""
        return value / unit_factor(self.error_unit), unit_text(self.error_unit)


LABELS: dict[str, LabelSpec] = {
    spec.name: spec
    for spec in (
        LabelSpec("energy", "graph", (), "eV", "meV", "total energy"),
        LabelSpec("forces", "atom", (3,), "eV/angstrom", "meV/angstrom", "minus the gradient of the energy"),
        LabelSpec(
            "stress", "graph", (3, 3), "eV/angstrom^3", "meV/angstrom^3", "in ASE's sign: positive under tension"
        ),
        LabelSpec("dipole", "graph", (3,), "e*angstrom", "me*angstrom", "electric dipole moment"),
        LabelSpec("energies", "atom", (), "eV", "meV", "atomic contributions to the energy"),
        LabelSpec("charge", "graph", (), "e", "me", "total charge"),
        LabelSpec("charges", "atom", (), "e", "me", "partial charges"),
        LabelSpec("magmoms", "atom", (), "mu_B", "mu_B", "magnetic moments"),
        LabelSpec("weight", "graph", (), "1", "1", "weight of the structure in the loss"),
        LabelSpec("mu", "graph", (), "e*angstrom", "debye", "norm of the dipole moment"),
        LabelSpec("alpha", "graph", (), "angstrom^3", "bohr^3", "isotropic polarizability"),
        LabelSpec("polarizability", "graph", (3, 3), "angstrom^3", "bohr^3", "static dipole polarizability"),
        LabelSpec("homo", "graph", (), "eV", "meV", "energy of the highest occupied orbital"),
        LabelSpec("lumo", "graph", (), "eV", "meV", "energy of the lowest unoccupied orbital"),
        LabelSpec("gap", "graph", (), "eV", "meV", "lumo minus homo"),
        LabelSpec("r2", "graph", (), "angstrom^2", "bohr^2", "electronic spatial extent"),
        LabelSpec("zpve", "graph", (), "eV", "meV", "zero-point vibrational energy"),
        LabelSpec("U0", "graph", (), "eV", "meV", "internal energy at 0 K"),
        LabelSpec("U", "graph", (), "eV", "meV", "internal energy at 298.15 K"),
        LabelSpec("H", "graph", (), "eV", "meV", "enthalpy at 298.15 K"),
        LabelSpec("G", "graph", (), "eV", "meV", "free energy at 298.15 K"),
        LabelSpec("Cv", "graph", (), "eV/K", "cal/mol/K", "heat capacity at 298.15 K"),
    )
}
"""Every label under its fixed name, with shape and unit. Nothing else is accepted as a label."""


class AtomGraph(Data):
    """A batch of ``B`` structures with ``N`` atoms and ``E`` directed edges in all.

    ============  ============  ==================================================================================
    field         shape         meaning
    ============  ============  ==================================================================================
    z             [N] int64     atomic numbers
    pos           [N, 3]        positions, angstrom; float64 unless stated, models cast the edge vectors
    cell          [B, 3, 3]     rows are lattice vectors, angstrom; zero where there is none
    pbc           [B, 3] bool   periodic directions
    edge_index    [2, E] int64  row 0 the sender j, row 1 the receiver i; sorted by receiver; every pair both ways
    edge_shift    [E, 3]        lattice multiples S of the sender's image (float); may be absent where all are zero
    batch         [N] int64     the structure that an atom belongs to
    ptr           [B+1] int64   where each structure's atoms begin
    ============  ============  ==================================================================================

    The vector of an edge is ``pos[j] + S @ cell - pos[i]``. Labels, where there are any, lie under the names of `LABELS`.
    """

    def __init__(
        self,
        z: Tensor | None = None,
        pos: Tensor | None = None,
        cell: Tensor | None = None,
        pbc: Tensor | None = None,
        edge_index: Tensor | None = None,
        edge_shift: Tensor | None = None,
        batch: Tensor | None = None,
        ptr: Tensor | None = None,
        **kwargs: Tensor,
    ) -> None:
        # PyG's collation builds empty objects, which needs a default for every argument and the labels to be called kwargs.
        super().__init__(edge_index=edge_index, pos=pos)
        store = self._store
        store["z"], store["cell"], store["pbc"] = z, cell, pbc
        store["edge_shift"], store["batch"], store["ptr"] = edge_shift, batch, ptr
        for name, value in kwargs.items():
            if name not in LABELS:
                raise LabelError(f"unknown label {name!r}; known labels: {', '.join(LABELS)}")
            store[name] = value

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Say to PyG's collation what to add to indices; refuse what it would get wrong."""
        if key == "batch" and self.num_structures != 1:
            raise DataError(
                f"PyG collates graphs of one structure each, found one of {self.num_structures}; "
                "make a batch with AtomGraph.from_ase(list of structures) or store.batch(indices)"
            )
        return super().__inc__(key, value, *args, **kwargs)

    @property
    def num_structures(self) -> int:
        """The number of structures ``B``."""
        return int(self.ptr.shape[0]) - 1

    def edge_vectors(self) -> Tensor:
        """Return the vectors from receiver to sender, [E, 3] in angstrom and in the dtype of the positions."""
        sender, receiver = self.edge_index[0], self.edge_index[1]
        vectors = self.pos.index_select(0, sender) - self.pos.index_select(0, receiver)
        if "edge_shift" not in self:
            return vectors
        if len(self.cell) == 1:
            return vectors + self.edge_shift @ self.cell[0]
        cell = self.cell.index_select(0, self.batch.index_select(0, receiver))
        return vectors + torch.matmul(self.edge_shift.unsqueeze(1), cell).squeeze(1)

    @classmethod
    def from_ase(
        cls, atoms: Atoms | Sequence[Atoms], cutoff: float, dtype: torch.dtype = torch.float64, device: str = "cpu"
    ) -> AtomGraph:
        """Build a graph from one or several ASE structures; the neighbor lists are made here, on the CPU.

        Args:
            atoms: the structures; ``atoms.info["charge"]`` is taken as the total charge where it is given.
            cutoff: neighbor cutoff, angstrom.

        Raises:
            DataError: if there is no structure or one is empty.
            GeometryError: if coordinates or cells are unusable.
        """
        frames = [atoms] if not isinstance(atoms, Sequence) else list(atoms)
        if not frames or any(len(frame) == 0 for frame in frames):
            raise DataError("expected at least one structure with at least one atom each, found an empty one")
        ptr = np.concatenate([[0], np.cumsum([len(frame) for frame in frames])])
        lists = [neighbor_list(frame.positions, frame.cell.array, frame.pbc, cutoff) for frame in frames]
        edge_index = np.concatenate([nl.edge_index + start for nl, start in zip(lists, ptr[:-1], strict=True)], axis=1)
        shift = np.concatenate([nl.shift for nl in lists])
        labels: dict[str, Any] = {}
        if any("charge" in frame.info for frame in frames):
            labels["charge"] = torch.tensor([float(frame.info.get("charge", 0.0)) for frame in frames], dtype=dtype)
        graph = cls(
            z=torch.from_numpy(np.concatenate([frame.numbers for frame in frames]).astype(np.int64)),
            pos=torch.from_numpy(np.concatenate([frame.positions for frame in frames])).to(dtype),
            cell=torch.from_numpy(np.stack([frame.cell.array for frame in frames])).to(dtype),
            pbc=torch.from_numpy(np.stack([frame.pbc for frame in frames])),
            edge_index=torch.from_numpy(edge_index),
            edge_shift=torch.from_numpy(shift).to(dtype),
            batch=torch.from_numpy(np.repeat(np.arange(len(frames)), np.diff(ptr))),
            ptr=torch.from_numpy(ptr),
            **labels,
        )
        return graph.to(device)

    def to_ase(self) -> list[Atoms]:
        """Return the structures as ASE atoms, with the labels that ASE knows as stored results."""
        from ase import Atoms
        from ase.calculators.singlepoint import SinglePointCalculator
        from ase.stress import full_3x3_to_voigt_6_stress

        frames = []
        ptr = self.ptr.tolist()
        names = [name for name in ("energy", "forces", "stress", "dipole", "energies", "charges") if name in self]
        values = {name: self[name].detach().cpu().double().numpy() for name in names}
        for k, (start, end) in enumerate(zip(ptr[:-1], ptr[1:], strict=True)):
            frame = Atoms(
                self.z[start:end].cpu().numpy(),
                self.pos[start:end].detach().cpu().double().numpy(),
                cell=self.cell[k].detach().cpu().double().numpy(),
                pbc=self.pbc[k].cpu().numpy(),
            )
            results = {
                name: value[k] if LABELS[name].per == "graph" else value[start:end] for name, value in values.items()
            }
            if "stress" in results:
                results["stress"] = full_3x3_to_voigt_6_stress(results["stress"])
            if "charge" in self:
                frame.info["charge"] = float(self.charge[k])
            if results:
                frame.calc = SinglePointCalculator(frame, **results)
            frames.append(frame)
        return frames


def one_direction(edge_index: Tensor, vectors: Tensor) -> Tensor:
    """Return the indices of one of the two edges of every pair, [E/2] int64.

    Args:
        edge_index: [2, E], every pair both ways, as `AtomGraph` has it.
        vectors: [E, 3]; an atom and its own periodic image are told apart by the direction of the vector.
    """
    if arrangement() is not None:
        return torch.arange(vectors.shape[0] // 2, device=vectors.device)
    sender, receiver = edge_index[0], edge_index[1]
    chosen = sender < receiver
    own_image = sender == receiver
    if bool(own_image.any()):
        x, y, z = vectors.detach().unbind(dim=1)
        forward = (x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0))))
        chosen = chosen | (own_image & forward)
    return chosen.nonzero().squeeze(1)


def check_distances(graph: AtomGraph, vectors: Tensor) -> None:
    """Refuse coinciding atoms; on a GPU this would make every step wait, so structures are checked where they enter.

    Args:
        vectors: of the edges, [E, 3] angstrom.

    Raises:
        GeometryError: naming the closest two atoms.
    """
    if vectors.device.type != "cpu" or vectors.shape[0] == 0:
        return
    squared = vectors.detach().square().sum(dim=1)
    closest = int(squared.argmin())
    if not float(squared[closest]) > 1e-10:
        sender, receiver = graph.edge_index[:, closest].tolist()
        structure = int(graph.batch[receiver])
        start = int(graph.ptr[structure])
        raise GeometryError(
            f"atoms {receiver - start} and {sender - start} of structure {structure} are at the same place or not finite "
            f"(distance {float(squared[closest]) ** 0.5:.2g} angstrom); remove one of them or correct the coordinates"
        )
