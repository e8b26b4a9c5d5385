"""Rollouts: a model's motion from an initial state, at given times, by a method that suits its structure.

| Methods | For | Properties |
| --- | --- | --- |
| the deterministic schemes of `simkit.integrators` | separable models | symplectic; explicit; orders 1 to 8 |
| "implicit-midpoint" | all | order 2, symmetric, symplectic for Hamiltonians; solved to rounding |
| "tao-2", "tao-4" | Hamiltonian models | orders 2 and 4, explicit, symplectic in an extended phase space |
| "rattle" | constrained models | order 2, symplectic; constraints kept to rounding |
| "rk4" | all | order 4, explicit |
| "bosh3", "dopri5", "dopri8" | all | adaptive, by torchdiffeq |

Gradients reach the initial state, the controls and the parameters of the model, not the times. "backpropagation" records every step;
"reversible" retraces the steps of a symmetric method and keeps the states at the given times only; "adjoint" is that of torchdiffeq,
for adaptive methods. Where no gradients are wanted, call it under `torch.no_grad`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from simkit import integrators
from simkit.config import nearest
from simkit.errors import ConfigError
from simkit.surrogates.methods.adaptive import METHODS as ADAPTIVE
from simkit.surrogates.methods.adaptive import odeint
from simkit.surrogates.methods.midpoint import ImplicitMidpoint
from simkit.surrogates.methods.rattle import Rattle
from simkit.surrogates.methods.retrace import retraced
from simkit.surrogates.methods.runge_kutta import RungeKutta4
from simkit.surrogates.methods.splitting import Quadratic, QuadraticSplitting, SeparableSplitting
from simkit.surrogates.methods.stepper import Stepper
from simkit.surrogates.methods.tao import Tao

if TYPE_CHECKING:
    from simkit.surrogates.models.base import DynamicsModel

RolloutGradient = Literal["backpropagation", "reversible", "adjoint"]
SPLITTING = tuple(name for name in integrators.available() if not integrators.get(name).stochastic)
METHODS = (*SPLITTING, "implicit-midpoint", "tao-2", "tao-4", "rattle", "rk4", *ADAPTIVE)
"""All methods by name."""


def methods_of(model: DynamicsModel) -> tuple[str, ...]:
    """Return the names of the methods that can run a model."""
    return tuple(
        name
        for name in METHODS
        if not (name in SPLITTING and model.separable() is None)
        and not (name.startswith("tao") and not model.hamiltonian_flow)
        and not (name == "rattle" and model.constrained() is None)
    )


def rollout(
    model: DynamicsModel,
    state: Tensor,
    times: Tensor,
    *,
    method: str | None = None,
    timestep: float | None = None,
    controls: Tensor | None = None,
    gradient: RolloutGradient = "backpropagation",
    binding: float = 20.0,
    rtol: float = 1e-6,
    atol: float = 1e-8,
) -> Tensor:
    """Return the states at the times, [T, ..., 2D]; the first is the initial one (for constrained models, made tangent).

    Args:
        model: any `DynamicsModel`.
        state: at the first time, [..., 2D], in the model's dtype.
        times: [T], rising or falling.
        method: one of `methods_of` the model; the model's own ``default_method`` where not given.
        timestep: the longest step of methods of fixed steps; each interval is cut into equal ones. One step each where not given.
        controls: [T, ..., U], each held until the next time, the last unused; only and always for models with controls.
        gradient: as above.
        binding: omega of `simkit.surrogates.methods.tao`.
        rtol, atol: relative and absolute tolerance of the adaptive methods.

    Raises:
        ConfigError: if an argument does not suit the model.
        MissingDependencyError: if a method needs torchdiffeq, which is not installed.
    """
    name = model.default_method if method is None else method
    _check(model, name, gradient)
    model.check_state(state)
    moments = moments_of(times)
    frames = _controls(model, controls, state, len(moments))
    if name in ADAPTIVE:
        return _adaptive(model, state, times, frames, name, rtol, atol, gradient)
    stepper = _stepper(model, name, gradient, binding)
    if gradient == "reversible" and not stepper.symmetric:
        raise ConfigError(f"{name} cannot be retraced; take a symmetric method or gradient='backpropagation'")
    weights = tuple(p for p in model.parameters() if p.requires_grad)
    inner = stepper.start(state)
    states = [stepper.read(inner)]
    for frame, (t, following) in enumerate(zip(moments, moments[1:], strict=False)):
        steps = 1 if timestep is None else step_count(following - t, timestep)
        control, h = None if frames is None else frames[frame], (following - t) / steps
        if gradient == "reversible" and not isinstance(stepper, QuadraticSplitting):
            inner = retraced(stepper, weights, inner, control, t, h, steps)
        else:
            inner = stepper.advance(inner, control, t, h, steps)
        states.append(stepper.read(inner))
    return torch.stack(states)


def _check(model: DynamicsModel, method: str, gradient: str) -> None:
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}{nearest(method, METHODS)}")
    if method not in methods_of(model):
        raise ConfigError(
            f"{method} cannot run this {type(model).__name__}; methods for it: {', '.join(methods_of(model))}"
        )
    allowed = ("backpropagation", "adjoint") if method in ADAPTIVE else ("backpropagation", "reversible")
    if gradient not in allowed:
        raise ConfigError(f"the gradient of {method} must be one of {', '.join(allowed)}; found {gradient!r}")


def moments_of(times: Tensor) -> list[float]:
    """Return the times as numbers, having checked them."""
    moments = [float(t) for t in times.detach().reshape(-1).tolist()]
    steps = [b - a for a, b in zip(moments, moments[1:], strict=False)]
    monotonic = all(step > 0 for step in steps) or all(step < 0 for step in steps)
    if times.dim() != 1 or not moments or not all(map(math.isfinite, moments)) or not monotonic:
        raise ConfigError(
            f"times must be finite numbers [T] that rise or fall; found the shape {list(times.shape)}, {moments[:4]} ..."
        )
    return moments


def step_count(interval: float, timestep: float) -> int:
    """Return into how many steps of at most a given length an interval is cut."""
    if not 0 < timestep < math.inf:
        raise ConfigError(f"the timestep must be a positive number; found {timestep}")
    return max(1, math.ceil(abs(interval) / timestep * (1 - 1e-9)))  # 0.3/0.1 is three steps, whatever rounding says


def _controls(model: DynamicsModel, controls: Tensor | None, state: Tensor, frames: int) -> Tensor | None:
    expected = (frames, *state.shape[:-1], model.controls)
    if (controls is None) != (model.controls == 0) or (controls is not None and controls.shape != expected):
        wanted = f"controls {list(expected)}" if model.controls else "no controls"
        found = "none" if controls is None else str(list(controls.shape))
        raise ConfigError(f"this model takes {wanted}; found {found}")
    return controls


def _stepper(model: DynamicsModel, name: str, gradient: RolloutGradient, binding: float) -> Stepper:
    constrained, separable = model.constrained(), model.separable()
    if name == "rattle" and constrained is not None:
        return Rattle(constrained)
    if name in SPLITTING and separable is not None:
        scheme = integrators.get(name)
        if isinstance(separable, Quadratic):
            return QuadraticSplitting(
                separable, scheme, "reversible" if gradient == "reversible" else "backpropagation"
            )
        return SeparableSplitting(separable, scheme)
    if name.startswith("tao"):
        return Tao(model.derivative, int(name[-1]), binding)
    return ImplicitMidpoint(model.derivative) if name == "implicit-midpoint" else RungeKutta4(model.derivative)


def _adaptive(
    model: DynamicsModel,
    state: Tensor,
    times: Tensor,
    controls: Tensor | None,
    method: str,
    rtol: float,
    atol: float,
    gradient: RolloutGradient,
) -> Tensor:
    """Integrate from end to end, or from one change of the control to the next."""
    times = times.to(device=state.device)
    mode: Literal["backpropagation", "adjoint"] = "adjoint" if gradient == "adjoint" else "backpropagation"
    if len(times) == 1:
        return state.unsqueeze(0)
    if controls is None:
        return odeint(model, state, times, None, method=method, rtol=rtol, atol=atol, gradient=mode)
    states = [state]
    for frame in range(len(times) - 1):
        piece = odeint(
            model,
            states[-1],
            times[frame : frame + 2],
            controls[frame],
            method=method,
            rtol=rtol,
            atol=atol,
            gradient=mode,
        )
        states.append(piece[-1])
    return torch.stack(states)
