"""From a recipe to a trained, evaluated and documented model of motion: the whole of `simkit surrogate train`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simkit import plotting
from simkit.errors import OutputError
from simkit.files import ensure_output_dir, write_json, write_text
from simkit.surrogates.evaluation import evaluate
from simkit.surrogates.files import save
from simkit.surrogates.metrics import parameter_error
from simkit.surrogates.models.aphynity import APHYNITY
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.objectives import MotionObjective, Trainee
from simkit.surrogates.polish import polish
from simkit.surrogates.preparation import MotionParts, build_model, make_samples, open_data
from simkit.surrogates.recipe import SurrogateRecipe
from simkit.surrogates.trajectories import Trajectories
from simkit.training.checkpoint import CHECKPOINT
from simkit.training.fit import FitResult, fit
from simkit.training.log import Row
from simkit.workflows.surrogate_plots import write_rollout_plots
from simkit.workflows.text import epoch_printer

MODEL, RECIPE, METRICS, CURVE = "model.safetensors", "recipe.yaml", "metrics.json", "learning_curve.png"
# What may change between the parts of a resumed training.
_FREE: Any = {"training": {"max_minutes", "checkpoint_minutes", "device", "tensorboard"}, "rollout": True}

Echo = Callable[[str], None]


@dataclass(frozen=True)
class SurrogateReport:
    """What a training leaves.

    Attributes:
        folder: where everything is.
        model: with the best weights.
        parts: the data.
        metrics: the content of metrics.json.
    """

    folder: Path
    model: DynamicsModel
    parts: MotionParts
    metrics: dict[str, Any]


def train_surrogate(
    recipe: SurrogateRecipe,
    out: str | Path,
    *,
    parts: MotionParts | None = None,
    resume: bool = False,
    echo: Echo = print,
) -> SurrogateReport:
    """Train a model of motion as the recipe says and write model, log, metrics and plots into ``out``.

    Args:
        parts: the data of the recipe, where they are open already.

    Raises:
        OutputError: if ``out`` cannot be written or already holds a training that is not to be resumed.
        ConfigError, DataError: if recipe or data are unusable.
        KeyboardInterrupt: if interrupted, after a checkpoint has been saved.
    """
    folder = ensure_output_dir(out)
    if not resume and any((folder / name).exists() for name in (CHECKPOINT, MODEL)):
        raise OutputError(f"{folder} already holds a training; add --resume to continue it, or choose another folder")
    parts = open_data(recipe.data) if parts is None else parts
    echo(describe_data(parts))
    model = build_model(recipe, parts)
    seed = recipe.training.seed
    train = make_samples(parts.train, model, recipe.objective, seed)
    valid = None if parts.valid is None else make_samples(parts.valid, model, recipe.objective, seed)
    if valid is None and isinstance(model, APHYNITY):
        valid = train  # losses in training cannot be compared between epochs; see MotionObjective
    resuming = resume and (folder / CHECKPOINT).exists()
    if not resuming:
        write_text(folder / RECIPE, recipe.to_yaml())
    echo(f"{model.name}: {model.num_parameters} parameters, {len(train)} samples of {train.states.shape[1]} states")
    trainee, objective = Trainee(model, recipe.objective.fit_weight), MotionObjective(recipe.objective, seed)
    result = fit(
        trainee,
        objective,
        train,
        valid,
        recipe.training,
        folder,
        resume=resuming,
        identity=_identity(recipe, parts),
        on_epoch=epoch_printer(recipe.training.epochs, echo, _losses),
    )
    trainee.to("cpu")
    if recipe.polish:
        loss = polish(trainee, objective, train, recipe.polish)
        echo(f"after L-BFGS: loss {loss:.3g} on all training samples")
    return SurrogateReport(folder, model, parts, _finish(recipe, model, parts, result, folder))


def describe_data(parts: MotionParts) -> str:
    """Return one line on the trajectories of every part."""
    named = {"training": parts.train, "validation": parts.valid, "test": parts.test}
    counts = [f"{len(data)} x {data.q.shape[1]} states for {name}" for name, data in named.items() if data is not None]
    source = parts.train.info.get("system") or parts.train.info.get("source") or "trajectories"
    return f"{source}: {', '.join(counts)}; {parts.train.dof} coordinates"


def _finish(
    recipe: SurrogateRecipe, model: DynamicsModel, parts: MotionParts, result: FitResult, folder: Path
) -> dict[str, Any]:
    """Save the model, evaluate it on the test part, write metrics and plots, and save it again with what was found."""
    save(model, folder / MODEL)  # first: whatever becomes of the rollouts, what was trained is there
    metrics: dict[str, Any] = {
        "model": model.name,
        "parameters": model.num_parameters,
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "train_seconds": result.seconds,
        "final": {key: value for key, value in result.rows[-1].items() if key.endswith(("loss", "mae"))},
    }
    if isinstance(model, APHYNITY):
        metrics["physics"] = physics_figures(model, parts.train.info.get("parameters", {}))
    if parts.test is not None:
        options = recipe.rollout
        times = None if options.duration is None else _times(parts.test, options.duration)
        found = evaluate(model, parts.test, parts.system, times=times, method=options.method, timestep=options.timestep)
        metrics["test"] = found.figures
        write_rollout_plots(model, parts.system, found, folder)
    model.info |= {"metrics": metrics, "simkit_version": version("simkit")}
    save(model, folder / MODEL)
    write_json(folder / METRICS, metrics)
    unit = {"derivative": ("", 1.0), "state": ("", 1.0)}
    plotting.save(plotting.learning_curve(result.rows, unit)[0], folder / CURVE)
    return metrics


def physics_figures(model: APHYNITY, true: Mapping[str, Any]) -> dict[str, Any]:
    """Return the learned parameters of the physics and, where the true ones are known, the mean of their relative errors."""
    found = model.physics_parameters()
    known = all(isinstance(true.get(name), (int, float)) and true[name] for name in found)
    return {"parameters": found, "error": parameter_error(found, true) if known else None}


def _times(data: Trajectories, duration: float) -> NDArray[np.float64]:
    """Times from 0 to about the duration, as far apart as the first two points of the data."""
    times = data.times.reshape(-1, data.times.shape[-1])[0]
    step = float(times[1] - times[0])
    points = np.arange(round(duration / step) + 1, dtype=np.float64)
    return points * step


def _identity(recipe: SurrogateRecipe, parts: MotionParts) -> str:
    """Hash of all that must stay the same for a resumed run to be the same run."""
    content = {
        "recipe": recipe.model_dump(mode="json", exclude=_FREE),
        "data": [data.hash() for data in (parts.train, parts.valid) if data is not None],
        "version": version("simkit"),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _losses(row: Row) -> str:
    losses = ", ".join(f"{key.removesuffix('_loss')} {row[key]:.3g}" for key in row if key.endswith("_loss"))
    return f"loss: {losses}"
