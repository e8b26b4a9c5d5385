"""Derivatives of functions of a state, recorded by autograd only where the caller's gradients are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from simkit.errors import ConfigError


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of the sum of a function with respect to each of its inputs.

    They can be differentiated again where gradients are enabled, and are computed also under ``torch.no_grad``.

    Args:
        function: ``function(*inputs)`` returns one number for each sample, [...].
        inputs: tensors [..., n].

    Raises:
        ConfigError: in ``torch.inference_mode()``, which switches derivatives off.
    """
    recorded = torch.is_grad_enabled()
    with enabled():
        leaves = [x if recorded and x.requires_grad else x.detach().requires_grad_(True) for x in inputs]
        value = function(*leaves).sum()
        if not value.requires_grad:  # a function that depends on none of them
            return tuple(torch.zeros_like(x) for x in inputs)
        return torch.autograd.grad(value, leaves, create_graph=recorded, materialize_grads=True)


def rows(outputs: Tensor, *inputs: Tensor, recorded: bool) -> tuple[Tensor, ...]:
    """Return the Jacobian of the outputs with respect to each input, for functions that treat each sample by itself.

    Args:
        outputs: [..., m], computed from the inputs with gradients enabled.
        inputs: [..., n] each.
        recorded: whether the Jacobians are to be differentiated.

    Returns:
        [..., m, n] for each input.
    """
    m = outputs.shape[-1]
    unit = torch.eye(m, dtype=outputs.dtype, device=outputs.device)
    unit = unit.reshape(m, *(1,) * (outputs.dim() - 1), m).expand(m, *outputs.shape)
    found = torch.autograd.grad(
        outputs, inputs, unit, is_grads_batched=True, create_graph=recorded, retain_graph=True, allow_unused=True
    )
    # Torch's own zeros for inputs that do not matter would lack the dimension of the outputs.
    full = [
        x.new_zeros(m, *x.shape) if jacobian is None else jacobian for x, jacobian in zip(inputs, found, strict=True)
    ]
    return tuple(jacobian.movedim(0, -2) for jacobian in full)


def enabled() -> torch.enable_grad:
    """Return a context in which gradients are recorded.

    Raises:
        ConfigError: in ``torch.inference_mode()``.
    """
    if torch.is_inference_mode_enabled():
        raise ConfigError(
            "this model's motion is a derivative, which torch.inference_mode() switches off; use torch.no_grad() instead"
        )
    return torch.enable_grad()
