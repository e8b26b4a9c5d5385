"""The counter-based random numbers: published vectors, the same bits everywhere, what they depend on, and their distribution."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from simkit.errors import ConfigError
from simkit.integrators import philox, philox_torch

WORD = st.integers(0, 2**32 - 1)

# Random123, file kat_vectors, "philox4x32 10": counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def torch_words(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    c, k = torch.as_tensor(counter, dtype=torch.int64), torch.as_tensor(key, dtype=torch.int64)
    c0, c1, c2, c3 = c.unbind(-1)
    k0, k1 = k.unbind(-1)
    return philox_torch.random_words((c0, c1, c2, c3), (k0, k1)).numpy()


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_known_answers(counter: str, key: str, result: str) -> None:
    assert philox.random_words(words(counter), words(key)).tolist() == words(result)
    assert torch_words(np.array(words(counter)), np.array(words(key))).tolist() == words(result)


def test_the_same_bits_in_numba_and_torch(rng: np.random.Generator) -> None:
    counter, key = rng.integers(0, 2**32, (1000, 4)), rng.integers(0, 2**32, (1000, 2))
    assert np.array_equal(philox.random_words(counter, key), torch_words(counter, key))
    # Many counters under one key.
    assert np.array_equal(philox.random_words(counter, key[0]), torch_words(counter, key[0]))


@given(WORD, WORD)
def test_box_muller_of_any_words(first: int, second: int) -> None:
    """The compiled series against the mathematical library, also for the smallest and the largest word."""
    for a, b in ((first, second), (0, 2**32 - 1), (2**32 - 1, 0), (2**31, 2**29), (3 << 30, (1 << 29) - 1)):
        u, angle = (a + 0.5) / 2**32, 2 * math.pi * ((b + 0.5) / 2**32)
        assert 0 < u < 1
        expected = math.sqrt(-2 * (math.log(u) if u < 0.5 else math.log1p(u - 1)))
        assert philox.radius(np.uint64(a)) == pytest.approx(expected, rel=4e-16)
        # The library's argument carries a rounding error of up to half a unit in the last place of 2 pi.
        assert philox.turn(np.uint64(b)) == pytest.approx((math.cos(angle), math.sin(angle)), abs=1e-15)


def test_how_the_words_are_filled() -> None:
    seed, step, replica, atom, stream = 0x0123456789ABCDEF, 0xFEDC_BA987654, 0x13579BDF, 0x2468ACE0, 0xBEEF
    counter = [0x2468ACE0, 0x13579BDF, 0xBA987654, 0xBEEFFEDC]
    w = philox.random_words(counter, [0x89ABCDEF, 0x01234567]).astype(float)
    u = (w + 0.5) / 2**32
    expected = [
        math.sqrt(-2 * math.log(u[i])) * function(2 * math.pi * u[i + 1])
        for i in (0, 2)
        for function in (math.cos, math.sin)
    ]
    assert philox.normals(seed, step, replica, atom, stream) == pytest.approx(expected, abs=1e-14)


def test_normals_are_the_same_in_numba_and_torch() -> None:
    replica, atom = torch.arange(2**32 - 50, 2**32)[:, None], torch.arange(100)
    compiled = philox.normals(2**64 - 1, 2**48 - 1, replica.numpy(), atom.numpy(), 3)
    plain = philox_torch.normals(2**64 - 1, 2**48 - 1, replica, atom, 3)
    assert compiled.shape == (50, 100, 4)
    np.testing.assert_allclose(plain.numpy(), compiled, rtol=0, atol=1e-14)


def test_normals_depend_on_their_own_identity_only(rng: np.random.Generator) -> None:
    """Any part of a batch, in any order, has the same bits."""
    replica, atom = np.repeat(np.arange(40), 25), np.tile(np.arange(25), 40)
    everything = philox.normals(7, 11, replica, atom)
    some = rng.permutation(1000)[:137]
    assert np.array_equal(philox.normals(7, 11, replica[some], atom[some]), everything[some])
    one = [philox.normals(7, 11, replica[i], atom[i]) for i in some[:9]]
    assert np.array_equal(one, everything[some[:9]])


def test_distribution() -> None:
    """A million numbers: their distribution, and that those of neighboring counters and keys know nothing of each other."""
    atoms = np.arange(250_000)
    numbers = philox.normals(1, 2, 3, atoms)
    assert scipy.stats.kstest(numbers.reshape(-1), "norm").pvalue > 1e-3
    # Four standard errors of the mean, the variance and the fourth moment of a million.
    assert abs(numbers.mean()) < 4e-3
    assert abs(numbers.var() - 1) < 4e-3 * math.sqrt(2)
    assert abs((numbers**4).mean() - 3) < 4e-3 * math.sqrt(96)
    others = [
        philox.normals(2, 2, 3, atoms),
        philox.normals(1, 3, 3, atoms),
        philox.normals(1, 2, 4, atoms),
        philox.normals(1, 2, 3, atoms, stream=1),
        philox.normals(1, 2, 3, atoms + 1),
    ]
    for other in others:
        assert abs(np.corrcoef(numbers.T, other.T) - np.eye(8)).max() < 5 / math.sqrt(len(atoms))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 2**48, 0, 0), "steps from 0 to 2\\^48 - 1"),
        ((1, -1, 0, 0), "found step -1"),
        ((1, 0, 0, 0, 2**16), "stream 65536"),
        ((1, 0, -1, 0), "replica must hold integers from 0"),
        ((1, 0, 0, 2**32), "atom must hold integers from 0"),
        ((1, 0, 0.5, 0), "replica must hold integers"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        philox.normals(*arguments)
