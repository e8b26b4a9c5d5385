"""Options that several ready simulators take: another prior, and the times of observations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simkit.errors import ConfigError
from simkit.inference.priors import Array, Prior, prior_from


def chosen_prior(given: Prior | Mapping[str, Any] | None, default: Prior, lowest: float = -np.inf) -> Prior:
    """Return the prior that was asked for, or the default.

    Args:
        given: a prior of the same parameters in the same order, or its description as `simkit.inference.priors.prior_from` reads it.
        lowest: that a parameter may be.

    Raises:
        ConfigError: if its parameters are others, or may be lower than allowed.
    """
    if given is None:
        return default
    prior = given if isinstance(given, Prior) else prior_from(given)
    if prior.names != default.names:
        raise ConfigError(
            f"expected a prior of {', '.join(default.names)}, in this order; found {', '.join(prior.names)}"
        )
    low = prior.support()[0]
    if (low < lowest).any():
        name = prior.names[int(np.argmax(low < lowest))]
        raise ConfigError(
            f"{name} must not be less than {lowest:g}; choose a prior whose support begins there or later"
        )
    return prior


def checked_times(times: Sequence[float]) -> Array:
    """Return times [T] of observations.

    Raises:
        ConfigError: if there are none, or they do not increase from 0 or later.
    """
    values = np.array(times, dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all() or values[0] < 0 or (np.diff(values) <= 0).any():
        raise ConfigError(f"the times of observations must be finite, not negative and increasing; found {list(times)}")
    return values
