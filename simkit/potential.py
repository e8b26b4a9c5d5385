"""`Potential`: representation, heads and reference energies in one model that returns energies, forces, stress and properties."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from ase.data import atomic_masses, chemical_symbols
from torch import Tensor, nn

from simkit.errors import ConfigError, ElementError, GeometryError
from simkit.fast.potential import CHECK_EVERY, Engine, FastPotential
from simkit.fast.workspace import Workspace
from simkit.files import write_model
from simkit.graph import AtomGraph, check_distances
from simkit.heads import EnergyHead, FeatureEnergyHead, Features, ScalarVectorHead
from simkit.kernels.orders import Derivatives, promise
from simkit.properties import DERIVED, KINDS, Properties, head_names, make_head, make_standards

FORMAT = "simkit-potential"
FORMAT_VERSION = 1


class Representation(nn.Module):
    """Base of the architectures: species and edge vectors in, per-atom features out, plain tensors on both sides.

    ``forward(species [N] int64 in 0..n_elements-1, edge_index [2, E], vectors [E, 3] angstrom)`` returns scalars ``[N, channels]``
    and vectors ``[N, 3, channels]`` or None. It must be differentiable twice with respect to ``vectors``.
    """

    has_vectors: bool = False  # may depend on the options
    is_classical: ClassVar[bool] = (
        False  # the single scalar feature is the atomic energy in eV: no other head makes sense
    )
    has_pair_energies: bool = False  # `pair_energies` adds to the energy
    needs_charges: bool = False  # and it needs the charges of a dipole head
    is_atomic: bool = (
        True  # False where `energy_head` reads the structure as a whole and gives every atom an even share
    )
    # Up to so many edges the compiled network is faster; 0 where it cannot be traced, because more than shapes and
    # `simkit.kernels.tracing` decides which operations there are.
    compiled_edges: ClassVar[int] = 0
    has_rows: ClassVar[bool] = False  # it reads the rows of edges of an `Arrangement`
    has_members: ClassVar[bool] = False  # and the members
    channels: int
    activation: nn.Module

    @classmethod
    def for_elements(cls, options: Any, cutoff: float, elements: Sequence[int]) -> Representation:
        """Build for atomic numbers in ascending order; an architecture to which they are more than indices overrides this."""
        return cls(options, cutoff, len(elements))

    def element_axis(self) -> Tensor | None:
        """Say which elements the entries of a weight's dimension belong to that is neither one per element nor independent of them.

        Returns:
            [size of the dimension, k + 1] int64: up to k species of each entry in ascending order, -1 where there are fewer, and its
            number among the entries of the same species. None where weights have no such dimension.
        """
        return None

    def energy_head(self) -> nn.Module:
        """Return the head from `Features` to atomic energies [N]; architectures with a readout of their own override this."""
        return FeatureEnergyHead() if self.is_classical else EnergyHead(self.channels, self.activation)

    def dipole_head(self) -> nn.Module:
        """Return the head from `Features` to raw charges [N] and atomic dipoles [N, 3] or None; overridden likewise."""
        return ScalarVectorHead(self.channels, self.channels if self.has_vectors else 0, self.activation)

    def fused(self, cutoff: float, workspace: Workspace) -> Engine | None:
        """Return the same representation without autograd, for `FastPotential`; None where there is none.

        Raises:
            ConfigError: if these weights cannot be taken.
        """
        return None

    def arrange(self, edge_index: Tensor, vectors: Tensor, num_atoms: int) -> tuple[Tensor, ...]:
        """Return what ``forward`` finds in `Arrangement.own` while it is traced, where it otherwise makes it itself.

        Of all these tensors any dimension may differ from call to call.

        Args:
            edge_index, vectors: as in ``forward``, but in any order: edge k + E/2 is the reverse of edge k.
        """
        return ()

    def pair_energies(self, species: Tensor, edge_index: Tensor, vectors: Tensor, charges: Tensor | None) -> Tensor:
        """Return what physics adds to the energies of atoms, [N] in eV, in an architecture that sets ``has_pair_energies``.

        It is added as it is: not scaled, and not read from features. Each atom has half of every pair's energy.

        Args:
            species, edge_index, vectors: as in ``forward``.
            charges: [N], summing to the total charge of each structure; None unless ``needs_charges``.
        """
        raise NotImplementedError


class Potential(nn.Module):
    """A potential energy surface, and other properties of its structures.

    Energy of a structure: ``sum_i scale * head(features_i) + shift + reference[z_i]``, summed in float64. Forces and stress are
    derivatives with respect to the edge vectors: with g_ij = dE/dr_ij, F_i = sum_j (g_ij - g_ji) and
    stress = sum_ij r_ij (x) g_ij / V, which holds for any many-body energy that depends on positions through edge vectors alone.
    An architecture may add pair energies of physics (`Representation.pair_energies`) to that, with the model's own charges.
    How the other properties are made is said in `simkit.properties.Properties`.

    Args:
        architecture: registered name of the representation, and ``options`` what it was built with (both for the file).
        elements: atomic numbers that the model knows.
        outputs: what there are heads for: any of `simkit.properties.KINDS`, such as "energy", "dipole", "gap" or "Cv".
        pooling: of what does not grow with the structure (homo, lumo, gap): "mean" of the atoms, or "set2set".
        anchored: subtract the model's own energy of each isolated atom and leave out the shift, so that a lone atom has its
            reference energy (exactly, but for the rounding of the network's own dtype).
    """

    species_of_z: Tensor
    reference: Tensor
    scale: Tensor
    shift: Tensor
    masses: Tensor

    def __init__(
        self,
        representation: Representation,
        *,
        architecture: str,
        options: Mapping[str, Any],
        cutoff: float,
        elements: Sequence[int],
        outputs: Sequence[str] = ("energy",),
        pooling: str = "mean",
        anchored: bool = False,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.options = dict(options)
        self.cutoff = float(cutoff)
        self.elements = sorted(int(z) for z in elements)
        self.anchored = anchored
        self.info: dict[str, Any] = dict(info or {})
        self.representation = representation
        self.pooling = pooling
        if anchored and not representation.is_atomic:
            raise ConfigError(
                f"anchored=True needs a size-extensive energy, but this {architecture} reads the structure as a whole: atoms far "
                "apart would not have the sum of their reference energies; set anchored to False or choose a readout that is a sum"
            )
        names = head_names(outputs, architecture)
        if representation.needs_charges and not {"dipole", "charges"} & set(names):
            names.append("dipole")
        self.heads = nn.ModuleDict({name: make_head(name, architecture, representation, pooling) for name in names})
        self.standards = make_standards(names, len(self.elements))
        table = torch.full((max(self.elements) + 1,), -1, dtype=torch.int64)
        table[self.elements] = torch.arange(len(self.elements))
        self.register_buffer("species_of_z", table, persistent=False)
        self.register_buffer("masses", torch.from_numpy(atomic_masses[self.elements]), persistent=False)
        self.register_buffer("reference", torch.zeros(len(self.elements), dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("shift", torch.zeros((), dtype=torch.float64))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Everything that can be asked for."""
        derived = [name for head in self.heads for name in DERIVED.get(head, ())]
        return tuple(dict.fromkeys([*self.heads, *derived]))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights; energies are float64 in any case."""
        return next((p.dtype for p in self.parameters()), torch.float64)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.reference.device

    @property
    def num_parameters(self) -> int:
        """The number of trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def cast(self, dtype: torch.dtype) -> Potential:
        """Cast the network to ``dtype`` in place; reference energies stay float64 (``.float()`` would ruin them)."""
        self.representation.to(dtype)
        self.heads.to(dtype)
        return self

    def set_references(self, energies: Mapping[int, float]) -> None:
        """Set the reference energy of every element, eV.

        Raises:
            ElementError: if one of the model's elements has none.
        """
        missing = [z for z in self.elements if z not in energies]
        if missing:
            raise ElementError(f"no reference energy for {_symbols(missing)}; give one for each element of the model")
        values = torch.tensor([energies[z] for z in self.elements], dtype=torch.float64)
        self.reference.copy_(values)

    def species(self, z: Tensor) -> Tensor:
        """Map atomic numbers [N] to indices into ``elements``.

        Raises:
            ElementError: naming the elements that the model does not know (looked up on the CPU only; on a GPU the check is made
                where structures enter, so that a step never waits for the device).
        """
        if z.device.type == "cpu" and z.numel():
            in_range = (z >= 0) & (z < len(self.species_of_z))
            if not bool(in_range.all()) or bool((self.species_of_z[z] < 0).any()):
                self.check_elements(z.unique().tolist())
        return self.species_of_z.index_select(0, z)

    def check_elements(self, numbers: Sequence[int]) -> None:
        """Raise ElementError, naming them, if any of the atomic numbers is unknown to the model."""
        unknown = sorted(set(numbers) - set(self.elements))
        if unknown:
            raise ElementError(
                f"the model knows {_symbols(self.elements)} only, but the structure holds {_symbols(unknown)}; "
                "use a model that was trained on these elements"
            )

    def forward(
        self, graph: AtomGraph, outputs: Sequence[str] = ("energy", "forces"), *, differentiable: bool = False
    ) -> dict[str, Tensor]:
        """Return what is asked for, and nothing else.

        Args:
            graph: structures with edges within ``cutoff`` (longer ones add nothing).
            outputs: any of ``self.outputs``: energy [B] float64 eV; energies [N] float64 eV; forces [N, 3] eV/angstrom;
                stress [B, 3, 3] eV/angstrom^3 in ASE's sign; dipole [B, 3] e*angstrom; charges [N] e; and properties in the
                shapes and units of `simkit.graph.LABELS`.
            differentiable: keep the graph of the derivatives, for training on forces and stress.

        Raises:
            ConfigError: if an output is unknown to the model, a dipole or another property that positions enter is asked of a
                periodic structure, or forces in ``torch.inference_mode()``.
            ElementError: if an element is unknown to the model.
            GeometryError: if two atoms coincide, or a stress is asked for without a volume.
        """
        unknown = [name for name in outputs if name not in self.outputs]
        if unknown:
            raise ConfigError(f"this model cannot give {', '.join(unknown)}; it gives {', '.join(self.outputs)}")
        derivatives = "forces" in outputs or "stress" in outputs
        if derivatives and torch.is_inference_mode_enabled():
            raise ConfigError(
                "forces and stress are derivatives, which torch.inference_mode() switches off; use torch.no_grad() instead"
            )
        with torch.set_grad_enabled(derivatives or torch.is_grad_enabled()):
            species = self.species(graph.z)
            vectors = graph.edge_vectors()
            check_distances(graph, vectors)
            vectors = vectors.to(self.dtype)
            reach = Derivatives.ALL
            if derivatives and not vectors.requires_grad:
                # Nobody else can reach these vectors, nor anything at all if all that is returned is detached.
                reach = Derivatives.TRAINING if differentiable else Derivatives.FORCES
                vectors.requires_grad_(True)
            result: dict[str, Tensor] = {}
            with promise(reach):
                features = self._features(graph, species, vectors)
            with_energy = "energy" in self.heads and (derivatives or "energy" in outputs or "energies" in outputs)
            wanted = {*outputs, "charges"} if with_energy and self.representation.needs_charges else set(outputs)
            if wanted - {"energy", *DERIVED["energy"]}:
                own = features.first(graph.z.shape[0], graph.num_structures)  # without the atoms that ride along
                result.update(Properties(self.heads, self.standards, self.masses, graph, own)(wanted))
            if with_energy:
                energies = self._energies(features, graph.z.shape[0])
                if self.representation.has_pair_energies:
                    charges = result["charges"].to(vectors.dtype) if self.representation.needs_charges else None
                    pairs = self.representation.pair_energies(species, graph.edge_index, vectors, charges)
                    energies = energies + pairs.double()
                result["energies"] = energies
                result["energy"] = energies.new_zeros(graph.num_structures).index_add(0, graph.batch, energies)
            if derivatives:
                result.update(_derivatives(graph, result["energy"], vectors, outputs, differentiable))
        return {
            name: value if differentiable or (torch.is_grad_enabled() and not derivatives) else value.detach()
            for name, value in result.items()
            if name in outputs
        }

    def _features(self, graph: AtomGraph, species: Tensor, vectors: Tensor) -> Features:
        structure, count = graph.batch, graph.num_structures
        if self.anchored:
            # One atom of each element without edges rides along, a structure each: its energy is subtracted in `_energies`.
            alone = torch.arange(len(self.elements), device=species.device)
            species, structure = torch.cat([species, alone]), torch.cat([structure, alone + count])
            count += len(self.elements)
        scalars, features = self.representation(species, graph.edge_index, vectors)
        return Features(scalars, features, species, structure, count)

    def _energies(self, features: Features, n: int) -> Tensor:
        raw = self.heads["energy"](features).double()
        species = features.species[:n]
        offset = self.reference + self.shift
        if self.anchored:
            raw, offset = raw[:n] - raw[n:].index_select(0, species), self.reference
        return raw * self.scale + offset.index_select(0, species)

    def fast(self, *, check_every: int = CHECK_EVERY) -> FastPotential:
        """Return the fast path of the potential as it is now, which checks itself against the potential."""
        return FastPotential(self, check_every=check_every)

    def header(self) -> dict[str, Any]:
        """Everything besides the weights that is needed to rebuild the model."""
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "architecture": self.architecture,
            "options": self.options,
            "cutoff": self.cutoff,
            "elements": self.elements,
            "outputs": list(self.heads),
            **({"pooling": self.pooling} if any(KINDS[name] == "intensive" for name in self.heads) else {}),
            "anchored": self.anchored,
            "dtype": str(self.dtype).removeprefix("torch."),
            "units": {"energy": "eV", "length": "angstrom", "charge": "e"},
            "info": self.info,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as one safetensors file, atomically; read it with `simkit.load`.

        Raises:
            OutputError: if the file cannot be written.
        """
        write_model(path, self.state_dict(), self.header())


def _derivatives(
    graph: AtomGraph, energy: Tensor, vectors: Tensor, outputs: Sequence[str], differentiable: bool
) -> dict[str, Tensor]:
    """Forces and stress from the derivative of the energy with respect to the edge vectors."""
    sender, receiver = graph.edge_index[0], graph.edge_index[1]
    if energy.requires_grad:
        (gradient,) = torch.autograd.grad(energy.sum(), vectors, create_graph=differentiable, materialize_grads=True)
    else:  # no edges anywhere: the energy does not depend on the vectors
        gradient = torch.zeros_like(vectors)
    result = {}
    if "forces" in outputs:
        forces = gradient.new_zeros(graph.z.shape[0], 3)
        result["forces"] = forces.index_add(0, receiver, gradient).index_add(0, sender, gradient, alpha=-1)
    if "stress" in outputs:
        volume = torch.linalg.det(graph.cell).abs()
        if graph.pbc.device.type == "cpu" and not bool((graph.pbc.all(dim=1) & (volume > 0)).all()):
            raise GeometryError(
                "stress needs structures that are periodic in all three directions; ask for forces only"
            )
        virial = gradient.new_zeros(graph.num_structures, 3, 3)
        outer = vectors.unsqueeze(2) * gradient.unsqueeze(1)
        virial = virial.index_add(0, graph.batch.index_select(0, receiver), outer)
        # The energy is invariant under rotation, which makes the virial symmetric; rounding is not.
        result["stress"] = 0.5 * (virial + virial.transpose(1, 2)) / volume.to(virial.dtype)[:, None, None]
    return result


def _symbols(numbers: Sequence[int]) -> str:
    return ", ".join(chemical_symbols[z] if 0 <= z < len(chemical_symbols) else f"Z={z}" for z in numbers)
