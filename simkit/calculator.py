"""`Calculator`: any `Potential` as an ASE calculator."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator as ASECalculator
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from simkit.device import resolve_device
from simkit.errors import ConfigError, DataError, GeometryError, SimkitError
from simkit.graph import LABELS, AtomGraph
from simkit.memory import keep_freed_memory
from simkit.neighbors import NeighborList, SkinCache
from simkit.potential import Potential
from simkit.potentials import load
from simkit.properties import isolated_only

DTYPES = {"float32": torch.float32, "float64": torch.float64}
# What comes along always; the rest is computed from the first time that it is asked for.
ALWAYS = ("energy", "energies", "forces")
# Structures are evaluated together up to this many atoms: on a CPU few enough to stay near its caches, on a GPU enough to fill it.
BATCH_ATOMS = {"cpu": 128, "cuda": 8192}
COINCIDING = 1e-10  # angstrom^2


class PropertyError(SimkitError, PropertyNotImplementedError):
    """A property was asked for that the model or the structure does not have. ASE's tools know it by its second base."""


class Calculator(ASECalculator):
    """Energies, forces and more of a `Potential`, for ASE.

    Results are float64: energy and free_energy in eV (the same number), energies [N] eV, forces [N, 3] eV/angstrom,
    stress [6] eV/angstrom^3 in ASE's sign and Voigt order (structures periodic in all directions), dipole [3] e*angstrom (isolated
    structures), charges [N] e, as far as the model has them. Forces always come with the energy, in one pass. Other properties of the
    model lie under simkit's names in the shapes and units of `simkit.graph.LABELS`: ``calculator.get_property("gap", atoms)`` in eV,
    ``"polarizability"`` [3, 3] angstrom^3, and so on.
    ``atoms.info["charge"]`` is the total charge.

    The same positions give the same bits whatever was computed before: edges are cut to the cutoff and sorted, so that they do not
    depend on when the neighbor list was last built.

    Args:
        potential: the model, which is copied and stays as it is, or the path of a model file.
        device: "cpu", "cuda" or "cuda:1".
        dtype: of the network, "float32" or "float64"; positions, cells and sums of energies are float64 in any case.
        skin: of the neighbor list, angstrom; it is rebuilt when an atom has moved by half of it.
        fast: take the model's fast path where it has one, see `simkit.fast.potential.FastPotential`.

    Attributes:
        potential: the model; model: what is evaluated, its fast path or itself; evaluations: how many times it was.
        neighbor_builds: neighbor lists built.
        device, skin, fast: as given.

    Raises:
        ConfigError: if an argument has an unusable value.
        DeviceError: if the device is not there.
        ModelFileError: if the file is not a valid model.
    """

    name = "simkit"
    atoms: Atoms | None
    results: dict[str, Any]

    def __init__(
        self,
        potential: Potential | str | os.PathLike[str],
        device: str = "cpu",
        dtype: str = "float32",
        skin: float = 0.5,
        fast: bool = True,
    ) -> None:
        super().__init__()
        if dtype not in DTYPES:
            raise ConfigError(f"dtype must be float32 or float64, found {dtype!r}")
        self.device = resolve_device(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        model = copy.deepcopy(potential) if isinstance(potential, Potential) else load(potential)
        # Without gradients of the weights, autograd follows nothing but the edge vectors.
        self.potential = model.cast(DTYPES[dtype]).to(self.device).eval().requires_grad_(False)
        self.fast = fast
        self.model = self.potential.fast() if fast else self.potential
        self.implemented_properties = [*model.outputs, *(("free_energy",) if "energy" in model.outputs else ())]
        self.evaluations = 0
        self._asked: set[str] = set()
        self.skin = skin
        self._neighbors = SkinCache(model.cutoff, skin)
        self._system: tuple[Any, ...] = ()
        self._graph = AtomGraph()
        self._edges = _Edges(NeighborList(np.empty((2, 0), np.int64), np.empty((0, 3), np.int32)), np.zeros((3, 3)))

    @property
    def neighbor_builds(self) -> int:
        """How many neighbor lists were built so far."""
        return self._neighbors.builds

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Return what has changed since the last calculation: exact, and without the cost of ASE's comparison with a tolerance."""
        last = self.atoms
        if last is None:
            return list(all_changes)
        pairs = {
            "positions": (atoms.positions, last.positions),
            "numbers": (atoms.numbers, last.numbers),
            "cell": (atoms.cell.array, last.cell.array),
            "pbc": (atoms.pbc, last.pbc),
        }
        changes = [name for name, (now, then) in pairs.items() if not np.array_equal(now, then)]
        if _charge(atoms) != _charge(last):
            changes.append("charge")
        return changes

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """Return a property, computed if it is not known for this structure yet; None if it would have to be but must not.

        Raises:
            PropertyError: if the model or the structure does not have it.
            ElementError, GeometryError: if the model cannot take the structure.
        """
        if name not in self.implemented_properties:
            raise PropertyError(f"this model cannot give {name}; it gives {', '.join(self.implemented_properties)}")
        return super().get_property(name, atoms, allow_calculation)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = (),
    ) -> None:
        """Evaluate the model and keep the results; called by ASE when something is not known yet."""
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise DataError("no structure to calculate: set atoms.calc, or pass the atoms")
        outputs = self._outputs(atoms, properties)
        self._update_graph(atoms)
        results = self.model(self._graph, outputs)
        self.evaluations += 1
        self.atoms = atoms.copy()
        self.results = _as_ase({name: _numpy(value) for name, value in results.items()}, slice(None), 0)

    def batch(
        self, structures: Sequence[Atoms], properties: Sequence[str] = ("energy", "forces")
    ) -> list[dict[str, Any]]:
        """Evaluate many structures at once, which is far faster than one after another for small ones.

        Args:
            structures: any number, with different compositions and cells.
            properties: what to compute, of ``implemented_properties``.

        Returns:
            One dictionary per structure, in units and shapes as in the class.

        Raises:
            PropertyError: if the model or one of the structures does not have a property.
            ElementError, GeometryError: if the model cannot take a structure.
        """
        unknown = [name for name in properties if name not in self.implemented_properties]
        if unknown:
            raise PropertyError(
                f"this model cannot give {', '.join(unknown)}; it gives {', '.join(self.implemented_properties)}"
            )
        outputs = tuple(dict.fromkeys("energy" if name == "free_energy" else name for name in properties))
        for atoms in structures:
            self._check_defined(atoms, properties)
        found = []
        for chunk in _chunks(structures, BATCH_ATOMS[self.device.type]):
            self.potential.check_elements(np.unique(np.concatenate([atoms.numbers for atoms in chunk])).tolist())
            graph = AtomGraph.from_ase(chunk, self.potential.cutoff).to(self.device)
            results = {name: _numpy(value) for name, value in self.model(graph, outputs).items()}
            self.evaluations += 1
            ptr = graph.ptr.tolist()
            for k in range(len(chunk)):
                values = _as_ase(results, slice(ptr[k], ptr[k + 1]), k)
                found.append({name: values[name] for name in properties})
        return found

    def _outputs(self, atoms: Atoms, properties: Sequence[str]) -> tuple[str, ...]:
        """What to compute: what is needed in each step anyway, and what was asked for now or earlier and this structure has."""
        self._check_defined(atoms, properties)
        self._asked.update(name for name in properties if name not in ALWAYS)
        wanted = {*ALWAYS} | self._asked
        if not atoms.pbc.all():
            wanted.discard("stress")
        if atoms.pbc.any():
            wanted -= isolated_only(self.potential.heads)
        return tuple(name for name in self.potential.outputs if name in wanted)

    def _check_defined(self, atoms: Atoms, properties: Sequence[str]) -> None:
        """Refuse what is not defined for the boundary conditions of the structure."""
        if "stress" in properties and not atoms.pbc.all():
            raise PropertyError(
                f"stress needs a structure that is periodic in all three directions; pbc is {atoms.pbc.tolist()}"
            )
        undefined = [name for name in properties if name in isolated_only(self.potential.heads)]
        if undefined and atoms.pbc.any():
            raise PropertyError(
                f"the {undefined[0]} of a periodic structure is not defined; ask for charges or other properties, or set pbc to False"
            )

    def _update_graph(self, atoms: Atoms) -> None:
        """Bring the graph up to date, touching only what changed since the last structure."""
        positions, cell, pbc = np.array(atoms.positions), atoms.cell.array, atoms.pbc
        system = (atoms.numbers.tobytes(), pbc.tobytes(), cell.tobytes(), _charge(atoms))
        neighbors = self._neighbors.update(positions, cell, pbc)
        if system != self._system:
            self._graph = self._new_graph(atoms)
            self._system = system
            self._edges = _Edges(neighbors, cell)
        elif neighbors is not self._edges.neighbors:
            self._edges = _Edges(neighbors, cell)
        edge_index, edge_shift = self._edges.within(positions, self.potential.cutoff, self.device.type == "cuda")
        store = self._graph._store
        store["pos"] = torch.from_numpy(positions).to(self.device)
        store["edge_index"] = edge_index.to(self.device)
        if edge_shift is not None:
            store["edge_shift"] = edge_shift.to(self.device)

    def _new_graph(self, atoms: Atoms) -> AtomGraph:
        """The graph without positions and edges."""
        if len(atoms) == 0:
            raise DataError("expected a structure with at least one atom, found an empty one")
        self.potential.check_elements(np.unique(atoms.numbers).tolist())
        graph = AtomGraph(
            z=torch.from_numpy(atoms.numbers.astype(np.int64)),
            cell=torch.from_numpy(atoms.cell.array.copy()).unsqueeze(0),
            pbc=torch.from_numpy(atoms.pbc.copy()).unsqueeze(0),
            batch=torch.zeros(len(atoms), dtype=torch.int64),
            ptr=torch.tensor([0, len(atoms)]),
            charge=torch.tensor([_charge(atoms)], dtype=torch.float64),
        )
        return graph.to(self.device)


class _Edges:
    """A neighbor list that reaches beyond the cutoff, and what is derived from it once per list."""

    def __init__(self, neighbors: NeighborList, cell: NDArray[np.float64]) -> None:
        self.neighbors = neighbors
        self.sender, self.receiver = neighbors.edge_index
        self.edge_index = torch.from_numpy(neighbors.edge_index)
        periodic = bool(neighbors.shift.any())
        self.offset = neighbors.shift @ cell if periodic else None
        self.shift = torch.from_numpy(neighbors.shift.astype(np.float64)) if periodic else None

    def within(
        self, positions: NDArray[np.float64], cutoff: float, check: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The edges [2, E] and shifts [E, 3] shorter than the cutoff.

        Every longer edge costs the model as much as one that counts, and would make sums depend on when the list was built.
        ``check``: refuse coinciding atoms here, because the model does so on the CPU only.
        """
        vectors = positions.take(self.sender, axis=0)
        vectors -= positions.take(self.receiver, axis=0)
        if self.offset is not None:
            vectors += self.offset
        squared = np.einsum("ij,ij->i", vectors, vectors)
        if check and squared.min(initial=1.0) <= COINCIDING:
            closest = int(squared.argmin())
            raise GeometryError(
                f"atoms {self.receiver[closest]} and {self.sender[closest]} are at the same place (distance "
                f"{squared[closest] ** 0.5:.2g} angstrom); remove one of them or correct the coordinates"
            )
        near = squared < cutoff * cutoff
        if near.all():
            return self.edge_index, self.shift
        kept = torch.from_numpy(np.flatnonzero(near))
        return self.edge_index.index_select(1, kept), None if self.shift is None else self.shift.index_select(0, kept)


def _charge(atoms: Atoms) -> float:
    """The total charge, e."""
    charge = atoms.info.get("charge", 0.0)
    try:
        return float(charge)
    except (TypeError, ValueError):
        raise DataError(f'atoms.info["charge"] must be the total charge in e, found {charge!r}') from None


def _numpy(value: torch.Tensor) -> NDArray[np.float64]:
    return value.cpu().numpy().astype(np.float64)


def _as_ase(results: dict[str, NDArray[np.float64]], atoms: slice, structure: int) -> dict[str, Any]:
    """The results of one structure out of those of a graph, in ASE's shapes."""
    found: dict[str, Any] = {}
    for name, value in results.items():
        if name == "energy":
            found["energy"] = found["free_energy"] = float(value[structure])
        elif name == "stress":
            found["stress"] = full_3x3_to_voigt_6_stress(value[structure])
        elif LABELS[name].per == "atom":
            found[name] = value[atoms]
        else:
            found[name] = value[structure] if LABELS[name].shape else float(value[structure])
    return found


def _chunks(structures: Sequence[Atoms], limit: int) -> Iterator[list[Atoms]]:
    """Split into runs of at most ``limit`` atoms, or a single larger structure."""
    chunk: list[Atoms] = []
    size = 0
    for atoms in structures:
        if chunk and size + len(atoms) > limit:
            yield chunk
            chunk, size = [], 0
        chunk.append(atoms)
        size += len(atoms)
    if chunk:
        yield chunk
