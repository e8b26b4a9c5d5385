"""`DeviceWorkspace`: memory on a GPU that is kept from call to call, as torch and as the kernels take it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from simkit.fast.workspace import ROOM, Buffer, Workspace
from simkit.kernels.gpu import current, view

T = TypeVar("T")


class DeviceWorkspace(Workspace):
    """`Workspace` on a GPU.

    Flat arrays are the whole of the memory, larger than what was asked for: to make a view for Numba takes longer than a launch, and
    numbers of edges change from step to step. There are no arrays of any other shape.

    Args:
        device: whose memory is taken.

    Attributes:
        stream: torch's current one, where `active`.
    """

    on_gpu = True

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.stream: Any = None
        self._memory: dict[str, tuple[Tensor, Any]] = {}
        self._kept: dict[str, tuple[list[Tensor], list[int], Any]] = {}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make the device and its current stream those that kernels are started on."""
        with current(self.device) as self.stream:
            yield

    def get(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Buffer:
        """Return the buffer of this name with a shape; the same object for the same shape."""
        given = self._given.get(name)
        if given is not None and given[0] == shape:
            return given[1]
        size, kind = math.prod(shape), torch.from_numpy(np.empty(0, dtype)).dtype
        if name not in self._memory or self._memory[name][0].numel() < size or self._memory[name][0].dtype != kind:
            memory = torch.empty(max(1, math.ceil(ROOM * size)), dtype=kind, device=self.device)
            self._memory[name] = memory, view(memory)
        memory, flat = self._memory[name]
        buffer = Buffer(flat, flat, memory[:size].view(shape))
        self._given[name] = shape, buffer
        return buffer

    def keep(self, name: str, sources: Sequence[Tensor], make: Callable[[], T]) -> T:
        """Return what ``make`` returned when the sources were last other tensors, or changed in place."""
        versions = [source._version for source in sources]
        kept = self._kept.get(name)
        if kept is None or versions != kept[1] or any(a is not b for a, b in zip(sources, kept[0], strict=True)):
            self._kept[name] = kept = list(sources), versions, make()
        value: T = kept[2]
        return value

    def view(self, name: str, tensor: Tensor) -> Any:
        """Return the elements of a contiguous tensor as kernels take them, kept under a name while it is the same."""
        return self.keep(name, (tensor,), lambda: view(tensor.view(-1)))

    def __reduce__(self) -> tuple[type[Workspace], tuple[Any, ...]]:
        """Copies begin empty."""
        return DeviceWorkspace, (self.device,)

    @property
    def bytes(self) -> int:
        """The memory that is held."""
        return sum(memory.nbytes for memory, _ in self._memory.values())
