"""`DynamicsModel`: what every model of motion is to training, rollouts and files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from simkit.config import Options
from simkit.errors import ConfigError
from simkit.surrogates.methods.rattle import Constrained
from simkit.surrogates.methods.splitting import Quadratic, Separable
from simkit.surrogates.rollout import RolloutGradient, rollout

Coordinates = Literal["canonical", "velocity", "first-order"]
_SECOND = {
    "canonical": "coordinates and momenta",
    "velocity": "coordinates and velocities",
    "first-order": "coordinates",
}


class DynamicsModel(nn.Module):
    """A model of d state/dt for D degrees of freedom.

    The state [..., 2D] is coordinates and momenta (q, p) where ``coordinates`` is "canonical", coordinates and velocities (q, v) where
    it is "velocity". Where it is "first-order" the state is q alone, [..., D]. Units are those of the training data. Subclasses define
    `derivative`, and the rest where they have it.

    Attributes:
        name: registered name; set by `simkit.surrogates.models.build`, with ``options`` and ``info``, for the file.
        dof: D.
        controls: U, the number of inputs; 0 where there are none.
        hamiltonian_flow: whether the derivative is the symplectic gradient (dH/dp, -dH/dq) of ``energy``.
    """

    unit: Tensor  # has the dtype also of a model whose parts were replaced by functions without parameters
    name: str
    options: Options
    info: dict[str, Any]
    coordinates: Coordinates = "canonical"
    controls: int = 0
    hamiltonian_flow: ClassVar[bool] = False

    def __init__(self, dof: int) -> None:
        super().__init__()
        self.dof = dof
        self.info = {}
        self.register_buffer("unit", torch.ones(()), persistent=False)

    def derivative(self, t: float, state: Tensor, control: Tensor | None = None) -> Tensor:
        """Return d state/dt, [..., 2D].

        Args:
            t: time; only models that know it depend on it.
            state: [..., 2D].
            control: [..., U], for models with controls.
        """
        raise NotImplementedError

    def energy(self, state: Tensor) -> Tensor | None:
        """Return the model's energy [...] of states [..., 2D], or None where it has none."""
        return None

    def separable(self) -> Separable | Quadratic | None:
        """Return the parts of the energy, where it is one of the coordinates plus one of the momenta and nothing else acts."""
        return None

    def constrained(self) -> Constrained | None:
        """Return masses, potential and constraints, for constrained models."""
        return None

    @property
    def state_size(self) -> int:
        """The number of components of a state: 2D, or D for models of first order."""
        return self.dof if self.coordinates == "first-order" else 2 * self.dof

    @property
    def default_method(self) -> str:
        """The method of rollouts where none is named."""
        if self.constrained() is not None:
            return "rattle"
        if self.separable() is not None:
            return "blanes-moan-4"
        return "implicit-midpoint" if self.hamiltonian_flow else "rk4"

    def rollout(
        self,
        state: Tensor,
        times: Tensor,
        *,
        method: str | None = None,
        timestep: float | None = None,
        controls: Tensor | None = None,
        gradient: RolloutGradient = "backpropagation",
    ) -> Tensor:
        """Return the states at the times, [T, ..., 2D]; see `simkit.surrogates.rollout.rollout`, which has further arguments."""
        return rollout(self, state, times, method=method, timestep=timestep, controls=controls, gradient=gradient)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.unit.dtype

    @property
    def num_parameters(self) -> int:
        """The number of trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def describe(self) -> Mapping[str, Any]:
        """Everything besides the weights that is needed to rebuild the model."""
        return {
            "model": self.name,
            "dof": self.dof,
            "options": self.options.model_dump(mode="json"),
            "dtype": str(self.dtype).removeprefix("torch."),
            "info": self.info,
        }

    def check_state(self, state: Tensor) -> None:
        """Raise ConfigError unless the state is [..., 2D] ([..., D] for models of first order) in the dtype of the weights."""
        if state.dim() < 1 or state.shape[-1] != self.state_size or state.dtype != self.dtype:
            raise ConfigError(
                f"the state must be {_SECOND[self.coordinates]} [..., {self.state_size}] in {self.dtype}; found "
                f"{list(state.shape)} {state.dtype}"
            )

    def parts(self, state: Tensor, control: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the two halves of the state, or the whole for models of first order, having checked it and the control.

        Raises:
            ConfigError: if a shape or dtype is not the model's.
        """
        self.check_state(state)
        expected = (*state.shape[:-1], self.controls)
        if (control is None) != (self.controls == 0) or (control is not None and control.shape != expected):
            found = "none" if control is None else str(list(control.shape))
            wanted = f"a control {list(expected)}" if self.controls else "no control"
            raise ConfigError(f"this model takes {wanted}; found {found}")
        return (state,) if self.coordinates == "first-order" else state.chunk(2, dim=-1)

    def split(self, state: Tensor, control: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the two halves of the state of a model of second order; errors as for `parts`."""
        first, second = self.parts(state, control)
        return first, second
