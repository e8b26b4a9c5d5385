"""Tensor field networks.

Thomas, Smidt, Kearnes, Yang, Li, Kohlhoff & Riley, "Tensor field networks: rotation- and translation-equivariant neural networks for 3D
point clouds", 2018, arXiv:1802.08219.
"""

import math

from e3nn import o3
from pydantic import Field
from torch import Tensor, nn

from simkit.config import Options
from simkit.equivariant import (
    EdgeGeometry,
    EdgeTensorProduct,
    IrrepsLinear,
    NormNonlinearity,
    RadialMLP,
    SphericalHarmonics,
    edge_geometry,
    layer_irreps,
    scalars_and_vectors,
    shared_couplings,
)
from simkit.potential import Representation
from simkit.radial import CutoffName, GaussianBasis, make_cutoff


class TensorFieldNetworkOptions(Options):
    """Options of tensor field networks.

    The paper trains no potentials, so there is no published size; the defaults are NequIP's, with the paper's Gaussian basis and its
    radial functions of one hidden layer. The paper's features have no parity. Here they have, which is what makes energies equal for
    mirror images: p = (-1)^l, or with ``parity`` both signs for each l, so that cross products (1 x 1 -> 1) take part as well.
    """

    channels: int = Field(64, ge=2, description="of each irrep")
    layers: int = Field(4, ge=1)
    l_max: int = Field(2, ge=0, le=11)
    parity: bool = Field(False, description="features of both parities for each l; otherwise of p = (-1)^l alone")
    basis: int = Field(16, ge=2, description="number of Gaussians")
    radial_channels: int = Field(64, ge=1, description="hidden width of the radial functions")
    neighbors: float = Field(
        12.0, gt=0, description="number of neighbors whose root divides their sum; training takes that of its data"
    )
    cutoff_function: CutoffName = "polynomial"


class Layer(nn.Module):
    """Point convolution, self-interaction and norm nonlinearity.

    The convolution is sum_b R(r_ab) x_b (x) Y(r_ab), with a radial function for each path and channel. Its term b = a, R(0) x_a with
    numbers R(0), has become a linear map of its own, because an atom is no neighbor of itself.
    """

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, options: TensorFieldNetworkOptions) -> None:
        super().__init__()
        c = options.channels
        self.product = EdgeTensorProduct(irreps_in, options.l_max, irreps_out)
        self.radial = RadialMLP(options.basis, options.radial_channels, 1, len(self.product.paths), c)
        self.mix_neighbors = IrrepsLinear(self.product.irreps_mid, c, irreps_out, c)
        self.mix_own = IrrepsLinear(irreps_in, c, irreps_out, c)
        self.nonlinearity = NormNonlinearity(irreps_out, c)
        self._scale = 1.0 / math.sqrt(options.neighbors)

    def forward(self, x: Tensor, edges: EdgeGeometry, basis: Tensor, coupling: Tensor) -> Tensor:
        """Map features [N, irreps_in.dim, C] to [N, irreps_out.dim, C]."""
        total = self.product(x, coupling, self.radial(basis), edges.sender, edges.receiver)
        # Two maps of unit variance are added.
        return self.nonlinearity(math.sqrt(0.5) * (self.mix_neighbors(total * self._scale) + self.mix_own(x)))


class TensorFieldNetwork(Representation):
    """Features of every l refined by point convolutions.

    The scalars are those of the last layer, the vectors those that enter it (see `NequIP`).
    """

    compiled_edges = 2**17

    def __init__(self, options: TensorFieldNetworkOptions, cutoff: float, num_elements: int) -> None:
        super().__init__()
        self.channels = c = options.channels
        self.activation = nn.SiLU()
        irreps = layer_irreps(options.layers, options.l_max, both_parities=options.parity)
        self.irreps_vectors = irreps[-2]
        self.has_vectors = "1o" in irreps[-2]
        self.embedding = nn.Embedding(num_elements, c)
        self.harmonics = SphericalHarmonics(options.l_max)
        self.basis = GaussianBasis(options.basis, cutoff)
        self.cutoff_function = make_cutoff(options.cutoff_function, cutoff)
        layers = [Layer(a, b, options) for a, b in zip(irreps[:-1], irreps[1:], strict=True)]
        self.layers = nn.ModuleList(layers)
        self._products = [layer.product for layer in layers]

    def forward(self, species: Tensor, edge_index: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return scalars [N, C] and vectors [N, 3, C]."""
        edges = edge_geometry(edge_index, vectors, self.harmonics)
        r = edges.distances
        basis = self.basis(r) * (self.basis.unit_scale * self.cutoff_function(r)).unsqueeze(1)
        x = before = self.embedding(species).unsqueeze(1)
        couplings = shared_couplings(self._products, edges.harmonics)
        for layer, coupling in zip(self.layers, couplings, strict=True):
            before, x = x, layer(x, edges, basis, coupling)
        return x.squeeze(1), scalars_and_vectors(before, self.irreps_vectors)[1] if self.has_vectors else None
