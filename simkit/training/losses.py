"""The objective of a potential: labels, weights, kinds of error, and what is logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from simkit.datasets.store import Store
from simkit.errors import ConfigError, LabelError
from simkit.graph import LABELS, AtomGraph
from simkit.potential import Potential
from simkit.training.options import LossTerm


class Samples(Protocol):
    """What `fit` trains on: a `Store` of structures, the states of a trajectory, or anything that can be cut into batches."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def to(self, device: torch.device) -> Self:
        """Return the samples on a device."""
        ...

    def batch(self, indices: Tensor) -> Any:
        """Return the samples ``indices`` as the objective takes them."""
        ...

    def batches(self, size: int) -> Sequence[Tensor]:
        """Return the indices of all samples in order, ``size`` to a batch, or fewer where samples are large."""
        ...


SamplesT = TypeVar("SamplesT", bound=Samples, contravariant=True)


class Objective(Protocol[SamplesT]):
    """What `fit` minimises; `PotentialObjective` and the surrogates' objectives are of this kind.

    A batch may be shared between processes, so a loss is a sum over the samples of one shard divided by the count of the whole batch:
    the shards' losses and gradients then add up to those of the batch, however it was shared.
    """

    def counts(self, source: SamplesT, indices: Tensor) -> dict[str, float]:
        """Return, per logged error, how many values the samples ``indices`` hold (without building the batch)."""
        ...

    def __call__(self, model: nn.Module, batch: Any, counts: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this shard's part of the loss and, detached, the sum of absolute errors of each logged error."""
        ...


class LearnedWeights(nn.Module):
    """A potential together with the noise of each label, which is learned and weighs the terms of the loss.

    Kendall, Gal & Cipolla, "Multi-task learning using uncertainty to weigh losses", CVPR 2018: a label of noise sigma = exp(s) adds
    ``exp(-2s) e^2 / 2 + s`` for squared errors (Gaussian noise) and ``exp(-s) |e| + s`` for absolute ones (Laplace noise), whose minimum
    is at the size of the errors themselves: what is known well weighs much.

    Args:
        names: the labels, in the order of the objective's terms.
    """

    PREFIX = "potential."
    """What the names of the potential's own weights begin with here."""
    # An optimiser moves each weight by about the learning rate per step; errors fall by orders of magnitude in that time.
    RATE = 10.0

    def __init__(self, potential: Potential, names: Sequence[str]) -> None:
        super().__init__()
        self.potential = potential
        self.names = tuple(names)
        self.raw = nn.Parameter(torch.zeros(len(self.names), dtype=potential.dtype, device=potential.device))

    def log_noise(self) -> Tensor:
        """Return s of each label, [labels] float64."""
        return self.RATE * self.raw.double()

    def noise(self) -> dict[str, float]:
        """Return the noise of each label, in the unit of the loss's errors."""
        return dict(zip(self.names, self.log_noise().detach().exp().tolist(), strict=True))

    def forward(self, graph: AtomGraph, outputs: Sequence[str], *, differentiable: bool = False) -> dict[str, Tensor]:
        """Return what the potential gives."""
        result: dict[str, Tensor] = self.potential(graph, outputs, differentiable=differentiable)
        return result


class PotentialObjective:
    """Weighted errors of energy, forces, stress and whatever other labels a potential gives.

    A model that is a `LearnedWeights` weighs the terms by what it has learned; a term's own weight then multiplies both the error and the
    price of its noise.

    Args:
        terms: label name -> loss term; every label must be in the store and among the outputs of the model.
        spreads: of the labels whose terms are standardised, in their units.
        learned: whether the model will be a `LearnedWeights`.

    Raises:
        ConfigError: if there is no term with a weight above zero, a spread is missing, or weights are to be learned of a Huber loss.
    """

    def __init__(
        self, terms: Mapping[str, LossTerm], spreads: Mapping[str, float] | None = None, *, learned: bool = False
    ) -> None:
        self.terms = {name: term for name, term in terms.items() if term.weight > 0}
        if not self.terms:
            raise ConfigError("the loss has no term with a weight above zero; give one, such as loss.energy.weight=1")
        self.divisors = {
            name: (spreads or {}).get(name, 0.0) if t.standardised else 1.0 for name, t in self.terms.items()
        }
        missing = [name for name, divisor in self.divisors.items() if not divisor > 0]
        if missing:
            raise ConfigError(f"the standardised loss of {', '.join(missing)} needs the spread of the label")
        huber = [name for name, term in self.terms.items() if term.kind == "huber"]
        if learned and huber:
            raise ConfigError(f"weights are learned for losses of kind mse or mae, but loss.{huber[0]}.kind is huber")

    def check(self, store: Store, model_outputs: tuple[str, ...]) -> None:
        """Raise LabelError or ConfigError if the store lacks a label of the loss, or the model an output."""
        check_terms(self.terms, store, model_outputs)

    def counts(self, source: Store, indices: Tensor) -> dict[str, float]:
        """Return the number of values of each label in the structures ``indices``."""
        atoms = int(source.n_atoms[indices].sum())
        return {
            name: float((atoms if LABELS[name].per == "atom" else len(indices)) * _components(name))
            for name in self.terms
        }

    def __call__(
        self, model: nn.Module, batch: AtomGraph, counts: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this shard's part of the loss and the sums of absolute errors."""
        derivatives = "forces" in self.terms or "stress" in self.terms
        # Outside training no derivative of the forces is needed, and keeping its graph would double the memory.
        predicted = model(batch, tuple(self.terms), differentiable=derivatives and model.training)
        weights = batch.weight if "weight" in batch else None
        log_noise = model.log_noise() if isinstance(model, LearnedWeights) else None
        loss = torch.zeros((), dtype=torch.float64, device=batch.z.device)
        sums = {}
        for k, (name, term) in enumerate(self.terms.items()):
            # Subtract in the label's float64: energies are large numbers with small differences.
            error = predicted[name].to(batch[name].dtype) - batch[name]
            sums[name] = error.detach().abs().sum()
            values = _penalty(_scaled(error / self.divisors[name], name, term, batch), term)
            if weights is not None:
                values = values * _spread(weights, name, batch).reshape(-1, *[1] * (values.dim() - 1))
            total = values.sum()
            if log_noise is not None:
                total = _with_noise(total, values.numel(), log_noise[k], term)
            loss = loss + total * (term.weight / counts[name])
        return loss, sums


def check_terms(terms: Mapping[str, LossTerm], store: Store, model_outputs: Sequence[str]) -> None:
    """Raise LabelError or ConfigError if the store lacks a label that has a weight, or the model an output."""
    for name in (name for name, term in terms.items() if term.weight > 0):
        if name not in model_outputs:
            raise ConfigError(
                f"the loss names {name!r}, which the model cannot give; it gives {', '.join(model_outputs)}"
            )
        if name not in store.labels:
            raise LabelError(
                f"the loss names {name!r}, but the data hold {', '.join(store.labels) or 'no labels'}; "
                f"remove it from the loss or label the structures"
            )


def _components(name: str) -> int:
    size = 1
    for n in LABELS[name].shape:
        size *= n
    return size


def _spread(values: Tensor, name: str, batch: AtomGraph) -> Tensor:
    """Per-structure values, repeated for the atoms where the label is per atom."""
    return values.index_select(0, batch.batch) if LABELS[name].per == "atom" else values


def _scaled(error: Tensor, name: str, term: LossTerm, batch: AtomGraph) -> Tensor:
    if not term.per_atom:
        return error
    atoms = (batch.ptr[1:] - batch.ptr[:-1]).to(error.dtype)
    return error / _spread(atoms, name, batch).reshape(-1, *[1] * (error.dim() - 1))


def _penalty(error: Tensor, term: LossTerm) -> Tensor:
    if term.kind == "mse":
        return error.square()
    if term.kind == "mae":
        return error.abs()
    return nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=term.delta)


def _with_noise(total: Tensor, count: int, log_noise: Tensor, term: LossTerm) -> Tensor:
    """The sum over ``count`` values of the negative log-likelihood, without its constant."""
    if term.kind == "mse":
        return 0.5 * total * torch.exp(-2.0 * log_noise) + count * log_noise
    return total * torch.exp(-log_noise) + count * log_noise
