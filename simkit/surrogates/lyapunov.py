"""How fast nearby trajectories part: the largest Lyapunov exponent of a known system."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simkit.errors import DataError
from simkit.surrogates.systems.dynamics import Dynamics

Array = NDArray[np.float64]


def lyapunov_exponent(
    system: Dynamics,
    states: Array,
    duration: float,
    *,
    interval: float,
    transient: float = 0.0,
    separation: float = 1e-7,
    seed: int = 0,
) -> Array:
    """Return the largest Lyapunov exponent along each of several trajectories, 1/time; its inverse is the Lyapunov time.

    A second trajectory starts close by, in a random direction. After each interval the logarithm of how much their distance grew is
    added up, and the second is brought back along the line between them (G. Benettin, L. Galgani & J.-M. Strelcyn, Phys. Rev. A 14,
    2338 (1976)).
    Distances are Euclidean in the system's own state. The estimate of a regular trajectory falls as log(duration) / duration.

    Args:
        system: any known system.
        states: initial states, [S, N].
        duration: over which growth is averaged, after the transient.
        interval: between renormalisations; the distance must stay small within it, so take a fraction of the Lyapunov time.
        transient: left out at the start, until the distance points where it grows fastest.
        separation: distance after each renormalisation, relative to the norm of the initial state where that is above 1.
        seed: of the first directions.

    Returns:
        [S].

    Raises:
        DataError: if an argument is not positive, or the motion cannot be integrated.
    """
    if not (interval > 0 and duration >= interval and transient >= 0 and separation > 0):
        raise DataError(
            "the interval and the separation must be positive, the duration at least one interval and the transient not negative; "
            f"found {interval}, {separation}, {duration}, {transient}"
        )
    first = np.array(states, dtype=np.float64)
    if first.ndim != 2:
        raise DataError(f"states must be [trajectories, components]; found shape {first.shape}")
    direction = np.random.default_rng(seed).standard_normal(first.shape)
    size = separation * np.maximum(1.0, np.linalg.norm(first, axis=1, keepdims=True))
    second = first + size * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    skipped, counted = round(transient / interval), max(1, round(duration / interval))
    growth = np.zeros(len(first))
    for step in range(skipped + counted):
        times = np.array([step, step + 1]) * interval
        moved = system.integrate(np.concatenate([first, second]), times)[:, -1]
        first, apart = moved[: len(first)], moved[len(first) :] - moved[: len(first)]
        distance = np.linalg.norm(apart, axis=1, keepdims=True)
        if not (distance > 0).all():
            raise DataError("two trajectories met; increase the separation or the interval")
        if step >= skipped:
            growth += np.log(distance / size)[:, 0]
        second = first + apart * (size / distance)
    return growth / (counted * interval)
