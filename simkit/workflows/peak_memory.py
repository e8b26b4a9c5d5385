"""The memory that a call needs, what is free, and how large a system that is enough for."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from simkit.workflows.cost import peak_memory_mb


@dataclass(frozen=True)
class Forecast:
    """A straight line through measured memory.

    Attributes:
        bytes_per_atom: its slope. fixed_bytes: where it begins.
        free_bytes: what there is; None where that is not known.
    """

    bytes_per_atom: float
    fixed_bytes: float
    free_bytes: int | None

    @property
    def atoms(self) -> int | None:
        """How many atoms the free memory is enough for."""
        if self.free_bytes is None:
            return None
        return max(0, int((self.free_bytes - self.fixed_bytes) / self.bytes_per_atom))


def forecast(atoms: Sequence[int], measured: Sequence[float], free: int | None) -> Forecast | None:
    """Fit a line by least squares.

    Args:
        atoms: of each system. measured: its memory, bytes. free: bytes.

    Returns:
        None for fewer than two sizes, and where memory does not grow with them.
    """
    if len(set(atoms)) < 2:
        return None
    slope, start = np.polyfit(np.asarray(atoms, dtype=float), np.asarray(measured, dtype=float), 1)
    return Forecast(float(slope), float(start), free) if slope > 0 else None


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Run a call and return by how much memory grew at most while it ran, in bytes.

    On a GPU that is what PyTorch allocated; on a CPU it is resident memory of the process, to within some hundred kilobytes, after free
    memory was given back to the system. None where the system does not tell (anything but Linux).
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif not _reset_peak():
        call()
        return None
    before = peak_memory_mb(device)  # just reset, so that it is what is held now
    call()
    return round(1e6 * (peak_memory_mb(device) - before))


def _reset_peak() -> bool:
    """Give free memory back, and let the kernel's record of the peak begin anew; False where that does not work."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except (AttributeError, OSError, TypeError):
        return False
    return True


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that could be had now without swapping; None where the system does not tell."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
