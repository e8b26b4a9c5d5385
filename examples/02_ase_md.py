"""Relax a molecule and run dynamics with a trained model, through ASE.

    python examples/02_ase_md.py quickstart/training/model.safetensors

`--smoke` makes a few steps only.
"""

import argparse
from pathlib import Path

import numpy as np
from ase import units
from ase.build import molecule
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

import simkit

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", type=Path)
parser.add_argument("--smoke", action="store_true")
arguments = parser.parse_args()

atoms = molecule("CH3CH2OH")
atoms.calc = simkit.Calculator(arguments.model, dtype="float64")
BFGS(atoms, logfile=None).run(fmax=0.01, steps=3 if arguments.smoke else 200)
print(f"relaxed: {atoms.get_potential_energy():.4f} eV")

spread = np.sqrt(atoms.get_masses() * units.kB * 600)  # of the momenta at 600 K
atoms.set_momenta(np.random.default_rng(0).normal(size=(len(atoms), 3)) * spread[:, None])
dynamics = VelocityVerlet(atoms, timestep=0.5 * units.fs)
for _ in range(2 if arguments.smoke else 20):
    dynamics.run(2 if arguments.smoke else 100)
    time = dynamics.get_time() / units.fs
    print(f"{time:6.0f} fs  {atoms.get_temperature():5.0f} K  {atoms.get_total_energy():.5f} eV")
