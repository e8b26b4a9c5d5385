"""Heads: what a representation says of each atom, turned into raw outputs of order one. They know no units and differentiate nothing."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from simkit.initialization import glorot_linear


class Features(NamedTuple):
    """What a representation says of ``N`` atoms, and where they belong.

    Attributes:
        scalars: [N, C].
        vectors: [N, 3, C] or None.
        species: [N] int64, index into the elements of the model.
        structure: [N] int64, non-decreasing, the structure of each atom.
        num_structures: how many structures there are.
    """

    scalars: Tensor
    vectors: Tensor | None
    species: Tensor
    structure: Tensor
    num_structures: int

    def first(self, atoms: int, structures: int) -> "Features":
        """Return the features of the first ``atoms`` atoms, which are those of the first ``structures`` structures."""
        vectors = None if self.vectors is None else self.vectors[:atoms]
        return Features(self.scalars[:atoms], vectors, self.species[:atoms], self.structure[:atoms], structures)


class EnergyHead(nn.Module):
    """A two-layer perceptron from scalar features [N, C] to atomic energies [N]."""

    def __init__(self, channels: int, activation: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(glorot_linear(channels, channels // 2), activation, glorot_linear(channels // 2, 1))

    def forward(self, features: Features) -> Tensor:
        """Return atomic energies, [N]."""
        return self.net(features.scalars).squeeze(-1)


class FeatureEnergyHead(nn.Module):
    """For classical potentials, whose only feature is already the atomic energy: [N, 1] -> [N]."""

    def forward(self, features: Features) -> Tensor:
        """Return atomic energies, [N]."""
        return features.scalars.squeeze(-1)


class PooledHead(nn.Module):
    """A value per structure from a readout: the mean of its atomic values, or their sum where these are shares of one value."""

    def __init__(self, readout: nn.Module, *, mean: bool) -> None:
        super().__init__()
        self.readout = readout
        self.mean = mean

    def forward(self, features: Features) -> Tensor:
        """Return a value per structure, [B] float64."""
        pool = mean_over_structures if self.mean else sum_over_structures
        return pool(self.readout(features).double(), features)


class Set2SetHead(nn.Module):
    """A perceptron on the set2set pooling of the scalar features (Vinyals, Bengio & Kudlur 2016; Gilmer et al. 2017)."""

    STEPS = 3
    """How often the atoms are looked at."""
    # Some architectures concatenate the features of all layers; the weights of the pooling grow with the square of the width.
    WIDTH = 128

    def __init__(self, channels: int, activation: nn.Module) -> None:
        super().__init__()
        from torch_geometric.nn.aggr import Set2Set

        width = min(channels, self.WIDTH)
        self.reduce = nn.Linear(channels, width)
        self.pool = Set2Set(width, processing_steps=self.STEPS)
        self.net = nn.Sequential(nn.Linear(2 * width, width), activation, nn.Linear(width, 1))

    def forward(self, features: Features) -> Tensor:
        """Return a value per structure, [B] float64."""
        atoms = self.reduce(features.scalars)
        pooled = self.pool(atoms, features.structure, dim_size=features.num_structures)
        return self.net(pooled).squeeze(-1).double()


class PairHead(nn.Module):
    """Two independent atomic readouts."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return both values of each atom, [N] and [N]."""
        return self.first(features), self.second(features)


class GatedEquivariantBlock(nn.Module):
    """The gated equivariant block of PaiNN (Schuett et al. 2021, figure 3): scalars [N, C] and vectors [N, 3, C] to fewer."""

    def __init__(self, channels: int, out_channels: int, *, last: bool) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.last = last
        self.mix = nn.Linear(channels, channels + out_channels, bias=False)
        self.channels = channels
        self.net = nn.Sequential(nn.Linear(2 * channels, channels), nn.SiLU(), nn.Linear(channels, 2 * out_channels))

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return scalars [N, out] and vectors [N, 3, out]."""
        mixed = self.mix(vectors)
        v, w = mixed[..., : self.channels], mixed[..., self.channels :]
        norm = torch.sqrt((v * v).sum(dim=1) + 1e-8)
        s, gate = self.net(torch.cat([scalars, norm], dim=-1)).chunk(2, dim=-1)
        return (s if self.last else nn.functional.silu(s)), gate.unsqueeze(1) * w


class ScalarVectorHead(nn.Module):
    """A scalar per atom and, where the features hold vectors, a vector: PaiNN's readout of dipoles and polarizabilities."""

    def __init__(self, channels: int, vector_channels: int, activation: nn.Module) -> None:
        super().__init__()
        self.blocks: nn.ModuleList | None = None
        self.net: nn.Sequential | None = None
        if vector_channels:
            hidden = channels // 2
            self.blocks = nn.ModuleList(
                [GatedEquivariantBlock(channels, hidden, last=False), GatedEquivariantBlock(hidden, 1, last=True)]
            )
        else:
            self.net = nn.Sequential(nn.Linear(channels, channels // 2), activation, nn.Linear(channels // 2, 1))

    def forward(self, features: Features) -> tuple[Tensor, Tensor | None]:
        """Return scalars [N] and vectors [N, 3] or None."""
        scalars, vectors = features.scalars, features.vectors
        if self.blocks is None or vectors is None:
            return self.net(scalars).squeeze(-1), None  # type: ignore[misc]
        for block in self.blocks:
            scalars, vectors = block(scalars, vectors)
        return scalars.squeeze(-1), vectors.squeeze(-1)


def sum_over_structures(values: Tensor, features: Features) -> Tensor:
    """Return the sums of atomic values [N, ...] over the atoms of each structure, [B, ...]."""
    total = values.new_zeros(features.num_structures, *values.shape[1:])
    return total.index_add(0, features.structure, values)


def mean_over_structures(values: Tensor, features: Features) -> Tensor:
    """Return the means of atomic values [N, ...] over the atoms of each structure, [B, ...]."""
    counts = sum_over_structures(torch.ones_like(values), features)
    return sum_over_structures(values, features) / counts
