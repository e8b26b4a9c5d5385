"""The contract of every known system: its Hamiltonian, Lagrangian, vector field and compiled field agree, and its data are right."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from simkit.errors import ConfigError, DataError
from simkit.surrogates.systems import REGISTRY, Protocol, System, available, build
from simkit.surrogates.systems.integration import bulirsch_stoer

SMALL = {"chain_pendulum": {"links": 3}, "lennard_jones": {"particles": 5}}
TIME = 0.3


def system_named(name: str) -> System:
    return build(name, SMALL.get(name))


def some_states(system: System, count: int = 3) -> torch.Tensor:
    states = system.sample(count, seed=7)
    assert states.shape == (count, 2 * system.dof)
    return torch.from_numpy(states)


@pytest.fixture(params=available())
def system(request: pytest.FixtureRequest) -> System:
    return system_named(request.param)


def test_names_and_defaults(system: System) -> None:
    assert REGISTRY[system.name] is type(system)
    assert build(system.name, system.parameters).parameters == system.parameters
    assert json.loads(json.dumps(system.parameters)) == system.parameters
    assert system.protocol() is next(iter(system.protocols.values()))
    assert all(protocol.source for protocol in system.protocols.values())


def test_vector_field_is_the_symplectic_gradient(system: System) -> None:
    state = some_states(system)
    gradient = torch.func.grad(lambda z: system.energy(z).sum())(state)
    to_q, to_p = gradient.split(system.dof, dim=-1)
    expected = torch.cat([to_p, -to_q + system.external_force(TIME, state)], dim=-1)
    torch.testing.assert_close(system.vector_field(TIME, state), expected, rtol=1e-12, atol=1e-12)


def test_gradient_of_the_energy_is_that_of_finite_differences(system: System) -> None:
    """Autograd and the vector field could share an error in the energy's graph; differences cannot."""
    state = some_states(system, 1)[0]
    field = system.vector_field(TIME, state)[: system.dof]
    for k in range(min(system.dof, 4)):
        shift = torch.zeros_like(state)
        shift[system.dof + k] = 1e-6
        slope = (system.energy(state + shift) - system.energy(state - shift)) / 2e-6
        assert float(slope) == pytest.approx(float(field[k]), rel=1e-7, abs=1e-8)


def test_euler_lagrange_equations_hold(system: System) -> None:
    """d/dt (dL/dv) = dL/dq + Q along the vector field, after the Legendre transform; and H = p v - L."""
    q, p = some_states(system).split(system.dof, dim=-1)
    v = system.velocities(q, p)
    torch.testing.assert_close(system.momenta(q, v), p, rtol=1e-11, atol=1e-11)
    to_q, to_v = torch.func.grad(lambda a, b: system.lagrangian(a, b).sum(), argnums=(0, 1))(q, v)
    torch.testing.assert_close(to_v, p, rtol=1e-11, atol=1e-11)
    state = torch.cat([q, p], dim=-1)
    rate = system.vector_field(TIME, state)[..., system.dof :]
    torch.testing.assert_close(rate, to_q + system.external_force(TIME, state), rtol=1e-11, atol=1e-11)
    legendre = (p * v).sum(-1) - system.lagrangian(q, v)
    torch.testing.assert_close(system.hamiltonian(q, p), legendre, rtol=1e-11, atol=1e-11)


def test_mass_matrix_is_the_hessian_of_the_lagrangian(system: System) -> None:
    q, p = some_states(system, 1)[0].split(system.dof)
    v = system.velocities(q, p)
    hessian = torch.func.hessian(system.lagrangian, argnums=1)(q, v)
    torch.testing.assert_close(system.mass_matrix(q), hessian, rtol=1e-11, atol=1e-11)
    assert torch.linalg.eigvalsh(hessian).min() > 0


def test_compiled_field_is_the_torch_field(system: System) -> None:
    states = some_states(system)
    found = np.full(states.shape, np.nan)
    for state, out in zip(states.numpy(), found, strict=True):
        system.numba_field()(TIME, state, system.numba_parameters(), out)
    expected = system.vector_field(TIME, states).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_batches_of_any_shape_and_precision(system: System) -> None:
    states = some_states(system, 6)
    flat = system.vector_field(TIME, states)
    torch.testing.assert_close(system.vector_field(TIME, states.view(2, 3, -1)).view(6, -1), flat, rtol=0, atol=1e-12)
    torch.testing.assert_close(system.energy(states.view(2, 3, -1)).view(6), system.energy(states), rtol=0, atol=1e-12)
    single = system.vector_field(TIME, states.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, flat.float(), rtol=2e-3, atol=2e-3)


def test_separable_means_that_velocities_do_not_depend_on_coordinates(system: System) -> None:
    q, p = some_states(system, 1)[0].split(system.dof)
    to_q = torch.func.jacrev(system.velocities)(q, p)
    assert (to_q.abs().max() < 1e-14) == system.separable


def test_both_integrators_agree_and_keep_the_energy(system: System) -> None:
    states = system.sample(2, seed=3)
    times = np.linspace(0.0, 1.0, 6)
    found = system.integrate(states, times)
    reference = system.integrate(states, times, "dop853")
    bound = 1e-7 if system.tolerance <= 1e-12 else 1e-3
    np.testing.assert_allclose(found, reference, rtol=0, atol=bound)
    np.testing.assert_array_equal(found[:, 0], states)
    energy = system.energy(torch.from_numpy(found))
    change = (energy - energy[:, :1]).abs().max()
    if system.conservative:
        assert change < (1e-10 if system.tolerance <= 1e-12 else 1e-4) * max(1.0, float(energy.abs().max()))
    else:
        assert change > 1e-4


def test_data_of_a_small_protocol(system: System) -> None:
    plan = Protocol("of this test", {"train": 2, "test": 1}, 0.5, 6, initial=system.protocol().initial)
    data = system.generate(plan, seed=5)
    assert data.q.shape == (3, 6, system.dof)
    assert data.times.tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    np.testing.assert_array_equal(data.q, system.generate(plan, seed=5).q)
    assert not np.array_equal(data.q, system.generate(plan, seed=6).q)
    assert data.info["system"] == system.name
    assert data.info["protocol"]["parts"] == {"train": 2, "test": 1}
    assert (data.controls is not None) == (system.name == "driven_pendulum")
    np.testing.assert_allclose(data.v, data.dq, rtol=1e-10, atol=1e-10)
    clean = system.generate(replace(plan, noise=0.1), seed=5)
    np.testing.assert_array_equal(clean.dq, data.dq)
    assert 0.02 < np.abs(clean.q - data.q).max() < 1.0


def test_derivatives_in_data_are_those_of_neighboring_points(system: System) -> None:
    plan = Protocol("of this test", {"test": 2}, 4e-3, 5, initial=system.protocol().initial)
    data = system.generate(plan, seed=2)
    for value, rate in ((data.q, data.dq), (data.p, data.dp), (data.v, data.dv)):
        step = 1e-3
        difference = (value[:, 0] - 8 * value[:, 1] + 8 * value[:, 3] - value[:, 4]) / (12 * step)
        np.testing.assert_allclose(rate[:, 2], difference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["chain_pendulum", "double_pendulum", "gyroscope"])
def test_cartesian_form(name: str) -> None:
    """The constrained equations in Cartesian coordinates have the same motion and the same energy, and keep the constraints."""
    system = system_named(name)
    embedding = system.embedding()
    assert embedding is not None
    assert system.coordinates == ("canonical", "cartesian")
    plan = Protocol("of this test", {"test": 2}, 0.5, 6, initial=system.protocol().initial)
    angles = system.generate(plan, seed=1)
    data = system.generate(plan, seed=1, coordinates="cartesian")
    x, v, p = (torch.from_numpy(a) for a in (data.q, data.v, data.p))
    assert embedding.constraints(x).abs().max() < 1e-12
    jacobian = embedding.constraint_jacobian(x)
    assert jacobian.shape == (2, 6, embedding.dof - system.dof, embedding.dof)
    assert (jacobian @ v.unsqueeze(-1)).abs().max() < 1e-11
    one = x[0, 0]
    torch.testing.assert_close(jacobian[0, 0], torch.func.jacrev(embedding.constraints)(one), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        embedding.potential_gradient(one), torch.func.grad(embedding.potential)(one), rtol=1e-12, atol=1e-12
    )
    energy = system.energy(torch.from_numpy(angles.state("qp")))
    torch.testing.assert_close(embedding.hamiltonian(x, p), energy, rtol=1e-10, atol=1e-10)
    # The multipliers' forces against the chain rule: second derivatives of x along the motion in angles.
    q, w = torch.from_numpy(angles.q), torch.from_numpy(angles.v)
    rates = torch.from_numpy(angles.dq), torch.from_numpy(angles.dv)
    _, (_, acceleration) = torch.func.jvp(embedding.to_cartesian, (q, w), rates)
    np.testing.assert_allclose(data.dv, acceleration.numpy(), rtol=1e-8, atol=1e-8)
    back, rate = embedding.from_cartesian(x, v)
    again, velocity = embedding.to_cartesian(back, rate)
    torch.testing.assert_close(again, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(velocity, v, rtol=1e-9, atol=1e-9)


def test_projection_finds_the_nearest_point_of_a_circle() -> None:
    embedding = build("chain_pendulum", {"links": 1, "masses": [1.0], "lengths": [2.0]}).embedding()
    assert embedding is not None
    x, v = embedding.project(
        torch.tensor([[3.0, 4.0]], dtype=torch.float64), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    )
    torch.testing.assert_close(x, torch.tensor([[1.2, 1.6]], dtype=torch.float64))
    torch.testing.assert_close(v, torch.tensor([[0.64, -0.48]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("pendelum", {}, "did you mean 'pendulum'"),
        ("spring", {"stifness": 1.0}, "did you mean 'stiffness'"),
        ("chain_pendulum", {"links": 7}, "give masses and lengths"),
        ("chain_pendulum", {"links": 2, "masses": [1.0], "lengths": [1.0, 1.0]}, "needs 2 positive masses"),
        ("lennard_jones", {"cutoff": 100.0}, "at most half the box"),
        ("lennard_jones", {"dimensions": 4}, "dimensions"),
        ("gyroscope", {"mass": -1.0}, "must be positive"),
        ("fermi_pasta_ulam", {"masses": 0}, "at least one mass"),
    ],
)
def test_bad_systems_are_refused(name: str, parameters: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, parameters)


def test_bad_requests_are_refused() -> None:
    system = build("spring")
    with pytest.raises(ConfigError, match="no protocol 'hhn'; did you mean 'hnn'"):
        system.generate("hhn")
    with pytest.raises(ConfigError, match="no coordinates 'cartesian'"):
        system.generate(coordinates="cartesian")
    with pytest.raises(ConfigError, match="unknown method 'rk4'"):
        system.integrate(system.sample(1, 0), np.zeros(1), "rk4")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="positive duration"):
        Protocol("of this test", {"train": 1}, 0.0, 5)


def test_a_collision_is_reported() -> None:
    system = build("two_body")
    state = np.array([[1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    with pytest.raises(DataError, match="trajectory 0 needs more than 500 steps"):
        bulirsch_stoer(system.numba_field(), system.numba_parameters(), state, np.array([0.0, 5.0]), maximum=500)
