"""Rollouts of many trajectories that go on where some of them fail."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simkit.errors import ConfigError, GeometryError
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.rollout import rollout

Array = NDArray[np.float64]

# What a step raises that has no solution: an implicit equation, a matrix without inverse, torchdiffeq's step that became too small,
# particles that flew beyond all bounds.
_FAILURES = (ConfigError, GeometryError, AssertionError, torch.linalg.LinAlgError)


def free_rollouts(
    model: DynamicsModel,
    states: Array,
    times: Array,
    *,
    controls: Array | None = None,
    method: str | None = None,
    timestep: float | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-8,
) -> Array:
    """Return a model's motion from each of several states; nan from the point on to which a trajectory cannot be continued.

    Args:
        model: any `DynamicsModel`; no gradients are recorded.
        states: at the first time, [S, 2 D].
        times: [T].
        controls: inputs [S, T, U], only and always for models with controls.
        method, timestep, rtol, atol: as for `simkit.surrogates.rollout.rollout`.

    Returns:
        [S, T, 2 D].

    Raises:
        ConfigError: if an argument does not suit the model.
    """
    if timestep is not None and not 0 < timestep < math.inf:
        raise ConfigError(f"the timestep must be a positive number; found {timestep}")
    device = model.unit.device
    moments = torch.from_numpy(np.ascontiguousarray(times, dtype=np.float64))
    inputs = None if controls is None else torch.from_numpy(controls).to(device, model.dtype).transpose(0, 1)

    def run(first: Tensor, which: slice, frames: slice) -> Tensor:
        part = None if inputs is None else inputs[frames, which]
        return rollout(
            model, first, moments[frames], method=method, timestep=timestep, controls=part, rtol=rtol, atol=atol
        )

    with torch.no_grad():
        start = torch.from_numpy(np.ascontiguousarray(states)).to(device, model.dtype)
        run(start, slice(None), slice(0, 1))  # wrong arguments raise here
        found = _halves(run, start, slice(0, len(start)), len(moments)).transpose(0, 1).to("cpu", torch.float64).numpy()
    alive = np.logical_and.accumulate(np.isfinite(found).all(axis=-1), axis=1)
    return np.where(alive[..., None], found, np.nan)


_Run = Callable[[Tensor, slice, slice], Tensor]
"""States, which trajectories they are of, and which of the times -> their motion [times, trajectories, 2 D]."""


def _halves(run: _Run, start: Tensor, which: slice, count: int) -> Tensor:
    """Run these trajectories together; where that fails, each half by itself."""
    try:
        return run(start[which], which, slice(0, count))
    except _FAILURES:
        if which.stop - which.start == 1:
            return _step_by_step(run, start, which, count)
        middle = (which.start + which.stop) // 2
        halves = slice(which.start, middle), slice(middle, which.stop)
        return torch.cat([_halves(run, start, half, count) for half in halves], dim=1)


def _step_by_step(run: _Run, start: Tensor, which: slice, count: int) -> Tensor:
    """Run one trajectory from each time to the next, as far as it goes."""
    found = start.new_full((count, 1, start.shape[1]), math.nan)
    found[0] = start[which]
    for frame in range(1, count):
        try:
            found[frame] = run(found[frame - 1], which, slice(frame - 1, frame + 1))[-1]
        except _FAILURES:
            break
    return found
