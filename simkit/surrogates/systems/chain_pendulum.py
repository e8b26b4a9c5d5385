"""A chain of point masses on massless rods in a plane, in angles and in Cartesian coordinates; the double pendulum."""

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
from simkit.surrogates.systems.embedding import Embedding, Rods
from simkit.surrogates.systems.linear import cholesky_solve
from simkit.surrogates.systems.protocol import Protocol

FINZI = Protocol(
    source="Finzi, Wang and Wilson 2020, Simplifying Hamiltonian and Lagrangian neural networks via explicit constraints, section 6: "
    "100 points at intervals of 0.03, 800 training, 100 validation and 100 test trajectories; distribution of the initial states "
    "from an earlier version of the authors' chain_pendulum.py; training uses one window of 5 points of each trajectory",
    parts=MappingProxyType({"train": 800, "validation": 100, "test": 100}),
    duration=2.97,
    points=100,
)
LNN_STATES = Protocol(
    source="Cranmer et al. 2020, Lagrangian neural networks, section 4, and the authors' DoublePendulum.ipynb: angles uniform in "
    "[0, 2 pi), angular velocities in [-10, 10); 600,000 states from memory, 1,000 test states a choice of ours",
    parts=MappingProxyType({"train": 600_000, "test": 1_000}),
    duration=0.0,
    points=1,
    initial="states",
)
LNN_ROLLOUT = Protocol(
    source="Cranmer et al. 2020, Lagrangian neural networks, section 4: energy up to t = 100 over 40 initial states (from memory); "
    "angles uniform in [0, 2 pi), angular velocities in [0, 0.1) as in the authors' HyperparameterSearch.py",
    parts=MappingProxyType({"test": 40}),
    duration=100.0,
    points=1001,
    initial="slow",
)
LNN_FIGURE = Protocol(
    source="Cranmer et al. 2020, Lagrangian neural networks: the one trajectory of the authors' experiment_dblpend/data.py, "
    "angles (3 pi/7, 3 pi/4) at rest",
    parts=MappingProxyType({"test": 1}),
    duration=100.0,
    points=1001,
    initial="figure",
)

# The first numbers of NumPy's legacy generator with seed 0, from which the authors make masses (first half) and lengths.
_UNIFORM = (
    0.5488135039273248,
    0.7151893663724195,
    0.6027633760716439,
    0.5448831829968969,
    0.4236547993389047,
    0.6458941130666561,
    0.4375872112626925,
    0.8917730007820798,
    0.9636627605010293,
    0.3834415188257777,
    0.7917250380826646,
    0.5288949197529045,
)


class ChainPendulum(System):
    """n masses, each on a rod from the one before; q are the angles of the rods from the vertical.

    M_jk = mu_max(j,k) l_j l_k cos(q_j - q_k), V = -g sum_j mu_j l_j cos q_j, where mu_j is the mass from j to the end.

    Args:
        links: n.
        masses: [n], from the fixed end. Without them masses and lengths are 0.6 + 0.8 u, with the authors' random u (Finzi et al. 2020,
            chain_pendulum.py), for up to 6 links.
        lengths: [n].
        gravity: g. The paper's value is not in the code that we could read; 9.81 is that of its sister systems, and its times (0.03, 3)
            are those of the earlier code with g = 1 (0.1, 10) over sqrt(9.81).

    Raises:
        ConfigError: if masses or lengths are missing or not positive.
    """

    name = "chain_pendulum"
    separable = False
    angular = True
    protocols = MappingProxyType({"finzi": FINZI})

    def __init__(
        self,
        links: int = 2,
        masses: Sequence[float] | None = None,
        lengths: Sequence[float] | None = None,
        gravity: float = 9.81,
    ) -> None:
        if (masses is None or lengths is None) and not 1 <= links <= len(_UNIFORM) // 2:
            raise ConfigError(
                f"give masses and lengths for a chain of {links} links; the authors' are known for 1 to 6"
            )
        drawn = [0.6 + 0.8 * u for u in _UNIFORM[: 2 * links]]
        masses = drawn[:links][::-1] if masses is None else list(masses)
        lengths = drawn[links:][::-1] if lengths is None else list(lengths)
        if not len(masses) == len(lengths) == links or min(*masses, *lengths) <= 0:
            raise ConfigError(
                f"a chain of {links} links needs {links} positive masses and lengths; found {masses}, {lengths}"
            )
        super().__init__(links, {"links": links, "masses": masses, "lengths": lengths, "gravity": gravity})
        self.masses, self.lengths, self.gravity = np.array(masses), np.array(lengths), gravity
        below = np.cumsum(self.masses[::-1])[::-1]
        index = np.arange(links)
        self._pairs = torch.from_numpy(below[np.maximum.outer(index, index)] * np.outer(lengths, lengths))
        self._torques = torch.from_numpy(gravity * below * self.lengths)

    def embedding(self) -> CartesianChain:
        return CartesianChain(self.masses, self.lengths, self.gravity)

    def mass_matrix(self, q: Tensor) -> Tensor:
        return self._pairs.to(q) * (q.unsqueeze(-1) - q.unsqueeze(-2)).cos()

    def potential(self, q: Tensor) -> Tensor:
        return -(self._torques.to(q) * q.cos()).sum(-1)

    def vector_field(self, t: Tensor | float, state: Tensor) -> Tensor:
        q, p = state.split(self.dof, dim=-1)
        v = self.velocities(q, p)
        inertial = v.unsqueeze(-1) * v.unsqueeze(-2) * self._pairs.to(q) * (q.unsqueeze(-1) - q.unsqueeze(-2)).sin()
        return torch.cat([v, -inertial.sum(-1) - self._torques.to(q) * q.sin()], dim=-1)

    def numba_parameters(self) -> Array:
        return np.concatenate([self._torques.numpy(), self._pairs.numpy().ravel()])

    @staticmethod
    def field(t: float, state: Any, parameters: Any, out: Any) -> None:  # pragma: no cover - compiled
        links = state.size // 2
        matrix = np.empty((links, links))
        for j in range(links):
            out[j] = state[links + j]
            for k in range(j + 1):
                matrix[j, k] = parameters[(j + 1) * links + k] * math.cos(state[j] - state[k])
        v = out[:links]
        cholesky_solve(matrix, v)
        for j in range(links):
            rate = -parameters[j] * math.sin(state[j])
            for k in range(links):
                rate -= v[j] * v[k] * parameters[(j + 1) * links + k] * math.sin(state[j] - state[k])
            out[links + j] = rate

    def sample(self, count: int, seed: int, protocol: str | Protocol = "") -> Array:
        """Return normal angles and angular velocities, disturbed in Cartesian coordinates and put back on the constraints.

        Positions are disturbed by 0.2, velocities are halved and disturbed by 0.4. The projection is `Embedding.project`, in place of
        the authors' joint one of positions and velocities.
        """
        generator = np.random.default_rng(seed)
        angles, rates = torch.from_numpy(generator.standard_normal((2, count, self.dof)))
        chain = self.embedding()
        x, v = chain.to_cartesian(angles, rates)
        shifts = torch.from_numpy(generator.standard_normal((2, *x.shape)))
        x, v = chain.project(x + 0.2 * shifts[0], 0.5 * v + 0.4 * shifts[1])
        q, w = chain.from_cartesian(x, v)
        return torch.cat([q, self.momenta(q, w)], dim=-1).numpy()


class DoublePendulum(ChainPendulum):
    """Two links; the defaults are those of Cranmer et al. 2020: unit masses and lengths, g = 9.8.

    Args:
        masses: [2].
        lengths: [2].
        gravity: g.
    """

    name = "double_pendulum"
    protocols = MappingProxyType({"lnn": LNN_STATES, "lnn-rollout": LNN_ROLLOUT, "lnn-figure": LNN_FIGURE})

    def __init__(
        self, masses: Sequence[float] = (1.0, 1.0), lengths: Sequence[float] = (1.0, 1.0), gravity: float = 9.8
    ) -> None:
        super().__init__(2, masses, lengths, gravity)
        del self.parameters["links"]

    def sample(self, count: int, seed: int, protocol: str | Protocol = "") -> Array:
        """Return states as the `Protocol.initial` of the protocol says: "states", "slow" or "figure"."""
        generator = np.random.default_rng(seed)
        initial = self.resolve(protocol).initial
        q, v = generator.uniform(0, 2 * math.pi, (count, 2)), generator.uniform(-10, 10, (count, 2))
        if initial == "slow":
            v = generator.uniform(0, 0.1, (count, 2))
        elif initial == "figure":
            q, v = np.tile([3 * math.pi / 7, 3 * math.pi / 4], (count, 1)), np.zeros((count, 2))
        angles = torch.from_numpy(q)
        return torch.cat([angles, self.momenta(angles, torch.from_numpy(v))], dim=-1).numpy()


class CartesianChain(Embedding):
    """The chain as points (x_1, y_1, x_2, ...), [..., 2 n], with n fixed distances; y points up and the chain hangs from the origin."""

    def __init__(self, masses: Array, lengths: Array, gravity: float) -> None:
        super().__init__(torch.diag(torch.from_numpy(np.repeat(masses, 2))))
        self.masses, self.lengths, self.gravity = torch.from_numpy(masses), torch.from_numpy(lengths), gravity
        self.rods = Rods(tuple((i - 1, i) for i in range(len(lengths))), tuple(lengths.tolist()))

    def potential(self, x: Tensor) -> Tensor:
        return self.gravity * (self.masses.to(x) * x[..., 1::2]).sum(-1)

    def potential_gradient(self, x: Tensor) -> Tensor:
        gradient = torch.zeros_like(x)
        gradient[..., 1::2] = self.gravity * self.masses.to(x)
        return gradient

    def _rods(self, x: Tensor) -> Tensor:
        """Vectors [..., n, 2] from each point to the next, the first from the origin."""
        points = x.unflatten(-1, (-1, 2))
        return points - torch.nn.functional.pad(points, (0, 0, 1, 0))[..., :-1, :]

    def constraints(self, x: Tensor) -> Tensor:
        return self._rods(x).square().sum(-1) - self.lengths.to(x).square()

    def constraint_jacobian(self, x: Tensor) -> Tensor:
        rods = 2 * self._rods(x)
        links = rods.shape[-2]
        one = torch.eye(links, dtype=x.dtype, device=x.device)
        incidence = one - torch.diag(one.new_ones(links - 1), -1)
        return (incidence.unsqueeze(-1) * rods.unsqueeze(-2)).flatten(-2)

    def constraint_curvature(self, v: Tensor) -> Tensor:
        return 2 * self._rods(v).square().sum(-1)

    def to_cartesian(self, q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        sine, cosine, length = q.sin(), q.cos(), self.lengths.to(q)
        x = torch.stack([length * sine, -length * cosine], dim=-1).cumsum(-2)
        rate = torch.stack([length * cosine * v, length * sine * v], dim=-1).cumsum(-2)
        return x.flatten(-2), rate.flatten(-2)

    def from_cartesian(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        rods, rates = self._rods(x), self._rods(v)
        turning = rods[..., 0] * rates[..., 1] - rods[..., 1] * rates[..., 0]
        return torch.atan2(rods[..., 0], -rods[..., 1]), turning / rods.square().sum(-1)
