"""A real pendulum: length and friction from 94 seconds of film, by the exact likelihood and from simulations, with predictive bands.

SIMKIT_DATA_DIR=FOLDER python benchmarks/inference_pendulum.py [--budget 10000] [--members 1] [--out FOLDER]

The data are those of Schmidt & Lipson (Science 324, 81 (2009)): angles and angular velocities, 6 a second; every third is used. The model
is q'' = -(g / l) sin q - alpha q' with normal errors of unknown size on both; the initial state is unknown too, and so are an offset of the
angle and a factor of the angular velocity, as the film was measured.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from simkit.files import data_dir
from simkit.inference.infer import InferenceOptions
from simkit.inference.learning import LearningOptions
from simkit.inference.recipe import CalibrationOptions, InferenceRecipe
from simkit.inference.simulators.systems import SystemSimulator
from simkit.surrogates.loaders import load_real_pendulum
from simkit.workflows.inference import run_inference

EVERY = 3


def problem() -> tuple[SystemSimulator, np.ndarray]:
    """Return the simulator and what was observed."""
    folder = data_dir()
    if folder is None:
        raise SystemExit("set SIMKIT_DATA_DIR to the folder that holds pendulum/real_pend_h_1.txt")
    data = load_real_pendulum(folder / "pendulum" / "real_pend_h_1.txt")
    times, q, v = data.times[::EVERY], data.q[0, ::EVERY, 0], data.p[0, ::EVERY, 0]
    prior: dict[str, Any] = {
        "length": {"uniform": [5.0, 10.0], "unit": "m"},
        "friction": {"log_uniform": [1e-3, 0.1], "unit": "1/s"},
        "initial_q1": {"normal": [float(q[0]), 0.1], "unit": "rad"},
        "initial_p1": {"normal": [float(v[0]), 0.1], "unit": "rad/s"},
        "offset_q1": {"normal": [0.0, 0.05], "unit": "rad"},
        "scale_p1": {"normal": [1.0, 0.1]},
        "noise_q1": {"log_uniform": [0.003, 0.5], "unit": "rad"},
        "noise_p1": {"log_uniform": [0.003, 0.5], "unit": "rad/s"},
    }
    simulator = SystemSimulator(
        "laboratory_pendulum", prior, times=times, timestep=1 / 12, units={"q1": "rad", "p1": "rad/s"}, time_unit="s"
    )
    return simulator, simulator.observation({"q1": q, "p1": v})


def main() -> None:
    """Infer by both methods, and print what they agree on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=int, default=10_000)
    parser.add_argument("--methods", default="hmc,snpe")
    parser.add_argument("--members", type=int, help="networks of an ensemble")
    parser.add_argument("--out", type=Path, default=Path("inference_pendulum"))
    args = parser.parse_args()
    simulator, observation = problem()
    found: dict[str, Any] = {}
    for method in args.methods.split(","):
        recipe = InferenceRecipe(
            simulator={"name": "system"},
            method=method,
            budget=args.budget,
            samples=500 if method == "hmc" else 4000,  # each is a chain of its own there
            seed=1,
            options=InferenceOptions(rounds=5, learning=LearningOptions(members=args.members)),
            calibration=CalibrationOptions(count=1 if method == "hmc" else 200, samples=100, seconds=120.0),
        )
        report = run_inference(recipe, simulator, args.out / method, observation)
        found[method] = None if report.summary is None else report.summary.to_dict()
    (args.out / "summary.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
