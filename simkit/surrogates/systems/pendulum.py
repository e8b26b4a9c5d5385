"""A mathematical pendulum, free, or with friction and a driving torque."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simkit.errors import ConfigError
from simkit.kernels.elementary import cos, sin
from simkit.surrogates.systems.base import Array, System
from simkit.surrogates.systems.protocol import Protocol
from simkit.surrogates.systems.sampling import on_circles
from simkit.surrogates.trajectories import Trajectories, concatenate

HNN = Protocol(
    source="Greydanus et al. 2019, Hamiltonian neural networks, section 3, task 2; times, radii and noise as in the authors' "
    "experiment-pend/data.py: q^2 + p^2 = r^2 with r uniform in [1.3, 2.3], 45 points in [0, 3], noise 0.1",
    parts=MappingProxyType({"train": 25, "test": 25}),
    duration=3.0,
    points=45,
    noise=0.1,
)
APHYNITY = Protocol(
    source="Yin et al. 2021, Augmenting physical models with deep networks, section 4.1; as in the authors' datasets/pendulum.py "
    "and datasets/__init__.py: q^2 + p^2 = r^2 with r uniform in [1.3, 2.3], 40 points at intervals of 0.5",
    parts=MappingProxyType({"train": 25, "test": 25}),
    duration=19.5,
    points=40,
)
DRIVEN = Protocol(
    source="no paper: the numbers are a choice of ours",
    parts=MappingProxyType({"train": 25, "test": 25}),
    duration=30.0,
    points=300,
)
MEASURED = Protocol(
    source="no paper: a choice of ours like the measurement of Schmidt and Lipson 2009, which `load_real_pendulum` reads: "
    "94 seconds at 6 points per second from about 1.4 rad",
    parts=MappingProxyType({"train": 25, "test": 25}),
    duration=94.0,
    points=565,
)
SYMODEN = Protocol(
    source="Zhong, Dey and Chakraborty 2020, Symplectic ODE-Net, section 4 (task 1), for one constant torque of `controlled_data`; "
    "numbers as in the authors' data.py in a copy that we could read: q and p uniform in [-2.5, 2.5], 60 points in [0, 3]",
    parts=MappingProxyType({"train": 25, "test": 25}),
    duration=3.0,
    points=60,
    initial="square",
)


class Pendulum(System):
    """H = p^2 / (2 m l^2) + m g l (1 - cos q); the defaults make it p^2 + 3 (1 - cos q), as in the authors' code.

    Args:
        mass: m.
        length: l.
        gravity: g.
    """

    name = "pendulum"
    angular = True
    protocols = MappingProxyType({"hnn": HNN})

    def __init__(self, mass: float = 0.5, length: float = 1.0, gravity: float = 6.0) -> None:
        super().__init__(1, {"mass": mass, "length": length, "gravity": gravity})
        self.inertia, self.torque = mass * length**2, mass * gravity * length

    def mass_matrix(self, q: Tensor) -> Tensor:
        return torch.full_like(q, self.inertia).unsqueeze(-1)

    def potential(self, q: Tensor) -> Tensor:
        return self.torque * (1 - q.cos()).sum(-1)

    def vector_field(self, t: Tensor | float, state: Tensor) -> Tensor:
        q, p = state.split(1, dim=-1)
        return torch.cat([p / self.inertia, -self.torque * q.sin() + self.external_force(t, state)], dim=-1)

    def numba_parameters(self) -> Array:
        return np.array([self.inertia, self.torque, 0.0, 0.0, 0.0])

    @staticmethod
    def field(t: float, state: Any, parameters: Any, out: Any) -> None:  # pragma: no cover - compiled
        # Not unpacked at once: that may fail, and keeps loops over trajectories from becoming vector instructions.
        inertia, torque, friction = parameters[0], parameters[1], parameters[2]
        drive = parameters[3] * cos(parameters[4] * t)
        velocity = state[1] / inertia
        out[0] = velocity
        out[1] = drive - torque * sin(state[0]) - friction * velocity

    def sample(self, count: int, seed: int, protocol: str | Protocol = "") -> Array:
        return on_circles(count, seed, 1.3, 2.3)


class DampedPendulum(Pendulum):
    """A pendulum with friction: q'' = -omega^2 sin q - alpha q' with unit moment of inertia.

    The defaults are those of APHYNITY: omega = 2 pi / 12, alpha = 0.2. The incomplete physics of that paper leaves the friction out.

    Args:
        frequency: omega, of small free oscillations.
        friction: alpha; its force is -alpha dq/dt.
    """

    name = "damped_pendulum"
    conservative = False
    protocols = MappingProxyType({"aphynity": APHYNITY})

    def __init__(self, frequency: float = 2 * math.pi / 12, friction: float = 0.2) -> None:
        super().__init__(1.0, 1.0, frequency**2)
        self.friction = friction
        self.parameters = {"frequency": frequency, "friction": friction}

    def external_force(self, t: Tensor | float, state: Tensor) -> Tensor:
        return -self.friction * state[..., 1:] / self.inertia

    def numba_parameters(self) -> Array:
        return np.array([self.inertia, self.torque, self.friction, 0.0, 0.0])


class LaboratoryPendulum(DampedPendulum):
    """A pendulum as it is measured: q'' = -(g / l) sin q - alpha q', with the angular velocity in place of a momentum.

    Args:
        length: l, of the mathematical pendulum of the same frequency; metres.
        friction: alpha, 1/s.
        gravity: g, m/s^2.

    Raises:
        ConfigError: if length or gravity is not positive.
    """

    name = "laboratory_pendulum"
    protocols = MappingProxyType({"measured": MEASURED})

    def __init__(self, length: float = 7.3, friction: float = 0.0127, gravity: float = 9.80665) -> None:
        if not (length > 0 and gravity > 0):
            raise ConfigError(f"a pendulum needs a positive length and gravity; found {length} and {gravity}")
        super().__init__(math.sqrt(gravity / length), friction)
        self.parameters = {"length": length, "friction": friction, "gravity": gravity}


class DrivenPendulum(DampedPendulum):
    """A damped pendulum under the torque A cos(w t), which is also its control input [T, 1]; w = 0 makes the torque constant.

    Args:
        frequency: of small free oscillations.
        friction: alpha; its force is -alpha dq/dt.
        amplitude: A.
        drive: w.
        inertia: moment of inertia.
    """

    name = "driven_pendulum"
    protocols = MappingProxyType({"driven": DRIVEN, "symoden": SYMODEN})

    def __init__(
        self,
        frequency: float = 1.0,
        friction: float = 0.25,
        amplitude: float = 0.7,
        drive: float = 2 / 3,
        inertia: float = 1.0,
    ) -> None:
        super().__init__(frequency, friction)
        self.amplitude, self.drive = amplitude, drive
        self.inertia, self.torque = inertia, inertia * frequency**2
        self.parameters = {**self.parameters, "amplitude": amplitude, "drive": drive, "inertia": inertia}

    def external_force(self, t: Tensor | float, state: Tensor) -> Tensor:
        phase = torch.as_tensor(self.drive * t, dtype=state.dtype, device=state.device)
        return super().external_force(t, state) + self.amplitude * phase.cos()

    def controls(self, times: Array) -> Array:
        return self.amplitude * np.cos(self.drive * times)[:, None]

    def numba_parameters(self) -> Array:
        return np.array([self.inertia, self.torque, self.friction, self.amplitude, self.drive])

    def sample(self, count: int, seed: int, protocol: str | Protocol = "") -> Array:
        """Return states as for the damped pendulum, or uniform in [-2.5, 2.5]^2 where the protocol says "square"."""
        if self.resolve(protocol).initial == "square":
            return np.random.default_rng(seed).uniform(-2.5, 2.5, (count, 2))
        return super().sample(count, seed, protocol)


def controlled_data(
    seed: int = 0, torques: Sequence[float] = (-2.0, -1.0, 0.0, 1.0, 2.0), protocol: str | Protocol = "symoden"
) -> dict[str, Trajectories]:
    """Return the parts of a protocol for H = 3 p^2 / 2 + 5 (1 - cos q) under each of several constant torques, the controls.

    The initial states are the same for all torques (Zhong, Dey and Chakraborty 2020; the pendulum of OpenAI Gym).
    """
    sets = []
    for torque in torques:
        system = DrivenPendulum(math.sqrt(15), 0.0, torque, 0.0, 1 / 3)
        plan = system.resolve(protocol)
        sets.append(system.generate(plan, seed).split(plan.parts))
    return {part: concatenate([found[part] for found in sets]) for part in sets[0]}
