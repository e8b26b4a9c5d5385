"""What a Hamiltonian Generative Network is trained for: short codes under a bound on the error of the frames (GECO).

D. J. Rezende & F. Viola, "Taming VAEs", arXiv:1810.00597 (2018): minimise KL(q(z) | N(0, 1)) where the mean squared error per pixel value
is at most tolerance^2, by descent in the weights and ascent in a Lagrange multiplier lambda > 0 of
KL + lambda C with C = error / tolerance^2 - 1. The ascent is by the optimiser of the weights, on log lambda; the paper moves it by a
moving average of C.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from simkit.errors import ConfigError
from simkit.surrogates.images.model import HamiltonianGenerativeNetwork, latent_noise
from simkit.surrogates.images.sequences import ImageBatch, ImageSequences


class Constrained(nn.Module):
    """A model with its Lagrange multiplier and the number of noises drawn, which a checkpoint then holds.

    Args:
        seed: of the noise on z.
    """

    # An optimiser moves each weight by about the learning rate per step; lambda changes by orders of magnitude in that time.
    RATE = 3.0
    draws: Tensor

    def __init__(self, model: HamiltonianGenerativeNetwork, seed: int = 0) -> None:
        super().__init__()
        self.model = model
        self.seed = seed
        self.raw = nn.Parameter(torch.zeros(()))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def multiplier(self) -> Tensor:
        """Return lambda."""
        return torch.exp(self.RATE * self.raw)

    def draw(self, index: Tensor) -> Tensor:
        """Return new noise [B, latent] for the films of these numbers [B]."""
        noise = latent_noise(self.model.options.latent, index, self.draws, self.seed)
        self.draws += 1
        return noise


class GecoObjective:
    """The objective of a `Constrained` model, for `simkit.training.fit`.

    Outside training it is the mean squared error alone. Give `fit` validation data: losses of training with different multipliers do
    not compare.

    Args:
        tolerance: the root of the mean squared error per pixel value that is aimed at; pixel values are from 0 to 1.
        stride: only every stride-th frame is decoded in a step, from a first one that moves on from step to step. Decoding takes most
            of the time.

    Raises:
        ConfigError: if the tolerance or the stride is not positive.
    """

    def __init__(self, tolerance: float = 0.02, stride: int = 1) -> None:
        if not tolerance > 0 or stride < 1:
            raise ConfigError(f"tolerance and stride must be positive; found {tolerance} and {stride}")
        self.tolerance, self.stride = tolerance, stride

    def counts(self, source: ImageSequences, indices: Tensor) -> dict[str, float]:
        """Return the number of pixel values that are compared in the films ``indices``."""
        frames = len(source.times)
        return {"pixel": float(len(indices) * source.values_per_film // frames * (frames // self.stride))}

    def __call__(
        self, model: nn.Module, batch: ImageBatch, counts: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this shard's part of the loss and the sum of absolute errors; see `simkit.training.losses.Objective`."""
        if not isinstance(model, Constrained):
            raise ConfigError(f"the objective of images trains a Constrained model; found {type(model).__name__}")
        network = model.model
        chosen = self._frames(model, batch)
        mean, log_variance = network.encode(batch.images)
        z = mean + torch.exp(log_variance / 2) * model.draw(batch.index) if model.training else mean
        states = network.rollout(network.initial_state(z), batch.times).index_select(0, chosen)
        error = network.decode(states.transpose(0, 1)) - batch.images.index_select(1, chosen)
        sums = {"pixel": error.detach().abs().sum()}
        squared = error.square().sum() / counts["pixel"]
        if not model.training:
            return squared.double(), sums
        share = error.numel() / counts["pixel"]  # of the whole batch that is in this shard
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / len(mean) * share
        constraint = squared / self.tolerance**2 - share
        descent = divergence + model.multiplier().detach() * constraint
        ascent = (model.raw - model.raw.detach()) * constraint.detach()  # zero, with a gradient
        return (descent - ascent).double(), sums

    def _frames(self, model: Constrained, batch: ImageBatch) -> Tensor:
        """The frames to compare; the first ones outside training, so that epochs compare."""
        count = len(batch.times) // self.stride
        frames = torch.arange(count, device=batch.images.device) * self.stride
        return frames + model.draws % self.stride if model.training else frames
