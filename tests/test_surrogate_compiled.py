"""Compiled models and ensembles: PyTorch's rollouts, accurate trajectories and 50-digit functions are the references."""

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch

from simkit.errors import ConfigError
from simkit.kernels import elementary
from simkit.surrogates import systems
from simkit.surrogates.compiled import compile_model
from simkit.surrogates.compiled import model as compiled_model
from simkit.surrogates.models import build
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.systems import ensembles

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "energy": ("hnn", {"layers": 3, "angles": (1,)}),
    "separable": ("hnn", {"form": "separable", "activation": "silu", "angles": (0, 2), "skip": True}),
    "mechanical": ("hnn", {"form": "mechanical", "activation": "softplus"}),
    "mechanical-network": ("hnn", {"form": "mechanical", "mass": "network", "angles": (0,)}),
    "symoden": ("symoden", {"angles": (1,)}),
    "symoden-constant": ("symoden", {"mass": "constant", "friction": "constant"}),
    "delan": ("delan", {"angles": (1,), "skip": True}),
    "delan-friction": ("delan", {"friction": "network"}),
    "delan-constant": ("delan", {"mass": "constant"}),
    "neural-ode": ("neural-ode", {"angles": (0,), "layers": 1}),
    "neural-ode-2": ("neural-ode-2", {}),
}
METHODS = ("rk4", "implicit-midpoint", "tao-2", "tao-4", "symplectic-euler", "blanes-moan-4", "forest-ruth")


def make(case: str, dtype: str = "float64") -> DynamicsModel:
    """A model whose weights, biases included, are all random, with 3 degrees of freedom and a width that is no multiple of 4."""
    name, options = CASES[case]
    model = build(name, 3, dtype=dtype, seed=1, width=30, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def some_states(count: int, dtype: str = "float64") -> np.ndarray:
    return 0.5 * np.random.default_rng(3).normal(size=(count, 6)).astype(dtype)


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("case", CASES)
def test_derivatives_are_those_of_the_model(case: str) -> None:
    model, states = make(case), some_states(70)
    with torch.no_grad():
        expected = model.derivative(0.0, torch.from_numpy(states)).numpy()
    assert difference(compile_model(model).derivative(states), expected) < 1e-14


@pytest.mark.parametrize("case", CASES)
def test_rollouts_are_those_of_the_model(case: str) -> None:
    """All methods, to rounding: frames of different lengths, backwards in time, two batch dimensions and a block that is not full."""
    model = make(case)
    fast, states = compile_model(model), some_states(18).reshape(2, 9, 6)
    times = torch.tensor([0.5, 0.45, 0.2, 0.17], dtype=torch.float64)
    tried = [method for method in METHODS if method in fast.methods]
    assert {"rk4", "implicit-midpoint"} <= set(tried)
    for method in tried:
        found = fast.rollout(states, times, method=method, timestep=0.04)
        with torch.no_grad():
            expected = model.rollout(torch.from_numpy(states), times, method=method, timestep=0.04).numpy()
        assert found.shape == expected.shape
        assert difference(found, expected) < (1e-12 if method == "implicit-midpoint" else 1e-14), method


@pytest.mark.parametrize("case", ["energy", "mechanical", "delan"])
def test_single_precision(case: str) -> None:
    """The error against double precision is like that of PyTorch's single precision."""
    accurate, model = make(case), make(case, "float32")
    for one, other in zip(accurate.parameters(), model.parameters(), strict=True):
        one.data.copy_(other.data)
    states, times = some_states(40, "float32"), np.linspace(0, 1, 3)
    found = compile_model(model).rollout(states, times, method="rk4", timestep=0.1)
    assert found.dtype == np.float32
    with torch.no_grad():
        given = torch.from_numpy(states)
        usual = model.rollout(given, torch.from_numpy(times), method="rk4", timestep=0.1).numpy()
        exact = accurate.rollout(given.double(), torch.from_numpy(times), method="rk4", timestep=0.1).numpy()
    assert difference(found, exact) < max(2 * difference(usual, exact), 5e-7)


def test_trajectories_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits depend neither on the number of tasks, nor on the other trajectories of the block."""
    fast, states, times = compile_model(make("energy")), some_states(150), np.linspace(0, 1, 4)
    for method in ("rk4", "implicit-midpoint", "tao-2"):
        usual = fast.rollout(states, times, method=method, timestep=0.1)
        np.testing.assert_array_equal(fast.rollout(states[40:80], times, method=method, timestep=0.1), usual[:, 40:80])
        with monkeypatch.context() as patch:
            patch.setattr(compiled_model, "task_count", lambda most: min(2, most))
            np.testing.assert_array_equal(fast.rollout(states, times, method=method, timestep=0.1), usual)


def test_weights_are_a_copy() -> None:
    model, states = make("neural-ode"), some_states(4)
    fast = compile_model(model)
    before = fast.derivative(states)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(fast.derivative(states), before)


def test_the_default_method_and_a_single_state() -> None:
    model = make("mechanical")
    fast = compile_model(model)
    assert fast.default_method == model.default_method == "blanes-moan-4"
    state = some_states(1)[0]
    found = fast.rollout(torch.from_numpy(state), [0.0, 0.1, 0.2])
    with torch.no_grad():
        expected = model.rollout(torch.from_numpy(state), torch.tensor([0.0, 0.1, 0.2], dtype=torch.float64)).numpy()
    assert difference(found, expected) < 1e-14


def test_refused() -> None:
    with pytest.raises(ConfigError, match="models that can be compiled are hnn"):
        compile_model(build("lnn", 2))
    with pytest.raises(ConfigError, match="controls cannot be compiled"):
        compile_model(build("symoden", 2, controls=1))
    with pytest.raises(ConfigError, match="whose state has no second half"):
        compile_model(build("neural-ode", 2, coordinates="first-order"))
    with pytest.raises(ConfigError, match="found a JacobianFactor"):
        compile_model(build("delan", 2, mass="jacobian"))
    replaced = build("hnn", 2)
    replaced.hamiltonian = torch.nn.Identity()
    with pytest.raises(ConfigError, match="the parts that they were built with"):
        compile_model(replaced)
    diverged = build("hnn", 2)
    next(diverged.parameters()).data.fill_(torch.nan)
    with pytest.raises(ConfigError, match="not finite"):
        compile_model(diverged)
    fast = compile_model(make("energy"))
    with pytest.raises(ConfigError, match="dopri5 cannot run this compiled model"):
        fast.rollout(some_states(2), [0.0, 1.0], method="dopri5")
    with pytest.raises(ConfigError, match=r"states must be \[\.\.\., 6\] in float64; found \[2, 5\]"):
        fast.rollout(some_states(2)[:, :5], [0.0, 1.0])
    with pytest.raises(ConfigError, match="rise or fall"):
        fast.rollout(some_states(2), [0.0, 1.0, 0.5])
    with pytest.raises(ConfigError, match="did not converge between t = 0 and 50 with steps of 50"):
        fast.rollout(5 * some_states(2), [0.0, 50.0], method="implicit-midpoint")


def mp_softplus(x: Any) -> Any:
    return mpmath.log1p(mpmath.exp(x))


def mp_sigmoid(x: Any) -> Any:
    return 1 / (1 + mpmath.exp(-x))


@pytest.mark.parametrize(
    ("name", "exact", "largest", "units"),
    [
        ("tanh", mpmath.tanh, 20.0, 3.0),
        ("sigmoid", mp_sigmoid, 40.0, 3.0),
        ("softplus", mp_softplus, 40.0, 3.0),
        ("sin", mpmath.sin, 1e6, np.inf),
        ("cos", mpmath.cos, 1e6, np.inf),
    ],
)
def test_elementary_functions(name: str, exact: Callable[[Any], Any], largest: float, units: float) -> None:
    """Errors in units in the last place; of sine and cosine absolute, as arguments near a zero lose digits."""
    rng = np.random.default_rng(0)
    spread = [rng.uniform(-largest, largest, 800), rng.normal(size=800), 1e-5 * rng.normal(size=200), [0.0, 1e-300]]
    x = np.concatenate(spread)
    function = getattr(elementary, name)
    found = np.array([function(value) for value in x])
    with mpmath.workdps(50):
        true = [exact(mpmath.mpf(float(value))) for value in x]
        error = np.array([float(abs(mpmath.mpf(float(a)) - b)) for a, b in zip(found, true, strict=True)])
    assert error.max() < 3e-16 * max(1.0, np.abs(found).max())
    assert (error / np.spacing(np.abs(found))).max() < units
    assert np.isnan(function(np.nan))


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softplus"])
def test_elementary_functions_far_out(name: str) -> None:
    function, x = getattr(elementary, name), torch.tensor([-1e3, 1e3, -torch.inf, torch.inf], dtype=torch.float64)
    expected = getattr(torch.nn.functional, name)(x).numpy()
    np.testing.assert_allclose([function(value) for value in x.numpy()], expected, rtol=1e-15, atol=1e-300)


@pytest.mark.parametrize(
    ("name", "method", "order"),
    [
        ("lotka_volterra", "rk4", 4),
        ("driven_pendulum", "rk4", 4),
        ("two_body", "velocity-verlet", 2),
        ("pendulum", "yoshida-4", 4),
    ],
)
def test_ensembles_converge_to_the_accurate_trajectories(name: str, method: str, order: int) -> None:
    system = systems.build_any(name)
    states, times = system.sample(130, 0), np.array([0.0, 0.9, 2.0])
    exact = system.integrate(states, times)
    errors = [np.abs(system.ensemble(states, times, method, h) - exact).max() for h in (0.02, 0.01)]
    assert errors[1] < 1e-3
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


def test_ensembles_are_the_same_in_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    system = systems.build_any("lotka_volterra")
    states, times = system.sample(600, 0), np.linspace(0, 1, 5)
    usual = system.ensemble(states, times, timestep=0.01)
    np.testing.assert_array_equal(system.ensemble(states[200:210], times, timestep=0.01), usual[200:210])
    monkeypatch.setattr(ensembles, "task_count", lambda most: 2)
    np.testing.assert_array_equal(system.ensemble(states, times, timestep=0.01), usual)


def test_ensembles_of_fields() -> None:
    """A system of many components, whose field has loops."""
    system = systems.build_any("reaction_diffusion", {"size": 4})
    states, times = system.sample(3, 0), np.array([0.0, 0.5])
    np.testing.assert_allclose(
        system.ensemble(states, times, timestep=0.01), system.integrate(states, times), atol=1e-8
    )


def test_ensembles_refuse() -> None:
    damped = systems.build("damped_pendulum")
    with pytest.raises(ConfigError, match=r"damped_pendulum is no system T\(p\) \+ V\(q\)"):
        damped.ensemble(damped.sample(2, 0), np.array([0.0, 1.0]), "yoshida-4")
    with pytest.raises(ConfigError, match="unknown method 'yoshida-5'; did you mean 'yoshida-8'"):
        systems.build("pendulum").ensemble(np.ones((1, 2)), np.array([0.0, 1.0]), "yoshida-5")
    with pytest.raises(ConfigError, match="timestep must be a positive number"):
        damped.ensemble(damped.sample(2, 0), np.array([0.0, 1.0]), timestep=0.0)
