"""One run of a scheme on tensors: its substeps one by one, forwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from simkit.errors import ConfigError
from simkit.integrators import philox, philox_torch
from simkit.integrators.scheme import Operator, Scheme, Substep

Force = Callable[..., Tensor]
"""force(positions, *parameters) -> forces, all [*batch, N, D]."""


@dataclass(frozen=True)
class Noise:
    """Noise operators, v = decay v + spread R, one after the other; factors broadcast with the velocities.

    Attributes:
        decays, spreads: one tensor for each noise operator of a step.
        seed: of the random numbers.
        replica: [*batch, 1] and atom: [N] int64, what the numbers are keyed by.
    """

    decays: tuple[Tensor, ...]
    spreads: tuple[Tensor, ...]
    seed: int
    replica: Tensor
    atom: Tensor

    def normal(self, like: Tensor, step: int, stream: int) -> Tensor:
        """The standard normal numbers of one noise operator, of the shape and type of the velocities."""
        if like.device.type == "cpu":  # the compiled generator takes a fraction of the time
            four = torch.from_numpy(philox.normals(self.seed, step, self.replica.numpy(), self.atom.numpy(), stream))
        else:
            four = philox_torch.normals(self.seed, step, self.replica, self.atom, stream)
        return four[..., : like.shape[-1]].to(like.dtype)


@dataclass(frozen=True)
class Flow:
    """A scheme, and all that it needs besides the state and the parameters of the force.

    Attributes:
        timestep, inverse_masses: in shapes that broadcast with positions.
    """

    scheme: Scheme
    force: Force
    timestep: Tensor
    inverse_masses: Tensor
    noise: Noise | None
    first_step: int
    steps: int

    @property
    def substeps(self) -> list[tuple[Substep, int]]:
        """The substeps of one step, each with its place among the noise operators."""
        seen = 0
        numbered = []
        for substep in self.scheme.substeps:
            numbered.append((substep, seen))
            seen += substep.operator is Operator.NOISE
        return numbered


def run_forward(flow: Flow, x: Tensor, v: Tensor, parameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return positions and velocities after all steps. A force is evaluated where the positions have changed since the last."""
    x, v = x.clone(), v.clone()
    force: Tensor | None = None
    for step in range(flow.first_step, flow.first_step + flow.steps):
        for substep, stream in flow.substeps:
            if substep.operator is Operator.DRIFT:
                x = x + substep.coefficient * flow.timestep * v
                force = None
            elif substep.operator is Operator.KICK:
                if force is None:
                    force = flow.force(x, *parameters)
                    if force.shape != x.shape:
                        raise ConfigError(
                            f"the force must be like positions, {list(x.shape)}; found {list(force.shape)}"
                        )
                v = v + substep.coefficient * flow.timestep * flow.inverse_masses * force
            elif flow.noise is not None:
                noise = flow.noise
                v = noise.decays[stream] * v + noise.spreads[stream] * noise.normal(v, step, stream)
    return x, v
