"""`StateView`: what a model's states mean physically: where they are compared, and how much energy they truly have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simkit.errors import DataError
from simkit.surrogates.metrics import nearest_angles
from simkit.surrogates.models.base import Coordinates
from simkit.surrogates.systems.base import System
from simkit.surrogates.systems.embedding import Embedding

Array = NDArray[np.float64]


@dataclass(frozen=True)
class StateView:
    """States [S, T, 2 D] of a model, seen through the known system, if there is one.

    Attributes:
        coordinates: of the model: whether the second half of a state are momenta or velocities.
        system: the known system, or None.
        cartesian: whether the first half are Cartesian coordinates of the system's `Embedding`.
    """

    coordinates: Coordinates
    system: System | None = None
    cartesian: bool = False

    def __post_init__(self) -> None:
        if self.cartesian and (self.system is None or self.system.embedding() is None):
            name = "none" if self.system is None else self.system.name
            raise DataError(f"Cartesian coordinates need a known system that has an embedding; found {name}")

    def compared(self, found: Array, true: Array) -> tuple[Array, Array]:
        """Return both sets of states as errors of position and velocity are measured on them.

        Systems with an embedding are compared in Cartesian positions and velocities, as in Finzi et al. 2020; of others that have
        angles, those are brought to the same turn.
        """
        if self.system is None:
            return found, true
        if self._embedding is not None:
            return self._apply(self._positions_and_velocities, found), self._apply(self._positions_and_velocities, true)
        return self.nearest(found, true)

    def nearest(self, found: Array, true: Array) -> tuple[Array, Array]:
        """Return both sets of states with angles brought to the same turn, otherwise as they are."""
        if self.system is None or self.cartesian or not self.system.angular:
            return found, true
        dof = self.system.dof
        q, reference = nearest_angles(found[..., :dof], true[..., :dof])
        return np.concatenate([q, found[..., dof:]], axis=-1), np.concatenate([reference, true[..., dof:]], axis=-1)

    def energy(self, states: Array) -> Array | None:
        """Return the true energy [S, T], or None where no system is known; not finite where the states are not."""
        return None if self.system is None else self._apply(self._energy, states)

    def largest_potential(self, true: Array) -> float | None:
        """Return the scale of potential energies, or None where no system is known.

        Where the coordinates are angles it is the potential energy with everything upright; elsewhere the largest magnitude along the
        true motion.
        """
        if self.system is None:
            return None
        if self.system.angular:
            return float(self.system.potential(torch.full((self.system.dof,), torch.pi, dtype=torch.float64)))
        position = torch.from_numpy(np.ascontiguousarray(true[..., : true.shape[-1] // 2]))
        potential = (
            self._embedding.potential if self.cartesian and self._embedding is not None else self.system.potential
        )
        return float(potential(position).abs().max())

    def motion(self, states: Array, times: Array) -> Array:
        """Return the true motion [S, T, 2 D] from states [S, 2 D].

        Raises:
            DataError: if no system is known, or it cannot be integrated.
        """
        if self.system is None:
            raise DataError("the true motion at other times needs a known system; leave out times to use the data's")
        first = self._apply(self._canonical, states[:, None])[:, 0]
        return self._apply(self._from_canonical, self.system.integrate(first, times))

    @property
    def _embedding(self) -> Embedding | None:
        return None if self.system is None else self.system.embedding()

    def _apply(self, function: Callable[[Tensor], Tensor], states: Array) -> Array:
        """Apply to states; where one is not finite, so is nothing of what comes of it, and the others do not suffer from it."""
        alive = np.asarray(np.isfinite(states).all(axis=-1))
        safe = np.where(alive[..., None], states, states[:, :1])
        result: Array = function(torch.from_numpy(np.ascontiguousarray(safe))).numpy()
        return np.where(alive if result.ndim == alive.ndim else alive[..., None], result, np.nan)

    def _known(self) -> System:
        if self.system is None:
            raise DataError("a known system is needed")
        return self.system

    def _canonical(self, states: Tensor) -> Tensor:
        """The system's own state (q, p)."""
        system, embedding = self._known(), self._embedding
        first, second = states.chunk(2, dim=-1)
        if self.cartesian and embedding is not None:
            v = second if self.coordinates == "velocity" else embedding.velocities(second)
            first, second = embedding.from_cartesian(first, v)
        elif self.coordinates == "canonical":
            return states
        return torch.cat([first, system.momenta(first, second)], dim=-1)

    def _from_canonical(self, states: Tensor) -> Tensor:
        system, embedding = self._known(), self._embedding
        q, p = states.chunk(2, dim=-1)
        if not self.cartesian and self.coordinates == "canonical":
            return states
        v = system.velocities(q, p)
        if self.cartesian and embedding is not None:
            q, v = embedding.to_cartesian(q, v)
            v = v if self.coordinates == "velocity" else embedding.momenta(v)
        return torch.cat([q, v], dim=-1)

    def _positions_and_velocities(self, states: Tensor) -> Tensor:
        system, embedding = self._known(), self._embedding
        first, second = states.chunk(2, dim=-1)
        if embedding is None:
            return states
        if self.cartesian:
            return torch.cat(
                [first, second if self.coordinates == "velocity" else embedding.velocities(second)], dim=-1
            )
        v = second if self.coordinates == "velocity" else system.velocities(first, second)
        return torch.cat(embedding.to_cartesian(first, v), dim=-1)

    def _energy(self, states: Tensor) -> Tensor:
        system, embedding = self._known(), self._embedding
        first, second = states.chunk(2, dim=-1)
        if self.cartesian and embedding is not None:
            return embedding.hamiltonian(
                first, second if self.coordinates == "canonical" else embedding.momenta(second)
            )
        return system.hamiltonian(first, second if self.coordinates == "canonical" else system.momenta(first, second))
