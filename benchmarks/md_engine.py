"""Replicas of ethanol under PaiNN in one batch, beside as many runs of ASE with simkit's calculator, taking turns in one process.

python benchmarks/md_engine.py [--model FILE] [--replicas 1 8 64] [--rounds 3] [--threads 1] [--device cpu] [--out md_engine.json]

Velocity Verlet on both sides. The ASE runs are one run, repeated: 64 of them take 64 times as long on the same cores. Without a model file
the network has random weights and the published size (128 channels, 3 layers, 20 basis functions, cutoff 5 angstrom); a step costs the
same. "outside" is the share of a step that is not spent in the model: integrator, edges, copies, checks. Processor time is
measured besides wall time: on a machine that does other things it is the one to compare (with one thread on the CPU).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.build import molecule
from ase.md.verlet import VelocityVerlet
from ase.units import fs
from rich.console import Console
from rich.table import Table

import simkit
from simkit.md.ensembles.nve import NVE
from simkit.md.forces import PotentialForces
from simkit.md.simulation import Simulation
from simkit.potential import Potential

TIMESTEP = 0.5  # fs
TEMPERATURE = 300.0


def clock(device: torch.device) -> float:
    """Processor time, which the machine's other work is not in; on a GPU the time that has passed when it is done."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


class Watch:
    """Time that the calls of a function take."""

    def __init__(self, function: Any, device: torch.device) -> None:
        self.function, self.device, self.seconds = function, device, 0.0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        started = clock(self.device)
        result = self.function(*arguments, **options)
        self.seconds += clock(self.device) - started
        return result


def timed(advance: Any, seconds: float, device: torch.device) -> dict[str, float]:
    """Steps per second that passes and per second of `clock`; ``advance(n)`` makes n steps."""
    steps, batch = 0, 1
    wall, cpu = time.perf_counter(), clock(device)
    while (elapsed := time.perf_counter() - wall) < seconds:
        advance(batch)
        steps += batch
        batch *= 2
    return {"wall": steps / elapsed, "cpu": steps / (clock(device) - cpu)}


def ase_run(potential: Potential, atoms: Atoms, options: argparse.Namespace) -> Any:
    atoms = atoms.copy()
    atoms.calc = simkit.Calculator(potential, device=options.device)
    return VelocityVerlet(atoms, TIMESTEP * fs).run


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    if options.model is None:
        potential = simkit.potentials.build("painn", cutoff=5.0, elements=[1, 6, 8], channels=128, layers=3, basis=20)
    else:
        potential = simkit.potentials.load(options.model)
    device, ethanol = torch.device(options.device), molecule("CH3CH2OH")
    batches = {
        n: Simulation(
            PotentialForces(potential, options.device), ethanol, NVE(TIMESTEP), replicas=n, temperature=TEMPERATURE
        )
        for n in options.replicas
    }
    watches = {}
    for n, simulation in batches.items():
        forces = simulation.forces
        watches[n] = forces.model = Watch(forces.model, device)  # type: ignore[attr-defined]
    single = ase_run(potential, batches[options.replicas[0]].atoms()[0], options)
    for advance in (single, *(simulation.run for simulation in batches.values())):
        advance(3)
    rounds: dict[Any, list[dict[str, float]]] = {"ase": [], **{n: [] for n in batches}}
    for _ in range(options.rounds):
        rounds["ase"].append(timed(single, options.seconds, device))
        for n, simulation in batches.items():
            watches[n].seconds, started = 0.0, clock(device)
            found = timed(simulation.run, options.seconds, device)
            rounds[n].append({**found, "outside": 1 - watches[n].seconds / (clock(device) - started)})
    rows = [{"engine": "ase", "replicas": 1, **medians(rounds["ase"])}]
    for n in batches:
        gains = {
            f"gain_{kind}": statistics.median(
                n * own[kind] / ase[kind] for own, ase in zip(rounds[n], rounds["ase"], strict=True)
            )
            for kind in ("wall", "cpu")
        }
        rows.append({"engine": "simkit", "replicas": n, **medians(rounds[n]), **gains})
    return rows


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model file instead of random weights")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("md_engine.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = measure(options)
    titles = {
        "engine": "engine", "replicas": "replicas", "wall": "steps/s", "cpu": "steps per cpu second", "outside": "outside the model",
        "gain_wall": "times the throughput of ASE runs", "gain_cpu": "the same in cpu time",
    }  # fmt: skip
    table = Table(
        title=f"ethanol, PaiNN, {options.device}, {options.threads} thread(s), median of {options.rounds} rounds"
    )
    for title in titles.values():
        table.add_column(title)
    for row in rows:
        table.add_row(*(_text(row.get(name)) for name in titles))
    Console(width=160).print(table)
    content = {"threads": options.threads, "device": options.device, "model": options.model or "random", "rows": rows}
    options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
