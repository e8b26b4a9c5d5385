"""Learning rates as a function of the step, and averaged weights."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from simkit.training.options import TrainingOptions


class LearningRate:
    """Linear warm-up times a constant, a cosine to the minimum, or a factor that falls when validation stalls.

    All but the plateau is a pure function of the step, which is what makes resuming exact.
    """

    def __init__(self, options: TrainingOptions, total_steps: int) -> None:
        self.options = options
        self.total_steps = max(total_steps, 1)
        self.factor = 1.0
        self.best = math.inf
        self.stalled = 0

    def __call__(self, step: int) -> float:
        """Return the learning rate of optimiser step ``step``, counted from 0."""
        o = self.options
        rate = max(o.learning_rate * self.factor, o.minimum_learning_rate)
        if o.schedule == "cosine":
            phase = 0.5 * (1.0 + math.cos(math.pi * min(step / self.total_steps, 1.0)))
            rate = o.minimum_learning_rate + (o.learning_rate - o.minimum_learning_rate) * phase
        return rate * min(1.0, (step + 1) / o.warmup_steps) if o.warmup_steps else rate

    def observe(self, value: float) -> None:
        """Take the validation loss of an epoch; only the plateau schedule listens."""
        if self.options.schedule != "plateau":
            return
        if value < self.best:
            self.best, self.stalled = value, 0
        else:
            self.stalled += self.options.validate_every
        if self.stalled > self.options.plateau_patience:
            self.factor *= self.options.plateau_factor
            self.stalled = 0

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs."""
        return {"factor": self.factor, "best": self.best, "stalled": self.stalled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` was called."""
        self.factor, self.best, self.stalled = state["factor"], state["best"], state["stalled"]


class AveragedWeights:
    """Exponential moving average of a model's trainable parameters, with a short memory at first.

    The decay of update n is ``min(decay, (1 + n) / (10 + n))``, so that a short training is not dominated by its random start.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.source = list(parameters)
        self.average = [p.detach().clone() for p in self.source]

    @torch.no_grad()
    def update(self) -> None:
        """Take one step towards the current weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.source], 1.0 - decay)
        self.updates += 1

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights with the averaged ones; call again to exchange them back."""
        for p, a in zip(self.source, self.average, strict=True):
            current = p.detach().clone()
            p.copy_(a)
            a.copy_(current)

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs."""
        return {"updates": self.updates, "average": self.average}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` was called."""
        self.updates = state["updates"]
        saved: list[Tensor] = state["average"]
        for a, s in zip(self.average, saved, strict=True):
            a.copy_(s)
