"""How wide learned posteriors are: regressions that leave one out, the noise of those held out, and coverage of new simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from exact_estimators import ONE, GaussianDirect

from simkit.inference.direct import DirectEstimator
from simkit.inference.estimator import NetworkOptions
from simkit.inference.estimators import ESTIMATORS
from simkit.inference.learning import LearningOptions, count_members, train_members
from simkit.inference.priors import Array
from simkit.inference.simulator import Observable
from simkit.inference.width import LEVELS, choose_widths

SMALL = NetworkOptions(hidden=8, transforms=1)
SLOPES = torch.tensor([[0.7], [-0.2]], dtype=torch.float64)


def left_out(v: Array, x: Array, penalty: float) -> Array:
    """What a ridge regression with a free constant expects of each row, fitted to all others: [N, D]."""
    design = np.hstack([np.ones((len(x), 1)), x])
    ridge = penalty * np.diag([0.0] + [1.0] * x.shape[1])
    expected = np.empty_like(v)
    for i in range(len(v)):
        rest = np.delete(design, i, 0)
        expected[i] = design[i] @ np.linalg.solve(rest.T @ rest + ridge, rest.T @ np.delete(v, i, 0))
    return expected


@pytest.mark.parametrize("bounded", [False, True])
def test_each_is_expected_from_all_others(bounded: bool) -> None:
    rng = np.random.default_rng(1)
    z = rng.uniform(-1.5, 1.5, (90, 2))
    x = np.hstack([np.tanh(z) + 0.02 * rng.uniform(-1, 1, (90, 2)), rng.uniform(-1, 1, (90, 3))])
    estimator = ESTIMATORS["npe"](2, (Observable("x", (5,)),), SMALL, bounded=[bounded] * 2)
    assert isinstance(estimator, DirectEstimator)
    estimator.features.adapt(x)
    features = estimator.features(torch.from_numpy(x))
    assert float(features.abs().max()) < estimator.FARTHEST
    found = estimator.regress(torch.from_numpy(z), features)
    assert estimator.bounded.tolist() == [bounded] * 2
    v = math.sqrt(3) * (2 * scipy.stats.norm.cdf(z) - 1) if bounded else z
    exact = left_out(v, features.double().numpy(), estimator.RIDGE * len(z))
    np.testing.assert_allclose(found.numpy(), exact - v.mean(0), rtol=0, atol=1e-6)  # features are float32
    # It is less sure than the fit to all, which knew the row itself.
    assert (((v - exact) ** 2).mean(0) > 1.05 * (v - v.mean(0) - estimator.expected(features).numpy()).var(0)).all()


def linear(count: int, sd: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Parameters around a linear function of an output, [N, 2] and [N, 1]."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((count, 1)))
    return 0.3 + x @ SLOPES.T + sd * torch.from_numpy(rng.standard_normal((count, 2))), x


def member(mean: float, sd: float) -> GaussianDirect:
    estimator = GaussianDirect([mean, mean], sd)
    estimator.slopes.copy_(SLOPES)
    return estimator


def held_out(estimator: GaussianDirect, z: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    features = estimator.features(x)
    return estimator.whiten(z, estimator.expected(features)), features


@pytest.mark.parametrize("factor", [2.5, 0.4])
def test_a_wrong_width_is_put_right(factor: float) -> None:
    estimator = member(0.3, 0.5 / factor)
    u, features = held_out(estimator, *linear(4000, 0.5, 1))
    choose_widths([estimator], [u], [features])
    # The error of a quantile is sqrt(p (1 - p) / N) over the density; widths are roots of squares.
    chi2 = scipy.stats.chi2(2)
    errors = [0.5 * math.sqrt(p * (1 - p) / 4000) / (chi2.pdf(chi2.ppf(p)) * chi2.ppf(p)) for p in LEVELS]
    assert abs(math.log(float(estimator.width) / factor)) < 5 * max(errors)
    z, x = linear(2000, 0.5, 2)
    drawn = estimator.sample_z(x, 400, torch.Generator().manual_seed(3))
    ranks = (drawn < z.unsqueeze(1)).double().mean(1)
    inside = float(((ranks > 0.05) & (ranks < 0.95)).double().mean())
    assert abs(inside - 0.9) < 5 * math.sqrt(0.09 / 4000) + 0.35 * 5 * max(
        errors
    )  # and the slope of coverage with width
    expected = scipy.stats.norm.logpdf(z, 0.3 + x @ SLOPES.T, 0.5 / factor * float(estimator.width)).sum(1)
    np.testing.assert_allclose(estimator.log_posterior(z.unsqueeze(1), x)[:, 0].numpy(), expected, atol=1e-4)


def test_members_share_the_factor_that_makes_their_mixture_likeliest() -> None:
    z, x = linear(1500, 0.5, 4)
    means, sds = (-0.1, 0.3, 0.8), (0.5, 0.2, 0.6)
    alone, together = ([member(m, s) for m, s in zip(means, sds, strict=True)] for _ in range(2))
    pairs = [held_out(one, z, x) for one in alone]
    for one, (u, features) in zip(alone, pairs, strict=True):
        choose_widths([one], [u], [features])
    choose_widths(together, [u for u, _ in pairs], [features for _, features in pairs])
    factors = [float(b.width / a.width) for a, b in zip(alone, together, strict=True)]
    assert max(factors) - min(factors) < 1e-6
    away = (z - x @ SLOPES.T).numpy()

    def score(factor: float) -> float:
        densities = [
            scipy.stats.norm.pdf(away, m, s * float(one.width) * factor).prod(1)
            for m, s, one in zip(means, sds, alone, strict=True)
        ]
        return float(np.log(np.mean(densities, 0)).mean())

    grid = np.linspace(0.5, 1.2, 701)
    best = grid[int(np.argmax([score(f) for f in grid]))]
    assert 0.5 < best < 0.95  # scattered members are too wide together
    assert factors[0] == pytest.approx(best, rel=0.01)  # neighbouring factors lie 1.5 % apart


def test_new_simulations_are_covered() -> None:
    """Two parameters behind 30 outputs and 290 simulations: the network is too sure, and its width makes up for it."""
    rng = np.random.default_rng(0)
    slopes = rng.standard_normal((30, 2))

    def simulated(count: int) -> tuple[Array, Array]:
        z = rng.standard_normal((count, 2))
        return z, z @ slopes.T + rng.standard_normal((count, 30))

    options = LearningOptions(
        network=NetworkOptions(transforms=2),
        members=1,
        learning_rate=3e-3,
        max_epochs=60,
        batch_size=30,
        validation=0.4,
    )
    (estimator,), _ = train_members("npe", *simulated(290), (Observable("x", (30,)),), options)
    assert isinstance(estimator, DirectEstimator)
    z, x = simulated(1000)

    def covered() -> float:
        """Of 59 samples, for which ranks 3 to 56 of 0 to 59 make 90 %; the mean of both parameters."""
        with torch.no_grad():
            drawn = estimator.sample_z(torch.from_numpy(x), 59, torch.Generator().manual_seed(1)).numpy()
        ranks = (drawn < z[:, None]).sum(1)
        return float(((ranks >= 3) & (ranks < 57)).mean())

    error = math.sqrt(0.9 * 0.1 / 1000)  # of one: that of the mean is less
    assert abs(covered() - 0.9) < 5 * error
    estimator.width.fill_(1.0)
    assert covered() < 0.9 - 5 * error


def test_members_are_three_for_posteriors_and_one_for_likelihoods() -> None:
    options = LearningOptions()
    counts = {name: count_members(name, options) for name in ESTIMATORS}
    assert counts == {"npe": 3, "fmpe": 3, "nle": 1, "nre": 1}
    assert count_members("fmpe", LearningOptions(members=2)) == count_members("nre", LearningOptions(members=2)) == 2


@pytest.mark.parametrize("name", ESTIMATORS)
def test_whole_numbers_are_spread_for_densities_of_outputs_alone(name: str) -> None:
    rng = np.random.default_rng(3)
    z = rng.standard_normal((300, 1))
    x = rng.poisson(np.exp(1 + 0.5 * z)).astype(float)
    estimator = ESTIMATORS[name](1, ONE, SMALL)
    _, features = estimator.adapt(z, x, torch.Generator().manual_seed(0))
    if name == "nle":
        assert len(features.unique()) == 300
        numbers = features.double() * estimator.features.scale + estimator.features.center
        np.testing.assert_array_equal(np.floor(numbers.numpy()), x)
    else:
        assert len(features.unique()) == len(np.unique(x))
        assert torch.equal(features, estimator.features(torch.from_numpy(x)))


def test_the_share_inside_the_bounds_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    estimator = member(0.0, 0.4)
    estimator.bounded.fill_(True)
    drawn = []

    def draw(features: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
        drawn.append(len(features))
        return GaussianDirect.draw(estimator, features, count, generator)

    monkeypatch.setattr(estimator, "draw", draw)
    z = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, -1, 1).expand(2, -1, 2)
    x = torch.tensor([[2.0], [0.5]], dtype=torch.float64)
    first = estimator.log_posterior(z, x)
    assert torch.equal(estimator.log_posterior(z, x.clone()), first)
    torch.testing.assert_close(estimator.log_posterior(z[:, :3], x), first[:, :3])
    assert len(drawn) == 2  # once for each of two observations
    # What is left out makes the rest likelier: by the exact share, known to 5 standard errors of its draws.
    bound, center = math.sqrt(3), x @ SLOPES.T
    share = torch.special.ndtr((bound - center) / 0.4) - torch.special.ndtr((-bound - center) / 0.4)
    plain = -0.5 * ((estimator.natural(z) - center.unsqueeze(1)) / 0.4).square() - math.log(
        0.4 * math.sqrt(2 * math.pi)
    )
    gained = first - plain.sum(-1) - estimator.log_stretch(z)
    shares = share.prod(-1)
    assert float(shares[0]) < 0.85
    errors = ((1 - shares) / shares / estimator.TRIALS).sqrt().unsqueeze(1)
    assert bool(((gained + shares.log().unsqueeze(1)).abs() < 5 * errors + 1e-4).all())
    # Others, another width and new weights are drawn for.
    estimator.log_posterior(z[:1], x[:1])
    assert len(drawn) == 3
    estimator.width.fill_(2.0)
    assert not torch.allclose(estimator.log_posterior(z, x), first, atol=0.1)
    assert len(drawn) == 5
    estimator.train()
    estimator.log_posterior(z, x)
    assert len(drawn) == 7
