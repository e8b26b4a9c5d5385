"""The chance that a simulation succeeds, as a function of its parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simkit.inference.priors import Array


class SuccessModel(nn.Module):
    """A small network for the chance that a simulation at z gives finite outputs.

    An observation exists, so the simulation behind it did not fail: its likelihood is p(success given z) p(x given z, success). Estimators
    of p(x given z) know the second factor alone.
    """

    HIDDEN, STEPS, RATE, DECAY = 32, 400, 1e-2, 1e-3

    def __init__(self, dim: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = nn.Sequential(
                nn.Linear(dim, self.HIDDEN),
                nn.SiLU(),
                nn.Linear(self.HIDDEN, self.HIDDEN),
                nn.SiLU(),
                nn.Linear(self.HIDDEN, 1),
            ).double()

    def log_chance(self, z: Tensor) -> Tensor:
        """Return the log of the chance, [...], for z [..., D] float64; differentiable."""
        return nn.functional.logsigmoid(self.network(z).squeeze(-1))


def learn_success(z: Array, succeeded: Array, seed: int = 0) -> SuccessModel:
    """Fit the chance of success to simulations at z [N, D] that did or did not succeed, [N] bool: cross-entropy, all data at each step."""
    model = SuccessModel(z.shape[1], seed)
    at, target = torch.from_numpy(z), torch.from_numpy(succeeded).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=model.RATE, weight_decay=model.DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, model.STEPS)
    for _ in range(model.STEPS):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model.network(at).squeeze(-1), target)
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()
