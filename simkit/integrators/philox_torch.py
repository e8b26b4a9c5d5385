"""The random numbers of `simkit.integrators.philox` in PyTorch, on any device: the same bits, normal numbers equal to rounding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simkit.integrators.philox import words_of_key, words_of_step

# int64 holds a word of 32 bits; a product of two wraps around, but keeps its bits.
_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def random_words(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor | int, Tensor | int]) -> Tensor:
    """Return Philox4x32-10 of counters under keys.

    Args:
        counter: four int64 tensors of words below 2^32. key: two, tensors or numbers. All are broadcast against each other.

    Returns:
        [..., 4] int64 words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((second >> 32) & _LOW) ^ c1 ^ k0,
            second & _LOW,
            ((first >> 32) & _LOW) ^ c3 ^ k1,
            first & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), dim=-1)


def normals(seed: int, step: int, replica: Tensor, atom: Tensor, stream: int = 0) -> Tensor:
    """Return four standard normal numbers for each pair of replica and atom.

    Args:
        seed, step, stream: as for `simkit.integrators.philox.normals`.
        replica, atom: int64 from 0 to 2^32 - 1, of shapes that broadcast.

    Returns:
        [..., 4] float64, of the broadcast shape, on the device of ``atom``.
    """
    low, high = (torch.as_tensor(word, device=atom.device) for word in words_of_step(step, stream))
    return _normals(random_words((atom, replica, low, high), words_of_key(seed)))


def _normals(words: Tensor) -> Tensor:
    """Standard normal numbers of words [..., 4]."""
    uniform = (words.to(torch.float64) + 0.5) * 2.0**-32
    radius = torch.sqrt(-2 * torch.log(uniform[..., 0::2]))
    angle = 2 * math.pi * uniform[..., 1::2]
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1).flatten(-2)


def normals_of_steps(seed: int, steps: range, replica: Tensor, atom: Tensor, stream: int = 0) -> Tensor:
    """Return what `normals` does for each of some successive steps, [steps, ..., 4], without a copy from the host.

    Raises:
        ConfigError: if a step or the stream has no random numbers.
    """
    words_of_step(steps[0], stream), words_of_step(steps[-1], stream)
    step = torch.arange(steps.start, steps.stop, device=atom.device).reshape(-1, *(1,) * atom.dim())
    return _normals(random_words((atom, replica, step & _LOW, (step >> 32) | (stream << 16)), words_of_key(seed)))
