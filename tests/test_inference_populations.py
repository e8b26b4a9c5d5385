"""Population simulators: equations against SciPy's, observations against their laws, random events against exact distributions."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from torch import Tensor

from simkit.inference.priors import IndependentPrior, Uniform
from simkit.inference.simulator import simulation_seeds
from simkit.inference.simulators.differential import DifferentialSimulator
from simkit.inference.simulators.jumps import JumpSimulator, LotkaVolterraJump, SIRJump
from simkit.inference.simulators.populations import SIR, LotkaVolterra

LEAST = 1e-4  # of a p-value, with fixed seeds
PREDATION = np.array([[0.7, 0.1, 0.9, 0.12], [1.5, 0.03, 0.4, 0.02], [0.5, 0.05, 1.6, 0.1]])
EPIDEMICS = np.array([[0.6, 0.19], [0.3, 0.1], [1.4, 0.15], [0.05, 0.2]])


def predation(y: Any, theta: Any) -> list[Any]:
    alpha, beta, gamma, delta = theta
    return [alpha * y[0] - beta * y[0] * y[1], delta * y[0] * y[1] - gamma * y[1]]


def epidemic(y: Any, theta: Any) -> list[Any]:
    beta, gamma = theta
    return [-beta * y[0] * y[1] / 1e6, beta * y[0] * y[1] / 1e6 - gamma * y[1]]


CASES: list[Any] = [
    (LotkaVolterra(timestep=0.003), PREDATION, predation, [30.0, 1.0]),
    (SIR(timestep=0.04), EPIDEMICS, epidemic, [1e6 - 1, 1.0]),
]


def repeated(simulator: Any, theta: Any, count: int) -> np.ndarray:
    """Many outputs [N, K] of the same parameters."""
    return simulator.simulate(np.tile(np.array(theta), (count, 1)), simulation_seeds(21, 0, count))


def test_definitions_of_the_benchmark() -> None:
    predators, people = LotkaVolterra(), SIR()
    assert predators.times.tolist() == pytest.approx(np.arange(0, 20, 0.1)[:201:21])
    assert people.times.tolist() == list(range(0, 161, 17))
    assert (predators.size, people.size) == (20, 10)
    z = torch.zeros(4, dtype=torch.float64)
    assert predators.prior.names == ("alpha", "beta", "gamma", "delta")
    assert predators.prior.from_normal(z).log().tolist() == pytest.approx([-0.125, -3, -0.125, -3])
    assert predators.prior.from_normal(z + 1).log().tolist() == pytest.approx([0.375, -2.5, 0.375, -2.5])
    assert people.prior.from_normal(z[:2]).tolist() == pytest.approx([0.4, 0.125])
    assert people.prior.from_normal(z[:2] + 1).tolist() == pytest.approx([0.4 * math.exp(0.5), 0.125 * math.exp(0.2)])


@pytest.mark.parametrize(("simulator", "theta", "equations", "start"), CASES)
def test_solution_against_scipy(simulator: DifferentialSimulator, theta: Any, equations: Any, start: Any) -> None:
    found = simulator.solve(theta)
    for row, parameters in zip(found, theta, strict=True):
        exact = solve_ivp(
            lambda t, y, p=parameters: equations(y, p),
            (0, simulator.times[-1]),
            start,
            "DOP853",
            simulator.times,
            rtol=1e-12,
            atol=1e-20,
        )
        np.testing.assert_allclose(row, exact.y.T, rtol=5e-7)


def test_accuracy_over_the_prior() -> None:
    """What the documentation says of the default steps, against steps of an eighth."""
    for simulator, fine, share, most in (
        (LotkaVolterra(), LotkaVolterra(timestep=0.005 / 8), 0.999, 2e-4),
        (SIR(), SIR(timestep=0.1 / 8), 0.999, 1e-5),
    ):
        theta = simulator.prior.sample(4000, 8)
        found, exact = simulator.solve(theta), fine.solve(theta)
        errors = np.log(found / exact) if simulator.name == "lotka_volterra" else (found - exact)[..., 1] / 1e6
        assert np.quantile(np.abs(errors).reshape(4000, -1).max(1), share) < most


@pytest.mark.parametrize(("simulator", "theta", "equations", "start"), CASES)
def test_slopes_against_automatic_differentiation(
    simulator: DifferentialSimulator, theta: Any, equations: Any, start: Any
) -> None:
    """Runge-Kutta steps written out in PyTorch, and differentiated by it."""
    kind: Any = type(simulator)
    coarse = kind(times=tuple(simulator.times[1:4]), timestep=simulator.timestep * 20)

    def rate(y: Tensor, p: Tensor) -> Tensor:
        return torch.stack(equations(y, p))

    def solution(p: Tensor) -> Tensor:
        y, t, states = torch.tensor(start, dtype=torch.float64), 0.0, []
        for end in coarse.times:
            count = math.ceil((end - t) / coarse.timestep - 1e-6)
            h = (end - t) / count
            for _ in range(count):
                k1 = rate(y, p)
                k2 = rate(y + h / 2 * k1, p)
                k3 = rate(y + h / 2 * k2, p)
                y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + rate(y + h * k3, p))
            states.append(y)
            t = end
        return torch.stack(states)

    given = torch.from_numpy(theta[0]).requires_grad_()
    expected = solution(given)
    found = coarse.solution(given)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(coarse.solution(given.detach()), found.detach(), rtol=1e-12, atol=0)
    weights = torch.linspace(-1, 2, expected.numel(), dtype=torch.float64).view_as(expected) / expected.detach()
    gradients = [torch.autograd.grad((weights * y).sum(), given)[0] for y in (found, expected)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=0)


def test_noise_of_lotka_volterra() -> None:
    simulator = LotkaVolterra(noise=0.3)
    x = simulator.split(repeated(simulator, PREDATION[0], 5000))
    states = simulator.solve(PREDATION[:1])[0]
    noise = np.concatenate([np.log(x["prey"] / states[:, 0]), np.log(x["predators"] / states[:, 1])], 1) / 0.3
    assert min(stats.kstest(column, "norm").pvalue for column in noise.T) > LEAST
    assert np.abs(np.corrcoef(noise.T) - np.eye(20)).max() < 5 / math.sqrt(5000)
    values = x["prey"][0], x["predators"][0]
    exact = sum(stats.lognorm(0.3, scale=states[:, c]).logpdf(values[c]).sum() for c in range(2))
    found = simulator.log_likelihood(torch.from_numpy(PREDATION[0]), torch.from_numpy(np.concatenate(values)))
    assert found.item() == pytest.approx(exact, rel=1e-10)


def test_observed_populations_are_bounded() -> None:
    """Prey without predation grow beyond 10^4 and are observed as 10^4, predators without prey sink below 10^-10."""
    simulator = LotkaVolterra(times=(0.0, 20.0), noise=1e-6)
    x = repeated(simulator, [1.0, 1e-12, 1.5, 1e-15], 3)
    np.testing.assert_allclose(x, np.tile([30, 1e4, 1, 1e-10], (3, 1)), rtol=1e-5)


def test_tests_of_sir() -> None:
    simulator = SIR(tests=50)
    x = repeated(simulator, EPIDEMICS[0], 5000)
    share = simulator.solve(EPIDEMICS[:1])[0, :, 1] / 1e6
    law = stats.binom(50, share)
    # Randomised between its neighbours, a binomial number is uniform.
    places = law.cdf(x - 1) + np.random.default_rng(0).random(x.shape) * law.pmf(x)
    assert min(stats.kstest(column, "uniform").pvalue for column in places.T) > LEAST
    assert np.abs(np.corrcoef(places.T) - np.eye(10)).max() < 5 / math.sqrt(5000)
    found = simulator.log_likelihood(torch.from_numpy(EPIDEMICS[0]), torch.from_numpy(x[0]))
    assert found.item() == pytest.approx(law.logpmf(x[0]).sum(), rel=1e-9)


class BirthDeath(JumpSimulator):
    """Births and deaths of one kind, independent of each other."""

    name = "birth_death"
    kinds = ("count",)
    changes = ((1,), (-1,))

    def __init__(self, start: int, times: tuple[float, ...], most: int = 100_000) -> None:
        self.prior = IndependentPrior({"birth": Uniform(0, 5), "death": Uniform(0, 5)})
        self.start, self.times, self.constants, self.most = np.array([float(start)]), np.array(times), np.zeros(0), most
        self.observables = self.observe("time")

    @staticmethod
    def rates(numbers: Any, theta: Any, constants: Any, out: Any) -> None:
        out[0], out[1] = theta[0] * numbers[0], theta[1] * numbers[0]


def assert_law(values: np.ndarray, probabilities: np.ndarray) -> None:
    """Pearson's test of counts 0, 1, ... with rare ones taken together; they have all of the probability but a thousandth."""
    expected = probabilities * len(values)
    assert len(values) - expected.sum() < 1e-3 * len(values)
    counts = np.bincount(values.astype(int), minlength=len(expected))[: len(expected)]
    common = expected >= 10
    rest = [len(values) - counts[common].sum(), len(values) - expected[common].sum()]
    found, wanted = counts[common].astype(float), expected[common]
    if rest[1] > 1:
        found, wanted = np.append(found, rest[0]), np.append(wanted, rest[1])
    else:
        wanted = wanted * found.sum() / wanted.sum()
    assert stats.chisquare(found, wanted).pvalue > LEAST


def test_pure_death_is_binomial() -> None:
    simulator = BirthDeath(20, (0.0, 0.5, 2.0, 60.0))
    x = repeated(simulator, [0.0, 0.7], 20_000)
    assert (x[:, 0] == 20).all()
    for column, t in ((1, 0.5), (2, 2.0)):
        assert_law(x[:, column], stats.binom.pmf(np.arange(21), 20, math.exp(-0.7 * t)))
    early, late = x[:, 1], x[:, 2]
    assert (late <= early).all()
    survival = math.exp(-0.7 * 1.5)  # of those who were there at the time before
    chosen = early == 14
    assert chosen.sum() > 1000
    assert_law(late[chosen], stats.binom.pmf(np.arange(15), 14, survival))
    assert (x[:, 3] == 0).all()


def test_pure_birth_is_negative_binomial() -> None:
    """Yule's process: offspring of each of three ancestors is geometric."""
    x = repeated(BirthDeath(3, (0.8,)), [1.1, 0.0], 20_000)[:, 0]
    assert_law(x - 3, stats.nbinom.pmf(np.arange(200), 3, math.exp(-1.1 * 0.8)))


def test_birth_and_death_have_known_moments() -> None:
    birth, death, t, start = 1.2, 0.9, 1.5, 40
    x = repeated(BirthDeath(start, (t,)), [birth, death], 10_000)[:, 0]
    growth = math.exp((birth - death) * t)
    variance = start * (birth + death) / (birth - death) * growth * (growth - 1)
    assert abs(x.mean() - start * growth) < 5 * math.sqrt(variance / 10_000)
    squares = (x - start * growth) ** 2
    assert abs(squares.mean() - variance) < 5 * squares.std() / 100


def distribution(
    rates: Any, changes: Any, theta: Any, start: Any, limits: Any, t: float
) -> dict[tuple[int, ...], float]:
    """The probability of each state at time t, by the exponential of the generator; states beyond the limits are left out."""
    states = list(product(*(range(n + 1) for n in limits)))
    index = {state: i for i, state in enumerate(states)}
    generator = np.zeros((len(states), len(states)))
    for state, i in index.items():
        for rate, change in zip(rates(state, theta), changes, strict=True):
            generator[i, i] -= rate
            target = tuple(a + b for a, b in zip(state, change, strict=True))
            if target in index:
                generator[i, index[target]] += rate
    return dict(zip(states, expm(generator * t)[index[tuple(start)]], strict=True))


def predation_rates(n: Any, theta: Any) -> list[float]:
    return [theta[0] * n[0], theta[1] * n[0] * n[1], theta[3] * n[0] * n[1], theta[2] * n[1]]


def infection_rates(n: Any, theta: Any) -> list[float]:
    return [theta[0] * n[0] * n[1] / 9, theta[1] * n[1]]


@pytest.mark.parametrize(
    ("simulator", "rates", "theta", "limits", "t"),
    [
        (LotkaVolterraJump((0.3, 0.7), (3, 2)), predation_rates, [0.9, 0.4, 0.6, 0.3], (22, 16), 0.7),
        (SIRJump((1.0, 2.5), 9, 2), infection_rates, [1.3, 0.4], (7, 9), 2.5),
    ],
)
def test_jumps_have_the_exact_distribution(
    simulator: JumpSimulator, rates: Any, theta: Any, limits: Any, t: float
) -> None:
    start = simulator.start.astype(int).tolist()
    exact = distribution(rates, simulator.changes, theta, start, limits, t)
    last = repeated(simulator, theta, 20_000).reshape(20_000, 2, 2)[..., -1].astype(int)
    inside = (last <= np.array(limits)).all(1)
    places = last[:, 0] * (limits[1] + 1) + last[:, 1]
    assert_law(places[inside], np.array(list(exact.values())))
    assert (~inside).mean() < 1e-3


def test_large_epidemics_follow_the_differential_equations() -> None:
    """Of 200,000 people, a share infected that differs by the order of 1/sqrt(N) from the equations'."""
    days = (5.0, 15.0, 25.0)
    counts = repeated(SIRJump(days, 200_000, 2000), EPIDEMICS[1], 20).reshape(20, 2, 3)[:, 1] / 200_000
    expected = SIR(days, 200_000, 2000).solve(EPIDEMICS[1:2])[0, :, 1] / 200_000
    error = counts.std(0, ddof=1) / math.sqrt(20)
    assert (error < 0.002).all()
    assert (np.abs(counts.mean(0) - expected) < 5 * error + 5 / 200_000).all()


def test_a_bound_on_events_fails_exactly_those_beyond() -> None:
    """Each of 20 deaths is an event: fifteen of them may happen, and time 0.5 is reached by those with five survivors."""
    free = repeated(BirthDeath(20, (0.2, 3.0)), [0.0, 0.7], 500)
    bound = repeated(BirthDeath(20, (0.2, 3.0), most=15), [0.0, 0.7], 500)
    fails = free[:, 1] < 5
    assert 50 < fails.sum() < 450
    assert np.isnan(bound[fails]).all()
    np.testing.assert_array_equal(bound[~fails], free[~fails])
