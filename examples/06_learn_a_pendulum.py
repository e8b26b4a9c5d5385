"""Learn the motion of a pendulum from noisy states, with and without the structure of mechanics, and watch it.

    python examples/06_learn_a_pendulum.py --out pendulum

Writes a table and a plot of the models' errors, and for the Hamiltonian network phase portrait, energy landscape and a film.
`--smoke` makes a few steps only.
"""

import argparse
from pathlib import Path

from simkit.config import parse_options
from simkit.surrogates.recipe import SurrogateRecipe
from simkit.workflows.surrogate_compare import compare_surrogates
from simkit.workflows.surrogate_rollout import Start, rollout_model

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("pendulum"))
parser.add_argument("--smoke", action="store_true")
arguments = parser.parse_args()

recipes = {}
for name in ("hnn", "neural-ode"):
    values = {
        "data": {"system": "pendulum"},
        "model": {"name": name, "width": 64},
        "training": {
            "epochs": 2 if arguments.smoke else 300,
            "batch_size": 125,
            "learning_rate": 3e-3,
            "device": "cpu",
        },
        "rollout": {"duration": 3.0 if arguments.smoke else 20.0, "method": "rk4", "timestep": 0.05},
    }
    recipes[name] = parse_options(SurrogateRecipe, values, "example")
comparison = compare_surrogates(recipes, seeds=1, out=arguments.out)
print(f"\n{comparison}")

model = arguments.out / "hnn" / "seed-0" / "model.safetensors"
start = Start(count=3, duration=3.0 if arguments.smoke else 20.0, points=20 if arguments.smoke else 200)
rollout_model(model, arguments.out / "rollout", start, method=None, timestep=0.05, overwrite=True, echo=print)
