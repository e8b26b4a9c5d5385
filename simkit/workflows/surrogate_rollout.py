"""Known systems as data files, and rollouts of trained models: `simkit surrogate list`, `make-data` and `rollout`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simkit.errors import ConfigError, DataError, OutputError
from simkit.files import ensure_output_dir, write_json
from simkit.surrogates import models, systems
from simkit.surrogates.evaluation import Evaluation, evaluate
from simkit.surrogates.files import load
from simkit.surrogates.loaders import load as load_trajectories
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.samples import STATES
from simkit.surrogates.systems.base import System
from simkit.surrogates.trajectories import Trajectories
from simkit.workflows.surrogate_plots import write_film, write_rollout_plots

ROLLOUT, FIGURES = "rollout.npz", "rollout.json"
Echo = Callable[[str], None]


@dataclass(frozen=True)
class Start:
    """Where rollouts start and how long they are.

    Attributes:
        file: trajectories (CSV or npz) whose first states are taken, and which are compared with; None draws states of the model's system.
        count: trajectories that are drawn.
        seed: of what is drawn.
        duration, points: of trajectories that are drawn; those of the system's protocol where not given.
    """

    file: Path | None = None
    count: int = 10
    seed: int = 1
    duration: float | None = None
    points: int | None = None


def list_surrogates() -> str:
    """Return tables of the known systems with their data protocols, and of the models."""
    lines = ["Systems, with the protocols that their data follow"]
    for name, system in sorted({**systems.REGISTRY, **systems.FIRST_ORDER}.items()):
        lines.append(f"  {name:24} {_first_line(system)}")
        for key, plan in system.protocols.items():
            parts = ", ".join(f"{part} {count}" for part, count in plan.parts.items())
            lines.append(f"  {'':24} - {key}: {parts}; {plan.points} points over {plan.duration:g}")
    lines += ["", "Models", *(f"  {name:24} {_first_line(models.model_class(name)[0])}" for name in models.available())]
    return "\n".join(lines)


def _first_line(documented: type) -> str:
    return (documented.__doc__ or "").strip().splitlines()[0].rstrip(".:;,")


def make_data(
    system: str,
    out: Path,
    *,
    protocol: str,
    parameters: Mapping[str, Any],
    coordinates: str,
    seed: int,
    overwrite: bool,
    echo: Echo,
) -> Trajectories:
    """Write the trajectories of a known system's protocol into one npz file; the parts of the protocol follow each other.

    Raises:
        OutputError: if the file is there and is not to be replaced, or cannot be written.
        ConfigError: if system, parameters, protocol or coordinates are unknown.
    """
    if out.exists() and not overwrite:
        raise OutputError(f"{out} is already there; add --overwrite to replace it")
    known = systems.build_any(system, parameters)
    if isinstance(known, System):
        data = known.generate(protocol, seed, coordinates=coordinates)
    elif coordinates == "canonical":
        data = known.generate(protocol, seed)
    else:
        raise ConfigError(f"{system} has no coordinates {coordinates!r}")
    data.save(out)
    echo(f"{system}: {len(data)} trajectories of {data.q.shape[1]} points with {', '.join(data.arrays())}: {out}")
    return data


def rollout_model(
    path: Path,
    out: Path,
    start: Start,
    *,
    method: str | None,
    timestep: float | None,
    overwrite: bool,
    echo: Echo,
) -> Evaluation:
    """Roll a model out, compare with the truth where it is known, and write trajectories, figures and plots.

    Raises:
        OutputError: if the folder cannot be written, or holds a rollout that is not to be replaced.
        ConfigError, DataError: if model, file or options do not fit.
    """
    model = load(path)
    folder = ensure_output_dir(out)
    if (folder / ROLLOUT).exists() and not overwrite:
        raise OutputError(f"{folder} already holds a rollout; add --overwrite to replace it, or choose another folder")
    system = _system(model)
    test = load_trajectories(start.file) if start.file is not None else _draw(model, system, start)
    found = evaluate(model, test, system, method=method, timestep=timestep)
    if found.rollouts is None:
        raise DataError("the trajectories to start from must have at least two points; found one")
    _write(model, found, folder)
    pictures = [*write_rollout_plots(model, system, found, folder), write_film(model, system, found.rollouts, folder)]
    error = found.figures["relative_error"]
    echo(
        f"{len(test)} trajectories over {found.figures['duration']:g}: geometric mean of the relative error "
        f"{error['geometric_mean']:.3g}, {found.figures['blown_up']} blown up"
    )
    echo(f"trajectories: {folder / ROLLOUT}; figures: {FIGURES}; plots: {', '.join(pictures)}")
    return found


def _system(model: DynamicsModel) -> System | None:
    """The system that a model was trained on, if it is a known one."""
    name = model.info.get("system")
    if not isinstance(name, str) or name not in systems.REGISTRY:
        return None
    return systems.build(name, model.info.get("parameters", {}))


def _draw(model: DynamicsModel, system: System | None, start: Start) -> Trajectories:
    """The true motion of the model's system from states of its first protocol."""
    if system is None:
        raise ConfigError(
            "this model was not trained on a known system; say where to start with --initial FILE (CSV or npz)"
        )
    plan = system.protocol()
    duration, points = start.duration or plan.duration, start.points or plan.points
    times = np.linspace(0.0, duration, max(points, 2))
    data = system.trajectories(times, system.integrate(system.sample(start.count, start.seed), times))
    embedding = system.embedding()
    if model.info.get("coordinates") == "cartesian" and embedding is not None:
        data = embedding.trajectories(data)
    return Trajectories(**data.arrays(), info={**data.info, "coordinates": model.info.get("coordinates", "canonical")})


def _write(model: DynamicsModel, found: Evaluation, folder: Path) -> None:
    errors = found.rollouts
    if errors is None:
        return
    kind = STATES[model.coordinates]
    halves = dict(zip(kind, np.split(errors.found, len(kind), axis=-1), strict=True))
    reached = np.isfinite(errors.found).all(axis=(0, 2))
    info = {"model": model.name, "rollout": True, "points_reached_by_all": int(reached.sum())}
    # A file of trajectories holds finite numbers only: it ends where the first rollout does.
    data = Trajectories(
        times=errors.times[reached],
        info=info,
        **{name: values[:, reached] for name, values in halves.items()},
    )
    data.save(folder / ROLLOUT)
    write_json(folder / FIGURES, found.figures)
