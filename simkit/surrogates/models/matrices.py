"""Learned matrices that depend on the coordinates, or not: mass matrices, friction, and how controls act."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from simkit.initialization import softplus_inverse
from simkit.surrogates.models.network import CoordinateNetwork, NetworkOptions

Dependence = Literal["constant", "network"]
MassDependence = Literal["constant", "network", "jacobian"]
DIAGONAL_FLOOR = 1e-3
"""The smallest diagonal entry of a Cholesky factor, so that the matrix stays invertible."""


class Table(nn.Module):
    """Numbers of a matrix: constants, or a network of the coordinates."""

    def __init__(self, dof: int, outputs: int, dependence: Dependence, options: NetworkOptions) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.zeros(outputs))
        self.network = CoordinateNetwork(dof, outputs, options, bias=False) if dependence == "network" else None

    def forward(self, q: Tensor) -> Tensor:
        """Return [..., outputs], [outputs] where they are constant."""
        return self.constant if self.network is None else self.constant + self.network(q)

    def along(self, q: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        """Return the numbers and their derivatives in time, where q' = rate."""
        if self.network is None:
            return self.constant, torch.zeros_like(self.constant)
        value, moved = self.network.along(q, rate)
        return self.constant + value, moved


class CholeskyFactor(nn.Module):
    """The lower triangular factor L of a positive definite matrix L L^T; its diagonal is softplus(.) plus a floor.

    Constant factors start as sqrt(start) times the unit matrix.
    """

    places: Tensor

    def __init__(
        self, dof: int, dependence: Dependence, options: NetworkOptions, *, start: float, floor: float = DIAGONAL_FLOOR
    ) -> None:
        super().__init__()
        self.dof = dof
        self.floor = floor
        below = dof * (dof - 1) // 2
        self.table = Table(dof, dof + below, dependence, options)
        with torch.no_grad():
            self.table.constant[:dof] = softplus_inverse(torch.tensor(start**0.5 - floor))
        # Where each entry of L comes from: the diagonal first, then the rows below it, then a zero.
        places = torch.full((dof, dof), dof + below, dtype=torch.int64)
        places[range(dof), range(dof)] = torch.arange(dof)
        rows, columns = torch.tril_indices(dof, dof, -1)
        places[rows, columns] = torch.arange(dof, dof + below)
        self.register_buffer("places", places.reshape(-1), persistent=False)

    def forward(self, q: Tensor) -> Tensor:
        """Return L [..., D, D], or [D, D] where it is constant, of coordinates [..., D]."""
        numbers = self.table(q)
        return self._matrix(nn.functional.softplus(numbers[..., : self.dof]) + self.floor, numbers)

    def along(self, q: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        """Return L and its derivative in time, where q' = rate."""
        numbers, moved = self.table.along(q, rate)
        raw = numbers[..., : self.dof]
        factor = self._matrix(nn.functional.softplus(raw) + self.floor, numbers)
        return factor, self._matrix(raw.sigmoid() * moved[..., : self.dof], moved)

    def _matrix(self, diagonal: Tensor, numbers: Tensor) -> Tensor:
        zero = torch.zeros_like(diagonal[..., :1])
        entries = torch.cat([diagonal, numbers[..., self.dof :], zero], dim=-1)
        return entries.index_select(-1, self.places).unflatten(-1, (self.dof, self.dof))

    def constant(self) -> Tensor:
        """Return L [D, D] of a constant matrix."""
        return self(self.table.constant)


class JacobianFactor(nn.Module):
    """The factor (J^T, floor) [D, 3 D] of a mass matrix J^T J + floor^2, with a network J(q) [2 D, D]. J starts as the unit matrix.

    The kinetic energy is that of D points in a plane whose velocities are J v: J is then linear in the cosines and sines of angles,
    where a Cholesky factor is not.
    """

    def __init__(self, dof: int, options: NetworkOptions) -> None:
        super().__init__()
        self.dof = dof
        self.table = Table(dof, 2 * dof * dof, "network", options)
        with torch.no_grad():
            self.table.constant.copy_(torch.eye(dof, 2 * dof).reshape(-1))

    def forward(self, q: Tensor) -> Tensor:
        """Return the factor [..., D, 3 D] of coordinates [..., D]."""
        return self._matrix(self.table(q), DIAGONAL_FLOOR)

    def along(self, q: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factor and its derivative in time, where q' = rate."""
        numbers, moved = self.table.along(q, rate)
        return self._matrix(numbers, DIAGONAL_FLOOR), self._matrix(moved, 0.0)

    def _matrix(self, numbers: Tensor, floor: float) -> Tensor:
        transposed = numbers.unflatten(-1, (self.dof, 2 * self.dof))
        unit = torch.eye(self.dof, dtype=numbers.dtype, device=numbers.device)
        return torch.cat([transposed, (floor * unit).expand(*numbers.shape[:-1], self.dof, self.dof)], dim=-1)


class Port(nn.Module):
    """Generalised forces that do not come from an energy: friction -D(q) v and controls G(q) u.

    D = K K^T is positive semidefinite, so that friction takes energy away.

    Args:
        friction: how D depends on the coordinates; "none" leaves it out.
        controls: U; 0 leaves them out.
        control_matrix: how G [D, U] depends on the coordinates.
    """

    def __init__(
        self,
        dof: int,
        friction: Literal["none", "constant", "network"],
        controls: int,
        control_matrix: Dependence,
        options: NetworkOptions,
    ) -> None:
        super().__init__()
        self.dof = dof
        self.controls = controls
        self.friction = None if friction == "none" else CholeskyFactor(dof, friction, options, start=0.1, floor=0.0)
        self.inputs = Table(dof, dof * controls, control_matrix, options) if controls else None
        if self.inputs is not None:
            with torch.no_grad():
                self.inputs.constant.copy_(torch.eye(dof, controls).reshape(-1))

    def forward(self, q: Tensor, v: Tensor, control: Tensor | None) -> Tensor:
        """Return the force [..., D] at coordinates, velocities [..., D] and control [..., U]."""
        force = torch.zeros_like(v)
        if self.friction is not None:
            factor = self.friction(q)
            force = force - times(factor, times(factor.mT, v))
        if self.inputs is not None and control is not None:
            force = force + times(self.inputs(q).unflatten(-1, (self.dof, self.controls)), control)
        return force


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return the product of matrices [..., n, m] and vectors [..., m]."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def gram(factor: Tensor) -> Tensor:
    """Return F F^T [..., n, n] for a factor F [..., n, k]."""
    return factor @ factor.mT


def solve(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return the solution of matrix x = vector [..., n], for matrices [..., n, n]."""
    return torch.linalg.solve(matrix, vector.unsqueeze(-1)).squeeze(-1)
