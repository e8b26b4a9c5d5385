"""Time per atom and step of a Lennard-Jones liquid: simkit's classical potential beside ASE's Lennard-Jones calculator, on a CPU.

python benchmarks/classical.py [--threads 1] [--seconds 2] [--sizes 1000 4096 32768 97336] [--out classical.json]

The liquid has density 0.8442 and temperature about 0.7 in reduced units, cutoff 2.5, skin 0.3, velocity Verlet with a step of 0.005: forces
and the rebuilding of lists are counted, as they come. simkit runs its own integrator, ASE its own. Each of simkit's figures is the best of
five runs; ASE is run once, and only up to 4096 atoms.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.lj import LennardJones as AseLennardJones
from ase.md.verlet import VelocityVerlet
from rich.console import Console
from rich.table import Table

from simkit import integrators
from simkit.classical import ClassicalPotential, LennardJones
from simkit.integrators import cpu

DENSITY, TEMPERATURE, CUTOFF, SKIN, TIMESTEP = 0.8442, 0.7, 2.5, 0.3, 0.005
LARGEST_FOR_ASE = 4096


def melt(atoms: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions and velocities after 200 steps from a simple cubic lattice, and the cell; ``atoms`` is rounded to a cube."""
    side = round(atoms ** (1 / 3))
    spacing = DENSITY ** (-1 / 3)
    x = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) * spacing
    # Twice the temperature: the lattice takes up half of it as it melts.
    v = np.random.default_rng(0).normal(size=x.shape) * np.sqrt(2 * TEMPERATURE)
    v -= v.mean(axis=0)
    cell = np.eye(3) * side * spacing
    native_run(x, v, cell)(200)
    return x, v, cell


def native_run(x: np.ndarray, v: np.ndarray, cell: np.ndarray) -> Callable[[int], Any]:
    potential = ClassicalPotential([LennardJones(1.0, 1.0, CUTOFF)], cell=cell, skin=SKIN)
    engine = cpu.Integrator(integrators.get("velocity-verlet"), potential, x, v, np.empty_like(x), np.ones(len(x)))
    engine.evaluate_forces()
    return lambda steps: engine.run(steps, timestep=TIMESTEP)


def ase_run(x: np.ndarray, v: np.ndarray, cell: np.ndarray) -> Callable[[int], Any]:
    system = Atoms(["Ar"] * len(x), positions=x, cell=cell, pbc=True, masses=np.ones(len(x)))
    system.set_velocities(v)
    system.calc = AseLennardJones(epsilon=1.0, sigma=1.0, rc=CUTOFF)
    system.get_forces()
    return VelocityVerlet(system, timestep=TIMESTEP).run


def nanoseconds(run: Callable[[int], Any], atoms: int, seconds: float, repeats: int) -> float:
    """Nanoseconds per atom and step: the best of ``repeats`` runs."""
    steps, elapsed = 1, 0.0
    while True:
        start = time.perf_counter()
        run(steps)
        elapsed = time.perf_counter() - start
        if elapsed > seconds / 20:
            break
        steps *= 2
    best, steps = elapsed / steps, max(steps, int(seconds / repeats * steps / elapsed))
    for _ in range(repeats if elapsed < seconds else 0):
        start = time.perf_counter()
        run(steps)
        best = min(best, (time.perf_counter() - start) / steps)
    return 1e9 * best / atoms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each figure")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[1000, 4096, 32768, 97336], help="atoms, cubes of integers"
    )
    parser.add_argument("--out", type=Path, default=Path("classical.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = Table("atoms", "simkit, ns", "ASE, ns", "ratio", title=f"per atom and step, {options.threads} thread(s)")
    rows = []
    for size in options.sizes:
        x, v, cell = melt(size)
        native = nanoseconds(native_run(x.copy(), v.copy(), cell), len(x), options.seconds, 5)
        peer = None
        if len(x) <= LARGEST_FOR_ASE:
            peer = nanoseconds(ase_run(x, v, cell), len(x), options.seconds, 1)
        rows.append({"atoms": len(x), "simkit_ns": native, "ase_ns": peer})
        ratio = ("", "") if peer is None else (f"{peer:,.0f}", f"{peer / native:.0f}")
        table.add_row(f"{len(x):,}", f"{native:,.0f}", *ratio)
    Console().print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"threads": options.threads, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
