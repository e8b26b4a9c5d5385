"""`Samples`: trajectories as tensors that a model of motion is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from simkit.errors import DataError
from simkit.surrogates.models.base import Coordinates
from simkit.surrogates.trajectories import Trajectories

STATES: dict[Coordinates, str] = {"canonical": "qp", "velocity": "qv", "first-order": "q"}
"""What the state of a model's coordinates is called in `Trajectories.state`."""


@dataclass(frozen=True)
class Samples:
    """M pieces of W successive states each, all on one device.

    Attributes:
        times: [W], the same for all pieces and from 0.
        states: [M, W, 2D], or [M, W, D] of first order.
        derivatives: time derivatives of the states, of their shape, or None.
        controls: [M, W, U], or None.
    """

    times: Tensor
    states: Tensor
    derivatives: Tensor | None = None
    controls: Tensor | None = None

    def __len__(self) -> int:
        """The number of pieces M."""
        return self.states.shape[0]

    def to(self, device: torch.device | str) -> Samples:
        """Return the samples on a device."""
        return Samples(*(None if x is None else x.to(device) for x in self._tensors()))  # type: ignore[arg-type]

    def batch(self, indices: Tensor) -> Samples:
        """Return the pieces ``indices``."""
        indices = indices.to(self.states.device)
        return Samples(self.times, *(None if x is None else x[indices] for x in self._tensors()[1:]))  # type: ignore[arg-type]

    def batches(self, size: int) -> Sequence[Tensor]:
        """Return the indices of all pieces in order, ``size`` to a batch."""
        return torch.arange(len(self)).split(size)

    def _tensors(self) -> list[Tensor | None]:
        return [getattr(self, field.name) for field in fields(self)]


def single_states(data: Trajectories, coordinates: Coordinates, dtype: torch.dtype) -> Samples:
    """Return every state with its derivative, as pieces of length 1.

    Raises:
        DataError: if the data lack momenta, velocities or derivatives.
    """
    kind = STATES[coordinates]
    flat = [data.state(kind), data.derivative(kind), data.controls]
    tensors = [None if x is None else torch.from_numpy(x).to(dtype).flatten(0, 1).unsqueeze(1) for x in flat]
    return Samples(torch.zeros(1, dtype=torch.float64), *tensors)  # type: ignore[arg-type]


def pieces(data: Trajectories, coordinates: Coordinates, dtype: torch.dtype) -> Samples:
    """Return whole trajectories, such as those of `Trajectories.windows`, as pieces.

    Raises:
        DataError: if the data lack momenta or velocities, or the trajectories have different spacings of times.
    """
    if data.q.shape[1] < 2:
        raise DataError("rollouts are trained on at least two points of each trajectory; found one")
    times = data.times - data.times[..., :1]
    common = times[0] if times.ndim == 2 else times
    if not np.allclose(times, common, rtol=0, atol=1e-6 * np.diff(common).min()):
        raise DataError(
            "training on rollouts needs the same spacing of times in all pieces, but they differ; resample the trajectories to "
            "equal steps, or train on derivatives (objective.match=derivative)"
        )
    states = torch.from_numpy(data.state(STATES[coordinates])).to(dtype)
    controls = None if data.controls is None else torch.from_numpy(data.controls).to(dtype)
    return Samples(torch.from_numpy(common.copy()), states, None, controls)
