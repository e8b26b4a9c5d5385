"""DimeNet++: directional message passing.

Gasteiger, Giri, Margraf & Guennemann, "Fast and uncertainty-aware directional message passing for non-equilibrium molecules", 2020
(arXiv 2011.14115); the bases are those of DimeNet, Gasteiger, Gross & Guennemann, ICLR 2020 (arXiv 2003.03123).

The same function as `torch_geometric.nn.models.DimeNetPlusPlus`, but for one thing: in a periodic structure PyG leaves out every triplet
i -> j -> i, also through two different images of i; here only the way back to the same image is left out (`simkit.triplets`).
"""

import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from simkit.bessel import PolynomialEnvelope, SphericalBesselBasis, legendre
from simkit.config import Options
from simkit.initialization import glorot_linear
from simkit.kernels.tracing import arrangement
from simkit.potential import Representation
from simkit.readout import BlockReadout
from simkit.triplets import TripletBlock, Triplets, make_triplets


class DimeNetPlusPlusOptions(Options):
    """Options of DimeNet++; the defaults are the published size.

    The published envelope is continuous to its second derivative for any exponent, so that there is no other cutoff function.
    """

    channels: int = Field(128, ge=2, description="of the messages")
    layers: int = Field(4, ge=1)
    triplet_channels: int = Field(64, ge=1, description="of the messages where triplets interact")
    basis_channels: int = Field(8, ge=1, description="inner width of the two-layer maps of the bases")
    output_channels: int = Field(256, ge=2, description="of the features of an atom, per block")
    spherical: int = Field(7, ge=1, le=12, description="orders of the spherical basis")
    radial: int = Field(6, ge=1, le=32, description="radial functions of both bases")
    envelope_exponent: int = Field(5, ge=1, le=20)
    before_skip: int = Field(1, ge=0, description="residual layers before the skip connection")
    after_skip: int = Field(2, ge=0, description="residual layers after it")
    output_layers: int = Field(3, ge=0)


class Residual(nn.Module):
    """x + a(W2 a(W1 x + b1) + b2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lin1 = glorot_linear(channels, channels)
        self.lin2 = glorot_linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [E, C] to [E, C]."""
        return x + silu(self.lin2(silu(self.lin1(x))))


class Embedding(nn.Module):
    """The first messages: m_ji = a(W [h_j, h_i, a(W_rbf e_rbf(r_ji) + b_rbf)] + b), DimeNet's embedding block."""

    def __init__(self, channels: int, radial: int, num_elements: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(num_elements, channels)
        nn.init.uniform_(self.emb.weight, -math.sqrt(3.0), math.sqrt(3.0))
        self.lin_rbf = nn.Linear(radial, channels)
        self.lin = nn.Linear(3 * channels, channels)

    def forward(self, species: Tensor, rbf: Tensor, sender: Tensor, receiver: Tensor) -> Tensor:
        """Return messages, [E, C]."""
        of_receiver, of_sender, of_distance = self.lin.weight.chunk(3, dim=1)
        # The parts of the map that see one element each are made once per element, not once per edge.
        ends = linear(self.emb.weight, of_receiver).index_select(0, species.index_select(0, receiver))
        ends = ends + linear(self.emb.weight, of_sender).index_select(0, species.index_select(0, sender))
        return silu(ends + linear(silu(self.lin_rbf(rbf)), of_distance, self.lin.bias))


class Interaction(nn.Module):
    """The interaction block of DimeNet++ (figure 1 of the 2020 paper).

    The sum over triplets, sum_k x_kj * (W2 W1 e_sbf(r_kj, theta_kji)), is taken apart: e_sbf is a function of the edge k -> j times a
    Legendre polynomial of the angle, for each order l. So the factor of an edge and of its message is made per edge, and the sum over k
    and l is one matrix product per central atom. Nothing as wide as a message is ever stored per triplet.
    """

    def __init__(self, o: DimeNetPlusPlusOptions) -> None:
        super().__init__()
        c, t, b = o.channels, o.triplet_channels, o.basis_channels
        self.lin_rbf1 = glorot_linear(o.radial, b, bias=False)
        self.lin_rbf2 = glorot_linear(b, c, bias=False)
        self.lin_sbf1 = glorot_linear(o.spherical * o.radial, b, bias=False)
        self.lin_sbf2 = glorot_linear(b, t, bias=False)
        self.lin_kj = glorot_linear(c, c)
        self.lin_ji = glorot_linear(c, c)
        self.lin_down = glorot_linear(c, t, bias=False)
        self.lin_up = glorot_linear(t, c, bias=False)
        self.before_skip = nn.Sequential(*[Residual(c) for _ in range(o.before_skip)])
        self.lin = glorot_linear(c, c)
        self.after_skip = nn.Sequential(*[Residual(c) for _ in range(o.after_skip)])

    def forward(self, x: Tensor, rbf: Tensor, sbf: Tensor, angular: list[Tensor], triplets: Triplets) -> Tensor:
        """Return new messages [E, C] from messages, rbf [E, R] and what `DimeNetPlusPlus` says of sbf and angular."""
        x_kj = silu(self.lin_kj(x)) * linear(rbf, self.lin_rbf2.weight @ self.lin_rbf1.weight)
        x_kj = silu(self.lin_down(x_kj))
        x_kj = sum_triplets(x_kj.unsqueeze(1) * self.lin_sbf2(sbf), angular, triplets)
        h = silu(self.lin_ji(x)) + silu(self.lin_up(x_kj))
        h = silu(self.lin(self.before_skip(h))) + x
        return self.after_skip(h)


class Output(nn.Module):
    """The output block of DimeNet++ but for its last linear map, which is in the head."""

    def __init__(self, o: DimeNetPlusPlusOptions) -> None:
        super().__init__()
        self.lin_rbf = glorot_linear(o.radial, o.channels, bias=False)
        self.lin_up = glorot_linear(o.channels, o.output_channels, bias=False)
        self.lins = nn.ModuleList([glorot_linear(o.output_channels, o.output_channels) for _ in range(o.output_layers)])

    def forward(self, x: Tensor, rbf: Tensor, receiver: Tensor, num_atoms: int) -> Tensor:
        """Return features of atoms, [N, output_channels]."""
        weighted = self.lin_rbf(rbf) * x
        h = self.lin_up(weighted.new_zeros(num_atoms, x.shape[1]).index_add(0, receiver, weighted))
        for layer in self.lins:
            h = silu(layer(h))
        return h


class DimeNetPlusPlus(Representation):
    """Messages on edges, refined by their distances and angles; the scalar features are the outputs of all blocks side by side."""

    compiled_edges = 2**15

    def __init__(self, options: DimeNetPlusPlusOptions, cutoff: float, num_elements: int) -> None:
        super().__init__()
        o = options
        self.cutoff, self.spherical, self.radial = cutoff, o.spherical, o.radial
        self.channels = (o.layers + 1) * o.output_channels
        self.activation = nn.SiLU()
        self.envelope = PolynomialEnvelope(o.envelope_exponent)
        self.frequencies = nn.Parameter(math.pi * torch.arange(1.0, o.radial + 1.0))
        self.bessel = SphericalBesselBasis(o.spherical, o.radial)
        self.embedding = Embedding(o.channels, o.radial, num_elements)
        self.interactions = nn.ModuleList([Interaction(o) for _ in range(o.layers)])
        self.outputs = nn.ModuleList([Output(o) for _ in range(o.layers + 1)])

    def energy_head(self) -> nn.Module:
        """Return the sum of one bias-free linear map per block.

        These weights are not zero at first, as published for energies, but those published for the other properties.
        """
        return BlockReadout(self.channels)

    def arrange(self, edge_index: Tensor, vectors: Tensor, num_atoms: int) -> tuple[Tensor, ...]:
        """Return the only block of triplets, and the positions of edges and of their reverses in it, [E/2] each."""
        triplets = make_triplets(edge_index, vectors, num_atoms, one_block=True)
        block = triplets.blocks[0]
        return block.incoming, block.outgoing, block.exists, *triplets.position.chunk(2)

    def forward(self, species: Tensor, edge_index: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return scalars [N, (layers + 1) * output_channels]; DimeNet++ has no vectors."""
        sender, receiver = edge_index[0], edge_index[1]
        n = species.shape[0]
        r = torch.sqrt(vectors.square().sum(dim=1))
        x = r / self.cutoff
        envelope = self.envelope(x).unsqueeze(1)
        rbf = torch.sin(x.unsqueeze(1) * self.frequencies) * envelope
        if (given := arrangement()) is None:
            triplets = make_triplets(edge_index, vectors, n)
        else:
            incoming, outgoing, exists, *position = given.own
            triplets = Triplets([TripletBlock(incoming, outgoing, exists, in_order=False)], torch.cat(position))
        angular = [angular_part(block, vectors / r.unsqueeze(1), self.spherical) for block in triplets.blocks]
        sbf = self._first_sbf_maps(self.bessel(x) * envelope)
        messages = self.embedding(species, rbf, sender, receiver)
        features = [self.outputs[0](messages, rbf, receiver, n)]
        for k, interaction in enumerate(self.interactions):
            messages = interaction(messages, rbf, sbf[k], angular, triplets)
            features.append(self.outputs[k + 1](messages, rbf, receiver, n))
        return torch.cat(features, dim=1), None

    def _first_sbf_maps(self, basis: Tensor) -> Tensor:
        """The maps ``lin_sbf1`` of all blocks, before the sum over orders l: [E, L * R] to [layers, E, L, basis_channels]."""
        first = torch.stack([block.lin_sbf1.weight for block in self.interactions])  # type: ignore[union-attr, misc]
        layers, b, _ = first.shape
        maps = first.view(layers * b, self.spherical, self.radial).permute(1, 2, 0)
        of_orders = torch.bmm(basis.view(-1, self.spherical, self.radial).transpose(0, 1), maps)
        return of_orders.view(self.spherical, -1, layers, b).permute(2, 1, 0, 3).contiguous()


def angular_part(block: TripletBlock, directions: Tensor, orders: int) -> Tensor:
    """Return Y_l0 of the angle between k -> j and j -> i, zero where there is no triplet, [A, K, K * orders].

    Rows are outgoing edges; columns are incoming edges and, fastest, orders.
    """
    outgoing, incoming = directions[block.outgoing], directions[block.incoming]
    cosines = torch.bmm(outgoing, incoming.transpose(1, 2))
    return legendre(cosines, orders, first=block.exists.to(cosines.dtype)).flatten(2)


def sum_triplets(values: Tensor, angular: list[Tensor], triplets: Triplets) -> Tensor:
    """Return for every edge j -> i the sum over k and l of the values of the edge k -> j times Y_l0(theta), [E, T].

    Args:
        values: [E, L, T].
        angular: of `angular_part`, per block.
    """
    channels = values.shape[2]
    sums = []
    for block, part in zip(triplets.blocks, angular, strict=True):
        atoms = block.incoming.shape[0]
        chosen = values if block.in_order else values.index_select(0, block.incoming.flatten())
        sums.append(torch.bmm(part, chosen.view(atoms, -1, channels)).view(-1, channels))
    if not sums:
        return values.new_zeros(0, channels)
    return (sums[0] if len(sums) == 1 else torch.cat(sums)).index_select(0, triplets.position)
