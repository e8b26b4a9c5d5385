"""Neural estimators against posteriors that are known, trained briefly on a few hundred simulations."""

from __future__ import annotations

import csv
import functools
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from exact_posterior import MAP, NOISE, PRIOR, GaussianPosterior, LinearSimulator, parameters
from torch import Tensor

from simkit.errors import DataError
from simkit.inference.direct import DirectEstimator
from simkit.inference.estimator import Estimator, NetworkOptions
from simkit.inference.estimators import ESTIMATORS
from simkit.inference.learning import SMALL, LearningOptions, train_members
from simkit.inference.neural import NeuralPosterior
from simkit.inference.priors import Array, IndependentPrior, Normal
from simkit.inference.simulator import Observable

NAMES = list(ESTIMATORS)
SIMULATIONS = 800
BRIEF = LearningOptions(
    network=NetworkOptions(hidden=32, transforms=2),
    members=1,
    learning_rate=3e-3,
    max_epochs=60,
    patience=12,
    batch_size=100,
)
AFFINE = BRIEF.model_copy(update={"network": NetworkOptions(hidden=32, transforms=2, flow="maf")})
TRUE = np.array([[0.0, 0.0], [1.0, -1.0], [-0.5, 0.8], [0.3, 1.5]])
OBSERVED = TRUE @ MAP.T + NOISE * np.random.default_rng(9).standard_normal((4, 4))


def pairs(count: int = SIMULATIONS) -> tuple[Array, Array]:
    """Parameters in standard normal variables and outputs of the linear simulator."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((count, 2))
    return z, z @ MAP.T + NOISE * rng.standard_normal((count, 4))


@functools.cache
def trained(name: str) -> NeuralPosterior:
    options = AFFINE if name == "nle" else BRIEF  # which is fast; splines are tested on counts below
    members, _ = train_members(name, *pairs(), LinearSimulator.observables, options, seed=1)
    return NeuralPosterior(name, PRIOR, LinearSimulator.observables, members, reference=OBSERVED[1])


@functools.cache
def grid() -> tuple[Array, Array]:
    """Parameters around the exact posterior of the second observation, out to 7 deviations, and the area of each point."""
    mean, covariance = GaussianPosterior().moments(OBSERVED[1])
    axes = [m + math.sqrt(v) * np.linspace(-7, 7, 57) for m, v in zip(mean, np.diag(covariance), strict=True)]
    z = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    theta = parameters(z)
    area = (
        math.prod(axis[1] - axis[0] for axis in axes) * 0.8 * theta[:, 0] * 2.0
    )  # d theta / d z of the two parameters
    return theta, area


@pytest.mark.parametrize("name", NAMES)
def test_linear_gaussian(name: str) -> None:
    samples = trained(name).sample_many(OBSERVED, 1000, seed=3)
    assert samples.shape == (4, 1000, 2)
    z = np.stack([(np.log(samples[..., 0]) - 0.5) / 0.8, (samples[..., 1] + 1.0) / 2.0], -1)
    mean, covariance = GaussianPosterior().moments(OBSERVED)
    sd = np.sqrt(np.diag(covariance))
    # Errors of learning, not of sampling: sqrt(weights / simulations) is about 1 here, and training stops early.
    assert np.sqrt(np.mean(((z.mean(1) - mean) / sd) ** 2)) < 0.4
    assert np.sqrt(np.mean(np.log(z.std(1) / sd) ** 2)) < 0.35
    # The prior's spread is 2 to 3 times as large, and means lie up to 3 deviations from its own.
    assert (np.log(1 / sd) > 0.7).all()
    assert np.abs(mean / sd).max() > 2


@pytest.mark.parametrize("name", NAMES)
def test_density_agrees_with_samples(name: str) -> None:
    posterior = trained(name)
    theta, area = grid()
    logs = posterior.log_prob(theta)
    density = np.exp(logs - logs.max()) * area
    if posterior.normalised:
        assert math.exp(logs.max()) * density.sum() == pytest.approx(1.0, abs=0.01)
    weights = density / density.sum()
    samples = posterior.sample(4000, seed=5)
    for values in (lambda t: np.log(t[:, 0]), lambda t: t[:, 1], lambda t: np.log(t[:, 0]) * t[:, 1]):
        exact = weights @ values(theta)
        spread = math.sqrt(weights @ (values(theta) - exact) ** 2)
        # Tempered populations hold copies: half count. 2% of a deviation for the grid and float32.
        assert abs(values(samples).mean() - exact) < spread * (5 / math.sqrt(2000) + 0.02)
        assert abs(values(samples).std() / spread - 1) < 5 * math.sqrt(2 / 2000) + 0.02


@pytest.mark.parametrize("name", NAMES)
def test_density_outside_the_prior(name: str) -> None:
    theta = np.array([[-1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    found = trained(name).log_prob(theta)
    assert np.isneginf(found[[0, 2]]).all()
    assert np.isfinite(found[1])
    assert np.isneginf(trained(name).log_prob(theta[:1])).all()


@pytest.mark.parametrize("name", NAMES)
def test_seeds_and_global_random_numbers(name: str) -> None:
    options = AFFINE.model_copy(update={"max_epochs": 2, "members": 2})
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - it must stay untouched
    runs = [train_members(name, *pairs(100), LinearSimulator.observables, options, seed=seed)[0] for seed in (5, 5, 6)]
    posterior = NeuralPosterior(name, PRIOR, LinearSimulator.observables, runs[0])
    drawn = [posterior.sample_many(OBSERVED[:1], 60, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    weights = [[torch.cat([p.flatten() for p in m.parameters()]) for m in members] for members in runs]
    assert torch.equal(weights[0][0], weights[1][0])
    assert torch.equal(weights[0][1], weights[1][1])
    assert not torch.equal(weights[0][0], weights[0][1])
    assert not torch.equal(weights[0][0], weights[2][0])
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


@pytest.mark.parametrize(("count", "epochs"), [(60, 12), (400, 2)])
def test_the_likelier_of_two_networks_is_kept(count: int, epochs: int, tmp_path: Path) -> None:
    options = BRIEF.model_copy(update={"network": None, "members": 2, "max_epochs": epochs, "batch_size": 20})
    members, _ = train_members("npe", *pairs(count), (Observable("x", (4,)),), options, seed=3, folder=tmp_path)
    tried = {NetworkOptions(): "member-0", SMALL: "member-0-small"}
    losses = {
        network: min(
            float(row["valid_loss"]) for row in csv.DictReader((tmp_path / place / "log.csv").read_text().splitlines())
        )
        for network, place in tried.items()
    }
    assert [member.options for member in members] == [min(losses, key=lambda network: losses[network])] * 2


def test_networks_that_were_asked_for_have_no_rival(tmp_path: Path) -> None:
    options = BRIEF.model_copy(update={"max_epochs": 1})
    (member,), _ = train_members("npe", *pairs(60), (Observable("x", (4,)),), options, folder=tmp_path)
    assert member.options == options.network
    assert [path.name for path in tmp_path.iterdir()] == ["member-0"]


@pytest.mark.parametrize("name", ["npe", "fmpe", "nre"])
def test_cut_off_training_is_taken_up(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = BRIEF.model_copy(update={"max_epochs": 4, "batch_size": 40})
    z, x = pairs(200)
    observables = LinearSimulator.observables
    (whole,), _ = train_members(name, z, x, observables, options, seed=2, folder=tmp_path / "whole")
    kind, calls = ESTIMATORS[name], []
    losses = kind.losses

    def interrupted(self: Estimator, u: Tensor, features: Tensor) -> Tensor:
        calls.append(len(u))
        if len(calls) == 13:  # in the middle of the third epoch
            os.kill(os.getpid(), signal.SIGINT)
        return losses(self, u, features)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "losses", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_members(name, z, x, observables, options, seed=2, folder=tmp_path / "cut")
    (resumed,), (result,) = train_members(name, z, x, observables, options, seed=2, folder=tmp_path / "cut")
    assert (len(calls), result.epochs) == (13, 4)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_whitening() -> None:
    rng = np.random.default_rng(4)
    factor = np.array([[1e-3, 0.0, 0.0], [0.5, 0.2, 0.0], [3.0, -1.0, 2.0]])
    z = rng.standard_normal((500, 3)) @ factor.T + [2.0, -1.0, 0.5]
    estimator = ESTIMATORS["nre"](3, (Observable("x", (2,)),), NetworkOptions(hidden=4, transforms=1))
    trained_on, _ = estimator.adapt(z, rng.standard_normal((500, 2)), torch.Generator())
    nothing = torch.zeros(2)
    u = estimator.whiten(torch.from_numpy(z).reshape(5, 100, 3), estimator.expected(nothing))
    assert torch.equal(u.reshape(500, 3), trained_on)
    assert u.shape == (5, 100, 3)
    flat = u.reshape(-1, 3).double()
    assert flat.mean(0).abs().max() < 1e-5
    torch.testing.assert_close(torch.cov(flat.T), torch.eye(3, dtype=torch.float64), atol=1e-4, rtol=0)
    np.testing.assert_allclose(estimator.colour(u, nothing).reshape(-1, 3).numpy(), z, atol=1e-5)
    expected = 0.5 * np.linalg.slogdet(np.cov(z.T))[1]
    assert float(estimator.log_volume) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["npe", "fmpe"])
def test_bounds_and_regression(name: str) -> None:
    """Parameters between bounds: back and forth, the change of variables, nothing outside, and a density that integrates to one."""
    rng = np.random.default_rng(5)
    z = rng.standard_normal((400, 1))
    uniform = 2 * scipy.stats.norm.cdf(z) - 1
    wide = uniform + rng.standard_normal((400, 1))
    (vague,), _ = train_members(name, z, wide, (Observable("x"),), BRIEF, seed=1, bounded=[True])
    assert not vague.bounded.any()  # what the regression leaves is too much
    x = uniform + 0.1 * rng.standard_normal((400, 1))
    (estimator,), _ = train_members(name, z, x, (Observable("x"),), BRIEF, seed=1, bounded=[True])
    assert isinstance(estimator, DirectEstimator)
    assert estimator.bounded.all()
    values = torch.linspace(-3.0, 3.0, 13, dtype=torch.float64).reshape(-1, 1)
    v = estimator.natural(values)
    assert v.abs().max() < math.sqrt(3)
    torch.testing.assert_close(estimator.unbounded(v), values, rtol=0, atol=1e-9)
    assert estimator.unbounded(torch.tensor([[1.8]], dtype=torch.float64)).isnan().all()
    step = 1e-6
    slope = (estimator.natural(values + step) - estimator.natural(values - step)) / (2 * step)
    torch.testing.assert_close(estimator.log_stretch(values), slope.log().squeeze(-1), rtol=0, atol=1e-6)
    seen = estimator.features(torch.from_numpy(x))
    u = estimator.whiten(torch.from_numpy(z), estimator.expected(seen))
    torch.testing.assert_close(estimator.colour(u, seen), torch.from_numpy(z), rtol=0, atol=1e-4)
    left = estimator.natural(torch.from_numpy(z)) - estimator.expected(seen)
    assert float(left.var()) < 0.3 * float(estimator.natural(torch.from_numpy(z)).var())
    with torch.no_grad():
        observed = torch.tensor([[0.9], [0.0]], dtype=torch.float64)
        drawn = estimator.sample_z(observed, 2000, torch.Generator().manual_seed(0))
        grid = torch.linspace(-6.0, 6.0, 1201, dtype=torch.float64).reshape(1, -1, 1).expand(2, -1, 1)
        density = estimator.log_posterior(grid, observed).exp()
    assert drawn.isfinite().all()
    mass = torch.trapezoid(density, grid[..., 0], dim=1)
    np.testing.assert_allclose(mass.numpy(), 1.0, atol=0.05)  # the share inside is known to a few percent
    mean = torch.trapezoid(density * grid[..., 0], grid[..., 0], dim=1) / mass
    np.testing.assert_allclose(mean.numpy(), drawn.mean(1)[:, 0].numpy(), atol=0.06)


@pytest.mark.parametrize("name", ["npe", "nle"])
def test_counts_heavy_tails_and_constants(name: str) -> None:
    """One parameter behind a Poisson number, a log-normal output and a constant; the posterior by quadrature."""
    rng = np.random.default_rng(2)
    z = rng.standard_normal((SIMULATIONS, 1))
    heavy = np.exp(4 * z[:, 0] + 3 * rng.standard_normal(SIMULATIONS))
    x = np.stack([rng.poisson(np.exp(1.5 + 0.5 * z[:, 0])).astype(float), heavy, np.full(SIMULATIONS, 5.0)], 1)
    prior = IndependentPrior({"rate": Normal(0, 1)})
    observables = (Observable("number"), Observable("mass"), Observable("constant"))
    members, _ = train_members(name, z, x, observables, BRIEF, seed=1)
    posterior = NeuralPosterior(name, prior, observables, members)
    observed = np.array([[9.0, 30.0, 5.0], [2.0, 0.01, 5.0], [4.0, 1.0, 5.0]])
    samples = posterior.sample_many(observed, 1000, seed=1)[..., 0]
    at = np.linspace(-5, 5, 2001)
    for draws, (number, mass, _) in zip(samples, observed, strict=True):
        logs = scipy.stats.norm.logpdf(at) + scipy.stats.norm.logpdf(np.log(mass), 4 * at, 3)
        weights = np.exp(logs + scipy.stats.poisson.logpmf(number, np.exp(1.5 + 0.5 * at)))
        weights /= weights.sum()
        mean = weights @ at
        sd = math.sqrt(weights @ (at - mean) ** 2)
        assert abs(draws.mean() - mean) < 0.5 * sd
        assert abs(math.log(draws.std() / sd)) < 0.4


def series(z: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """64 times and two channels, linear in z."""
    waves = np.stack([np.sin(np.arange(64) / 5), np.cos(np.arange(64) / 9)], -1).ravel()
    return z * waves + 2.0 * rng.standard_normal((len(z), 128)), waves / 2.0


def members_of_a_set(z: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """50 members whose mean is z."""
    return z + 2.0 * rng.standard_normal((len(z), 50)), np.full(50, 1 / 2.0)


@pytest.mark.parametrize(
    ("make", "observable"),
    [(series, Observable("x", (64, 2), kind="series")), (members_of_a_set, Observable("x", (50,), kind="set"))],
    ids=["series", "set"],
)
def test_long_outputs(make: object, observable: Observable) -> None:
    rng = np.random.default_rng(6)
    z = rng.standard_normal((SIMULATIONS, 1))
    x, slope = make(z, rng)  # type: ignore[operator]
    members, _ = train_members("npe", z, x, (observable,), BRIEF, seed=1)
    posterior = NeuralPosterior("npe", IndependentPrior({"a": Normal(0, 1)}), (observable,), members)
    true = np.linspace(-1.5, 1.5, 8)[:, None]
    observed = make(true, rng)[0]  # type: ignore[operator]
    samples = posterior.sample_many(observed, 500, seed=1)[..., 0]
    precision = 1 + slope @ slope
    exact, sd = observed / 2.0 @ slope / precision, 1 / math.sqrt(precision)
    assert sd < 0.35
    assert np.sqrt(np.mean(((samples.mean(1) - exact) / sd) ** 2)) < 1.0
    assert 0.7 < np.median(samples.std(1)) / sd < 1.6
    if observable.kind == "set":
        mixed = rng.permuted(observed, axis=1)
        np.testing.assert_allclose(posterior.sample_many(mixed, 500, seed=1)[..., 0], samples, atol=1e-4)


def test_few_or_constant_simulations_are_refused() -> None:
    z, x = pairs(100)
    with pytest.raises(DataError, match="only 19 simulations gave finite outputs, and at least 20"):
        train_members("npe", z[:19], x[:19], LinearSimulator.observables, BRIEF)
    with pytest.raises(DataError, match="all simulations gave the same outputs"):
        train_members("npe", z, np.ones_like(x), LinearSimulator.observables, BRIEF)
