"""Reading ``.npz`` files of arrays without pickles, and hashing arrays."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simkit.errors import DataError

Array = NDArray[Any]


def read_npz(path: str | Path) -> dict[str, Array]:
    """Read all arrays of an ``.npz`` file; objects (pickles) are refused.

    Raises:
        DataError: if the file is missing, no ``.npz`` file, truncated, or holds objects.
    """
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} is no readable .npz file (truncated, damaged or with objects in it): {error}"
        ) from error


def digest(arrays: Mapping[str, Array]) -> str:
    """Return the SHA-256 of names, types, shapes and values of arrays."""
    content = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        if value.dtype.kind == "U":  # the width of text depends on the longest entry of all
            value = np.frombuffer("\0".join(value.reshape(-1).tolist()).encode(), dtype=np.uint8)
        content.update(f"{name} {value.dtype.str} {arrays[name].shape}\n".encode())
        content.update(value.data if value.size else b"")
    return content.hexdigest()
