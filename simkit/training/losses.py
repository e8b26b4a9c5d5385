"""The objective of a potential: labels, weights, kinds of error, and what is logged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from simkit.datasets.store import Store
from simkit.errors import ConfigError, LabelError
from simkit.graph import LABELS, AtomGraph
from simkit.training.options import LossTerm


class Objective(Protocol):
    """What `fit` minimises; `PotentialObjective` and the surrogates' objectives are of this kind.

    A batch may be shared between processes, so a loss is a sum over the samples of one shard divided by the count of the whole batch:
    the shards' losses and gradients then add up to those of the batch, however it was shared.
    """

    def counts(self, source: Store, indices: Tensor) -> dict[str, float]:
        """Return, per logged error, how many values the samples ``indices`` hold (without building the batch)."""
        ...

    def __call__(
        self, model: nn.Module, batch: AtomGraph, counts: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return this shard's part of the loss and, detached, the sum of absolute errors of each logged error."""
        ...


class PotentialObjective:
    """Weighted errors of energy, forces, stress and dipole.

    Args:
        terms: label name -> loss term; every label must be in the store and among the outputs of the model.

    Raises:
        ConfigError: if there is no term with a weight above zero.
    """

    def __init__(self, terms: Mapping[str, LossTerm]) -> None:
        self.terms = {name: term for name, term in terms.items() if term.weight > 0}
        if not self.terms:
            raise ConfigError("the loss has no term with a weight above zero; give one, such as loss.energy.weight=1")

    def check(self, store: Store, model_outputs: tuple[str, ...]) -> None:
        """Raise LabelError or ConfigError if the store lacks a label of the loss, or the model an output."""
        for name in self.terms:
            if name not in model_outputs:
                raise ConfigError(
                    f"the loss names {name!r}, which the model cannot give; it gives {', '.join(model_outputs)}"
                )
            if name not in store.labels:
                raise LabelError(
                    f"the loss names {name!r}, but the data hold {', '.join(store.labels) or 'no labels'}; "
                    f"remove it from the loss or label the structures"
                )

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
        loss = torch.zeros((), dtype=torch.float64, device=batch.z.device)
        sums = {}
        for name, term in self.terms.items():
            # Subtract in the label's float64: energies are large numbers with small differences.
            error = predicted[name].to(batch[name].dtype) - batch[name]
            sums[name] = error.detach().abs().sum()
            values = _penalty(_scaled(error, name, term, batch), term)
            if weights is not None:
                values = values * _spread(weights, name, batch).reshape(-1, *[1] * (values.dim() - 1))
            loss = loss + values.sum() * (term.weight / counts[name])
        return loss, sums


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
