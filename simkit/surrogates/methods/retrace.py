"""Gradients of symmetric methods without keeping states: the backward pass undoes the steps, each by one with the opposite sign.

The memory is that of one step. Rounding errors, and those of implicit equations that are solved to a tolerance, grow on the way back;
the retraced initial state is compared with the one given, and a gradient that cannot be trusted is refused
(`simkit.integrators.adjoint.check_retraced`). The gradients cannot be differentiated again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simkit.integrators.adjoint import check_retraced
from simkit.surrogates.methods.stepper import Stepper


def retraced(
    stepper: Stepper,
    parameters: tuple[Tensor, ...],
    inner: Tensor,
    control: Tensor | None,
    t: float,
    h: float,
    steps: int,
) -> Tensor:
    """Return ``stepper.advance(inner, control, t, h, steps)``, with gradients by retracing.

    Args:
        parameters: the leaves that the steps depend on besides the state and the control.
    """
    return _Retraced.apply(stepper, (t, h, steps), inner, control, *parameters)


class _Retraced(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        stepper: Stepper,
        run: tuple[float, float, int],
        inner: Tensor,
        control: Tensor | None,
        *weights: Tensor,
    ) -> Tensor:
        t, h, steps = run
        last = stepper.advance(inner, control, t, h, steps).clone()
        ctx.stepper, ctx.run, ctx.leaves = stepper, run, weights
        ctx.save_for_backward(inner, last, control, *weights)  # refuses weights that were changed in place meanwhile
        return last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        given, last, control, *_ = ctx.saved_tensors
        (t, h, steps), stepper = ctx.run, ctx.stepper
        wanted = [leaf for leaf, need in zip(ctx.leaves, ctx.needs_input_grad[4:], strict=True) if need]
        with_control = ctx.needs_input_grad[3]
        held = None if control is None else control.detach().requires_grad_(with_control)
        others = [*([held] if held is not None and with_control else []), *wanted]
        totals = [torch.zeros_like(x) for x in others]
        y = last
        for step in range(steps - 1, -1, -1):
            y = stepper.advance(y, control, t + (step + 1) * h, -h, 1).detach()
            with torch.enable_grad():
                x = y.clone().requires_grad_(True)
                out = stepper.advance(x, held, t + step * h, h, 1)
            gradient, *parts = torch.autograd.grad(out, [x, *others], gradient, materialize_grads=True)
            for total, part in zip(totals, parts, strict=True):
                total += part
        check_retraced(given, y, last, "states")
        to_control = totals.pop(0) if with_control else None
        found = iter(totals)
        to_weights = [next(found) if need else None for need in ctx.needs_input_grad[4:]]
        return None, None, gradient, to_control, *to_weights
