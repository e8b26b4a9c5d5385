"""Convolutional networks for fields on a square periodic grid."""

from __future__ import annotations

import math

from pydantic import Field, field_validator
from torch import Tensor, nn

from simkit.errors import ConfigError
from simkit.surrogates.models.network import NetworkOptions, activation


class ConvolutionOptions(NetworkOptions):
    """Options of networks that may be convolutions; ``width`` and ``layers`` are those of their hidden layers too."""

    kernel: int = Field(3, ge=1, description="points along each side of a convolution's kernel, an odd number")

    @field_validator("kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"the kernel must have an odd number of points; found {value}")
        return value


def grid_size(fields: int, dof: int) -> int:
    """Return n, the points along each side of the grid, where fields * n^2 = dof.

    Raises:
        ConfigError: if there is no such grid.
    """
    size = math.isqrt(dof // fields)
    if fields * size * size != dof:
        raise ConfigError(f"{fields} fields on a square grid have {fields} n^2 values; found {dof}")
    return size


class PeriodicConvolution(nn.Module):
    """Fields [..., F n^2], one after the other and each row by row, from such fields; shifts of the grid shift the output.

    Args:
        fields: F.
        dof: F n^2.
    """

    def __init__(self, fields: int, dof: int, options: ConvolutionOptions) -> None:
        super().__init__()
        size = grid_size(fields, dof)
        self.shape = (fields, size, size)
        if options.kernel // 2 > size:
            raise ConfigError(f"the kernel must not be larger than the grid, {size}; found {options.kernel}")
        sizes = [fields, *[options.width] * options.layers, fields]
        layers: list[nn.Module] = []
        for before, after in zip(sizes, sizes[1:], strict=False):
            layers += [activation(options)] if layers else []
            layers.append(
                nn.Conv2d(before, after, options.kernel, padding=options.kernel // 2, padding_mode="circular")
            )
        self.layers = nn.Sequential(*layers)

    def forward(self, q: Tensor) -> Tensor:
        """Return [..., F n^2]."""
        found: Tensor = self.layers(q.reshape(-1, *self.shape))
        return found.reshape(q.shape)
