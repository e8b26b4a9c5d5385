"""Simulators of physics: Langevin particles against the exact law, known systems against exact solutions and recorded gradients."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import solve_ivp

from simkit import integrators
from simkit.errors import ConfigError
from simkit.inference.priors import IndependentPrior, Normal, Uniform
from simkit.inference.simulations import simulate
from simkit.inference.simulator import simulation_seeds
from simkit.inference.simulators.langevin import LangevinParticle
from simkit.inference.simulators.quantities import Quantities, Quantity
from simkit.inference.simulators.streams import INITIAL, standard_normals
from simkit.inference.simulators.systems import SystemSimulator
from simkit.integrators import Bath, cpu, philox
from simkit.integrators.torch import conservative, trajectory
from simkit.surrogates.systems import build
from simkit.units import BOLTZMANN, FORCE_TO_ACCELERATION

SEEDS = simulation_seeds(3, 0, 40_000)
TIMES = (0.5, 1.0, 1.7, 3.0)


def test_streams_are_those_of_philox() -> None:
    found = standard_normals(SEEDS[:3], 10, INITIAL)
    for row, seed in zip(found, SEEDS, strict=False):
        expected = philox.normals(int(seed), 0, 0, np.arange(3), INITIAL).ravel()[:10]
        np.testing.assert_array_equal(row, expected)
    np.testing.assert_array_equal(standard_normals(SEEDS[:3], 5, INITIAL), found[:, :5])


@pytest.mark.parametrize("scheme", ["baoab", "obabo", "oabao"])
def test_a_particle_moves_as_the_integrator_moves_it(scheme: str) -> None:
    """The same scheme, seed and start by `simkit.integrators.cpu`, whose force is a Python function."""
    particle = LangevinParticle(times=[0.1, 0.2, 0.3], timestep=0.02, start=1.5, scheme=scheme)
    found = particle.simulate(np.array([[2.0, 250.0]]), SEEDS[:1])[0]
    inertia, kt, k = 39.948 / FORCE_TO_ACCELERATION, BOLTZMANN * 250.0, 0.01
    first = philox.normals(int(SEEDS[0]), 0, 0, 0, INITIAL)
    x, v = np.array([[1.5]]), np.array([[math.sqrt(kt / inertia) * first[1]]])

    def spring(positions: np.ndarray, forces: np.ndarray) -> None:
        forces[:] = -k * positions

    engine = cpu.Integrator(integrators.get(scheme), spring, x, v, np.empty_like(x), np.array([inertia]))
    engine.evaluate_forces()
    expected = []
    for k_frame in range(3):
        engine.run(5, timestep=20.0, first_step=5 * k_frame, bath=Bath(2.0e-3, kt, int(SEEDS[0])))
        expected.append(x[0, 0])
    np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.parametrize(("start", "stiffness"), [(None, 0.01), (2.0, 0.01), (2.0, 0.0)])
def test_mean_and_covariance_of_a_particle(start: float | None, stiffness: float) -> None:
    """Every entry within 5 standard errors of 40,000 simulations, whose time step makes an error of 1e-4."""
    fixed = {"stiffness": stiffness, "noise": 0.2}
    particle = LangevinParticle(times=TIMES, start=start, fixed=fixed, timestep=0.05)
    theta = torch.tensor([1.3, 310.0], dtype=torch.float64)
    mean, covariance = (value.numpy() for value in particle.mean_and_covariance(theta))
    x = particle.simulate(np.tile(theta.numpy(), (len(SEEDS), 1)), SEEDS)
    variances = np.diag(covariance)
    assert (np.abs(x.mean(axis=0) - mean) < 5 * np.sqrt(variances / len(x))).all()
    error = np.sqrt((np.outer(variances, variances) + covariance**2) / len(x))
    assert (np.abs(np.cov(x.T) - covariance) < 5 * error).all()


def test_covariance_solves_the_moment_equations() -> None:
    """The law of (x, v) by integrating d P / dt = F P + P F^T + Q, C(t, s) = exp(F (t - s)) P(s), for a start out of equilibrium."""
    particle = LangevinParticle(times=TIMES, start=2.0, fixed={"stiffness": 0.02})
    gamma, temperature = 0.7e-3, 200.0
    _, found = particle.mean_and_covariance(torch.tensor([gamma * 1e3, temperature], dtype=torch.float64))
    inertia, kt = 39.948 / FORCE_TO_ACCELERATION, BOLTZMANN * temperature
    rate = np.array([[0.0, 1.0], [-0.02 / inertia, -gamma]])
    noise = np.diag([0.0, 2 * gamma * kt / inertia])

    def moments(_: float, flat: np.ndarray) -> np.ndarray:
        p = flat.reshape(2, 2)
        return (rate @ p + p @ rate.T + noise).ravel()

    begin = np.diag([0.0, kt / inertia]).ravel()
    times = 1e3 * np.array(TIMES)
    path = solve_ivp(
        moments, (0.0, times[-1]), begin, "DOP853", times, rtol=1e-11, atol=1e-16, max_step=20.0
    ).y.T.reshape(-1, 2, 2)
    for j, s in enumerate(times):
        for i, t in enumerate(times[j:], start=j):
            advance = torch.linalg.matrix_exp(torch.from_numpy(rate * (t - s))).numpy()
            assert (advance @ path[j])[0, 0] == pytest.approx(float(found[i, j]), rel=1e-7, abs=1e-9)


def test_likelihood_of_a_particle() -> None:
    """Against SciPy's normal density; its gradient against differences; at critical damping, too."""
    particle = LangevinParticle(times=TIMES, fixed={"noise": 0.1})
    critical = 2e3 * math.sqrt(0.01 * FORCE_TO_ACCELERATION / 39.948)
    theta = torch.tensor([[0.8, 250.0], [critical, 320.0]], dtype=torch.float64, requires_grad=True)
    x = torch.from_numpy(particle.simulate(np.array([[1.0, 300.0]]), SEEDS[:1])[0])
    value = particle.log_likelihood(theta, x)
    mean, covariance = particle.mean_and_covariance(theta.detach())
    for k in range(2):
        expected = stats.multivariate_normal(mean[k].numpy(), covariance[k].numpy()).logpdf(x.numpy())
        assert float(value[k].detach()) == pytest.approx(float(expected), rel=1e-10)
    assert torch.autograd.gradcheck(lambda t: particle.log_likelihood(t, x), (theta,), eps=1e-6, atol=1e-6)


def test_what_a_particle_refuses_and_fails_at() -> None:
    with pytest.raises(ConfigError, match="no equilibrium"):
        LangevinParticle(fixed={"stiffness": 0.0})
    with pytest.raises(ConfigError, match="did you mean 'friction'"):
        LangevinParticle({"frictoin": {"uniform": [0, 1]}})
    with pytest.raises(ConfigError, match="in 1/ps"):
        LangevinParticle({"friction": {"uniform": [0, 1], "unit": "1/fs"}})
    with pytest.raises(ConfigError, match="both fixed and free"):
        LangevinParticle(fixed={"friction": 1.0})
    with pytest.raises(ConfigError, match="increasing"):
        LangevinParticle(times=[1.0, 0.5])
    with pytest.raises(ConfigError, match="with noise"):
        LangevinParticle(scheme="velocity-verlet")
    particle = LangevinParticle(IndependentPrior({"friction": Normal(1.0, 1.0)}))
    x = particle.simulate(np.array([[1.0], [-0.5], [np.nan], [2.0]]), SEEDS[:4])
    np.testing.assert_array_equal(np.isfinite(x).all(axis=1), [True, False, False, True])


def test_quantities() -> None:
    known = {"a": Quantity("K", 3.0, 0.0, open=True), "b": Quantity()}
    found = Quantities("thing", known, {"b": {"uniform": [0, 1]}})
    theta = np.array([[0.25], [0.5]])
    assert found.prior.units == ("",)
    assert found.value(theta, "a") == 3.0
    np.testing.assert_array_equal(found.column(theta, "b"), [0.25, 0.5])
    with pytest.raises(ConfigError, match="thing needs b"):
        Quantities("thing", known, {"a": {"uniform": [0, 1]}})
    with pytest.raises(ConfigError, match="above 0; found 0"):
        Quantities("thing", known, {"b": {"uniform": [0, 1]}}, {"a": 0.0})


def pendulum(**options: object) -> SystemSimulator:
    prior = {
        "length": {"uniform": [0.5, 2.0], "unit": "m"},
        "friction": {"uniform": [0.0, 0.5]},
        "initial_q1": {"uniform": [0.5, 1.5]},
        "noise": {"log_uniform": [0.01, 0.1]},
    }
    settings: dict[str, object] = {"times": np.linspace(1.0, 4.0, 13).tolist(), "fixed": {"initial_p1": 0.2}}
    return SystemSimulator("laboratory_pendulum", prior, **(settings | {"timestep": 0.01} | options))  # type: ignore[arg-type]


def test_pendulums_of_their_own_lengths() -> None:
    """Each trajectory against Bulirsch and Stoer's method for a pendulum built with its parameters; errors of RK4: 1e-6."""
    simulator = pendulum(initial_time=0.0)
    theta = simulator.prior.sample(6, 1)
    found = simulator.split(simulator.motion(theta))
    times = np.array([0.0, *simulator.times])
    for k, (length, friction, angle, _) in enumerate(theta):
        system = build("laboratory_pendulum", {"length": length, "friction": friction})
        exact = system.integrate(np.array([[angle, 0.2]]), times)[0, 1:]
        np.testing.assert_allclose(np.stack([found["q1"][k], found["p1"][k]], axis=1), exact, atol=1e-6)


def test_errors_of_measurement_are_normal_and_belong_to_the_seed() -> None:
    simulator = pendulum(observe=["p1"])
    theta = np.tile([1.0, 0.1, 1.0, 0.05], (3000, 1))
    x = simulator.simulate(theta, SEEDS[:3000])
    errors = ((x - simulator.motion(theta)) / 0.05).ravel()
    assert stats.kstest(errors, "norm").pvalue > 1e-3
    np.testing.assert_array_equal(simulator.simulate(theta[700:703], SEEDS[700:703]), x[700:703])
    assert pendulum(observe=["p1"]).identity() == simulator.identity() != pendulum(observe=["q1"]).identity()


def test_gradients_by_differences_are_those_of_recorded_steps() -> None:
    """Against `simkit.integrators.torch`, which records every step, for the stiffness, the mass and the start of a spring."""
    prior = {
        "stiffness": {"uniform": [0.5, 3.0]},
        "mass": {"uniform": [0.5, 2.0]},
        "initial_q1": {"normal": [1.0, 0.5]},
    }
    times = np.linspace(0.0, 6.0, 31)
    options = {"times": times.tolist(), "fixed": {"initial_p1": 0.3, "noise": 0.05}, "observe": ["q1"]}
    simulator = SystemSimulator("spring", prior, method="velocity-verlet", **options)  # type: ignore[arg-type]
    theta = torch.tensor([[1.1, 0.9, 0.7], [2.5, 1.4, -0.4]], dtype=torch.float64, requires_grad=True)
    x = torch.from_numpy(simulator.simulate(np.array([[1.2, 1.0, 0.6]]), SEEDS[:1])[0])
    value = simulator.log_likelihood(theta, x)
    (found,) = torch.autograd.grad(value.sum(), theta)
    k, mass, start = theta.unbind(1)
    force = conservative(lambda q, stiffness: 0.5 * stiffness[:, None, None] * q.square())
    state = start[:, None, None], torch.full_like(start, 0.3)[:, None, None] / mass[:, None, None]
    path, _ = trajectory(
        integrators.get("velocity-verlet"), force, *state, masses=mass[:, None], timestep=0.2, frames=30, parameters=(k,)
    )  # fmt: skip
    expected = torch.distributions.Normal(path[:, :, 0, 0].T, 0.05).log_prob(x).sum(1)
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-9)
    (exact,) = torch.autograd.grad(expected.sum(), theta)
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-5)


def test_gradient_of_free_noise() -> None:
    simulator = pendulum()
    x = torch.from_numpy(simulator.simulate(np.array([[1.0, 0.1, 1.0, 0.05]]), SEEDS[:1])[0])
    theta = torch.tensor([[1.02, 0.12, 0.97, 0.04]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: simulator.log_likelihood(t, x), (theta,), eps=1e-5, rtol=1e-4)


def test_noise_of_each_coordinate() -> None:
    prior = {"noise_p1": {"uniform": [0.1, 0.2]}, "friction": {"uniform": [0.0, 1.0]}}
    fixed = {"noise_q1": 0.01, "initial_q1": 0.3, "initial_p1": 0.0}
    simulator = SystemSimulator("laboratory_pendulum", prior, times=np.linspace(0, 1, 6).tolist(), fixed=fixed)
    theta = np.tile([0.15, 0.1], (4000, 1))
    errors = simulator.split(simulator.simulate(theta, SEEDS[:4000]) - simulator.motion(theta))
    for name, sd in (("q1", 0.01), ("p1", 0.15)):
        assert errors[name].std() == pytest.approx(sd, rel=5 / math.sqrt(2 * errors[name].size))


def test_instruments_may_be_wrong() -> None:
    """Readings are a straight line of the coordinate; the calibration may be free."""
    prior = {
        "scale_p1": {"normal": [1.0, 0.1]},
        "offset_q1": {"normal": [0.0, 0.1]},
        "friction": {"uniform": [0.0, 1.0]},
    }
    fixed = {"initial_q1": 0.3, "initial_p1": 0.1, "noise": 0.01}
    simulator = SystemSimulator("laboratory_pendulum", prior, times=np.linspace(0, 2, 9).tolist(), fixed=fixed)
    exact, read = (simulator.split(simulator.motion(np.array([t]))) for t in ([1.0, 0.0, 0.1], [0.9, -0.05, 0.1]))
    np.testing.assert_allclose(read["q1"], exact["q1"] - 0.05, rtol=1e-14)
    np.testing.assert_allclose(read["p1"], 0.9 * exact["p1"], rtol=1e-14)


@pytest.mark.slow
def test_entries_of_lists_are_parameters() -> None:
    """Two masses on strings, the lower one of them free, against Bulirsch and Stoer's method."""
    fixed = {"noise": 0.01, "initial_q1": 0.3, "initial_q2": -0.2, "initial_p1": 0.0, "initial_p2": 0.1}
    prior = {"masses[1]": {"uniform": [0.5, 2.0]}}
    times = np.linspace(0, 1, 6)
    simulator = SystemSimulator("double_pendulum", prior, times=times.tolist(), fixed=fixed, timestep=0.005)
    found = simulator.split(simulator.motion(np.array([[1.7], [0.6]])))
    for k, mass in enumerate((1.7, 0.6)):
        system = build("double_pendulum", simulator.system.parameters | {"masses": [1.0, mass]})
        exact = system.integrate(np.array([[0.3, -0.2, 0.0, 0.1]]), times)[0]
        np.testing.assert_allclose(found["q2"][k], exact[:, 1], atol=1e-7)


def test_systems_that_leave_to_infinity_or_refuse_parameters_fail_alone() -> None:
    """A friction that drives the pendulum; a negative length."""
    fixed = {"initial_q1": 0.5, "initial_p1": 0.0, "noise": 0.01}
    prior = IndependentPrior({"length": Normal(1.0, 1.0), "friction": Uniform(-1e4, 1.0)})
    simulator = SystemSimulator("laboratory_pendulum", prior, times=np.linspace(0, 10, 101).tolist(), fixed=fixed)
    theta = np.array([[1.0, 0.1], [1.0, -9e3], [-1.0, 0.1], [2.0, 0.0]])
    x = simulator.simulate(theta, SEEDS[:4])
    np.testing.assert_array_equal(np.isfinite(x).all(axis=1), [True, False, False, True])
    np.testing.assert_array_equal(simulator.simulate(theta[3:], SEEDS[3:4]), x[3:])
    value = simulator.log_likelihood(torch.from_numpy(theta), torch.from_numpy(x[0]))
    np.testing.assert_array_equal(np.isfinite(value.numpy()), [True, False, False, True])
    assert value[1] == value[2] == -math.inf


def test_what_system_simulators_refuse() -> None:
    with pytest.raises(ConfigError, match="needs initial_p1"):
        pendulum(fixed={})
    with pytest.raises(ConfigError, match="no coordinate 'q2'"):
        pendulum(observe=["q2"])
    with pytest.raises(ConfigError, match="T\\(p\\) \\+ V\\(q\\)"):
        pendulum(method="velocity-verlet")
    with pytest.raises(ConfigError, match="increasing"):
        pendulum(initial_time=2.0)
    silent = SystemSimulator(
        "spring", {"mass": {"uniform": [1, 2]}}, times=[1.0], fixed={"initial_q1": 1.0, "initial_p1": 0.0, "noise": 0.0}
    )
    with pytest.raises(ConfigError, match="no density"):
        silent.log_likelihood(torch.ones(1, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))


def test_a_store_of_simulations(tmp_path: object) -> None:
    simulator = pendulum()
    first = simulate(simulator, 30, seed=5, store=tmp_path)  # type: ignore[arg-type]
    again = simulate(simulator, 50, seed=5, store=tmp_path)  # type: ignore[arg-type]
    np.testing.assert_array_equal(again.x[:30], first.x)
    np.testing.assert_array_equal(again.x, simulate(simulator, 50, seed=5).x)
