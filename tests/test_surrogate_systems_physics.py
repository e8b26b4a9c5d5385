"""Known motions of the known systems, and the data protocols of the papers."""

import math

import numpy as np
import pytest
import torch
from scipy.special import ellipj, ellipk

from simkit.classical import ClassicalPotential, LennardJones
from simkit.surrogates.systems import Protocol, build
from simkit.surrogates.systems.oscillators import FermiPastaUlam
from simkit.surrogates.systems.pendulum import controlled_data


def motion(name: str, state: list[float], times: np.ndarray, **parameters: object) -> np.ndarray:
    return build(name, parameters).integrate(np.array([state]), times)[0]


def test_spring_is_harmonic() -> None:
    times = np.linspace(0, 20, 41)
    found = motion("spring", [1.0, 0.5], times, mass=2.0, stiffness=3.0)
    w = math.sqrt(1.5)
    np.testing.assert_allclose(found[:, 0], np.cos(w * times) + 0.5 / (2 * w) * np.sin(w * times), atol=1e-10)


def test_pendulum_is_an_elliptic_function() -> None:
    """q = 2 arcsin(k sn(K(k) - w t, k)) from rest at q_0, with k = sin(q_0 / 2)."""
    times, start, w2 = np.linspace(0, 12, 25), 2.5, 6.0
    found = motion("pendulum", [start, 0.0], times)
    k2 = math.sin(start / 2) ** 2
    sn = ellipj(ellipk(k2) - math.sqrt(w2) * times, k2)[0]
    np.testing.assert_allclose(found[:, 0], 2 * np.arcsin(math.sqrt(k2) * sn), atol=1e-9)


def test_small_damped_swing() -> None:
    times = np.linspace(0, 30, 31)
    found = motion("damped_pendulum", [1e-5, 0.0], times)
    w0, rate = 2 * math.pi / 12, 0.1
    w = math.sqrt(w0**2 - rate**2)
    expected = 1e-5 * np.exp(-rate * times) * (np.cos(w * times) + rate / w * np.sin(w * times))
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-11)


def test_friction_takes_the_energy_that_is_lost() -> None:
    system = build("driven_pendulum")
    times = np.linspace(0, 10, 2001)
    data = system.trajectories(times, system.integrate(system.sample(1, 0), times))
    energy = system.energy(torch.from_numpy(data.state("qp")))[0].numpy()
    assert data.v is not None
    assert data.controls is not None
    v, u = data.v[0, :, 0], data.controls[0, :, 0]
    power = -0.25 * v**2 + u * v
    work = np.concatenate([[0], np.cumsum((power[1:] + power[:-1]) / 2) * times[1]])
    np.testing.assert_allclose(energy - energy[0], work, atol=1e-4)
    np.testing.assert_allclose(u, 0.7 * np.cos(2 / 3 * times), rtol=1e-14)


def test_pendulum_under_constant_torques() -> None:
    """H = 1.5 p^2 + 5 (1 - cos q) - u q is constant where the torque u is."""
    parts = controlled_data(seed=1)
    assert {name: part.q.shape for name, part in parts.items()} == {"train": (125, 60, 1), "test": (125, 60, 1)}
    data = parts["test"]
    assert data.p is not None
    assert data.controls is not None
    q, p, u = data.q[..., 0], data.p[..., 0], data.controls[..., 0]
    energy = 1.5 * p**2 + 5 * (1 - np.cos(q)) - u * q
    np.testing.assert_allclose(energy, np.broadcast_to(energy[:, :1], energy.shape), atol=1e-9)
    np.testing.assert_array_equal(np.unique(u), [-2, -1, 0, 1, 2])
    np.testing.assert_array_equal(q[:25, 0], q[100:, 0])
    many = np.abs(build("driven_pendulum").sample(5000, 0, "symoden"))
    assert 2.49 < many.max() <= 2.5
    assert abs(many.mean() - 1.25) < 5 * 2.5 / math.sqrt(12 * 10_000)


def test_circular_orbits_close() -> None:
    """Two unit masses at distance 2 r have the period 4 pi r^1.5; three at radius r have 2 pi r^1.5 3^(1/4)."""
    period = 4 * math.pi * 0.8**1.5
    speed = 1 / (2 * math.sqrt(0.8))
    state = [0.8, 0.0, -0.8, 0.0, 0.0, speed, 0.0, -speed]
    found = motion("two_body", state, np.array([0.0, period / 2, period]))
    np.testing.assert_allclose(found[2], state, atol=1e-9)
    np.testing.assert_allclose(found[1], -np.array(state), atol=1e-9)
    system = build("three_body")
    triangle = np.exp(2j * math.pi * np.arange(3) / 3)
    velocity = 1j * triangle * 3**-0.25
    start = np.concatenate([np.stack([z.real, z.imag], axis=1).ravel() for z in (triangle, velocity)])
    end = system.integrate(start[None], np.array([0.0, 2 * math.pi * 3**0.25]))[0, -1]
    np.testing.assert_allclose(end, start, atol=1e-8)


def test_kepler_ellipse() -> None:
    """A period depends on the energy alone: T = 2 pi a^1.5 / sqrt(m_1 + m_2), with a = -m_1 m_2 / (2 E)."""
    system = build("two_body")
    state = system.sample(1, 4)
    energy = float(system.energy(torch.from_numpy(state)))
    period = 2 * math.pi * (-1 / (2 * energy)) ** 1.5 / math.sqrt(2)
    np.testing.assert_allclose(system.integrate(state, np.array([0.0, period]))[0, 1], state[0], atol=1e-9)


def test_gravity_conserves_momentum_and_angular_momentum() -> None:
    system = build("three_body")
    states = system.integrate(system.sample(5, 0), np.linspace(0, 5, 20)).reshape(5, 20, 2, 3, 2)
    q, p = states[:, :, 0], states[:, :, 1]
    np.testing.assert_allclose(p.sum(axis=2), np.broadcast_to(p.sum(axis=2)[:, :1], (5, 20, 2)), atol=1e-10)
    spin = (q[..., 0] * p[..., 1] - q[..., 1] * p[..., 0]).sum(axis=2)
    np.testing.assert_allclose(spin, np.broadcast_to(spin[:, :1], (5, 20)), atol=1e-9)


def test_modes_of_the_linear_chain() -> None:
    system = build("coupled_oscillators", {"masses": 4, "mass": 2.0, "stiffness": 3.0})
    assert isinstance(system, FermiPastaUlam)
    times = np.linspace(0, 10, 11)
    sites = np.arange(1, 5)
    for j, frequency in enumerate(system.frequencies(), start=1):
        shape = np.sin(j * sites * math.pi / 5)
        found = system.integrate(np.concatenate([shape, np.zeros(4)])[None], times)[0, :, :4]
        np.testing.assert_allclose(found, np.cos(frequency * times)[:, None] * shape, atol=1e-9)


def test_two_masses_of_the_nonlinear_chain_move_against_each_other() -> None:
    """With q_1 = -q_2 and alpha = 0, only one coordinate is left: m q'' = -3 k q - 9 beta q^3, whose energy is known."""
    system = build("fermi_pasta_ulam", {"masses": 2, "alpha": 0.0, "beta": 0.5})
    found = system.integrate(np.array([[1.0, -1.0, 0.0, 0.0]]), np.linspace(0, 5, 51))[0]
    np.testing.assert_allclose(found[:, 0], -found[:, 1], atol=1e-12)
    q, p = found[:, 0], found[:, 2]
    np.testing.assert_allclose(p**2 / 2 + 1.5 * q**2 + 9 * 0.5 / 4 * q**4, 1.5 + 9 * 0.5 / 4, atol=1e-10)


def test_cyclotron_orbit() -> None:
    """Without a trap: a circle of radius m v / (e B), run through at e B / m."""
    system = build("charged_particle", {"mass": 2.0, "charge": 3.0, "field_strength": 0.5, "stiffness": 0.0})
    q, v = torch.tensor([[0.3, -0.2]], dtype=torch.float64), torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    state = torch.cat([q, system.momenta(q, v)], dim=-1).numpy()
    times = np.linspace(0, 2 * math.pi * 2 / 1.5, 9)
    found = system.integrate(state, times)[0]
    np.testing.assert_allclose(found[-1], state[0], atol=1e-10)
    center = np.array([0.3, -0.2]) + 2 / 1.5 * np.array([0.5, -1.0])
    np.testing.assert_allclose(np.linalg.norm(found[:, :2] - center, axis=1), 2 / 1.5 * math.sqrt(1.25), atol=1e-10)


def test_henon_heiles_has_the_published_escape_energy() -> None:
    system = build("henon_heiles")
    saddle = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert float(system.potential(saddle)) == pytest.approx(1 / 6)
    assert torch.func.grad(system.potential)(saddle).abs().max() < 1e-15
    states = system.sample(200, 0)
    energy = system.energy(torch.from_numpy(states))
    assert float(energy.min()) >= 0.02
    assert float(energy.max()) < 1 / 6


def test_chain_of_one_link_is_a_pendulum_and_two_are_the_textbooks() -> None:
    times = np.linspace(0, 3, 7)
    chain = build("chain_pendulum", {"links": 1, "masses": [0.5], "lengths": [1.0], "gravity": 6.0})
    np.testing.assert_allclose(
        chain.integrate(np.array([[1.0, 0.3]]), times)[0], motion("pendulum", [1.0, 0.3], times), atol=1e-10
    )
    # Accelerations of the double pendulum as Cranmer et al. 2020 state them (analytical_fn of their physics.py).
    a, b, w1, w2, g = 1.1, -0.4, 0.7, -1.3, 9.8
    c, s = math.cos(a - b), math.sin(a - b)
    f1, f2 = -0.5 * w2**2 * s - g * math.sin(a), w1**2 * s - g * math.sin(b)
    expected = np.array([f1 - 0.5 * c * f2, f2 - c * f1]) / (1 - 0.5 * c * c)
    system = build("double_pendulum")
    q, v = torch.tensor([a, b], dtype=torch.float64), torch.tensor([w1, w2], dtype=torch.float64)
    state = torch.cat([q, system.momenta(q, v)])
    data = system.trajectories(np.zeros(1), state[None, None].numpy())
    assert data.dv is not None
    np.testing.assert_allclose(data.dv[0, 0], expected, rtol=1e-12)


def test_regular_precession_of_a_top() -> None:
    """At constant theta the precession satisfies I_1 cos(theta) phi'^2 - p_psi phi' + m g l = 0 (Goldstein, section 5.7)."""
    system = build("gyroscope")
    i1, _, i3 = 0.145, 0.145, 0.08
    theta, weight = 0.6, 0.1 * 9.81
    p_psi = i3 * 12.0
    rate = (p_psi - math.sqrt(p_psi**2 - 4 * i1 * math.cos(theta) * weight)) / (2 * i1 * math.cos(theta))
    q = torch.tensor([[0.0, theta, 0.0]], dtype=torch.float64)
    v = torch.tensor([[rate, 0.0, 12.0 - rate * math.cos(theta)]], dtype=torch.float64)
    state = torch.cat([q, system.momenta(q, v)], dim=-1).numpy()
    times = np.linspace(0, 3, 13)
    found = system.integrate(state, times)[0]
    np.testing.assert_allclose(found[:, 1], theta, atol=1e-9)
    np.testing.assert_allclose(found[:, 0], rate * times, atol=1e-8)


def test_a_free_top_conserves_angular_momentum_in_space() -> None:
    system = build("gyroscope", {"gravity": 0.0, "moments": [0.05, 0.03, 0.01]})
    states = torch.from_numpy(system.integrate(system.sample(2, 1), np.linspace(0, 2, 21)))
    embedding = system.embedding()
    assert embedding is not None
    q, p = states.split(3, dim=-1)
    x, v = embedding.to_cartesian(q, system.velocities(q, p))
    points, momenta = x.unflatten(-1, (4, 3)), embedding.momenta(v).unflatten(-1, (4, 3))
    spin = torch.linalg.cross(points, momenta).sum(-2)
    torch.testing.assert_close(spin, spin[:, :1].expand_as(spin), rtol=1e-8, atol=1e-8)


def test_lennard_jones_is_that_of_the_classical_potentials() -> None:
    """Energies of the force-shifted pair potential from the truncated one of `simkit.classical` and the shift, term by term."""
    system = build("lennard_jones", {"particles": 30, "dimensions": 3, "density": 0.6})
    state = system.sample(1, 2)[0]
    positions = state[:90].reshape(30, 3)
    box = (30 / 0.6) ** (1 / 3)
    cutoff = box / 2
    plain = ClassicalPotential(
        [LennardJones(epsilon=1.0, sigma=1.0, cutoff=cutoff)], cell=np.eye(3) * box, pbc=[True] * 3, skin=0.0
    )
    forces = np.empty((30, 3))
    energy, _ = plain.evaluate(positions, forces)
    inside = 4 * (cutoff**-12 - cutoff**-6)
    slope = -4 * (12 * cutoff**-13 - 6 * cutoff**-7)
    for i in range(30):
        for j in range(i):
            d = positions[i] - positions[j]
            d -= box * np.round(d / box)
            r = math.sqrt(d @ d)
            if r < cutoff:
                energy -= inside + (r - cutoff) * slope
                forces[i] += slope * d / r
                forces[j] -= slope * d / r
    q = torch.from_numpy(state[:90])
    assert float(system.potential(q)) == pytest.approx(energy, rel=1e-10)
    rate = system.vector_field(0.0, torch.from_numpy(state))[90:]
    np.testing.assert_allclose(rate.numpy().reshape(30, 3), forces, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(state[90:].reshape(30, 3).sum(axis=0), 0, atol=1e-12)


def test_lennard_jones_fluid() -> None:
    """The default data: energy to the tolerance of the integrator, momentum zero, and the lattice forgotten."""
    system = build("lennard_jones")
    data = system.generate()
    energy = system.energy(torch.from_numpy(data.state("qp")))
    assert (energy - energy[:, :1]).abs().max() < 1e-4
    assert data.p is not None
    assert np.abs(data.p.reshape(25, 101, 16, 2).sum(axis=2)).max() < 1e-9
    points = data.q[:, 0].reshape(25, 16, 2)
    assert (points[:, 1] - points[:, 0]).std(axis=0).min() > 0.3


PROTOCOLS = [
    ("spring", "hnn", (50, 30, 1), 3.0, 0.1),
    ("pendulum", "hnn", (50, 45, 1), 3.0, 0.1),
    ("damped_pendulum", "aphynity", (50, 40, 1), 19.5, 0.0),
    ("two_body", "hnn", (1000, 50, 4), 20.0, 0.0),
    ("three_body", "hnn", (5000, 20, 6), 5.0, 0.0),
    ("double_pendulum", "lnn-figure", (1, 1001, 2), 100.0, 0.0),
    ("chain_pendulum", "finzi", (1000, 100, 2), 2.97, 0.0),
]


@pytest.mark.parametrize(("name", "protocol", "shape", "duration", "noise"), PROTOCOLS)
def test_protocols_of_the_papers(
    name: str, protocol: str, shape: tuple[int, ...], duration: float, noise: float
) -> None:
    system = build(name)
    plan = system.protocol(protocol)
    assert (plan.trajectories, plan.points, system.dof) == shape
    assert plan.times[-1] == duration
    assert plan.noise == noise
    few = Protocol(plan.source, {"test": 3}, plan.duration, plan.points, plan.noise, plan.initial)
    data = system.generate(few, seed=0)
    assert data.q.shape == (3, *shape[1:])
    energy = system.energy(torch.from_numpy(data.state("qp")))
    if system.conservative and not noise:
        assert (energy - energy[:, :1]).abs().max() < 1e-8


def test_initial_states_of_the_papers() -> None:
    for name, smallest, largest in (("spring", 0.1, 1.0), ("pendulum", 1.3, 2.3), ("damped_pendulum", 1.3, 2.3)):
        radius = np.linalg.norm(build(name).sample(2000, 0), axis=1)
        assert smallest <= radius.min() < smallest + 0.01
        assert largest - 0.01 < radius.max() <= largest
    two = build("two_body").sample(4000, 0)
    assert two[:, :2].min() >= 0.5
    assert two[:, :2].max() <= 1.5
    np.testing.assert_array_equal(two[:, :2], -two[:, 2:4])
    radius = np.linalg.norm(two[:, :2], axis=1)
    factor = np.linalg.norm(two[:, 4:6], axis=1) * 2 * np.sqrt(radius)
    assert abs(factor.mean() - 1) < 5 * 0.05 / math.sqrt(4000)
    assert abs(factor.std() - 0.05) < 5 * 0.05 / math.sqrt(8000)
    three = build("three_body").sample(2000, 0).reshape(-1, 2, 3, 2)
    radius = np.linalg.norm(three[:, 0], axis=2)
    np.testing.assert_allclose(radius, np.broadcast_to(radius[:, :1], radius.shape), rtol=1e-12)
    assert 0.9 <= radius.min() < 0.91
    assert 1.19 < radius.max() <= 1.2
    angles = build("double_pendulum").sample(1000, 0)
    assert 0 <= angles[:, :2].min() < 0.1
    assert angles[:, :2].max() < 2 * math.pi


def test_chain_masses_are_the_authors() -> None:
    """0.6 + 0.8 u with the first numbers of NumPy's legacy generator of seed 0, taken from the end (Finzi et al. 2020)."""
    drawn = 0.6 + 0.8 * np.random.RandomState(0).rand(6)
    chain = build("chain_pendulum", {"links": 3})
    assert chain.parameters["masses"] == pytest.approx(drawn[:3][::-1], rel=1e-15)
    assert chain.parameters["lengths"] == pytest.approx(drawn[3:][::-1], rel=1e-15)
