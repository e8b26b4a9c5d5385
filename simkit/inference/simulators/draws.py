"""Random numbers for compiled simulations: blocks of four from the counter-based generator of `simkit.integrators.philox`.

The key is the seed of the simulation, so each has a stream of its own. Normal and uniform numbers come from different counters: block 0 of
the ones has nothing to do with block 0 of the others.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from simkit.integrators.philox import four_normals, philox4x32

_inline = njit(forceinline=True, error_model="numpy")
_U = np.uint64
_ZERO, _UNIFORM = _U(0), _U(1 << 16)
_WORD = 2.0**-32


@_inline
def normals(block, k0, k1):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """Four standard normal numbers."""
    return four_normals(_U(block), _ZERO, _ZERO, _ZERO, k0, k1)


@_inline
def uniforms(block, k0, k1):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Four numbers uniform between 0 and 1, neither of which occurs."""
    w0, w1, w2, w3 = philox4x32(_U(block), _ZERO, _ZERO, _UNIFORM, k0, k1)
    return (w0 + 0.5) * _WORD, (w1 + 0.5) * _WORD, (w2 + 0.5) * _WORD, (w3 + 0.5) * _WORD


@_inline
def fine_uniforms(block, k0, k1):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Two such numbers of 52 bits, for inversion of distributions with long tails."""
    w0, w1, w2, w3 = philox4x32(_U(block), _ZERO, _ZERO, _UNIFORM, k0, k1)
    return ((w0 >> _U(12)) + (w1 + 0.5) * _WORD) * 2.0**-20, ((w2 >> _U(12)) + (w3 + 0.5) * _WORD) * 2.0**-20


@njit(error_model="numpy")
def binomial(trials, p, u):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The number of successes that a uniform number u stands for, by inversion from the mode outwards (Devroye 1986, X.1)."""
    if p <= 0.0 or p >= 1.0:
        return 0 if p <= 0.0 else trials
    mode = math.floor((trials + 1) * p)
    odds = p / (1.0 - p)
    log_ways = math.lgamma(trials + 1.0) - math.lgamma(mode + 1.0) - math.lgamma(trials - mode + 1.0)
    above = below = math.exp(log_ways + mode * math.log(p) + (trials - mode) * math.log1p(-p))
    up = down = mode
    u -= above
    while u > 0.0:
        if up == trials and down == 0:
            return mode  # what rounding left of the total of 1
        if up < trials:
            above *= odds * (trials - up) / (up + 1)
            up += 1
            u -= above
            if u <= 0.0:
                return up
        if down > 0:
            below *= down / (odds * (trials - down + 1))
            down -= 1
            u -= below
            if u <= 0.0:
                return down
    return mode
