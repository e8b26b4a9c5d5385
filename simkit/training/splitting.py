"""Splitting a data set as a recipe says."""

from __future__ import annotations

from simkit.datasets.splits import Splits, codes_split, group_split, random_split, time_split
from simkit.datasets.store import Store
from simkit.errors import ConfigError, DataError
from simkit.training.recipe import Recipe

QM9_SIZES = (110_000, 10_000)
"""Structures to train on and to validate with in the literature on QM9; the rest is for testing."""


def make_split(recipe: Recipe, store: Store) -> Splits:
    """Split a store as the recipe says.

    Raises:
        ConfigError: if the method does not fit the data.
    """
    o, size = recipe.split, len(store)
    if o.method == "file":
        if o.file is None:
            raise ConfigError("split.method is file, but split.file does not name one")
        splits = Splits.load(o.file)
        if splits.size != size:
            raise ConfigError(f"the split {o.file} is for {splits.size} structures, but the data hold {size}")
        return splits
    if o.method == "published":
        if "split" not in store.columns and recipe.data.name == "qm9":
            return random_split(size, *QM9_SIZES, seed=o.seed)
        if "split" not in store.columns:
            raise ConfigError(f"{store.name} comes with no published split; use split.method=random")
        return codes_split(store.columns["split"])
    valid, test = _count(o.valid, size), _count(o.test, size)
    training = _count(o.train, size) if o.train is not None else size - valid - test - 2 * o.gap
    if training < 1:
        raise DataError(
            f"{size} structures leave none for training beside {valid} for validation and {test} for testing"
        )
    if o.method == "random":
        return random_split(size, training, valid, test, seed=o.seed)
    if o.method == "time":
        return time_split(size, training, valid, test, gap=o.gap)
    if o.key == "formula":
        return group_split(store.formulas(), training, valid, test, seed=o.seed)
    if store.groups is None:
        raise ConfigError("split.key is group, but the data have no groups; name the key of info with data.group")
    return group_split(store.groups, training, valid, test, seed=o.seed)


def _count(value: int | float, size: int) -> int:
    return round(value * size) if isinstance(value, float) and value < 1 else int(value)
