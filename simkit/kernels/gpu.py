"""What every kernel of numba.cuda needs: torch's memory and torch's current stream, and launches of many small blocks.

Nothing is copied and nothing waits: kernels read the tensors' memory, and are queued behind what torch has queued.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from numba import config as numba_config
from numba import cuda
from torch import Tensor

WARP = 32
"""Threads that run in step."""
THREADS = 128
"""Threads of a block of kernels whose threads have nothing to do with each other."""


def view(tensor: Tensor) -> Any:
    """Return the tensor's memory as Numba takes it."""
    return tensor.numpy() if numba_config.ENABLE_CUDASIM else cuda.as_cuda_array(tensor)


@contextlib.contextmanager
def current(device: torch.device) -> Iterator[Any]:
    """Make the device current for Numba, and give torch's current stream on it."""
    if numba_config.ENABLE_CUDASIM:
        yield 0
        return
    with cuda.gpus[device.index], warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Grid size")  # a small system cannot fill the device
        yield _stream(device.index, torch.cuda.current_stream(device).cuda_stream)


@functools.cache
def _stream(index: int, pointer: int) -> Any:
    """One object for each stream: Numba keeps what it prepares for launches by it."""
    return cuda.external_stream(pointer)


def launch(kernel: Any, count: int, stream: Any, *arguments: Any) -> None:
    """Start a kernel with at least ``count`` threads in one dimension."""
    if count:
        kernel[-(-count // THREADS), THREADS, stream](*arguments)


@dataclass(frozen=True)
class Grid:
    """Starts kernels with one warp for each row and each 32 channels: block (row, k) has the channels from 32 k on."""

    rows: int
    stream: Any

    def __call__(self, kernel: Any, channels: int, *arguments: Any) -> None:
        """Start a kernel of ``channels`` and further arguments."""
        if self.rows:
            kernel[(self.rows, warps(channels)), WARP, self.stream](channels, *arguments)


def warps(channels: int) -> int:
    """Return how many warps share the channels of a row."""
    return -(-channels // WARP)


def over_rows(kernel: Any) -> Callable[..., None]:
    """Return a function of a `Grid` and the arguments of a kernel that starts it."""

    def run(grid: Grid, channels: int, *arguments: Any) -> None:
        grid(kernel, channels, *arguments)

    return run
