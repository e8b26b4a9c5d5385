"""Random numbers of a simulation: functions of its own seed and of what they are for."""

from __future__ import annotations

import functools

import numpy as np
from numba import njit

from simkit.inference.priors import Array
from simkit.inference.simulator import Seeds
from simkit.integrators.philox import four_normals

INITIAL, MEASUREMENT, RESCALING = 65535, 65533, 65534
"""Streams of `simkit.integrators.philox` that no scheme takes: initial states, errors of measurement, the thermostat."""

_compile = functools.partial(njit, nogil=True, error_model="numpy", cache=True)


@_compile
def key_of(seed):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """The two words of a seed's key."""
    return seed & np.uint64(0xFFFFFFFF), seed >> np.uint64(32)


@_compile
def last_words(step, stream):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The last two words of the counter, see `simkit.integrators.philox.words_of_step`."""
    return np.uint64(step & 0xFFFFFFFF), np.uint64((step >> 32) | (stream << 16))


@_compile
def _fill(seeds, stream, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    low, high = last_words(0, stream)
    for i in range(out.shape[0]):
        first, second = key_of(seeds[i])
        for k in range(0, out.shape[1], 4):
            four = four_normals(np.uint64(k // 4), np.uint64(0), low, high, first, second)
            for j in range(min(4, out.shape[1] - k)):
                out[i, k + j] = four[j]


def standard_normals(seeds: Seeds, count: int, stream: int = MEASUREMENT) -> Array:
    """Return standard normal numbers [N, count] for simulations of the seeds [N]; the first ones do not depend on ``count``."""
    out = np.empty((len(seeds), count))
    _fill(np.ascontiguousarray(seeds, dtype=np.uint64), stream, out)
    return out
