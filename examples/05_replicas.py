"""Run many copies of a molecule in one batch with simkit's own engine, and average over them.

    python examples/05_replicas.py quickstart/training/model.safetensors --out replicas

Stopped at any time, it goes on to the bit when called again. `--smoke` makes a few steps only.
"""

import argparse
from pathlib import Path

from ase.build import molecule

from simkit.md.ensembles import Langevin, Ramp
from simkit.md.run import CHECKPOINT, run_md

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", type=Path)
parser.add_argument("--out", type=Path, default=Path("replicas"))
parser.add_argument("--smoke", action="store_true")
arguments = parser.parse_args()

steps = 20 if arguments.smoke else 4000
heating = Langevin(timestep=0.5, temperature=Ramp(300.0, 500.0, steps // 2), friction=0.02, seed=1)
result = run_md(
    arguments.model,
    molecule("CH3CH2OH"),
    heating,
    out=arguments.out,
    steps=steps,
    temperature=300.0,
    replicas=4 if arguments.smoke else 32,
    restart=(arguments.out / CHECKPOINT).exists(),
)
temperature = result.thermo["temperature_K"]
half = len(temperature) // 2
print(f"second half: {temperature[half:].mean():.0f} K, {temperature[half:].std():.0f} K of fluctuation")
print(f"{result.seconds:.1f} s; what was written: {sorted(path.name for path in result.folder.iterdir())}")
