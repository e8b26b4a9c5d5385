"""How kernels that sum over edges are cut into blocks of channels, compiled, and given the memory of tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from torch import Tensor

from simkit.kernels.threads import task_count

BLOCK = 64  # channels that one thread takes at least


class _NoAlias(CompilerBase):
    """Numba's compiler with the promise that no output of a function overlaps another argument.

    Without it LLVM compares the addresses of all arrays before each loop, or does not vectorise the loop: half the speed.
    """

    def define_pipelines(self) -> list[Any]:
        self.state.flags.noalias = True
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]


compile_blocks = njit(pipeline_class=_NoAlias, fastmath=True, error_model="numpy")
compile_shared = njit(parallel=True, fastmath=True, error_model="numpy", cache=True)


@njit
def begin(row, channels, low):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Where a block of channels begins in a row; unsigned, so that no negative indices are looked for."""
    return np.uintp(row * channels + low)


@njit
def add_blocks(parts, total):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Write the sum of what the blocks of channels have for each edge, end to end in ``parts``, to ``total``."""
    edges = len(total)
    total[:] = parts[:edges]
    for block in range(1, len(parts) // max(1, edges)):
        for e in range(edges):
            total[e] += parts[block * edges + e]


def count_blocks(channels: int) -> int:
    """Return the number of blocks that the channels are cut into."""
    return (channels + BLOCK - 1) // BLOCK


def sizes(channels: int) -> tuple[int, int]:
    """Return the number of channels, and of tasks that share them."""
    return channels, task_count(count_blocks(channels))


def flat(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    """Return the elements as flat arrays, which share the memory of contiguous tensors."""
    return tuple([t.numpy(force=True).reshape(-1) for t in tensors])
