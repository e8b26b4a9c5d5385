"""Observations outside what was simulated are found, explained, and not seen where there are none."""

import math

import numpy as np
import pytest
from exact_posterior import GaussianPosterior, LinearSimulator

from simkit.inference.calibration import calibrate
from simkit.inference.calibration.outliers import OutlierTest, needed_simulations, outlier_test
from simkit.inference.calibration.scaling import RobustScale
from simkit.inference.priors import Array
from simkit.inference.simulations import simulate
from simkit.inference.simulator import Observable

TIMES = np.linspace(0, 3, 40)
DECAY = (Observable("pressure", (), "bar"), Observable("signal", (40,), "mV", "series", tuple(TIMES), "time (s)"))
LABELS = ["pressure", *(f"signal[{k}]" for k in range(40))]


def decays(count: int, rng: np.random.Generator) -> Array:
    """A heavy-tailed pressure, and exponential decays of heavy-tailed height with a little noise; the first value is always the same."""
    rates, heights = np.exp(rng.normal(0, 0.7, (count, 1))), np.exp(rng.normal(0, 1, (count, 1)))
    signal = heights * np.exp(-rates * TIMES) + 0.02 * rng.standard_normal((count, 40))
    signal[:, 0] = 0.0
    return np.hstack([rng.standard_t(2, (count, 1)), signal])


def compared(observation: Array, count: int = 400) -> OutlierTest:
    return outlier_test(decays(count, np.random.default_rng(3)), observation, DECAY, LABELS, seed=4)


def changed(at: slice | int, to: Array | float) -> Array:
    observation = decays(1, np.random.default_rng(8))[0]
    observation[at] = to
    return observation


def test_the_p_value_is_not_small_too_often(rng: np.random.Generator) -> None:
    p = []
    for seed in range(250):
        x = decays(81, rng)
        p.append(outlier_test(x[1:], x[0], DECAY, LABELS, seed=seed).p_value)
    assert min(p) >= 1 / 41 - 1e-12
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p) <= level) <= level + 5 * math.sqrt(level * (1 - level) / 250)
    assert np.mean(np.array(p) <= 0.5) > 0.3  # it is not vain either
    assert needed_simulations(0.05) == 40


def test_an_ordinary_observation_is_accepted() -> None:
    found = compared(changed(0, 0.3))
    assert found.p_value > 0.05
    assert (np.sort(found.distances)[:190] <= 1).all()
    assert found.distance < 1.5


@pytest.mark.parametrize(
    ("observation", "blamed", "words"),
    [
        (changed(0, 1e6), "pressure", "pressure = 1e+06 bar"),
        (changed(slice(1, 41), -np.exp(-TIMES)), "signal", "signal["),
        (changed(1, 1.0), "signal", "signal[0] = 1 mV (95 % of the simulations: 0 to 0)"),
        (changed(slice(2, 41), 0.9 + 0.1 * np.sin(10 * TIMES[1:])), "signal", "signal"),
    ],
    ids=["too large", "of the wrong sign", "not constant", "of another form"],
)
def test_an_unusual_observation_is_found_and_explained(observation: Array, blamed: str, words: str) -> None:
    found = compared(observation)
    assert found.p_value <= 0.05
    assert found.observables[blamed] <= 0.05
    assert found.observables[({"pressure", "signal"} - {blamed}).pop()] > 0.05
    assert words in found.reasons(0.05)


def test_values_that_do_not_occur_together_are_named(rng: np.random.Generator) -> None:
    """Each value is ordinary, but two observables always agree and do not here."""
    same = rng.normal(size=(200, 1))
    pair = (Observable("left", (), "V"), Observable("right", (), "V"))
    x = np.hstack([same, same + 0.01 * rng.normal(size=(200, 1))])
    found = outlier_test(x, np.array([0.5, -0.5]), pair, ["left", "right"], seed=0)
    assert found.p_value <= 0.02
    assert found.reasons(0.05) == "no value is unusual, but they do not occur together"
    both = (Observable("both", (2,), "V"),)
    one = outlier_test(x, np.array([0.5, -0.5]), both, ["both[0]", "both[1]"], seed=0)
    assert one.reasons(0.05) == "no single value is unusual, but those of both do not occur together"


def test_rounding_of_constant_values_is_no_departure() -> None:
    observation = changed(1, 1e-9)
    assert compared(observation).p_value == compared(changed(1, 0.0)).p_value > 0.05


@pytest.mark.parametrize("observation", [[3.0, 7.0], [3.0, 8.0], [1e308, 7.0]])
def test_constant_outputs_and_ones_that_nearly_overflow_are_compared(observation: list[float]) -> None:
    x = np.full((100, 2), 7.0)
    x[:, 0] = np.geomspace(1e-3, 1e5, 100)
    x[7, 0] = -1e308
    parts = (Observable("a"), Observable("b"))
    found = outlier_test(x, np.array(observation), parts, ["a", "b"], seed=0)
    assert np.isfinite(found.distances).all()
    assert (found.p_value <= 0.05) == (observation != [3.0, 7.0])
    constant = outlier_test(x[:, 1:], np.array([7.0]), parts[1:], ["b"], seed=0)
    assert (constant.p_value, constant.distance, constant.values) == (1.0, constant.distances.max(), ())


def test_the_scale_is_robust_and_never_zero(rng: np.random.Generator) -> None:
    x = decays(4001, rng)
    scale = RobustScale.of(x, DECAY)
    z = scale.apply(x)
    assert np.isfinite(z).all()
    assert np.abs(np.median(z, axis=0)).max() < 1e-12
    assert (z[:, 1] == 0).all()
    # Half of Student's t with two degrees of freedom lies within 0.8165 of its median.
    assert scale.spread[0] == pytest.approx(2 * 0.8165 / 1.349, rel=0.1)
    constant = RobustScale.of(np.full((10, 1), 7.0), (Observable("c"),))
    assert constant.spread[0] == pytest.approx(7e-3)


def test_verdicts_say_what_lies_outside() -> None:
    simulator = LinearSimulator()
    right = simulator.simulate(np.array([[2.0, -1.5]]), np.array([1], dtype=np.uint64))[0]
    wrong = right + np.array([0.0, 0.0, 12.0, 0.0])
    for observation, misspecified in ((right, False), (wrong, True)):
        found = calibrate(GaussianPosterior(), simulator, count=200, samples=19, observation=observation)
        assert found.misspecified is misspecified
        predictive, prior = found.verdicts()[-2:]
        assert ("outside what the posterior predicts" in predictive) is misspecified
        assert ("do not trust it" in prior) is misspecified
        assert ("signal[1] = " in prior) is misspecified
        assert found.calibrated  # ranks know nothing of the observation
    alone = calibrate(GaussianPosterior(amortised=False, reference=wrong), simulator, count=200)
    assert alone.misspecified is True
    few = calibrate(GaussianPosterior(), simulator, count=30, observation=wrong)
    assert few.misspecified is None
    assert "40 are needed" in few.verdicts()[-1]
    given = simulate(simulator, 100, seed=9)
    assert calibrate(GaussianPosterior(), simulator, tests=given, observation=wrong).misspecified is True
