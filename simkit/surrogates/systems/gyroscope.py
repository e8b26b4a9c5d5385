"""A heavy top: a rigid body that turns about a fixed point, in Euler angles and as four points in space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simkit.errors import ConfigError
from simkit.surrogates.systems.base import Array, System
from simkit.surrogates.systems.embedding import Embedding
from simkit.surrogates.systems.linear import cholesky_solve
from simkit.surrogates.systems.protocol import Protocol

FINZI = Protocol(
    source="Finzi, Wang and Wilson 2020, Simplifying Hamiltonian and Lagrangian neural networks via explicit constraints, section 6; "
    "times and initial states as in the authors' gyroscope.py; their body is a mesh that we do not have, ours a choice",
    parts=MappingProxyType({"train": 800, "validation": 100, "test": 100}),
    duration=1.98,
    points=100,
)


class Gyroscope(System):
    """q = (phi, theta, psi), Euler angles z-x-z; with the angular velocity w(q, v) about the body's axes,

        T = sum_k I_k w_k^2 / 2,  w = (phi' sin theta sin psi + theta' cos psi, phi' sin theta cos psi - theta' sin psi,
        phi' cos theta + psi'),  V = m g l cos theta

    (Goldstein, Classical mechanics, sections 4.9 and 5.7). Euler angles are singular where sin theta = 0.

    Args:
        mass: m.
        distance: l, of the center of mass from the fixed point.
        moments: integrals of y_k^2 dm about the center of mass along the three axes of the body; the third points to the center of mass.
        gravity: g.

    Raises:
        ConfigError: if a value but gravity is not positive.
    """

    name = "gyroscope"
    separable = False
    protocols = MappingProxyType({"finzi": FINZI})

    def __init__(
        self,
        mass: float = 0.1,
        distance: float = 1.0,
        moments: Sequence[float] = (0.04, 0.04, 0.005),
        gravity: float = 9.81,
    ) -> None:
        if len(moments) != 3 or min(mass, distance, *moments) <= 0:
            raise ConfigError(
                f"mass, distance and three moments must be positive; found {mass}, {distance}, {tuple(moments)}"
            )
        values = {"mass": mass, "distance": distance, "moments": list(moments), "gravity": gravity}
        super().__init__(3, values)
        self.mass, self.distance, self.moments, self.gravity = mass, distance, tuple(moments), gravity
        first, second, third = moments
        arm = mass * distance**2
        self.inertia = (second + third + arm, first + third + arm, first + second)
        """Moments of inertia (I_1, I_2, I_3) about the fixed point."""
        self.torque = mass * gravity * distance

    def embedding(self) -> CartesianTop:
        return CartesianTop(self.mass, self.distance, self.moments, self.gravity)

    def mass_matrix(self, q: Tensor) -> Tensor:
        frame = _angular_velocity_matrix(q)
        return frame.mT @ (frame * torch.tensor(self.inertia, dtype=q.dtype, device=q.device).unsqueeze(-1))

    def potential(self, q: Tensor) -> Tensor:
        return self.torque * q[..., 1].cos()

    def vector_field(self, t: Tensor | float, state: Tensor) -> Tensor:
        q, p = state.split(3, dim=-1)
        v = self.velocities(q, p)
        w = (_angular_velocity_matrix(q) @ v.unsqueeze(-1)).squeeze(-1)
        spin = w * torch.tensor(self.inertia, dtype=q.dtype, device=q.device)
        theta, psi, rate = q[..., 1], q[..., 2], v[..., 0]
        tilt = rate * (theta.cos() * (spin[..., 0] * psi.sin() + spin[..., 1] * psi.cos()) - spin[..., 2] * theta.sin())
        force = torch.stack(
            [
                torch.zeros_like(tilt),
                tilt + self.torque * theta.sin(),
                spin[..., 0] * w[..., 1] - spin[..., 1] * w[..., 0],
            ],
            dim=-1,
        )
        return torch.cat([v, force], dim=-1)

    def numba_parameters(self) -> Array:
        return np.array([*self.inertia, self.torque])

    @staticmethod
    def field(t: float, state: Any, parameters: Any, out: Any) -> None:  # pragma: no cover - compiled
        i1, i2, i3, torque = parameters
        s, c = math.sin(state[1]), math.cos(state[1])
        sine, cosine = math.sin(state[2]), math.cos(state[2])
        matrix = np.empty((3, 3))
        matrix[0, 0] = s * s * (i1 * sine * sine + i2 * cosine * cosine) + c * c * i3
        matrix[1, 0] = (i1 - i2) * s * sine * cosine
        matrix[1, 1] = i1 * cosine * cosine + i2 * sine * sine
        matrix[2, 0] = i3 * c
        matrix[2, 1] = 0.0
        matrix[2, 2] = i3
        out[:3] = state[3:]
        cholesky_solve(matrix, out[:3])
        w1 = out[0] * s * sine + out[1] * cosine
        w2 = out[0] * s * cosine - out[1] * sine
        w3 = out[0] * c + out[2]
        out[3] = 0.0
        out[4] = out[0] * (c * (i1 * w1 * sine + i2 * w2 * cosine) - i3 * w3 * s) + torque * s
        out[5] = (i1 - i2) * w1 * w2

    def sample(self, count: int, seed: int, protocol: str | Protocol = "") -> Array:
        """Return fast tops: angles uniform in [-1.5, 1.5], phi' in [-4.5, 4.5], theta' in [-0.3, 0.3], psi' = +-1.5 (7 + z), z normal.

        Where |sin theta| < 0.1, and Euler angles are nearly singular, theta becomes theta + 0.3.
        """
        generator = np.random.default_rng(seed)
        q, v = generator.uniform(-1.5, 1.5, (2, count, 3))
        v = v * [3.0, 0.2, 1.0]
        v[:, 2] = generator.choice([-1.5, 1.5], count) * (7 + generator.standard_normal(count))
        q[:, 1] = np.where(np.abs(np.sin(q[:, 1])) < 0.1, q[:, 1] + 0.3, q[:, 1])
        angles = torch.from_numpy(q)
        return torch.cat([angles, self.momenta(angles, torch.from_numpy(v))], dim=-1).numpy()


def _angular_velocity_matrix(q: Tensor) -> Tensor:
    """The matrix B with w = B v, [..., 3, 3]."""
    theta, psi = q[..., 1], q[..., 2]
    zero, one = torch.zeros_like(theta), torch.ones_like(theta)
    first = torch.stack([theta.sin() * psi.sin(), psi.cos(), zero], dim=-1)
    second = torch.stack([theta.sin() * psi.cos(), -psi.sin(), zero], dim=-1)
    return torch.stack([first, second, torch.stack([theta.cos(), zero, one], dim=-1)], dim=-2)


def _rotation(q: Tensor) -> Tensor:
    """R_z(phi) R_x(theta) R_z(psi), [..., 3, 3]: its columns are the axes of the body in space."""
    (cf, ct, cp), (sf, st, sp) = q.cos().unbind(-1), q.sin().unbind(-1)
    rows = [
        [cf * cp - sf * ct * sp, -cf * sp - sf * ct * cp, sf * st],
        [sf * cp + cf * ct * sp, -sf * sp + cf * ct * cp, -cf * st],
        [st * sp, st * cp, ct],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


_PAIRS = ((1, 1), (2, 2), (3, 3), (1, 2), (1, 3), (2, 3))


class CartesianTop(Embedding):
    """The top as its center of mass and the tips of three unit vectors along its axes, [..., 12], with nine constraints.

    Six hold the vectors at right angles and at unit length; three hold the point at distance l below the center of mass in place
    (Finzi, Wang and Wilson 2020, section 5: extended bodies).
    """

    def __init__(self, mass: float, distance: float, moments: Sequence[float], gravity: float) -> None:
        arms = torch.tensor([[-1.0, 1.0, 0.0, 0.0], [-1.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
        points = torch.einsum("k,ki,kj->ij", torch.tensor(moments, dtype=torch.float64), arms, arms)
        points[0, 0] += mass
        super().__init__(torch.kron(points, torch.eye(3, dtype=torch.float64)))
        self.weight, self.distance, self._arms = mass * gravity, distance, arms

    def potential(self, x: Tensor) -> Tensor:
        return self.weight * x[..., 2]

    def potential_gradient(self, x: Tensor) -> Tensor:
        gradient = torch.zeros_like(x)
        gradient[..., 2] = self.weight
        return gradient

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The center of mass [..., 3] and the vectors along the axes [..., 3 axes, 3]."""
        points = x.unflatten(-1, (4, 3))
        return points[..., 0, :], points[..., 1:, :] - points[..., :1, :]

    def constraints(self, x: Tensor) -> Tensor:
        center, axes = self._split(x)
        products = [(axes[..., i - 1, :] * axes[..., j - 1, :]).sum(-1) - float(i == j) for i, j in _PAIRS]
        return torch.cat([torch.stack(products, dim=-1), center - self.distance * axes[..., 2, :]], dim=-1)

    def constraint_jacobian(self, x: Tensor) -> Tensor:
        _, axes = self._split(x)
        arms = self._arms.to(x)
        rows = [
            arms[i - 1][:, None] * axes[..., j - 1, None, :] + arms[j - 1][:, None] * axes[..., i - 1, None, :]
            for i, j in _PAIRS
        ]
        center = torch.zeros_like(arms[0])
        center[0] = 1.0
        joint = (center - self.distance * arms[2])[:, None, None] * torch.eye(3, dtype=x.dtype, device=x.device)
        fixed = joint.permute(1, 0, 2).flatten(-2)
        return torch.cat([torch.stack(rows, dim=-3).flatten(-2), fixed.expand(*x.shape[:-1], 3, 12)], dim=-2)

    def constraint_curvature(self, v: Tensor) -> Tensor:
        _, axes = self._split(v)
        products = [2 * (axes[..., i - 1, :] * axes[..., j - 1, :]).sum(-1) for i, j in _PAIRS]
        return torch.cat([torch.stack(products, dim=-1), torch.zeros_like(v[..., :3])], dim=-1)

    def to_cartesian(self, q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        def points(angles: Tensor) -> Tensor:
            axes = _rotation(angles).mT
            center = self.distance * axes[..., 2:, :]
            return torch.cat([center, center + axes], dim=-2).flatten(-2)

        x, rate = torch.func.jvp(points, (q,), (v,))[:2]
        return x, rate

    def from_cartesian(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        rotation, rate = self._split(x)[1].mT, self._split(v)[1].mT
        spin = rotation.mT @ rate
        w = torch.stack([spin[..., 2, 1], spin[..., 0, 2], spin[..., 1, 0]], dim=-1)
        q = torch.stack(
            [
                torch.atan2(rotation[..., 0, 2], -rotation[..., 1, 2]),
                torch.atan2(rotation[..., 2, :2].norm(dim=-1), rotation[..., 2, 2]),
                torch.atan2(rotation[..., 2, 0], rotation[..., 2, 1]),
            ],
            dim=-1,
        )
        return q, torch.linalg.solve(_angular_velocity_matrix(q), w.unsqueeze(-1)).squeeze(-1)
