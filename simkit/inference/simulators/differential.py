"""`DifferentialSimulator`: two differential equations with the parameters of each trajectory, differentiable in them.

Both trajectories and derivatives are by the Runge-Kutta method of fourth order with the same steps of a fixed length. For derivatives, the
slopes s = dy/dtheta_d are integrated together with y: ds/dt = (df/dy) s + df/dtheta_d. One step of the method on both gives the
derivative of the step exactly, so gradients are those of what is computed, not only of what it approximates.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from simkit.inference.priors import Array
from simkit.inference.simulator import Simulator
from simkit.inference.simulators import planar


class DifferentialSimulator(Simulator):
    """A simulator that observes the solution of two differential equations with D parameters at T times.

    A subclass sets the attributes and gives `initial`.

    Attributes:
        field: the equations for Numba, as `simkit.inference.simulators.planar.solve` has them.
        slopes_field: the equations with slopes, as `simkit.inference.simulators.planar.solve_with_slopes` has them.
        times: of the observations, [T], from 0 on.
        timestep: the longest step.
        constants: of the equations, a vector.
    """

    field: ClassVar[Callable[..., tuple[Any, Any]]]
    slopes_field: ClassVar[Callable[..., tuple[Any, ...]]]
    times: Array
    timestep: float
    constants: Array

    @abstractmethod
    def initial(self) -> Array:
        """Return the state at time 0, [2], which no parameter changes."""

    def solve(self, theta: Array) -> Array:
        """Return states [N, T, 2] for parameters [N, D]."""
        later, grid = self._grid()
        return planar.solve(type(self).field, theta, self.initial(), grid, self.timestep, self.constants)[:, later:]

    def solution(self, theta: Tensor) -> Tensor:
        """Return states [..., T, 2] for parameters [..., D]; differentiable once."""
        states: Tensor = _Solution.apply(theta.reshape(-1, theta.shape[-1]), self)
        return states.reshape(*theta.shape[:-1], *states.shape[1:])

    def solve_with_slopes(self, theta: Array) -> tuple[Array, Array]:
        """Return states [N, T, 2] and their derivatives in the parameters [N, T, D, 2]."""
        later, grid = self._grid()
        given = theta, self.initial(), grid, self.timestep, self.constants
        states, slopes = planar.solve_with_slopes(type(self).slopes_field, *given)
        return states[:, later:], slopes[:, later:]

    def _grid(self) -> tuple[int, Array]:
        """Return the number of times before the first observation, and all times."""
        later = int(self.times[0] > 0)
        return later, np.concatenate([np.zeros(later), self.times])


class _Solution(torch.autograd.Function):
    """The solution of a `DifferentialSimulator`, with gradients by the slopes."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, simulator: DifferentialSimulator) -> Tensor:
        values = theta.detach().to("cpu", torch.float64).numpy()
        if not ctx.needs_input_grad[0]:
            return torch.from_numpy(simulator.solve(values)).to(theta)
        states, slopes = simulator.solve_with_slopes(values)
        ctx.save_for_backward(torch.from_numpy(slopes).to(theta))
        return torch.from_numpy(states).to(theta)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slopes,) = ctx.saved_tensors
        return torch.einsum("ntc,ntdc->nd", grad, slopes), None
