"""The convolutional networks between images and latent vectors."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

SMALLEST = 4
"""Pixels along a side of the smallest feature maps."""


def halvings(size: int) -> int:
    """Return how often a side is halved, from ``size`` to `SMALLEST` pixels."""
    return (size // SMALLEST).bit_length() - 1


class ImageEncoder(nn.Sequential):
    """Images [..., C, size, size] to features [..., outputs]: convolutions that halve the size, and a linear layer."""

    def __init__(self, channels: int, size: int, width: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for level in range(halvings(size)):
            layers += [nn.Conv2d(channels if level == 0 else width, width, 3, stride=2, padding=1), nn.SiLU()]
        super().__init__(*layers, nn.Flatten(), nn.Linear(width * SMALLEST**2, outputs))


class ImageDecoder(nn.Module):
    """Vectors [..., inputs] to images [..., C, size, size]: a linear layer, and convolutions that double the size.

    The last one works at half the size and gives the four pixels of each place as channels: full size is where the time would go.
    """

    def __init__(self, inputs: int, channels: int, size: int, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(inputs, width * SMALLEST**2), nn.SiLU())
        self.maps = (width, SMALLEST, SMALLEST)
        layers: list[nn.Module] = []
        for level in range(halvings(size) - 1):
            narrower = width if level == 0 else max(8, width // 2)
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, narrower, 3, padding=1), nn.SiLU()]
            width = narrower
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 4 * channels, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the images; not bounded, as a bound would stop the learning where all is black."""
        maps = self.first(vectors.reshape(-1, vectors.shape[-1])).unflatten(-1, self.maps)
        return cast(Tensor, self.layers(maps)).unflatten(0, vectors.shape[:-1])
