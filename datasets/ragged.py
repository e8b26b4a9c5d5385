"""Index arithmetic on ragged arrays: rows of different lengths that lie end to end in one flat array."""

from __future__ import annotations

import torch
from torch import Tensor


class Ragged:
    """The offsets of ``F`` rows in a flat array, on a device and, so that no size has to be fetched back, on the host.

    Args:
        ptr: offsets [F+1] int64, beginning with 0.
    """

    def __init__(self, ptr: Tensor, host: Tensor | None = None) -> None:
        self.ptr = ptr
        self.counts = ptr.diff()
        self._host_counts = self.counts.cpu() if host is None else host

    def to(self, device: torch.device | str) -> Ragged:
        """Return the same offsets on another device."""
        return Ragged(self.ptr.to(device), self._host_counts)

    def gather(self, rows: Tensor, host_rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return how to gather some rows into a new flat array of ``M`` items.

        Args:
            rows: which rows, [k] int64 on the device of the offsets.
            host_rows: the same on the host; None when they are not there, then the size is fetched from the device.

        Returns:
            ``items`` [M], the positions of the items in the old array; ``owner`` [M], to which of the k rows each
            belongs; ``ptr`` [k+1], the offsets of the new array.
        """
        counts = self.counts.index_select(0, rows)
        ptr = counts.new_zeros(len(rows) + 1)
        torch.cumsum(counts, 0, out=ptr[1:])
        total = int(ptr[-1] if host_rows is None else self._host_counts.index_select(0, host_rows).sum())
        owner = torch.repeat_interleave(counts, output_size=total)
        shift = self.ptr.index_select(0, rows) - ptr[:-1]
        items = torch.arange(total, device=ptr.device).add_(shift.index_select(0, owner))
        return items, owner, ptr
