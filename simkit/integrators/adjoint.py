"""Gradients of a run without keeping its states: the backward pass undoes the steps.

Each substep is undone exactly but for rounding, because what it adds depends on what it leaves alone: a kick on the positions, a drift
on the velocities, and noise on random numbers that are a function of the step. With the gradients gx and gv of a loss L with respect to
the state after a substep, those before it are

| Substep | Undone by | Gradients before it, and what they add elsewhere |
| --- | --- | --- |
| drift x += c h v | x -= c h v | gv += c h gx; dL/dh += c gx v |
| kick v += c h F(x, p)/m | v -= c h F/m | gF = c h gv/m, gx += gF dF/dx; dL/dp += gF dF/dp; dL/dh += c gv F/m; dL/d(1/m) += c h gv F |
| noise v = a v + b R | v = (v - b R)/a | gv = a gv; dL/da += gv v (v before); dL/db += gv R |

Rounding errors grow as neighboring trajectories part, and with friction by exp(friction t) as the noise is undone. The retraced
initial state is therefore compared with the one given, and a gradient that cannot be trusted is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from simkit.errors import ConfigError
from simkit.integrators.flow import Flow, Noise, run_forward
from simkit.integrators.scheme import Operator


def retraceable(flow: Flow, x: Tensor, v: Tensor, parameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return what `simkit.integrators.flow.run_forward` does, with gradients by retracing the run; they cannot be differentiated again."""
    factors = () if flow.noise is None else (*flow.noise.decays, *flow.noise.spreads)
    return _Retraceable.apply(flow, x, v, flow.timestep, flow.inverse_masses, *factors, *parameters)


def _with_tensors(flow: Flow, timestep: Tensor, inverse: Tensor, factors: tuple[Tensor, ...]) -> Flow:
    """The flow with these tensors for its own, so that autograd's are not kept alive."""
    noise: Noise | None = flow.noise
    if noise is not None:
        half = len(factors) // 2
        noise = replace(noise, decays=factors[:half], spreads=factors[half:])
    return replace(flow, timestep=timestep, inverse_masses=inverse, noise=noise)


class _Retraceable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flow: Flow, x: Tensor, v: Tensor, h: Tensor, inverse: Tensor, *rest: Tensor) -> Any:
        ctx.flow = _with_tensors(flow, h.new_empty(0), h.new_empty(0), ())
        ctx.factors = 0 if flow.noise is None else 2 * len(flow.noise.decays)
        own = _with_tensors(flow, h, inverse, rest[: ctx.factors])
        last_x, last_v = run_forward(own, x, v, rest[ctx.factors :])
        ctx.save_for_backward(x, v, last_x, last_v, h, inverse, *rest)
        return last_x, last_v

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gx: Tensor, gv: Tensor) -> Any:
        x, v, last_x, last_v, h, inverse, *rest = ctx.saved_tensors
        factors, parameters = tuple(rest[: ctx.factors]), rest[ctx.factors :]
        wanted = ctx.needs_input_grad[5 + ctx.factors :]
        weights = tuple(p.detach().requires_grad_(need) for p, need in zip(parameters, wanted, strict=True))
        flow = _with_tensors(ctx.flow, h, inverse, factors)
        walk = _Backwards(flow, last_x, last_v, gx, gv, weights)
        walk.run()
        check_retraced(x, walk.x, last_x, "positions")
        check_retraced(v, walk.v, last_v, "velocities")
        totals = (walk.to_timestep, walk.to_inverse, *walk.to_factors, *walk.to_weights)
        return None, walk.gx, walk.gv, *totals


@dataclass
class _Backwards:
    """The state of the backward pass: where it is, and the gradients so far."""

    flow: Flow
    x: Tensor
    v: Tensor
    gx: Tensor
    gv: Tensor
    weights: tuple[Tensor, ...]
    force: Tensor | None = None  # at the positions x, with its graph
    leaf: Tensor | None = None  # the positions in that graph
    to_force: Tensor | None = None  # gradient with respect to it
    checked: bool = False
    to_timestep: Tensor = field(init=False)
    to_inverse: Tensor = field(init=False)
    to_factors: list[Tensor] = field(init=False)
    to_weights: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        flow = self.flow
        self.to_timestep, self.to_inverse = torch.zeros_like(flow.timestep), torch.zeros_like(flow.inverse_masses)
        factors = () if flow.noise is None else (*flow.noise.decays, *flow.noise.spreads)
        self.to_factors = [torch.zeros_like(factor) for factor in factors]
        self.to_weights = [torch.zeros_like(weight) for weight in self.weights]

    def run(self) -> None:
        """Walk back over all steps."""
        flow, substeps = self.flow, self.flow.substeps[::-1]
        for step in range(flow.first_step + flow.steps - 1, flow.first_step - 1, -1):
            for substep, stream in substeps:
                if substep.operator is Operator.KICK:
                    self._kick(substep.coefficient)
                elif substep.operator is Operator.DRIFT:
                    self._drift(substep.coefficient)
                elif flow.noise is not None:
                    self._noise(flow.noise, step, stream)
        self._finish_force()

    def _kick(self, c: float) -> None:
        h, inverse = self.flow.timestep, self.flow.inverse_masses
        force = self._force()
        self.v = self.v - c * h * inverse * force
        gain = c * h * inverse * self.gv
        self.to_force = gain if self.to_force is None else self.to_force + gain
        product = c * self.gv * force
        self.to_timestep += (product * inverse).sum_to_size(h.shape)
        self.to_inverse += (product * h).sum_to_size(inverse.shape)

    def _drift(self, c: float) -> None:
        self._finish_force()
        h = self.flow.timestep
        self.x = self.x - c * h * self.v
        self.to_timestep += (c * self.gx * self.v).sum_to_size(h.shape)
        self.gv = self.gv + c * h * self.gx

    def _noise(self, noise: Noise, step: int, stream: int) -> None:
        decay, spread = noise.decays[stream], noise.spreads[stream]
        normal = noise.normal(self.v, step, stream)
        self.v = (self.v - spread * normal) / decay
        to_decay, to_spread = self.to_factors[stream], self.to_factors[len(noise.decays) + stream]
        to_decay += (self.gv * self.v).sum_to_size(decay.shape)
        to_spread += (self.gv * normal).sum_to_size(spread.shape)
        self.gv = decay * self.gv

    def _force(self) -> Tensor:
        """The force at the present positions; one evaluation serves all kicks until the positions change."""
        if self.force is None:
            with torch.enable_grad():
                self.leaf = self.x.detach().requires_grad_(True)
                self.force = self.flow.force(self.leaf, *self.weights)
            if not self.checked:
                _check_leaves(self.force, (self.leaf, *self.weights))
                self.checked = True
        return self.force.detach()

    def _finish_force(self) -> None:
        """Pass the gradient with respect to the force on to the positions and the parameters."""
        if self.force is not None and self.leaf is not None and self.force.requires_grad:
            wanted = [self.leaf, *(weight for weight in self.weights if weight.requires_grad)]
            found = torch.autograd.grad(self.force, wanted, self.to_force, allow_unused=True)
            self.gx = self.gx if found[0] is None else self.gx + found[0]
            totals = [
                total for total, weight in zip(self.to_weights, self.weights, strict=True) if weight.requires_grad
            ]
            for total, gradient in zip(totals, found[1:], strict=True):
                if gradient is not None:
                    total += gradient
        self.force = self.leaf = self.to_force = None


def _check_leaves(force: Tensor, known: tuple[Tensor, ...]) -> None:
    """Refuse a force that depends on tensors that were not passed as parameters: they would get no gradient, silently."""
    todo, seen = [force.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and not any(leaf is tensor for tensor in known):
            raise ConfigError(
                f"the force depends on a tensor {list(leaf.shape)} that requires gradients but is not among its parameters; "
                "pass it in `parameters`, or detach it"
            )
        todo.extend(following for following, _ in node.next_functions)


def check_retraced(given: Tensor, found: Tensor, last: Tensor, name: str) -> None:
    """Refuse gradients of a trajectory that was not retraced: that of another initial state than the one given."""
    deviation, scale = (found - given).abs().max(), torch.maximum(given.abs().max(), last.abs().max())
    allowed = torch.finfo(given.dtype).eps ** 0.5 * scale
    if not bool(deviation <= allowed):
        raise ConfigError(
            f"the run cannot be retraced: going back, the initial {name} are missed by {float(deviation):.1e} (allowed: "
            f"{float(allowed):.1e}). Take fewer steps at a time (`trajectory` retraces each stretch by itself), float64, or "
            "gradient='backpropagation'"
        )
