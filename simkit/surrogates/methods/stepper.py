"""What an integration method of fixed steps is to the rollout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

Field = Callable[[float, Tensor, Tensor | None], Tensor]
"""field(t, state [..., 2D], control [..., U] or None) -> d state/dt [..., 2D]."""


class Stepper(Protocol):
    """A method of fixed steps on a state of its own, into which the model's state is brought once and read out at each frame."""

    symmetric: bool
    """Whether a step with -h undoes one with h, so that gradients can be had by retracing."""

    def start(self, state: Tensor) -> Tensor:
        """Return the method's state for the model's [..., 2D]."""

    def read(self, inner: Tensor) -> Tensor:
        """Return the model's state, [..., 2D]."""

    def advance(self, inner: Tensor, control: Tensor | None, t: float, h: float, steps: int) -> Tensor:
        """Return the method's state after a number of steps of length ``h`` from the time ``t``, under a constant control."""


class Direct:
    """Base of the methods that work on the model's own state."""

    def start(self, state: Tensor) -> Tensor:
        """Return the state as it is."""
        return state

    def read(self, inner: Tensor) -> Tensor:
        """Return the state as it is."""
        return inner
