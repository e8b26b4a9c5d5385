"""Linear maps of equivariant features, and the networks that make radial weights.

Weights are drawn from N(0, 1) and divided by the square root of the fan-in on use. For inputs of unit variance this gives outputs of
unit variance, as the usual initialisation would; but it lets one learning rate fit layers of any width, and the published ones of e3nn's
models (0.01 for NequIP and MACE) were found for it.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from simkit.equivariant.layout import parse_irreps
from simkit.equivariant.nonlinear import unit_variance
from simkit.heads import Features
from simkit.kernels.tracing import arrangement


def scaled_product(x: Tensor, weight: Tensor, scale: float) -> Tensor:
    """Return ``scale * x @ weight`` for matrices, without a pass of its own for the scale."""
    return torch.addmm(x.new_zeros(()), x, weight, beta=0.0, alpha=scale)


class IrrepsLinear(nn.Module):
    """Mixes multiplicities and channels of each irrep: [N, irreps_in.dim, C_in] -> [N, irreps_out.dim, C_out]. No bias.

    Irreps that the output lacks are dropped, and those that the input lacks come out as zero.

    Args:
        irreps_in, irreps_out: each irrep at one place, with any multiplicity.
        channels_in, channels_out: per multiplicity.
    """

    def __init__(self, irreps_in: Any, channels_in: int, irreps_out: Any, channels_out: int) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = parse_irreps(irreps_in), parse_irreps(irreps_out)
        self.channels_out = channels_out
        self._sizes = [mul * ir.dim for mul, ir in self.irreps_in]
        places = {ir: k for k, (_, ir) in enumerate(self.irreps_in)}
        self._blocks = [(places.get(ir), ir.dim, mul) for mul, ir in self.irreps_out]
        self.weights = nn.ParameterList(
            [
                nn.Parameter(torch.randn(self.irreps_in[place].mul * channels_in, mul * channels_out))
                for place, _, mul in self._blocks
                if place is not None
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map features."""
        n = x.shape[0]
        inputs, parts, weights = x.split(self._sizes, dim=1), [], iter(self.weights)
        for place, dim, mul in self._blocks:
            if place is None:
                parts.append(x.new_zeros(n, dim * mul, self.channels_out))
                continue
            weight = next(weights)
            part = inputs[place].reshape(n * dim, weight.shape[0])
            part = scaled_product(part, weight, 1.0 / math.sqrt(weight.shape[0]))
            parts.append(part.view(n, dim * mul, self.channels_out))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class SpeciesLinear(nn.Module):
    """`IrrepsLinear` with weights of its own for each species.

    Args:
        irreps_in, irreps_out: each irrep at one place, with any multiplicity.
        channels_in, channels_out: per multiplicity.
    """

    def __init__(self, irreps_in: Any, channels_in: int, irreps_out: Any, channels_out: int, num_elements: int) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = parse_irreps(irreps_in), parse_irreps(irreps_out)
        self.channels_out = channels_out
        self._sizes = [mul * ir.dim for mul, ir in self.irreps_in]
        places = {ir: k for k, (_, ir) in enumerate(self.irreps_in)}
        self._blocks = [(places.get(ir), ir.dim, mul * channels_out) for mul, ir in self.irreps_out]
        self.weights = nn.ParameterList(
            [
                nn.Parameter(torch.randn(num_elements, self.irreps_in[place].mul * channels_in, out))
                for place, _, out in self._blocks
                if place is not None
            ]
        )

    def forward(self, x: Tensor, species: Tensor) -> Tensor:
        """Map features [N, irreps_in.dim, channels_in] of atoms of ``species`` [N] int64."""
        # A matrix product per species needs to know how many atoms it has, for which the host would wait on a GPU.
        if (given := arrangement()) is not None:
            members = zip(given.species, given.members, strict=True)
            done = [self._map(x.index_select(0, own), [weight[k] for weight in self.weights]) for k, own in members]
            return (done[0] if len(done) == 1 else torch.cat(done)).index_select(0, given.place)
        if x.device.type != "cpu":
            return self._map(x, [weight.index_select(0, species) for weight in self.weights])
        sizes = species.bincount().tolist()
        if max(sizes) == len(species):
            return self._map(x, [weight[len(sizes) - 1] for weight in self.weights])
        order = species.argsort()
        groups = zip(x.index_select(0, order).split(sizes), *(weight.unbind() for weight in self.weights), strict=False)
        parts = [self._map(group, weights) for group, *weights in groups if len(group)]
        return torch.cat(parts).index_select(0, order.argsort())

    def _map(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Map with one weight per irrep, [channels_in, out] for all atoms or [N, channels_in, out] for each."""
        n = x.shape[0]
        inputs, parts, remaining = x.split(self._sizes, dim=1), [], iter(weights)
        for place, dim, out in self._blocks:
            if place is None:
                parts.append(x.new_zeros(n, dim * out // self.channels_out, self.channels_out))
                continue
            weight = next(remaining)
            part = torch.matmul(inputs[place].reshape(n, dim, -1) * (1.0 / math.sqrt(weight.shape[-2])), weight)
            parts.append(part.view(n, -1, self.channels_out))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class RadialMLP(nn.Module):
    """A perceptron from radial basis functions [E, basis] to the weights of a tensor product, [E, paths, C].

    It has no biases: its output vanishes with its input, as smoothly as the basis functions vanish at the cutoff.

    Args:
        basis: how many basis functions. hidden: width of the hidden layers. layers: how many of them.
    """

    def __init__(self, basis: int, hidden: int, layers: int, paths: int, channels: int) -> None:
        super().__init__()
        widths = [basis, *[hidden] * layers, paths * channels]
        self.paths, self.channels = paths, channels
        self.weights = nn.ParameterList(
            [nn.Parameter(torch.randn(a, b)) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        )
        self._gain = unit_variance(torch.nn.functional.silu)

    def forward(self, basis: Tensor) -> Tensor:
        """Map basis functions that vanish at the cutoff to weights."""
        return self.last(self.hidden(basis))

    def hidden(self, basis: Tensor) -> Tensor:
        """Return the last hidden layer, [E, hidden]."""
        x, gain = basis, 1.0
        for weight in self.weights[:-1]:
            x = nn.functional.silu(scaled_product(x, weight, gain / math.sqrt(weight.shape[0])))
            gain = self._gain
        return x

    def last(self, hidden: Tensor) -> Tensor:
        """Map the last hidden layer to weights."""
        weight, gain = self.weights[-1], self._gain if len(self.weights) > 1 else 1.0
        return scaled_product(hidden, weight, gain / math.sqrt(weight.shape[0])).view(-1, self.paths, self.channels)


class LinearReadout(nn.Module):
    """A linear map without bias of the scalar features [N, C] to a value per atom, [N]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, 1))

    def forward(self, features: Features) -> Tensor:
        """Return a value per atom, [N]."""
        scale = 1.0 / math.sqrt(self.weight.shape[0])
        return scaled_product(features.scalars, self.weight, scale).squeeze(1)
