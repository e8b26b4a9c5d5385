"""Splitting integrators in PyTorch, differentiable from end to end, in any number of batch dimensions.

Gradients reach the initial state, the masses, the timestep, friction and temperature, and the parameters of the force. They are
computed in one of two ways:

- "backpropagation": autograd records every step. Memory grows with the number of steps; gradients can be differentiated again.
- "reversible": only the final state is kept. The backward pass undoes the steps one by one and meets every state a second time
  (`simkit.integrators.adjoint`). Memory does not depend on the number of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from simkit.errors import ConfigError
from simkit.integrators.adjoint import retraceable
from simkit.integrators.bath import Bath
from simkit.integrators.flow import Flow, Force, Noise, run_forward
from simkit.integrators.program import check_run
from simkit.integrators.scheme import Operator, Scheme

Gradient = Literal["backpropagation", "reversible"]


def conservative(energy: Callable[..., Tensor]) -> Force:
    """Return the force of a potential energy, for `integrate`.

    Args:
        energy: ``energy(positions, *parameters)`` returns an energy of any shape, the sum of which is differentiated.
    """

    def force(positions: Tensor, *parameters: Tensor) -> Tensor:
        recorded = torch.is_grad_enabled()
        with torch.enable_grad():
            x = positions if recorded and positions.requires_grad else positions.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(energy(x, *parameters).sum(), x, create_graph=recorded)
        return -gradient

    return force


def integrate(
    scheme: Scheme,
    force: Force,
    positions: Tensor,
    velocities: Tensor,
    *,
    masses: Tensor | float,
    timestep: Tensor | float,
    steps: int,
    parameters: Sequence[Tensor] = (),
    bath: Bath | None = None,
    first_step: int = 0,
    gradient: Gradient = "backpropagation",
) -> tuple[Tensor, Tensor]:
    """Return positions and velocities after a number of steps; the arguments are left alone.

    Units are the caller's, as for `simkit.integrators.cpu.Integrator`. Where no gradients are wanted, call it under `torch.no_grad`:
    forces by `conservative` are recorded otherwise, in case the energy holds tensors that require gradients.

    Args:
        scheme: what to run, such as ``simkit.integrators.get("velocity-verlet")``.
        force: ``force(positions, *parameters)`` returns the forces, like positions; `conservative` makes one of an energy.
        positions, velocities: [*batch, N, D], of one floating-point type.
        masses: a number, [N] or [*batch, N].
        timestep: a number or [*batch].
        parameters: tensors that the force depends on and that gradients are wanted of. Weights of a module are passed as
            ``force=lambda x, *w: torch.func.functional_call(module, dict(zip(names, w)), x)``.
        bath: for schemes with noise; friction and kT are numbers or [*batch], replicas are integers [*batch].
        first_step: number of steps done before; random numbers depend on it.
        gradient: "backpropagation" or "reversible", as above.

    Raises:
        ConfigError: if an argument is not usable.
    """
    flow = _flow(scheme, force, positions, velocities, masses, timestep, bath, first_step, steps)
    state = (positions, velocities)
    weights = tuple(parameters)
    if gradient == "reversible":
        return retraceable(flow, *state, weights)
    if gradient != "backpropagation":
        raise ConfigError(f"gradient must be 'backpropagation' or 'reversible'; found {gradient!r}")
    return run_forward(flow, *state, weights)


def trajectory(
    scheme: Scheme,
    force: Force,
    positions: Tensor,
    velocities: Tensor,
    *,
    masses: Tensor | float,
    timestep: Tensor | float,
    frames: int,
    every: int = 1,
    parameters: Sequence[Tensor] = (),
    bath: Bath | None = None,
    first_step: int = 0,
    gradient: Gradient = "backpropagation",
) -> tuple[Tensor, Tensor]:
    """Return the initial state and the state after each ``every`` steps, [frames + 1, *batch, N, D] each.

    With "reversible" gradients, what is kept are these states; each stretch between two of them is retraced from its own end, so that
    errors of rounding do not add up from one to the next.

    Args:
        frames: how many states after the initial one.
        every: steps between two of them. The other arguments are those of `integrate`.
    """
    states = [(positions, velocities)]
    for frame in range(frames):
        states.append(
            integrate(
                scheme, force, *states[-1], masses=masses, timestep=timestep, steps=every, parameters=parameters, bath=bath,
                first_step=first_step + frame * every, gradient=gradient,
            )
        )  # fmt: skip
    x, v = zip(*states, strict=True)
    return torch.stack(x), torch.stack(v)


def _flow(
    scheme: Scheme,
    force: Force,
    positions: Tensor,
    velocities: Tensor,
    masses: Tensor | float,
    timestep: Tensor | float,
    bath: Bath | None,
    first_step: int,
    steps: int,
) -> Flow:
    """Check the arguments, and give them shapes that broadcast with positions."""
    if positions.dim() < 2 or positions.shape != velocities.shape or positions.dtype != velocities.dtype:
        raise ConfigError(
            "positions and velocities must be alike, [*batch, N, D]; found "
            f"{list(positions.shape)} {positions.dtype} and {list(velocities.shape)} {velocities.dtype}"
        )
    if not positions.is_floating_point():
        raise ConfigError(f"positions must be floating-point numbers; found {positions.dtype}")
    batch = positions.shape[:-2]
    mass = torch.as_tensor(masses, dtype=positions.dtype, device=positions.device)
    if mass.shape not in ((), positions.shape[-2:-1], positions.shape[:-1]):
        raise ConfigError(
            f"masses must be a number, [N] or [*batch, N] for {list(positions.shape)}; found {list(mass.shape)}"
        )
    if mass.device.type == "cpu" and not bool((mass > 0).all()):
        raise ConfigError(f"masses must be positive (infinite for a frozen atom); found {mass.min()}")
    step = _per_sample("timestep", timestep, positions)
    # The sign of a timestep given as a tensor is not read: that would wait for its device.
    check_run(scheme, 1.0 if isinstance(timestep, Tensor) else timestep, steps, first_step, bath)
    inverse = (1 / mass).reshape(*(1,) * (positions.dim() - 1 - mass.dim()), *mass.shape, 1)
    noise = None if bath is None else _noise(scheme, positions, step, inverse, bath, batch)
    return Flow(scheme, force, step, inverse, noise, first_step, steps)


def _per_sample(name: str, value: Any, positions: Tensor) -> Tensor:
    """Return a number, or one for each sample, in a shape that broadcasts with positions [*batch, N, D]."""
    tensor = torch.as_tensor(value, dtype=positions.dtype, device=positions.device)
    if tensor.shape not in ((), positions.shape[:-2]):
        raise ConfigError(
            f"{name} must be a number or {list(positions.shape[:-2])}, one for each sample; found {list(tensor.shape)}"
        )
    return tensor.reshape(*tensor.shape, *(1,) * (positions.dim() - tensor.dim()))


def _noise(scheme: Scheme, positions: Tensor, step: Tensor, inverse: Tensor, bath: Bath, batch: torch.Size) -> Noise:
    """The factors of each noise operator, v = decay v + spread R, and who the atoms are."""
    friction, kt = (_per_sample(name, getattr(bath, name), positions) for name in ("friction", "kT"))
    count = int(torch.Size(batch).numel())
    replica = torch.arange(count) if bath.replicas is None else torch.as_tensor(bath.replicas)
    if replica.numel() != count or replica.is_floating_point():
        raise ConfigError(
            f"replicas must be {count} integers, one for each sample; found {replica.dtype} {list(replica.shape)}"
        )
    factors = []
    for substep in scheme.substeps:
        if substep.operator is Operator.NOISE:
            exponent = substep.coefficient * step * friction
            factors.append((torch.exp(-exponent), torch.sqrt(-torch.expm1(-2 * exponent) * kt) * torch.sqrt(inverse)))
    return Noise(
        decays=tuple(decay for decay, _ in factors),
        spreads=tuple(spread for _, spread in factors),
        seed=bath.seed,
        replica=replica.reshape(*batch, 1).to(positions.device),
        atom=torch.arange(positions.shape[-2], device=positions.device),
    )
