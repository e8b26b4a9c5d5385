"""Fine-tune a trained model on a few frames of another level of theory.

    python examples/04_fine_tune.py quickstart/training/model.safetensors frames.xyz --out tuned

The reference energies are fitted to the new ones; elements that the model does not know are added. `--mode frozen` trains the readout
alone, `--mode low_rank` low-rank updates of the other weights. `--smoke` writes 16 frames to that file first, and trains for a moment.
The same from the shell: simkit train --start MODEL --data frames.xyz --set start.mode=low_rank --out tuned
"""

import argparse
from pathlib import Path

from ase.io import write

import simkit
from simkit.training.recipe import read_recipe
from simkit.workflows.train import MODEL, train

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", type=Path, help="model file to start from")
parser.add_argument("frames", type=Path, help="file of labelled frames")
parser.add_argument("--mode", choices=["full", "frozen", "low_rank"], default="full")
parser.add_argument("--out", type=Path, default=Path("tuned"))
parser.add_argument("--smoke", action="store_true")
arguments = parser.parse_args()
if arguments.smoke:
    write(arguments.frames, simkit.datasets.load("embedded").to_atoms(range(16)))

data = {"name": "frames", "paths": [str(arguments.frames)]}
recipe = read_recipe(
    None,
    overrides={
        "data": data,
        "start": {"model": str(arguments.model), "mode": arguments.mode},
        "split": {"valid": 0.2},
        "training": {"epochs": 2 if arguments.smoke else 200, "batch_size": 5, "learning_rate": 1e-3},
    },
)
report = train(recipe, arguments.out)
print(f"forces: MAE {1000 * report.metrics['valid']['forces_mae']:.1f} meV/angstrom on frames held out for validation")
print(f"read {arguments.out / 'report.md'}, and use {arguments.out / MODEL}")
