"""Steps per second of simkit's integrators on a CPU beside ASE's, with a force that costs next to nothing.

python benchmarks/integrators.py [--threads 1] [--seconds 0.5] [--out integrators.json]

Each figure is the best of several runs of `--seconds` altogether. The force is that of a spring, so that what is measured is the loop:
ASE's VelocityVerlet and Langevin with a calculator of one NumPy operation; simkit with the same operation called from Python, and with a
compiled force. Replicas are independent molecules, which ASE runs one after the other. The last column is the memory that a step of
velocity Verlet must move at least (positions, velocities and forces read, positions and velocities written, the inverse masses and the
force's own access), as a share of what copying an array far larger than the caches reaches: above 1, the system lives in a cache.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.units
import numpy as np
import torch
from ase import Atoms
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from numba import njit
from rich.console import Console
from rich.table import Table

from simkit import integrators
from simkit.integrators import Bath, cpu

SYSTEMS = {"5 atoms": (1, 5), "1,000 atoms": (1, 1000), "100,000 atoms": (1, 100_000), "4,096 x 9 atoms": (4096, 9)}
TIMESTEP = 0.01


@njit
def spring(x, f):  # type: ignore[no-untyped-def]
    source, target = x.reshape(-1), f.reshape(-1)
    for k in range(len(source)):
        target[k] = -source[k]


@njit
def spring_of_one(replica, x, f):  # type: ignore[no-untyped-def]
    for i in range(x.shape[0]):
        for d in range(x.shape[1]):
            f[i, d] = -x[i, d]


def spring_in_python(x: np.ndarray, f: np.ndarray) -> None:
    np.negative(x, out=f)


class Spring:
    """The least that ASE takes for a calculator."""

    def get_forces(self, atoms: Atoms) -> np.ndarray:
        return -atoms.positions


def steps_per_second(run: Callable[[int], None], seconds: float) -> float:
    """The best of five runs, each of a fifth of the time."""
    run(1)
    steps, elapsed = 1, 0.0
    while elapsed < seconds / 20:
        steps *= 2
        start = time.perf_counter()
        run(steps)
        elapsed = time.perf_counter() - start
    steps = max(1, int(steps * seconds / 5 / elapsed))
    best = np.inf
    for _ in range(5):
        start = time.perf_counter()
        run(steps)
        best = min(best, time.perf_counter() - start)
    return float(steps / best)


def ase_run(scheme: str, atoms: int) -> Callable[[int], None]:
    system = Atoms(["Ar"] * atoms, positions=np.random.default_rng(0).normal(size=(atoms, 3)))
    system.calc = Spring()
    if scheme == "velocity-verlet":
        return VelocityVerlet(system, timestep=TIMESTEP).run
    rng = np.random.default_rng(1)
    return Langevin(system, timestep=TIMESTEP, temperature_K=1 / ase.units.kB, friction=1.0, fixcm=False, rng=rng).run


def simkit_run(scheme: str, replicas: int, atoms: int, force: Any) -> Callable[[int], None]:
    rng = np.random.default_rng(0)
    x, v, f = *rng.normal(size=(2, replicas * atoms, 3)), np.zeros((replicas * atoms, 3))
    offsets = np.arange(0, replicas * atoms + 1, atoms)
    integrator = cpu.Integrator(
        integrators.get(scheme), force, x, v, f, np.ones(len(x)), offsets=offsets, one_replica=force is spring_of_one
    )
    integrator.evaluate_forces()
    bath = Bath(1.0, 1.0, 1) if integrators.get(scheme).stochastic else None
    return lambda steps: integrator.run(steps, timestep=TIMESTEP, bath=bath)


def copy_bandwidth(seconds: float) -> float:
    """Bytes read and written per second by copying an array far larger than the caches."""
    source = np.ones(20_000_000)
    target = np.empty_like(source)

    def copies(count: int) -> None:
        for _ in range(count):
            np.copyto(target, source)

    return 2 * source.nbytes * steps_per_second(copies, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each figure")
    parser.add_argument("--out", type=Path, default=Path("integrators.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)  # governs simkit's kernels, too
    bandwidth = copy_bandwidth(options.seconds)
    rows = []
    for scheme, peer in (("velocity-verlet", "VelocityVerlet"), ("baoab", "Langevin")):
        for label, (replicas, atoms) in SYSTEMS.items():
            forces = {"python": spring_in_python, "compiled": spring}
            if replicas > 1:
                forces["one replica"] = spring_of_one
            row: dict[str, Any] = {"scheme": scheme, "system": label, "ase": peer}
            row["ase_steps"] = steps_per_second(ase_run(scheme, atoms), options.seconds) / replicas
            for name, force in forces.items():
                row[f"{name}_steps"] = steps_per_second(simkit_run(scheme, replicas, atoms, force), options.seconds)
            best = max(row[f"{name}_steps"] for name in forces)
            row["ratio"] = best / row["ase_steps"]
            row["ns_per_atom"] = 1e9 / (best * replicas * atoms)
            if scheme == "velocity-verlet":
                row["copy_share"] = row["compiled_steps"] * replicas * atoms * 8 * 8 * 3 / bandwidth
            rows.append(row)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(title=f"steps per second, {options.threads} thread(s); copying moves {bandwidth / 1e9:.1f} GB/s")
    for name in columns:
        table.add_column(name)
    for row in rows:
        cells = [row.get(name, "") for name in columns]
        table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells))
    Console().print(table)
    result = {"threads": options.threads, "copy_bytes_per_second": bandwidth, "rows": rows}
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
