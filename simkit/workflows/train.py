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

from simkit.errors import OutputError
from simkit.files import ensure_output_dir, sha256_file, write_text
from simkit.graph import LABELS
from simkit.potential import Potential
from simkit.training.checkpoint import CHECKPOINT
from simkit.training.domain import closest_distances, extrapolation_warnings
from simkit.training.evaluation import labels_to_evaluate, predict
from simkit.training.finetune import inherited, merged
from simkit.training.fit import FitResult, fit
from simkit.training.log import Row
from simkit.training.losses import LearnedWeights
from simkit.training.recipe import Recipe
from simkit.training.timing import long_training
from simkit.workflows.prepare import TrainingData, prepare
from simkit.workflows.report import TrainingReport, write_report
from simkit.workflows.text import epoch_printer, silent

MODEL, RAW_MODEL, RECIPE = "model.safetensors", "model_raw.safetensors", "recipe.yaml"


@dataclass(frozen=True)
class Trained:
    """A trained potential, on the CPU, and what it was trained on.

    Attributes:
        potential: with the best averaged weights; ``info`` says how it came about.
        data: the stores. result: of the training. origins: where the references of each quantity came from.
    """

    potential: Potential
    data: TrainingData
    result: FitResult
    origins: Mapping[str, str]


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
    trained = train_potential(recipe, folder, resume=resume, echo=echo, first=first)
    if not first:
        result = trained.result
        return TrainingReport(folder, {}, result.seconds, result.epochs, trained.potential.num_parameters, None, [])
    return finish(recipe, trained, folder)


def train_potential(
    recipe: Recipe, folder: Path, *, resume: bool, echo: Callable[[str], None], first: bool = True
) -> Trained:
    """Train a potential without evaluating it; recipe, split, log and checkpoint are in ``folder``, the model is not saved.

    Args:
        recipe: with the model section of the file that it starts from, see `inherited`.
        first: whether this is the process that writes.

    Raises:
        ConfigError, DataError, LabelError, OutputError, KeyboardInterrupt: as `train`.
    """
    prepared = prepare(recipe, folder, echo, write=first)
    data, potential = prepared.data, prepared.potential
    resuming = resume and (folder / CHECKPOINT).exists()
    if first and not resuming:  # a resume that is refused must not replace the recipe of what is there
        write_text(folder / RECIPE, recipe.to_yaml())
    if not resuming and (notice := long_training(potential, prepared.objective, prepared.fitted, recipe.training)):
        echo(notice)
    result = fit(
        prepared.model,
        prepared.objective,
        prepared.fitted,
        data.valid,
        recipe.training,
        folder,
        resume=resuming,
        identity=_identity(recipe, data, potential),
        on_epoch=epoch_printer(recipe.training.epochs, echo, _errors),
    )
    potential.to("cpu")
    learned = prepared.model if isinstance(prepared.model, LearnedWeights) else None
    if learned is not None:
        result = _of_potential(result)
    if recipe.start is not None:
        result = merged(potential, result)
    _describe(potential, recipe, data, result)
    if learned is not None:
        potential.info["learned_noise"] = learned.noise()
    return Trained(potential, data, result, prepared.origins)


def _of_potential(result: FitResult) -> FitResult:
    """The result of a fit of `LearnedWeights` with the weights of the potential alone, under their own names."""
    prefix = LearnedWeights.PREFIX
    last = {name.removeprefix(prefix): w for name, w in result.last_weights.items() if name.startswith(prefix)}
    return replace(result, last_weights=last)


def is_first_process() -> bool:
    """True in the process that writes and talks; the others, started by ``torchrun`` or SLURM, only train."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) == 0


def finish(recipe: Recipe, trained: Trained, folder: Path) -> TrainingReport:
    """Save both models, evaluate every part and write metrics, plots and report."""
    potential, data, result = trained.potential, trained.data, trained.result
    predictions = {}
    for name, store in data.parts().items():
        outputs = labels_to_evaluate(potential, store)
        size = recipe.training.evaluation_batch_size
        predictions[name] = predict(potential, store, outputs, size, f"evaluating {name}")
    warnings = []
    if data.test is not None:
        warnings = extrapolation_warnings(potential.info["domain"], closest_distances(data.test), "test set")
    report = write_report(
        folder,
        recipe,
        potential,
        data.parts(),
        predictions,
        result,
        data.splits,
        warnings,
        trained.origins,
        data.duplicates,
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


def _identity(recipe: Recipe, data: TrainingData, potential: Potential) -> str:
    """Hash of all that must stay the same for a resumed run to be the same run; time limits and the device may change."""
    free = {"training": {"max_minutes", "checkpoint_minutes", "device", "tensorboard"}, "start": {"model"}}
    content: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json", exclude=free),
        "options": potential.options,  # of which the recipe may leave some to defaults
        "data": data.data_hash,
        "split": data.splits.hash,
        "version": version("simkit"),
        "start": None if recipe.start is None else sha256_file(recipe.start.model),
        "replay": None if data.replay is None else data.replay.hash(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _errors(row: Row) -> str:
    """The errors of an epoch in the units that people use."""
    side = "valid" if "valid_loss" in row else "train"
    errors = []
    for name, spec in LABELS.items():
        if (key := f"{side}_{name}_mae") in row:
            value, unit = spec.in_error_unit(row[key])
            errors.append(f"{name} {value:.{3 if value < 1000 else 4}g} {unit}")
    return f"{side} MAE: {', '.join(errors)}"
