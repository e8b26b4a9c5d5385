"""The networks inside the models: perceptrons, and coordinates that are angles."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from simkit.config import Options
from simkit.errors import ConfigError

Activation = Literal["tanh", "softplus", "silu"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "softplus": nn.Softplus, "silu": nn.SiLU}


class NetworkOptions(Options):
    """Options that all models share."""

    width: int = Field(128, ge=1, description="units of a hidden layer")
    layers: int = Field(2, ge=1, description="hidden layers")
    activation: Activation = Field("tanh", description="smooth, as the motion is a derivative of the network")
    skip: bool = Field(
        False, description="add a linear map of what the networks see to each; they start as that map alone, zero"
    )
    angles: tuple[int, ...] = Field((), description="coordinates that are angles, from 0: the networks see cos and sin")


def activation(options: NetworkOptions) -> nn.Module:
    """Return a layer that applies the activation."""
    return _ACTIVATIONS[options.activation]()


def _slope(activation: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The derivative of an activation y(x)."""
    if isinstance(activation, nn.Tanh):
        return 1 - y.square()
    sigmoid = x.sigmoid()
    return sigmoid if isinstance(activation, nn.Softplus) else sigmoid + y * (1 - sigmoid)


def perceptron(inputs: int, outputs: int, options: NetworkOptions, *, bias: bool = True) -> nn.Sequential:
    """Return a multilayer perceptron with orthogonal initial weights, as in Greydanus et al. (2019).

    Args:
        bias: of the last layer; useless where only derivatives of the output count.
    """
    sizes = [inputs, *[options.width] * options.layers, outputs]
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(zip(sizes, sizes[1:], strict=False)):
        last = index == options.layers
        linear = nn.Linear(before, after, bias=bias or not last)
        nn.init.orthogonal_(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
        layers += [linear] if last else [linear, activation(options)]
    return nn.Sequential(*layers)


class CoordinateFeatures(nn.Module):
    """Coordinates as the networks see them: cos and sin of angles after the others, as in SymODEN.

    Args:
        dof: D.
        angles: which of the coordinates are angles.

    Attributes:
        size: number of features.
    """

    straight: Tensor
    angular: Tensor

    def __init__(self, dof: int, angles: tuple[int, ...]) -> None:
        super().__init__()
        if len(set(angles)) != len(angles) or not all(0 <= angle < dof for angle in angles):
            raise ConfigError(f"angles must be different coordinates from 0 to {dof - 1}; found {list(angles)}")
        others = [index for index in range(dof) if index not in angles]
        self.register_buffer("straight", torch.tensor(others, dtype=torch.int64), persistent=False)
        self.register_buffer("angular", torch.tensor(sorted(angles), dtype=torch.int64), persistent=False)
        self.size = dof + len(angles)

    def forward(self, q: Tensor) -> Tensor:
        """Return the features [..., size] of coordinates [..., D]."""
        if self.angular.numel() == 0:
            return q
        angles = q.index_select(-1, self.angular)
        return torch.cat([q.index_select(-1, self.straight), angles.cos(), angles.sin()], dim=-1)

    def along(self, q: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features and their derivatives in time, [..., size] each, where q' = rate."""
        if self.angular.numel() == 0:
            return q, rate
        (straight, turning), (shift, turn) = (
            (x.index_select(-1, self.straight), x.index_select(-1, self.angular)) for x in (q, rate)
        )
        cosine, sine = turning.cos(), turning.sin()
        return torch.cat([straight, cosine, sine], dim=-1), torch.cat([shift, -sine * turn, cosine * turn], dim=-1)


class CoordinateNetwork(nn.Module):
    """A vector of outputs as a function of coordinates, and of more inputs if wanted.

    Args:
        more: number of further inputs, which are never angles.

    Attributes:
        skip: the linear map that is added to the perceptron, or None.
    """

    def __init__(self, dof: int, outputs: int, options: NetworkOptions, *, more: int = 0, bias: bool = True) -> None:
        super().__init__()
        self.features = CoordinateFeatures(dof, options.angles)
        inputs = self.features.size + more
        self.layers = perceptron(inputs, outputs, options, bias=bias)
        self.skip = nn.Linear(inputs, outputs, bias=False) if options.skip else None
        if self.skip is not None:
            nn.init.zeros_(self.skip.weight)
            nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, q: Tensor, *more: Tensor) -> Tensor:
        """Return [..., outputs]."""
        seen = torch.cat([self.features(q), *more], dim=-1)
        return self.layers(seen) if self.skip is None else self.layers(seen) + self.skip(seen)

    def along(self, q: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs and their derivatives in time, [..., outputs] each, where q' = rate; for networks of coordinates alone."""
        value, moved = seen, shift = self.features.along(q, rate)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                value, moved = layer(value), nn.functional.linear(moved, layer.weight)
            else:
                following = layer(value)
                value, moved = following, moved * _slope(layer, value, following)
        return (value, moved) if self.skip is None else (value + self.skip(seen), moved + self.skip(shift))


class ScalarNetwork(nn.Module):
    """A potential energy V(q), or an energy of coordinates and more inputs; its zero is free."""

    def __init__(self, dof: int, options: NetworkOptions, *, more: int = 0) -> None:
        super().__init__()
        self.network = CoordinateNetwork(dof, 1, options, more=more, bias=False)

    def forward(self, q: Tensor, *more: Tensor) -> Tensor:
        """Return [...]."""
        return self.network(q, *more).squeeze(-1)
