"""Langevin dynamics by the splitting integrators: heat, stationary states, sampling."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
from integrator_cases import STOCHASTIC, run

from simkit import integrators
from simkit.errors import ConfigError
from simkit.integrators import Bath, cpu, philox

# <k x^2>/kT and <m v^2>/kT that a scheme settles at for a harmonic oscillator, with a = (omega h / 2)^2. For any friction: the noise
# keeps the velocities' distribution, the rest of the step conserves a quadratic form (Leimkuhler and Matthews 2013 give those of BAOAB).
HARMONIC: dict[str, Callable[[float], tuple[float, float]]] = {
    "baoab": lambda a: (1, 1 - a),
    "aboba": lambda a: (1, 1 / (1 - a)),
    "obabo": lambda a: (1 / (1 - a), 1),
    "oabao": lambda a: (1 - a, 1),
    "baoa": lambda a: (1, 1),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_heat_is_what_the_noise_adds(name: str, rng: np.random.Generator) -> None:
    """Without forces, only the noise changes the kinetic energy; with them, the state is the same as without heat."""
    x, v, masses = rng.normal(size=(9, 3)), rng.normal(size=(9, 3)), rng.uniform(1, 3, 9)
    v[4], masses[4] = 0, np.inf
    before = np.where(masses < np.inf, masses, 0)[:, None] * v**2 / 2
    heat = np.zeros((9, 3))
    bath = Bath(0.7, 1.3, 5)
    integrator = cpu.Integrator(integrators.get(name), lambda x, f: None, x, v, np.zeros((9, 3)), masses, heat=heat)
    integrator.run(20, timestep=0.3, bath=bath)
    after = np.where(masses < np.inf, masses, 0)[:, None] * v**2 / 2
    np.testing.assert_allclose(heat, after - before, rtol=0, atol=1e-13)
    assert np.abs(heat).max() > 0.5
    ends = []
    for given in (None, np.zeros((9, 3))):
        arrays = [np.linspace(-1, 1, 27).reshape(9, 3), np.ones((9, 3)), np.zeros((9, 3))]
        integrator = cpu.Integrator(integrators.get(name), spring_to_origin, *arrays, np.ones(9), heat=given)
        integrator.evaluate_forces()
        integrator.run(20, timestep=0.3, bath=bath)
        ends.append(arrays)
    assert np.array_equal(ends[0], ends[1])


def spring_to_origin(x: np.ndarray, f: np.ndarray) -> None:
    np.negative(x, out=f)


@pytest.mark.parametrize("heat", [np.zeros((3, 2)), np.zeros((2, 3), dtype=np.float32)])
def test_unusable_heat_is_refused(heat: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="heat must be float64 like positions"):
        cpu.Integrator(integrators.get("baoab"), spring_to_origin, *np.zeros((3, 2, 3)), np.ones(2), heat=heat)


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("friction", [0.05, 1.0, 30.0])
def test_stationary_state_of_a_harmonic_oscillator(name: str, friction: float) -> None:
    """A step is z' = M z + G R, with M and G read off the compiled loop; its stationary covariance is compared, without statistics."""
    stiffness, mass, kt, h, seed = 2.0, 1.5, 0.7, 0.9, 4
    spring = lambda a, b: np.multiply(a, -stiffness, out=b)  # noqa: E731

    def step(z: np.ndarray, temperature: float) -> np.ndarray:
        x, v = np.ascontiguousarray(z[:, :1]), np.ascontiguousarray(z[:, 1:])
        masses = np.full(len(z), mass)
        return np.hstack(run(name, spring, x, v, 1, h, masses, Bath(friction, temperature, seed)))

    matrix = step(np.eye(2), 0.0).T
    atoms, streams = 40, integrators.get(name).letters.count("O")
    numbers = np.stack([philox.normals(seed, 0, 0, np.arange(atoms), s)[:, 0] for s in range(streams)], axis=1)
    kicked = step(np.zeros((atoms, 2)), kt)
    gain, residual, rank, _ = np.linalg.lstsq(numbers, kicked, rcond=None)
    assert rank == streams
    assert residual.max() < 1e-26
    covariance = scipy.linalg.solve_discrete_lyapunov(matrix, gain.T @ gain)
    found = stiffness * covariance[0, 0] / kt, mass * covariance[1, 1] / kt
    assert found == pytest.approx(HARMONIC[name](stiffness / mass * h**2 / 4), rel=1e-10)


def test_sampling_of_a_harmonic_oscillator(rng: np.random.Generator) -> None:
    """Independent replicas at two temperatures, sampled with a timestep at which the schemes differ; four standard errors."""
    half, stiffness, h = 20_000, 1.0, 1.0
    kt = np.repeat([0.5, 2.0], half)
    spring = lambda a, b: np.multiply(a, -stiffness, out=b)  # noqa: E731
    for name, expected in HARMONIC.items():
        x, v = rng.normal(size=(2, 2 * half, 1))
        x, v = run(name, spring, x, v, 60, h, bath=Bath(1.0, kt, 77), offsets=np.arange(2 * half + 1))
        for part in (slice(0, half), slice(half, None)):
            measured = (x[part] ** 2).mean() / kt[part][0], (v[part] ** 2).mean() / kt[part][0]
            assert measured == pytest.approx(expected(0.25), rel=4 * np.sqrt(2 / half)), name
