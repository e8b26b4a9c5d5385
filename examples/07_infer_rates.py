"""Infer the rates of predators and prey from a few counts, with calibration; then from another observation at no cost.

    python examples/07_infer_rates.py --out rates

Writes posteriors, tables and pictures: parameters, ranks, coverage and what the posterior predicts. `--smoke` makes a small budget.
"""

import argparse
from pathlib import Path

from simkit.inference.infer import InferenceOptions
from simkit.inference.learning import LearningOptions
from simkit.inference.recipe import CalibrationOptions, InferenceRecipe, build_simulator
from simkit.inference.simulator import simulation_seeds
from simkit.workflows.inference import POSTERIOR, run_inference

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("rates"))
parser.add_argument("--smoke", action="store_true")
arguments = parser.parse_args()

recipe = InferenceRecipe(
    simulator={"name": "lotka_volterra"},
    method="npe",
    budget=200 if arguments.smoke else 5000,
    samples=1000 if arguments.smoke else 10_000,
    options=InferenceOptions(
        learning=LearningOptions(members=1, max_epochs=3) if arguments.smoke else LearningOptions()
    ),
    calibration=CalibrationOptions(count=50 if arguments.smoke else 300, predictive=50 if arguments.smoke else 300),
)
simulator = build_simulator(recipe.simulator)

truth = simulator.prior.sample(2, seed=7)  # two ecosystems that we pretend to have observed
observations = simulator.simulate(truth, simulation_seeds(7, 0, 2))

first = run_inference(recipe, simulator, arguments.out / "first", observations[0])
print("true rates:", dict(zip(simulator.prior.names, truth[0].round(4).tolist(), strict=True)))

again = arguments.out / "second"
run_inference(recipe, simulator, again, observations[1], posterior=first.folder / POSTERIOR)
print("true rates:", dict(zip(simulator.prior.names, truth[1].round(4).tolist(), strict=True)))
