"""How long a training will take, measured before it begins."""

from __future__ import annotations

import math
import time

import torch

from simkit.datasets.store import Store
from simkit.device import resolve_device
from simkit.potential import Potential
from simkit.training.losses import Objective
from simkit.training.options import TrainingOptions

LONG = 2 * 3600.0
"""Seconds that nobody should be surprised by."""


def long_training(potential: Potential, objective: Objective, store: Store, options: TrainingOptions) -> str | None:
    """Return what to tell if training on the CPU will take hours, and what can be done about it; None if it will not.

    Args:
        potential, store: on the CPU.
    """
    if resolve_device(options.device).type != "cpu":
        return None
    epoch = seconds_per_epoch(potential, objective, store, options.batch_size)
    total = min(epoch * options.epochs, 60.0 * (options.max_minutes or math.inf))
    if total < LONG:
        return None
    return (
        f"on this CPU an epoch of {len(store):,} structures takes about {duration_text(epoch)} and the training at most "
        f"{duration_text(total)}; it can be interrupted and resumed. For a check, train on fewer structures (--set split.method=random "
        "--set split.train=10000), for fewer epochs (--set training.epochs=30) or for a limited time (--set training.max_minutes=60)"
    )


def seconds_per_epoch(potential: Potential, objective: Objective, store: Store, batch_size: int) -> float:
    """Return what an epoch is expected to take: the time of one batch on the CPU, with gradients, times the number of batches.

    The batch is a random one; weights and random numbers of the training are left alone.
    """
    order = torch.randperm(len(store), generator=torch.Generator().manual_seed(0))
    indices = order[:batch_size]
    counts = objective.counts(store, indices)
    seconds = math.inf
    for _ in range(2):  # kernels are compiled in the first
        start = time.perf_counter()
        loss, _sums = objective(potential.train(), store.batch(indices), counts)
        loss.backward()
        seconds = time.perf_counter() - start
    potential.zero_grad(set_to_none=True)
    return seconds * math.ceil(len(store) / batch_size)


def duration_text(seconds: float) -> str:
    """Return a duration in the unit that suits it, such as "40 s", "12 min", "3.5 h" or "2.1 days"."""
    for size, unit in ((2 * 86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            value = seconds / {"days": 86400.0, "h": 3600.0, "min": 60.0}[unit]
            return f"{value:.1f} {unit}" if value < 10 and unit != "min" else f"{value:.0f} {unit}"
    return f"{seconds:.0f} s"
