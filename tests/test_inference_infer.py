"""`infer`: every method on one small problem whose posterior is known, failures, bad input, and what was cut off."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from exact_posterior import MAP, NOISE, PRIOR, GaussianPosterior, LinearSimulator, normal_parameters
from torch import Tensor

from simkit.errors import ConfigError, DataError
from simkit.inference.acquisition import StoppingOptions
from simkit.inference.direct import FlowMatching
from simkit.inference.estimator import NetworkOptions
from simkit.inference.infer import AMORTISED, METHODS, Inference, InferenceOptions, infer
from simkit.inference.learning import LearningOptions
from simkit.inference.neural import NeuralPosterior
from simkit.inference.priors import Array, IndependentPrior, Normal
from simkit.inference.simulations import Simulations, simulate
from simkit.inference.simulator import Observable, Seeds, Simulator

LEARNING = LearningOptions(
    network=NetworkOptions(hidden=16, transforms=2, flow="maf"),
    members=1,
    learning_rate=5e-3,
    max_epochs=30,
    batch_size=50,
)
OPTIONS = InferenceOptions(learning=LEARNING, rounds=2, particles=60, epsilon=1e-2)
BUDGET = 400
OBSERVED = np.array([1.6, -1.3]) @ MAP.T + NOISE * np.array([0.2, 0.0, 0.2, -0.2])
SEQUENTIAL = [name for name, method in METHODS.items() if method.sequential and method.estimator]


@pytest.fixture(autouse=True)
def fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flow matching integrates in 40 steps by default; 10 are enough for these tiny networks."""
    monkeypatch.setattr(FlowMatching, "STEPS", 10)


class TractableLinear(LinearSimulator):
    """The linear simulator with its likelihood; a fifth of its simulations fail, whatever their parameters are."""

    def __init__(self, interrupted: int = -1) -> None:
        super().__init__(failing=0.2)
        self.calls, self.interrupted = 0, interrupted

    def simulate(self, theta: Array, seeds: Seeds) -> Array:
        self.calls += 1
        if self.calls == self.interrupted:
            raise KeyboardInterrupt
        return super().simulate(theta, seeds)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        z = torch.stack([(theta[..., 0].log() - 0.5) / 0.8, (theta[..., 1] + 1) / 2], -1)
        away = (x - z @ torch.from_numpy(MAP.T)) / torch.from_numpy(NOISE)
        return -0.5 * away.square().sum(-1)


def run(method: str, seed: int = 1, out: Path | None = None, simulator: Simulator | None = None) -> Inference:
    return infer(
        simulator or TractableLinear(), OBSERVED, method=method, budget=BUDGET, seed=seed, options=OPTIONS, out=out
    )


@functools.cache
def inferred(method: str) -> Inference:
    return run(method)


@functools.cache
def drawn(method: str) -> Array:
    return inferred(method).posterior.sample(500, seed=3)


@pytest.mark.parametrize("method", METHODS)
def test_contract(method: str) -> None:
    found = inferred(method)
    posterior, plan = found.posterior, METHODS[method]
    assert posterior.method == method
    assert len(found.simulations) == (0 if method == "hmc" else BUDGET)
    assert found.stopped == ""
    if method != "hmc":
        assert found.simulations.failures > 0
    assert len(found.rounds) == (0 if not plan.estimator else 2 if plan.sequential else 1)
    samples = drawn(method)
    assert samples.shape == (500, 2)
    assert samples.dtype == np.float64
    PRIOR.check(samples)
    np.testing.assert_array_equal(posterior.sample(500, OBSERVED, seed=3), samples)
    assert PRIOR.check(posterior.draw_parameters(30, 1)).shape == (30, 2)
    assert posterior.amortised == (not plan.sequential)
    other = OBSERVED + 0.3
    if posterior.amortised:
        moved = posterior.sample(500, other, seed=3)
        assert moved.shape == (500, 2)
        assert not np.array_equal(moved, samples)
    else:
        assert not np.array_equal(posterior.sample(500, seed=4), samples)
        with pytest.raises(DataError, match="made for one observation"):
            posterior.sample(50, other, seed=3)
    with pytest.raises(DataError, match="an observation of 4 finite values"):
        posterior.sample(5, OBSERVED[:3])


@pytest.mark.parametrize("method", METHODS)
def test_posterior_is_near_the_exact_one(method: str) -> None:
    """From few simulations and tiny networks: not exact, but far from the prior, of mean 0 and 3 times the deviation."""
    mean, covariance = GaussianPosterior().moments(OBSERVED)
    sd = np.sqrt(np.diag(covariance))
    assert (np.abs(mean) > 3 * sd).all()
    z = normal_parameters(drawn(method))
    if method == "smc_abc":  # whose tolerance falls slowly
        options = OPTIONS.model_copy(update={"particles": 200})
        posterior = infer(LinearSimulator(), OBSERVED, method=method, budget=10_000, options=options).posterior
        z = normal_parameters(posterior.sample(500, seed=3))
    if method == "hmc":
        assert (np.abs(z.mean(0) - mean) < 5 * sd / math.sqrt(250)).all()
        assert (np.abs(z.std(0) / sd - 1) < 5 / math.sqrt(500)).all()
    assert (np.abs(z.mean(0) - mean) < 1.2 * sd).all()
    assert (z.std(0) < 2.2 * sd).all()
    assert (z.std(0) > 0.4 * sd).all()


@pytest.mark.parametrize("method", ["smc_abc", "rejection_abc"])
def test_seed_decides(method: str) -> None:
    first, again, other = inferred(method), run(method), run(method, seed=2)
    np.testing.assert_array_equal(first.simulations.x, again.simulations.x)
    np.testing.assert_array_equal(first.posterior.sample(50, seed=1), again.posterior.sample(50, seed=1))
    assert not np.array_equal(first.simulations.theta, other.simulations.theta)


@pytest.mark.parametrize("method", SEQUENTIAL)
def test_later_rounds_simulate_where_the_posterior_is(method: str) -> None:
    z = normal_parameters(inferred(method).simulations.theta)
    mean, _ = GaussianPosterior().moments(OBSERVED)
    before, after = (np.linalg.norm(part - mean, axis=1).mean() for part in (z[: BUDGET // 2], z[BUDGET // 2 :]))
    assert after < 0.7 * before
    posterior = inferred(method).posterior
    assert isinstance(posterior, NeuralPosterior)
    if METHODS[method].estimator in ("npe", "fmpe"):
        assert posterior.region is not None
        assert bool(posterior.region.contains(torch.from_numpy(z[BUDGET // 2 :])).all())


@pytest.mark.parametrize(("method", "kind"), [("snre", "truncated"), ("snre", "disagreement")])
def test_other_proposals(method: str, kind: str) -> None:
    options = OPTIONS.model_copy(
        update={"proposal": kind, "rounds": 3, "learning": LEARNING.model_copy(update={"members": 2, "max_epochs": 8})}
    )
    seen: list[tuple[int, bool]] = []
    found = infer(
        LinearSimulator(),
        OBSERVED,
        method=method,
        budget=200,
        options=options,
        on_round=lambda posterior, report: seen.append((report.simulations, posterior.region is not None)),
    )
    truncated = kind == "truncated"
    assert seen == [(67, False), (134, truncated), (200, truncated)]
    assert len(found.simulations) == 200
    assert [len(report.losses) for report in found.rounds] == [2, 2, 2]


def test_rounds_end_early() -> None:
    options = OPTIONS.model_copy(update={"stopping": StoppingOptions(width=3.0)})
    found = infer(LinearSimulator(), OBSERVED, method="snre", budget=200, options=options)
    assert len(found.simulations) == 100
    assert "less than 3 of their prior" in found.stopped


def chance(z: Array) -> Array:
    """How often simulations succeed: from nearly never to nearly always."""
    return 1 / (1 + np.exp(-4 * z))


class Fragile(Simulator):
    """x = z + noise; half of the simulations fail, mostly those of low z."""

    name, prior, observables = "fragile", IndependentPrior({"z": Normal(0, 1)}), (Observable("x"),)

    def simulate(self, theta: Array, seeds: Seeds) -> Array:
        numbers = [np.random.default_rng(int(seed)) for seed in seeds]
        x = theta[:, 0] + np.array([rng.standard_normal() for rng in numbers])
        failed = np.array([rng.random() for rng in numbers]) > chance(theta[:, 0])
        return np.where(failed, np.nan, x)[:, None]


@pytest.mark.parametrize("method", ["npe", "nle", "nre", "rejection_abc", "smc_abc"])
def test_failures_that_depend_on_the_parameters(method: str) -> None:
    network = NetworkOptions(hidden=16, transforms=2, flow="nsf" if method == "npe" else "maf")
    options = OPTIONS.model_copy(
        update={"learning": LEARNING.model_copy(update={"network": network}), "particles": 150}
    )
    budget = 1200
    found = infer(Fragile(), np.array([-0.5]), method=method, budget=budget, options=options)
    assert len(found.simulations) == budget
    if not METHODS[method].sequential:
        assert abs(found.simulations.failures / budget - 0.5) < 5 * 0.5 / math.sqrt(budget)
    at = np.linspace(-5, 5, 2001)
    mean, sd = {}, {}
    for name, success in (("exact", chance(at)), ("blind", 1.0)):
        weights = scipy.stats.norm.pdf(at) * scipy.stats.norm.pdf(-0.5, at, 1) * success
        weights /= weights.sum()
        mean[name] = weights @ at
        sd[name] = math.sqrt(weights @ (at - mean[name]) ** 2)
    assert mean["exact"] - mean["blind"] > 1.0 * sd["exact"], "who ignores the failures is far off"
    z = found.posterior.sample(1000, seed=1)[:, 0]
    assert abs(z.mean() - mean["exact"]) < 0.35 * sd["exact"]
    assert abs(math.log(z.std() / sd["exact"])) < 0.35


def test_cut_off_inference_is_taken_up(tmp_path: Path) -> None:
    whole = inferred("snre")
    simulator = TractableLinear(interrupted=6)  # both rounds have blocks of 16, 64 and 120
    with pytest.raises(KeyboardInterrupt):
        run("snre", out=tmp_path, simulator=simulator)
    assert (tmp_path / "simulations-1").is_dir()
    resumed = run("snre", out=tmp_path)
    np.testing.assert_array_equal(resumed.simulations.theta, whole.simulations.theta)
    np.testing.assert_array_equal(resumed.simulations.x, whole.simulations.x)
    np.testing.assert_array_equal(resumed.posterior.sample(50, seed=1), whole.posterior.sample(50, seed=1))
    idle = TractableLinear()
    again = run("snre", out=tmp_path, simulator=idle)
    assert idle.calls == 0
    np.testing.assert_array_equal(again.posterior.sample(50, seed=1), whole.posterior.sample(50, seed=1))


@pytest.mark.parametrize("method", ["rejection_abc", "smc_abc"])
def test_earlier_simulations_are_used(method: str) -> None:
    simulator = LinearSimulator()
    earlier = simulate(simulator, 150, seed=0)
    found = infer(simulator, OBSERVED, method=method, budget=300, seed=0, simulations=earlier, options=OPTIONS)
    assert len(found.simulations) == 300
    np.testing.assert_array_equal(found.simulations.theta[:150], earlier.theta)
    assert len(np.unique(found.simulations.theta, axis=0)) == 300, "no simulation may be run twice"
    more = infer(simulator, OBSERVED, method=method, budget=400, simulations=found.simulations, options=OPTIONS)
    assert len(np.unique(more.simulations.theta, axis=0)) == len(more.simulations) == 400


def test_unusable_earlier_simulations_are_refused() -> None:
    earlier = simulate(LinearSimulator(), 50)
    short = Simulations(earlier.theta, earlier.x[:, :3], earlier.seconds)
    with pytest.raises(DataError, match=r"should hold \[50, 4\] outputs; found \(50, 3\)"):
        infer(LinearSimulator(), OBSERVED, budget=100, simulations=short)
    other = Simulations(-earlier.theta, earlier.x, earlier.seconds)
    with pytest.raises(DataError, match="outside the prior"):
        infer(LinearSimulator(), OBSERVED, budget=100, simulations=other)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "npee"}, ConfigError, "unknown method 'npee'; did you mean 'npe'"),
        ({"budget": 0}, ConfigError, "at least one simulation; found 0"),
        ({"budget": 12}, DataError, "only 12 simulations gave finite outputs, and at least 20"),
        ({"budget": 50, "method": "rejection_abc"}, DataError, "at least 100 simulations"),
        ({"budget": 170, "method": "smc_abc"}, ConfigError, "needs a budget of at least 180; found 170"),
        ({"seed": -1}, ConfigError, "seed must not be negative"),
        ({"method": "hmc"}, ConfigError, "linear has no log_likelihood"),
        ({"method": "snpe", "options": InferenceOptions(proposal="posterior")}, ConfigError, "only truncated"),
        ({"method": "snle", "options": InferenceOptions(proposal="disagreement")}, ConfigError, "need an ensemble"),
        ({"observation": OBSERVED[:2]}, DataError, r"has 4 values; found an array of shape \(2,\)"),
        ({"observation": OBSERVED * [1, math.nan, 1, 1]}, DataError, r"not finite.*signal\[0\] = nan"),
        *[({"observation": None, "method": m}, ConfigError, "give it, or use one of") for m in SEQUENTIAL],
    ],
)
def test_bad_requests_are_refused(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    wanted = {"observation": OBSERVED, "budget": 100, "options": OPTIONS} | arguments
    simulator = TractableLinear() if wanted.get("method") != "hmc" else LinearSimulator()
    with pytest.raises(error, match=message):
        infer(simulator, **wanted)  # type: ignore[arg-type]
    if error is ConfigError:
        assert getattr(simulator, "calls", 0) == 0, "nothing may be simulated for nothing"


def test_observation_can_come_later() -> None:
    posterior = infer(LinearSimulator(), method="rejection_abc", budget=200, options=OPTIONS).posterior
    with pytest.raises(DataError, match="needs an observation"):
        posterior.sample(5)
    assert posterior.sample(5, OBSERVED).shape == (5, 2)
    assert "hmc" in AMORTISED


def test_exact_posterior_has_a_density() -> None:
    posterior = inferred("hmc").posterior
    theta = np.array([[1.0, 0.0], [2.0, 1.0], [-1.0, 0.0]])
    found = posterior.log_prob(theta)
    mean, covariance = GaussianPosterior().moments(OBSERVED)
    z = normal_parameters(theta[:2])
    exact = scipy.stats.multivariate_normal(mean, covariance).logpdf(z) - np.log(theta[:2, 0])
    assert found[1] - found[0] == pytest.approx(exact[1] - exact[0], abs=1e-9)
    assert found[2] == -math.inf
