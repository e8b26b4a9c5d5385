"""From a recipe to a trained, evaluated and documented model: the whole of `simkit train`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_numbers

from simkit.datasets import load as load_dataset
from simkit.datasets.checks import unit_warnings
from simkit.datasets.duplicates import duplicates_across
from simkit.datasets.splits import PARTS, Splits
from simkit.datasets.store import Store
from simkit.device import resolve_device
from simkit.errors import ConfigError, DataError, OutputError
from simkit.files import ensure_output_dir, sha256_file, write_text
from simkit.graph import LABELS
from simkit.potential import Potential
from simkit.potentials import build, read_header
from simkit.training.checkpoint import CHECKPOINT
from simkit.training.domain import closest_distances, extrapolation_warnings
from simkit.training.evaluation import labels_to_evaluate, predict
from simkit.training.finetune import inherited, merged, start_from, start_messages, start_references
from simkit.training.fit import FitResult, fit
from simkit.training.log import Row
from simkit.training.losses import LearnedWeights, PotentialObjective, check_terms
from simkit.training.recipe import Recipe
from simkit.training.references import label_spread, set_property_standards, set_reference_energies
from simkit.training.replay import duplicates_of, open_replay, with_replay
from simkit.training.splitting import make_split
from simkit.training.targets import heads_for
from simkit.training.timing import long_training
from simkit.workflows.report import TrainingReport, write_report
from simkit.workflows.structures import with_labels
from simkit.workflows.text import silent

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
    replay: Store | None = None
    neighbors: str = "auto"

    def fitted(self) -> Store:
        """What the weights are fitted to: the training structures and those that are replayed."""
        return self.train if self.replay is None else with_replay(self.train, self.replay, self.neighbors)

    def parts(self) -> dict[str, Store]:
        """Name -> store of the parts that are not empty."""
        every = {"train": self.train, "valid": self.valid, "test": self.test, "replay": self.replay}
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
        echo = silent
    if not resume and any((folder / name).exists() for name in (CHECKPOINT, MODEL)):
        raise OutputError(f"{folder} already holds a training; add --resume to continue it, or choose another folder")
    recipe = inherited(recipe)
    data = open_data(recipe, folder, echo, write=first)
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
    resuming = resume and (folder / CHECKPOINT).exists()
    if first and not resuming:  # a resume that is refused must not replace the recipe of what is there
        write_text(folder / RECIPE, recipe.to_yaml())
    if not resuming and (notice := long_training(potential, objective, fitted, recipe.training)):
        echo(notice)
    learned = LearnedWeights(potential, list(objective.terms)) if recipe.loss_weights == "learned" else None
    result = fit(
        potential if learned is None else learned,
        objective,
        fitted,
        data.valid,
        recipe.training,
        folder,
        resume=resuming,
        identity=_identity(recipe, data),
        on_epoch=_epoch_printer(recipe.training.epochs, echo),
    )
    potential.to("cpu")
    if learned is not None:
        result = _of_potential(result)
    if recipe.start is not None:
        result = merged(potential, result)
    if not first:
        return TrainingReport(folder, {}, result.seconds, result.epochs, potential.num_parameters, None, [])
    _describe(potential, recipe, data, result)
    if learned is not None:
        potential.info["learned_noise"] = learned.noise()
    return finish(recipe, potential, data, result, folder, origins)


def _origins_told(origins: Mapping[str, str]) -> list[str]:
    """What was taken from where, a line for each place."""
    lines = []
    for origin in dict.fromkeys(origins.values()):
        names = ", ".join(name for name, other in origins.items() if other == origin)
        lines.append(f"reference energies: {origin}" if names == "energy" else f"references of {names}: {origin}")
    return lines


def _of_potential(result: FitResult) -> FitResult:
    """The result of a fit of `LearnedWeights` with the weights of the potential alone, under their own names."""
    prefix = LearnedWeights.PREFIX
    last = {name.removeprefix(prefix): w for name, w in result.last_weights.items() if name.startswith(prefix)}
    return replace(result, last_weights=last)


def is_first_process() -> bool:
    """True in the process that writes and talks; the others, started by ``torchrun`` or SLURM, only train."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) == 0


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
    return build(
        recipe.model.name,
        cutoff=recipe.model.cutoff,
        elements=elements,
        outputs=heads_for(recipe.resolved_loss(list(data.train.labels))),
        pooling=recipe.model.pooling,
        anchored=recipe.model.anchored,
        dtype="float64" if recipe.training.precision == "float64" else "float32",
        seed=recipe.model.seed,
        **recipe.model.options,
    )


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


def finish(
    recipe: Recipe,
    potential: Potential,
    data: TrainingData,
    result: FitResult,
    folder: Path,
    origins: Mapping[str, str],
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
        folder, recipe, potential, data.parts(), predictions, result, data.splits, warnings, origins, data.duplicates
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
    if data.replay is not None:
        replayed = {"data": data.replay.name, "structures": len(data.replay), "data_hash": data.replay.hash()}
        potential.info["replay"] = replayed


def _identity(recipe: Recipe, data: TrainingData) -> str:
    """Hash of all that must stay the same for a resumed run to be the same run; time limits and the device may change."""
    free = {"training": {"max_minutes", "checkpoint_minutes", "device", "tensorboard"}, "start": {"model"}}
    content: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json", exclude=free),
        "data": data.data_hash,
        "split": data.splits.hash,
        "version": version("simkit"),
        "start": None if recipe.start is None else sha256_file(recipe.start.model),
        "replay": None if data.replay is None else data.replay.hash(),
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
        errors = []
        for name, spec in LABELS.items():
            if (key := f"{side}_{name}_mae") in row:
                value, unit = spec.in_error_unit(row[key])
                errors.append(f"{name} {value:.{3 if value < 1000 else 4}g} {unit}")
        echo(f"epoch {epoch:>5}/{epochs}  {side} MAE: {', '.join(errors)}  ({row['seconds']:.0f} s)")

    return show
