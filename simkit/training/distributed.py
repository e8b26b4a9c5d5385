"""Where training runs: one device, or several processes started by ``torchrun`` or SLURM."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from simkit.device import resolve_device
from simkit.errors import ConfigError

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def make_fabric(device_name: str, precision: str) -> Fabric:
    """Return a launched Fabric for this process.

    Several processes are taken from the environment that ``torchrun`` or SLURM set up; otherwise there is one.

    Raises:
        ConfigError: if mixed precision is asked for on a CPU, where it saves nothing and costs accuracy.
    """
    from lightning.fabric import Fabric

    device = resolve_device(device_name)
    if precision in ("bf16-mixed", "tf32") and device.type == "cpu":
        raise ConfigError(f"precision {precision} needs a GPU; use float32 on a CPU")
    world = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or world)
    devices: int | list[int] = local
    if world == 1 and device.type == "cuda":
        devices = [device.index or 0]
    fabric = Fabric(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=devices,
        num_nodes=max(world // local, 1),
        strategy="ddp" if world > 1 else "auto",
        precision="bf16-mixed" if precision == "bf16-mixed" else "32-true",
    )
    fabric.launch()
    return fabric


def sum_gradients(fabric: Fabric, parameters: list[nn.Parameter]) -> None:
    """Add up the gradients of all processes in one collective; a parameter that the loss does not reach counts as zero.

    The losses of the shards are already divided by the counts of the whole batch, so a sum is what is wanted, where DDP's wrapper
    averages. It also keeps the second derivatives of force training out of the wrapper's hooks.
    """
    if fabric.world_size == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    reduced = sum_over_processes(fabric, flat)
    for p, part in zip(parameters, reduced.split([g.numel() for g in gradients]), strict=True):
        p.grad = part.view_as(p)


def sum_over_processes(fabric: Fabric, values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, as a new tensor where there are several."""
    if fabric.world_size == 1:
        return values
    total = fabric.all_reduce(values.clone(), reduce_op="sum")  # it works in place
    if not isinstance(total, Tensor):
        raise TypeError(f"expected a tensor from all_reduce, found {type(total).__name__}")
    return total
