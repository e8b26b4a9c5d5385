"""What differs between a CPU and a GPU: memory, and the rows of edges, which bring their kernels along."""

from __future__ import annotations

from typing import Any, cast

import torch
from numba import config as numba_config

from simkit.errors import DeviceError
from simkit.fast.rows import EdgeRows, Rows
from simkit.fast.workspace import Workspace
from simkit.graph import AtomGraph


def on_gpu(device: torch.device) -> bool:
    """Whether kernels of numba.cuda are to be used; in Numba's simulator the memory of a CPU stands for that of a GPU."""
    return device.type == "cuda" or bool(numba_config.ENABLE_CUDASIM)


def workspace_on(device: torch.device) -> Workspace:
    """Return an empty workspace on a device.

    Raises:
        DeviceError: if it is a GPU, and numba.cuda cannot use it.
    """
    if not on_gpu(device):
        return Workspace()
    try:
        from numba import cuda

        from simkit.fast.cuda_workspace import DeviceWorkspace

        if cuda.is_available():
            return DeviceWorkspace(device)
        found = "it finds no GPU or no CUDA toolkit"
    except Exception as error:  # noqa: BLE001 - whatever is wrong with an installation: it must not keep the reference path from working
        found = first_line(error)
    raise DeviceError(
        f"the fast path on a GPU needs numba.cuda, which cannot be used here ({found}); install simkit[cuda]"
    )


def rows_on(
    workspace: Workspace, graph: AtomGraph, cutoff: float, intervals: int, dtype: torch.dtype, channels: int
) -> EdgeRows:
    """Return the edges of a graph as rows on the workspace's device.

    Args:
        cutoff, intervals, dtype, channels: see `Rows` and `simkit.fast.cuda_rows.CudaRows`.

    Raises:
        GeometryError, UnorderedEdgesError: see there.
    """
    if not workspace.on_gpu:
        return Rows(workspace, graph, cutoff, intervals, dtype)
    from simkit.fast.cuda_rows import CudaRows

    return CudaRows(cast(Any, workspace), graph, cutoff, intervals, dtype, channels)


def two_atoms(z: int, cutoff: float, device: torch.device) -> AtomGraph:
    """Return a crystal of two atoms of an element with one edge each, on which kernels are tried."""
    return AtomGraph(
        z=torch.tensor([z, z]),
        pos=torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.2, 0.5]], dtype=torch.float64) * cutoff,
        cell=4 * cutoff * torch.eye(3, dtype=torch.float64)[None],
        pbc=torch.ones(1, 3, dtype=torch.bool),
        edge_index=torch.tensor([[1, 0], [0, 1]]),
        edge_shift=torch.zeros(2, 3, dtype=torch.float64),
        batch=torch.zeros(2, dtype=torch.int64),
        ptr=torch.tensor([0, 2]),
    ).to(device)


def first_line(error: Exception) -> str:
    """Return what kind of error it is, and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
