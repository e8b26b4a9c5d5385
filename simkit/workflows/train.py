"""From a recipe to a trained, evaluated and documented model: the whole of `simkit train`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_numbers

from simkit.datasets import load as load_dataset
from simkit.datasets.checks import unit_warnings
from simkit.datasets.duplicates import duplicates_across
from simkit.datasets.splits import Splits, codes_split, group_split, random_split, time_split
from simkit.datasets.store import Store
from simkit.errors import ConfigError, DataError, OutputError
from simkit.files import ensure_output_dir, write_text
from simkit.potential import Potential
from simkit.potentials import build
from simkit.training.checkpoint import CHECKPOINT
from simkit.training.domain import closest_distances, extrapolation_warnings
from simkit.training.evaluation import labels_to_evaluate, predict
from simkit.training.fit import FitResult, fit
from simkit.training.log import Row
from simkit.training.losses import PotentialObjective
from simkit.training.recipe import Recipe
from simkit.training.references import set_reference_energies
from simkit.workflows.report import MILLI_UNITS, TrainingReport, write_report

MODEL, RAW_MODEL, RECIPE, SPLIT = "model.safetensors", "model_raw.safetensors", "recipe.yaml", "split.json"
# Beyond this the comparison of all geometries takes longer than most would wait for.
MAX_DUPLICATE_CHECK = 20000


@dataclass(frozen=True)
class TrainingData:
    """The stores of a training, with neighbors, and how they were split."""

    train: Store
    valid: Store | None
    test: Store | None
    splits: Splits
    data_hash: str
    duplicates: int | None

    def parts(self) -> dict[str, Store]:
        """Name -> store of the parts that are not empty."""
        every = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: store for name, store in every.items() if store is not None and len(store)}


def train(
    recipe: Recipe, out: str | Path, *, resume: bool = False, echo: Callable[[str], None] = print
) -> TrainingReport:
    """Train a potential as the recipe says and write model, log, metrics, plots and report into ``out``.

    Args:
        echo: takes what is to be told: the labels found, warnings, the course of the training.

    Raises:
        OutputError: if ``out`` cannot be written or already holds a training that is not to be resumed.
        ConfigError, DataError, LabelError: if recipe or data are unusable.
        KeyboardInterrupt: if interrupted, after a checkpoint has been saved.

    Under ``torchrun`` or SLURM every process calls this; the first writes everything, and the others return a report without metrics.
    """
    folder = ensure_output_dir(out)
    first = is_first_process()
    if not first:
        echo = _silent
    if not resume and any((folder / name).exists() for name in (CHECKPOINT, MODEL)):
        raise OutputError(f"{folder} already holds a training; add --resume to continue it, or choose another folder")
    data = open_data(recipe, folder, echo, write=first)
    potential = build_potential(recipe, data)
    terms = recipe.resolved_loss(list(data.train.labels))
    objective = PotentialObjective(terms)
    objective.check(data.train, potential.outputs)
    if data.valid is not None:
        objective.check(data.valid, potential.outputs)
    origin = set_references(recipe, potential, data.train)
    echo(f"reference energies: {origin}")
    echo(f"{recipe.model.name}: {potential.num_parameters:,} parameters, elements {potential.elements}")
    resuming = resume and (folder / CHECKPOINT).exists()
    if first and not resuming:  # a resume that is refused must not replace the recipe of what is there
        write_text(folder / RECIPE, recipe.to_yaml())
    result = fit(
        potential,
        objective,
        data.train,
        data.valid,
        recipe.training,
        folder,
        resume=resuming,
        identity=_identity(recipe, data),
        on_epoch=_epoch_printer(recipe.training.epochs, echo),
    )
    potential.to("cpu")
    if not first:
        return TrainingReport(folder, {}, result.seconds, result.epochs, potential.num_parameters, None, [])
    _describe(potential, recipe, data, result)
    return finish(recipe, potential, data, result, folder, origin)


def is_first_process() -> bool:
    """True in the process that writes and talks; the others, started by ``torchrun`` or SLURM, only train."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) == 0


def _silent(message: str) -> None:
    """Say nothing."""


def open_data(recipe: Recipe, folder: Path, echo: Callable[[str], None], *, write: bool = True) -> TrainingData:
    """Open, describe, split and check the data; the split is written to the folder, or must equal the one already there."""
    store = load_dataset(recipe.data.name, **recipe.data.options)
    echo(store.describe())
    splits = make_split(recipe, store)
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
        test = load_dataset(recipe.test.name, **recipe.test.options)
        for message in unit_warnings(test):
            echo(f"warning: test set: {message}")
    elif len(splits.test):
        test = store.select(splits.test)
    return TrainingData(
        train=store.select(splits.train).with_neighbors(cutoff),
        valid=store.select(splits.valid).with_neighbors(cutoff) if len(splits.valid) else None,
        test=None if test is None else test.with_neighbors(cutoff),
        splits=splits,
        data_hash=digest,
        duplicates=duplicates,
    )


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


def build_potential(recipe: Recipe, data: TrainingData) -> Potential:
    """Build the recipe's model for the elements of all parts of the data, with heads for what the loss names."""
    elements = sorted({z for store in data.parts().values() for z in store.elements})
    unseen = sorted(set(elements) - set(data.train.elements))
    if unseen:
        raise DataError(
            f"elements with atomic numbers {unseen} are in the validation or test data but not in the training data; "
            "move structures that hold them, or leave them out"
        )
    heads = ["energy", *(["dipole"] if "dipole" in recipe.resolved_loss(list(data.train.labels)) else [])]
    return build(
        recipe.model.name,
        cutoff=recipe.model.cutoff,
        elements=elements,
        outputs=heads,
        anchored=recipe.model.anchored,
        dtype="float64" if recipe.training.precision == "float64" else "float32",
        seed=recipe.model.seed,
        **recipe.model.options,
    )


def set_references(recipe: Recipe, potential: Potential, store: Store) -> str:
    """Set reference energies as the recipe says; return where they came from."""
    references = recipe.model.references
    if isinstance(references, dict):
        unknown = [symbol for symbol in references if symbol not in atomic_numbers]
        if unknown:
            raise ConfigError(f"model.references: {', '.join(unknown)} are not element symbols")
        given = {atomic_numbers[symbol]: energy for symbol, energy in references.items()}
        return set_reference_energies(potential, store, given)
    return set_reference_energies(potential, store, least_squares=references == "least_squares")


def finish(
    recipe: Recipe, potential: Potential, data: TrainingData, result: FitResult, folder: Path, origin: str
) -> TrainingReport:
    """Save both models, evaluate every part and write metrics, plots and report."""
    predictions = {}
    for name, store in data.parts().items():
        outputs = labels_to_evaluate(potential, store)
        size = recipe.training.evaluation_batch_size
        predictions[name] = predict(potential, store, outputs, size, f"evaluating {name}")
    warnings = []
    if data.test is not None:
        warnings = extrapolation_warnings(potential.info["domain"], closest_distances(data.test), "test set")
    report = write_report(
        folder, recipe, potential, data.parts(), predictions, result, data.splits, warnings, origin, data.duplicates
    )
    potential.info["errors"] = report.metrics
    best = {name: value.clone() for name, value in potential.state_dict().items()}
    potential.save(folder / MODEL)
    # The weights of the last step, not averaged, for those who want to continue from them.
    potential.load_state_dict({**best, **{name: value.cpu() for name, value in result.last_weights.items()}})
    potential.save(folder / RAW_MODEL)
    potential.load_state_dict(best)
    return report


def _describe(potential: Potential, recipe: Recipe, data: TrainingData, result: FitResult) -> None:
    """Note in the model what it was trained on, so that the file can say so."""
    potential.info.update(
        data=data.train.name,
        level_of_theory=data.train.info.get("level_of_theory"),
        data_hash=data.data_hash,
        split_hash=data.splits.hash,
        training_structures=len(data.train),
        epochs=result.epochs,
        best_epoch=result.best_epoch,
        domain={"closest": closest_distances(data.train)},
        simkit_version=version("simkit"),
        torch_version=torch.__version__,
    )


def _identity(recipe: Recipe, data: TrainingData) -> str:
    """Hash of all that must stay the same for a resumed run to be the same run; time limits and the device may change."""
    free = {"training": {"max_minutes", "checkpoint_minutes", "device", "tensorboard"}}
    content: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json", exclude=free),
        "data": data.data_hash,
        "split": data.splits.hash,
        "version": version("simkit"),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _epoch_printer(epochs: int, echo: Callable[[str], None]) -> Callable[[Row], None]:
    """Tell about twenty epochs of the whole training, the first ones and the last."""
    every = max(1, epochs // 20)

    def show(row: Row) -> None:
        epoch = int(row["epoch"])
        if epoch > 3 and epoch % every and epoch < epochs:
            return
        side = "valid" if "valid_loss" in row else "train"
        errors = [
            f"{name} {1000 * row[key]:.3g} {unit}"
            for name, unit in MILLI_UNITS.items()
            if (key := f"{side}_{name}_mae") in row
        ]
        echo(f"epoch {epoch:>5}/{epochs}  {side} MAE: {', '.join(errors)}  ({row['seconds']:.0f} s)")

    return show
