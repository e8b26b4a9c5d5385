"""The option that several ready simulators take: another prior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from simkit.errors import ConfigError
from simkit.inference.priors import Prior, prior_from


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
