"""Random numbers that are a function of (seed, step, replica, atom): Philox4x32-10, compiled by Numba for CPU and CUDA.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11 (2011),
doi:10.1145/2063384.2063405, section 3.3. A counter of four words is encrypted under a key of two; nothing is kept between calls.

How simkit fills the words (32 bits each):

| Word | Holds |
| --- | --- |
| counter 0 | atom, its place within its replica |
| counter 1 | replica |
| counter 2 | step, low 32 bits |
| counter 3 | step, bits 32 to 47, and above them the stream (16 bits): what the number is for |
| key 0, 1 | seed, low and high 32 bits |

A noise operator of a scheme has its place among the scheme's noise operators as its stream; other uses take streams from the top.

A word w becomes u = (w + 1/2) / 2^32, which is exact in float64 and lies strictly between 0 and 1. Four words give four standard normal
numbers by Box and Muller (Ann. Math. Stat. 29, 610 (1958), doi:10.1214/aoms/1177706645): sqrt(-2 ln u0) times cos and sin of 2 pi u1,
and the same of u2 and u3. They are computed in float64 also where the state is float32, and reach out to 6.76.

Logarithm, sine and cosine are power series after exact range reductions, because loops over them become vector instructions, which
calls of the library's functions do not.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from simkit.errors import ConfigError

MAX_STEP = 2**48
MAX_STREAM = 2**16

# 64-bit variables that hold 32-bit words: products are exact, and no type is promoted to floating point.
_U = np.uint64
_MULTIPLIER_0, _MULTIPLIER_1 = _U(0xD2511F53), _U(0xCD9E8D57)
_WEYL_0, _WEYL_1 = _U(0x9E3779B9), _U(0xBB67AE85)
_LOW, _HALF = _U(0xFFFFFFFF), _U(32)

_MANTISSA = np.int64(52)
_SQRT_HALF = np.float64(math.sqrt(0.5)).view(np.int64)
_LN2 = math.log(2.0)
_EIGHTH, _QUARTER = np.int64(1 << 29), np.int64(30)  # of a turn, the whole of which is 2^32: a number, and a shift
_ANGLE = 2 * math.pi * 2.0**-32
# Factors of the series, from the last term to the first: artanh s / s - 1 in s^2; cos and sin(a)/a in a^2, one factored into the other.
_ARTANH = tuple(1 / n for n in range(21, 1, -2))
_COS = tuple(1 / (n * (n - 1)) for n in range(16, 0, -2))
_SIN = tuple(1 / (n * (n - 1)) for n in range(17, 1, -2))

# Without inlining, no loop over these becomes vector instructions.
_inline = njit(forceinline=True, error_model="numpy")


@_inline
def philox4x32(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """The four words of a counter under a key; all of them uint64 below 2^32."""
    for _ in range(10):
        first, second = _MULTIPLIER_0 * c0, _MULTIPLIER_1 * c2
        c0, c1, c2, c3 = (second >> _HALF) ^ c1 ^ k0, second & _LOW, (first >> _HALF) ^ c3 ^ k1, first & _LOW
        k0, k1 = (k0 + _WEYL_0) & _LOW, (k1 + _WEYL_1) & _LOW
    return c0, c1, c2, c3


@_inline
def radius(word):  # type: ignore[no-untyped-def]  # pragma: no cover
    """sqrt(-2 ln u) of u = (word + 1/2) / 2^32."""
    bits = np.float64((np.float64(np.int64(word)) + 0.5) * 2.0**-32).view(np.int64)
    power = (bits - _SQRT_HALF) >> _MANTISSA  # u = 2^power m, with m from sqrt(1/2) to sqrt(2)
    m = np.int64(bits - (power << _MANTISSA)).view(np.float64)
    s = (m - 1.0) / (m + 1.0)  # ln m = 2 artanh s
    z = s * s
    series = 0.0
    for factor in _ARTANH:
        series = series * z + factor
    return math.sqrt(-2.0 * (power * _LN2 + (2.0 * s + 2.0 * s * z * series)))


@_inline
def turn(word):  # type: ignore[no-untyped-def]  # pragma: no cover
    """cos and sin of 2 pi u, u = (word + 1/2) / 2^32."""
    place = np.int64(word)
    quarter = (place + _EIGHTH) >> _QUARTER  # the nearest multiple of a quarter turn
    angle = (np.float64(place - (quarter << _QUARTER)) + 0.5) * _ANGLE
    z = angle * angle
    cos = sin = 1.0
    for factor in _COS:
        cos = 1.0 - z * factor * cos
    for factor in _SIN:
        sin = 1.0 - z * factor * sin
    sin *= angle
    odd = (quarter & 1) != 0
    x, y = sin if odd else cos, cos if odd else sin
    return -x if ((quarter + 1) & 2) != 0 else x, -y if (quarter & 2) != 0 else y


@_inline
def four_normals(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Four standard normal numbers of a counter under a key."""
    w0, w1, w2, w3 = philox4x32(c0, c1, c2, c3, k0, k1)
    r, s = radius(w0), radius(w2)
    cos, sin = turn(w1)
    cos_2, sin_2 = turn(w3)
    return r * cos, r * sin, s * cos_2, s * sin_2


def words_of_key(seed: int) -> tuple[int, int]:
    """The key that stands for a seed from 0 to 2^64 - 1."""
    return seed & 0xFFFFFFFF, seed >> 32


def words_of_step(step: int, stream: int) -> tuple[int, int]:
    """The counter's last two words.

    Raises:
        ConfigError: if the step does not lie from 0 to 2^48 - 1 or the stream from 0 to 2^16 - 1.
    """
    if not 0 <= step < MAX_STEP or not 0 <= stream < MAX_STREAM:
        raise ConfigError(
            f"random numbers exist for steps from 0 to 2^48 - 1 and streams from 0 to 2^16 - 1; found step {step}, stream {stream}"
        )
    return step & 0xFFFFFFFF, (step >> 32) | (stream << 16)


def as_words(values: ArrayLike, name: str) -> NDArray[np.uint32]:
    """Return integers as words of 32 bits.

    Raises:
        ConfigError: if they are no integers from 0 to 2^32 - 1.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "iu" or (array.size and not 0 <= int(array.min()) <= int(array.max()) < 2**32):
        raise ConfigError(f"{name} must hold integers from 0 to 2^32 - 1; found {array.dtype} {array.reshape(-1)[:4]}")
    return array.astype(np.uint32)


def random_words(counter: ArrayLike, key: ArrayLike) -> NDArray[np.uint32]:
    """Return Philox4x32-10 of counters under keys.

    Args:
        counter: [..., 4] uint32. key: [..., 2] uint32; the two are broadcast against each other.

    Returns:
        [..., 4] uint32.
    """
    counters, keys = as_words(counter, "counter"), as_words(key, "key")
    shape = np.broadcast_shapes(counters.shape[:-1], keys.shape[:-1])
    out = np.empty((*shape, 4), dtype=np.uint32)
    copies = (np.array(np.broadcast_to(w, (*shape, w.shape[-1]))).reshape(-1, w.shape[-1]) for w in (counters, keys))
    _fill_words(*copies, out.reshape(-1, 4))
    return out


def normals(seed: int, step: int, replica: ArrayLike, atom: ArrayLike, stream: int = 0) -> NDArray[np.float64]:
    """Return four standard normal numbers for each pair of replica and atom.

    Args:
        seed: from 0 to 2^64 - 1. step: from 0 to 2^48 - 1. stream: from 0 to 2^16 - 1.
        replica, atom: integers from 0 to 2^32 - 1 of shapes that broadcast.

    Returns:
        [..., 4] float64, of the broadcast shape. Those of three components are the first three.
    """
    atoms, replicas = as_words(atom, "atom"), as_words(replica, "replica")
    shape = np.broadcast_shapes(atoms.shape, replicas.shape)
    out = np.empty((*shape, 4))
    flat = (np.array(np.broadcast_to(words, shape)).reshape(-1) for words in (atoms, replicas))
    key, last = words_of_key(seed), words_of_step(step, stream)
    _fill_normals(*flat, *map(_U, (*last, *key)), out.reshape(-1, 4))
    return out


@njit(error_model="numpy")
def _fill_words(counters, keys, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    for i in range(len(out)):
        c, k = counters[i], keys[i]
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = philox4x32(
            _U(c[0]), _U(c[1]), _U(c[2]), _U(c[3]), _U(k[0]), _U(k[1])
        )


@njit(error_model="numpy")
def _fill_normals(atoms, replicas, c2, c3, k0, k1, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    for i in range(len(out)):
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = four_normals(_U(atoms[i]), _U(replicas[i]), c2, c3, k0, k1)
