"""Priors: their maps and densities against SciPy, the change of variables, refusals, and descriptions of plain types."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simkit.errors import ConfigError, DataError
from simkit.inference.priors import (
    IndependentPrior,
    LogNormal,
    LogUniform,
    Marginal,
    Normal,
    NormalPrior,
    Prior,
    Uniform,
    normal_log_prob,
    prior_from,
)

MEAN = [1.0, -2.0, 0.5]
COVARIANCE = [[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]]
CASES: dict[str, tuple[Marginal, scipy.stats.rv_continuous]] = {
    "uniform": (Uniform(-3.0, 7.0), scipy.stats.uniform(-3.0, 10.0)),
    "log_uniform": (LogUniform(0.02, 50.0), scipy.stats.loguniform(0.02, 50.0)),
    "normal": (Normal(4.0, 0.3), scipy.stats.norm(4.0, 0.3)),
    "log_normal": (LogNormal(-1.0, 0.7), scipy.stats.lognorm(0.7, scale=math.exp(-1.0))),
}


def three() -> IndependentPrior:
    """A prior with a bounded, a positive and a free parameter."""
    return IndependentPrior({"a": Uniform(80, 160), "b": LogUniform(0.01, 10), "c": Normal(0, 2)}, {"a": "K"})


@pytest.mark.parametrize("kind", CASES)
def test_marginal_against_scipy(kind: str) -> None:
    marginal, reference = CASES[kind]
    z = torch.linspace(-6, 6, 241, dtype=torch.float64)
    theta = marginal.from_normal(z)
    # The quantile function of z's own share: from the upper tail above 0, where 1 - share would lose its digits.
    share = scipy.stats.norm.cdf(-np.abs(z.numpy()))
    expected = np.where(z.numpy() < 0, reference.ppf(share), reference.isf(share))
    np.testing.assert_allclose(theta.numpy(), expected, rtol=1e-9)
    np.testing.assert_allclose(marginal.log_prob(theta).numpy(), reference.logpdf(theta.numpy()), rtol=1e-12)
    inner = z.abs() < 5
    np.testing.assert_allclose(marginal.to_normal(theta)[inner].numpy(), z[inner].numpy(), atol=1e-7)
    assert marginal.log_prob(theta).dtype == torch.float64
    assert marginal.support == tuple(reference.support())


@pytest.mark.parametrize("kind", ["uniform", "log_uniform", "log_normal"])
def test_nothing_lies_outside_the_support(kind: str) -> None:
    marginal = CASES[kind][0]
    low, high = marginal.support
    outside = torch.tensor([low - 1.0, high + 1.0, math.nan], dtype=torch.float64)[: 3 if math.isfinite(high) else 1]
    assert torch.isneginf(marginal.log_prob(outside)[:2]).all()
    assert not torch.isfinite(marginal.to_normal(outside)).any()
    far = torch.tensor([-30.0, -12.0, 12.0, 30.0], dtype=torch.float64)
    theta = marginal.from_normal(far)
    assert bool(((theta >= low) & (theta <= high)).all())
    assert bool(torch.isfinite(marginal.log_prob(theta)).all()), "values at the bounds must stay possible"


@pytest.mark.parametrize("low", [0.02, 0.3, 1.7, 80.0])
def test_log_uniform_never_rounds_out_of_its_bounds(low: float) -> None:
    marginal = LogUniform(low, 7.3 * low)
    ends = marginal.from_normal(torch.tensor([-40.0, 40.0], dtype=torch.float64))
    assert low <= float(ends[0]) < float(ends[1]) <= 7.3 * low
    np.testing.assert_allclose(ends.numpy(), [low, 7.3 * low], rtol=1e-14)


def test_joint_normal_against_scipy() -> None:
    prior = NormalPrior(MEAN, COVARIANCE)
    reference = scipy.stats.multivariate_normal(MEAN, COVARIANCE)
    theta = np.random.default_rng(1).normal(size=(2, 20, 3))
    np.testing.assert_allclose(prior.log_prob(torch.from_numpy(theta)).numpy(), reference.logpdf(theta), rtol=1e-12)
    back = prior.from_normal(prior.to_normal(torch.from_numpy(theta)))
    np.testing.assert_allclose(back.numpy(), theta, rtol=1e-12, atol=1e-13)
    draws = prior.sample(20_000, 3)
    error = np.sqrt(np.diag(COVARIANCE) / len(draws))
    assert (np.abs(draws.mean(0) - MEAN) < 5 * error).all()
    # Var of a sample covariance of normal data: (C_ij^2 + C_ii C_jj) / N.
    c = np.array(COVARIANCE)
    assert (np.abs(np.cov(draws.T) - c) < 5 * np.sqrt((c**2 + np.outer(np.diag(c), np.diag(c))) / len(draws))).all()


@pytest.mark.parametrize("kind", CASES)
def test_draws_follow_the_distribution(kind: str) -> None:
    marginal, reference = CASES[kind]
    draws = IndependentPrior({"a": marginal}).sample(5000, 11)[:, 0]
    assert scipy.stats.kstest(draws, reference.cdf).pvalue > 1e-4


@pytest.mark.parametrize("prior", [three(), NormalPrior(MEAN, COVARIANCE)], ids=["independent", "joint"])
def test_jacobian_by_finite_differences(prior: Prior) -> None:
    z = torch.from_numpy(np.random.default_rng(5).normal(size=(6, 3)))
    step = 1e-5
    columns = []
    for i in range(3):
        shift = torch.zeros(3, dtype=torch.float64)
        shift[i] = step
        columns.append((prior.from_normal(z + shift) - prior.from_normal(z - shift)) / (2 * step))
    expected = torch.linalg.slogdet(torch.stack(columns, -1)).logabsdet
    torch.testing.assert_close(prior.log_jacobian(z), expected, rtol=0, atol=1e-8)
    # The change of variables itself: p(theta) |d theta / d z| = N(z).
    densities = prior.log_prob(prior.from_normal(z)) + expected
    torch.testing.assert_close(densities, normal_log_prob(z), rtol=0, atol=1e-8)


@pytest.mark.parametrize("prior", [three(), NormalPrior(MEAN, COVARIANCE)], ids=["independent", "joint"])
def test_map_is_differentiable(prior: Prior) -> None:
    z = torch.from_numpy(np.random.default_rng(6).normal(size=(4, 3))).requires_grad_()
    assert torch.autograd.gradcheck(prior.from_normal, (z,), atol=1e-6)


def test_first_draws_do_not_depend_on_the_count() -> None:
    prior = three()
    np.testing.assert_array_equal(prior.sample(1000, 4)[:37], prior.sample(37, 4))
    assert not np.array_equal(prior.sample(37, 5), prior.sample(37, 4))


FINITE = st.floats(-1e3, 1e3)
POSITIVE = st.floats(1e-3, 1e3)


@st.composite
def marginals(draw: st.DrawFn) -> Marginal:
    kind = draw(st.sampled_from(sorted(CASES)))
    if kind == "uniform":
        low = draw(FINITE)
        return Uniform(low, low + draw(POSITIVE))
    if kind == "log_uniform":
        low = draw(POSITIVE)
        return LogUniform(low, low * draw(st.floats(1.01, 1e6)))
    first = draw(st.floats(-5, 5))
    return (Normal if kind == "normal" else LogNormal)(first, draw(st.floats(0.01, 3)))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(parts=st.lists(marginals(), min_size=1, max_size=4), seed=st.integers(0, 2**32 - 1))
def test_round_trips(parts: list[Marginal], seed: int) -> None:
    prior = IndependentPrior({f"p{i}": m for i, m in enumerate(parts)}, {"p0": "K"})
    again = prior_from(prior.describe())
    assert again.describe() == prior.describe()
    assert (again.names, again.units) == (prior.names, prior.units)
    theta = prior.sample(50, seed)
    np.testing.assert_array_equal(again.sample(50, seed), theta)
    np.testing.assert_array_equal(prior.check(theta), theta)
    z = prior.to_normal(torch.from_numpy(theta))
    expected = np.random.default_rng(seed).standard_normal(theta.shape)
    # Between two bounds, shares of the range are known to the digits of the numbers there; elsewhere z itself is.
    high = prior.support()[1]
    bounded = np.isfinite(high)
    shares = np.abs(scipy.stats.norm.cdf(z.numpy()) - scipy.stats.norm.cdf(expected))
    assert (shares[:, bounded] < 1e-9).all()
    assert (np.abs(z.numpy() - expected)[:, ~bounded] < 1e-10).all()


def test_joint_normal_description() -> None:
    prior = NormalPrior(MEAN, COVARIANCE, ("x", "y", "w"), ("K", "", "bar"))
    again = prior_from(prior.describe())
    assert again.describe() == prior.describe()
    np.testing.assert_array_equal(again.sample(5, 1), prior.sample(5, 1))
    theta = torch.from_numpy(prior.sample(5, 1))
    torch.testing.assert_close(again.log_prob(theta), prior.log_prob(theta), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform(0, math.inf), "improper"),
        (lambda: Uniform(1, 1), "low < high"),
        (lambda: LogUniform(0, 1), "0 < low < high"),
        (lambda: Normal(0, math.inf), "improper"),
        (lambda: Normal(0, 0), "must be positive"),
        (lambda: LogNormal(math.nan, 1), "improper"),
        (lambda: LogNormal(0, -1), "must be positive"),
        (lambda: IndependentPrior({}), "at least one parameter"),
        (lambda: IndependentPrior({"a": Normal(0, 1)}, {"b": "K"}), "not among the parameters"),
        (lambda: NormalPrior([0, 0], np.diag([1.0, 0.0])), "positive definite"),
        (lambda: NormalPrior([0, 0], np.diag([1.0, math.inf])), "finite"),
        (lambda: NormalPrior([0, math.nan], np.eye(2)), "finite mean"),
        (lambda: NormalPrior([0, 0], [[1, 0.5], [0.2, 1]]), "symmetric"),
        (lambda: NormalPrior([0, 0], np.eye(3)), r"mean \[D\]"),
        (lambda: NormalPrior([0, 0], np.eye(2), ("a", "a")), "different names"),
        (lambda: prior_from({}), "at least one parameter"),
        (lambda: prior_from({"a": {"unifrom": [0, 1]}}), "did you mean 'uniform'"),
        (lambda: prior_from({"a": [0, 1]}), "must read like"),
        (lambda: prior_from({"a": {"unit": "K"}}), "found none"),
        (lambda: prior_from({"a": {"normal": [0, 1], "uniform": [0, 1]}}), "one distribution"),
        (lambda: prior_from({"a": {"uniform": [0]}}), r"takes \[low, high\]"),
        (lambda: prior_from({"a": {"uniform": [0, "x"]}}), "the prior of a"),
        (lambda: prior_from({"a": {"uniform": [-math.inf, 0]}}), "the prior of a: .*improper"),
        (lambda: prior_from({"joint_normal": {"mean": [0]}}), "must read like"),
        (lambda: prior_from({"joint_normal": [0]}), "must read like"),
    ],
)
def test_unusable_priors_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("theta", "message"),
    [
        ([[100.0, 1.0]], r"expected parameters \[N, 3\]"),
        ([[100.0, 1.0, 0.0], [70.0, 1.0, 0.0]], r"1 of 2 .*a = 70 \(from 80 to 160\)"),
        ([[100.0, -1.0, 0.0]], "b = -1"),
        ([[100.0, 1.0, math.nan]], "c = nan"),
        ([[100.0, 1.0, math.inf]], "c = inf"),
    ],
)
def test_parameters_outside_are_refused(theta: list[list[float]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        three().check(theta)


def test_parameters_inside_are_taken() -> None:
    prior = three()
    assert prior.check([100, 1, 0]).shape == (1, 3)
    assert prior.check([[80.0, 0.01, 0.0], [160.0, 10.0, -50.0]]).dtype == np.float64


def test_density_integrates_to_one() -> None:
    prior = IndependentPrior({"a": Uniform(80, 160), "b": LogUniform(0.01, 10)})
    a = torch.linspace(80, 160, 9, dtype=torch.float64)
    logs = torch.linspace(math.log(0.01), math.log(10), 9, dtype=torch.float64)
    theta = torch.stack(torch.meshgrid(a, logs.exp().clamp(0.01, 10), indexing="ij"), -1)
    values = prior.log_prob(theta).exp() * theta[..., 1]  # a density of a and log b, which is constant
    total = torch.trapezoid(torch.trapezoid(values, logs, dim=1), a, dim=0)
    assert float(total) == pytest.approx(1.0, rel=1e-12)
