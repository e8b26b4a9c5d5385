"""What training minimises: errors of derivatives, or of rollouts; for APHYNITY also the norm of what is learned beside the physics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from simkit.config import Options
from simkit.errors import ConfigError
from simkit.surrogates.models.aphynity import APHYNITY
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.rollout import RolloutGradient
from simkit.surrogates.samples import Samples


class ObjectiveOptions(Options):
    """How a model is compared with data."""

    match: Literal["derivative", "rollout"] = Field(
        "derivative", description="time derivatives of single states, or motion from the first state of each window"
    )
    kind: Literal["mse", "mae"] = "mse"
    noise: float = Field(
        0.0,
        ge=0,
        description="standard deviation of noise put on the states that the model starts from, anew at each step",
    )
    window: int = Field(5, ge=2, description="points of a window (rollout)")
    windows: Literal["all", "one"] = Field(
        "all", description="whether to train on all windows of a trajectory or on one that is drawn (rollout)"
    )
    segment: int | None = Field(
        None,
        ge=2,
        description="points of the segments into which each window is cut, with common ends (multiple shooting); none where not given",
    )
    method: str | None = Field(None, description="of the rollouts; the model's own where not given")
    timestep: float | None = Field(
        None, gt=0, description="longest step of the rollouts; one step to each point where not given"
    )
    gradient: RolloutGradient = "backpropagation"
    fit_weight: float = Field(1.0, gt=0, description="APHYNITY: lambda_0, the first weight of the fit")
    fit_growth: float = Field(
        10.0, ge=0, description="APHYNITY: tau_2 / N_iter, by which the weight grows with the error that is left"
    )

    @model_validator(mode="after")
    def _check(self) -> ObjectiveOptions:
        if self.match == "derivative" and (self.method, self.timestep) != (None, None):
            raise ValueError("method and timestep belong to match: rollout, but match is derivative")
        if self.segment is not None and self.segment > self.window:
            raise ValueError(f"segment must be at most window, {self.window}, but is {self.segment}")
        return self


class Trainee(nn.Module):
    """A model together with what its training has to remember: both go into the checkpoint.

    Attributes:
        model: the model of motion.
        draws: how often noise was drawn, [] int64.
        fit_weight: lambda of APHYNITY, [] float64.
    """

    PREFIX = "model."
    """What the names of the model's own weights begin with here."""
    draws: Tensor
    fit_weight: Tensor

    def __init__(self, model: DynamicsModel, fit_weight: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        self.register_buffer("fit_weight", torch.tensor(fit_weight, dtype=torch.float64))

    def disturbed(self, states: Tensor, noise: float, seed: int) -> Tensor:
        """Return states with noise in training, the states themselves in evaluation; noise is a function of seed and draw."""
        if not (noise and self.training):
            return states
        generator = torch.Generator().manual_seed(seed * 1_000_003 + int(self.draws))
        self.draws += 1
        return states + noise * torch.randn(states.shape, generator=generator, dtype=states.dtype).to(states.device)


class MotionObjective:
    """The mean error of derivatives or of rollouts, over all components of the states.

    For `APHYNITY` it is algorithm 1 of Yin et al. (2021): the mean squared norm of the residual over all states of the data, plus lambda
    times the error of the fit, where lambda grows by ``fit_growth`` times that error at each step; the authors let it grow every N_iter
    steps. In evaluation it is the error of the fit alone. As lambda grows, losses in training cannot be compared between epochs: give
    `simkit.training.fit` validation data, if need be the training data.

    Args:
        seed: of the noise.
    """

    def __init__(self, options: ObjectiveOptions, seed: int = 0) -> None:
        self.options, self.seed = options, seed
        self.label = {"derivative": "derivative", "rollout": "state"}[options.match]

    def counts(self, source: Samples, indices: Tensor) -> dict[str, float]:
        """Return the number of values that are compared in the samples ``indices``."""
        compared = source.states.shape[1] - (self.options.match == "rollout")
        return {self.label: float(len(indices) * compared * source.states.shape[2])}

    def __call__(
        self, model: nn.Module, batch: Samples, counts: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this shard's part of the loss and the sum of absolute errors.

        Args:
            model: a `Trainee`.
        """
        if not isinstance(model, Trainee):
            raise ConfigError(f"surrogates are trained as a Trainee; found {type(model).__name__}")
        error = self._errors(model, batch)
        values = error.square() if self.options.kind == "mse" else error.abs()
        fit = values.sum() / counts[self.label]
        sums = {self.label: error.detach().abs().sum()}
        if not (isinstance(model.model, APHYNITY) and model.model.residual_network is not None and model.training):
            return fit, sums
        pieces = counts[self.label] * len(batch) / error.numel()  # of all shards
        norm = model.model.squared_norm(batch.states).mean(-1).sum() / pieces
        loss = norm + model.fit_weight.clone() * fit
        model.fit_weight += self.options.fit_growth * fit.detach()
        return loss, sums

    def _errors(self, trainee: Trainee, batch: Samples) -> Tensor:
        options, model = self.options, trainee.model
        if options.match == "derivative":
            if batch.derivatives is None:
                raise ConfigError("matching derivatives needs samples with derivatives; make them with single_states")
            states = trainee.disturbed(batch.states, options.noise, self.seed)
            return model.derivative(0.0, states, batch.controls) - batch.derivatives
        start = trainee.disturbed(batch.states[:, 0], options.noise, self.seed)
        controls = None if batch.controls is None else batch.controls.movedim(1, 0)
        found = model.rollout(
            start,
            batch.times,
            method=options.method,
            timestep=options.timestep,
            controls=controls,
            gradient=options.gradient,
        )
        return found[1:] - batch.states.movedim(1, 0)[1:]
