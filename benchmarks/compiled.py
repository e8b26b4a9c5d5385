"""Compiled networks beside the reference path, and NequIP beside its authors' program compiled by its own command.

python benchmarks/compiled.py [--models mace,nequip] [--threads 1] [--peer ENV/bin/python] [--out compiled.json]

Milliseconds of energies and forces at default sizes, random weights, float32. What is compiled is kept in the cache folder; what is not
there yet takes minutes for each architecture and, where a network depends on the elements, for each set of them. ``--peer`` names the
Python of an environment that holds nequip (see peers/nequip_speed.py); then steps through ASE are timed as well.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from speed import HERE, run
from systems import ase_step_ms, median_ms, structures
from tables import print_rows

import simkit
from simkit.graph import AtomGraph
from simkit.potential import Potential

CUTOFFS = {"ani": 5.2}
"""Where it is not 5 angstrom."""


def cases() -> dict[str, list[Atoms]]:
    """One molecule, two crystals and a batch of molecules, all of them rattled."""
    rng = np.random.default_rng(0)
    silicon = bulk("Si", cubic=True)
    found = {
        "ethanol": [molecule("CH3CH2OH")],
        "64 Si": [silicon * (2, 2, 2)],
        "512 Si": [silicon * (4, 4, 4)],
        "400 ethanols": [molecule("CH3CH2OH") for _ in range(400)],
    }
    for atoms in (atoms for frames in found.values() for atoms in frames):
        atoms.positions += rng.normal(0.0, 0.05, atoms.positions.shape)
    return found


def build(name: str) -> Potential:
    """Random weights; compiled networks are taken for any number of edges, also where they are not the faster ones."""
    potential = simkit.potentials.build(name, cutoff=CUTOFFS.get(name, 5.0), elements=[1, 6, 8, 14]).eval()
    type(potential.representation).compiled_edges = 2**30
    return potential.requires_grad_(False)


def measure(name: str) -> list[dict[str, Any]]:
    """Both paths for every case."""
    rows = []
    potential = build(name)
    for label, frames in cases().items():
        graph, fast = AtomGraph.from_ase(frames, potential.cutoff), potential.fast()
        row: dict[str, Any] = {"model": name, "case": label, "edges": graph.edge_index.shape[1]}
        row["reference_ms"] = median_ms(lambda graph=graph: potential(graph, ("energy", "forces")), warmup=2)
        fast.compile(graph.z)
        row["compiled_ms"] = median_ms(lambda graph=graph, fast=fast: fast(graph, ("energy", "forces")), warmup=2)
        if fast.reason:
            raise SystemExit(f"{name}: {fast.reason}")
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def beside_nequip(python: str) -> list[dict[str, Any]]:
    """Steps through ASE of both programs' NequIP, not compiled and compiled."""
    peer = {
        mode: run(python, HERE / "peers" / "nequip_speed.py", "nequip", "md", mode)["ms"]
        for mode in ("eager", "compiled")
    }
    potential, rows = build("nequip"), []
    for label, atoms in structures().items():
        row = {"system": label, "reference_ms": ase_step_ms(atoms, simkit.Calculator(potential, fast=False))}
        potential.fast().compile(torch.tensor(atoms.numbers))
        row["compiled_ms"] = ase_step_ms(atoms, simkit.Calculator(potential))
        rows.append(row | {f"peer_{mode}_ms": times[label] for mode, times in peer.items()})
    return rows


def main() -> None:
    """Measure and print tables."""
    known = [n for n in simkit.potentials.available() if simkit.potentials.architecture(n)[0].compiled_edges]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(known))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer")
    parser.add_argument("--out", type=Path, default=Path("compiled.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {"compiled": [row for name in options.models.split(",") if name for row in measure(name)]}
    if options.peer:
        found["nequip"] = beside_nequip(options.peer)
    for title, rows in found.items():
        print_rows(f"{title}, {options.threads} thread(s)", rows)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
