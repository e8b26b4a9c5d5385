"""Seconds per step of TorchSim's Lennard-Jones liquid; `benchmarks/classical.py` runs it in an environment that has TorchSim.

python benchmarks/torchsim_lj.py LIQUID.npz --threads 1 --steps 20
"""

import argparse
import json
import time

import numpy as np
import torch
import torch_sim as ts
from torch_sim.integrators.nve import nve
from torch_sim.models.lennard_jones import LennardJonesModel


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("liquid")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    liquid = np.load(options.liquid)
    model = LennardJonesModel(1.0, 1.0, dtype=torch.float64, cutoff=float(liquid["cutoff"]), device=torch.device("cpu"))
    atoms = len(liquid["x"])
    state = ts.SimState(
        positions=torch.from_numpy(liquid["x"] % np.diag(liquid["cell"])),
        masses=torch.ones(atoms, dtype=torch.float64),
        cell=torch.from_numpy(liquid["cell"]).unsqueeze(0),
        pbc=True,
        atomic_numbers=torch.full((atoms,), 18),
    )
    init, step = nve(
        model,
        dt=torch.tensor(float(liquid["timestep"]), dtype=torch.float64),
        kT=torch.tensor(0.7, dtype=torch.float64),
    )
    moving = init(state)
    moving.momenta.copy_(torch.from_numpy(liquid["v"]))
    moving = step(moving)
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(options.steps):
        moving = step(moving)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(json.dumps({"wall": wall / options.steps, "cpu": cpu / options.steps, "energy": float(moving.energy.sum())}))


if __name__ == "__main__":
    main()
