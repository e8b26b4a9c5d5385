"""The models of motion: what every one of them keeps to, and that their derivatives are those of their energies."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simkit.errors import ConfigError, ModelFileError
from simkit.surrogates.files import load, save
from simkit.surrogates.models import available, build
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.models.matrices import CholeskyFactor, Port
from simkit.surrogates.models.network import NetworkOptions
from simkit.surrogates.rollout import methods_of

LINKS: dict[str, Any] = {"links": [(-1, 0), (0, 1)], "lengths": [1.0, 0.5]}
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "hnn": ("hnn", 2, {}),
    "hnn-angles": ("hnn", 2, {"angles": [1], "activation": "silu"}),
    "hnn-separable": ("hnn", 2, {"form": "separable"}),
    "hnn-constant-mass": ("hnn", 2, {"form": "mechanical"}),
    "hnn-mass": ("hnn", 2, {"form": "mechanical", "mass": "network", "angles": [0, 1]}),
    "hnn-jacobian": ("hnn", 2, {"form": "mechanical", "mass": "jacobian", "angles": [0], "skip": True}),
    "symoden": ("symoden", 2, {"controls": 1}),
    "symoden-isolated": ("symoden", 2, {"friction": "none"}),
    "lnn": ("lnn", 2, {"angles": [0]}),
    "delan": ("delan", 2, {}),
    "delan-port": ("delan", 2, {"friction": "network", "controls": 2, "control_matrix": "network"}),
    "delan-constant-mass": ("delan", 2, {"mass": "constant"}),
    "delan-jacobian": ("delan", 2, {"mass": "jacobian", "angles": [0, 1], "skip": True}),
    "neural-ode": ("neural-ode", 2, {"controls": 1}),
    "neural-ode-2": ("neural-ode-2", 2, {"controls": 1}),
    "neural-ode-first-order": ("neural-ode", 3, {"controls": 1, "coordinates": "first-order"}),
    "neural-ode-fields": ("neural-ode", 18, {"coordinates": "first-order", "fields": 2}),
    "aphynity": ("aphynity", 2, {"physics": "damped-pendulum"}),
    "aphynity-alone": ("aphynity", 2, {"physics": "damped-pendulum", "residual": False}),
    "aphynity-fields": ("aphynity", 18, {"physics": "reaction-diffusion"}),
    "chnn": ("chnn", 4, LINKS),
    "clnn": ("clnn", 4, LINKS),
    "graph-network": ("graph-network", 4, {"contact": 0.2}),
    "graph-network-masses": (
        "graph-network",
        4,
        {"contact": 0.2, "species": [0, 1], "masses": [1, 2], "learn_masses": True},
    ),
    "graph-network-simulator": ("graph-network-simulator", 4, {"contact": 0.2, "velocities": True}),
}
HAMILTONIAN = [name for name in CASES if name.startswith("hnn")] + ["symoden-isolated"]
CONSERVATIVE = [*HAMILTONIAN, "lnn", "delan", "delan-constant-mass", "delan-jacobian", "chnn", "clnn"]
DISSIPATIVE = ["symoden", "delan-port"]


def make(case: str, dtype: str = "float64", seed: int = 3) -> DynamicsModel:
    name, dof, options = CASES[case]
    model = build(name, dof, dtype=dtype, seed=seed, width=8, **options)
    with torch.no_grad():  # so that no weight stays at a special value
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
    return model


def states(model: DynamicsModel, *batch: int) -> Tensor:
    """Random states; those of constrained models are on the manifold."""
    generator = torch.Generator().manual_seed(4)
    raw = torch.randn(*batch, model.state_size, generator=generator, dtype=torch.float64)
    if model.constrained() is None:
        return raw.to(model.dtype)
    first, second, v = raw[..., :1], raw[..., 1:2], raw[..., 4:]
    one = torch.cat([first.sin(), -first.cos()], dim=-1)
    two = one + 0.5 * torch.cat([second.sin(), -second.cos()], dim=-1)
    state = torch.cat([one, two, v], dim=-1).to(model.dtype)
    return model.rollout(state, torch.zeros(1)).detach()[0]


def control_of(model: DynamicsModel, state: Tensor) -> Tensor | None:
    if model.controls == 0:
        return None
    generator = torch.Generator().manual_seed(5)
    return torch.randn(*state.shape[:-1], model.controls, generator=generator, dtype=torch.float64).to(state)


def slope(function: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, h: float = 1e-2) -> Tensor:
    """The derivative along a direction, by differences of fourth order."""
    values = [function(x + k * h * direction).detach() for k in (-2, -1, 1, 2)]
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)


def units(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


def energy_of(model: DynamicsModel) -> Callable[[Tensor], Tensor]:
    def energy(state: Tensor) -> Tensor:
        found = model.energy(state)
        if found is None:
            raise TypeError("this model has no energy")
        return found

    return energy


def test_every_model_is_tested() -> None:
    assert {name for name, _, _ in CASES.values()} == set(available())


@pytest.mark.parametrize("case", HAMILTONIAN)
def test_the_derivative_is_the_symplectic_gradient_of_the_energy(case: str) -> None:
    model = make(case)
    state = states(model, 3)
    gradient = torch.stack([slope(energy_of(model), state, unit) for unit in units(4)], dim=-1)
    expected = torch.cat([gradient[..., 2:], -gradient[..., :2]], dim=-1)
    torch.testing.assert_close(model.derivative(0.0, state), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", ["lnn", "delan", "delan-constant-mass", "delan-jacobian", "delan-port"])
def test_the_euler_lagrange_equation_holds(case: str) -> None:
    """d/dt dL/dv - dL/dq is the force of the port, with every derivative of L by differences."""
    model: Any = make(case)
    state = states(model, 3)
    control = control_of(model, state)

    def lagrangian(at: Tensor) -> Tensor:
        q, v = at.chunk(2, dim=-1)
        if case == "lnn":
            return model.lagrangian(q, v)
        return model.mechanics.kinetic(q, v) - model.mechanics.potential(q)

    def momentum(at: Tensor) -> Tensor:
        return torch.stack([slope(lagrangian, at, unit) for unit in units(4)[2:]], dim=-1)

    motion = model.derivative(0.0, state, control).detach()
    q, v = state.chunk(2, dim=-1)
    to_q = torch.stack([slope(lagrangian, state, unit) for unit in units(4)[:2]], dim=-1)
    expected = torch.zeros_like(q) if case == "lnn" else model.port(q, v, control).detach()
    torch.testing.assert_close(motion[..., :2], v)
    torch.testing.assert_close(slope(momentum, state, motion) - to_q, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("case", CONSERVATIVE)
def test_the_energy_does_not_change_along_the_motion(case: str) -> None:
    model = make(case)
    state = states(model, 5)
    motion = model.derivative(0.0, state).detach()
    change = slope(energy_of(model), state, motion, h=2e-3)
    scale = motion.norm(dim=-1).square()
    assert float((change / scale).abs().max()) < 1e-8
    assert float(slope(energy_of(model), state, torch.ones(2 * model.dof).double()).abs().min()) > 1e-3


@pytest.mark.parametrize("case", DISSIPATIVE)
def test_friction_takes_energy_away(case: str) -> None:
    """Without controls by exactly v D v, and with them less what they add."""
    model: Any = make(case)
    state = states(model, 6)
    control = control_of(model, state)
    assert control is not None
    q, v = state[..., :2], model.derivative(0.0, state, control).detach()[..., :2]
    factor = model.port.friction(q).detach()
    loss = torch.einsum("bij,bi->bj", factor, v).square().sum(-1)
    quiet = slope(energy_of(model), state, model.derivative(0.0, state, 0 * control).detach(), h=2e-3)
    torch.testing.assert_close(quiet, -loss, rtol=1e-6, atol=1e-7)
    assert float(loss.min()) > 1e-3
    matrix = model.port.inputs(q).detach().reshape(6, 2, model.controls)
    work = torch.einsum("bi,bij,bj->b", v, matrix, control)
    driven = slope(energy_of(model), state, model.derivative(0.0, state, control).detach(), h=2e-3)
    torch.testing.assert_close(driven, work - loss, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dependence", ["constant", "network"])
def test_mass_matrices_are_positive_definite(dependence: Any) -> None:
    factor = CholeskyFactor(4, dependence, NetworkOptions(width=8, angles=(2,)), start=1.0).double()
    with torch.no_grad():
        for parameter in factor.parameters():
            parameter *= 3
    q = 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lower = factor(q).detach()
    assert torch.equal(lower, lower.tril())
    eigenvalues = torch.linalg.eigvalsh(lower @ lower.mT)
    assert float(eigenvalues.min()) > 0
    start = CholeskyFactor(3, "constant", NetworkOptions(), start=4.0)
    torch.testing.assert_close(start.constant(), 2 * torch.eye(3))


def test_controls_act_on_the_first_coordinates_at_first() -> None:
    port = Port(3, "none", 2, "constant", NetworkOptions())
    force = port(torch.zeros(3), torch.zeros(3), torch.tensor([2.0, -1.0]))
    torch.testing.assert_close(force, torch.tensor([2.0, -1.0, 0.0]))


def test_angles_make_the_energy_periodic() -> None:
    model = make("hnn-angles")
    state = states(model, 4)
    turn = torch.tensor([0.0, 2 * torch.pi, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(energy_of(model)(state + turn), energy_of(model)(state))
    difference = energy_of(model)(state + turn.roll(-1)) - energy_of(model)(state)
    assert float(difference.detach().abs().min()) > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_any_batch_dimensions(case: str) -> None:
    model = make(case)
    state = states(model, 2, 3)
    control = control_of(model, state)
    motion = model.derivative(0.0, state, control)
    assert motion.shape == state.shape
    alone = model.derivative(0.0, state[1, 2], None if control is None else control[1, 2])
    torch.testing.assert_close(motion[1, 2], alone)
    energy = model.energy(state)
    assert energy is None or energy.shape == (2, 3)
    times = torch.tensor([0.0, 0.05, 0.1])
    controls = None if control is None else control.expand(3, *control.shape)
    frames = model.rollout(state, times, controls=controls)
    assert frames.shape == (3, 2, 3, model.state_size)
    lone = model.rollout(state[1, 2], times, controls=None if controls is None else controls[:, 1, 2])
    torch.testing.assert_close(frames[:, 1, 2], lone)


@pytest.mark.parametrize("case", CASES)
def test_all_methods_agree(case: str) -> None:
    model = make(case)
    state = states(model, 2)
    control = control_of(model, state)
    times = torch.tensor([0.0, 0.06, 0.1], dtype=torch.float64)
    controls = None if control is None else torch.stack([control, -control, control])
    with torch.no_grad():
        found = {
            method: model.rollout(state, times, method=method, timestep=0.01, controls=controls)
            for method in methods_of(model)
            if method in ("implicit-midpoint", "tao-4", "rattle", "rk4", "dopri8", "velocity-verlet", "blanes-moan-4")
        }
    assert model.default_method in found
    for method, frames in found.items():
        assert not frames.requires_grad
        torch.testing.assert_close(
            frames, found["dopri8"], rtol=2e-3, atol=2e-4, msg=lambda text, m=method: f"{m}: {text}"
        )


@pytest.mark.parametrize("case", CASES)
def test_single_precision(case: str) -> None:
    double, single = make(case), make(case, "float32")
    assert single.dtype == torch.float32
    state = states(double, 4)
    single.load_state_dict({name: value.float() for name, value in double.state_dict().items()})
    control = control_of(double, state)
    expected = double.derivative(0.0, state, control).detach()
    found = single.derivative(0.0, state.float(), None if control is None else control.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_is_trained(case: str) -> None:
    """Also through the derivatives inside; the recorded motion is the one that is not recorded."""
    model = make(case)
    state = states(model, 4)
    control = control_of(model, state)
    motion = model.derivative(0.0, state, control)
    motion.square().sum().backward()
    untouched = [name for name, p in model.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert not untouched
    with torch.no_grad():
        quiet = model.derivative(0.0, state, control)
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, motion, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_files_are_exact(case: str, dtype: str, tmp_path: Path) -> None:
    model = make(case, dtype)
    model.info = {"system": "pendulum"}
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert type(again) is type(model)
    assert again.describe() == model.describe()
    state = states(model, 3)
    control = control_of(model, state)
    assert torch.equal(again.derivative(0.0, state, control), model.derivative(0.0, state, control))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_unusable_files(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(ModelFileError, match="no model file"):
        load(path)
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(ModelFileError, match="pickle"):
        load(path)
    save(make("hnn"), path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ModelFileError, match="truncated"):
        load(path)
    model: Any = make("hnn")
    model.hamiltonian = nn.Identity()
    with pytest.raises(ModelFileError, match="replaced .*hamiltonian"):
        save(model, path)


def test_weights_do_not_depend_on_the_global_state() -> None:
    torch.rand(3)
    before = torch.random.get_rng_state()
    one, two = build("hnn", 1, seed=1), build("hnn", 1, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(next(build("hnn", 1, seed=2).parameters()), next(one.parameters()))


@pytest.mark.parametrize(
    ("name", "dof", "options", "message"),
    [
        ("symode", 1, {}, "did you mean 'symoden'"),
        ("hnn", 0, {}, "positive integer"),
        ("hnn", 1, {"dtype": "float16"}, "float32 or float64"),
        ("hnn", 1, {"from": "general"}, "unknown key 'from'; did you mean 'form'"),
        ("hnn", 1, {"form": "seperable"}, "form"),
        ("hnn", 1, {"angles": [1]}, "angles must be"),
        ("chnn", 4, {}, "'links' is missing"),
        ("chnn", 3, LINKS, "multiple"),
        ("chnn", 4, {"links": [(0, 2)], "lengths": [1.0]}, "links must be pairs"),
        ("clnn", 4, {"links": [(0, 1)], "lengths": [1.0, 2.0]}, "positive length"),
    ],
)
def test_unusable_options(name: str, dof: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, dof, **options)


def test_unusable_states() -> None:
    model, driven = make("hnn"), make("symoden")
    with pytest.raises(ConfigError, match=r"coordinates and momenta \[..., 4\].*\[3, 5\]"):
        model.derivative(0.0, torch.zeros(3, 5, dtype=torch.float64))
    with pytest.raises(ConfigError, match=r"float64; found \[4\] torch.float32"):
        model.energy(torch.zeros(4))
    with pytest.raises(ConfigError, match="takes no control"):
        model.derivative(0.0, states(model, 3), torch.zeros(3, 1))
    with pytest.raises(ConfigError, match=r"takes a control \[3, 1\]; found none"):
        driven.derivative(0.0, states(driven, 3))
    with torch.inference_mode(), pytest.raises(ConfigError, match="inference_mode"):
        model.derivative(0.0, states(model, 3))
