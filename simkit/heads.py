"""Heads: per-atom features to a target. They hold no units beyond eV and e, and differentiate nothing."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


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


class EnergyHead(nn.Module):
    """A two-layer perceptron from scalar features [N, C] to atomic energies [N]."""

    def __init__(self, channels: int, activation: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(channels, channels // 2), activation, nn.Linear(channels // 2, 1))

    def forward(self, features: Features) -> Tensor:
        """Return atomic energies, [N]."""
        return self.net(features.scalars).squeeze(-1)


class FeatureEnergyHead(nn.Module):
    """For classical potentials, whose only feature is already the atomic energy: [N, 1] -> [N]."""

    def forward(self, features: Features) -> Tensor:
        """Return atomic energies, [N]."""
        return features.scalars.squeeze(-1)


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


class DipoleHead(nn.Module):
    """Atomic charges, and atomic dipoles where the features hold vectors (PaiNN, eq. 12; PhysNet for charges alone)."""

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
        """Return raw charges [N] in e (not yet summing to the total charge) and atomic dipoles [N, 3] in e*angstrom."""
        scalars, vectors = features.scalars, features.vectors
        if self.blocks is None or vectors is None:
            return self.net(scalars).squeeze(-1), None  # type: ignore[misc]
        for block in self.blocks:
            scalars, vectors = block(scalars, vectors)
        return scalars.squeeze(-1), vectors.squeeze(-1)
