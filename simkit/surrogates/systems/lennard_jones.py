"""Lennard-Jones particles in a periodic box."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simkit.errors import ConfigError
from simkit.surrogates.systems.base import Array, System
from simkit.surrogates.systems.protocol import Protocol

FLUID = Protocol(
    source="no paper: the numbers are a choice of ours; reduced units",
    parts=MappingProxyType({"train": 20, "test": 5}),
    duration=2.0,
    points=101,
    equilibration=2.0,
)


class LennardJonesParticles(System):
    """n particles with U(r) = 4 epsilon ((sigma/r)^12 - (sigma/r)^6), shifted in force and energy to vanish at the cutoff.

    The shifted pair energy is U(r) - U(c) - (r - c) U'(c) for r < c (Toxvaerd and Dyre 2011, J. Chem. Phys. 134, 081102): forces are
    continuous. q is (x_1, y_1, [z_1,] x_2, ...), not wrapped; pairs interact through their nearest images.

    Args:
        particles: n.
        dimensions: 2 or 3.
        density: particles per volume, which sets the box.
        temperature: of the initial velocities, k T in units of epsilon.
        epsilon: depth of the well.
        sigma: its distance.
        mass: of a particle.
        cutoff: at most half the box; half the box where it is None and that is less than 2.5 sigma.

    Raises:
        ConfigError: if values are not positive or the cutoff is larger than half the box.
    """

    name = "lennard_jones"
    tolerance = 1e-8
    protocols = MappingProxyType({"fluid": FLUID})

    def __init__(
        self,
        particles: int = 16,
        dimensions: int = 2,
        density: float = 0.5,
        temperature: float = 1.0,
        epsilon: float = 1.0,
        sigma: float = 1.0,
        mass: float = 1.0,
        cutoff: float | None = None,
    ) -> None:
        if particles < 2 or dimensions not in {2, 3} or min(density, temperature, epsilon, sigma, mass) <= 0:
            raise ConfigError("particles (at least 2), dimensions (2 or 3) and positive values are needed")
        self.box = (particles / density) ** (1 / dimensions)
        cutoff = min(2.5 * sigma, self.box / 2) if cutoff is None else cutoff
        if not 0 < cutoff <= self.box / 2:
            raise ConfigError(
                f"the cutoff must be positive and at most half the box, {self.box / 2:.6g}; found {cutoff}"
            )
        values = {"particles": particles, "dimensions": dimensions, "density": density, "temperature": temperature}
        super().__init__(
            particles * dimensions, values | {"epsilon": epsilon, "sigma": sigma, "mass": mass, "cutoff": cutoff}
        )
        self.particles, self.dimensions, self.temperature = particles, dimensions, temperature
        self.epsilon, self.sigma, self.mass, self.cutoff = epsilon, sigma, mass, cutoff
        sixth = (sigma / cutoff) ** 6
        self.slope = -24 * epsilon * (2 * sixth**2 - sixth) / cutoff
        """U'(c)."""
        self.shift = 4 * epsilon * (sixth**2 - sixth)
        """U(c)."""
        self._first, self._second = torch.triu_indices(particles, particles, 1)

    def surroundings(self) -> dict[str, Any]:
        """Return what a model of particles is told: dimensions, box, cutoff, masses, and sigma as the distance of close contact."""
        box = (self.box,) * self.dimensions
        return {
            "dimensions": self.dimensions,
            "box": box,
            "cutoff": self.cutoff,
            "masses": (self.mass,),
            "contact": self.sigma,
        }

    def mass_matrix(self, q: Tensor) -> Tensor:
        return torch.diag_embed(torch.full_like(q, self.mass))

    def velocities(self, q: Tensor, p: Tensor) -> Tensor:
        return p / self.mass

    def momenta(self, q: Tensor, v: Tensor) -> Tensor:
        return self.mass * v

    def _separations(self, q: Tensor) -> Tensor:
        points = q.unflatten(-1, (-1, self.dimensions))
        d = points[..., self._first, :] - points[..., self._second, :]
        return d - self.box * (d / self.box).round()

    def potential(self, q: Tensor) -> Tensor:
        r = self._separations(q).norm(dim=-1)
        sixth = (self.sigma / r) ** 6
        energy = 4 * self.epsilon * (sixth**2 - sixth) - self.shift - (r - self.cutoff) * self.slope
        return torch.where(r < self.cutoff, energy, 0.0).sum(-1)

    def vector_field(self, t: Tensor | float, state: Tensor) -> Tensor:
        q, p = state.split(self.dof, dim=-1)
        d = self._separations(q)
        r = d.norm(dim=-1, keepdim=True)
        sixth = (self.sigma / r) ** 6
        strength = 24 * self.epsilon * (2 * sixth**2 - sixth) / r + self.slope
        pair = torch.where(r < self.cutoff, strength / r * d, 0.0)
        force = torch.zeros_like(q).unflatten(-1, (-1, self.dimensions))
        force = force.index_add(-2, self._first, pair).index_add(-2, self._second, -pair)
        return torch.cat([p / self.mass, force.flatten(-2)], dim=-1)

    def numba_parameters(self) -> Array:
        return np.array([self.dimensions, self.box, self.epsilon, self.sigma, self.mass, self.cutoff, self.slope])

    @staticmethod
    def field(t: float, state: Any, parameters: Any, out: Any) -> None:  # pragma: no cover - compiled
        dimensions = int(parameters[0])
        box, epsilon, sigma, mass, cutoff, slope = parameters[1:]
        half = state.size // 2
        for k in range(half):
            out[k] = state[half + k] / mass
            out[half + k] = 0.0
        d = np.empty(dimensions)
        for i in range(0, half, dimensions):
            for j in range(0, i, dimensions):
                square = 0.0
                for axis in range(dimensions):
                    d[axis] = state[i + axis] - state[j + axis]
                    d[axis] -= box * np.rint(d[axis] / box)
                    square += d[axis] * d[axis]
                if square >= cutoff * cutoff:
                    continue
                ratio = sigma * sigma / square
                sixth = ratio * ratio * ratio
                strength = 24 * epsilon * (2 * sixth * sixth - sixth) / square + slope / math.sqrt(square)
                for axis in range(dimensions):
                    out[half + i + axis] += strength * d[axis]
                    out[half + j + axis] -= strength * d[axis]

    def sample(self, count: int, seed: int, protocol: str | Protocol = "") -> Array:
        """Return particles near the points of a square or cubic lattice, with Maxwell's velocities and no total momentum.

        Displacements are uniform, up to 5% of the lattice constant along each axis. A protocol lets them forget the lattice first.
        """
        generator = np.random.default_rng(seed)
        per_side = math.ceil(self.particles ** (1 / self.dimensions) - 1e-9)
        spacing = self.box / per_side
        sites = np.stack(np.unravel_index(np.arange(self.particles), (per_side,) * self.dimensions), axis=-1)
        shifts = generator.uniform(-0.05, 0.05, (count, self.particles, self.dimensions))
        positions = spacing * (sites + 0.5 + shifts)
        momenta = math.sqrt(self.mass * self.temperature) * generator.standard_normal(positions.shape)
        momenta -= momenta.mean(axis=1, keepdims=True)
        return np.concatenate([positions.reshape(count, -1), momenta.reshape(count, -1)], axis=1)
