"""Calibration: right posteriors pass as often as stated, wrong ones are found out and told apart, and nothing breaks it."""

import itertools
import json
import math
import time
from typing import Any

import numpy as np
import pytest
from exact_posterior import MAP, NOISE, PRIOR, GaussianPosterior, LinearSimulator, normal_parameters
from scipy.stats import binomtest, kstest

from simkit.errors import ConfigError, DataError
from simkit.inference.calibration import Calibration, calibrate
from simkit.inference.calibration.ranks import RankTest, binomial_interval, rank_tests
from simkit.inference.calibration.uniformity import rank_band
from simkit.inference.priors import Array, IndependentPrior, Normal
from simkit.inference.simulations import Simulations, simulate
from simkit.inference.simulator import Seeds

SIMULATOR = LinearSimulator()
OBSERVED = SIMULATOR.simulate(np.array([[2.0, -1.5]]), np.array([1], dtype=np.uint64))[0]


def named(calibration: Calibration) -> dict[str, RankTest]:
    return {test.name if test.kind == "parameter" else test.kind: test for test in calibration.ranks}


def pointwise(ranks: tuple[int, ...], samples: int) -> float:
    """The least likely point of the cumulative distribution, by binomial sums."""
    count, lowest = len(ranks), math.inf
    for edge in range(1, samples + 1):
        q, below = edge / (samples + 1), sum(rank < edge for rank in ranks)
        weights = [math.comb(count, c) * q**c * (1 - q) ** (count - c) for c in range(count + 1)]
        lowest = min(lowest, 2 * min(sum(weights[: below + 1]), sum(weights[below:])))
    return lowest


@pytest.mark.parametrize(("count", "samples"), [(4, 3), (3, 7), (2, 1)])
def test_the_p_value_is_that_of_counting_all_possible_ranks(count: int, samples: int) -> None:
    every = list(itertools.product(range(samples + 1), repeat=count))
    statistics = np.array([pointwise(ranks, samples) for ranks in every])
    level = 0.3
    outside = 0
    for ranks, statistic in zip(every, statistics, strict=True):
        band = rank_band(np.array(ranks), samples, level)
        assert band.p_value == pytest.approx((statistics <= statistic * (1 + 1e-9)).mean(), abs=1e-9)
        left = bool(((band.ecdf < band.low - 1e-12) | (band.ecdf > band.high + 1e-12)).any())
        assert left == (band.p_value <= level)
        outside += left
    assert outside / len(every) <= level
    assert band.points.tolist() == pytest.approx([k / (samples + 1) for k in range(samples + 2)])


def test_uniform_ranks_leave_the_band_as_often_as_stated(rng: np.random.Generator) -> None:
    rejected = sum(rank_band(rng.integers(0, 200, 150), 199, 0.1).p_value <= 0.1 for _ in range(300))
    assert 0.1 * 300 - 5 * math.sqrt(27) < rejected < 0.1 * 300 + 5 * math.sqrt(27)
    with pytest.raises(DataError, match="from 0 to 9"):
        rank_band(np.array([10]), 9, 0.05)


def test_ranks_and_intervals_are_those_of_loops(rng: np.random.Generator) -> None:
    prior = IndependentPrior({"a": Normal(0, 1), "b": Normal(0, 1)})
    theta, samples, x = rng.normal(size=(9, 2)), rng.normal(size=(9, 19, 2)), rng.normal(size=(9, 4))
    a, b, random, similar = rank_tests(theta, samples, x, prior, SIMULATOR.observables, level=0.05, seed=0)
    for i in range(9):
        assert a.ranks[i] == sum(samples[i, s, 0] < theta[i, 0] for s in range(19))
        assert b.ranks[i] == sum(samples[i, s, 1] < theta[i, 1] for s in range(19))
    # All points of the second kind of distance: the earlier output that is nearest on the scale of medians and quartiles.
    first, middle, third = np.quantile(x, [0.25, 0.5, 0.75], axis=0)
    scaled = np.arcsinh((x - middle) / ((third - first) / 1.349))
    for i in range(1, 9):
        point = theta[min(range(i), key=lambda j: float(np.linalg.norm(scaled[i] - scaled[j])))]
        units = np.concatenate([theta[i : i + 1], samples[i]]).std(axis=0)
        distances = [np.linalg.norm((samples[i, s] - point) / units) for s in range(19)]
        assert similar.ranks[i] == sum(d < np.linalg.norm((theta[i] - point) / units) for d in distances)
    points = np.random.default_rng(0).standard_normal((9, 2))  # of the same seed; these parameters are standard normal
    for i in range(9):
        distances = [np.linalg.norm(samples[i, s] - points[i]) for s in range(19)]
        assert random.ranks[i] == sum(d < np.linalg.norm(theta[i] - points[i]) for d in distances)
    for interval, cut in zip(a.coverage(), (5, 3, 1, 1), strict=True):
        ordered = np.sort(samples[:, :, 0], axis=1)
        inside = (theta[:, 0] > ordered[:, cut - 1]) & (theta[:, 0] < ordered[:, 19 - cut])
        assert (interval.nominal, interval.observed) == pytest.approx((1 - 2 * cut / 20, inside.mean()))
        exact = binomtest(int(inside.sum()), 9).proportion_ci(0.95, "exact")
        assert (interval.low, interval.high) == pytest.approx((exact.low, exact.high))
    assert binomial_interval(0, 5)[0] == 0.0
    assert binomial_interval(5, 5)[1] == 1.0


def test_samples_outside_the_support_and_equal_ones_are_ranked(rng: np.random.Generator) -> None:
    """Stiffness is positive: samples below zero have no place in the prior and count as far away; ties are broken evenly."""
    theta = PRIOR.sample(400, 1)
    samples = np.repeat(theta[:, None], 9, axis=1)
    samples[:, 0] = -1.0
    tests = rank_tests(theta, samples, rng.normal(size=(400, 4)), PRIOR, SIMULATOR.observables, level=0.05, seed=0)
    stiffness, offset, random, _ = tests
    assert stiffness.ranks.min() == 1
    assert set(offset.ranks[theta[:, 1] <= -1].tolist()) == set(range(9))
    assert random.ranks.max() == 8  # the one outside is always further than the truth
    assert np.bincount(random.ranks).min() > 400 / 9 - 5 * math.sqrt(400 / 9)


def test_right_posteriors_pass_as_often_as_stated() -> None:
    runs = [calibrate(GaussianPosterior(), SIMULATOR, count=60, samples=49, seed=seed) for seed in range(60)]
    assert sum(run.calibrated is False for run in runs) <= 3 + 5 * math.sqrt(60 * 0.05 * 0.95)
    for k in range(4):
        ranks = np.concatenate([run.ranks[k].ranks for run in runs])
        counts = np.bincount(ranks, minlength=50)
        chi_squared = ((counts - 72) ** 2 / 72).sum()
        assert chi_squared < 49 + 5 * math.sqrt(2 * 49)
    assert all(test.p_value <= 1 for run in runs for test in run.ranks)
    assert "agree with a right posterior in 60 cases" in runs[0].verdicts()[1]


@pytest.mark.parametrize(
    ("wrong", "failing", "words"),
    [
        ({"width": 0.75}, ("stiffness", "offset", "random", "similar"), "too narrow"),
        ({"width": 1.35}, ("stiffness", "offset", "random", "similar"), "too wide"),
        ({"shift": 0.6}, ("stiffness",), "biased towards high values"),
        ({"shift": -0.6}, ("stiffness",), "biased towards low values"),
        ({"prior_only": True}, ("similar",), "too little of the observation"),
    ],
)
def test_wrong_posteriors_are_found_out(wrong: dict[str, Any], failing: tuple[str, ...], words: str) -> None:
    found = calibrate(GaussianPosterior(**wrong), SIMULATOR, count=400, samples=99, seed=2)
    tests = named(found)
    assert found.calibrated is False
    for name in failing:
        assert tests[name].p_value < 0.01, name
    assert words in tests[failing[0]].fault()
    assert any(words in text for text in found.verdicts())
    if wrong == {"prior_only": True}:
        # What ranks of single parameters and random points cannot see.
        assert min(tests[name].p_value for name in ("stiffness", "offset", "random")) > 0.05
    if "shift" in wrong:
        assert tests["offset"].p_value > 0.05
    if "width" in wrong:
        wide = tests["offset"].coverage()[2]
        # The 90 % interval of a normal posterior reaches 1.645 widths.
        true = math.erf(1.645 * wrong["width"] / math.sqrt(2))
        assert abs(wide.observed - true) < 5 * math.sqrt(true * (1 - true) / 400)


def test_failed_simulations_are_counted_and_left_out() -> None:
    found = calibrate(GaussianPosterior(), LinearSimulator(failing=0.5), count=200, samples=49, observation=OBSERVED)
    assert abs(found.failures - 100) < 5 * math.sqrt(50)
    assert found.used == 200 - found.failures == len(found.x)
    assert np.isfinite(found.x).all()
    assert found.calibrated
    assert f"{found.failures} of them failed" in found.verdicts()[0]
    check = found.predictive
    assert check is not None
    assert len(check.x) + check.failures == 200
    assert f"{check.failures} of its 200 simulations failed" in found.verdicts()[-2]
    nothing = calibrate(GaussianPosterior(), LinearSimulator(failing=1.1), count=30, observation=OBSERVED)
    assert nothing.failures == 30
    assert nothing.calibrated is nothing.misspecified is None
    assert "nothing is known about ranks" in nothing.verdicts()[1]
    assert "unknown" in nothing.verdicts()[-1]
    json.dumps(nothing.to_dict())


@pytest.mark.parametrize(("simulator", "posterior"), [(0.01, 0.0), (0.0, 0.02)])
def test_it_stops_in_time_with_what_it_has(simulator: float, posterior: float) -> None:
    slow = GaussianPosterior(pause=posterior)
    found = calibrate(slow, LinearSimulator(pause=simulator), count=2000, samples=19, seconds=1.5, observation=OBSERVED)
    assert found.seconds < 3
    assert 5 < found.used == found.drawn < 150
    assert len(found.ranks) == 4
    assert found.calibrated is not False
    if simulator:
        assert found.simulated == found.drawn < 150
        assert "of 2000 that were wanted: the time was up" in found.verdicts()[0]
    else:
        assert found.simulated == 2000  # which the observation is compared with, whatever the posterior costs
        assert f"time to draw from the posteriors of {found.drawn}" in found.verdicts()[0]
    assert found.predictive is not None
    assert (found.predictive.test is None) == (len(found.predictive.x) < 40)
    assert (found.prior_test is None) == (len(found.x) < 40)


class Warming(GaussianPosterior):
    """Takes long at first, as what is compiled does, and then a fixed time whatever the number of observations."""

    calls = 0

    def sample_many(self, observations: Array, count: int, *, seed: int = 0) -> Array:
        self.calls += 1
        time.sleep(1.0 if self.calls == 1 else 0.1)
        return super().sample_many(observations, count, seed=seed)


def test_the_pace_is_that_of_large_blocks() -> None:
    posterior = Warming()
    found = calibrate(posterior, SIMULATOR, count=400, samples=19, seconds=20.0)
    assert found.used == 400
    assert posterior.calls <= 7
    few = calibrate(Warming(), SIMULATOR, count=400, samples=19, seconds=1.2)
    assert 0 < few.used < 20
    assert few.calibrated is None
    assert "too few to say" in few.verdicts()[1]


def test_a_posterior_of_one_observation_is_checked_as_far_as_possible() -> None:
    posterior = GaussianPosterior(amortised=False, reference=OBSERVED)
    found = calibrate(posterior, SIMULATOR, count=100)
    assert found.ranks == ()
    assert found.calibrated is None
    assert found.misspecified is False
    assert "made for one observation" in found.verdicts()[1]
    assert found.predictive is not None
    mean, covariance = posterior.moments(OBSERVED)
    predicted = MAP @ covariance @ MAP.T + np.diag(NOISE**2)
    sd = np.sqrt(np.diag(predicted))
    assert (np.abs(found.predictive.x.mean(axis=0) - MAP @ mean) < 5 * sd / math.sqrt(200)).all()
    bands = found.predictive.bands()
    assert (np.abs(bands[-1] - bands[0] - 2 * 1.96 * sd) < 5 * 2 * 2.67 * sd / math.sqrt(200)).all()
    z = normal_parameters(found.predictive.theta)
    assert kstest((z[:, 0] - mean[0]) / math.sqrt(covariance[0, 0]), "norm").pvalue > 1e-3
    assert calibrate(GaussianPosterior(), SIMULATOR, count=20).predictive is None


class Confined(GaussianPosterior):
    """Made for one observation, but right for all that its region gives."""

    checkable = True


def test_a_posterior_of_truncated_proposals_is_checked_in_its_region() -> None:
    found = calibrate(Confined(amortised=False, reference=OBSERVED), SIMULATOR, count=60, samples=19)
    assert found.calibrated
    assert found.confined
    assert "within what the simulator gives in the region that its truncated prior leaves" in found.verdicts()[-1]
    assert not calibrate(GaussianPosterior(), SIMULATOR, count=20, samples=19).confined


def test_the_result_is_repeated_and_its_simulations_are_new() -> None:
    first, again, other = (
        calibrate(GaussianPosterior(), SIMULATOR, count=50, samples=19, seed=seed, observation=OBSERVED).to_dict()
        for seed in (0, 0, 1)
    )
    for result in (first, again, other):
        result.pop("seconds")
        result["verdicts"] = result["verdicts"][1:]
    assert json.loads(json.dumps(first)) == json.loads(json.dumps(again))
    assert first["ranks"] != other["ranks"]
    found = calibrate(GaussianPosterior(), SIMULATOR, count=50, seed=0)
    assert not np.isin(found.theta, simulate(SIMULATOR, 200, seed=0).theta).any()


class Broken(LinearSimulator):
    """Does not simulate."""

    def simulate(self, theta: Array, seeds: Seeds) -> Array:
        raise AssertionError


class Unfinished(GaussianPosterior):
    """Gives samples that are not finite for some observations."""

    def sample_many(self, observations: Array, count: int, *, seed: int = 0) -> Array:
        samples = super().sample_many(observations, count, seed=seed)
        samples[observations[:, 0] > 0, 0] = np.nan
        return samples


def test_given_simulations_are_used_instead_of_new_ones() -> None:
    tests = simulate(SIMULATOR, 80, seed=5)
    calls: list[tuple[int, int]] = []
    found = calibrate(
        GaussianPosterior(), Broken(), count=500, samples=19, tests=tests, progress=lambda *done: calls.append(done)
    )
    assert found.wanted == found.used == 80
    assert calls[-1] == (160, 160)
    np.testing.assert_array_equal(found.theta, tests.theta)
    np.testing.assert_array_equal(found.x, tests.x)


class Sampled(GaussianPosterior):
    """Gives no other samples than those that it gave."""

    def sample(self, count: int, observation: Array | None = None, *, seed: int = 0) -> Array:
        raise AssertionError


def test_given_samples_are_simulated_instead_of_others() -> None:
    given = GaussianPosterior().sample(500, OBSERVED, seed=8)
    found = calibrate(Sampled(), SIMULATOR, count=20, predictive=100, observation=OBSERVED, given=given)
    assert found.predictive is not None
    theta = found.predictive.theta
    rows = (theta[:, None] == given).all(2)
    assert len(theta) == 100 == len(np.unique(theta, axis=0))
    assert rows.any(1).all()
    # A random choice of 100 of 500, none twice: its mean place has this standard error.
    error = math.sqrt((500**2 - 1) / 12 / 100 * (500 - 100) / 499)
    assert abs(rows.argmax(1).mean() - 249.5) < 5 * error
    with pytest.raises(AssertionError):
        calibrate(Sampled(), SIMULATOR, count=20, predictive=501, observation=OBSERVED, given=given)


def test_samples_that_are_not_finite_are_the_posteriors_fault() -> None:
    found = calibrate(Unfinished(), SIMULATOR, count=100, samples=19)
    assert found.used == int((found.x[:, 0] <= 0).sum()) < found.drawn == 100
    assert f"for {100 - found.used} the posterior gave samples that are not finite" in found.verdicts()[0]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"count": 0}, ConfigError, "count must be positive"),
        ({"seconds": 0.0}, ConfigError, "seconds must be positive"),
        ({"level": 1.0}, ConfigError, "between 0 and 1"),
        ({"observation": np.array([1.0, np.nan, 0.0, 0.0])}, DataError, "finite"),
        ({"tests": Simulations(np.ones((3, 2)), np.ones((3, 5)), np.ones(3))}, DataError, "4 outputs"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        calibrate(GaussianPosterior(), SIMULATOR, **change)


def test_a_posterior_of_another_simulator_is_refused() -> None:
    other = LinearSimulator()
    other.observables = SIMULATOR.observables[:1]
    with pytest.raises(DataError, match="does not belong to the simulator linear"):
        calibrate(GaussianPosterior(), other)
