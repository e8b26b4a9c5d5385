"""What all ready statistical and population simulators keep, their registry, and the random numbers of compiled simulations."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from simkit.errors import ConfigError
from simkit.inference.priors import IndependentPrior, Normal
from simkit.inference.simulations import simulate
from simkit.inference.simulator import Simulator, Tractable, simulation_seeds
from simkit.inference.simulators import available, build, compiled, describe, jumps, planar, simulator_class
from simkit.inference.simulators.draws import binomial, fine_uniforms, normals, uniforms

# Short and coarse, where that saves time: name -> options that are not the defaults.
CASES: dict[str, dict[str, Any]] = {
    "two_moons": {},
    "gaussian_linear": {"dim": 3},
    "gaussian_linear_uniform": {"dim": 5},
    "gaussian_mixture": {},
    "slcp": {},
    "slcp_distractors": {},
    "bernoulli_glm": {"summary": "raw"},
    "lotka_volterra": {"times": (1.0, 2.5), "timestep": 0.1},
    "sir": {"times": (10.0, 20.0, 30.0), "timestep": 0.5},
    "lotka_volterra_jump": {"times": (0.5, 1.0), "events": 200},
    "sir_jump": {"times": (5.0, 10.0), "population": 60},
}
TRACTABLE = [name for name in CASES if "jump" not in name]


def made(name: str) -> tuple[Simulator, np.ndarray, np.ndarray]:
    """A simulator, parameters [600, D] and seeds; more than one block of the integrator."""
    simulator = build(name, **CASES[name])
    return simulator, simulator.prior.sample(600, 3), simulation_seeds(4, 0, 600)


@pytest.mark.parametrize("name", CASES)
def test_contract(name: str) -> None:
    simulator, theta, seeds = made(name)
    x = simulator.simulate(theta, seeds)
    assert x.shape == (600, simulator.size) == (600, len(simulator.labels()))
    assert x.dtype == np.float64
    assert simulator.name == name
    failed = ~np.isfinite(x).all(1)
    assert failed.any() == (name == "lotka_volterra_jump")
    assert np.isnan(x[failed]).all()
    assert len(np.unique(x[~failed], axis=0)) > 0.25 * (~failed).sum()
    joined = np.concatenate([part.reshape(600, -1) for part in simulator.split(x).values()], axis=1)
    np.testing.assert_array_equal(joined, x)


@pytest.mark.parametrize("name", CASES)
def test_outputs_do_not_depend_on_batches_or_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    simulator, theta, seeds = made(name)
    x = simulator.simulate(theta, seeds)
    order = np.random.default_rng(0).permutation(600)
    again = np.empty_like(x)
    for first, last in pairwise((0, 1, 40, 600)):
        rows = order[first:last]
        again[rows] = simulator.simulate(theta[rows], seeds[rows])
    np.testing.assert_array_equal(again, x)
    for module in (compiled, jumps, planar):
        monkeypatch.setattr(module, "task_count", lambda most: min(3, most))
    np.testing.assert_array_equal(simulator.simulate(theta, seeds), x)
    other = simulator.simulate(theta, simulation_seeds(5, 0, 600))
    assert not np.array_equal(other, x, equal_nan=True)


@pytest.mark.parametrize("name", TRACTABLE)
def test_gradient_of_the_likelihood(name: str) -> None:
    """Against central differences, for a batch of parameters of two dimensions."""
    simulator, theta, seeds = made(name)
    assert isinstance(simulator, Tractable)
    x = torch.from_numpy(simulator.simulate(theta[:1], seeds[:1])[0])
    near = torch.from_numpy(theta[:1] + 0.05 * (theta[:6] - theta[:1])).view(2, 3, -1).requires_grad_()
    value = simulator.log_likelihood(near, x)
    assert value.shape == (2, 3)
    (gradient,) = torch.autograd.grad(value.sum(), near)
    for d in range(near.shape[-1]):
        step = torch.zeros(near.shape[-1], dtype=torch.float64)
        step[d] = 1e-6 * (1 if name != "lotka_volterra" else 0.05)
        with torch.no_grad():
            difference = simulator.log_likelihood(near + step, x) - simulator.log_likelihood(near - step, x)
        torch.testing.assert_close(gradient[..., d], difference / (2 * step[d]), rtol=2e-5, atol=1e-4)


def test_registry() -> None:
    assert set(CASES) <= set(available())
    assert available() == sorted(available())
    for name in CASES:
        assert simulator_class(name).name == name
        line = describe(name)
        assert 20 < len(line) < 140
        assert line.endswith(".")
    assert build("gaussian_linear").prior.dim == 10
    with pytest.raises(ConfigError, match="unknown simulator 'two_moon'; did you mean 'two_moons'"):
        build("two_moon")
    with pytest.raises(ConfigError, match="options of lotka_volterra: unknown key 'nois'; did you mean 'noise'"):
        build("lotka_volterra", nois=0.2)
    with pytest.raises(ConfigError, match="options of sir: tests.*found 'many'"):
        build("sir", tests="many")
    with pytest.raises(ConfigError, match="summary"):
        build("bernoulli_glm", summary="half")


def test_identity_tells_options_apart() -> None:
    variants: dict[str, list[dict[str, Any]]] = {
        "lotka_volterra": [{}, {"noise": 0.2}, {"timestep": 0.1}, {"initial": [20, 2]}, {"times": [1, 2]}],
        "sir": [{}, {"tests": 100}, {"population": 1e5}, {"infected": 3}, {"timestep": 0.2}, {"times": [1, 2]}],
        "lotka_volterra_jump": [{}, {"events": 7}, {"initial": [3, 2]}, {"times": [1, 2]}],
        "sir_jump": [{}, {"population": 50}, {"infected": 3}, {"times": [1, 2]}],
        "bernoulli_glm": [{}, {"summary": "raw"}],
        "gaussian_linear": [{}, {"dim": 2}],
    }
    for name, options in variants.items():
        found = [build(name, **given).identity() for given in options]
        assert len(set(found)) == len(found)
        assert build(name, **options[-1]).identity() == found[-1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lotka_volterra", {"times": (2.0, 1.0)}, "increasing"),
        ("sir", {"times": ()}, "times"),
        ("sir_jump", {"times": (-1.0, 1.0)}, "not below 0; found \\[-1.0, 1.0\\]"),
        ("lotka_volterra", {"noise": 0.0}, "noise must be a positive number; found 0"),
        ("sir", {"infected": 2e6}, "cannot be infected"),
        ("sir_jump", {"infected": 2000}, "cannot be infected"),
        ("lotka_volterra_jump", {"initial": (-1, 3)}, "prey must be a whole number"),
        ("lotka_volterra_jump", {"events": 0}, "events must be a positive number"),
        ("gaussian_linear", {"dim": 0}, "dim must be positive; found 0"),
        ("sir", {"prior": {"beta": {"uniform": [0, 1]}}}, "expected a prior of beta, gamma, in this order; found beta"),
        (
            "sir",
            {"prior": IndependentPrior({"beta": Normal(0, 1), "gamma": Normal(0, 1)})},
            "beta must not be less than 0",
        ),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, **options)


def test_other_priors() -> None:
    described = {"beta": {"uniform": [0.1, 0.2]}, "gamma": {"log_normal": [-2, 0.1]}}
    simulator = build("sir", prior=described)
    assert isinstance(simulator.prior, IndependentPrior)
    assert simulator.prior.support()[1][0] == 0.2
    assert build("sir", prior=simulator.prior).prior is simulator.prior


def test_failures_are_kept() -> None:
    found = simulate(build("lotka_volterra_jump", times=(0.5, 30.0), events=500), 200, seed=1)
    assert 20 < found.failures < 180
    # Steps that are far too long for such rates make the populations negative or infinite.
    wild = {name: {"uniform": [5.0, 6.0]} for name in ("alpha", "beta", "gamma", "delta")}
    found = simulate(build("lotka_volterra", prior=wild, timestep=0.5), 50, seed=1)
    assert found.failures == 50
    assert np.isnan(found.x).all()


def words(seed: int) -> tuple[np.uint64, np.uint64]:
    return np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32)


def test_streams_of_random_numbers() -> None:
    """Uniform and normal numbers have their laws, and no correlation with each other, across blocks or across seeds."""
    seeds = simulation_seeds(0, 0, 4000)
    columns = []
    for block in (0, 1):
        columns += list(np.array([uniforms(block, *words(int(s))) for s in seeds]).T)
        columns += list(stats.norm.cdf(np.array([normals(block, *words(int(s))) for s in seeds]).T))
    for values in [*columns, *np.array([fine_uniforms(7, *words(int(s))) for s in seeds]).T]:
        assert stats.kstest(values, "uniform").pvalue > 1e-4
    values = np.array(columns)
    correlation = np.corrcoef(values) - np.eye(len(values))
    assert np.abs(correlation).max() < 5 / np.sqrt(values.shape[1])
    assert np.abs(np.corrcoef(values[:, 1:], values[:, :-1])[:16, 16:]).max() < 5 / np.sqrt(values.shape[1])


@pytest.mark.parametrize(
    ("trials", "p"), [(1, 0.3), (10, 0.5), (1000, 0.37), (1000, 0.0004), (1000, 0.9999), (7, 1e-9)]
)
def test_binomial_inverts_its_distribution(trials: int, p: float) -> None:
    """Equally spaced uniform numbers give each count as often as it is probable, within two of them."""
    points = 20_000
    counts = np.bincount([binomial(trials, p, (j + 0.5) / points) for j in range(points)], minlength=trials + 1)
    assert np.abs(counts / points - stats.binom.pmf(np.arange(trials + 1), trials, p)).max() <= 2 / points
    assert [binomial(trials, q, 0.5) for q in (-0.1, 0.0, 1.0, 1.1)] == [0, 0, trials, trials]
