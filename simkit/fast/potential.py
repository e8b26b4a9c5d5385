"""`FastPotential`: a `Potential` evaluated without autograd where there are kernels for it, and checked against itself."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from simkit.errors import ConfigError, DeviceError, GeometryError
from simkit.fast.compilation import Compilation, CompilationError
from simkit.fast.compiled import CompiledNetwork, TooFewEdgesError
from simkit.fast.dense import Perceptron
from simkit.fast.devices import first_line, on_gpu, rows_on, two_atoms, workspace_on
from simkit.fast.rows import EdgeRows, UnorderedEdgesError
from simkit.fast.tables import HermiteTables
from simkit.fast.workspace import REALS, Buffer, Workspace
from simkit.graph import AtomGraph
from simkit.heads import EnergyHead, Features

if TYPE_CHECKING:
    from simkit.potential import Potential

CHECK_EVERY = 1000
"""Calls between comparisons with the potential itself; the first call is compared, too."""
LARGEST_CHECKED = 2048
"""Atoms: of larger graphs the first ones are compared, cut out, because the potential itself takes far more memory."""
FORCE_TOLERANCE = {torch.float32: 2e-4, torch.float64: 2e-6}
"""Largest difference of a force component, relative to the largest force or 1 eV/angstrom, whichever is larger."""
ENERGY_TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-8}
"""Largest difference of the energy of a structure, per atom and relative to the largest atomic energy of the network or 1 eV."""
GIVEN = ("energy", "energies", "forces", "stress")
NOT_COMPILED = "its network has not been compiled (simkit verify --compile does)"


class Engine(Protocol):
    """A representation without autograd."""

    tables: HermiteTables
    channels: int

    def forward(self, species: Tensor, rows: EdgeRows) -> Tensor:
        """Return the scalars [N, C]."""

    def backward(self, g: Buffer, rows: EdgeRows) -> None:
        """Add to the gradients of the rows what follows from those of the scalars [N, C]."""


@dataclass(frozen=True)
class Comparison:
    """Differences between the fast path and the reference path in float64, for one graph.

    Attributes:
        force: the largest difference of a force component, eV/angstrom. energy: of an energy, eV per atom.
        stress: of a component of the stress, eV/angstrom^3; None where it was not asked for.
        force_limit, energy_limit, stress_limit: what is allowed; of the stress, what forces at their limit would add up to.
    """

    force: float
    energy: float
    stress: float | None
    force_limit: float
    energy_limit: float
    stress_limit: float | None

    @property
    def agrees(self) -> bool:
        """Whether all are within the limits."""
        return self.used <= 1.0

    @property
    def used(self) -> float:
        """The largest difference as a part of what is allowed; NaN where one is not a number."""
        parts = [self.force / self.force_limit, self.energy / self.energy_limit]
        if self.stress is not None and self.stress_limit is not None:
            parts.append(self.stress / self.stress_limit)
        return float(np.max(parts))  # unlike max(), which may lose what is not a number

    def __str__(self) -> str:
        """Say the differences."""
        text = (
            f"forces differ by up to {self.force:.2g} eV/angstrom ({self.force_limit:.2g} allowed), energies by {self.energy:.2g} eV "
            f"per atom ({self.energy_limit:.2g} allowed)"
        )
        if self.stress is None or self.stress_limit is None:
            return text
        return text + f", stresses by {self.stress:.2g} eV/angstrom^3 ({self.stress_limit:.2g} allowed)"


class FastPotential:
    """A potential that takes graphs and returns what `Potential` returns, faster.

    Energies, forces and stresses of SchNet and PaiNN come from kernels with tabulated filters and a backward pass written by hand, on a
    CPU and on a GPU. The network of most other architectures can be compiled (`compile`) for a CPU, once for all models that differ in
    their weights alone, and is used wherever it was when the first structure came. Compiled networks gain most where there are few
    edges; an architecture says up to how many they are used (`Representation.compiled_edges`). Everything else comes from the potential
    itself.

    On the first call and then every `CHECK_EVERY` calls the fast path is compared, for the structures at hand, with the potential in
    float64, whose own rounding is not in the way. If forces or energies differ by more than `FORCE_TOLERANCE` or `ENERGY_TOLERANCE`,
    or stresses by more than the force allowed times the cutoff for each atom, over the volume, the fast path is given up with a
    warning, and the potential itself goes on.

    Args:
        potential: whose weights are read now; what is changed in them later is not seen.
        check_every: calls between comparisons.

    Attributes:
        potential: the reference. reason: why it is used alone, empty while the fast path is used. engine: kernels, where there are any.
        compilation: compiled networks, where there may be any.
        comparisons: how many there were; last: the last of them.
    """

    def __init__(self, potential: Potential, *, check_every: int = CHECK_EVERY) -> None:
        if check_every < 1:
            raise ConfigError(f"check_every must be at least 1; found {check_every}")
        self.potential, self.check_every = potential, check_every
        self.calls = self.comparisons = 0
        self.last: Comparison | None = None
        self.workspace = Workspace()
        self.engine: Engine | None = None
        self.compilation: Compilation | None = None
        self.dtype, self.scale = potential.dtype, float(potential.scale)
        self._exact: Potential | None = None
        self._species: tuple[Tensor, int, Tensor] | None = None
        self.reason = self._unsuitable() or self._choose()
        if self.engine is None and self.compilation is None:
            return
        self.offset: Tensor = potential.reference + potential.shift
        if potential.anchored:
            self.offset = potential.reference - potential.scale * self._alone()
        if self.workspace.on_gpu:
            self._rehearse()

    def _choose(self) -> str:
        """Take kernels, or else compiled networks; return why the reference is used alone for now, or nothing."""
        potential = self.potential
        head = potential.heads["energy"]
        if isinstance(head, EnergyHead) and Perceptron.takes(head.net):
            try:
                self.workspace = workspace_on(potential.device)
                self.engine = potential.representation.fused(potential.cutoff, self.workspace)
            except ConfigError as error:
                return str(error)
            except DeviceError as error:
                self._give_up(str(error))
                return self.reason
            if self.engine is not None:
                self.head = Perceptron(head.net, self.workspace, "head")
                return ""
        if on_gpu(potential.device):
            return f"{potential.architecture} has no fast path on a GPU yet"
        if not potential.representation.compiled_edges:
            return f"{potential.architecture} has no fast path yet"
        self.compilation = Compilation(potential)
        return NOT_COMPILED

    def _rehearse(self) -> None:
        """Compile the kernels for a GPU, which may fail in many ways, and wait for what they do."""
        potential = self.potential
        try:
            with torch.inference_mode(False), torch.no_grad():
                pair = two_atoms(potential.elements[0], potential.cutoff, potential.device)
                self._evaluate(None, pair, GIVEN)["forces"].cpu()
        except Exception as error:  # noqa: BLE001 - of compiler, driver or device: the reference path must go on
            self._give_up(f"the kernels of the fast path do not run on this GPU ({first_line(error)})")

    def _unsuitable(self) -> str:
        """Why there can be no fast path, or nothing."""
        potential = self.potential
        if potential.device.type not in ("cpu", "cuda"):
            return f"there is no fast path on {potential.device}"
        if potential.dtype not in REALS:
            return f"there is no fast path in {potential.dtype}"
        if "energy" not in potential.heads:
            return "the model gives no energy"
        if potential.representation.has_pair_energies or not potential.representation.is_atomic:
            return f"the energy of this {potential.architecture} is not a sum of what its network says of each atom"
        return ""

    @torch.no_grad()
    def __call__(self, graph: AtomGraph, outputs: Sequence[str] = ("energy", "forces")) -> dict[str, Tensor]:
        """Return what is asked for, detached, in the shapes and units of `Potential.forward`.

        Raises:
            ConfigError, ElementError, GeometryError: as `Potential.forward`.
        """
        # Memory that is kept would be of no use outside of inference mode.
        if (self.engine is None and self.compilation is None) or torch.is_inference_mode_enabled():
            return self.potential(graph, outputs)
        if others := [name for name in outputs if name not in GIVEN]:
            given = [name for name in outputs if name in GIVEN]
            return self.potential(graph, others) | (self(graph, given) if given else {})
        network = None
        if self.compilation is not None:
            if graph.edge_index.shape[1] <= self.potential.representation.compiled_edges:
                network = self._network(graph.z)
            if network is None:
                return self.potential(graph, outputs)
        try:
            found = self._evaluate(network, graph, outputs)
        except UnorderedEdgesError:
            return self.potential(graph, outputs)
        self.calls += 1
        if (self.calls - 1) % self.check_every:
            return found
        self.last = self.compare(_piece(graph, LARGEST_CHECKED), outputs)
        self.comparisons += 1
        if self.last.agrees:
            return found
        self._give_up(f"the fast path was given up after {self.calls} calls: {self.last}")
        return self.potential(graph, outputs)

    def compile(self, z: Tensor) -> None:
        """Compile the network for atomic numbers [N] int64 now and wait, where networks are compiled and this one is not yet.

        Where that fails, the fast path is given up with a warning.
        """
        if self.compilation is not None:
            try:
                self.compilation.compile(self._species_of(z))
                self.reason = ""
            except CompilationError as error:
                self._give_up(str(error))

    @property
    def uses_compiled(self) -> bool:
        """Whether any structure has been evaluated by a compiled network."""
        return self.compilation is not None and bool(self.compilation.networks)

    def is_ready(self, z: Tensor) -> bool:
        """Whether there is a fast path for atomic numbers [N] int64."""
        return self.engine is not None or (self.compilation is not None and self._network(z) is not None)

    def _network(self, z: Tensor) -> CompiledNetwork | None:
        """The compiled network, if there is one; the fast path is given up if it cannot be loaded."""
        compilation = cast(Compilation, self.compilation)
        try:
            network = compilation.network(self._species_of(z))
        except CompilationError as error:
            self._give_up(str(error))
            return None
        self.reason = NOT_COMPILED if network is None else ""
        return network

    def _give_up(self, reason: str) -> None:
        self.reason, self.engine, self.compilation = reason, None, None
        warnings.warn(f"{reason}; the reference path goes on", RuntimeWarning, stacklevel=3)

    @torch.no_grad()
    def compare(self, graph: AtomGraph, outputs: Sequence[str] = ("energy", "forces")) -> Comparison:
        """Return how far the fast path is from the potential in float64.

        Raises:
            ConfigError: if there is no fast path; the message says why.
        """
        names = tuple(dict.fromkeys((*outputs, "energy", "energies", "forces")))
        fast = self.evaluate(graph, names)
        if self._exact is None:
            self._exact = copy.deepcopy(self.potential).cast(torch.float64)
        return self.judge(graph, fast, self._exact(graph, names))

    def judge(self, graph: AtomGraph, fast: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Comparison:
        """Return how far results of the fast path are from those of the potential in float64, which were computed before.

        Args:
            fast, reference: energy, energies, forces and, if it is to be compared, stress of the graph.
        """
        forces = reference["forces"]
        largest = max(1.0, float(forces.abs().max())) if len(forces) else 1.0
        sizes = graph.ptr.diff().clamp(min=1)
        energy = float(((fast["energy"] - reference["energy"]).abs() / sizes).max())
        force_limit = FORCE_TOLERANCE[self.dtype] * largest
        stress: float | None = None
        stress_limit: float | None = None
        if "stress" in reference:
            stress = float((fast["stress"] - reference["stress"]).abs().max())
            density = sizes / torch.linalg.det(graph.cell).abs()
            stress_limit = force_limit * self.potential.cutoff * float(density.min())
        force = float((fast["forces"] - forces).abs().max()) if len(forces) else 0.0
        atomic = reference["energies"] - self.offset.index_select(0, self._species_of(graph.z))
        energy_limit = ENERGY_TOLERANCE[self.dtype] * max(1.0, float(atomic.abs().max()))
        return Comparison(force, energy, stress, force_limit, energy_limit, stress_limit)

    @torch.no_grad()
    def evaluate(self, graph: AtomGraph, outputs: Sequence[str] = ("energy", "forces")) -> dict[str, Tensor]:
        """Return any of `GIVEN` by the fast path, and never check.

        Raises:
            ConfigError: if there is no fast path; the message says why.
            ElementError, GeometryError: as `Potential.forward`.
            UnorderedEdgesError: if edges are not as those of `AtomGraph`.
        """
        network = None if self.compilation is None else self.compilation.network(self._species_of(graph.z))
        if self.engine is None and network is None:
            raise ConfigError(f"there is no fast path: {self.reason}")
        return self._evaluate(network, graph, outputs)

    def _evaluate(self, network: CompiledNetwork | None, graph: AtomGraph, outputs: Sequence[str]) -> dict[str, Tensor]:
        species = self._species_of(graph.z)
        if network is not None:
            return self._compiled(network, graph, species, outputs)
        with self.workspace.active():
            return self._fused(cast(Engine, self.engine), graph, species, outputs)

    def _compiled(
        self, network: CompiledNetwork, graph: AtomGraph, species: Tensor, outputs: Sequence[str]
    ) -> dict[str, Tensor]:
        try:
            raw = network(graph, species)
        except TooFewEdgesError:
            return self.potential(graph, outputs)
        result = self._energies(raw.energies, graph, species)
        if "forces" in outputs:
            result["forces"] = raw.forces * self.scale
        if "stress" in outputs:
            virials = raw.vectors.double().unsqueeze(2) * (self.scale * raw.gradient.double()).unsqueeze(1)
            result["stress"] = _stress(graph, virials, graph.batch.index_select(0, raw.receiver)).to(self.dtype)
        return {name: result[name] for name in outputs}

    def _fused(self, engine: Engine, graph: AtomGraph, species: Tensor, outputs: Sequence[str]) -> dict[str, Tensor]:
        real, given = REALS[self.dtype], (engine.tables.intervals, self.dtype, engine.channels)
        rows = rows_on(self.workspace, graph, self.potential.cutoff, *given)
        raw = self.workspace.get("raw", (species.shape[0], 1), real).tensor
        scalars = engine.forward(species, rows)
        self.head.forward(scalars, raw)
        result = self._energies(raw.squeeze(1).double(), graph, species)
        if "forces" in outputs or "stress" in outputs:
            gradient = self.workspace.get("scalars-gradient", tuple(scalars.shape), real)
            raw.fill_(self.scale)
            self.head.backward(raw, gradient.tensor)
            engine.backward(gradient, rows)
            forces, virials = rows.forces("stress" in outputs)
            result["forces"] = forces.to(self.dtype)
            if "stress" in outputs:
                result["stress"] = _stress(graph, virials, graph.batch).to(self.dtype)
        return {name: result[name] for name in outputs}

    def _energies(self, raw: Tensor, graph: AtomGraph, species: Tensor) -> dict[str, Tensor]:
        """Energies of atoms and of structures, from what the head says of each atom."""
        energies = raw * self.scale + self.offset.index_select(0, species)
        energy = energies.new_zeros(graph.num_structures).index_add(0, graph.batch, energies)
        return {"energies": energies, "energy": energy}

    def _species_of(self, z: Tensor) -> Tensor:
        """Indices of elements, kept while the numbers are the same object, unchanged: in dynamics they always are."""
        if self._species is None or self._species[0] is not z or self._species[1] != z._version:
            self._species = z, z._version, self.potential.species(z)
        return self._species[2]

    def _alone(self) -> Tensor:
        """The raw energies of isolated atoms of each element, [elements] float64, by the reference path."""
        potential = self.potential
        count = len(potential.elements)
        species = torch.arange(count, device=potential.device)
        nothing = species.new_empty((2, 0)), potential.reference.new_empty((0, 3), dtype=potential.dtype)
        with torch.no_grad():
            scalars, features = potential.representation(species, *nothing)
            raw: Tensor = potential.heads["energy"](Features(scalars, features, species, species, count))
        return raw.double()


def _piece(graph: AtomGraph, atoms: int) -> AtomGraph:
    """The first atoms of a graph and the edges among them."""
    if len(graph.z) <= atoms:
        return graph
    structures = int(graph.batch[atoms - 1]) + 1
    inside = ((graph.edge_index < atoms).all(0)).nonzero().squeeze(1)
    further = {name: graph[name] for name in ("edge_shift", "charge") if name in graph}
    if "edge_shift" in further:
        further["edge_shift"] = further["edge_shift"].index_select(0, inside)
    if "charge" in further:
        further["charge"] = further["charge"][:structures]
    return AtomGraph(
        z=graph.z[:atoms],
        pos=graph.pos[:atoms],
        cell=graph.cell[:structures],
        pbc=graph.pbc[:structures],
        batch=graph.batch[:atoms],
        ptr=graph.ptr[: structures + 1].clamp(max=atoms),
        edge_index=graph.edge_index.index_select(1, inside),
        **further,
    )


def _stress(graph: AtomGraph, virials: Tensor, structure: Tensor) -> Tensor:
    """The stress [B, 3, 3] from virials [K, 3, 3] and the structure [K] that each is part of."""
    volume = torch.linalg.det(graph.cell.double()).abs()
    if graph.pbc.device.type == "cpu" and not bool((graph.pbc.all(dim=1) & (volume > 0)).all()):
        raise GeometryError("stress needs structures that are periodic in all three directions; ask for forces only")
    virial = virials.new_zeros(graph.num_structures, 3, 3).index_add(0, structure, virials)
    return 0.5 * (virial + virial.transpose(1, 2)) / volume[:, None, None]
