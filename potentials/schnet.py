"""SchNet: continuous-filter convolutions.

Schuett et al., "SchNet: A continuous-filter convolutional neural network for modeling quantum interactions", NeurIPS 2017.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from simkit.config import Options
from simkit.fast.schnet import FusedSchNet
from simkit.fast.workspace import Workspace
from simkit.graph import one_direction
from simkit.kernels.activations import ShiftedSoftplus, shifted_softplus
from simkit.kernels.filter_bank import evaluate_filters, filter_bank
from simkit.kernels.filter_message import filter_message
from simkit.kernels.orders import Derivatives, wanted_derivatives
from simkit.kernels.slope_message import Pairs, convolve, convolve_backward, slope_message
from simkit.kernels.table_message import TablePairs, table_message
from simkit.potential import Representation
from simkit.radial import CutoffName, GaussianBasis, make_cutoff

KNOTS = 10
"""Of the tables of filters that training uses, for each width of the Gaussians. Filters then differ by 2e-7 of the largest, which is less
than float32 rounds them by, and their slopes by 1e-5; forces by 3e-5 of the largest."""


class SchNetOptions(Options):
    """Options of SchNet; the defaults are the published size.

    "cosine" is the cutoff function of the common implementations; the default is its neighbour with a continuous second derivative.
    """

    channels: int = Field(128, ge=2)
    layers: int = Field(6, ge=1)
    filters: int | None = Field(None, ge=1, description="width of the filters; the channels where not given")
    basis: int = Field(50, ge=2)
    cutoff_function: CutoffName = "polynomial"


class Interaction(nn.Module):
    """Figure 2 of the paper: x_i += W3 ssp(W2 sum_j (W1 x_j) * filter(r_ij))."""

    def __init__(self, channels: int, filters: int, basis: int) -> None:
        super().__init__()
        self.filter_net = nn.Sequential(nn.Linear(basis, filters), ShiftedSoftplus(), nn.Linear(filters, filters))
        self.dense_in = nn.Linear(channels, filters, bias=False)
        self.dense_out = nn.Sequential(nn.Linear(filters, channels), ShiftedSoftplus(), nn.Linear(channels, channels))

    def forward(self, x: Tensor, convolution: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the update of the features, [N, C]; ``convolution`` [N, F] -> [N, F] is the sum over the neighbors."""
        return self.dense_out(convolution(self.dense_in(x)))

    def dense_layers(self) -> tuple[Tensor, nn.Linear, nn.Linear]:
        """Return W1, and the layers that hold W2 and W3 with their biases."""
        return self.dense_in.weight, cast(nn.Linear, self.dense_out[0]), cast(nn.Linear, self.dense_out[2])


class SchNet(Representation):
    """Scalar features refined by continuous-filter convolutions."""

    def __init__(self, options: SchNetOptions, cutoff: float, num_elements: int) -> None:
        super().__init__()
        self.channels = options.channels
        self.activation = ShiftedSoftplus()
        self.embedding = nn.Embedding(num_elements, options.channels)
        self.basis = GaussianBasis(options.basis, cutoff)
        self.cutoff_function = make_cutoff(options.cutoff_function, cutoff)
        width = options.filters or options.channels
        self.interactions = nn.ModuleList(
            [Interaction(options.channels, width, options.basis) for _ in range(options.layers)]
        )

    def forward(self, species: Tensor, edge_index: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return scalars [N, C]; SchNet has no vectors."""
        # Filters depend on distances alone, and the filter network is most of the work: make each pair's filter once. On a GPU the
        # selection would make the host wait for the device, and the work is cheap.
        both = vectors.device.type == "cpu"
        if both:
            chosen = one_direction(edge_index, vectors)
            edge_index, vectors = edge_index.index_select(1, chosen), vectors.index_select(0, chosen)
        fused = both and vectors.requires_grad and vectors.dtype in (torch.float32, torch.float64)
        wanted = wanted_derivatives() if fused else Derivatives.ALL
        r = torch.sqrt(vectors.square().sum(dim=1)) if wanted == Derivatives.ALL else _Length.apply(vectors)
        if wanted == Derivatives.FORCES:
            return _Forces.apply(r, species, edge_index, self), None
        trains = both and torch.is_grad_enabled() and (wanted == Derivatives.TRAINING or not vectors.requires_grad)
        if trains and (knots := self._knots(r.detach())):
            convolutions = self._tabulated(r, edge_index, knots)
        else:
            plain = wanted == Derivatives.ALL
            convolutions = self._plain(r, edge_index, both) if plain else self._with_slopes(r, edge_index)
        x = self.embedding(species)
        for interaction, convolution in zip(self.interactions, convolutions, strict=True):
            x = x + interaction(x, convolution)
        return x, None

    def fused(self, cutoff: float, workspace: Workspace) -> FusedSchNet:
        """Return the representation without autograd."""
        return FusedSchNet(self, cutoff, workspace)

    def _plain(self, r: Tensor, edge_index: Tensor, both: bool) -> Iterator[Callable[[Tensor], Tensor]]:
        """The convolution of each layer, all derivatives of which are left to PyTorch."""
        networks, weights, biases = self._first_layers()
        hidden = networks[0][1](torch.addmm(biases, self.basis(r), weights))
        weight, (sender, receiver) = self.cutoff_function(r), edge_index.unbind()
        for network, h in zip(networks, hidden.unflatten(1, (len(networks), -1)).unbind(dim=1), strict=True):
            filters = network[2](h)
            yield partial(filter_message, filters=filters, weight=weight, sender=sender, receiver=receiver, both=both)

    def _with_slopes(self, r: Tensor, edge_index: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
        """The same convolutions by filters that carry their slopes; without second derivatives with respect to r."""
        constant, layers = r.detach(), len(self.interactions)
        filters, pairs = filter_bank(*self.bank(constant)), self.pairs(constant, edge_index)
        for w, slope in zip(filters[:layers], filters[layers:], strict=True):
            yield partial(slope_message, w=w, slope=slope, r=r, pairs=pairs)

    def _tabulated(self, r: Tensor, edge_index: Tensor, knots: range) -> Iterator[Callable[[Tensor], Tensor]]:
        """The same convolutions by filters that are made at the knots only, and interpolated between them."""
        constant, layers, step = r.detach(), len(self.interactions), self.basis.spacing / KNOTS
        filters = filter_bank(*self.bank(torch.arange(knots.start, knots.stop, dtype=r.dtype) * step))
        pairs = TablePairs(edge_index[0], edge_index[1], constant, self._cutoff_with_slope(constant), knots.start, step)
        for w, slope in zip(filters[:layers], filters[layers:], strict=True):
            yield partial(table_message, values=w, slopes=slope, r=r, pairs=pairs)

    def _knots(self, r: Tensor) -> range | None:
        """The knots of a table for these distances; None where it would not pay, or where its error would be seen."""
        if r.dtype != torch.float32 or len(r) < 2 * KNOTS:
            return None
        step = self.basis.spacing / KNOTS
        knots = range(int(r.min() / step), int(r.max() / step) + 2)
        return knots if 2 * len(knots) <= len(r) else None

    def bank(self, r: Tensor) -> tuple[Tensor, ...]:
        """Return the arguments of `simkit.kernels.filter_bank`."""
        networks, weights, biases = self._first_layers()
        second = [cast(nn.Linear, network[2]) for network in networks]
        w2, b2 = torch.stack([layer.weight for layer in second]), torch.stack([layer.bias for layer in second])
        return torch.cat(self.basis.with_slopes(r)), weights, biases, w2, b2

    def pairs(self, r: Tensor, edge_index: Tensor) -> Pairs:
        """Return the edges and their weights in the form that the kernels take."""
        return Pairs(edge_index[0], edge_index[1], self._cutoff_with_slope(r))

    def _cutoff_with_slope(self, r: Tensor) -> Tensor:
        """The cutoff function and its derivative, [2, E]."""
        return torch.stack([self.cutoff_function(r), self.cutoff_function.slope(r)])

    def _first_layers(self) -> tuple[list[nn.Sequential], Tensor, Tensor]:
        """The filter networks, and their first layers as one [K, L F] and its biases [L F]: all begin with the same basis."""
        networks = [cast(Interaction, interaction).filter_net for interaction in self.interactions]
        first = [cast(nn.Linear, network[0]) for network in networks]
        # Rows of the basis, not of the outputs: the other layout makes the gradient of the weights at half the speed.
        weights = torch.cat([layer.weight.t() for layer in first], dim=1)
        return networks, weights, torch.cat([layer.bias for layer in first])


class _Length(torch.autograd.Function):
    """The lengths [E] of vectors, whose directions are constants in the derivatives: there are no second ones."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        r = torch.linalg.vector_norm(vectors, dim=1)
        ctx.directions = vectors / r.unsqueeze(1)
        return r

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.unsqueeze(1) * ctx.directions


class _Forces(torch.autograd.Function):
    """The features as a function of the distances alone and for one backward pass, with no record of single operations.

    On small molecules such a record takes longer than the arithmetic.
    """

    @staticmethod
    def forward(ctx: Any, r: Tensor, species: Tensor, edge_index: Tensor, model: SchNet) -> Tensor:
        pairs = model.pairs(r, edge_index)
        filters, _ = evaluate_filters(*model.bank(r))
        x = model.embedding(species)
        kept = []
        for interaction, (w, slope) in zip(model.interactions, filters.unbind(), strict=True):
            w_in, hidden, out = cast(Interaction, interaction).dense_layers()
            y = torch.mm(x, w_in.t())
            z = torch.addmm(hidden.bias, convolve(y, w, pairs), hidden.weight.t())
            s = shifted_softplus(z, h := torch.empty_like(z))
            x = torch.addmm(x, h, out.weight.t()).add_(out.bias)
            kept.append((y, w, slope, s, w_in, hidden.weight, out.weight))
        ctx.kept, ctx.pairs = kept, pairs
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        slopes = []
        for y, w, slope, s, w_in, w_hidden, w_out in reversed(ctx.kept):
            total = torch.mm(torch.mm(g, w_out).mul_(s), w_hidden)
            dy, dr = convolve_backward(y, w, slope, ctx.pairs, total)
            g = torch.addmm(g, dy, w_in)
            slopes.append(dr)
        return torch.stack(slopes).sum(dim=0), None, None, None
