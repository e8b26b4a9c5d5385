"""Train a potential on your own labelled frames.

    python examples/01_train_your_frames.py frames.xyz --out my_model

The frames are anything that ASE reads with energies and forces. `--smoke` makes a few and trains for a moment.
The same from the shell: simkit train --data frames.xyz --out my_model
"""

import argparse
from pathlib import Path

from ase.io import write

import simkit
from simkit.training.recipe import read_recipe
from simkit.workflows.train import train

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("frames", type=Path, help="file of labelled frames")
parser.add_argument("--out", type=Path, default=Path("my_model"))
parser.add_argument("--smoke", action="store_true", help="write 40 frames to that file first, and train for two epochs")
arguments = parser.parse_args()

model, training = {"name": "painn", "cutoff": 5.0, "channels": 64}, {"epochs": 300, "batch_size": 10}
if arguments.smoke:
    write(arguments.frames, simkit.datasets.load("embedded").to_atoms(range(40)))
    model, training = {"name": "painn", "channels": 8, "layers": 1}, {"epochs": 2, "batch_size": 10}

data = {"name": "frames", "paths": [str(arguments.frames)]}
recipe = read_recipe(None, overrides={"data": data, "model": model, "training": training})
report = train(recipe, arguments.out)
print(f"forces: MAE {1000 * report.metrics['valid']['forces_mae']:.1f} meV/angstrom on frames held out for validation")
print(f"read {arguments.out / 'report.md'}, and use {arguments.out / 'model.safetensors'}")
