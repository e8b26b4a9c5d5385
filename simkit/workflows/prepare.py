"""From a recipe to everything that a training starts with: data, potential, objective and reference energies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from ase.data import atomic_numbers
from torch import nn

from simkit.datasets import load as load_dataset
from simkit.datasets.checks import unit_warnings
from simkit.datasets.duplicates import duplicates_across
from simkit.datasets.splits import PARTS, Splits
from simkit.datasets.store import Store
from simkit.device import resolve_device
from simkit.errors import ConfigError, DataError, OutputError
from simkit.potential import Potential
from simkit.potentials import architecture, build, read_header
from simkit.training.finetune import start_from, start_messages, start_references
from simkit.training.losses import LearnedWeights, PotentialObjective, check_terms
from simkit.training.recipe import Recipe
from simkit.training.references import label_spread, set_property_standards, set_reference_energies
from simkit.training.replay import duplicates_of, open_replay, with_replay
from simkit.training.splitting import make_split
from simkit.training.targets import heads_for
from simkit.workflows.structures import with_labels

SPLIT = "split.json"
# Beyond this the comparison of all geometries takes longer than most would wait for.
MAX_DUPLICATE_CHECK = 20000
COUNTED = 100  # structures that tell how many neighbors an atom has


@dataclass(frozen=True)
class TrainingData:
    """The stores of a training, with neighbors, and how they were split."""

    train: Store
    valid: Store | None
    test: Store | None
    splits: Splits
    data_hash: str
    duplicates: int | None
    replay: Store | None = None
    neighbors: str = "auto"

    def fitted(self) -> Store:
        """What the weights are fitted to: the training structures and those that are replayed."""
        return self.train if self.replay is None else with_replay(self.train, self.replay, self.neighbors)

    def parts(self) -> dict[str, Store]:
        """Name -> store of the parts that are not empty."""
        every = {"train": self.train, "valid": self.valid, "test": self.test, "replay": self.replay}
        return {name: store for name, store in every.items() if store is not None and len(store)}


@dataclass(frozen=True)
class Prepared:
    """What `simkit.training.fit` is called with.

    Attributes:
        data: the stores; fitted: what the weights are fitted to.
        potential: with reference energies; model: the potential, or `LearnedWeights` around it.
        objective: the loss; origins: where the references of each quantity came from.
    """

    data: TrainingData
    fitted: Store
    potential: Potential
    model: nn.Module
    objective: PotentialObjective
    origins: dict[str, str]


def prepare(recipe: Recipe, folder: Path, echo: Callable[[str], None], *, write: bool = True) -> Prepared:
    """Open the data, build the potential and set its references.

    Args:
        folder: for the split; see `open_data`.
        echo: takes what is to be told.

    Raises:
        ConfigError, DataError, LabelError: if recipe or data are unusable.
        OutputError: if the folder holds another split.
    """
    data = open_data(recipe, folder, echo, write=write)
    fitted = data.fitted()
    potential = build_potential(recipe, data)
    objective = make_objective(recipe, fitted, potential)
    if data.valid is not None:
        objective.check(data.valid, potential.outputs)
    origins = set_references(recipe, potential, fitted)
    for message in _origins_told(origins):
        echo(message)
    echo(f"{recipe.model.name}: {potential.num_parameters:,} parameters, elements {potential.elements}")
    for line in start_messages(potential, data.data_hash, data.splits.hash):
        echo(line)
    learned = recipe.loss_weights == "learned"
    model = LearnedWeights(potential, list(objective.terms)) if learned else potential
    return Prepared(data, fitted, potential, model, objective, origins)


def open_data(recipe: Recipe, folder: Path, echo: Callable[[str], None], *, write: bool = True) -> TrainingData:
    """Open, describe, split and check the data; the split is written to the folder, or must equal the one already there."""
    wanted = list(recipe.resolved_loss(()))
    store = load_dataset(recipe.data.name, **with_labels(recipe.data.name, recipe.data.options, wanted))
    echo(store.describe())
    splits = make_split(recipe, store)
    parts = ", ".join(f"{len(getattr(splits, part)):,} {part}" for part in PARTS)
    echo(f"split ({splits.method}): {parts} of {splits.size:,}")
    path = folder / SPLIT
    if path.exists() and Splits.load(path).hash != splits.hash:
        raise OutputError(f"{path} holds another split than the recipe gives; the data or the recipe changed")
    if write:
        splits.save(path)
    duplicates = None
    if len(store) <= MAX_DUPLICATE_CHECK and (len(splits.valid) or len(splits.test)):
        duplicates = len(duplicates_across(store, splits))
        if duplicates:
            echo(
                f"warning: {duplicates} geometries stand in two parts of the split; the errors will look better than they are"
            )
    digest = store.hash()
    cutoff = recipe.model.cutoff
    test = None
    if recipe.test is not None:
        test = load_dataset(recipe.test.name, **with_labels(recipe.test.name, recipe.test.options, wanted))
        for message in unit_warnings(test):
            echo(f"warning: test set: {message}")
    elif len(splits.test):
        test = store.select(splits.test)
    # On a GPU a step must not wait for the number of pairs that it finds.
    mode = "stored" if resolve_device(recipe.training.device).type == "cuda" else "auto"
    train, replay = store.select(splits.train), None
    if recipe.start is not None and recipe.start.replay is not None:
        labels = list(recipe.resolved_loss(list(store.labels)))
        replay = open_replay(recipe.start.replay, train, labels, recipe.split.seed).with_neighbors(cutoff)
        held_out = [part for part in (test, store.select(splits.valid) if len(splits.valid) else None) if part]
        echo(f"replay: {len(replay)} structures of {replay.name} beside {len(train)} new ones")
        if len(replay) + sum(map(len, held_out)) <= MAX_DUPLICATE_CHECK and (same := duplicates_of(replay, held_out)):
            echo(f"warning: {same} geometries are replayed and held out; the errors will look better than they are")
    return TrainingData(
        train=train.with_neighbors(cutoff, mode),
        valid=store.select(splits.valid).with_neighbors(cutoff, mode) if len(splits.valid) else None,
        test=None if test is None else test.with_neighbors(cutoff),
        splits=splits,
        data_hash=digest,
        duplicates=duplicates,
        replay=replay,
        neighbors=mode,
    )


def build_potential(recipe: Recipe, data: TrainingData) -> Potential:
    """Build the recipe's model for the elements of all parts of the data, with heads for what the loss names."""
    elements = sorted({z for store in data.parts().values() for z in store.elements})
    known = read_header(recipe.start.model)["elements"] if recipe.start is not None else []
    unseen = sorted({*elements} - {*data.train.elements, *known})
    if unseen:
        raise DataError(
            f"elements with atomic numbers {unseen} are in the validation or test data but not in the training data; "
            "move structures that hold them, or leave them out"
        )
    if recipe.start is not None:
        return start_from(recipe.start, elements, recipe.model.seed)
    options = dict(recipe.model.options)
    if "neighbors" in architecture(recipe.model.name)[1].model_fields:
        options.setdefault("neighbors", _mean_neighbors(data.train))
    return build(
        recipe.model.name,
        cutoff=recipe.model.cutoff,
        elements=elements,
        outputs=heads_for(recipe.resolved_loss(list(data.train.labels))),
        pooling=recipe.model.pooling,
        anchored=recipe.model.anchored,
        dtype="float64" if recipe.training.precision == "float64" else "float32",
        seed=recipe.model.seed,
        **options,
    )


def _mean_neighbors(store: Store) -> float:
    """The mean number of neighbors of an atom, of `COUNTED` structures or all, at least 1."""
    some = torch.linspace(0, len(store) - 1, min(len(store), COUNTED)).round().long()
    graph = store.batch(some)
    return max(1.0, round(graph.edge_index.shape[1] / graph.num_nodes, 1))


def make_objective(recipe: Recipe, store: Store, potential: Potential) -> PotentialObjective:
    """Return the recipe's objective for training on a store.

    Raises:
        ConfigError, LabelError: if the potential or the store lack what the loss names.
    """
    terms = recipe.resolved_loss(list(store.labels))
    check_terms(terms, store, potential.outputs)
    spreads = {name: label_spread(store, name) for name, t in terms.items() if t.standardised and t.weight > 0}
    return PotentialObjective(terms, spreads, learned=recipe.loss_weights == "learned")


def set_references(recipe: Recipe, potential: Potential, store: Store) -> dict[str, str]:
    """Set reference energies and those of properties as the recipe says; return for each where they came from."""
    least_squares = recipe.model.references == "least_squares"
    if recipe.start is not None:
        return start_references(potential, store, recipe.start)
    if "energy" in potential.heads:
        origins = {"energy": _set_energies(recipe, potential, store)}
        if recipe.model.scale != "auto":
            potential.scale.fill_(recipe.model.scale)
    elif isinstance(recipe.model.references, dict) or recipe.model.scale != "auto":
        raise ConfigError("model.references and model.scale are of energies, but the model gives none; leave them out")
    else:
        origins = {}
    return origins | set_property_standards(potential, store, least_squares=least_squares)


def _set_energies(recipe: Recipe, potential: Potential, store: Store) -> str:
    references = recipe.model.references
    if isinstance(references, dict):
        unknown = [symbol for symbol in references if symbol not in atomic_numbers]
        if unknown:
            raise ConfigError(f"model.references: {', '.join(unknown)} are not element symbols")
        given = {atomic_numbers[symbol]: energy for symbol, energy in references.items()}
        return set_reference_energies(potential, store, given)
    return set_reference_energies(potential, store, least_squares=references == "least_squares")


def _origins_told(origins: Mapping[str, str]) -> list[str]:
    """What was taken from where, a line for each place."""
    lines = []
    for origin in dict.fromkeys(origins.values()):
        names = ", ".join(name for name, other in origins.items() if other == origin)
        lines.append(f"reference energies: {origin}" if names == "energy" else f"references of {names}: {origin}")
    return lines
