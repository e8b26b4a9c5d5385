"""Target temperatures and pressures: one for all replicas or one for each, constant or changing with the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simkit.errors import ConfigError

Values = float | Sequence[float] | NDArray[np.float64]
"""A number, or one for each replica."""


@dataclass(frozen=True)
class Ramp:
    """A target that changes linearly with the step from ``start`` (step 0) to ``stop`` (step ``steps``), and stays there.

    Steps count from the beginning of the simulation, also after a restart.

    Attributes:
        start, stop: numbers, or one for each replica.
        steps: at least 1.

    Raises:
        ConfigError: if steps is not a positive whole number.
    """

    start: Values
    stop: Values
    steps: int

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ConfigError(f"a ramp takes a whole number of steps, at least 1; found {self.steps!r}")


class Target:
    """A temperature or pressure as the step that is made sees it."""

    def __init__(self, name: str, value: Values | Ramp, *, positive: bool) -> None:
        """Read a value as a user gives it.

        Args:
            name: what it is, for messages.
            positive: whether it must be.

        Raises:
            ConfigError: if it is not finite, or not positive where it must be, or not one number or a list of numbers.
        """
        self.name = name
        self.ramp = value if isinstance(value, Ramp) else None
        first, last = (value.start, value.stop) if isinstance(value, Ramp) else (value, value)
        self._ends = tuple(_numbers(name, end, positive) for end in (first, last))
        self._tensors: tuple[Tensor, Tensor] | None = None
        self._arrays: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    @property
    def varies(self) -> bool:
        """Whether it changes with the step."""
        return self.ramp is not None

    def plain(self) -> Any:
        """The value as numbers, lists and dictionaries."""
        first, last = (end[0] if len(end) == 1 else list(end) for end in self._ends)
        return first if self.ramp is None else {"start": first, "stop": last, "steps": self.ramp.steps}

    def check(self, replicas: int) -> None:
        """Raises ConfigError if there is neither one value nor one for each replica."""
        for end in self._ends:
            if len(end) not in (1, replicas):
                raise ConfigError(
                    f"{self.name} must be one number or {replicas}, one for each replica; found {len(end)}"
                )

    def at(self, step: int, like: Tensor) -> Tensor:
        """The target of the step that follows ``step`` steps, [1] or [B] float64 on the device of ``like``.

        Nothing is copied to the device but in the first call.
        """
        if self._tensors is None or self._tensors[0].device != like.device:
            first, last = (torch.tensor(end, dtype=torch.float64, device=like.device) for end in self._ends)
            self._tensors = first, last - first
        first, change = self._tensors
        return first if self.ramp is None else first + change * self._share(step)

    def at_host(self, step: int, replicas: int) -> NDArray[np.float64]:
        """The same as an array on the host, [B]; not to be changed."""
        if self._arrays is None or len(self._arrays[0]) != replicas:
            first, last = (np.broadcast_to(np.array(end), replicas).copy() for end in self._ends)
            self._arrays = first, last - first
        first, change = self._arrays
        return first if self.ramp is None else first + change * self._share(step)

    def _share(self, step: int) -> float:
        """How much of the ramp lies behind."""
        return 0.0 if self.ramp is None else min(step / self.ramp.steps, 1.0)


def positive(name: str, value: float) -> float:
    """Return a number that must be positive and finite.

    Raises:
        ConfigError: if it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{name} must be a positive number; found {value!r}")
    return float(value)


def _numbers(name: str, value: Any, positive: bool) -> tuple[float, ...]:
    try:
        numbers = tuple(map(float, value)) if hasattr(value, "__iter__") else (float(value),)
    except (TypeError, ValueError):
        raise ConfigError(f"{name} must be a number, one for each replica, or a Ramp; found {value!r}") from None
    if not numbers or not all(map(math.isfinite, numbers)) or (positive and min(numbers) <= 0):
        raise ConfigError(f"{name} must be {'positive and ' if positive else ''}finite; found {value!r}")
    return numbers
