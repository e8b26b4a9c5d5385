"""Networks with a linear part, and mass matrices J^T J, with the weights of known pendulums: their motion is that of the system."""

from typing import Any

import pytest
import torch
from torch import Tensor

from simkit.config import parse_options
from simkit.errors import ConfigError
from simkit.surrogates import systems
from simkit.surrogates.compiled.motion import motion_of
from simkit.surrogates.models import build, matrices
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.models.matrices import DIAGONAL_FLOOR, CholeskyFactor, JacobianFactor
from simkit.surrogates.models.network import CoordinateNetwork, NetworkOptions
from simkit.surrogates.objectives import ObjectiveOptions
from simkit.surrogates.preparation import make_samples
from simkit.surrogates.systems.chain_pendulum import ChainPendulum

F64 = torch.float64
LINKS = 3
GENERATOR_SEED = 4


def chain() -> ChainPendulum:
    return ChainPendulum(LINKS)


def angles_and_rates(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(GENERATOR_SEED)
    q, v = 2 * torch.randn(2, count, LINKS, generator=generator, dtype=F64)
    return q, v


def set_chain(mechanics: Any, system: ChainPendulum) -> None:
    """The weights of a chain of masses m_k below rods l_j: sqrt(m_k) d(x_k, y_k)/dq_j is sqrt(m_k) l_j (cos q_j, sin q_j) for j <= k.

    The features are the cosines, then the sines.
    """
    table = mechanics.mass_factor.table
    with torch.no_grad():
        table.constant.zero_()
        weights = table.network.skip.weight.zero_().unflatten(0, (LINKS, 2, LINKS))
        for k in range(LINKS):
            for j in range(k + 1):
                size = system.masses[k] ** 0.5 * system.lengths[j]
                weights[j, 0, k, j] = size
                weights[j, 1, k, LINKS + j] = size
        below = system.masses[::-1].cumsum()[::-1]
        potential = mechanics.potential.network.skip.weight.zero_()
        potential[0, :LINKS] = torch.from_numpy(-system.gravity * below * system.lengths)


def chain_model(name: str, **options: Any) -> DynamicsModel:
    model: Any = build(
        name, LINKS, dtype="float64", width=4, mass="jacobian", skip=True, angles=range(LINKS), **options
    )
    set_chain(model.hamiltonian if name == "hnn" else model.mechanics, chain())
    return model


def test_a_linear_part_is_all_that_there_is_at_first() -> None:
    network: Any = CoordinateNetwork(2, 3, NetworkOptions(width=5, angles=(1,), skip=True), more=1).double()
    q, more = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=F64).split([2, 1], dim=-1)
    assert not network(q, more).detach().any()
    with torch.no_grad():
        network.skip.weight.copy_(torch.arange(12.0).reshape(3, 4))
        network.layers[-1].bias.fill_(0.5)
    for sample in range(4):
        seen = [q[sample, 0], q[sample, 1].cos(), q[sample, 1].sin(), more[sample, 0]]
        expected = [0.5 + sum((4 * row + column) * x for column, x in enumerate(seen)) for row in range(3)]
        torch.testing.assert_close(network(q, more)[sample], torch.stack(expected))


@pytest.mark.parametrize("activation", ["tanh", "softplus", "silu"])
@pytest.mark.parametrize("kind", ["network", "jacobian", "constant"])
def test_rates_along_a_motion(activation: Any, kind: Any) -> None:
    """Against PyTorch's forward mode; also where gradients are taken through them."""
    options = NetworkOptions(width=6, activation=activation, angles=(0, 2), skip=kind == "jacobian")
    factor: Any = (
        JacobianFactor(3, options) if kind == "jacobian" else CholeskyFactor(3, kind, options, start=1.0)
    ).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in factor.parameters():
            parameter += torch.randn(parameter.shape, generator=generator, dtype=F64)
    q, v = torch.randn(2, 5, 3, generator=generator, dtype=F64)
    found = factor.along(q, v)
    expected: Any = torch.func.jvp(factor, (q,), (v,))
    weights = torch.randn(expected[1].shape, generator=generator, dtype=F64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    if kind != "constant":
        slopes = [
            torch.autograd.grad((rate * weights).sum(), factor.table.network.layers[0].weight)[0]
            for _, rate in (found, expected)
        ]
        torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-10, atol=1e-10)


def test_the_mass_matrix_of_a_network_of_velocities() -> None:
    factor = JacobianFactor(3, NetworkOptions(width=8)).double()
    q = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    found = factor(q).detach()
    numbers = factor.table(q).detach()
    for sample in range(5):
        jacobian = numbers[sample].reshape(3, 6).T
        expected = jacobian.T @ jacobian + DIAGONAL_FLOOR**2 * torch.eye(3, dtype=F64)
        torch.testing.assert_close(found[sample] @ found[sample].T, expected)
    start = JacobianFactor(3, NetworkOptions(width=8, skip=True))(torch.zeros(3))
    torch.testing.assert_close(start @ start.T, (1 + DIAGONAL_FLOOR**2) * torch.eye(3))


@pytest.mark.parametrize("name", ["hnn", "delan"])
def test_a_chain_in_angles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact without the floor of the mass matrix."""
    monkeypatch.setattr(matrices, "DIAGONAL_FLOOR", 0.0)
    system = chain()
    q, v = angles_and_rates(20)
    p = system.momenta(q, v)
    rates = system.vector_field(0.0, torch.cat([q, p], dim=-1))
    state, expected = torch.cat([q, p], dim=-1), rates
    if name == "delan":
        dq, dp = rates.chunk(2, dim=-1)
        state = torch.cat([q, v], dim=-1)
        expected = torch.cat([v, torch.func.jvp(system.velocities, (q, p), (dq, dp))[1]], dim=-1)
    model = chain_model(name, **({"form": "mechanical"} if name == "hnn" else {}))
    found = model.derivative(0.0, state).detach()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    energy = model.energy(state)
    assert energy is not None
    torch.testing.assert_close(energy.detach(), system.hamiltonian(q, p), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["chnn", "clnn"])
def test_a_chain_of_points(name: str) -> None:
    """Gravity is linear in Cartesian coordinates: the motion is exact."""
    system, points = chain(), chain().embedding()
    x, v = points.to_cartesian(*angles_and_rates(20))
    rods: Any = points.rods
    model: Any = build(name, 2 * LINKS, dtype="float64", width=4, skip=True, links=rods.links, lengths=rods.lengths)
    masses = torch.from_numpy(system.masses)
    with torch.no_grad():
        model.raw_masses.copy_(torch.log(torch.expm1(masses)))
        model.potential.network.skip.weight[0, 1::2] = system.gravity * masses
    expected = points.vector_field(0.0, torch.cat([x, points.momenta(v)], dim=-1))
    if name == "clnn":
        expected = torch.cat([v, points.velocities(expected[..., 2 * LINKS :])], dim=-1)
    state = torch.cat([x, v if name == "clnn" else points.momenta(v)], dim=-1)
    torch.testing.assert_close(model.derivative(0.0, state).detach(), expected, rtol=1e-10, atol=1e-10)


def test_what_cannot_be_compiled() -> None:
    with pytest.raises(ConfigError, match="JacobianFactor"):
        motion_of(build("hnn", 2, form="mechanical", width=4, mass="jacobian"))


def test_segments_of_windows() -> None:
    """Every step of each window is there once, and successive segments share a point."""
    system = systems.build("pendulum")
    times = 0.1 * torch.arange(12, dtype=F64).numpy()
    data = system.trajectories(times, system.integrate(system.sample(3, 0), times))
    cut = data.segments(4)
    assert cut.q.shape == (9, 4, 1)
    for index in range(9):
        sample, first = divmod(index, 3)
        assert cut.q[index].tolist() == data.q[sample, 3 * first : 3 * first + 4].tolist()
        assert cut.times[index].tolist() == times[3 * first : 3 * first + 4].tolist()
    model = build("hnn", 1, dtype="float64", width=4)
    whole = make_samples(data, model, ObjectiveOptions(match="rollout", window=5, windows="one"), 2)
    parts = make_samples(data, model, ObjectiveOptions(match="rollout", window=5, windows="one", segment=2), 2)
    assert parts.states.shape == (12, 2, 2)
    assert torch.equal(parts.states.reshape(3, 4, 2, 2)[:, :, 0], whole.states[:, :4])
    assert torch.equal(parts.states.reshape(3, 4, 2, 2)[:, :, 1], whole.states[:, 1:])
    with pytest.raises(ConfigError, match="segment"):
        parse_options(ObjectiveOptions, {"match": "rollout", "window": 3, "segment": 4}, "test")
