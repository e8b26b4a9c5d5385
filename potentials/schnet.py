"""SchNet: continuous-filter convolutions.

Schuett et al., "SchNet: A continuous-filter convolutional neural network for modeling quantum interactions", NeurIPS 2017.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from simkit.config import Options
from simkit.fast.schnet import FusedSchNet
from simkit.fast.workspace import Workspace
from simkit.graph import one_direction
from simkit.initialization import glorot_linear
from simkit.kernels.activations import ShiftedSoftplus
from simkit.kernels.filter_bank import evaluate_filters, filter_bank
from simkit.kernels.filter_message import filter_message
from simkit.kernels.force_training import features_for_forces
from simkit.kernels.orders import Derivatives, wanted_derivatives
from simkit.kernels.perceptron import layer_weights
from simkit.kernels.scalar_network import ScalarNetwork, Weights, scalar_network
from simkit.kernels.slope_message import Pairs, SlopeFilters
from simkit.kernels.table_message import TableFilters, TablePairs
from simkit.potential import Representation
from simkit.radial import CutoffName, GaussianBasis, make_cutoff

KNOTS = 10
"""Of the tables of filters that training uses, for each width of the Gaussians. Filters then differ by 2e-7 of the largest, which is less
than float32 rounds them by, and their slopes by 1e-5; forces by 3e-5 of the largest."""


class SchNetOptions(Options):
    """Options of SchNet; the defaults are the published size, but for the Gaussians: 20 learn more from few frames than 50 do.

    "cosine" is the cutoff function of the common implementations; the default is its neighbour with a continuous second derivative.
    """

    channels: int = Field(128, ge=2)
    layers: int = Field(6, ge=1)
    filters: int | None = Field(None, ge=1, description="width of the filters; the channels where not given")
    basis: int = Field(20, ge=2)
    cutoff_function: CutoffName = "polynomial"


class Interaction(nn.Module):
    """Figure 2 of the paper: x_i += W3 ssp(W2 sum_j (W1 x_j) * filter(r_ij))."""

    def __init__(self, channels: int, filters: int, basis: int) -> None:
        super().__init__()
        self.filter_net = nn.Sequential(
            glorot_linear(basis, filters), ShiftedSoftplus(), glorot_linear(filters, filters)
        )
        self.dense_in = glorot_linear(channels, filters, bias=False)
        self.dense_out = nn.Sequential(
            glorot_linear(filters, channels), ShiftedSoftplus(), glorot_linear(channels, channels)
        )

    def forward(self, x: Tensor, convolution: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the update of the features, [N, C]; ``convolution`` [N, F] -> [N, F] is the sum over the neighbors."""
        return self.dense_out(convolution(self.dense_in(x)))

    def weights(self) -> Weights:
        """Return W1, and W2 and W3 with their biases."""
        return Weights(self.dense_in.weight, layer_weights(self.dense_out))


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
        wanted = self._wanted(vectors)
        x, r = self.embedding(species), _lengths(vectors, wanted)
        if wanted == Derivatives.FORCES:
            with torch.no_grad():
                values, slopes = evaluate_filters(*self.bank(r.detach()))[0].unbind(1)
            layers = self._with_slopes(r.detach(), edge_index, values.unbind(), slopes.unbind())
            return features_for_forces(ScalarNetwork(self._weights(), layers), r, x)[0], None
        knots = self._knots(r.detach()) if wanted == Derivatives.TRAINING else None
        if knots:
            return scalar_network(r, x, self._weights(), self._tabulated(r.detach(), edge_index, knots)), None
        if wanted == Derivatives.TRAINING and r.requires_grad:
            bank, count = filter_bank(*self.bank(r.detach())), len(self.interactions)
            sloping = self._with_slopes(r.detach(), edge_index, bank[:count], bank[count:])
            return scalar_network(r, x, self._weights(), sloping), None
        for interaction, convolution in zip(self.interactions, self._plain(r, edge_index, both), strict=True):
            x = x + interaction(x, convolution)
        return x, None

    def _wanted(self, vectors: Tensor) -> Derivatives:
        """What may be asked of the kernels: on a GPU, everything."""
        if vectors.device.type != "cpu" or vectors.dtype not in (torch.float32, torch.float64):
            return Derivatives.ALL
        if vectors.requires_grad:
            return wanted_derivatives()
        return Derivatives.TRAINING if torch.is_grad_enabled() else Derivatives.ALL

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

    def _with_slopes(
        self, r: Tensor, edge_index: Tensor, values: Sequence[Tensor], slopes: Sequence[Tensor]
    ) -> list[SlopeFilters]:
        """The filters of each layer, with their slopes."""
        pairs = Pairs(edge_index[0], edge_index[1], self._cutoff_with_slope(r))
        return [SlopeFilters(*filters, pairs) for filters in zip(values, slopes, strict=True)]

    def _tabulated(self, r: Tensor, edge_index: Tensor, knots: range) -> list[TableFilters]:
        """The filters of each layer, made at the knots only."""
        layers, step = len(self.interactions), self.basis.spacing / KNOTS
        filters = filter_bank(*self.bank(torch.arange(knots.start, knots.stop, dtype=r.dtype) * step))
        pairs = TablePairs(edge_index[0], edge_index[1], r, self._cutoff_with_slope(r), knots.start, step)
        return [TableFilters(*parts, pairs) for parts in zip(filters[:layers], filters[layers:], strict=True)]

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

    def _weights(self) -> list[Weights]:
        return [cast(Interaction, interaction).weights() for interaction in self.interactions]

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


def _lengths(vectors: Tensor, wanted: Derivatives) -> Tensor:
    if wanted == Derivatives.ALL:
        return torch.sqrt(vectors.square().sum(dim=1))
    r: Tensor = _Length.apply(vectors)
    return r


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
