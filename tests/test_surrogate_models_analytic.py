"""Models whose networks are replaced by known energies move as mechanics says: against closed forms and written-out equations."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from scipy.special import ellipk
from torch import Tensor, nn

from simkit.surrogates.models import build
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.rollout import rollout

F64 = torch.float64
GRAVITY, M1, M2, L1, L2 = 9.81, 1.3, 0.7, 1.0, 0.6


class Half(nn.Module):
    """|x|^2/2."""

    def forward(self, x: Tensor) -> Tensor:
        return x.square().sum(-1) / 2


class Newton(nn.Module):
    """-1/|q|."""

    def forward(self, q: Tensor) -> Tensor:
        return -1 / q.norm(dim=-1)


class Cosine(nn.Module):
    """-cos q."""

    def forward(self, q: Tensor) -> Tensor:
        return -q.cos().sum(-1)


class Spring(nn.Module):
    """(p^2 + q^2)/2."""

    def forward(self, q: Tensor, p: Tensor) -> Tensor:
        return (q.square() + p.square()).sum(-1) / 2


class Swinging(nn.Module):
    """The Lagrangian v^2/2 + cos q."""

    def forward(self, q: Tensor, v: Tensor) -> Tensor:
        return v.square().sum(-1) / 2 + q.cos().sum(-1)


def double_mass(q: Tensor) -> Tensor:
    """The mass matrix of the double pendulum, angles from the vertical."""
    coupling = M2 * L1 * L2 * (q[..., 0] - q[..., 1]).cos()
    one = torch.full_like(coupling, (M1 + M2) * L1**2)
    two = torch.full_like(coupling, M2 * L2**2)
    return torch.stack([torch.stack([one, coupling], -1), torch.stack([coupling, two], -1)], -2)


class DoublePotential(nn.Module):
    def forward(self, q: Tensor) -> Tensor:
        return -GRAVITY * ((M1 + M2) * L1 * q[..., 0].cos() + M2 * L2 * q[..., 1].cos())


class DoubleFactor(nn.Module):
    def forward(self, q: Tensor) -> Tensor:
        return torch.linalg.cholesky(double_mass(q))


class DoubleLagrangian(nn.Module):
    def forward(self, q: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("...i,...ij,...j->...", v, double_mass(q), v) / 2 - DoublePotential()(q)


class Height(nn.Module):
    """The potential energy of the two masses in Cartesian coordinates."""

    def forward(self, x: Tensor) -> Tensor:
        return GRAVITY * (M1 * x[..., 1] + M2 * x[..., 3])


def textbook(q: np.ndarray, v: np.ndarray) -> list[float]:
    """The angular accelerations of the double pendulum as physics courses write them out."""
    (a, b), (u, w), d = q, v, q[0] - q[1]
    below = 2 * M1 + M2 - M2 * math.cos(2 * d)
    one = -GRAVITY * (2 * M1 + M2) * math.sin(a) - M2 * GRAVITY * math.sin(a - 2 * b)
    one -= 2 * math.sin(d) * M2 * (w**2 * L2 + u**2 * L1 * math.cos(d))
    two = u**2 * L1 * (M1 + M2) + GRAVITY * (M1 + M2) * math.cos(a) + w**2 * L2 * M2 * math.cos(d)
    return [one / (L1 * below), 2 * math.sin(d) * two / (L2 * below)]


START_Q, START_V = np.array([1.1, -0.4]), np.array([0.5, -1.2])
MOMENTS = np.linspace(0, 1, 6)


def textbook_motion() -> Tensor:
    """Angles and angular velocities at `MOMENTS`, [6, 4]."""
    solution = solve_ivp(
        lambda t, y: [*y[2:], *textbook(y[:2], y[2:])], (0, 1), [*START_Q, *START_V], "DOP853", MOMENTS, rtol=1e-11, atol=1e-12
    )  # fmt: skip
    return torch.from_numpy(solution.y.T.copy())


def cartesian(angles: Tensor) -> Tensor:
    """Positions and velocities of both masses, [..., 8], of angles and angular velocities [..., 4]."""
    a, b, u, w = angles.unbind(-1)
    one = torch.stack([L1 * a.sin(), -L1 * a.cos()], -1)
    two = one + torch.stack([L2 * b.sin(), -L2 * b.cos()], -1)
    v1 = torch.stack([L1 * u * a.cos(), L1 * u * a.sin()], -1)
    v2 = v1 + torch.stack([L2 * w * b.cos(), L2 * w * b.sin()], -1)
    return torch.cat([one, two, v1, v2], -1)


def angles_model(kind: str) -> DynamicsModel:
    """A double pendulum in angles, with the known energy."""
    model: Any = build({"hnn-mass": "hnn"}.get(kind, kind), 2, dtype="float64", **HNN.get(kind, {}))
    if kind == "lnn":
        model.lagrangian = DoubleLagrangian()
        return model
    energy = model.mechanics if kind == "delan" else model.hamiltonian
    energy.mass_factor, energy.potential = DoubleFactor(), DoublePotential()
    return model


HNN: dict[str, dict[str, Any]] = {
    "hnn-mass": {"form": "mechanical", "mass": "network"},
    "symoden": {"friction": "none"},
}


@pytest.mark.parametrize("kind", ["lnn", "delan", "hnn-mass", "symoden"])
def test_the_double_pendulum_in_angles(kind: str) -> None:
    model = angles_model(kind)
    expected = textbook_motion()
    mass = double_mass(expected[:, :2])
    canonical = model.coordinates == "canonical"
    if canonical:
        momenta = torch.einsum("tij,tj->ti", mass, expected[:, 2:])
        expected = torch.cat([expected[:, :2], momenta], -1)
    else:
        motion = model.derivative(0.0, expected[0])
        torch.testing.assert_close(
            motion[2:], torch.tensor(textbook(START_Q, START_V), dtype=F64), rtol=1e-12, atol=1e-12
        )
    with torch.no_grad():
        found = rollout(model, expected[0], torch.from_numpy(MOMENTS), method="dopri8", rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", ["chnn", "clnn"])
def test_the_double_pendulum_in_cartesian_coordinates(kind: str) -> None:
    """The derivative is that of the angles, constraints and their rates stay, and RATTLE follows the motion."""
    model: Any = build(kind, 4, dtype="float64", links=[(-1, 0), (0, 1)], lengths=[L1, L2])
    model.potential = Height()
    masses = torch.tensor([M1, M2], dtype=F64)
    with torch.no_grad():
        model.raw_masses.copy_(torch.log(torch.expm1(masses)))
    scale = torch.cat([torch.ones(4, dtype=F64), masses.repeat_interleave(2)]) if kind == "chnn" else torch.ones(8)
    expected = cartesian(textbook_motion()) * scale
    angles = torch.tensor([*START_Q, *START_V], dtype=F64)
    rates = torch.tensor([*START_V, *textbook(START_Q, START_V)], dtype=F64)
    motion = torch.func.jvp(cartesian, (angles,), (rates,))[1] * scale
    torch.testing.assert_close(model.derivative(0.0, expected[0]).detach(), motion, rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        close = rollout(model, expected[0], torch.from_numpy(MOMENTS), method="dopri8", rtol=1e-10, atol=1e-11)
        found = model.rollout(expected[0], torch.from_numpy(MOMENTS), timestep=0.0025)
    torch.testing.assert_close(close, expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    x, v = (found / scale).chunk(2, dim=-1)
    assert float(model.constraints(x).abs().max()) < 1e-12
    assert float((model.constraints.jacobian(x) @ v.unsqueeze(-1)).abs().max()) < 1e-12


def test_the_constraint_rates_vanish_along_the_motion() -> None:
    """d Phi/dt and d (G v)/dt of random networks, by the chain rule written out in a loop over the links."""
    for kind in ("chnn", "clnn"):
        model: Any = build(kind, 4, dtype="float64", width=8, links=[(-1, 0), (0, 1)], lengths=[L1, L2])
        scale = torch.ones(8, dtype=F64)
        if kind == "chnn":
            scale[4:] = model.masses().detach()
        state = cartesian(torch.tensor([*START_Q, *START_V], dtype=F64))
        motion = model.derivative(0.0, state * scale).detach() / scale
        x, v, rate, a = (part.reshape(2, 2) for part in (state[:4], state[4:], motion[:4], motion[4:]))
        for i, j in ((0, None), (1, 0)):
            r, s, t, w = (part[i] if j is None else part[i] - part[j] for part in (x, v, rate, a))
            assert float((2 * r * t).sum()) == pytest.approx(0, abs=1e-12)
            assert float((2 * s * s + 2 * r * w).sum()) == pytest.approx(0, abs=1e-11)


def test_kepler() -> None:
    """An orbit of eccentricity 0.5, by Kepler's equation; the angular momentum is conserved."""
    model: Any = build("hnn", 2, dtype="float64", form="separable")
    model.hamiltonian.kinetic, model.hamiltonian.potential = Half(), Newton()
    e, times = 0.5, torch.linspace(0, 2 * math.pi, 9, dtype=F64)
    state = torch.tensor([1 - e, 0.0, 0.0, math.sqrt((1 + e) / (1 - e))], dtype=F64)
    with torch.no_grad():
        found = model.rollout(state, times, method="yoshida-8", timestep=0.01 * math.pi)
    for t, frame in zip(times.tolist(), found, strict=True):
        anomaly = brentq(lambda x, t=t: x - e * math.sin(x) - t, -1, 7, xtol=1e-14)
        exact = [math.cos(anomaly) - e, math.sqrt(1 - e**2) * math.sin(anomaly)]
        torch.testing.assert_close(frame[:2], torch.tensor(exact, dtype=F64), rtol=0, atol=1e-7)
    angular = found[:, 0] * found[:, 3] - found[:, 1] * found[:, 2]
    torch.testing.assert_close(angular, angular[0].expand(9), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["lnn", "delan", "aphynity"])
def test_the_period_of_the_pendulum(kind: str) -> None:
    """4 K(sin^2(amplitude/2)): after a quarter the pendulum hangs, after a period it is back."""
    model: Any = build(kind, 1, dtype="float64", **({"mass": "constant"} if kind == "delan" else {}))
    if kind == "lnn":
        model.lagrangian = Swinging()
    elif kind == "delan":
        model.mechanics.potential = Cosine()
    else:
        nn.init.constant_(model.physics.raw["frequency"], math.log(math.expm1(1.0)))
    amplitude = 2.0
    period = 4 * float(ellipk(math.sin(amplitude / 2) ** 2))
    state = torch.tensor([amplitude, 0.0], dtype=F64)
    with torch.no_grad():
        found = model.rollout(state, torch.tensor([0, period / 4, period], dtype=F64), timestep=0.02)
    assert float(found[1, 0]) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(found[2], state, rtol=0, atol=1e-6)


def test_a_damped_and_driven_spring() -> None:
    """Friction D = 2 g and a constant force u: the closed form of the underdamped oscillator about its new rest."""
    model: Any = build("symoden", 1, dtype="float64", friction="constant", controls=1, control_matrix="constant")
    model.hamiltonian = Spring()
    g, u = 0.15, 0.4
    with torch.no_grad():
        model.port.friction.table.constant.fill_(math.log(math.expm1(math.sqrt(2 * g))))
    times = torch.linspace(0, 6, 7, dtype=F64)
    state = torch.tensor([[1.0, 0.0], [u, 0.0]], dtype=F64)
    controls = torch.full((7, 2, 1), u, dtype=F64)
    with torch.no_grad():
        found = model.rollout(state, times, method="rk4", timestep=0.02, controls=controls)
    frequency = math.sqrt(1 - g**2)
    wave = (frequency * times).cos() + g / frequency * (frequency * times).sin()
    torch.testing.assert_close(found[:, 0, 0], u + (1 - u) * torch.exp(-g * times) * wave, rtol=0, atol=1e-7)
    torch.testing.assert_close(found[:, 1], state[1].expand(7, 2))
    energies = model.energy(model.rollout(state[:1], times, timestep=0.1, controls=0 * controls[:, :1]))[:, 0]
    assert bool((energies.diff() < 0).all())


def test_the_residual_adds_to_the_physics() -> None:
    """And the physics are those of the damped pendulum, with parameters that can be read."""
    model: Any = build("aphynity", 2, dtype="float64", physics="damped-pendulum")
    state = torch.tensor([0.3, -1.2, 0.7, 0.1], dtype=F64)
    parameters = {name: float(value.detach()) for name, value in model.physics.parameters_by_name().items()}
    assert parameters == {"frequency": pytest.approx(math.sqrt(0.2)), "friction": pytest.approx(0.1)}
    known = [0.7, 0.1, -0.2 * math.sin(0.3) - 0.07, 0.2 * math.sin(1.2) - 0.01]
    assert not model.residual(state).any()
    torch.nn.init.ones_(model.residual_network.layers[-1].weight)
    rest = model.derivative(0.0, state) - model.residual(state)
    torch.testing.assert_close(rest.detach(), torch.tensor(known, dtype=F64), rtol=1e-6, atol=1e-6)
    assert float(model.residual(state).detach().norm()) > 1e-2
    assert set(build("aphynity", 1).physics.parameters_by_name()) == {"frequency"}  # type: ignore[operator, union-attr]


def test_the_known_spring_by_tao() -> None:
    """A general Hamiltonian, explicitly: the phase turns by the time."""
    model: Any = build("hnn", 1, dtype="float64")
    model.hamiltonian = Spring()
    times = torch.linspace(0, 3, 4, dtype=F64)
    with torch.no_grad():
        found = model.rollout(torch.tensor([1.0, 0.0], dtype=F64), times, method="tao-4", timestep=0.005)
    torch.testing.assert_close(found, torch.stack([times.cos(), -times.sin()], -1), rtol=0, atol=1e-6)
