"""Chain pendulums and the double pendulum: constrained, Hamiltonian and Lagrangian networks beside what was published.

python benchmarks/surrogates_pendulums.py [--quick] [--seeds 3] [--tasks chnn-2,hnn-2,...] [--out surrogates_pendulums.json]

- "chnn-N" in Cartesian coordinates, "delan-N" and "hnn-N" in angles: chains of N links, 800 training trajectories, one window of 5 points
  of each (Finzi, Wang & Wilson, NeurIPS 2020). The error is |x - x*| / (|x| + |x*|) of Cartesian positions and velocities in rollouts of
  100 test trajectories over 3 s, its geometric mean over times and trajectories.
- "lnn": the double pendulum of Cranmer et al. (ICLR 2020 workshop), trained on states, 40 test trajectories from rest up to t = 100. The
  error is that of the true energy at the end, in units of the largest potential energy, its mean over the trajectories.

The recipes are those of examples/recipes/surrogates. A seed is that of data, initial weights and batches. Each result is written as soon as
it is there; called again with the same file, finished ones are kept. Times are of the CPU.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from simkit.surrogates.evaluation import evaluate
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.objectives import MotionObjective, Trainee
from simkit.surrogates.preparation import MotionParts, build_model, make_samples, open_data
from simkit.surrogates.recipe import SurrogateRecipe, read_surrogate_recipe
from simkit.training.fit import fit

RECIPES = Path(__file__).resolve().parent.parent / "examples" / "recipes" / "surrogates"
PUBLISHED: dict[str, dict[str, float]] = {
    "chnn-2": {"constrained": 1.1e-4, "HNN": 1.9e-3, "neural ODE": 6.5e-2},
    "chnn-3": {"constrained": 3.3e-4, "HNN": 4.7e-2, "neural ODE": 0.27},
    "chnn-5": {"constrained": 9.3e-4, "HNN": 0.34, "neural ODE": 0.44},
    "lnn": {"LNN": 4e-3, "plain network": 7.5e-2},
}
PUBLISHED |= {f"{name}-{links}": PUBLISHED[f"chnn-{links}"] for name in ("delan", "hnn") for links in (2, 3, 5)}
TASKS = ("chnn-2", "chnn-3", "chnn-5", "delan-2", "delan-3", "delan-5", "lnn")
MORE = ("hnn-2", "hnn-3")  # with --tasks
SHORTER = {"delan-3": 200, "delan-5": 120, "hnn-3": 100}  # epochs
TRAJECTORIES = 40  # of the double pendulum


def recipe_of(task: str, seed: int, quick: bool) -> SurrogateRecipe:
    """The recipe of a task with its number of links, and one seed for everything."""
    name, _, links = task.partition("-")
    settings = [f"{section}.seed={seed}" for section in ("data", "model", "training")]
    if links:
        settings.append(f"data.parameters.links={links}")
    if links == "5":  # RK4 with a step of 0.03 has an error of 1e-3 itself
        settings += ["objective.timestep=0.015", "rollout.timestep=0.015"]
    if task in SHORTER:
        settings.append(f"training.epochs={SHORTER[task]}")
    if quick:
        settings += ["training.epochs=3", "training.validate_every=1", "data.trajectories=100"]
    file = "double_pendulum_lnn" if name == "lnn" else f"chain_pendulum_{name}"
    return read_surrogate_recipe(RECIPES / f"{file}.yaml", settings)


def train(recipe: SurrogateRecipe, parts: MotionParts) -> tuple[DynamicsModel, float]:
    """A trained model, and the seconds that it took."""
    model, seed = build_model(recipe, parts), recipe.training.seed
    samples = make_samples(parts.train, model, recipe.objective, seed)
    valid = None if parts.valid is None else make_samples(parts.valid, model, recipe.objective, seed)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        fit(Trainee(model), MotionObjective(recipe.objective, seed), samples, valid, recipe.training, folder)
    return model, time.process_time() - began


def judge(task: str, recipe: SurrogateRecipe, model: DynamicsModel, parts: MotionParts, quick: bool) -> dict[str, Any]:
    """The error of the rollouts, and how it was reached."""
    test, times = parts.test, None
    if test is None or parts.system is None:
        raise ValueError("the recipe has no test data of a known system")
    if task == "lnn":
        test = parts.system.generate("lnn-rollout", recipe.data.seed).take(slice(4 if quick else TRAJECTORIES))
        times = np.linspace(0.0, 10.0 if quick else 100.0, 11)
    options = recipe.rollout
    figures = evaluate(model, test, parts.system, times=times, method=options.method, timestep=options.timestep).figures
    error = figures["final_energy_error"]["mean"] if task == "lnn" else figures["relative_error"]["geometric_mean"]
    return {"error": error, "blown_up": figures["blown_up"], "figures": figures}


def run(task: str, seed: int, quick: bool) -> dict[str, Any]:
    """One result."""
    recipe = recipe_of(task, seed, quick)
    parts = open_data(recipe.data)
    model, seconds = train(recipe, parts)
    began = time.process_time()
    found = judge(task, recipe, model, parts, quick)
    facts = {
        "parameters": model.num_parameters,
        "training_seconds": seconds,
        "test_seconds": time.process_time() - began,
    }
    return found | facts


def table(results: dict[str, dict[str, dict[str, Any]]]) -> Table:
    """Medians and ranges over the seeds, beside the published numbers."""
    shown = Table(title="errors: median [range] over the seeds")
    for column in ("task", "seeds", "error", "parameters", "training, s", "published"):
        shown.add_column(column, justify="left" if column in ("task", "published") else "right")
    for task, seeds in results.items():
        errors = [float("inf") if found["error"] is None else found["error"] for found in seeds.values()]
        middle = statistics.median(errors)
        seconds = statistics.median(found["training_seconds"] for found in seeds.values())
        published = ", ".join(f"{name} {value:.1e}" for name, value in PUBLISHED[task].items())
        shown.add_row(
            task,
            str(len(seeds)),
            f"{middle:.2e} [{min(errors):.2e}, {max(errors):.2e}]",
            str(next(iter(seeds.values()))["parameters"]),
            f"{seconds:.0f}",
            published,
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few epochs on a part of the data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--out", type=Path, default=Path("surrogates_pendulums.json"))
    arguments = parser.parse_args()
    tasks = arguments.tasks.split(",")
    if unknown := [task for task in tasks if task not in TASKS + MORE]:
        parser.error(f"unknown tasks {', '.join(unknown)}; there are {', '.join(TASKS + MORE)}")
    results: dict[str, dict[str, dict[str, Any]]] = {}
    if arguments.out.exists():
        results = json.loads(arguments.out.read_text(encoding="utf-8"))["results"]
    console = Console()
    for seed in range(arguments.seeds):
        for task in tasks:
            if str(seed) in results.get(task, {}):
                continue
            found = results.setdefault(task, {})[str(seed)] = run(task, seed, arguments.quick)
            console.print(f"{task}, seed {seed}: {found['error']:.3g} ({found['training_seconds']:.0f} s)")
            content = {"quick": arguments.quick, "published": PUBLISHED, "results": results}
            arguments.out.write_text(json.dumps(content, indent=1), encoding="utf-8")
    console.print(table(results))


if __name__ == "__main__":
    main()
