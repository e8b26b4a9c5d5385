"""What a simulator of physics knows: its quantities, which of them a prior sets free, and the values of the others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simkit.config import nearest
from simkit.errors import ConfigError
from simkit.inference.priors import Array, Prior, prior_from


@dataclass(frozen=True)
class Quantity:
    """A number that a simulation depends on.

    Attributes:
        unit: "" for pure numbers.
        value: where neither the prior nor the user says otherwise; None where one of them must.
        least: the smallest value that means something. Simulations with less fail.
        open: whether ``least`` itself means nothing, too.
    """

    unit: str = ""
    value: float | None = None
    least: float = -math.inf
    open: bool = False


class Quantities:
    """The quantities of a simulator, some of them free.

    Args:
        owner: the simulator's name, for messages.
        known: all quantities, name -> what is known of each.
        prior: of the free ones: a `Prior`, or what `prior_from` takes; units that are left out are those of the quantities.
        fixed: values of others, in place of their defaults.

    Attributes:
        prior: of the free quantities.
        fixed: values of all others.

    Raises:
        ConfigError: if a name is unknown, free and fixed at once, or without a value, if a fixed value means nothing, or if the prior
            has another unit.
    """

    def __init__(
        self,
        owner: str,
        known: Mapping[str, Quantity],
        prior: Prior | Mapping[str, Any],
        fixed: Mapping[str, float] | None = None,
    ) -> None:
        self._owner, self._known = owner, dict(known)
        self.prior = prior if isinstance(prior, Prior) else prior_from(self._with_units(prior))
        given = dict(fixed or {})
        for name in (*self.prior.names, *given):
            self._check_name(name)
        both = [name for name in given if name in self.prior.names]
        if both:
            raise ConfigError(
                f"{owner}: {', '.join(both)} cannot be both fixed and free; leave it out of one of the two"
            )
        for name, unit in zip(self.prior.names, self.prior.units, strict=True):
            if unit not in ("", known[name].unit):
                raise ConfigError(f"{owner}: {name} is in {known[name].unit or 'no unit'}; the prior has {unit!r}")
        self._place = {name: k for k, name in enumerate(self.prior.names)}
        self.fixed = {name: self._fixed(name, given) for name in known if name not in self._place}

    def value(self, theta: Any, name: str) -> Any:
        """Return a quantity for parameters [..., D], an array or a tensor: [...] where it is free, else a number."""
        return theta[..., self._place[name]] if name in self._place else self.fixed[name]

    def tensor(self, theta: Tensor, name: str) -> Tensor:
        """Return a quantity as a tensor like the parameters [..., D]: [...] where it is free, else without dimensions."""
        return torch.as_tensor(self.value(theta, name), dtype=theta.dtype, device=theta.device)

    def column(self, theta: Array, name: str) -> Array:
        """Return a quantity for each of the parameters [N, D], [N]."""
        return np.broadcast_to(np.asarray(self.value(theta, name), dtype=np.float64), (len(theta),)).copy()

    def possible(self, theta: Array) -> np.ndarray:
        """Return which of the parameters [N, D] mean something, [N] bool."""
        fine = np.isfinite(theta).all(axis=1)
        for name, k in self._place.items():
            fine &= _allowed(self._known[name], theta[:, k])
        return np.asarray(fine)

    @property
    def names(self) -> list[str]:
        """All quantities."""
        return list(self._known)

    def is_free(self, name: str) -> bool:
        """Whether a quantity is one of the parameters."""
        return name in self._place

    def describe(self) -> dict[str, Any]:
        """Return, in plain types, what is free and the values of the others."""
        return {"free": list(self.prior.names), "fixed": self.fixed}

    def _check_name(self, name: str) -> None:
        if name not in self._known:
            raise ConfigError(f"{self._owner} has no parameter {name!r}{nearest(name, self._known)}")

    def _with_units(self, prior: Mapping[str, Any]) -> dict[str, Any]:
        if set(prior) == {"joint_normal"}:
            return dict(prior)
        for name in prior:
            self._check_name(name)
        return {
            name: {"unit": self._known[name].unit, **entry} if isinstance(entry, Mapping) else entry
            for name, entry in prior.items()
        }

    def _fixed(self, name: str, given: Mapping[str, float]) -> float:
        quantity = self._known[name]
        number = given.get(name, quantity.value)
        if number is None:
            raise ConfigError(f"{self._owner} needs {name}: give it a value, or a prior to make it free")
        if (
            isinstance(number, bool)
            or not isinstance(number, int | float)
            or not _allowed(quantity, np.float64(number))
        ):
            bound = (
                f" {'above' if quantity.open else 'not below'} {quantity.least:g}" if quantity.least > -math.inf else ""
            )
            raise ConfigError(f"{self._owner}: {name} must be a finite number{bound}; found {number!r}")
        return float(number)


def _allowed(quantity: Quantity, values: Any) -> Any:
    above = values > quantity.least if quantity.open else values >= quantity.least
    return np.isfinite(values) & above


def positive(owner: str, **values: float) -> None:
    """Raises ConfigError if a setting is not a positive, finite number."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{owner}: {name} must be a positive number; found {value!r}")


def increasing(owner: str, name: str, values: Any, *, least: float = 0.0, exclusive: bool = False) -> tuple[float, ...]:
    """Return times or the like as a tuple.

    Raises:
        ConfigError: if they are not finite and increasing, or the first is below ``least``, or at it where that is ``exclusive``.
    """
    array = np.asarray(values, dtype=np.float64)
    before = least if exclusive else np.nextafter(least, -np.inf)
    if (
        array.ndim != 1
        or not len(array)
        or not np.isfinite(array).all()
        or not (np.diff(array, prepend=before) > 0).all()
    ):
        bound = f"{'above' if exclusive else 'not below'} {least:g}"
        raise ConfigError(f"{owner}: {name} must be increasing numbers {bound}; found {array.tolist()}")
    return tuple(array.tolist())
