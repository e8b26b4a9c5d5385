"""Replicas of ethanol under one PaiNN, in simkit's engine and in TorchSim's, taking turns in one process; both must be installed.

python benchmarks/torchsim_painn.py [--replicas 64] [--rounds 3] [--threads 1] [--out torchsim_painn.json]

The model is simkit's on both sides (random weights, published size, float32, reference path): what differs is the engine,
TorchSim's own loop and neighbor list, called for each system and step as in TorchSim's wrapper of MACE, against
`simkit.md.simulation.Simulation`.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import torch_sim as ts
from ase.build import molecule
from torch_sim.integrators.nve import nve
from torch_sim.models.interface import ModelInterface
from torch_sim.neighbors import vesin_nl_ts

import simkit
from simkit.graph import AtomGraph
from simkit.md.ensembles import NVE
from simkit.md.simulation import Simulation
from simkit.potential import Potential


class Wrapped(ModelInterface):
    """A `Potential` as TorchSim wants it."""

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.potential = potential.eval().requires_grad_(False)
        self._device, self._dtype = torch.device("cpu"), torch.float64
        self._compute_stress, self._compute_forces = False, True

    def forward(self, state: ts.SimState) -> dict[str, torch.Tensor]:
        """Energy [B] and forces [N, 3]."""
        count = state.cell.shape[0]
        sizes = torch.bincount(state.system_idx, minlength=count)
        ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        edges, cell = [], torch.eye(3, dtype=torch.float64)
        cutoff = torch.tensor(self.potential.cutoff, dtype=torch.float64)
        for k in range(count):
            found, _ = vesin_nl_ts(positions=state.positions[ptr[k] : ptr[k + 1]], cell=cell, pbc=False, cutoff=cutoff)
            edges.append(found + ptr[k])
        edge_index = torch.cat(edges, dim=1)
        edge_index = edge_index[:, edge_index[1].argsort(stable=True)]  # by receiver
        graph = AtomGraph(
            z=state.atomic_numbers, pos=state.positions, cell=state.cell, pbc=torch.zeros(count, 3, dtype=torch.bool),
            batch=state.system_idx, ptr=ptr, edge_index=edge_index,
        )  # fmt: skip
        found = self.potential(graph, ("energy", "forces"))
        return {"energy": found["energy"], "forces": found["forces"].double()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("torchsim_painn.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    potential = simkit.potentials.build("painn", cutoff=5.0, elements=[1, 6, 8], channels=128, layers=3, basis=20)
    simulation = Simulation(
        potential, molecule("CH3CH2OH"), NVE(0.5), replicas=options.replicas, temperature=300.0, fast=False
    )
    state = ts.io.atoms_to_state(simulation.atoms(), torch.device("cpu"), torch.float64)
    init, step = nve(
        Wrapped(potential), dt=torch.tensor(0.0005, dtype=torch.float64), kT=torch.tensor(0.025, dtype=torch.float64)
    )
    moving = init(state)
    simulation.run(3)
    times: dict[str, list[float]] = {"simkit": [], "torchsim": []}
    for _ in range(options.rounds):
        start = time.process_time()
        simulation.run(options.steps)
        times["simkit"].append((time.process_time() - start) / options.steps)
        start = time.process_time()
        for _ in range(options.steps):
            moving = step(moving)
        times["torchsim"].append((time.process_time() - start) / options.steps)
    medians = {name: 1000 * statistics.median(values) for name, values in times.items()}
    ratio = statistics.median(b / a for a, b in zip(times["simkit"], times["torchsim"], strict=True))
    ours, theirs = medians["simkit"], medians["torchsim"]
    print(f"{options.replicas} ethanol, processor ms per step: simkit {ours:.3g}, TorchSim {theirs:.3g}, {ratio:.2f}x")
    content = {"replicas": options.replicas, "threads": options.threads, "ms": medians, "ratio": ratio}
    options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
