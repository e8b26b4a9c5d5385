"""Elementary functions for compiled loops, written so that a loop over numbers becomes vector instructions.

Calls of the C library keep a compiler from that. Arguments and results are float64. Errors are a few units in the last place, for sine
and cosine a few 1e-16 absolutely up to |x| = 1e6; the tests bound them.

Exponentials are 2^n (1 + p) with p = exp(r) - 1 and r = x - n ln 2 in [-ln 2/2, ln 2/2]; sine and cosine reduce x by multiples of pi/2 in
three parts (W. J. Cody & W. Waite, "Software manual for the elementary functions", 1980). The polynomials are Taylor's.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numba import njit

# Products and sums may be joined to one rounding. Nothing may be rearranged: the reductions would lose their purpose.
vectorizable = functools.partial(njit, error_model="numpy", fastmath={"contract"}, nogil=True)
"""njit with the options of loops over these functions."""

_inlined = functools.partial(vectorizable, cache=True, forceinline=True)

_ROUND = 1.5 * 2.0**52  # x + this - this is the nearest integer, whose low bits are the low bits of the sum
_LOG2_E = 1 / math.log(2)
_LN2 = float.fromhex("0x1.62e42fee00000p-1"), float.fromhex("0x1.a39ef35793c76p-33")
_TWO_OVER_PI = 2 / math.pi
_HALF_PI = tuple(map(float.fromhex, ("0x1.921fb54400000p0", "0x1.0b4611a600000p-34", "0x1.3198a2e037073p-69")))
_E = tuple(1 / math.factorial(k) for k in range(14))
_SIN = tuple((-1) ** k / math.factorial(2 * k + 1) for k in range(9))
_COS = tuple((-1) ** k / math.factorial(2 * k) for k in range(9))
_ATANH = tuple(1 / (2 * k + 1) for k in range(17))


@_inlined
def _two_to_the_and_rest(x):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """Return (2^n, p) with exp(x) = 2^n (1 + p), for |x| up to 700."""
    shifted = x * _LOG2_E + _ROUND
    n = shifted - _ROUND
    r = (x - n * _LN2[0]) - n * _LN2[1]
    high = _E[7] + r * (_E[8] + r * (_E[9] + r * (_E[10] + r * (_E[11] + r * (_E[12] + r * _E[13])))))
    p = r + r * r * (_E[2] + r * (_E[3] + r * (_E[4] + r * (_E[5] + r * (_E[6] + r * high)))))
    bits = (np.float64(shifted).view(np.int64) << np.int64(52)) + np.int64(1023 << 52)
    return np.int64(bits).view(np.float64), p


@_inlined
def tanh(x):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Return the hyperbolic tangent."""
    y = 2.0 * x
    y = 40.0 if y > 40.0 else y  # 1 to the last bit; not min(), which would hide NaN
    y = -40.0 if y < -40.0 else y
    scale, p = _two_to_the_and_rest(y)
    minus_one = scale * p + (scale - 1.0)  # exp(2 x) - 1
    return minus_one / (minus_one + 2.0)


@_inlined
def sigmoid(x):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Return 1/(1 + exp(-x))."""
    y = 700.0 if x > 700.0 else x
    y = -700.0 if y < -700.0 else y
    scale, p = _two_to_the_and_rest(-y)
    return 1.0 / (1.0 + (scale + scale * p))


@_inlined
def softplus(x):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Return ln(1 + exp(x))."""
    y = abs(x)
    y = 700.0 if y > 700.0 else y
    scale, p = _two_to_the_and_rest(-y)
    u = scale + scale * p
    s = u / (2.0 + u)  # ln(1 + u) = 2 artanh(s), with s up to 1/3
    t = s * s
    high = _ATANH[12] + t * (_ATANH[13] + t * (_ATANH[14] + t * (_ATANH[15] + t * _ATANH[16])))
    high = _ATANH[7] + t * (_ATANH[8] + t * (_ATANH[9] + t * (_ATANH[10] + t * (_ATANH[11] + t * high))))
    series = _ATANH[3] + t * (_ATANH[4] + t * (_ATANH[5] + t * (_ATANH[6] + t * high)))
    small = 2.0 * (s + s * t * (_ATANH[1] + t * (_ATANH[2] + t * series)))
    return (x if x > 0.0 else 0.0) + small


@_inlined
def _quadrant(x):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Return (n, sin r, cos r) with x = n pi/2 + r and r in [-pi/4, pi/4]."""
    shifted = x * _TWO_OVER_PI + _ROUND
    n = shifted - _ROUND
    r = ((x - n * _HALF_PI[0]) - n * _HALF_PI[1]) - n * _HALF_PI[2]
    t = r * r
    odd = _SIN[4] + t * (_SIN[5] + t * (_SIN[6] + t * (_SIN[7] + t * _SIN[8])))
    even = _COS[4] + t * (_COS[5] + t * (_COS[6] + t * (_COS[7] + t * _COS[8])))
    sine = r + r * t * (_SIN[1] + t * (_SIN[2] + t * (_SIN[3] + t * odd)))
    cosine = 1.0 + t * (_COS[1] + t * (_COS[2] + t * (_COS[3] + t * even)))
    return np.float64(shifted).view(np.int64), sine, cosine


@_inlined
def sin(x):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Return the sine."""
    n, sine, cosine = _quadrant(x)
    value = cosine if n & 1 else sine
    return -value if n & 2 else value


@_inlined
def cos(x):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Return the cosine."""
    n, sine, cosine = _quadrant(x)
    value = sine if n & 1 else cosine
    return -value if (n + 1) & 2 else value
