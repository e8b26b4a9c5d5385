"""Where models of motion fail: clean, noisy, under-sampled, chaotic and stiff data, with the same small networks and budget of steps.

python benchmarks/surrogates_limits.py [--seeds 3] [--steps 1500] [--out surrogates_limits.json] [--work FOLDER]

A model fails where the geometric mean of its relative rollout error on the clean test data is above 0.1. Derivatives are exact where the
data are clean; those of noisy data are estimated from the noisy states. With --work, what was trained is kept and taken up again.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from simkit.config import parse_options
from simkit.surrogates.comparison import median
from simkit.surrogates.recipe import SurrogateRecipe
from simkit.workflows.surrogate_compare import compare_surrogates

FAILED = 0.1
PENDULUM = {"system": "pendulum", "protocol_noise": False}
DATA: dict[str, dict[str, Any]] = {
    "pendulum, clean": PENDULUM,
    "noise 1 %": {**PENDULUM, "noise": 0.01, "derivatives": "estimated"},
    "noise 5 %": {**PENDULUM, "noise": 0.05, "derivatives": "estimated"},
    "noise 10 %": {**PENDULUM, "noise": 0.10, "derivatives": "estimated"},
    "15 points, 0.20 apart": {**PENDULUM, "every": 3, "derivatives": "estimated"},
    "8 points, 0.41 apart": {**PENDULUM, "every": 6, "derivatives": "estimated"},
    "chaotic: Henon-Heiles": {"system": "henon_heiles"},
    "chaotic: three links": {"system": "chain_pendulum", "parameters": {"links": 3}, "trajectories": 100},
    "stiff: fast gyration": {"system": "charged_particle", "parameters": {"field_strength": 10.0}},
}
ROLLOUT = {"match": "rollout", "method": "rk4", "kind": "mae"}
MODELS: dict[str, dict[str, Any]] = {
    "hnn": {"model": {"name": "hnn"}},
    "hnn, rollouts": {"model": {"name": "hnn"}, "objective": {**ROLLOUT, "window": 4}},
    "neural-ode": {"model": {"name": "neural-ode"}},
    "neural-ode, rollouts": {"model": {"name": "neural-ode"}, "objective": {**ROLLOUT, "window": 4}},
    "neural-ode-2": {"model": {"name": "neural-ode-2"}},
    "delan": {"model": {"name": "delan"}},
}
BATCH = 100


def recipe(data: dict[str, Any], particular: dict[str, Any], steps: int) -> SurrogateRecipe:
    """The recipe of one cell of the table; ``steps`` optimiser steps whatever the amount of data."""
    values = {
        "data": data,
        "training": {
            "batch_size": BATCH,
            "learning_rate": 3e-3,
            "device": "cpu",
            "epochs": 1,
            "validate_every": 10_000,
        },
        "rollout": {"method": "rk4", "timestep": 0.01},  # so short that the error is the model's
        **particular,
    }
    values["model"] = {"width": 64, **values["model"]}
    planned = parse_options(SurrogateRecipe, values, "limits")
    per_epoch = math.ceil(_samples(planned) / BATCH)
    values["training"]["epochs"] = max(1, round(steps / per_epoch))
    return parse_options(SurrogateRecipe, values, "limits")


def _samples(planned: SurrogateRecipe) -> int:
    from simkit.surrogates.preparation import build_model, make_samples, open_data

    parts = open_data(planned.data)
    return len(make_samples(parts.train, build_model(planned, parts), planned.objective))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", default="surrogates_limits.json")
    parser.add_argument("--work", help="folder for the trainings; temporary where not given")
    parser.add_argument("--only", default="", help="only the rows whose name begins so")
    arguments = parser.parse_args()
    work = Path(arguments.work or tempfile.mkdtemp())
    found: dict[str, dict[str, list[float | None]]] = {}
    print("| data | " + " | ".join(MODELS) + " |\n|" + " --- |" * (len(MODELS) + 1))
    for row, data in DATA.items():
        if not row.startswith(arguments.only):
            continue
        recipes = {name: recipe(data, dict(particular), arguments.steps) for name, particular in MODELS.items()}
        folder = work / "".join(c if c.isalnum() else "-" for c in row)
        comparison = compare_surrogates(recipes, arguments.seeds, folder, lambda _: None)
        found[row] = {
            name: [run["test"]["relative_error"]["geometric_mean"] for run in comparison.metrics.get(name, {}).values()]
            for name in MODELS
        }
        cells = []
        for values in found[row].values():
            middle = median(values) if values else math.inf
            cells.append(f"{middle:.2g}" if middle <= FAILED else f"**{middle:.2g}**")
        print(f"| {row} | {' | '.join(cells)} |", flush=True)
    Path(arguments.out).write_text(json.dumps({"relative_error": found, **vars(arguments)}, indent=1))


if __name__ == "__main__":
    main()
