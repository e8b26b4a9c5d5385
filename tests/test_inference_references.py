"""The benchmark's reference posteriors: reading them, and whether our simulators and likelihoods are those they were made with."""

import bz2
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from simkit.errors import DataError
from simkit.inference.priors import normal_log_prob
from simkit.inference.simulator import Tractable
from simkit.inference.simulators import build
from simkit.inference.simulators.populations import SIR, LotkaVolterra
from simkit.inference.simulators.reference import load_reference

LEAST = 1e-4  # of a p-value
OBSERVATIONS = (1, 2, 3)


@pytest.mark.data
@pytest.mark.parametrize("task", ["two_moons", "slcp", "gaussian_linear_uniform", "lotka_volterra", "sir"])
def test_references_fit_the_simulators(task: str) -> None:
    simulator = build(task)
    for k in OBSERVATIONS:
        reference = load_reference(task, k)
        assert simulator.observation(reference.observation).shape == (simulator.size,)
        assert reference.samples.shape == (10_000, simulator.prior.dim)
        simulator.prior.check(reference.samples.clip(*simulator.prior.support()))
        simulator.prior.check(reference.parameters)


@pytest.mark.data
@pytest.mark.parametrize("k", OBSERVATIONS)
@pytest.mark.parametrize("task", ["slcp", "lotka_volterra", "sir"])
def test_reference_samples_have_our_posterior(task: str, k: int) -> None:
    """Stein's identities: with p the posterior of z, the means of d ln p/dz_i and of 1 + z_i d ln p/dz_i are zero."""
    simulator = build(task)
    assert isinstance(simulator, Tractable)
    reference = load_reference(task, k)
    z = simulator.prior.to_normal(torch.from_numpy(reference.samples[:: 1 if task == "slcp" else 4])).requires_grad_()
    likelihood = simulator.log_likelihood(simulator.prior.from_normal(z), torch.from_numpy(reference.observation))
    (score,) = torch.autograd.grad((likelihood + normal_log_prob(z)).sum(), z)
    for terms in (score, 1 + z.detach() * score):
        assert (terms.mean(0).abs() < 5 * terms.std(0) / math.sqrt(len(terms))).all()
    # They would not have it for another observation.
    other = load_reference(task, k % 3 + 1)
    likelihood = simulator.log_likelihood(simulator.prior.from_normal(z), torch.from_numpy(other.observation))
    (score,) = torch.autograd.grad((likelihood + normal_log_prob(z)).sum(), z)
    assert (score.mean(0).abs() > 20 * score.std(0) / math.sqrt(len(score))).any()


@pytest.mark.data
@pytest.mark.parametrize("k", OBSERVATIONS)
def test_reference_of_gaussian_linear_uniform(k: int) -> None:
    """Normal around the observation with variance 0.1, cut off at -1 and 1, and independent."""
    reference = load_reference("gaussian_linear_uniform", k)
    x, scale = reference.observation, math.sqrt(0.1)
    law = stats.truncnorm((-1 - x) / scale, (1 - x) / scale, x, scale)
    places = law.cdf(reference.samples)
    assert min(stats.kstest(column, "uniform").pvalue for column in places.T) > LEAST
    assert np.abs(np.corrcoef(places.T) - np.eye(10)).max() < 5 / 100


@pytest.mark.data
@pytest.mark.parametrize("k", OBSERVATIONS)
def test_reference_of_two_moons(k: int) -> None:
    """Undoing the shift of the observation for each sample gives the radii and angles of the simulator's definition."""
    reference = load_reference("two_moons", k)
    total, difference = reference.samples.sum(1), reference.samples[:, 1] - reference.samples[:, 0]
    u = reference.observation[0] - 0.25 + np.abs(total) / math.sqrt(2)
    v = reference.observation[1] - difference / math.sqrt(2)
    assert stats.kstest(np.hypot(u, v), stats.norm(0.1, 0.01).cdf).pvalue > LEAST
    assert stats.kstest(np.arctan2(v, u), stats.uniform(-math.pi / 2, math.pi).cdf).pvalue > LEAST
    assert stats.binomtest(int((total > 0).sum()), len(total)).pvalue > LEAST


@pytest.mark.data
@pytest.mark.parametrize("k", OBSERVATIONS)
def test_observations_lie_around_the_noise_free_solution(k: int) -> None:
    reference, simulator = load_reference("lotka_volterra", k), LotkaVolterra()
    states = simulator.solve(reference.parameters[None])[0].T.ravel()
    squares = (np.log(reference.observation / states) / 0.1) ** 2
    assert LEAST < stats.chi2.cdf(squares.sum(), 20) < 1 - LEAST
    reference, people = load_reference("sir", k), SIR()
    law = stats.binom(1000, people.solve(reference.parameters[None])[0, :, 1] / 1e6)
    below, above = law.cdf(reference.observation), law.sf(reference.observation - 1)
    assert (np.minimum(below, above) > LEAST).all()


def write(folder: Path, observation: str, parameters: str, samples: str) -> None:
    place = folder / "task" / "num_observation_2"
    place.mkdir(parents=True)
    (place / "observation.csv").write_text(observation)
    (place / "true_parameters.csv").write_text(parameters)
    (place / "reference_posterior_samples.csv.bz2").write_bytes(bz2.compress(samples.encode()))


def test_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "data_1,data_2\n1.5,-2\n", "$a$\n0.25\n", "$a$\n0.5\n0.75\n1e-3\n")
    found = load_reference("task", 2, tmp_path)
    assert found.observation.tolist() == [1.5, -2]
    assert found.parameters.tolist() == [0.25]
    assert found.samples.tolist() == [[0.5], [0.75], [1e-3]]
    (tmp_path / "sbibm").symlink_to(tmp_path)
    monkeypatch.setenv("SIMKIT_DATA_DIR", str(tmp_path))
    assert load_reference("task", 2).samples.shape == (3, 1)
    with pytest.raises(
        DataError, match=r"num_observation_9/observation.csv is missing; it comes with the sbibm benchmark"
    ):
        load_reference("task", 9)
    monkeypatch.delenv("SIMKIT_DATA_DIR")
    with pytest.raises(DataError, match="set SIMKIT_DATA_DIR"):
        load_reference("task", 2)


@pytest.mark.parametrize(
    ("observation", "parameters", "samples", "message"),
    [
        ("a\n1\n", "a\n1\n", "a,b\n1,2\n", "samples of as many parameters; found arrays of shape"),
        ("a\n1\n2\n", "a\n1\n", "a\n1\n", "should hold one observation"),
        ("a\n1\n", "a\nhigh\n", "a\n1\n", "true_parameters.csv is damaged"),
        ("a\nnan\n", "a\n1\n", "a\n1\n", "should hold rows of finite numbers"),
    ],
)
def test_bad_files(observation: str, parameters: str, samples: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, observation, parameters, samples)
    with pytest.raises(DataError, match=message):
        load_reference("task", 2, tmp_path)


def test_truncated_and_empty_files(tmp_path: Path) -> None:
    write(tmp_path, "a\n1\n", "a\n1\n", "a\n" + "0.123456789\n" * 1000)
    path = tmp_path / "task" / "num_observation_2" / "reference_posterior_samples.csv.bz2"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="is damaged"):
        load_reference("task", 2, tmp_path)
    path.write_bytes(bz2.compress(b"a\n"))
    with pytest.raises(DataError, match=r"samples.csv.bz2"):
        load_reference("task", 2, tmp_path)
