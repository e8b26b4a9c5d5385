"""A small training: clusters labelled by a Lennard-Jones potential, and a student that learns them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simkit import potentials
from simkit.datasets.store import Store
from simkit.graph import AtomGraph
from simkit.potential import Potential
from simkit.training.losses import PotentialObjective
from simkit.training.options import LossTerm, TrainingOptions

CUTOFF = 4.0
TRAIN, VALID, BATCH = 23, 6, 5  # the last batch of an epoch is smaller
STEPS = 5  # in an epoch
TERMS = {"energy": {"weight": 0.1}, "forces": {"weight": 1.0}}
MODEL = {"channels": 16, "layers": 1, "basis": 12}


def clusters(count: int, seed: int) -> Store:
    """Clusters of 3 to 6 atoms near the corners of a cube, labelled by a Lennard-Jones potential."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, 7, count)
    corners = 1.6 * np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), axis=-1).reshape(8, 3)
    pos = np.concatenate([corners[rng.permutation(8)[:n]] + rng.normal(0, 0.1, (n, 3)) for n in sizes])
    z, ptr = rng.choice([10, 18], len(pos)), np.concatenate([[0], np.cumsum(sizes)])
    teacher = potentials.build(
        "lennard_jones", cutoff=CUTOFF, elements=[10, 18], sigma=1.5, epsilon=0.1, dtype="float64"
    )
    labels = teacher(Store(z, pos, ptr).with_neighbors(CUTOFF).batch(torch.arange(count)), ("energy", "forces"))
    return Store(z, pos, ptr, labels)


def training_set() -> Store:
    return clusters(TRAIN, 1).with_neighbors(CUTOFF)


def validation_set() -> Store:
    return clusters(VALID, 2).with_neighbors(CUTOFF)


def student(dtype: str = "float32") -> Potential:
    return potentials.build("painn", cutoff=CUTOFF, elements=[10, 18], dtype=dtype, **MODEL)


def objective() -> PotentialObjective:
    return PotentialObjective({name: LossTerm(**term) for name, term in TERMS.items()})


def options(**changes: Any) -> TrainingOptions:
    """Four epochs with everything that has a state: averaged weights, plateaus that are soon reached, patience."""
    given: dict[str, Any] = {
        "epochs": 4, "batch_size": BATCH, "learning_rate": 5e-3, "schedule": "plateau", "plateau_patience": 1,
        "warmup_steps": 3, "ema_decay": 0.9, "early_stopping": 50, "weight_decay": 0.01, "device": "cpu",
    }  # fmt: skip
    return TrainingOptions(**(given | changes))


class Hooked(PotentialObjective):
    """An objective that does something in the middle of one training step, counted from 1."""

    def __init__(self, step: int, action: Callable[[], Any]) -> None:
        super().__init__(objective().terms)
        self.remaining, self.action = step, action

    def __call__(
        self, model: nn.Module, batch: AtomGraph, counts: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if model.training:
            self.remaining -= 1
            if self.remaining == 0:
                self.action()
        return super().__call__(model, batch, counts)
