"""Normal random numbers for variables of replicas, as functions of (seed, step, replica): the same bits wherever a run is cut."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simkit.integrators import Bath, philox, philox_torch
from simkit.md.state import State

_AT_ONCE = 64
"""Steps whose numbers are made together on a GPU, where Philox in PyTorch is a hundred launches however many numbers it makes."""


class ReplicaNoise:
    """Rows of four standard normal numbers, a fixed number of rows for each replica and step."""

    def __init__(self, seed: int, stream: int) -> None:
        """Keep the key.

        Args:
            stream: what the numbers are for, see `simkit.integrators.philox`.

        Raises:
            ConfigError: if the seed is no whole number from 0 to 2^64 - 1.
        """
        self.seed = Bath(0.0, 0.0, seed).seed
        self._stream = stream
        self._state: State | None = None
        self._replica = self._row = np.empty(0, dtype=np.int64)
        self._steps, self._numbers = range(0), torch.empty(0)

    def rows(self, state: State, rows: NDArray[np.int64]) -> Tensor:
        """The numbers of the step that comes, [sum of rows, 4] float64 on the state's device.

        Args:
            rows: [B], how many each replica takes. The same in every call for a state.
        """
        if self._state is not state:
            self._state, self._steps = state, range(0)
            self._replica = np.repeat(state.replicas.astype(np.int64), rows)
            self._row = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
        if state.step not in self._steps:
            self._fill(state)
        return self._numbers[state.step - self._steps.start]

    def _fill(self, state: State) -> None:
        if state.device.type == "cpu":
            self._steps = range(state.step, state.step + 1)
            numbers = philox.normals(self.seed, state.step, self._replica, self._row, self._stream)
            self._numbers = torch.from_numpy(numbers)[None]
        else:
            self._steps = range(state.step, state.step + _AT_ONCE)
            replica, row = (torch.from_numpy(a).to(state.device) for a in (self._replica, self._row))
            self._numbers = philox_torch.normals_of_steps(self.seed, self._steps, replica, row, self._stream)
