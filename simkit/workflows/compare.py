"""Several architectures trained on the same data under the same wall-clock budget: the whole of `simkit compare`."""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simkit.errors import ConfigError, DataError, OutputError, SimkitError
from simkit.files import ensure_output_dir, write_json, write_text
from simkit.potentials import load
from simkit.training.recipe import Recipe, read_recipe
from simkit.workflows.compare_report import Comparison, ModelResult, summary, write_comparison
from simkit.workflows.cost import TrainingCost, measure_step, measure_training
from simkit.workflows.prepare import TrainingData, open_data
from simkit.workflows.structures import read_structure, write_structures
from simkit.workflows.text import silent
from simkit.workflows.train import MODEL, RECIPE, train
from simkit.workflows.verify import check_potential

if TYPE_CHECKING:
    from ase import Atoms

    from simkit.datasets.store import Store
    from simkit.workflows.report import TrainingReport

RESULT, COST, ERROR, STRUCTURE = "result.json", "cost.json", "error.txt", "structure.xyz"
# The schedule ends at this part of the budget, so that it is complete even where steps take a little longer than they did when measured.
PLANNED = 0.95
LEAST_USED = 0.75  # of the budget; less is worth a warning
PRECISIONS = ("float64", "float32")
# What may differ between the recipe that is asked for and the one that a training was planned with.
FREE = {"training": {"epochs", "warmup_steps", "device", "checkpoint_minutes", "tensorboard"}}

Echo = Callable[[str], None]


def compare(
    recipes: Mapping[str, Recipe], out: str | os.PathLike[str], minutes: float, echo: Echo = print
) -> Comparison:
    """Train every recipe for at most ``minutes``, and measure errors, cost and numerical soundness of what comes out.

    The number of epochs, and with it the learning rate schedule, follows from the time per step, which is measured first. The plan
    is kept in the model's ``recipe.yaml``, so that it can be trained again in the same way. Called again after an interruption, the
    comparison goes on: what is finished stays, a training that was interrupted continues. A model that fails does not stop the others.

    Args:
        recipes: by name, with the same data, split and test set (see `comparison_recipes`); ``training.epochs`` and
            ``training.max_minutes`` are set here.
        out: folder for ``comparison.json``, ``comparison.md``, the plots, and one training folder for each model.
        minutes: wall-clock budget of each training, validation included; measuring and the final report come on top.
        echo: takes what is to be told; the course of each training on a terminal only.

    Raises:
        ConfigError: if there is no recipe, no test set, or the budget is not positive.
        OutputError: if the folder cannot be written or holds a comparison with other settings or data.
        KeyboardInterrupt: if interrupted, after a checkpoint has been saved.
    """
    if not recipes:
        raise ConfigError("there is no model to compare; name some, such as painn and schnet")
    if not 0 < minutes < math.inf:
        raise ConfigError(f"the budget must be a positive number of minutes, found {minutes}")
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ConfigError("a comparison runs in one process; start it without torchrun")
    folder = ensure_output_dir(out)
    budgeted = {name: _with(recipe, max_minutes=float(minutes)) for name, recipe in recipes.items()}
    for name, recipe in budgeted.items():
        _check_settings(folder / name, recipe)
    data = open_data(next(iter(budgeted.values())), folder, echo)
    if data.test is None:
        raise ConfigError(
            "a comparison needs a test set; give --test DATA, or set aside a part with --set split.test=0.1"
        )
    described = _describe(data, data.test)
    for name in budgeted:
        _check_data(folder / name, described["hash"])
    write_structures(folder / STRUCTURE, [_first(data.test)])
    results: list[ModelResult] = []
    failures: dict[str, str] = {}
    for name, recipe in budgeted.items():
        try:
            results.append(_run(name, recipe, folder, described["hash"], echo))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one model, the others are still worth having
            failures[name] = _note_failure(folder / name, error)
            echo(f"{name}: failed: {failures[name]}")
        write_comparison(Comparison(folder, float(minutes), described, results, failures))
    return Comparison(folder, float(minutes), described, results, failures)


def plan(recipe: Recipe, cost: TrainingCost) -> Recipe:
    """Return the recipe with as many epochs as fit into its ``training.max_minutes``, and a warm-up of a tenth of them at most.

    Raises:
        ConfigError: if there is no budget, or not even one epoch fits.
    """
    options = recipe.training
    if options.max_minutes is None:
        raise ConfigError("a plan needs a budget; set training.max_minutes")
    steps = math.ceil(cost.structures / options.batch_size)
    epoch = steps * cost.step_seconds + cost.validation_seconds / options.validate_every
    epochs = int(PLANNED * 60 * options.max_minutes / epoch)
    if epochs < 1:
        raise ConfigError(
            f"one epoch takes about {epoch / 60:.2g} minutes, which does not fit into a budget of {options.max_minutes:g}; give "
            f"--budget-minutes {math.ceil(epoch / 60 / PLANNED)} or more, or fewer training structures"
        )
    return _with(recipe, epochs=epochs, warmup_steps=min(options.warmup_steps, epochs * steps // 10))


def _with(recipe: Recipe, **training: Any) -> Recipe:
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=training)})


def _first(store: Store) -> Atoms:
    """The first structure, without labels."""
    atoms = store.to_atoms([0])[0]
    atoms.calc = None
    return atoms


def _describe(data: TrainingData, test: Store) -> dict[str, str]:
    valid = 0 if data.valid is None else len(data.valid)
    return {
        "training": f"{data.train.name}: {len(data.train)} structures, and {valid} for validation",
        "test": f"{test.name}: {len(test)} structures",
        "hash": f"{data.data_hash[:16]} {data.splits.hash[:16]} {test.hash()[:16]}",
    }


def _note_failure(folder: Path, error: Exception) -> str:
    """Return the error as one line; the traceback of an unexpected one goes into the model's folder."""
    message = " ".join(str(error).split())
    if isinstance(error, SimkitError):
        return message
    path = ensure_output_dir(folder) / ERROR
    write_text(path, "".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {message} (see {path})"


# ------------------------------------------------------------------------------------------------------ what is there already


def _check_settings(own: Path, recipe: Recipe) -> None:
    """Refuse to go on in a folder whose training was asked for with other settings.

    Raises:
        OutputError: naming the first one that differs.
    """
    if not (own / RECIPE).is_file():
        return
    asked, stored = (_flat(r.model_dump(mode="json", exclude=FREE)) for r in (recipe, read_recipe(own / RECIPE)))
    for key in {**asked, **stored}:
        if asked.get(key) != stored.get(key):
            raise OutputError(
                f"{own} holds a training with {key} {stored.get(key)}, but {asked.get(key)} is asked for; choose another folder"
            )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def _check_data(own: Path, hashes: str) -> None:
    if (own / RESULT).is_file() and _read_json(own / RESULT).get("data") != hashes:
        raise OutputError(f"{own} was trained or tested on other data; choose another folder")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); delete it, and it is made again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} does not hold what a comparison writes; delete it, and it is made again")
    return content


# -------------------------------------------------------------------------------------------------------------- one model


def _run(name: str, recipe: Recipe, folder: Path, hashes: str, echo: Echo) -> ModelResult:
    """Train and measure one model, or read what is known of it."""
    own, structure = ensure_output_dir(folder / name), folder / STRUCTURE
    if (own / RESULT).is_file():
        result = ModelResult.from_dict(_read_json(own / RESULT)["result"])
        echo(f"{name}: finished before: {summary(result)}")
        return result
    (own / ERROR).unlink(missing_ok=True)
    cost = _training_cost(own, recipe)
    planned = _stored_plan(own, recipe) or plan(recipe, cost)
    epochs = planned.training.epochs
    echo(f"{name}: {1000 * cost.step_seconds:.3g} ms per training step, {epochs} epochs are planned")
    report = train(planned, own, resume=True, echo=echo if sys.stderr.isatty() else silent)
    potential = load(own / MODEL)
    checks = {}
    if "energy" in potential.outputs:
        checks = {dtype: check_potential(potential, [read_structure(structure)], dtype) for dtype in PRECISIONS}
    result = ModelResult(
        name=name,
        architecture=potential.architecture,
        options=potential.options,
        parameters=potential.num_parameters,
        epochs=report.epochs,
        planned_epochs=epochs,
        seconds=report.seconds,
        errors=report.metrics["test"],
        drift=report.drift,
        training=cost,
        step=measure_step(own / MODEL, structure, recipe.training.device),
        checks=checks,
        warnings=[*_warnings(planned, report), *(text for check in checks.values() for text in check.problems())],
    )
    write_json(own / RESULT, {"data": hashes, "result": asdict(result)})
    echo(f"{name}: {summary(result)}")
    return result


def _training_cost(own: Path, recipe: Recipe) -> TrainingCost:
    """Measure training, once: what was measured is kept beside the training."""
    asked = recipe.model_dump(mode="json")
    if (own / COST).is_file():
        stored = _read_json(own / COST)
        if stored["recipe"] == asked:
            return TrainingCost(**stored["cost"])
    cost = measure_training(recipe)
    write_json(own / COST, {"recipe": asked, "cost": asdict(cost)})
    return cost


def _stored_plan(own: Path, recipe: Recipe) -> Recipe | None:
    """The recipe with the plan of a training that began before."""
    if not (own / RECIPE).is_file():
        return None
    stored = read_recipe(own / RECIPE).training
    return _with(recipe, epochs=stored.epochs, warmup_steps=stored.warmup_steps)


def _warnings(planned: Recipe, report: TrainingReport) -> list[str]:
    found = list(report.warnings)
    options = planned.training
    if report.epochs < options.epochs and options.early_stopping is None:
        found.append(
            f"the time was up after {report.epochs} of {options.epochs} epochs, before the learning rate had come down: steps took "
            "longer than when they were measured"
        )
    if report.seconds < 60 * LEAST_USED * (options.max_minutes or 0.0) and options.early_stopping is None:
        found.append(
            f"the training took {report.seconds / 60:.2g} of its {options.max_minutes:g} minutes: steps were faster than when they were "
            "measured"
        )
    return found
