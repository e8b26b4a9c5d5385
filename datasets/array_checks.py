"""Checks of the arrays that a store is made of: shapes, ranges and finite values, with errors that name the frame.

``ptr`` [F+1] says where each frame's atoms begin, ``owner`` is the name of the data set, for the messages.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from simkit.datasets.npz_file import Array
from simkit.errors import DataError, LabelError
from simkit.graph import LABELS


def check_ptr(ptr: Tensor, owner: str) -> Tensor:
    """Return offsets as int64, beginning with 0 and growing."""
    if ptr.ndim != 1 or ptr.is_floating_point() or len(ptr) < 2:
        raise DataError(f"{owner} is empty: expected offsets of at least one structure, found shape {list(ptr.shape)}")
    ptr = ptr.long()
    wrong = torch.nonzero(ptr.diff() <= 0).flatten()
    if len(wrong) or int(ptr[0]) != 0:
        frame = int(wrong[0]) if len(wrong) else 0
        raise DataError(f"offsets of {owner} must begin with 0 and grow; frame {frame} has no atoms or a wrong offset")
    return ptr.contiguous()


def check_numbers(z: Tensor, ptr: Tensor, owner: str) -> Tensor:
    """Return atomic numbers [A] as uint8."""
    atoms = int(ptr[-1])
    if tuple(z.shape) != (atoms,) or z.is_floating_point():
        raise DataError(f"atomic numbers of {owner}: expected {atoms} integers, found {z.dtype} of {list(z.shape)}")
    low, high = torch.aminmax(z)
    if int(low) < 1 or int(high) > 118:
        raise DataError(f"atomic numbers of {owner} must lie within 1 and 118, found {int(low)} to {int(high)}")
    return z.to(torch.uint8).contiguous()


def check_positions(pos: Tensor, ptr: Tensor, owner: str) -> Tensor:
    """Return positions [A, 3] in their own precision."""
    return _check_rows("positions", _as_float(pos), ptr, (int(ptr[-1]), 3), owner, DataError)


def check_label(name: str, value: Tensor, ptr: Tensor, owner: str) -> Tensor:
    """Return a label of `simkit.graph.LABELS`, in float64 if it is one per structure."""
    spec = LABELS.get(name)
    if spec is None:
        raise LabelError(f"unknown label {name!r} for {owner}; known labels: {', '.join(LABELS)}")
    per_graph = spec.per == "graph"
    value = value.double() if per_graph else _as_float(value)
    rows = len(ptr) - 1 if per_graph else int(ptr[-1])
    return _check_rows(name, value, ptr, (rows, *spec.shape), owner, LabelError)


def check_column(name: str, value: Array, frames: int, owner: str) -> Array:
    """Return other values per structure [F, ...]; text in any form becomes NumPy text."""
    value = np.asarray(value)
    if value.ndim == 0 or len(value) != frames:
        raise DataError(f"{name} of {owner}: expected one value per frame ({frames}), found {list(value.shape)}")
    return value.astype(str) if value.dtype == object else value


def check_cells(
    cell: Tensor | None, pbc: Tensor | None, ptr: Tensor, owner: str
) -> tuple[Tensor | None, Tensor | None]:
    """Return cells [F, 3, 3] in float64 and periodic directions [F, 3], None where there are none at all."""
    frames = len(ptr) - 1
    if pbc is not None and tuple(pbc.shape) != (frames, 3):
        raise DataError(f"pbc of {owner}: expected shape {[frames, 3]}, found {list(pbc.shape)}")
    if cell is not None:
        cell = _check_rows("cell", cell.double(), ptr, (frames, 3, 3), owner, DataError)
        cell = cell if bool(cell.any()) else None
    if pbc is None or not bool(pbc.any()):
        return cell, None
    pbc = pbc.bool()
    missing = pbc if cell is None else pbc & ~cell.bool().any(2)
    if bool(missing.any()):
        frame = int(torch.nonzero(missing.any(1))[0])
        raise DataError(f"frame {frame} of {owner} is periodic in a direction without a lattice vector")
    return cell, pbc


def _check_rows(
    name: str, value: Tensor, ptr: Tensor, shape: tuple[int, ...], owner: str, error: type[DataError]
) -> Tensor:
    if tuple(value.shape) != shape:
        raise error(f"{name} of {owner}: expected shape {list(shape)}, found {list(value.shape)}")
    finite = value.isfinite().reshape(len(value), -1).all(1)
    if not bool(finite.all()):
        bad = torch.nonzero(~finite).flatten()
        per_frame = len(value) == len(ptr) - 1
        frame = int(bad[0]) if per_frame else int(torch.searchsorted(ptr, bad[0], right=True)) - 1
        raise error(
            f"{name} of frame {frame} of {owner} is not finite ({len(bad)} of {len(value)} rows are not); remove or "
            "repair these frames"
        )
    return value.contiguous()


def _as_float(value: Tensor) -> Tensor:
    return value if value.dtype in (torch.float32, torch.float64) else value.double()
