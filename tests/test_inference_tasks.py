"""The statistical tasks: laws and likelihoods against the definitions written out, and what the benchmark published."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import expit

from simkit.inference.simulator import Simulator, Tractable, simulation_seeds
from simkit.inference.simulators import build
from simkit.inference.simulators.draws import normals, uniforms
from simkit.inference.simulators.gaussians import GaussianLinear, GaussianLinearUniform, GaussianMixture
from simkit.inference.simulators.generalised_linear import design_matrix
from simkit.inference.simulators.slcp import SLCP, SLCPDistractors, distractors
from simkit.inference.simulators.two_moons import TwoMoons

COUNT = 20_000
LEAST = 1e-4  # of a p-value: seeds are fixed, so a test that passes keeps passing


def outputs(simulator: Simulator, theta: list[float], count: int = COUNT) -> np.ndarray:
    """Many outputs [N, K] of the same parameters."""
    return simulator.simulate(np.tile(np.array(theta), (count, 1)), simulation_seeds(11, 0, count))


def likelihoods(simulator: Tractable, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The log likelihood of one output [K] for each row of parameters [N, D]."""
    return simulator.log_likelihood(torch.from_numpy(theta), torch.from_numpy(x)).numpy()


def assert_covariance(values: np.ndarray, expected: np.ndarray) -> None:
    """Within five standard errors."""
    centred = values - values.mean(0)
    products = centred[:, :, None] * centred[:, None, :]
    error = products.std(0) / math.sqrt(len(values))
    assert (np.abs(products.mean(0) - expected) < 5 * error).all()


@pytest.mark.parametrize("kind", [GaussianLinear, GaussianLinearUniform])
def test_gaussian_linear(kind: type[Simulator]) -> None:
    simulator = kind()
    theta = np.linspace(-0.9, 0.8, 10)
    x = outputs(simulator, theta.tolist())
    residuals = (x - theta) / math.sqrt(0.1)
    assert min(stats.kstest(column, "norm").pvalue for column in residuals.T) > LEAST
    assert_covariance(residuals, np.eye(10))
    near = theta + 0.1 * np.random.default_rng(0).normal(size=(7, 10))
    exact = [stats.multivariate_normal(row, 0.1 * np.eye(10)).logpdf(x[0]) for row in near]
    np.testing.assert_allclose(likelihoods(simulator, near, x[0]), exact, rtol=1e-12)


def test_gaussian_priors() -> None:
    theta = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (5, 10)))
    normal = stats.multivariate_normal(np.zeros(10), 0.1 * np.eye(10)).logpdf(theta.numpy())
    np.testing.assert_allclose(GaussianLinear().prior.log_prob(theta).numpy(), normal, rtol=1e-12)
    low, high = GaussianLinearUniform().prior.support()
    assert (low == -1).all()
    assert (high == 1).all()


def test_gaussian_mixture() -> None:
    simulator = GaussianMixture()
    residuals = outputs(simulator, [3.0, -8.0]) - [3.0, -8.0]

    def law(x: np.ndarray) -> np.ndarray:
        return (stats.norm.cdf(x) + stats.norm.cdf(x, scale=0.1)) / 2

    assert min(stats.kstest(column, law).pvalue for column in residuals.T) > LEAST
    # Both components of a simulation come from the same distribution: E x^2 y^2 is (1 + 0.1^4)/2, else it would be half of that.
    products = (residuals**2).prod(1)
    assert abs(products.mean() - 0.50005) < 5 * products.std() / math.sqrt(COUNT)
    near = np.array([[0.1, 0.0], [2.0, -1.0], [4.0, 4.0]])
    x = np.array([0.1, 0.2])
    wide, narrow = (stats.norm.pdf(x, near, s).prod(1) for s in (1.0, 0.1))
    np.testing.assert_allclose(likelihoods(simulator, near, x), np.log((wide + narrow) / 2), rtol=1e-12)


def test_two_moons() -> None:
    """Undoing the shift gives the radii and angles that the definition draws; the density integrates to one."""
    simulator = TwoMoons()
    theta = np.array([0.3, -0.7])
    x = outputs(simulator, theta.tolist())
    u = x[:, 0] - 0.25 + abs(theta.sum()) / math.sqrt(2)
    v = x[:, 1] - (theta[1] - theta[0]) / math.sqrt(2)
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    assert stats.kstest(radius, stats.norm(0.1, 0.01).cdf).pvalue > LEAST
    assert stats.kstest(angle, stats.uniform(-math.pi / 2, math.pi).cdf).pvalue > LEAST
    assert abs(np.corrcoef(radius, angle)[0, 1]) < 5 / math.sqrt(COUNT)
    assert likelihoods(simulator, -theta[None, ::-1], x[0]) == pytest.approx(likelihoods(simulator, theta[None], x[0]))
    side = 0.004
    line = np.arange(
        -0.2 + side / 2, 0.2, side
    )  # with the ends of the crescent, where the density jumps, between two points
    centre = x[0] - [u[0], v[0]]
    values = [likelihoods(simulator, theta[None], centre + np.array([a, b]))[0] for a in line for b in line]
    assert np.exp(values).sum() * side**2 == pytest.approx(1, abs=0.002)


def covariance_of(theta: np.ndarray) -> np.ndarray:
    s = theta[2:4] ** 2
    rho = math.tanh(theta[4])
    return np.array([[s[0] ** 2, rho * s[0] * s[1]], [rho * s[0] * s[1], s[1] ** 2]]) + 1e-6 * np.eye(2)


@pytest.mark.parametrize("theta", [[0.7, -2.9, -1.1, 2.0, 0.4], [-1.5, 0.2, 0.3, -0.05, -2.8]])
def test_slcp(theta: list[float]) -> None:
    simulator, true = SLCP(), np.array(theta)
    points = simulator.split(outputs(simulator, theta))["points"]
    whitened = np.linalg.solve(np.linalg.cholesky(covariance_of(true)), (points - true[:2])[..., None])
    columns = whitened.reshape(COUNT, 8)
    assert min(stats.kstest(column, "norm").pvalue for column in columns.T) > LEAST
    assert_covariance(columns, np.eye(8))
    x = points[0]
    near = true + 0.1 * np.random.default_rng(0).normal(size=(6, 5))
    exact = [stats.multivariate_normal(t[:2], covariance_of(t)).logpdf(x).sum() for t in near]
    np.testing.assert_allclose(likelihoods(simulator, near, x.ravel()), exact, rtol=1e-9)


# The first of the benchmark's files observation_distractors.csv and observation.csv: where the eight values are, and what.
PLACES = {
    22: 2.3718784,
    33: 0.49947417,
    23: 9.931435,
    67: 1.7136912,
    42: -10.436423,
    21: -1.9067793,
    16: -1.2343777,
    90: -0.09735,
}


def test_distractors() -> None:
    """The order is the one that the benchmark published, so what was drawn before it must have been drawn alike."""
    places, means, factors = distractors()
    assert places[:8].tolist() == list(PLACES)
    assert sorted(places) == list(range(100))
    means, factors = means.reshape(20, 92), factors.reshape(20, 92, 92)
    assert abs(means.std() - 15) < 5 * 15 / math.sqrt(2 * means.size)
    assert (factors == np.tril(factors)).all()
    simulator, theta = SLCPDistractors(), [0.7, -0.9, -1.1, 1.3, 0.4]
    x = outputs(simulator, theta, 2000)
    np.testing.assert_array_equal(x[:, places[:8].astype(int)], outputs(SLCP(), theta, 2000))
    noise = x[:, places[8:].astype(int)]
    # Each distractor is a mixture of t distributions whose scales are the norms of the factors' rows.
    for k in (0, 1, 17, 91):
        law = stats.t(2, means[:, k], np.linalg.norm(factors[:, k], axis=1))
        assert stats.kstest(noise[:, k], lambda v, law=law: law.cdf(v[:, None]).mean(1)).pvalue > LEAST
    # And all of them together are one component's mean and factor times normal numbers, over the root of half a chi^2.
    for row, seed in zip(noise, simulation_seeds(11, 0, 5), strict=False):
        key = np.uint64(int(seed) & 0xFFFFFFFF), np.uint64(int(seed) >> 32)
        n = np.array([normals(block, *key) for block in range(2, 25)]).ravel()
        u = uniforms(0, *key)
        i = int(20 * u[0])
        np.testing.assert_allclose(row, means[i] + factors[i] @ n / math.sqrt(-math.log(u[1])), rtol=1e-10, atol=1e-10)
    given = torch.from_numpy(np.array([theta]))
    values = torch.from_numpy(x[0])
    torch.testing.assert_close(
        simulator.log_likelihood(given, values), SLCP().log_likelihood(given, values[places[:8].astype(int)])
    )


# The first of the benchmark's files observation_raw.csv (bins with a spike) and observation.csv.
SPIKES = "1101111111 1000000111 1111000111 0111100000 1111000011 1000111100 1100011111 0011100000 0011100011 1110000111"
SUMMARIES = [56, 3.32306, 14.356438, 11.104893, -4.167525, -18.507809, -21.917496, -9.553517, -0.357257, -5.497825]


def test_bernoulli_glm_has_the_published_stimulus() -> None:
    spikes = np.array([float(s) for s in SPIKES.replace(" ", "")])
    np.testing.assert_allclose(spikes @ design_matrix(), SUMMARIES, rtol=0, atol=2e-5)


def test_bernoulli_glm() -> None:
    raw, sums = (build("bernoulli_glm", summary=summary) for summary in ("raw", "sufficient"))
    assert isinstance(raw, Tractable)
    assert isinstance(sums, Tractable)
    theta = raw.prior.sample(4, 1)
    x, design = outputs(raw, theta[0].tolist()), design_matrix()
    p = expit(design @ theta[0])
    assert set(np.unique(x)) == {0.0, 1.0}
    assert (np.abs(x.mean(0) - p) < 5 * np.sqrt(p * (1 - p) / COUNT)).all()
    assert_covariance(x[:, :12], np.diag(p * (1 - p))[:12, :12])
    np.testing.assert_allclose(outputs(sums, theta[0].tolist()), x @ design, atol=1e-11)
    exact = stats.bernoulli(expit(theta @ design.T)).logpmf(x[0]).sum(1)
    np.testing.assert_allclose(likelihoods(raw, theta, x[0]), exact, rtol=1e-9)
    np.testing.assert_allclose(likelihoods(sums, theta, x[0] @ design), exact, rtol=1e-9)


def test_prior_of_bernoulli_glm() -> None:
    """The precision by the formulas of the appendix, T.5, in loops."""
    f = np.zeros((9, 9))
    for i in range(9):
        f[i, i] = 1 + math.sqrt(i / 9)
        if i >= 1:
            f[i, i - 1] = -2
        if i >= 2:
            f[i, i - 2] = 1
    precision = np.zeros((10, 10))
    precision[0, 0], precision[1:, 1:] = 0.5, f.T @ f
    prior = build("bernoulli_glm").prior
    theta = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 10)))
    exact = stats.multivariate_normal(np.zeros(10), np.linalg.inv(precision)).logpdf(theta.numpy())
    np.testing.assert_allclose(prior.log_prob(theta).numpy(), exact, rtol=1e-9)
