"""NequIP: E(3)-equivariant convolutions with gated nonlinearities.

Batzner et al., "E(3)-equivariant graph neural networks for data-efficient and accurate interatomic potentials", Nat. Commun. 13, 2453
(2022), arXiv:2101.03164.
"""

import math

from e3nn import o3
from pydantic import Field
from torch import Tensor, nn

from simkit.config import Options
from simkit.equivariant import (
    EdgeGeometry,
    EdgeTensorProduct,
    Gate,
    IrrepsLinear,
    LinearReadout,
    RadialMLP,
    SpeciesLinear,
    SphericalHarmonics,
    edge_geometry,
    layer_irreps,
    scalars_and_vectors,
    shared_couplings,
)
from simkit.potential import Representation
from simkit.radial import PolynomialCutoff, SineBasis


class NequIPOptions(Options):
    """Options of NequIP.

    The paper varies l_max from 0 to 3. Layers, basis, radial network, cutoff polynomial and the use of both parities are the defaults of
    the authors' package, with the 64 features of their settings for small molecules.
    """

    channels: int = Field(64, ge=2, description="of each irrep")
    layers: int = Field(4, ge=1)
    l_max: int = Field(2, ge=0, le=11)
    parity: bool = Field(True, description="features of both parities for each l; otherwise of p = (-1)^l alone")
    basis: int = Field(8, ge=1, description="number of Bessel functions, whose frequencies are trained")
    radial_channels: int = Field(64, ge=1, description="width of the radial networks")
    radial_layers: int = Field(2, ge=0, description="hidden layers of the radial networks")
    cutoff_power: int = Field(6, ge=3, description="p of the polynomial cutoff")
    neighbors: float = Field(
        12.0, gt=0, description="number of neighbors whose root divides their sum; training takes that of its data"
    )


class InteractionBlock(nn.Module):
    """x_i' = gate(W2 sum_j R(r_ij) (W1 x_j) (x) Y(r_ij) / sqrt(neighbors) + W_species(i) x_i), figure 1 of the paper."""

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, options: NequIPOptions, num_elements: int) -> None:
        super().__init__()
        c = options.channels
        self.gate = Gate(irreps_out)
        target = self.gate.irreps_in
        self.linear_1 = IrrepsLinear(irreps_in, c, irreps_in, c)
        self.product = EdgeTensorProduct(irreps_in, options.l_max, irreps_out)
        self.radial = RadialMLP(
            options.basis, options.radial_channels, options.radial_layers, len(self.product.paths), c
        )
        self.linear_2 = IrrepsLinear(self.product.irreps_mid, c, target, c)
        self.self_connection = SpeciesLinear(irreps_in, c, target, c, num_elements)
        self._scale = 1.0 / math.sqrt(options.neighbors)

    def forward(self, x: Tensor, species: Tensor, edges: EdgeGeometry, basis: Tensor, coupling: Tensor) -> Tensor:
        """Map features [N, irreps_in.dim, C] to [N, irreps_out.dim, C]."""
        total = self.product(self.linear_1(x), coupling, self.radial(basis), edges.sender, edges.receiver)
        return self.gate(self.linear_2(total * self._scale) + self.self_connection(x, species))


class NequIP(Representation):
    """Features of every l and parity refined by tensor product convolutions.

    The scalars are those of the last layer. The vectors are those that enter the last layer: its scalars need them, so they cost
    nothing, and none of its weights serves vectors alone.
    """

    compiled_edges = 2**17

    def __init__(self, options: NequIPOptions, cutoff: float, num_elements: int) -> None:
        super().__init__()
        self.channels = c = options.channels
        self.activation = nn.SiLU()
        irreps = layer_irreps(options.layers, options.l_max, both_parities=options.parity)
        self.irreps_vectors = irreps[-2]
        self.has_vectors = "1o" in irreps[-2]
        self.embedding = nn.Embedding(num_elements, c)
        self.harmonics = SphericalHarmonics(options.l_max)
        self.basis = SineBasis(options.basis, cutoff, trainable=True)
        self.cutoff_function = PolynomialCutoff(cutoff, options.cutoff_power)
        layers = [InteractionBlock(a, b, options, num_elements) for a, b in zip(irreps[:-1], irreps[1:], strict=True)]
        self.layers = nn.ModuleList(layers)
        self._products = [layer.product for layer in layers]

    def energy_head(self) -> nn.Module:
        """Return a linear map; the two of the published readout have no nonlinearity between them, which makes them one."""
        return LinearReadout(self.channels)

    def forward(self, species: Tensor, edge_index: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return scalars [N, C] and vectors [N, 3, C]."""
        edges = edge_geometry(edge_index, vectors, self.harmonics)
        r = edges.distances
        basis = self.basis(r) * ((2.0 / self.cutoff_function.cutoff) * self.cutoff_function(r)).unsqueeze(1)
        x = before = self.embedding(species).unsqueeze(1)
        couplings = shared_couplings(self._products, edges.harmonics)
        for layer, coupling in zip(self.layers, couplings, strict=True):
            before, x = x, layer(x, species, edges, basis, coupling)
        return x.squeeze(1), scalars_and_vectors(before, self.irreps_vectors)[1] if self.has_vectors else None
