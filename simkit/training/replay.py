"""Replay: structures of an earlier data set among the new ones, so that fine-tuning does not make the model forget them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from simkit.datasets import load
from simkit.datasets.duplicates import duplicates_across
from simkit.datasets.splits import Splits
from simkit.datasets.store import Store, concatenate
from simkit.errors import DataError, LabelError
from simkit.training.recipe import ReplayOptions


def open_replay(options: ReplayOptions, train: Store, labels: Sequence[str], seed: int) -> Store:
    """Open the earlier data and draw so many structures that they make up the fraction asked for.

    Args:
        train: the new training data.
        labels: what the loss names.
        seed: of the draw.

    Raises:
        DataError: if the two are not of one level of theory, or the earlier data hold too few structures.
        LabelError: if the earlier data lack a label.
    """
    old = load(options.data.name, **options.data.options)
    theory, other = train.info.get("level_of_theory"), old.info.get("level_of_theory")
    if theory != other:
        raise DataError(
            f"start.replay: {old.name} is of the level of theory {other or 'not stated'}, {train.name} of {theory or 'not stated'}; one "
            "model cannot learn both: label the structures to replay with the method of the new ones, or state level_of_theory of both"
        )
    missing = [name for name in labels if name not in old.labels]
    if missing:
        raise LabelError(
            f"start.replay: the loss names {', '.join(missing)}, but {old.name} has {', '.join(old.labels) or 'no labels'}"
        )
    count = max(1, round(len(train) * options.fraction / (1.0 - options.fraction)))
    if count > len(old):
        raise DataError(
            f"start.replay: a fraction of {options.fraction} beside {len(train)} new structures takes {count}, but {old.name} holds "
            f"{len(old)}; lower the fraction"
        )
    return old.select(torch.randperm(len(old), generator=torch.Generator().manual_seed(seed))[:count])


def duplicates_of(replay: Store, held_out: Sequence[Store]) -> int:
    """Return how many pairs of a replayed structure and one that is held out for validation or testing are the same geometry."""
    if not held_out:
        return 0
    everything = concatenate([_with_labels(store, []) for store in (replay, *held_out)], {"name": "replay"})
    others = np.arange(len(replay), len(everything))
    splits = Splits(np.arange(len(replay)), others, others[:0], len(everything), "replay")
    return len(duplicates_across(everything, splits))


def with_replay(train: Store, replay: Store, mode: str = "auto") -> Store:
    """Return one store of the new and the replayed structures, with the labels that both have.

    Args:
        mode: of its neighbors, if ``train`` has them; see `Store.with_neighbors`.
    """
    labels = [name for name in train.labels if name in replay.labels]
    both = concatenate([_with_labels(train, labels), _with_labels(replay, labels)], train.info)
    return both if train.neighbors is None else both.with_neighbors(train.neighbors.cutoff, mode)


def _with_labels(store: Store, labels: Sequence[str]) -> Store:
    kept = {name: store.labels[name] for name in labels}
    return Store(store.z, store.pos, store.ptr, kept, cell=store.cell, pbc=store.pbc, info=store.info)
