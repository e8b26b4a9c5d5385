"""MACE: message passing with messages of high body order.

Batatia, Kovacs, Simm, Ortner & Csanyi, "MACE: Higher order equivariant message passing neural networks for fast and accurate force fields",
NeurIPS 2022 (arXiv 2206.07697); the design follows Batatia et al., Nature Machine Intelligence 7, 56 (2025) (arXiv 2205.06643).
"""

import math

import torch
from e3nn import o3
from pydantic import Field
from torch import Tensor, nn

from simkit.config import Options
from simkit.equivariant import IrrepsLinear, SpeciesLinear, SphericalHarmonics, edge_geometry, feature_irreps
from simkit.equivariant.convolution import NeighborConvolution, Neighborhoods, neighborhoods
from simkit.equivariant.linear import scaled_product
from simkit.equivariant.nonlinear import unit_variance
from simkit.heads import Features
from simkit.potential import Representation
from simkit.radial import PolynomialCutoff, SineBasis
from simkit.symmetric_contraction import SymmetricContraction


class MACEOptions(Options):
    """Options of MACE; the defaults are the size that the common pretrained models call medium, 128x0e + 128x1o."""

    channels: int = Field(128, ge=1)
    layers: int = Field(2, ge=1)
    l_max: int = Field(3, ge=0, le=11, description="degree of the spherical harmonics")
    hidden_lmax: int = Field(1, ge=0, le=11, description="degree of the features that pass from layer to layer")
    correlation: int = Field(3, ge=1, le=6, description="order of the products; the body order of a layer is one more")
    basis: int = Field(8, ge=1, description="Bessel functions")
    cutoff_power: int = Field(5, ge=3, description="p of the polynomial cutoff")
    radial_width: int = Field(64, ge=1)
    radial_layers: int = Field(3, ge=0, description="hidden layers of the radial network")
    readout_width: int = Field(16, ge=1, description="hidden layer of the last readout")
    neighbors: float = Field(
        14.0,
        gt=0,
        description="number of neighbors by which sums over them are divided; training takes that of its data",
    )


class Interaction(nn.Module):
    """One layer: features A of the neighborhood, their symmetric products B, and the message.

        A_i = 1 / neighbors * W sum_j R(r_ij) Y(r_ij) (x) (W' h_j)      (eqs. 8 and 9)
        h_i <- W'' B_i(A_i) + W_z h_i                                   (eqs. 10 to 12)

    The first layer has no residual term W_z h; there W' is part of the embedding and W differs from species to species, as it does in
    the authors' program. So the features of an isolated atom vanish, and its energy is its reference energy.

    Args:
        irreps_in: of one channel of h before the layer, and ``irreps_out`` after it.
    """

    def __init__(
        self, options: MACEOptions, num_elements: int, irreps_in: o3.Irreps, irreps_out: o3.Irreps, *, first: bool
    ) -> None:
        super().__init__()
        c = options.channels
        irreps = feature_irreps(options.l_max, both_parities=False)
        self.neighbors = options.neighbors
        self.convolution = NeighborConvolution(
            irreps_in,
            options.l_max,
            irreps,
            c,
            basis=options.basis,
            hidden=options.radial_width,
            layers=options.radial_layers,
        )
        self.before: IrrepsLinear | None = None
        self.skip: SpeciesLinear | None = None
        self.gather: IrrepsLinear | SpeciesLinear
        if first:
            self.gather = SpeciesLinear(irreps, c, irreps, c, num_elements)
        else:
            self.before = IrrepsLinear(irreps_in, c, irreps_in, c)
            self.skip = SpeciesLinear(irreps_in, c, irreps_out, c, num_elements)
            self.gather = IrrepsLinear(self.convolution.irreps_mid, c, irreps, c)
        self.contraction = SymmetricContraction(irreps, irreps_out, options.correlation, c, num_elements)
        self.after = IrrepsLinear(irreps_out, c, irreps_out, c)

    def forward(self, h: Tensor, species: Tensor, harmonics: Tensor, basis: Tensor, near: Neighborhoods) -> Tensor:
        """Map features [N, irreps_in.dim, C] to [N, irreps_out.dim, C]."""
        senders = h if self.before is None else self.before(h)
        sums = self.convolution(senders, harmonics, basis, near) * (1.0 / self.neighbors)
        a = self.gather(sums, species) if isinstance(self.gather, SpeciesLinear) else self.gather(sums)
        message: Tensor = self.after(self.contraction(a, species))
        return message if self.skip is None else message + self.skip(h, species)


class Readout(nn.Module):
    """Linear on the scalars of every layer but the last, a perceptron on those of the last, added up (eq. 13)."""

    def __init__(self, channels: int, layers: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.linear = nn.Parameter(torch.randn((layers - 1) * channels, 1)) if layers > 1 else None
        self.first = nn.Parameter(torch.randn(channels, width))
        self.second = nn.Parameter(torch.randn(width, 1))
        self._gain = unit_variance(nn.functional.silu)

    def forward(self, features: Features) -> Tensor:
        """Return atomic energies, [N]."""
        last, scale = features.scalars[:, -self.channels :], 1.0 / math.sqrt(self.channels)
        hidden = nn.functional.silu(scaled_product(last, self.first, scale))
        energies = scaled_product(hidden, self.second, self._gain / math.sqrt(self.second.shape[0]))
        if self.linear is not None:
            energies = energies + scaled_product(features.scalars[:, : -self.channels], self.linear, scale)
        return energies.squeeze(1)


class MACE(Representation):
    """Equivariant features of high body order in few layers.

    Scalars are those of all layers side by side, vectors as well; the last layer has no vectors, which are zero there.
    """

    compiled_edges = 2**17

    def __init__(self, options: MACEOptions, cutoff: float, num_elements: int) -> None:
        super().__init__()
        self.options = options
        self.channels = options.channels * options.layers
        self.has_vectors = options.hidden_lmax > 0 and options.layers > 1
        self.activation = nn.SiLU()
        self.embedding = nn.Embedding(num_elements, options.channels)
        self.basis = SineBasis(options.basis, cutoff)
        self.cutoff_function = PolynomialCutoff(cutoff, options.cutoff_power)
        self.harmonics = SphericalHarmonics(options.l_max)
        scalar, hidden = o3.Irreps("0e"), feature_irreps(options.hidden_lmax, both_parities=False)
        widths = [scalar, *[hidden] * (options.layers - 1), scalar]
        self.interactions = nn.ModuleList(
            [
                Interaction(options, num_elements, before, after, first=k == 0)
                for k, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True))
            ]
        )

    def energy_head(self) -> nn.Module:
        """Return the readouts of all layers."""
        return Readout(self.options.channels, self.options.layers, self.options.readout_width)

    def forward(self, species: Tensor, edge_index: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return scalars [N, layers * C] and vectors [N, 3, layers * C] or None."""
        edges = edge_geometry(edge_index, vectors, self.harmonics)
        near = neighborhoods(edges, species.shape[0])
        r = edges.distances
        # Bessel functions sqrt(2 / rc) sin(n pi r / rc) / r (Gasteiger et al., ICLR 2020, eq. 7).
        basis = self.basis(r) * (math.sqrt(2.0 / self.basis.cutoff) * self.cutoff_function(r)).unsqueeze(1)
        h = self.embedding(species).unsqueeze(1)
        harmonics = near.spread(edges.harmonics)
        scalars, features = [], []
        for interaction in self.interactions:
            h = interaction(h, species, harmonics, basis, near)
            scalars.append(h[:, 0])
            features.append(h[:, 1:4])
        if not self.has_vectors:
            return torch.cat(scalars, dim=1), None
        features[-1] = torch.zeros_like(features[0])
        return torch.cat(scalars, dim=1), torch.cat(features, dim=2)
