"""Errors of motion against loops and closed forms, and Lyapunov exponents against linear systems and published values."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from simkit.errors import DataError
from simkit.surrogates import metrics
from simkit.surrogates.lyapunov import lyapunov_exponent
from simkit.surrogates.systems import build
from simkit.surrogates.systems.first_order import FirstOrder


def states(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(3, 5, 4)), generator.normal(size=(3, 5, 4))


def test_relative_and_squared_errors_by_loops() -> None:
    found, true = states()
    relative, squared = metrics.relative_error(found, true), metrics.squared_error(found, true)
    product = 1.0
    for s in range(3):
        for t in range(5):
            x, y = found[s, t].tolist(), true[s, t].tolist()
            distance = math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)))
            assert relative[s, t] == pytest.approx(distance / (math.hypot(*x) + math.hypot(*y)), rel=1e-13)
            assert squared[s, t] == pytest.approx(distance**2 / 4, rel=1e-13)
            product *= relative[s, t] + 1e-8
    assert metrics.geometric_mean(relative.ravel()) == pytest.approx(product ** (1 / 15), rel=1e-12)
    assert metrics.geometric_mean(relative).shape == (3,)


def test_what_is_not_finite_is_the_worst() -> None:
    found, true = states()
    found[0, 2, 1], found[1, 3, 0], found[2, 4, 3] = np.nan, np.inf, 1e200
    true[2, 0] = found[2, 0] = 0.0
    relative, squared = metrics.relative_error(found, true), metrics.squared_error(found, true)
    assert relative[0, 2] == relative[1, 3] == relative[2, 4] == 1.0
    assert relative[2, 0] == 0.0
    assert np.isfinite(relative).all()
    assert relative.max() <= 1
    assert np.argwhere(np.isinf(squared)).tolist() == [[0, 2], [1, 3], [2, 4]]
    energies = found[..., 0], true[..., 0]
    assert np.isinf(metrics.energy_mse(*energies)).tolist() == [False, True, False]
    assert np.isinf(metrics.energy_drift(np.arange(5.0), *energies)).tolist() == [False, True, False]
    summary = metrics.spread([1.0, 2.0, np.inf])
    assert summary == {"mean": None, "median": 2.0, "min": 1.0, "max": None}


def test_energies() -> None:
    times = np.array([0.0, 0.5, 2.0, 3.0])
    true = np.array([[1.0, 1.0, 1.0, 1.0], [2.0, 1.5, 0.0, -1.0]])
    found = true + np.stack([0.1 + 0.25 * times, -0.5 * times])
    np.testing.assert_allclose(metrics.energy_drift(times, found, true), [0.25, -0.5], rtol=1e-13)
    by_hand = [(0.1**2 + 0.225**2 + 0.6**2 + 0.85**2) / 4, (0.25**2 + 1 + 1.5**2) / 4]
    np.testing.assert_allclose(metrics.energy_mse(found, true), by_hand, rtol=1e-13)
    np.testing.assert_allclose(metrics.energy_error(found, true, 2.0)[:, -1], [0.425, 0.75], rtol=1e-13)
    with pytest.raises(DataError, match="must be positive"):
        metrics.energy_error(found, true, 0.0)


def test_time_to_divergence() -> None:
    times = np.array([1.0, 1.5, 2.5, 4.0])
    errors = np.array([[0, 0.05, 0.2, 0.05], [0, 0.1, 0.1, 0.1], [0, 0.5, 0.0, 1.0], [0, 0.0, np.nan, 0.0]])
    assert metrics.time_to_divergence(times, errors, 0.1).tolist() == [1.5, math.inf, 0.5, 1.5]


def test_angles_and_parameters() -> None:
    found, true = metrics.nearest_angles([3.1 + 4 * math.pi, -7.0], [-3.1, 7.0])
    np.testing.assert_allclose(true, [-3.1, 7.0 - 2 * math.pi])
    np.testing.assert_allclose(found, [3.1 - 2 * math.pi, -7.0 + 2 * math.pi])
    assert abs(found - true).max() < math.pi
    known = {"frequency": 0.5, "friction": 0.2}
    assert metrics.parameter_error({"frequency": 0.52}, known) == pytest.approx(0.04)
    assert metrics.parameter_error({"frequency": 0.52, "friction": 0.18}, known) == pytest.approx(0.07)
    with pytest.raises(DataError, match="damping"):
        metrics.parameter_error({"damping": 0.2}, known)


def test_true_values_must_be_there() -> None:
    with pytest.raises(DataError, match="one shape"):
        metrics.relative_error(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(DataError, match="must be finite"):
        metrics.squared_error(np.zeros((2, 3)), np.full((2, 3), np.nan))


class Lorenz(FirstOrder):
    """The system of Lorenz 1963 with its usual parameters."""

    name = "lorenz"

    def __init__(self) -> None:
        super().__init__(3, {})

    def vector_field(self, t: Any, state: torch.Tensor) -> torch.Tensor:
        x, y, z = state.unbind(-1)
        return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], -1)

    def numba_parameters(self) -> np.ndarray:
        return np.zeros(1)

    @staticmethod
    def field(t: float, state: Any, parameters: Any, out: Any) -> None:
        out[0] = 10 * (state[1] - state[0])
        out[1] = state[0] * (28 - state[2]) - state[1]
        out[2] = state[0] * state[1] - 8 / 3 * state[2]

    def sample(self, count: int, seed: int, protocol: Any = "") -> np.ndarray:
        return np.random.default_rng(seed).normal([0.0, 0.0, 25.0], 1.0, (count, 3))


def test_the_exponent_of_a_saddle() -> None:
    """H = p^2/(2 m) - k q^2/2 grows as exp(sqrt(k/m) t); the transient leaves the stable direction behind.

    The bound is the integrator's tolerance over the separation, 1e-12 / 1e-7.
    """
    saddle = build("spring", {"mass": 0.5, "stiffness": -2.0})
    found = lyapunov_exponent(saddle, np.zeros((3, 2)), 10.0, interval=0.5, transient=10.0)
    np.testing.assert_allclose(found, 2.0, rtol=1e-5)
    hanging = build("pendulum", {"gravity": -6.0})  # upright at q = 0
    upright = lyapunov_exponent(hanging, np.zeros((1, 2)), 5.0, interval=0.25, transient=10.0)
    np.testing.assert_allclose(upright, math.sqrt(6.0), rtol=1e-5)


def test_regular_motion_has_none() -> None:
    """Of a harmonic spring the distance turns on an ellipse with axes 1 : 1, so nothing grows."""
    found = lyapunov_exponent(build("spring"), np.array([[0.5, 0.3]]), 20.0, interval=1.0)
    assert abs(found[0]) < 1e-5


def test_the_exponent_of_lorenz() -> None:
    """0.9056 (J. C. Sprott, Chaos and Time-Series Analysis, 2003); the bound is 5 standard errors over trajectories."""
    system = Lorenz()
    found = lyapunov_exponent(system, system.sample(16, 1), 150.0, interval=0.5, transient=10.0)
    error = found.std(ddof=1) / 4
    assert error < 0.02
    assert found.mean() == pytest.approx(0.9056, abs=5 * error)


def test_exponents_do_not_depend_on_the_batch() -> None:
    """And those of Henon and Heiles' system tell an ordered orbit from a chaotic one, at the energy 1/8."""
    system = build("henon_heiles")
    start = np.array([[0.0, 0.55, 0.0, 0.0], [0.0, -0.25, 0.0, 0.0]])  # (x, y, p_x, p_y) on Poincare's section x = 0
    start[:, 2] = np.sqrt(0.25 - start[:, 1] ** 2 + 2 / 3 * start[:, 1] ** 3)
    energies = system.energy(torch.from_numpy(start))
    torch.testing.assert_close(energies, torch.full((2,), 0.125, dtype=torch.float64))
    both = lyapunov_exponent(system, start, 2000.0, interval=10.0)
    assert both[0] < 0.01 < 0.03 < both[1] < 0.07
    alone = lyapunov_exponent(system, start[:1], 100.0, interval=10.0)
    assert alone[0] == lyapunov_exponent(system, start, 100.0, interval=10.0)[0]


@pytest.mark.parametrize("wrong", [{"interval": 0.0}, {"interval": 5.0}, {"separation": 0.0}, {"transient": -1.0}])
def test_wrong_arguments_of_the_exponent(wrong: dict[str, float]) -> None:
    with pytest.raises(DataError, match="must be positive"):
        lyapunov_exponent(build("spring"), np.zeros((1, 2)), 1.0, **{"interval": 0.1, **wrong})
