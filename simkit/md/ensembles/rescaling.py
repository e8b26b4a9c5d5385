"""Stochastic velocity rescaling: the exact propagation of the kinetic energy in contact with a heat bath."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simkit.integrators.philox import four_normals
from simkit.md.ensembles.compiled import compiled, words
from simkit.md.ensembles.noise import ReplicaNoise
from simkit.md.ensembles.targets import positive
from simkit.md.state import State
from simkit.units import BOLTZMANN

_STREAM = 65534


class VelocityRescaling:
    """The thermostat of G. Bussi, D. Donadio, M. Parrinello, J. Chem. Phys. 126, 014101 (2007), doi:10.1063/1.2408420.

    The factor of the velocities, equations A7 and A8:

        alpha^2 = c + (1 - c) (R_1^2 + S) k / K + 2 R_1 sqrt(c (1 - c) k / K),   k = kT/2
        sign of alpha: that of R_1 + sqrt(c K / ((1 - c) k))

    | Symbol | Meaning | Variable |
    | --- | --- | --- |
    | c | exp(-timestep / time constant) | ``decay`` |
    | R_1 | a normal number | ``first`` |
    | S | the sum of the squares of N_f - 1 more, N_f being the degrees of freedom | ``rest`` |
    | K | kinetic energy | ``kinetic`` |
    """

    def __init__(self, timestep: float, time_constant: float, seed: int) -> None:
        """Raises ConfigError if a value is not usable."""
        self.time_constant = positive("time_constant", time_constant)
        self.noise = ReplicaNoise(seed, _STREAM)
        self._decay = math.exp(-timestep / self.time_constant)
        self._spread = -math.expm1(-timestep / self.time_constant)
        self._state: State | None = None
        self._rows: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._counted, self._ends = torch.empty(0), torch.empty(0)

    def numbers(self, step: int) -> tuple[float | np.uint64, ...]:
        """What `rescaling_factor` takes for all replicas: c, 1 - c, and the words of the random numbers."""
        return self._decay, self._spread, *words(self.noise.seed, step, _STREAM)

    def factor(self, state: State, kinetic: Tensor, temperature: Tensor) -> Tensor:
        """What the velocities of each replica are multiplied with in the step that comes, [B].

        Args:
            kinetic: [B] eV. temperature: [1] or [B] K.
        """
        if self._state is not state:
            self.prepare(state)
        numbers = self.noise.rows(state, self._rows)
        squares = (numbers**2 * self._counted).sum(1)
        rest = torch.segment_reduce(squares, "sum", offsets=self._ends, axis=0)
        first = numbers[self._ends[:-1], 0]
        # At rest K = 0; any positive number keeps the factor finite, and the velocities stay zero.
        share = 0.5 * BOLTZMANN * temperature / kinetic.clamp(min=1e-200)
        squared = self._decay + self._spread * share * (first**2 + rest)
        squared = squared + 2 * first * (self._decay * self._spread * share).sqrt()
        sign = torch.where(first + (self._decay / (self._spread * share)).sqrt() < 0, -1.0, 1.0)
        return sign * squared.clamp(min=0.0).sqrt()

    def prepare(self, state: State) -> None:
        """Take the degrees of freedom of a state: which of the four numbers in a row are R_2 to R_Nf, and where a replica's rows begin."""
        self._state = state
        degrees = state.degrees.cpu().numpy().astype(np.int64)
        self._rows = -(-degrees // 4)
        ends = np.concatenate([[0], np.cumsum(self._rows)])
        place = 4 * (np.arange(ends[-1]) - np.repeat(ends[:-1], self._rows))[:, None] + np.arange(4)
        counted = (place > 0) & (place < np.repeat(degrees, self._rows)[:, None])
        self._counted = torch.from_numpy(counted.astype(np.float64)).to(state.device)
        self._ends = torch.from_numpy(ends).to(state.device)


@compiled
def rescaling_factor(kinetic, degrees, temperature, replica, numbers):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """`VelocityRescaling.factor` of one replica of a name; ``numbers`` are those of `VelocityRescaling.numbers`."""
    decay, spread, low, high, key_0, key_1 = numbers
    one = np.uint64(replica)
    count = int(degrees)
    first = squares = 0.0
    for row in range(-(-count // 4)):
        four = four_normals(np.uint64(row), one, low, high, key_0, key_1)
        if row == 0:
            first = four[0]
        for column in range(4):
            if 4 * row + column < count:
                squares += four[column] * four[column]
    share = 0.5 * BOLTZMANN * temperature / max(kinetic, 1e-200)
    squared = decay + spread * share * squares + 2 * first * math.sqrt(decay * spread * share)
    factor = math.sqrt(max(squared, 0.0))
    return -factor if first + math.sqrt(decay / (spread * share)) < 0 else factor
