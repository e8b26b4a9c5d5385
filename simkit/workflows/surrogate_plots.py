"""The plots beside a trained or rolled-out model of motion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from simkit import plotting
from simkit.surrogates import plots
from simkit.surrogates.animation import animate, scene
from simkit.surrogates.evaluation import Evaluation, RolloutErrors
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.systems.base import System

Array = NDArray[np.float64]

PORTRAIT, ERROR, ENERGY, LANDSCAPE = "phase_portrait.png", "rollout_error.png", "energy.png", "energy_landscape.png"
FILM = "motion.gif"
SHOWN = 5  # trajectories in plots of single ones
GRID = 81  # points along each side of a landscape


def write_rollout_plots(model: DynamicsModel, system: System | None, found: Evaluation, folder: Path) -> list[str]:
    """Write what can be shown of a model's rollouts, and return the names of the files."""
    errors = found.rollouts
    if errors is None:
        return []
    names = [ERROR]
    if model.coordinates != "first-order":
        second = "p" if model.coordinates == "canonical" else "v"
        portrait = plots.phase_portrait(errors.true[:SHOWN], {model.name: errors.found[:SHOWN]}, labels=("q", second))
        plotting.save(portrait, folder / PORTRAIT)
        names.append(PORTRAIT)
    plotting.save(plots.error_growth(errors.times[1:], {model.name: errors.relative[:, 1:]}), folder / ERROR)
    if errors.energy is not None and errors.true_energy is not None:
        course = plots.energy_course(errors.times, errors.true_energy[:SHOWN], {model.name: errors.energy[:SHOWN]})
        plotting.save(course, folder / ENERGY)
        names.append(ENERGY)
    if model.dof == 1 and _has_energy(model):
        _write_landscape(model, system, errors.true, folder)
        names.append(LANDSCAPE)
    return names


def write_film(model: DynamicsModel, system: System | None, errors: RolloutErrors, folder: Path) -> str:
    """Write an animation of the first trajectory beside the true one, and return the name of the file."""
    cartesian = model.info.get("coordinates") == "cartesian"
    motions = {"true": errors.true[0], model.name: errors.found[0]}
    scenes = {name: scene(system, states, cartesian=cartesian) for name, states in motions.items()}
    animate(folder / FILM, errors.times, scenes)
    return FILM


def _has_energy(model: DynamicsModel) -> bool:
    with torch.no_grad():
        return model.energy(torch.zeros(model.state_size, dtype=model.dtype)) is not None


def _write_landscape(model: DynamicsModel, system: System | None, states: Array, folder: Path) -> None:
    """Draw the energy over the states that the true motion reaches."""
    low, high = states.reshape(-1, 2).min(0), states.reshape(-1, 2).max(0)
    x, y = (np.linspace(a - 0.1 * (b - a), b + 0.1 * (b - a), GRID) for a, b in zip(low, high, strict=True))
    learned = plots.energy_grid(model.energy, x, y, dtype=model.dtype)
    true = None if system is None or model.coordinates != "canonical" else plots.energy_grid(system.energy, x, y)
    labels = ("q", "p" if model.coordinates == "canonical" else "v")
    plotting.save(plots.energy_landscape(x, y, learned, true, labels=labels)[0], folder / LANDSCAPE)
