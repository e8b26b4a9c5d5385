"""The systems without momenta."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from simkit.errors import ConfigError
from simkit.surrogates.systems import FIRST_ORDER, FirstOrder, build_any
from simkit.surrogates.systems.first_order import LotkaVolterra, ReactionDiffusion


@pytest.mark.parametrize("name", sorted(FIRST_ORDER))
def test_contract(name: str) -> None:
    system = build_any(name, {"size": 5} if name == "reaction_diffusion" else None)
    assert isinstance(system, FirstOrder)
    assert build_any(name, system.parameters).parameters == system.parameters
    states = system.sample(2, 0)
    assert states.shape == (2, system.dof)
    found = np.full(states.shape, np.nan)
    for state, out in zip(states, found, strict=True):
        system.numba_field()(0.0, state, system.numba_parameters(), out)
    field = system.vector_field(0.0, torch.from_numpy(states))
    np.testing.assert_allclose(found, field.numpy(), rtol=1e-12, atol=1e-12)
    assert system.vector_field(0.0, torch.from_numpy(states).float().view(2, 1, -1)).shape == (2, 1, system.dof)
    data = system.generate(replace(system.protocol(), parts={"test": 2}, points=4, noise=0.0))
    assert data.p is None
    np.testing.assert_allclose(data.dq[:, 0], field.numpy())  # type: ignore[index]
    reference = system.integrate(states, data.times, "dop853")
    np.testing.assert_allclose(data.q, reference, rtol=1e-7, atol=1e-7)


def test_reaction_diffusion_of_a_plane_wave() -> None:
    """A wave of the grid is an eigenvector of the Laplacian of five points: -(4 / dx^2) sin^2(pi m / n) for m waves in the box."""
    system = ReactionDiffusion(size=8, a=0.3, b=0.2, k=0.1)
    x = 2 * math.pi * 2 * torch.arange(8, dtype=torch.float64) / 8
    wave = 0.4 * torch.cos(x).expand(8, 8)
    for u, v in ((wave, 0 * wave), (wave.T, wave), (0 * wave, wave.T)):
        rate = system.vector_field(0.0, torch.stack([u, v]).flatten()).view(2, 8, 8)
        eigenvalue = -4 / 0.25**2 * math.sin(2 * math.pi / 8) ** 2
        torch.testing.assert_close(rate[0], 0.3 * eigenvalue * u + u - u**3 - v - 0.1)
        torch.testing.assert_close(rate[1], 0.2 * eigenvalue * v + u - v)


def test_protocol_of_aphynity() -> None:
    system = ReactionDiffusion()
    plan = system.protocol("aphynity")
    assert (plan.trajectories, plan.points, system.dof) == (1920, 30, 2048)
    np.testing.assert_allclose(plan.times, 0.1 * np.arange(30), atol=1e-12)
    data = system.generate(replace(plan, parts={"test": 2}))
    assert data.q[:, 0].min() >= 0
    assert data.q[:, 0].max() < 1
    assert data.q[:, -1].std() < data.q[:, 0].std()  # diffusion smooths the random fields
    with pytest.raises(ConfigError, match="at least 3"):
        ReactionDiffusion(size=2)


def test_lotka_volterra_keeps_its_invariant_and_its_period() -> None:
    system = LotkaVolterra()
    data = system.generate()
    constant = system.invariant(torch.from_numpy(data.q))
    torch.testing.assert_close(constant, constant[:, :1].expand_as(constant), rtol=1e-10, atol=1e-10)
    # Small cycles around (gamma / delta, alpha / beta) = (3, 1.5) have the period 2 pi / sqrt(alpha gamma).
    period = 2 * math.pi / math.sqrt(4.5)
    start = np.array([[3.0 + 1e-5, 1.5]])
    np.testing.assert_allclose(system.integrate(start, np.array([0.0, period]))[0, 1], start[0], atol=1e-9)


def test_unknown_systems_are_refused() -> None:
    assert build_any("spring").name == "spring"
    with pytest.raises(ConfigError, match="did you mean 'lotka_volterra'"):
        build_any("lotka_voltera")
    with pytest.raises(ConfigError, match="no parameter 'sise'; did you mean 'size'"):
        build_any("reaction_diffusion", {"sise": 4})
