"""The Hamiltonian Generative Network: from the first frames of a film to a latent Hamiltonian system, and back to frames.

P. Toth, D. J. Rezende, A. Jaegle, S. Racaniere, A. Botev & I. Higgins, "Hamiltonian generative networks", ICLR 2020,
arXiv:1909.13789.

| Paper (section 3.1, figure 2) | Here |
| --- | --- |
| q(z given the frames), Gaussian with mean and variance from an encoder of frames stacked on channels | `encode` |
| initial state s0 = f(z) | `initial_state` |
| Hamiltonian network and leapfrog integrator, s(t) = (q(t), p(t)) | ``dynamics``, `rollout` |
| decoder, which sees q(t) only | `decode` |
| prior z ~ N(0, 1), for new films | `sample` |

What differs. The state is a vector, where the paper has feature maps, so that every Hamiltonian of `simkit.surrogates.models` and every
method of `simkit.surrogates.rollout` serves. The paper integrates a general H(q, p) by the leapfrog method, which is neither symplectic
nor reversible for an H that is not separable; here leapfrog runs energies T(p) + V(q) only, for which it is both, and a general H runs by
the implicit midpoint rule. The Hamiltonian starts as oscillators, see `simkit.surrogates.images.energy`. The encoder sees the first
``context`` frames, and the rest of a film is a prediction; ``context=30`` encodes whole films, as figure 2 of the paper shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from simkit.config import Options, parse_options
from simkit.errors import DataError
from simkit.integrators.philox_torch import normals
from simkit.surrogates.images.energy import latent_hamiltonian
from simkit.surrogates.images.networks import SMALLEST, ImageDecoder, ImageEncoder
from simkit.surrogates.models.hamiltonian import HamiltonianNetworkOptions
from simkit.surrogates.models.network import NetworkOptions, perceptron

LEAPFROG = "velocity-verlet"


class HamiltonianGenerativeNetworkOptions(Options):
    """Options of a Hamiltonian Generative Network; the defaults train on a CPU in minutes."""

    context: int = Field(5, ge=1, description="frames that the encoder sees")
    channels: int = Field(3, ge=1)
    size: int = Field(32, description="pixels along a side: 8, 16, 32, 64 ...")
    width: int = Field(32, ge=8, description="feature maps of the convolutions")
    latent: int = Field(16, ge=1, description="length of z")
    dof: int = Field(
        ge=1, description="D, length of q and of p: as many as the system has, or frames after training are wrong"
    )
    slowest: float = Field(0.5, gt=0, description="angular frequency of the slowest oscillator to start from, 1/time")
    fastest: float = Field(4.0, gt=0)
    hamiltonian: HamiltonianNetworkOptions = Field(
        HamiltonianNetworkOptions(form="separable", width=64, layers=2, activation="softplus")
    )

    @field_validator("size")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value < 2 * SMALLEST or value & (value - 1):
            raise ValueError(f"expected a power of two of at least {2 * SMALLEST}")
        return value


class HamiltonianGenerativeNetwork(nn.Module):
    """The model; see `build` and the table above.

    Attributes:
        dynamics: the Hamiltonian network of the latent state (q, p) [..., 2D].
        options, info: for the file; ``info`` is free-form.
    """

    def __init__(self, options: HamiltonianGenerativeNetworkOptions, info: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.options, self.info = options, dict(info or {})
        o = options
        self.encoder = ImageEncoder(o.context * o.channels, o.size, o.width, 2 * o.latent)
        self.to_state = perceptron(o.latent, 2 * o.dof, NetworkOptions(width=64, layers=1, activation="silu"))
        self.dynamics = latent_hamiltonian(o.dof, o.hamiltonian, o.slowest, o.fastest)
        self.decoder = ImageDecoder(o.dof, o.channels, o.size, o.width)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the variance of z, [B, latent] each, from films [B, T, C, H, W] of at least ``context`` frames.

        Raises:
            DataError: if the films are of another shape.
        """
        o = self.options
        if images.dim() != 5 or images.shape[1] < o.context or images.shape[2:] != (o.channels, o.size, o.size):
            raise DataError(
                f"films must be [B, T, {o.channels}, {o.size}, {o.size}] with at least {o.context} frames; found {list(images.shape)}"
            )
        mean, log_variance = self.encoder(images[:, : o.context].flatten(1, 2)).chunk(2, dim=-1)
        return mean, log_variance

    def initial_state(self, z: Tensor) -> Tensor:
        """Return the state [..., 2D] at the first frame."""
        state: Tensor = self.to_state(z)
        return state

    def rollout(
        self, state: Tensor, times: Tensor, *, method: str | None = None, timestep: float | None = None
    ) -> Tensor:
        """Return states at the times, [T, ..., 2D]; by leapfrog with a step per frame where H is separable.

        Args, errors: as for `simkit.surrogates.rollout.rollout`.
        """
        if method is None and self.dynamics.separable() is not None:
            method = LEAPFROG
        return self.dynamics.rollout(state, times, method=method, timestep=timestep)

    def decode(self, states: Tensor) -> Tensor:
        """Return images [..., C, H, W] of states [..., 2D], of which the decoder sees the coordinates."""
        images: Tensor = self.decoder(states[..., : self.options.dof])
        return images

    def energy(self, states: Tensor) -> Tensor:
        """Return the learned Hamiltonian [...] of states [..., 2D]."""
        return self.dynamics.energy(states)

    @torch.no_grad()
    def predict(
        self, images: Tensor, times: Tensor, *, method: str | None = None, timestep: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the films [B, T, C, H, W] at given times, with values from 0 to 1, and the states [B, T, 2D].

        Args:
            images: [B, >= context, C, H, W]; z is the mean that they give.
            times: [T], rising or falling; the first is that of the first image.
            method, timestep: as for `rollout`.
        """
        start = self.initial_state(self.encode(images)[0])
        states = self.rollout(start, times, method=method, timestep=timestep).transpose(0, 1)
        return self.decode(states).clamp(0, 1), states

    @torch.no_grad()
    def sample(self, count: int, times: Tensor, seed: int = 0) -> Tensor:
        """Return new films [count, T, C, H, W], from z of the prior."""
        device = next(self.parameters()).device
        z = latent_noise(
            self.options.latent, torch.arange(count, device=device), torch.zeros((), dtype=torch.int64), seed
        )
        return self.decode(self.rollout(self.initial_state(z), times).transpose(0, 1)).clamp(0, 1)

    def describe(self) -> dict[str, Any]:
        """Everything besides the weights that is needed to rebuild the model."""
        return {"options": self.options.model_dump(mode="json"), "info": self.info}


def latent_noise(length: int, index: Tensor, draw: Tensor, seed: int) -> Tensor:
    """Return standard normal numbers [B, length] float32, a function of the seed, the films' numbers [B] and the number of the draw."""
    words = -(-length // 4)
    atom = index[:, None] * words + torch.arange(words, device=index.device)
    return normals(seed, 0, draw.to(index.device), atom).flatten(1)[:, :length].float()


def build(*, seed: int = 0, info: Mapping[str, Any] | None = None, **options: Any) -> HamiltonianGenerativeNetwork:
    """Build a Hamiltonian Generative Network with random weights, in float32.

    Args:
        seed: of the random weights; the global random state is left alone.
        info: free-form description kept in the model file.
        options: those of `HamiltonianGenerativeNetworkOptions`.

    Raises:
        ConfigError: if a name or value is unknown or out of range.
    """
    parsed = parse_options(HamiltonianGenerativeNetworkOptions, options, "options of a Hamiltonian Generative Network")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the generators of the GPUs
        return HamiltonianGenerativeNetwork(parsed, info)
