"""From one structure to a potential: draw geometries, label them with GFN2-xTB, train.

    python examples/03_label_and_train.py --out water

Needs pip install 'simkit[xtb]'. From the shell:
    simkit sample water.xyz --method gfn2-xtb --temperatures 300,600 --frames 200 -o drawn.xyz
    simkit label drawn.xyz --method gfn2-xtb -o labelled.xyz
    simkit train --data labelled.xyz --out water
"""

import argparse
from pathlib import Path

from ase.build import molecule

from simkit.labeling.label import label_structures
from simkit.labeling.sample import sample_thermal
from simkit.training.recipe import read_recipe
from simkit.workflows.train import train

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("water"))
parser.add_argument("--smoke", action="store_true", help="a few frames and a tiny model")
arguments = parser.parse_args()
frames, steps, channels, epochs = (12, 20, 8, 2) if arguments.smoke else (200, 2000, 64, 200)

arguments.out.mkdir(parents=True, exist_ok=True)
labelled = arguments.out / "labelled.xyz"
drawn = sample_thermal(
    molecule("H2O"),
    "gfn2-xtb",
    temperatures=[300, 600],
    frames=frames,
    seed=0,
    equilibration_steps=steps,
    spacing_steps=steps // 10,
)
label_structures(drawn, "gfn2-xtb", labelled, overwrite=True)
recipe = read_recipe(
    None,
    overrides={
        "data": {"name": "frames", "paths": [str(labelled)], "level_of_theory": "GFN2-xTB"},
        "model": {"name": "painn", "channels": channels, "layers": 2},
        "training": {"epochs": epochs, "batch_size": 5},
    },
)
report = train(recipe, arguments.out / "training")
print(f"forces: MAE {1000 * report.metrics['valid']['forces_mae']:.1f} meV/angstrom; model: {report.folder}")
