"""`Workspace`: memory that is kept from call to call."""

from __future__ import annotations

import contextlib
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

ROOM = 1.2
"""Arrays are made larger than asked for by this factor, because numbers of edges go up and down."""
REALS: dict[torch.dtype, np.dtype[Any]] = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}


class Buffer(NamedTuple):
    """The same memory as an array, as a flat array and as a tensor; arrays are what kernels take."""

    array: Any
    flat: Any
    tensor: Tensor


class Workspace:
    """Buffers by name, which keep their memory. Their content is whatever was there before."""

    on_gpu = False

    def __init__(self) -> None:
        self._held: dict[str, np.ndarray] = {}
        self._given: dict[str, tuple[tuple[int, ...], Buffer]] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Buffer:
        """Return the buffer of this name with a shape; the same object for the same shape."""
        given = self._given.get(name)
        if given is not None and given[0] == shape:
            return given[1]
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.size < size or held.dtype != dtype:
            held = self._held[name] = np.empty(math.ceil(ROOM * size), dtype)
        array = held[:size].reshape(shape)
        buffer = Buffer(array, held[:size], torch.from_numpy(array))
        self._given[name] = shape, buffer
        return buffer

    def view(self, name: str, tensor: Tensor) -> Any:
        """Return the elements of a contiguous tensor as kernels take them; the name is that of what may be kept for it."""
        return tensor.numpy().reshape(-1)

    def active(self) -> contextlib.AbstractContextManager[None]:
        """Return the context that kernels are called in."""
        return contextlib.nullcontext()

    def __reduce__(self) -> tuple[type[Workspace], tuple[Any, ...]]:
        """Copies begin empty: in copied buffers, array and tensor would no longer be the same memory."""
        return Workspace, ()

    @property
    def bytes(self) -> int:
        """The memory that is held."""
        return sum(held.nbytes for held in self._held.values())
