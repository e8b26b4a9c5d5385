"""Properties: the raw outputs of heads turned into dipoles, polarizabilities, heat capacities and whatever else `LABELS` names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from simkit.config import nearest
from simkit.errors import ConfigError
from simkit.graph import LABELS, AtomGraph
from simkit.heads import (
    EnergyHead,
    Features,
    PairHead,
    PooledHead,
    ScalarVectorHead,
    Set2SetHead,
    mean_over_structures,
    sum_over_structures,
)

if TYPE_CHECKING:
    from simkit.potential import Representation

Kind = Literal["energy", "extensive", "intensive", "atomic", "dipole", "extent", "polarizability"]

KINDS: dict[str, Kind] = {
    "energy": "energy",
    **dict.fromkeys((name for name, spec in LABELS.items() if spec.per == "atom" and spec.shape == ()), "atomic"),
    **dict.fromkeys(("U0", "U", "H", "G", "Cv", "zpve", "alpha"), "extensive"),
    **dict.fromkeys(("homo", "lumo", "gap"), "intensive"),
    **dict.fromkeys(("dipole", "mu"), "dipole"),
    "r2": "extent",
    "polarizability": "polarizability",
}
"""Every property that a model can have a head for, and what is made of the head's outputs (see `Properties`)."""

DERIVED = {"energy": ("energies", "forces", "stress"), "dipole": ("charges", "mu"), "polarizability": ("alpha",)}
"""What a head gives besides its own property; no second head is made for it."""

ELECTRONS = "r2_electrons"
"""The standard of the electrons per atom of ``r2``, beside the one of the extents of the atoms themselves."""


class Standard(nn.Module):
    """What makes raw outputs of order one a property: ``scale * raw + shift + reference[element]``, in float64.

    The numbers come from the training data (see `simkit.training.references`) and are saved with the model.
    """

    reference: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, num_elements: int) -> None:
        super().__init__()
        self.register_buffer("reference", torch.zeros(num_elements, dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("shift", torch.zeros((), dtype=torch.float64))

    def set(self, reference: Sequence[float], scale: float, shift: float) -> None:
        """Set the numbers; ``reference`` per element of the model, in the property's unit."""
        self.reference.copy_(torch.as_tensor(reference, dtype=torch.float64))
        self.scale.fill_(scale)
        self.shift.fill_(shift)

    def forward(self, raw: Tensor, species: Tensor) -> Tensor:
        """Return the atomic values, [N] float64."""
        return raw.double() * self.scale + (self.reference + self.shift).index_select(0, species)


def head_names(outputs: Sequence[str], architecture: str) -> list[str]:
    """Return what there must be heads for to give ``outputs``, in order, each once.

    Raises:
        ConfigError: if there is no such property, or it comes with another one only.
    """
    derived = {name for names in DERIVED.values() for name in names if name not in KINDS}
    for name in outputs:
        if name in derived:
            raise ConfigError(
                f"{architecture} cannot give the output {name!r} by itself: it is a derivative of the energy; ask for "
                "'energy', which gives it as well"
            )
        if name not in KINDS:
            raise ConfigError(f"{architecture} cannot give the output {name!r}{nearest(name, KINDS)}")
    given = {name for source in outputs for name in DERIVED.get(source, ())}
    return [name for name in dict.fromkeys(outputs) if name not in given]


def isolated_only(heads: Iterable[str]) -> set[str]:
    """Return the outputs of these heads that positions enter, so that they are not defined for periodic structures."""
    return {"dipole", "mu", "r2", "polarizability"} | ({"alpha"} if "polarizability" in set(heads) else set())


def make_head(name: str, architecture: str, representation: Representation, pooling: str) -> nn.Module:
    """Return the head for a property.

    Raises:
        ConfigError: if the architecture has not the features that it needs, or the pooling is unknown.
    """
    r, kind = representation, KINDS[name]
    if kind == "energy":
        return r.energy_head()
    if r.is_classical:
        raise ConfigError(
            f"{architecture} cannot give the output {name!r}: its only feature is the atomic energy; ask for energy, or take "
            "a network such as painn"
        )
    if kind == "polarizability" and not r.has_vectors:
        raise ConfigError(
            f"{architecture} cannot give the output 'polarizability': the tensor needs vector features, of which it has none; "
            "ask for alpha, the isotropic polarizability, or take an architecture with vectors such as painn"
        )
    if kind == "dipole":
        return r.dipole_head()
    if kind == "polarizability":
        return ScalarVectorHead(r.channels, r.channels if r.has_vectors else 0, r.activation)
    if kind == "extent":
        return PairHead(_atomic_readout(r), _atomic_readout(r))
    if kind == "intensive":
        if pooling not in ("mean", "set2set"):
            raise ConfigError(f"pooling must be mean or set2set, found {pooling!r}")
        if pooling == "set2set":
            return Set2SetHead(r.channels, r.activation)
        return PooledHead(r.energy_head(), mean=r.is_atomic)
    return _atomic_readout(r) if kind == "atomic" else r.energy_head()


def _atomic_readout(representation: Representation) -> nn.Module:
    """The architecture's own readout, unless it reads the structure as a whole."""
    r = representation
    return r.energy_head() if r.is_atomic else EnergyHead(r.channels, r.activation)


def make_standards(heads: Sequence[str], num_elements: int) -> nn.ModuleDict:
    """Return the standards that heads need; the energy has its own in `Potential`, and dipoles need none."""
    names = [name for name in heads if KINDS[name] not in ("energy", "dipole")]
    if "r2" in names:
        names.append(ELECTRONS)
    return nn.ModuleDict({name: Standard(num_elements) for name in names})


class Properties:
    """The properties of a batch of structures, from the features of its atoms.

    With s_i the atomic values of a `Standard`, r_i the positions relative to the centre of mass, and B structures:

    ==============  =============================================================================================================
    kind            value
    ==============  =============================================================================================================
    extensive       sum_i s_i, [B]
    intensive       scale * pooled + shift + mean_i reference_i, [B], pooled by the mean of the atomic readouts or by set2set; a readout
                    that takes the structure as a whole is pooled already
    atomic          s_i, [N]; charges are shifted evenly so that they sum to the total charge
    dipole          sum_i q_i r_i + mu_i, [B, 3]: charges q_i as above and, with vector features, atomic dipoles mu_i (PaiNN, eq. 12;
                    PhysNet for charges alone). ``mu`` is its norm, about the centre of mass
    extent          sum_i n_i |r_i|^2 + e_i, [B], with electrons n_i and extents e_i of the atoms. The literature (SchNetPack, PaiNN) has
                    the first term alone, which leaves atoms without extent: the integral of an atom's density times |r|^2 is both
    polarizability  sum_i s_i 1 + scale * (v_i r_i^T + r_i v_i^T), [B, 3, 3] (PaiNN, tensorial properties; as in SchNetPack).
                    ``alpha`` is a third of its trace
    ==============  =============================================================================================================

    Sums are float64 but for charges and dipoles, which keep the dtype of the network.

    Args:
        heads, standards: name -> module, those of the potential.
        masses: of the model's elements, amu.

    Raises:
        ConfigError: if a property is not defined for a periodic structure (looked up on the CPU only).
    """

    def __init__(
        self,
        heads: nn.ModuleDict,
        standards: nn.ModuleDict,
        masses: Tensor,
        graph: AtomGraph,
        features: Features,
    ) -> None:
        self.heads, self.standards, self.masses = heads, standards, masses
        self.graph, self.features = graph, features

    def __call__(self, wanted: Collection[str]) -> dict[str, Tensor]:
        """Return all that the heads of the properties ``wanted`` give."""
        result: dict[str, Tensor] = {}
        for name, head in self.heads.items():
            if KINDS[name] == "energy" or not {name, *DERIVED.get(name, ())} & set(wanted):
                continue
            periodic = [n for n in wanted if n in isolated_only(self.heads)]
            if periodic and self.graph.pbc.device.type == "cpu" and bool(self.graph.pbc.any()):
                raise ConfigError(
                    f"the {periodic[0]} of a periodic structure is not defined; ask for "
                    f"{'charges' if name == 'dipole' else 'other properties'}, or set pbc to False"
                )
            result |= self._give(name, head)
        return result

    def _give(self, name: str, head: nn.Module) -> dict[str, Tensor]:
        match KINDS[name]:
            case "extensive":
                return {name: self._sum(self._atomic_values(name, head(self.features)))}
            case "intensive":
                return {name: self._intensive(name, head)}
            case "atomic":
                values = self._atomic_values(name, head(self.features))
                return {name: self._neutralised(values)[0] if name == "charges" else values}
            case "extent":
                return {name: self._extent(name, head)}
            case "polarizability":
                return self._polarizability(name, head)
            case _:
                return self._dipole(name, head)

    def _intensive(self, name: str, head: nn.Module) -> Tensor:
        standard = self._standard(name)
        offsets = (standard.reference + standard.shift).index_select(0, self.features.species)
        return head(self.features) * standard.scale + mean_over_structures(offsets, self.features)

    def _dipole(self, name: str, head: nn.Module) -> dict[str, Tensor]:
        raw, atomic = head(self.features)
        charges, total = self._neutralised(raw)
        # Positions relative to the centre of mass keep float32 exact far from the origin; the total charge carries the rest.
        moments = charges.unsqueeze(1) * self.local.to(charges.dtype)
        about_center = self._sum(moments if atomic is None else moments + atomic)
        mu = torch.linalg.vector_norm(about_center, dim=1)  # whose gradient is zero, not nan, where the dipole vanishes
        if name == "mu":
            return {"mu": mu}
        dipole = about_center + total.unsqueeze(1) * self.center.to(charges.dtype)
        return {"charges": charges, "mu": mu, "dipole": dipole}

    def _extent(self, name: str, head: nn.Module) -> Tensor:
        electrons, own = head(self.features)
        n = self._atomic_values(ELECTRONS, electrons)
        squared = self.local.double().square().sum(dim=1)
        return self._sum(n * squared + self._atomic_values(name, own))

    def _polarizability(self, name: str, head: nn.Module) -> dict[str, Tensor]:
        raw, vectors = head(self.features)
        isotropic = self._sum(self._atomic_values(name, raw))
        # Order of the indices: [atom, a, b] = v_a r_b.
        outer = self._sum(vectors.double().unsqueeze(2) * self.local.double().unsqueeze(1))
        anisotropic = self._standard(name).scale * (outer + outer.transpose(1, 2))
        unit = torch.eye(3, dtype=outer.dtype, device=outer.device)
        tensor = isotropic[:, None, None] * unit + anisotropic
        return {"polarizability": tensor, "alpha": tensor.diagonal(dim1=1, dim2=2).mean(dim=1)}

    def _standard(self, name: str) -> Standard:
        return self.standards[name]  # type: ignore[return-value]

    def _atomic_values(self, name: str, raw: Tensor) -> Tensor:
        values: Tensor = self.standards[name](raw, self.features.species)
        return values

    def _sum(self, values: Tensor) -> Tensor:
        return sum_over_structures(values, self.features)

    def _neutralised(self, charges: Tensor) -> tuple[Tensor, Tensor]:
        """Charges shifted evenly to the total charge of each structure, and these totals [B]."""
        counts = (self.graph.ptr[1:] - self.graph.ptr[:-1]).to(charges.dtype)
        total = self.graph.charge.to(charges.dtype) if "charge" in self.graph else torch.zeros_like(counts)
        excess = (self._sum(charges) - total) / counts
        return charges - excess.index_select(0, self.features.structure), total

    @cached_property
    def center(self) -> Tensor:
        """The centres of mass [B, 3], angstrom."""
        weights = self.masses.index_select(0, self.features.species).to(self.graph.pos.dtype).unsqueeze(1)
        return self._sum(weights * self.graph.pos) / self._sum(weights)

    @cached_property
    def local(self) -> Tensor:
        """Positions relative to the centre of mass of the structure, [N, 3] angstrom."""
        return self.graph.pos - self.center.index_select(0, self.features.structure)
