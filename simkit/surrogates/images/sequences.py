"""`ImageSequences`: films of equal length, as training and evaluation take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from simkit.errors import DataError
from simkit.surrogates.systems.protocol import Protocol


def image_protocol(
    train: int = 50_000, test: int = 10_000, *, frames: int = 30, interval: float = 0.125, noise: float = 0.0
) -> Protocol:
    """Return a protocol for `simkit.surrogates.systems.System.generate`; the defaults are those of the paper, but for the noise.

    Args:
        interval: time between frames.
        noise: standard deviation of the noise on each coordinate before it is drawn.
    """
    return Protocol(
        source="Toth et al. 2020, Hamiltonian generative networks, section 4: 30 frames at intervals of 0.125, 50000 and 10000 "
        "trajectories (from memory, as is their noise of 0.1 on all coordinates, which is left out here by default)",
        parts={"train": train, "test": test},
        duration=(frames - 1) * interval,
        points=frames,
        noise=noise,
    )


@dataclass(frozen=True)
class ImageBatch:
    """Films for one step of training.

    Attributes:
        images: [B, T, C, H, W] float32, from 0 to 1.
        times: [T] float64, on the CPU, where rollouts read them.
        index: [B] int64, the number of each film in its set.
    """

    images: Tensor
    times: Tensor
    index: Tensor


@dataclass(frozen=True)
class ImageSequences:
    """S films of T frames, in the form that `simkit.training.fit` takes.

    Attributes:
        pixels: [S, T, C, H, W] uint8.
        times: [T] float64, on the CPU.
        info: what the data are; everything in it can be written as JSON.
    """

    pixels: Tensor
    times: Tensor
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.pixels.dim() != 5 or self.pixels.dtype != torch.uint8 or self.times.shape != self.pixels.shape[1:2]:
            raise DataError(
                "pixels must be [films, frames, channels, rows, columns] uint8, with one time for each frame; found "
                f"{list(self.pixels.shape)} {self.pixels.dtype} and times {list(self.times.shape)}"
            )

    def __len__(self) -> int:
        """The number of films."""
        return self.pixels.shape[0]

    @property
    def values_per_film(self) -> int:
        """The number of pixel values of a film."""
        return self.pixels[0].numel()

    def to(self, device: torch.device | str) -> ImageSequences:
        """Return these films on a device; the times stay on the CPU."""
        return ImageSequences(self.pixels.to(device), self.times, self.info)

    def batch(self, indices: Tensor) -> ImageBatch:
        """Return the films that the indices [B] name."""
        index = indices.to(self.pixels.device)
        return ImageBatch(self.pixels.index_select(0, index).float() / 255, self.times, index)

    def batches(self, size: int) -> Sequence[Tensor]:
        """Return the numbers of all films in order, ``size`` to a batch."""
        return torch.arange(len(self)).split(size)

    def frames(self, count: int) -> ImageSequences:
        """Return the first frames of all films."""
        return ImageSequences(self.pixels[:, :count], self.times[:count], self.info)
