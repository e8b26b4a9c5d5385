"""The tensor product of features with spherical harmonics on edges: the convolution of tensor field networks."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn

from simkit.equivariant.constant import ExactConstant
from simkit.equivariant.layout import parse_irreps
from simkit.errors import ConfigError
from simkit.kernels.tracing import arrangement


class Path(NamedTuple):
    """One way of coupling: the input irrep and Y_degree to the output irrep, counted from 0 in their lists."""

    input: int
    degree: int
    output: int


class EdgeTensorProduct(nn.Module):
    """Messages m_e = w_e * (x_sender (x) Y_e), channel by channel, and their sums at the receivers.

    For each path (l_in, l, l_out), channel c and component m of the output:

        m_e[m, path, c] = w_e[path, c] sqrt(2 l_out + 1) sum_jk C[j, k, m] Y_e[l, k] x[l_in, j, c]

    with e3nn's Wigner 3j symbols C, which is e3nn's "uvu" product with weights per edge and "component" normalisation. The products of
    C and Y do not depend on channels. They are made once per edge (`coupling`), by all layers that share input and output irreps, and
    multiply the features of the sender as matrices.

    Args:
        irreps_in: of the features, multiplicity 1.
        lmax: the largest degree of the spherical harmonics.
        irreps_out: what to keep of the product; one irrep each, all of which must be reachable.

    Attributes:
        paths: the paths, in the order of the weights: by output, input and degree.
        irreps_mid: of the result; the multiplicity is the number of paths to an irrep.
        key: equal for products of one network that have the same `coupling`.

    Raises:
        ConfigError: if no path leads to one of ``irreps_out``.
    """

    computed: Tensor
    order: Tensor

    def __init__(self, irreps_in: Any, lmax: int, irreps_out: Any) -> None:
        super().__init__()
        self.irreps_in = parse_irreps(irreps_in, uniform=True)
        self.irreps_out = parse_irreps(irreps_out, uniform=True)
        self.lmax = lmax
        self.key = (str(self.irreps_in), str(self.irreps_out))
        self.paths = _find_paths(self.irreps_in, lmax, self.irreps_out)
        counts = [sum(path.output == k for path in self.paths) for k in range(len(self.irreps_out))]
        if 0 in counts:
            missing = self.irreps_out[counts.index(0)].ir
            raise ConfigError(
                f"{missing} is not in the product of {self.irreps_in} with Y up to l = {lmax}; leave it out"
            )
        self.irreps_mid = o3.Irreps([(count, ir) for count, (_, ir) in zip(counts, self.irreps_out, strict=True)])
        self._build_constants()

    def _build_constants(self) -> None:
        """Rows of the result are (output, component, path). They are computed input by input, and put in order afterwards."""
        rows = [
            (component, index)
            for output, (_, ir) in enumerate(self.irreps_out)
            for component in range(ir.dim)
            for index, path in enumerate(self.paths)
            if path.output == output
        ]
        order: list[int] = []
        matrices, self._shapes = [], []
        for k, (_, ir) in enumerate(self.irreps_in):
            mine = [row for row, (_, index) in enumerate(rows) if self.paths[index].input == k]
            if not mine:
                self._shapes.append((0, ir.dim))
                continue
            table = [self._coefficients(*rows[row]) for row in mine]
            matrices.append(torch.stack(table, dim=1).flatten(1))
            self._shapes.append((len(mine), ir.dim))
            paths = torch.tensor([rows[row][1] for row in mine])
            self.register_buffer(f"path_of_row_{k}", paths, persistent=False)
            order += mine
        self.matrix = ExactConstant(torch.cat(matrices, dim=1))
        self._in_order = order == list(range(len(order)))
        self.register_buffer("computed", torch.tensor(order), persistent=False)
        self.register_buffer("order", self.computed.argsort(), persistent=False)

    def _coefficients(self, component: int, index: int) -> Tensor:
        """Return what one row of the result takes from Y and from the input irrep, [(lmax + 1)^2, 2 l_in + 1]."""
        path = self.paths[index]
        source, target = self.irreps_in[path.input].ir.l, self.irreps_out[path.output].ir.l
        full = torch.zeros((self.lmax + 1) ** 2, 2 * source + 1, dtype=torch.float64)
        symbols = o3.wigner_3j(source, path.degree, target, dtype=torch.float64)[:, :, component]
        full[path.degree**2 : (path.degree + 1) ** 2] = symbols.t() * math.sqrt(2 * target + 1)
        return full

    def coupling(self, harmonics: Tensor) -> Tensor:
        """Return the matrices of all edges, one per input irrep side by side, from Y [E, (lmax + 1)^2]."""
        return harmonics @ self.matrix.value

    def _products(self, x: Tensor, coupling: Tensor, weights: Tensor, sender: Tensor) -> list[Tensor]:
        edges, channels = sender.shape[0], x.shape[2]
        # One split, not several slices: the backward pass of each slice would fill a tensor of the full size with zeros.
        inputs = x.index_select(0, sender).split([dim for _, dim in self._shapes], dim=1)
        matrices = coupling.split([count * dim for count, dim in self._shapes], dim=1)
        products = []
        for k, (count, dim) in enumerate(self._shapes):
            if count:
                product = torch.bmm(matrices[k].view(edges, count, dim), inputs[k])
                weight = self._weight_of_rows(weights, k)
                if weight.shape[0] != edges:
                    product = product.view(2, -1, count, channels)
                products.append((product * weight).view(edges, count, channels))
        return products

    def _weight_of_rows(self, weights: Tensor, k: int) -> Tensor:
        """Return the weight of each row that is computed from input k."""
        if arrangement() is None:
            return weights.index_select(1, getattr(self, f"path_of_row_{k}"))
        # The same; a compiler makes plain sums of its derivative.
        groups = [(pair, len(list(own))) for pair, own in groupby(self.paths, lambda path: (path.output, path.input))]
        parts = zip(groups, weights.split([count for _, count in groups], dim=1), strict=True)
        own = [part.repeat(1, self.irreps_out[o].ir.dim, 1) for ((o, source), _), part in parts if source == k]
        return own[0] if len(own) == 1 else torch.cat(own, dim=1)

    def messages(self, x: Tensor, coupling: Tensor, weights: Tensor, sender: Tensor) -> Tensor:
        """Return the message of each edge, [E, irreps_mid.dim, C], its rows in the order in which they are computed.

        `arrange` puts them in the order of ``irreps_mid``, once they are summed. For the arguments see `forward`.
        """
        return torch.cat(self._products(x, coupling, weights, sender), dim=1)

    def arrange(self, x: Tensor) -> Tensor:
        """Put rows, as `messages` has them, in the order of ``irreps_mid``; [N, irreps_mid.dim, C] both."""
        return x if self._in_order else x.index_select(1, self.order)

    def disarrange(self, x: Tensor) -> Tensor:
        """Undo `arrange`."""
        return x if self._in_order else x.index_select(1, self.computed)

    def forward(self, x: Tensor, coupling: Tensor, weights: Tensor, sender: Tensor, receiver: Tensor) -> Tensor:
        """Return the sums over neighbors, [N, irreps_mid.dim, C].

        Args:
            x: [N, irreps_in.dim, C].
            coupling: what `coupling` returns.
            weights: [E, paths, C]; or [E/2, paths, C] if edge k + E/2 is the reverse of edge k and has the same weights.
            sender, receiver: [E] int64.
        """
        sums = [
            x.new_zeros(x.shape[0], product.shape[1], x.shape[2]).index_add(0, receiver, product)
            for product in self._products(x, coupling, weights, sender)
        ]
        return self.arrange(sums[0] if len(sums) == 1 else torch.cat(sums, dim=1))


def shared_couplings(products: Sequence[EdgeTensorProduct], harmonics: Tensor) -> list[Tensor]:
    """Return `EdgeTensorProduct.coupling` of each product, made once for all that couple the same irreps."""
    known: dict[tuple[str, str], Tensor] = {}
    for product in products:
        if product.key not in known:
            known[product.key] = product.coupling(harmonics)
    return [known[product.key] for product in products]


def _find_paths(irreps_in: o3.Irreps, lmax: int, irreps_out: o3.Irreps) -> list[Path]:
    return [
        Path(source, degree, target)
        for target, (_, out) in enumerate(irreps_out)
        for source, (_, ir) in enumerate(irreps_in)
        for degree in range(lmax + 1)
        if ir.p * (-1) ** degree == out.p and abs(ir.l - degree) <= out.l <= ir.l + degree
    ]
