"""APHYNITY (Yin et al. 2021): incomplete physics with a learned residual, the physics alone, and a neural ODE alone.

python benchmarks/surrogates_aphynity.py [--quick] [--seeds 3] [--steps 1.0] [--sequences 60] [--systems NAME ...] [--out FILE.json]
    [--plot FILE.png]

Data as in the authors' code: a damped pendulum without its friction, 25 trajectories of 40 points for training and 25 for tests; diffusion
without its reaction on a periodic 32 x 32 grid, of whose 1600 training sequences of 30 points ``--sequences`` are taken, and 40 for tests
instead of 320. "log MSE" is log10 of the mean square error of test rollouts, all points and the first one included. "% error" is the
mean of |found - true| / true over the physical parameters as the authors count them: omega^2 of the pendulum, a and b of the diffusion.
The models see the initial states and the later points, no derivatives.

What differs from the authors: rollouts in training go from each point to the next (theirs over the whole trajectory), by RK4, for the
pendulum with two steps (theirs has one, which here gives the true equations a log MSE of -6.7; with two it is -9.0); the weight of the
fit starts higher for that, as errors of short rollouts are smaller; convolutions are periodic, without batch normalisation (which lets
the trajectories of a batch depend on each other), smooth, and "local" where a reaction at a point depends on that point alone (kernel 1;
theirs is 3); the pendulum's network has a linear part and one hidden layer of 32 units (theirs two of 200), and its training ends with
L-BFGS in float64. There are far fewer steps than their 50,000 epochs. Nothing is selected on test data: the last weights count.

"least norm" is the error of the parameters that leave the residual of least norm on the training data, computed from the true equations:
what the method itself would find at best. It does not vanish where the missing physics are not orthogonal to the known ones.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from simkit import plotting
from simkit.surrogates import models, systems
from simkit.surrogates.evaluation import evaluate
from simkit.surrogates.models.aphynity import APHYNITY
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.objectives import MotionObjective, ObjectiveOptions, Trainee
from simkit.surrogates.plots import phase_portrait
from simkit.surrogates.polish import polish
from simkit.surrogates.samples import STATES, pieces
from simkit.surrogates.trajectories import Trajectories
from simkit.training.fit import fit
from simkit.training.options import TrainingOptions

Array = NDArray[np.float64]
TESTS = 40  # sequences of the diffusion


@dataclass(frozen=True)
class Row:
    """A model, and what the authors report of theirs."""

    name: str
    model: str
    options: dict[str, Any]
    steps: int
    learning_rate: float
    published: tuple[float | None, float | None]
    weight: tuple[float, float] = (1.0, 0.0)
    batch: int = 325
    polish: int = 0


@dataclass(frozen=True)
class Task:
    """A system, the step of the integrator in training and tests, and the models that are trained on it."""

    system: str
    timestep: float
    dtype: str
    rows: list[Row] = field(default_factory=list)


TASKS = {
    "pendulum": Task(
        "damped_pendulum",
        0.25,
        "float64",
        [
            Row(
                "APHYNITY",
                "aphynity",
                {"physics": "pendulum", "norm": "relative", "width": 32, "layers": 1, "skip": True},
                450,
                1e-2,
                (-7.9, 4.0),
                (1e5, 1e5),
                polish=400,
            ),
            Row("physics alone", "aphynity", {"physics": "pendulum", "residual": False}, 600, 1e-2, (None, None)),
            Row(
                "neural ODE",
                "neural-ode",
                {"coordinates": "velocity", "width": 64, "skip": True},
                600,
                1e-2,
                (None, None),
                polish=400,
            ),
        ],
    ),
    "reaction-diffusion": Task(
        "reaction_diffusion",
        0.1,
        "float32",
        [
            Row(
                "APHYNITY, local",
                "aphynity",
                {"physics": "diffusion", "width": 16, "kernel": 1},
                2600,
                1e-2,
                (-5.1, 2.3),
                (3e4, 1e6),
                4,
            ),
            Row(
                "physics alone",
                "aphynity",
                {"physics": "diffusion", "residual": False},
                900,
                1e-2,
                (None, None),
                batch=4,
            ),
            Row(
                "neural ODE",
                "neural-ode",
                {"coordinates": "first-order", "fields": 2, "width": 16},
                1300,
                5e-3,
                (None, None),
                batch=4,
            ),
        ],
    ),
}


def data_of(task: Task, seed: int, sequences: int) -> dict[str, Trajectories]:
    """The training and test parts of the authors' protocol."""
    system = systems.build_any(task.system)
    plan = system.protocol("aphynity")
    if task.system == "reaction_diffusion":
        plan = replace(plan, parts={"train": min(sequences, plan.parts["train"]), "test": TESTS})
    return system.generate(plan, seed).split(plan.parts)


def train(task: Task, row: Row, data: Trajectories, seed: int, steps: float) -> DynamicsModel:
    """Train on rollouts from each point of the trajectories to the next."""
    model = models.build(row.model, data.dof, dtype=task.dtype, seed=seed, **row.options)
    samples = pieces(data.segments(2), model.coordinates, model.dtype)
    per_epoch = math.ceil(len(samples) / row.batch)
    epochs = max(1, round(steps * row.steps / per_epoch))
    options = TrainingOptions(
        epochs=epochs,
        batch_size=row.batch,
        optimizer="adam",
        learning_rate=row.learning_rate,
        warmup_steps=20,
        clip_norm=None,
        ema_decay=0.0,
        validate_every=epochs,
        device="cpu",
        precision="float64" if task.dtype == "float64" else "float32",
        seed=seed,
    )
    objective = ObjectiveOptions(
        match="rollout", method="rk4", timestep=task.timestep, fit_weight=row.weight[0], fit_growth=row.weight[1]
    )
    with tempfile.TemporaryDirectory() as folder:
        trainee, target = Trainee(model, row.weight[0]), MotionObjective(objective, seed)
        fit(trainee, target, samples, None, options, folder)
        if row.polish:
            polish(trainee, target, samples, max(1, round(steps * row.polish)))
    return model.eval()


def errors_of_parameters(system: str, found: dict[str, float]) -> float:
    """The mean relative error in per cent, of omega^2 for the pendulum."""
    true, power = systems.build_any(system).parameters, 2 if system == "damped_pendulum" else 1
    return 100 * statistics.fmean(abs((value / true[name]) ** power - 1) for name, value in found.items())


def least_norm(system: str, data: Trajectories) -> float:
    """The error in per cent of the parameters with the least norm of what is missing on these states, by linear least squares."""
    rates = systems.build_any(system)
    if system == "damped_pendulum":
        states = data.state("qv")
        known, rate = np.sin(states[..., :1]), -rates.vector_field(0.0, torch.from_numpy(states)).numpy()[..., 1:]
        weight = 1 / (np.linalg.norm(states, axis=-1, keepdims=True) + 1e-5) ** 2
        found = float((weight * known * rate).sum() / (weight * known**2).sum())
        return 100 * abs(found / rates.parameters["frequency"] ** 2 - 1)
    n = rates.parameters["size"]
    fields = data.q.reshape(-1, 2, n, n)
    around = sum((np.roll(fields, shift, axis) for shift in (1, -1) for axis in (2, 3)), np.zeros_like(fields))
    laplacian = (around - 4 * fields) * (n / 2) ** 2
    rate = rates.vector_field(0.0, torch.from_numpy(data.q)).numpy().reshape(fields.shape)
    found = (rate * laplacian).sum((0, 2, 3)) / (laplacian**2).sum((0, 2, 3))
    return 100 * statistics.fmean(
        abs(value / rates.parameters[name] - 1) for name, value in zip("ab", found, strict=True)
    )


def run(
    task: Task, row: Row, seed: int, arguments: argparse.Namespace
) -> tuple[dict[str, Any], DynamicsModel, Trajectories]:
    """Train one model with one seed and test it."""
    data = data_of(task, seed, arguments.sequences)
    started = time.process_time()
    model = train(task, row, data["train"], seed, arguments.steps)
    seconds = time.process_time() - started
    figures = evaluate(model, data["test"], method="rk4", timestep=task.timestep).figures
    found = {
        "seed": seed,
        "log_mse": figures["log10_mse"],
        "relative_error": figures["relative_error"]["geometric_mean"],
        "blown_up": figures["blown_up"],
        "cpu_seconds": seconds,
        "weights": model.num_parameters,
    }
    if isinstance(model, APHYNITY):
        parameters = model.physics_parameters()
        states = torch.from_numpy(data["train"].state(STATES[model.coordinates])).to(model.dtype)
        with torch.no_grad():
            found["squared_norm"] = float(model.squared_norm(states).mean())
        found |= {
            "parameters": parameters,
            "parameter_error": errors_of_parameters(task.system, parameters),
            "least_norm_error": least_norm(task.system, data["train"]),
        }
    return found, model, data["test"]


def span(values: list[float | None], digits: int) -> str:
    """Median and range, where all values are finite."""
    finite = [value for value in values if value is not None]
    if len(finite) < len(values) or not finite:
        return "diverged" if values else "-"
    middle = f"{statistics.median(finite):.{digits}f}"
    return middle if len(finite) == 1 else f"{middle} ({min(finite):.{digits}f} to {max(finite):.{digits}f})"


def show(results: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Print the table."""
    for name, rows in results.items():
        table = Table(title=f"{name}: median and range over seeds; published in brackets")
        for column in ("model", "log MSE", "[Yin et al.]", "% error", "[Yin et al.]", "least norm %", "CPU s"):
            table.add_column(column, justify="left" if column == "model" else "right")
        for row in TASKS[name].rows:
            found = rows.get(row.name)
            if not found:
                continue
            with_physics = [one for one in found if "parameters" in one]
            log_mse, error = row.published
            table.add_row(
                row.name,
                span([one["log_mse"] for one in found], 2),
                "-" if log_mse is None else f"{log_mse:.1f}",
                span([one["parameter_error"] for one in with_physics], 2),
                "-" if error is None else f"{error:.1f}",
                span([one["least_norm_error"] for one in with_physics if row.options.get("residual", True)], 1),
                span([one["cpu_seconds"] for one in found], 0),
            )
        Console(width=140).print(table)


def draw(shown: dict[str, dict[str, tuple[DynamicsModel, Trajectories]]], path: Path) -> None:
    """Phase portraits of the pendulum over the fields u at the end of a test sequence."""
    matplotlib.use("Agg")
    pendulum, fields = shown.get("pendulum", {}), shown.get("reaction-diffusion", {})
    width = max(len(pendulum), len(fields) + 1)
    figure, panels = pyplot.subplots(
        len(shown), width, figsize=(3.4 * width, 3.3 * len(shown)), squeeze=False, layout="constrained"
    )
    for axes in panels.ravel():
        axes.axis("off")
    for axes, (name, (model, test)) in zip(panels[0], pendulum.items(), strict=False):
        axes.axis("on")
        phase_portrait(
            test.state("qv")[:6],
            {name: rolled(model, test, TASKS["pendulum"])},
            labels=("angle", "velocity"),
            axes=axes,
        )
    images = {"true": next(iter(fields.values()))[1].q[0, -1]} if fields else {}
    images |= {name: rolled(model, test, TASKS["reaction-diffusion"])[0, -1] for name, (model, test) in fields.items()}
    n = math.isqrt(len(images["true"]) // 2) if images else 0
    limits = {"vmin": images["true"][: n * n].min(), "vmax": images["true"][: n * n].max()} if images else {}
    for axes, (name, image) in zip(panels[-1], images.items(), strict=False):
        axes.imshow(image[: n * n].reshape(n, n), cmap="viridis", **limits)
        axes.set_title(f"u at the last time: {name}", fontsize=9)
    plotting.save(figure, path)
    pyplot.close(figure)


def rolled(model: DynamicsModel, test: Trajectories, task: Task) -> Array:
    """Rollouts [S, T, ...] from the first states of the test trajectories."""
    errors = evaluate(model, test.take(slice(6)), method="rk4", timestep=task.timestep).rollouts
    if errors is None:
        raise RuntimeError("test trajectories need more than one point")
    return errors.found


def main() -> None:
    """Train, test, print, and write what was asked for; results are written after every training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, few steps: whether it runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=float, default=1.0, help="times the steps of each training")
    parser.add_argument("--sequences", type=int, default=60, help="training sequences of the diffusion")
    parser.add_argument("--systems", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.steps, arguments.sequences = 1, 0.01, 4
    torch.set_num_threads(1)
    results: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in arguments.systems}
    shown: dict[str, dict[str, tuple[DynamicsModel, Trajectories]]] = {name: {} for name in arguments.systems}
    for place in range(max(len(TASKS[name].rows) for name in arguments.systems)):
        for name in arguments.systems:
            row = TASKS[name].rows[place]
            for seed in range(arguments.seeds):
                found, model, test = run(TASKS[name], row, seed, arguments)
                results[name].setdefault(row.name, []).append(found)
                shown[name].setdefault(row.name, (model, test))
                if arguments.out is not None:
                    arguments.out.write_text(json.dumps(results, indent=1))
    show(results)
    if arguments.plot is not None:
        draw(shown, arguments.plot)


if __name__ == "__main__":
    main()
