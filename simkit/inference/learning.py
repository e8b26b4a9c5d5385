"""Training of estimators on simulations, by the training loop that potentials have."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from simkit.config import Options
from simkit.errors import ConfigError, DataError
from simkit.inference.direct import DirectEstimator, PosteriorFlow
from simkit.inference.estimator import Estimator, NetworkOptions
from simkit.inference.estimators import ESTIMATORS
from simkit.inference.priors import Array
from simkit.inference.simulations import digest
from simkit.inference.simulator import Observable
from simkit.inference.width import choose_widths
from simkit.training.fit import FitResult, fit
from simkit.training.options import TrainingOptions

FEWEST = 20
"""Simulations that gave finite outputs, below which no network is trained."""
DIRECT_MEMBERS = 3
SMALL, SMALL_DECAY = NetworkOptions(hidden=32, transforms=2), 1.0
"""Of the network that is tried beside the default one, which may be large enough to learn the noise of few simulations."""


class LearningOptions(Options):
    """How estimators are trained."""

    network: NetworkOptions | None = Field(
        None,
        description="where not given, npe of numbers also tries a small network whose weights decay, and keeps what is likelier on "
        "simulations that neither was trained on",
    )
    weight_decay: float = Field(0.0, ge=0)
    members: int | None = Field(
        None,
        ge=1,
        description="networks of the ensemble, which differ in their start; where not given 3 that learn a posterior, 1 that learns a "
        "likelihood or ratio",
    )
    batch_size: int | None = Field(
        None, ge=2, description="a twentieth of the simulations, from 100 to 500, where not given"
    )
    learning_rate: float = Field(1e-3, gt=0)
    max_epochs: int = Field(500, ge=1)
    patience: int = Field(20, ge=1, description="epochs without improvement before training ends")
    validation: float = Field(0.1, gt=0, lt=0.5, description="share of the simulations that are validated on")
    max_minutes: float | None = Field(None, gt=0, description="for each network")


@dataclass(frozen=True)
class Pairs:
    """Whitened parameters [N, D] beside features [N, K], to train on."""

    u: Tensor
    features: Tensor

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.u)

    def to(self, device: torch.device) -> Pairs:
        """Return the pairs on a device."""
        return Pairs(self.u.to(device), self.features.to(device))

    def batch(self, indices: Tensor) -> Pairs:
        """Return the pairs ``indices``."""
        indices = indices.to(self.u.device)
        return Pairs(self.u[indices], self.features[indices])

    def batches(self, size: int) -> Sequence[Tensor]:
        """Return all indices, at once: losses are means over batches, which must not be of different lengths."""
        return [torch.arange(len(self))]


class EstimatorObjective:
    """The mean of an estimator's loss over a batch."""

    def counts(self, source: Pairs, indices: Tensor) -> dict[str, float]:
        """Return nothing: there is no error besides the loss."""
        return {}

    def __call__(self, model: nn.Module, batch: Pairs, counts: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss."""
        if not isinstance(model, Estimator):
            raise ConfigError(f"expected an estimator; found {type(model).__name__}")
        return model.losses(batch.u, batch.features).mean(), {}


@dataclass(frozen=True)
class _Member:
    """A trained network, how it was trained, and what it was validated on."""

    plan: LearningOptions
    estimator: Estimator
    result: FitResult
    held_out: Pairs

    def loss(self) -> float:
        """Return the least loss on the simulations that were held out."""
        return min(float(row["valid_loss"]) for row in self.result.rows)


def train_members(
    name: str,
    z: Array,
    x: Array,
    observables: Sequence[Observable],
    options: LearningOptions,
    *,
    seed: int = 0,
    bounded: Sequence[bool] = (),
    folder: str | Path | None = None,
) -> tuple[list[Estimator], list[FitResult]]:
    """Train the networks of an ensemble, which are all small ones if the first of those is the better, see `LearningOptions.network`.

    Args:
        name: one of `ESTIMATORS`.
        z: parameters [N, D] in standard normal variables; ``x``: finite outputs [N, K].
        bounded: which parameters have a bounded prior, see `Estimator`.
        folder: for logs and checkpoints, one folder within it per member. A member whose training was cut off there is taken up again.

    Raises:
        DataError: if there are too few simulations, or all their outputs are equal.
        MissingDependencyError: if sbi is not installed.
    """
    if len(z) < FEWEST:
        raise DataError(
            f"only {len(z)} simulations gave finite outputs, and at least {FEWEST} are needed; simulate more, or find out why they fail"
        )
    with tempfile.TemporaryDirectory() as scratch:

        def train(plan: LearningOptions, member: int, place: str) -> _Member:
            network = plan.network or NetworkOptions()
            estimator = ESTIMATORS[name](z.shape[1], observables, network, seed * 1009 + member, bounded)
            pairs, valid = _divided(estimator, z, x, plan, seed)
            return _Member(
                plan, estimator, _train(estimator, pairs, valid, plan, Path(folder or scratch) / place), valid
            )

        first = train(options, 0, "member-0")
        if name == PosteriorFlow.name and options.network is None and all(o.kind == "vector" for o in observables):
            small = options.model_copy(update={"network": SMALL, "weight_decay": SMALL_DECAY})
            first = min(first, train(small, 0, "member-0-small"), key=_Member.loss)
        members = [first] + [train(first.plan, k, f"member-{k}") for k in range(1, count_members(name, options))]
    direct = [m.estimator for m in members if isinstance(m.estimator, DirectEstimator)]
    if direct:
        choose_widths(direct, [m.held_out.u for m in members], [m.held_out.features for m in members])
    return [m.estimator for m in members], [m.result for m in members]


def count_members(name: str, options: LearningOptions) -> int:
    """Return the number of networks that are trained for an estimator."""
    return options.members or (DIRECT_MEMBERS if issubclass(ESTIMATORS[name], DirectEstimator) else 1)


def _divided(estimator: Estimator, z: Array, x: Array, options: LearningOptions, seed: int) -> tuple[Pairs, Pairs]:
    """Adapt an estimator to simulations; return those to train on and those to validate on, the same for all members."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(z), generator=generator)
    pairs = Pairs(*estimator.adapt(z, x, generator))
    valid = max(2, round(options.validation * len(z)))
    return pairs.batch(order[valid:]), pairs.batch(order[:valid])


def _train(estimator: Estimator, train: Pairs, valid: Pairs, options: LearningOptions, out: Path) -> FitResult:
    training = TrainingOptions(
        epochs=options.max_epochs,
        batch_size=min(options.batch_size or min(max((len(train) + len(valid)) // 20, 100), 500), len(train)),
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        schedule="plateau",
        plateau_patience=max(1, options.patience // 2),
        early_stopping=options.patience,
        warmup_steps=50,
        clip_norm=5.0,
        ema_decay=0.99,
        max_minutes=options.max_minutes,
        device="cpu",
        seed=estimator.seed,
    )
    identity = f"{estimator.name} {options.model_dump_json()} {estimator.seed} {digest(train.u.numpy(), train.features.numpy())}"
    resume = (out / "checkpoint.pt").exists()
    return fit(estimator, EstimatorObjective(), train, valid, training, out, resume=resume, identity=identity)
