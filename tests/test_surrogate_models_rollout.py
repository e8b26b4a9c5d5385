"""Rollouts of models: order, symplecticity and reversibility of the methods, and gradients against finite differences."""

import gc
import sys
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simkit.errors import ConfigError, MissingDependencyError
from simkit.surrogates.methods.tao import Tao
from simkit.surrogates.models import build
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.rollout import SPLITTING, methods_of, rollout

F64 = torch.float64
MODELS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "general": ("hnn", 2, {}),
    "separable": ("hnn", 2, {"form": "separable"}),
    "mechanical": ("hnn", 2, {"form": "mechanical"}),
    "delan": ("delan", 2, {}),
    "delan-constant": ("delan", 2, {"mass": "constant"}),
    "symoden": ("symoden", 2, {"controls": 1}),
    "second-order": ("neural-ode-2", 2, {"controls": 1}),
    "chnn": ("chnn", 4, {"links": [(-1, 0), (0, 1)], "lengths": [1.0, 0.5]}),
    "clnn": ("clnn", 4, {"links": [(-1, 0), (0, 1)], "lengths": [1.0, 0.5]}),
}
ON_MANIFOLD = [0.6, -0.8, 0.9, -1.2, 0.8, 0.6, 1.0, 0.5]
"""Two links along one line, of lengths 1 and 0.5; the velocities are not tangent yet."""


def make(case: str, seed: int = 3) -> DynamicsModel:
    name, dof, options = MODELS[case]
    model = build(name, dof, dtype="float64", seed=seed, width=8, **options)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=F64)
    return model


def initial(model: DynamicsModel) -> Tensor:
    if model.constrained() is not None:
        return torch.tensor([ON_MANIFOLD], dtype=F64)
    return torch.tensor([[0.8, -0.5, 0.3, 1.1]], dtype=F64)


def controls_of(model: DynamicsModel, frames: int) -> Tensor | None:
    if model.controls == 0:
        return None
    return torch.linspace(-1, 1, frames, dtype=F64).reshape(frames, 1, 1)


@pytest.mark.parametrize(
    ("case", "method", "order", "timestep"),
    [
        ("mechanical", "velocity-verlet", 2, 0.05),
        ("delan-constant", "ruth-3", 3, 0.1),
        ("mechanical", "blanes-moan-4", 4, 0.4),
        ("mechanical", "yoshida-6", 6, 0.2),
        ("separable", "position-verlet", 2, 0.05),
        ("separable", "blanes-moan-4", 4, 0.4),
        ("separable", "yoshida-6", 6, 0.2),
        ("general", "implicit-midpoint", 2, 0.05),
        ("general", "tao-2", 2, 0.01),
        ("general", "tao-4", 4, 0.01),
        ("delan", "rk4", 4, 0.1),
        ("symoden", "implicit-midpoint", 2, 0.05),
        ("symoden", "rk4", 4, 0.1),
        ("chnn", "rattle", 2, 0.05),
        ("clnn", "rattle", 2, 0.05),
    ],
)
def test_the_order(case: str, method: str, order: int, timestep: float) -> None:
    """The slope of the logarithm of the error over that of the timestep; the reference is adaptive of eighth order."""
    model = make(case)
    times = torch.tensor([0.0, 0.4, 0.8], dtype=F64)
    controls = controls_of(model, 3)
    with torch.no_grad():
        state = model.rollout(initial(model), times[:1])[0] if method == "rattle" else initial(model)
        exact = rollout(model, state, times, method="dopri8", controls=controls, rtol=1e-12, atol=1e-13)[-1]
        errors = []
        for h in (timestep, timestep / 2):
            found = rollout(model, state, times, method=method, timestep=h, controls=controls)[-1]
            errors.append((found - exact).norm())
    assert float(errors[0]) > 1e-9
    measured = float(torch.log2(errors[0] / errors[1]))
    assert measured == pytest.approx(order, abs=0.25), f"order {measured:.2f}, errors {errors}"


def symplectic_form(pairs: int) -> Tensor:
    zero, one = torch.zeros(pairs, pairs, dtype=F64), torch.eye(pairs, dtype=F64)
    return torch.cat([torch.cat([zero, one], dim=1), torch.cat([-one, zero], dim=1)])


@pytest.mark.parametrize(
    ("case", "method"),
    [
        ("mechanical", "velocity-verlet"),
        ("mechanical", "ruth-3"),
        ("separable", "yoshida-4"),
        ("general", "implicit-midpoint"),
    ],
)
def test_symplectic_maps(case: str, method: str) -> None:
    """The Jacobian J of the map keeps the symplectic form: J^T W J = W."""
    model, times = make(case), torch.tensor([0.0, 0.3, 0.6])

    def final(state: Tensor) -> Tensor:
        return model.rollout(state, times, method=method)[-1]

    jacobian: Any = torch.autograd.functional.jacobian(final, initial(model)[0])
    form = symplectic_form(2)
    torch.testing.assert_close(jacobian.T @ form @ jacobian, form, rtol=0, atol=1e-11)
    assert float((jacobian - torch.eye(4)).norm()) > 0.1


def test_runge_kutta_is_not_symplectic() -> None:
    """So that the test above can fail."""
    model, times = make("general"), torch.tensor([0.0, 0.3, 0.6])
    jacobian: Any = torch.autograd.functional.jacobian(
        lambda state: model.rollout(state, times, method="rk4")[-1], initial(model)[0]
    )
    form = symplectic_form(2)
    assert float((jacobian.T @ form @ jacobian - form).norm()) > 1e-9


@pytest.mark.parametrize("order", [2, 4])
def test_tao_is_symplectic_in_the_extended_phase_space(order: int) -> None:
    """With the form dq dp + dx dy on (q, p, x, y), also where the two copies differ."""
    stepper = Tao(make("general").derivative, order, binding=5.0)
    start = torch.tensor([0.8, -0.5, 0.3, 1.1, 0.7, -0.4, 0.5, 1.0], dtype=F64)
    jacobian: Any = torch.autograd.functional.jacobian(lambda y: stepper.advance(y, None, 0.0, 0.1, 4), start)
    form = torch.block_diag(symplectic_form(2), symplectic_form(2))
    torch.testing.assert_close(jacobian.T @ form @ jacobian, form, rtol=0, atol=1e-11)


def test_rattle_is_symplectic_on_the_manifold() -> None:
    """A pendulum of one link, in the chart of its angle and angular momentum: the map keeps areas."""
    model: Any = build("chnn", 2, dtype="float64", width=8, links=[(-1, 0)], lengths=[1.3])

    def final(chart: Tensor) -> Tensor:
        angle, momentum = chart
        x = 1.3 * torch.stack([angle.sin(), -angle.cos()])
        p = momentum / 1.3 * torch.stack([angle.cos(), angle.sin()])
        x, p = model.rollout(torch.cat([x, p]), torch.tensor([0.0, 0.2, 0.4]))[-1].chunk(2)
        return torch.stack([torch.atan2(x[0], -x[1]), x[0] * p[1] - x[1] * p[0]])

    jacobian: Any = torch.autograd.functional.jacobian(final, torch.tensor([0.7, 1.9], dtype=F64))
    assert float(torch.linalg.det(jacobian)) == pytest.approx(1, abs=1e-12)
    assert float((jacobian - torch.eye(2)).norm()) > 0.1


@pytest.mark.parametrize(
    ("case", "method"),
    [
        ("mechanical", "velocity-verlet"),
        ("separable", "blanes-moan-4"),
        ("general", "implicit-midpoint"),
        ("symoden", "implicit-midpoint"),
        ("delan", "implicit-midpoint"),
        ("chnn", "rattle"),
    ],
)
def test_back_to_the_start(case: str, method: str) -> None:
    model = make(case)
    times = torch.tensor([0.0, 0.25, 0.5], dtype=F64)
    controls = controls_of(model, 3)
    with torch.no_grad():
        there = model.rollout(initial(model), times, method=method, timestep=0.05, controls=controls)
        # On the way back each control is that of the same interval: the later one first.
        back_controls = None if controls is None else controls[[1, 0, 0]]
        back = model.rollout(there[-1], times.flip(0), method=method, timestep=0.05, controls=back_controls)
    assert float((there[-1] - there[0]).norm()) > 0.1
    torch.testing.assert_close(back.flip(0), there, rtol=0, atol=1e-11)


def test_the_constraints_are_kept() -> None:
    """Positions and velocities, in 200 long steps."""
    for case in ("chnn", "clnn"):
        model: Any = make(case)
        with torch.no_grad():
            frames = model.rollout(initial(model), torch.linspace(0, 20, 201, dtype=F64))
            x, second = frames.chunk(2, dim=-1)
            v = second / model.masses() if case == "chnn" else second
            hidden = (model.constraints.jacobian(x) @ v.unsqueeze(-1)).squeeze(-1)
            energy = model.energy(frames)
        assert float(model.constraints(x).abs().max()) < 1e-12
        assert float(hidden.abs().max()) < 1e-12
        assert float((energy - energy[0]).abs().max()) < 0.05 * float(energy[0].abs() + 1)
        assert float((x - x[0]).norm(dim=-1).max()) > 0.5


GRADIENTS = [
    ("general", "implicit-midpoint", "backpropagation"),
    ("general", "implicit-midpoint", "reversible"),
    ("general", "tao-4", "backpropagation"),
    ("general", "tao-4", "reversible"),
    ("general", "rk4", "backpropagation"),
    ("separable", "blanes-moan-4", "backpropagation"),
    ("separable", "blanes-moan-4", "reversible"),
    ("mechanical", "velocity-verlet", "backpropagation"),
    ("mechanical", "velocity-verlet", "reversible"),
    ("delan-constant", "velocity-verlet", "reversible"),
    ("delan", "implicit-midpoint", "reversible"),
    ("symoden", "implicit-midpoint", "reversible"),
    ("symoden", "dopri8", "backpropagation"),
    ("second-order", "dopri8", "adjoint"),
    ("second-order", "rk4", "backpropagation"),
    ("chnn", "rattle", "backpropagation"),
    ("chnn", "rattle", "reversible"),
    ("clnn", "rattle", "reversible"),
]


@pytest.mark.parametrize(("case", "method", "gradient"), GRADIENTS)
def test_gradients(case: str, method: str, gradient: Any) -> None:
    """With respect to the initial state, the controls and all parameters, along a random direction of each."""
    model, times = make(case), torch.tensor([0.0, 0.2, 0.35], dtype=F64)
    state, controls = initial(model).requires_grad_(), controls_of(model, 3)
    leaves = [state, *([] if controls is None else [controls.requires_grad_()]), *model.parameters()]

    def loss() -> Tensor:
        frames = rollout(
            model,
            state,
            times,
            method=method,
            timestep=0.05,
            controls=controls,
            gradient=gradient,
            rtol=1e-11,
            atol=1e-12,
        )
        return frames.sin().sum() + frames[-1].square().sum()

    found = torch.autograd.grad(loss(), leaves)
    generator = torch.Generator().manual_seed(6)
    directions = [torch.randn(leaf.shape, generator=generator, dtype=F64) for leaf in leaves]
    if model.constrained() is not None:
        directions[0][..., : model.dof] = 0  # positions must stay on the manifold
    own = 1 if controls is None else 2
    for group in (range(own), range(own, len(leaves))):
        values = []
        with torch.no_grad():
            for sign in (1, -2, 1):
                for index in group:
                    leaves[index] += sign * 1e-5 * directions[index]
                values.append(loss())
        numerical = float((values[0] - values[1]) / 2e-5)
        along = sum(float((found[index] * directions[index]).sum()) for index in group)
        assert abs(numerical) > 5e-4
        assert along == pytest.approx(numerical, rel=2e-6, abs=2e-8)


class Held:
    """What autograd keeps of a tensor, for as long as it does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def test_reversible_gradients_keep_frames_only() -> None:
    """The number of tensors that autograd holds after the rollout does not depend on the steps."""
    model = make("general")

    def kept(gradient: Any, timestep: float) -> int:
        held: weakref.WeakSet[Held] = weakref.WeakSet()

        def pack(tensor: Tensor) -> Held:
            holder = Held(tensor)
            held.add(holder)
            return holder

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
            frames = rollout(
                model, initial(model), torch.tensor([0.0, 0.4]), method="tao-2", timestep=timestep, gradient=gradient
            )
        gc.collect()
        return len(held) if frames.requires_grad else -1

    assert 0 < kept("reversible", 0.1) == kept("reversible", 0.02) < 20
    assert kept("backpropagation", 0.02) > 4 * kept("backpropagation", 0.1) > 80


class Stiff(nn.Module):
    """A spring whose period is far shorter than the step of the test, so that fixed-point iteration diverges."""

    def forward(self, q: Tensor, p: Tensor) -> Tensor:
        return (400 * q.square() + p.square()).sum(-1) / 2


def test_the_midpoint_rule_solves_stiff_steps() -> None:
    """By Newton's method; for a linear system the rule is the Cayley transform."""
    model: Any = build("hnn", 1, dtype="float64")
    model.hamiltonian = Stiff()
    h, state = 0.5, torch.tensor([1.0, 0.5], dtype=F64)
    generator = torch.tensor([[0.0, 1.0], [-400.0, 0.0]], dtype=F64)
    one = torch.eye(2, dtype=F64)
    cayley = torch.linalg.solve(one - h / 2 * generator, one + h / 2 * generator)
    with torch.no_grad():
        found = model.rollout(state, torch.tensor([0.0, h]), method="implicit-midpoint")[-1]
    torch.testing.assert_close(found, cayley @ state, rtol=1e-11, atol=1e-11)


def test_the_methods_of_models() -> None:
    assert set(SPLITTING) <= set(methods_of(make("mechanical")))
    assert "tao-4" in methods_of(make("general"))
    assert not {"tao-4", "rattle", "velocity-verlet"} & set(methods_of(make("symoden")))
    assert "rattle" in methods_of(make("clnn"))
    assert make("general").default_method == "implicit-midpoint"
    assert make("mechanical").default_method == "blanes-moan-4"


@pytest.mark.parametrize(
    ("case", "arguments", "message"),
    [
        ("general", {"method": "implicit-midpont"}, "did you mean 'implicit-midpoint'"),
        (
            "general",
            {"method": "velocity-verlet"},
            "cannot run this HamiltonianNetwork; methods for it: implicit-midpoint",
        ),
        ("delan", {"method": "tao-2"}, "cannot run"),
        ("general", {"method": "rk4", "gradient": "reversible"}, "cannot be retraced"),
        ("separable", {"method": "ruth-3", "gradient": "reversible"}, "cannot be retraced"),
        ("general", {"method": "dopri5", "gradient": "reversible"}, "must be one of backpropagation, adjoint"),
        ("general", {"timestep": -0.1}, "positive"),
        ("general", {"controls": torch.zeros(2, 1, 1)}, "takes no controls"),
        ("symoden", {}, r"takes controls \[2, 1, 1\]; found none"),
        ("chnn", {"state": torch.ones(1, 8, dtype=F64)}, "violate the constraints"),
        ("general", {"state": torch.ones(1, 3, dtype=F64)}, r"found \[1, 3\]"),
        ("general", {"times": torch.zeros(2)}, "rise or fall"),
        ("general", {"times": torch.zeros(0)}, "rise or fall"),
    ],
)
def test_unusable_arguments(case: str, arguments: dict[str, Any], message: str) -> None:
    model = make(case)
    given = {"state": initial(model), "times": torch.tensor([0.0, 0.1]), **arguments}
    with pytest.raises(ConfigError, match=message):
        rollout(model, given.pop("state"), given.pop("times"), **given)


def test_without_torchdiffeq(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    model = make("second-order")
    with pytest.raises(MissingDependencyError, match=r"simkit\[ode\]"):
        model.rollout(initial(model), torch.tensor([0.0, 0.1]), method="dopri5", controls=controls_of(model, 2))
