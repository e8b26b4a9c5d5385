"""`Potential`: representation, heads and reference energies in one model that returns energies, forces, stress and dipoles."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from simkit.errors import ConfigError, ElementError, GeometryError
from simkit.files import atomic_path
from simkit.graph import AtomGraph
from simkit.heads import DipoleHead, EnergyHead, FeatureEnergyHead, Features

FORMAT = "simkit-potential"
FORMAT_VERSION = 1
DERIVED = ("energies", "forces", "stress")


class Representation(nn.Module):
    """Base of the architectures: species and edge vectors in, per-atom features out, plain tensors on both sides.

    ``forward(species [N] int64 in 0..n_elements-1, edge_index [2, E], vectors [E, 3] angstrom)`` returns scalars ``[N, channels]``
    and vectors ``[N, 3, channels]`` or None. It must be differentiable twice with respect to ``vectors``.
    """

    has_vectors: ClassVar[bool] = False
    is_classical: ClassVar[bool] = False  # the single scalar feature is the atomic energy in eV: no other head makes sense
    channels: int
    activation: nn.Module

    def energy_head(self) -> nn.Module:
        """Return the head from `Features` to atomic energies [N]; architectures with a readout of their own override this."""
        return FeatureEnergyHead() if self.is_classical else EnergyHead(self.channels, self.activation)


class Potential(nn.Module):
    """A potential energy surface.

    Energy of a structure: ``sum_i scale * head(features_i) + shift + reference[z_i]``, summed in float64. Forces and stress are
    derivatives with respect to the edge vectors: with g_ij = dE/dr_ij, F_i = sum_j (g_ij - g_ji) and
    stress = sum_ij r_ij (x) g_ij / V, which holds for any many-body energy that depends on positions through edge vectors alone.

    Args:
        architecture: registered name of the representation, and ``options`` what it was built with (both for the file).
        elements: atomic numbers that the model knows.
        outputs: what there are heads for: "energy", "dipole".
        anchored: subtract the model's own energy of each isolated atom and leave out the shift, so that a lone atom has its
            reference energy (exactly, but for the rounding of the network's own dtype).
    """

    species_of_z: Tensor
    reference: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        representation: Representation,
        *,
        architecture: str,
        options: Mapping[str, Any],
        cutoff: float,
        elements: Sequence[int],
        outputs: Sequence[str] = ("energy",),
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
        self.heads = nn.ModuleDict()
        for name in outputs:
            self.heads[name] = self._make_head(name)
        table = torch.full((max(self.elements) + 1,), -1, dtype=torch.int64)
        table[self.elements] = torch.arange(len(self.elements))
        self.register_buffer("species_of_z", table, persistent=False)
        self.register_buffer("reference", torch.zeros(len(self.elements), dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("shift", torch.zeros((), dtype=torch.float64))

    def _make_head(self, name: str) -> nn.Module:
        rep = self.representation
        if name == "energy":
            return rep.energy_head()
        if name == "dipole" and not rep.is_classical:
            return DipoleHead(rep.channels, rep.channels if rep.has_vectors else 0, rep.activation)
        raise ConfigError(f"{self.architecture} cannot give the output {name!r}; expected energy or dipole")

    @property
    def outputs(self) -> tuple[str, ...]:
        """Everything that can be asked for."""
        derived = DERIVED if "energy" in self.heads else ()
        return (*self.heads, *derived, *(("charges",) if "dipole" in self.heads else ()))

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
                stress [B, 3, 3] eV/angstrom^3 in ASE's sign; dipole [B, 3] e*angstrom; charges [N] e.
            differentiable: keep the graph of the derivatives, for training on forces and stress.

        Raises:
            ConfigError: if an output is unknown to the model, a dipole is asked of a periodic structure, or forces in
                ``torch.inference_mode()``.
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
            _check_distances(graph, vectors)
            vectors = vectors.to(self.dtype)
            if derivatives and not vectors.requires_grad:
                vectors.requires_grad_(True)
            result: dict[str, Tensor] = {}
            features = self._features(graph, species, vectors)
            if "energy" in self.heads and (derivatives or "energy" in outputs or "energies" in outputs):
                energies = self._energies(features, graph.z.shape[0])
                result["energies"] = energies
                result["energy"] = energies.new_zeros(graph.num_structures).index_add(0, graph.batch, energies)
            if "dipole" in outputs or "charges" in outputs:
                result.update(self._dipole(graph, features, outputs))
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

    def _dipole(self, graph: AtomGraph, features: Features, outputs: Sequence[str]) -> dict[str, Tensor]:
        """Charges corrected evenly to the total charge; mu = sum_i (q_i r_i + mu_i)."""
        if "dipole" in outputs and graph.pbc.device.type == "cpu" and bool(graph.pbc.any()):
            raise ConfigError("the dipole of a periodic structure is not defined; ask for charges, or set pbc to False")
        charges, atomic = self.heads["dipole"](features)
        if self.anchored:  # without the atoms that ride along
            charges, atomic = charges[: graph.z.shape[0]], None if atomic is None else atomic[: graph.z.shape[0]]
        counts = (graph.ptr[1:] - graph.ptr[:-1]).to(charges.dtype)
        total = graph.charge.to(charges.dtype) if "charge" in graph else torch.zeros_like(counts)
        excess = torch.zeros_like(counts).index_add(0, graph.batch, charges) - total
        charges = charges - (excess / counts).index_select(0, graph.batch)
        # Positions relative to the centroid keep float32 exact far from the origin; the total charge carries the rest.
        pos = graph.pos
        center = pos.new_zeros(len(counts), 3).index_add(0, graph.batch, pos) / counts.to(pos.dtype).unsqueeze(1)
        local = (pos - center.index_select(0, graph.batch)).to(charges.dtype)
        moments = charges.unsqueeze(1) * local if atomic is None else charges.unsqueeze(1) * local + atomic
        dipole = charges.new_zeros(len(counts), 3).index_add(0, graph.batch, moments)
        return {"charges": charges, "dipole": dipole + total.unsqueeze(1) * center.to(charges.dtype)}

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
        from safetensors.torch import save

        # No two entries may share memory in the file, and no entry may be a view.
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in self.state_dict().items()}
        content = save(tensors, metadata={"simkit": json.dumps(self.header())})
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)  # an OSError, which safetensors' own writer would hide


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


def _check_distances(graph: AtomGraph, vectors: Tensor) -> None:
    """Refuse coinciding atoms; on a GPU this would make every step wait, so structures are checked where they enter."""
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


def _symbols(numbers: Sequence[int]) -> str:
    return ", ".join(chemical_symbols[z] if 0 <= z < len(chemical_symbols) else f"Z={z}" for z in numbers)
