"""Keeping freed memory inside the process on glibc systems."""

import ctypes
import functools

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEEP_UP_TO = 1 << 30


@functools.cache
def keep_freed_memory() -> bool:
    """Let malloc reuse freed blocks of up to 1 GiB instead of returning each to the operating system; True where that works.

    PyTorch's CPU allocator calls malloc for every intermediate array. By default glibc maps and unmaps blocks beyond 32 MiB (less at
    first) on each call, and filling the fresh pages costs several times the arithmetic of an elementwise operation. The setting
    concerns the whole process, so it is made by the calls that need it (`simkit.training.fit`, `simkit.Calculator`), never on import.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _KEEP_UP_TO)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
