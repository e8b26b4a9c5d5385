"""Adaptive Runge-Kutta methods from torchdiffeq, for models without structure and for references."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from simkit.errors import MissingDependencyError

METHODS = ("bosh3", "dopri5", "dopri8")
"""Orders 3, 5 and 8: P. Bogacki & L. F. Shampine (1989); J. R. Dormand & P. J. Prince (1980); P. J. Prince & J. R. Dormand (1981)."""


class _Motion(nn.Module):
    """The model under a constant control, in the form that torchdiffeq takes."""

    def __init__(self, model: nn.Module, control: Tensor | None) -> None:
        super().__init__()
        self.model = model
        self.control = control

    def forward(self, t: Tensor, state: Tensor) -> Tensor:
        """Return the time derivative of the state."""
        derivative: Any = self.model.derivative
        return derivative(float(t.detach()), state, self.control)


def odeint(
    model: nn.Module,
    state: Tensor,
    times: Tensor,
    control: Tensor | None,
    *,
    method: str,
    rtol: float,
    atol: float,
    gradient: Literal["backpropagation", "adjoint"],
) -> Tensor:
    """Return the states at the times, [T, ..., 2D]; the first is the given one.

    Raises:
        MissingDependencyError: without torchdiffeq.
    """
    try:
        import torchdiffeq
    except ImportError:
        raise MissingDependencyError(
            f"the method {method} needs torchdiffeq; install it with: pip install simkit[ode]"
        ) from None
    motion = _Motion(model, control)
    # Steps end at the times: torchdiffeq's interpolation between steps is of fourth order, and no tolerance controls its error.
    ends = {"step_t": times}
    if gradient == "adjoint":
        leaves = [*model.parameters(), *([] if control is None else [control])]
        parameters = tuple(leaf for leaf in leaves if leaf.requires_grad)
        return torchdiffeq.odeint_adjoint(
            motion, state, times, rtol=rtol, atol=atol, method=method, options=ends, adjoint_params=parameters
        )
    return torchdiffeq.odeint(motion, state, times, rtol=rtol, atol=atol, method=method, options=ends)
