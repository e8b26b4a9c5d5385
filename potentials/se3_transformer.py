"""SE(3)-Transformer: attention between atoms with equivariant values and invariant weights.

Fuchs, Worrall, Fischer & Welling, "SE(3)-Transformers: 3D roto-translation equivariant attention networks", NeurIPS 2020,
arXiv:2006.10503.
"""

import math
from typing import Literal

import torch
from e3nn import o3
from pydantic import Field, model_validator
from torch import Tensor, nn

from simkit.config import Options
from simkit.equivariant import (
    EdgeGeometry,
    EdgeTensorProduct,
    FeatureNorm,
    IrrepsLinear,
    NormNonlinearity,
    RadialMLP,
    SphericalHarmonics,
    edge_geometry,
    layer_irreps,
    row_slices,
    scalars_and_vectors,
    shared_couplings,
)
from simkit.potential import Representation
from simkit.radial import CutoffName, GaussianBasis, make_cutoff


class SE3TransformerOptions(Options):
    """Options of the SE(3)-Transformer; the defaults are the authors' size for QM9.

    The radial networks see Gaussians instead of the bare distance. The paper's features have no parity. Here they have, which is what
    makes energies equal for mirror images: p = (-1)^l, or with ``parity`` both signs for each l.
    """

    channels: int = Field(32, ge=2, description="of each irrep")
    layers: int = Field(7, ge=1, description="attention blocks; a convolution to scalars follows them")
    l_max: int = Field(3, ge=0, le=11)
    parity: bool = Field(False, description="features of both parities for each l; otherwise of p = (-1)^l alone")
    value_channels: int = Field(16, ge=1, description="channels of values, keys and queries, all heads together")
    heads: int = Field(8, ge=1)
    self_interaction: Literal["linear", "attentive"] = "linear"
    basis: int = Field(16, ge=2, description="number of Gaussians")
    radial_channels: int = Field(32, ge=1, description="width of the two hidden layers of the radial networks")
    neighbors: float = Field(
        12.0,
        gt=0,
        description="number of neighbors whose mean is scaled to unit variance; training takes that of its data",
    )
    cutoff_function: CutoffName = "polynomial"

    @model_validator(mode="after")
    def _heads_share_the_channels(self) -> "SE3TransformerOptions":
        if self.value_channels % self.heads:
            raise ValueError(
                f"value_channels must be a multiple of heads, found {self.value_channels} and {self.heads}"
            )
        return self


def neighbor_softmax(scores: Tensor, weights: Tensor, receiver: Tensor, atoms: int) -> Tensor:
    """Return w_e exp(s_e) / (1 + sum_e' w_e' exp(s_e')) with the sum over the edges to the same receiver, [E, H].

    The softmax with edge weights that vanish at the cutoff. The 1, which stands for attention to nothing, keeps it smooth when the last
    neighbor leaves.

    Args:
        scores: [E, H]. weights: [E], not negative. receiver: [E] int64.
    """
    index = receiver.unsqueeze(1).expand_as(scores)
    # Numerator and denominator are divided by the same number, so that neither overflows; it needs no gradient.
    peak = scores.new_zeros(atoms, scores.shape[1]).scatter_reduce(0, index, scores.detach(), "amax")
    part = weights.unsqueeze(1) * torch.exp(scores - peak.index_select(0, receiver))
    total = torch.exp(-peak).index_add(0, receiver, part)
    return part / total.index_select(0, receiver)


class AttentiveSelfInteraction(nn.Module):
    """The attentive self-interaction: channels of an atom mixed by weights that a network makes of their inner products, per irrep.

    The inner products are scaled as `FeatureNorm` scales features: the network sees numbers of order one, whatever their size.

    Args:
        irreps_in: of the features. irreps_out: those of them that are wanted.
    """

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, channels: int) -> None:
        super().__init__()
        rows = row_slices(irreps_in)
        self._rows = [rows[ir] for _, ir in irreps_out]
        self.nets = nn.ModuleList([RadialMLP(channels**2, channels, 1, channels, channels) for _ in irreps_out])

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, irreps_in.dim, C] to [N, irreps_out.dim, C]."""
        channels, parts = x.shape[2], []
        for rows, net in zip(self._rows, self.nets, strict=True):
            part = x[:, rows]
            products = torch.bmm(part.transpose(1, 2), part).flatten(1) / part.shape[1]
            size = 0.5 * (1.0 + products.square().mean(dim=1, keepdim=True))
            mixing = net(products / torch.sqrt(size))
            parts.append(torch.bmm(part, mixing) / math.sqrt(channels))
        return torch.cat(parts, dim=1)


class AttentionBlock(nn.Module):
    """Attention, self-interaction, and the normalisation and norm nonlinearity that follow.

    Values v_ij and keys k_ij are tensor field convolutions of x_j, the queries q_i linear maps of x_i; a head has its share of the
    channels of all irreps, and weights alpha_ij = softmax_j <q_i, k_ij>. A kernel of the paper has a radial function for each pair of
    an input and an output channel. Here it is a product: a linear map of the channels, a radial function for each path and channel, and a
    linear map of paths and channels, which makes the cost per edge linear in the channels. The last map of the keys acts on the
    queries, that of the values on their sum, which gives the same and costs less.
    """

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, options: SE3TransformerOptions) -> None:
        super().__init__()
        c, h = options.channels, options.value_channels
        common = o3.Irreps([item for item in irreps_out if item.ir in irreps_in])
        self.values = EdgeTensorProduct(irreps_in, options.l_max, irreps_out)
        self.keys = EdgeTensorProduct(irreps_in, options.l_max, common)
        self.value_in = IrrepsLinear(irreps_in, c, irreps_in, h)
        self.key_in = IrrepsLinear(irreps_in, c, irreps_in, h)
        self.query = IrrepsLinear(irreps_in, c, self.keys.irreps_mid, h)
        width = options.radial_channels
        self.value_radial = RadialMLP(options.basis, width, 2, len(self.values.paths), h)
        self.key_radial = RadialMLP(options.basis, width, 2, len(self.keys.paths), h)
        self.mix_values = IrrepsLinear(self.values.irreps_mid, h, irreps_out, c)
        attentive = options.self_interaction == "attentive"
        self.self_interaction = AttentiveSelfInteraction(irreps_in, common, c) if attentive else nn.Identity()
        self.mix_own = IrrepsLinear(common if attentive else irreps_in, c, irreps_out, c)
        self.norm = FeatureNorm(irreps_out)
        self.nonlinearity = NormNonlinearity(irreps_out, c)
        self._heads = options.heads
        self._score_scale = 1.0 / math.sqrt(self.keys.irreps_mid.dim * h / options.heads)
        self._scale = math.sqrt(options.neighbors)

    def attention(self, x: Tensor, edges: EdgeGeometry, basis: Tensor, weights: Tensor, coupling: Tensor) -> Tensor:
        """Return the attention of receivers to senders, [E, heads]."""
        keys = self.keys.messages(self.key_in(x), coupling, self.key_radial(basis), edges.sender)
        queries = self.keys.disarrange(self.query(x))
        products = (queries.index_select(0, edges.receiver) * keys).sum(dim=1)
        scores = self._score_scale * products.unflatten(1, (self._heads, products.shape[1] // self._heads)).sum(dim=2)
        return neighbor_softmax(scores, weights, edges.receiver, x.shape[0])

    def forward(
        self, x: Tensor, edges: EdgeGeometry, basis: Tensor, weights: Tensor, couplings: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Map features [N, irreps_in.dim, C] to [N, irreps_out.dim, C].

        Args:
            basis: [E, basis] or [E/2, basis]. weights: of the edges, [E]. couplings: of ``keys`` and of ``values``.
        """
        attention = self.attention(x, edges, basis, weights, couplings[0])
        # Values are linear in their radial weights, which have fewer rows than values have.
        radial = self.value_radial(basis)
        shares = attention.repeat_interleave(radial.shape[2] // self._heads, dim=1).unsqueeze(1)
        both = shares.shape[0] // max(radial.shape[0], 1)
        radial = (shares.view(both, radial.shape[0], 1, radial.shape[2]) * radial).flatten(0, 1)
        total = self.values(self.value_in(x), couplings[1], radial, edges.sender, edges.receiver)
        own = self.self_interaction(x)
        # Two maps of unit variance are added.
        y = math.sqrt(0.5) * (self.mix_values(total * self._scale) + self.mix_own(own))
        return self.nonlinearity(self.norm(y))


class ScalarConvolution(nn.Module):
    """The tensor field convolution with self-interaction that ends the network: features to scalars."""

    def __init__(self, irreps_in: o3.Irreps, options: SE3TransformerOptions) -> None:
        super().__init__()
        c, scalars = options.channels, o3.Irreps("0e")
        self.product = EdgeTensorProduct(irreps_in, options.l_max, scalars)
        self.radial = RadialMLP(options.basis, options.radial_channels, 2, len(self.product.paths), c)
        self.mix_neighbors = IrrepsLinear(self.product.irreps_mid, c, scalars, c)
        self.mix_own = IrrepsLinear(irreps_in, c, scalars, c)
        self._scale = 1.0 / math.sqrt(options.neighbors)

    def forward(self, x: Tensor, edges: EdgeGeometry, basis: Tensor) -> Tensor:
        """Map features [N, irreps_in.dim, C] to [N, C]."""
        coupling = self.product.coupling(edges.harmonics)
        total = self.product(x, coupling, self.radial(basis), edges.sender, edges.receiver)
        return (math.sqrt(0.5) * (self.mix_neighbors(total * self._scale) + self.mix_own(x))).squeeze(1)


class SE3Transformer(Representation):
    """Features of every l refined by attention to neighbors.

    The scalars are those of the last convolution, the vectors those that enter it. The authors' last convolution has as many scalars as
    all irreps together have channels; here both kinds of features have ``channels``.
    """

    compiled_edges = 2**15

    def __init__(self, options: SE3TransformerOptions, cutoff: float, num_elements: int) -> None:
        super().__init__()
        self.channels = c = options.channels
        self.activation = nn.SiLU()
        irreps = layer_irreps(options.layers + 1, options.l_max, both_parities=options.parity)
        self.irreps_vectors = irreps[-2]
        self.has_vectors = "1o" in irreps[-2]
        self.embedding = nn.Embedding(num_elements, c)
        self.harmonics = SphericalHarmonics(options.l_max)
        self.basis = GaussianBasis(options.basis, cutoff)
        self.cutoff_function = make_cutoff(options.cutoff_function, cutoff)
        blocks = [AttentionBlock(a, b, options) for a, b in zip(irreps[:-2], irreps[1:-1], strict=True)]
        self.blocks = nn.ModuleList(blocks)
        self._products = [product for block in blocks for product in (block.keys, block.values)]
        self.last = ScalarConvolution(irreps[-2], options)

    def forward(self, species: Tensor, edge_index: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return scalars [N, C] and vectors [N, 3, C]."""
        edges = edge_geometry(edge_index, vectors, self.harmonics)
        weights = self.cutoff_function(edges.distances)
        basis = self.basis(edges.distances) * (self.basis.unit_scale * weights).unsqueeze(1)
        if weights.shape[0] != edges.sender.shape[0]:
            weights = torch.cat([weights, weights])
        x = self.embedding(species).unsqueeze(1)
        couplings = shared_couplings(self._products, edges.harmonics)
        for block, of_keys, of_values in zip(self.blocks, couplings[::2], couplings[1::2], strict=True):
            x = block(x, edges, basis, weights, (of_keys, of_values))
        scalars = self.last(x, edges, basis)
        return scalars, scalars_and_vectors(x, self.irreps_vectors)[1] if self.has_vectors else None
