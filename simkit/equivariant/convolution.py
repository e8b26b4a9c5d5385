"""Sums over neighbors of tensor products, arranged as matrix products that never hold a message per edge and component."""

import math
from typing import Any, NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn

from simkit.equivariant.constant import ExactConstant
from simkit.equivariant.harmonics import EdgeGeometry
from simkit.equivariant.linear import RadialMLP
from simkit.equivariant.tensor_product import EdgeTensorProduct
from simkit.kernels.tracing import arrangement

ROW = 8  # slots in a row where atoms differ in their number of neighbors
UNIFORM = 1.25  # slots per edge, with one row per atom, that are still fewer than rows of eight would need
BLOCK = 2**20  # radial weights made at once on a CPU: 4 MB, which stay in its cache


class Neighborhoods(NamedTuple):
    """Edges in ``R`` rows of ``width`` slots. A row belongs to one receiver; an atom has as many rows as it needs.

    Attributes:
        edges: E.
        width: slots per row.
        edge: [R * width] int64, the edge in each slot; E where the slot is empty.
        sender: [R * width] int64, of that edge; 0 where the slot is empty.
        receiver: [R] int64; 0 for rows that no atom needs.
    """

    edges: int
    width: int
    edge: Tensor
    sender: Tensor
    receiver: Tensor

    def spread(self, values: Tensor) -> Tensor:
        """Put values of edges into their slots and zeros into empty ones: [E, K] -> [R * width, K].

        With [E/2, K], edge k + E/2 has the value of edge k.
        """
        count, place = values.shape[0], self.edge
        if count != self.edges:
            place = torch.where(place < self.edges, place % count, count)
        return torch.cat([values, values.new_zeros(1, values.shape[1])]).index_select(0, place)


def neighborhoods(edges: EdgeGeometry, atoms: int, width: int | None = None) -> Neighborhoods:
    """Arrange edges, in any order, in rows for ``atoms`` atoms, of a given width or the one that suits them."""
    receiver, count = edges.receiver, edges.receiver.shape[0]
    if (given := arrangement()) is not None:
        slots = given.edge.flatten(), given.sender.flatten()
        return Neighborhoods(count, given.edge.shape[1], *slots, given.receiver)
    counts = receiver.new_zeros(atoms).index_add(0, receiver, torch.ones_like(receiver))
    if width is None:
        width = ROW
        if receiver.device.type == "cpu":
            most = int(counts.max())
            if most * atoms <= UNIFORM * count:
                width = most
        width = max(width, 1)
    rows_of_atom = (counts + (width - 1)).div(width, rounding_mode="floor")
    # On a GPU, where reading their number would make the host wait, there are as many rows as could be needed.
    rows = int(rows_of_atom.sum()) if receiver.device.type == "cpu" else count // width + atoms
    order = receiver.argsort(stable=True)
    receiver = receiver.index_select(0, order)
    first_edge = (counts.cumsum(0) - counts).index_select(0, receiver)
    first_row = (rows_of_atom.cumsum(0) - rows_of_atom).index_select(0, receiver)
    slot = first_row * width + torch.arange(count, device=receiver.device) - first_edge
    edge = receiver.new_full((rows * width,), count).scatter(0, slot, order)
    sender = receiver.new_zeros(rows * width).scatter(0, slot, edges.sender.index_select(0, order))
    row = slot.div(width, rounding_mode="floor")
    return Neighborhoods(count, width, edge, sender, receiver.new_zeros(rows).scatter(0, row, receiver))


class NeighborConvolution(nn.Module):
    """The sums of `EdgeTensorProduct` together with the network that makes its weights.

    The sum over the neighbors j of atom i, for one path and channel c, is a product of matrices:

        sum_j sum_m [sqrt(2 l_out + 1) sum_k C[m, k, m_out] Y_j[k]] [w_j[c] x_j[m, c]]

    Here only the second factor, as large as the weights, is made per edge and channel, and not the messages with all their components.
    On a CPU a block of rows is taken at a time, from the last layer of the radial network on, so that it stays in the cache.

    Args:
        irreps_in, lmax, irreps_out: see `EdgeTensorProduct`.
        channels: C.
        basis, hidden, layers: of the radial network, see `RadialMLP`.

    Attributes:
        irreps_mid: of the result; the multiplicity is the number of paths to an irrep.
    """

    def __init__(
        self, irreps_in: Any, lmax: int, irreps_out: Any, channels: int, *, basis: int, hidden: int, layers: int
    ) -> None:
        super().__init__()
        product = EdgeTensorProduct(irreps_in, lmax, irreps_out)
        self.irreps_in, self.irreps_out, self.irreps_mid = product.irreps_in, product.irreps_out, product.irreps_mid
        self.radial = RadialMLP(basis, hidden, layers, len(product.paths), channels)
        self.paths = product.paths
        self._dims_in = [ir.dim for _, ir in self.irreps_in]
        self._dims = [(self.irreps_in[p.input].ir.dim, self.irreps_out[p.output].ir.dim) for p in self.paths]
        blocks = [self._coefficients(p.input, p.degree, p.output, (lmax + 1) ** 2) for p in self.paths]
        self.matrix = ExactConstant(torch.cat(blocks, dim=1))

    def _coefficients(self, source: int, degree: int, target: int, harmonics: int) -> Tensor:
        """Return what the matrix of a path takes from Y, [(lmax + 1)^2, (2 l_in + 1) (2 l_out + 1)]."""
        l_in, l_out = self.irreps_in[source].ir.l, self.irreps_out[target].ir.l
        symbols = o3.wigner_3j(l_in, degree, l_out, dtype=torch.float64).transpose(0, 1).flatten(1)
        full = torch.zeros(harmonics, symbols.shape[1], dtype=torch.float64)
        full[degree**2 : (degree + 1) ** 2] = symbols * math.sqrt(2 * l_out + 1)
        return full

    def forward(self, x: Tensor, harmonics: Tensor, basis: Tensor, near: Neighborhoods) -> Tensor:
        """Return the sums over neighbors, [N, irreps_mid.dim, C].

        Args:
            x: [N, irreps_in.dim, C].
            harmonics: of the edges in the slots of ``near``, [R * width, (lmax + 1)^2].
            basis: radial basis functions [E, basis], or [E/2, basis] if edge k + E/2 is the reverse of edge k.
        """
        hidden = near.spread(self.radial.hidden(basis))
        slots, width = hidden.shape[0], near.width
        if slots == 0:
            return x.new_zeros(x.shape[0], self.irreps_mid.dim, x.shape[2])
        size = slots
        if x.device.type == "cpu" and arrangement() is None:
            size = width * max(1, BLOCK // (width * len(self.paths) * x.shape[2]))
        features = x.index_select(0, near.sender).split(size)
        blocks = zip(features, harmonics.split(size), hidden.split(size), strict=True)
        sums = torch.cat([self._block(senders, y, weights, width) for senders, y, weights in blocks])
        sums = x.new_zeros(x.shape[0], sums.shape[1]).index_add(0, near.receiver, sums)
        return sums.view(x.shape[0], -1, x.shape[2])

    def _block(self, x: Tensor, harmonics: Tensor, hidden: Tensor, width: int) -> Tensor:
        """Return the sums of a block of rows, [rows, irreps_mid.dim * C], from the features of senders [rows * width, dim, C]."""
        rows, channels = x.shape[0] // width, x.shape[2]
        inputs = x.split(self._dims_in, dim=1)
        matrices = (harmonics @ self.matrix.value).split([a * b for a, b in self._dims], dim=1)
        sums: list[list[Tensor]] = [[] for _ in self.irreps_out]
        weights = self.radial.last(hidden).unbind(1)
        for path, (dim_in, dim_out), matrix, weight in zip(self.paths, self._dims, matrices, weights, strict=True):
            weighted = (inputs[path.input] * weight.unsqueeze(1)).view(rows, width * dim_in, channels)
            left = matrix.reshape(rows, width * dim_in, dim_out).transpose(1, 2)
            sums[path.output].append(torch.bmm(left, weighted))
        # Rows of an irrep are ordered by component first: channels of all paths lie side by side.
        return torch.cat([torch.cat(parts, dim=2).flatten(1) for parts in sums], dim=1)
