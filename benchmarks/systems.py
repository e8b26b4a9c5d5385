"""The structures and timing loops of the speed benchmarks. It needs ASE and NumPy only, so that peers' environments can import it."""

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule


def structures() -> dict[str, Atoms]:
    """Return an isolated molecule of 14 atoms, and periodic silicon of 64 and of 512 atoms, rattled by 0.05 angstrom."""
    rng = np.random.default_rng(0)
    silicon = bulk("Si", cubic=True)
    out = {"mol14": molecule("isobutane"), "si64": silicon * (2, 2, 2), "si512": silicon * (4, 4, 4)}
    for name in ("si64", "si512"):
        out[name].positions += rng.normal(0.0, 0.05, out[name].positions.shape)
    return out


def median_ms(function: Callable[[], Any], *, budget_s: float = 5.0, most: int = 200, warmup: int = 4) -> float:
    """Return the median wall time of a call in milliseconds."""
    for _ in range(warmup):
        function()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - start < budget_s and len(times) < most):
        before = time.perf_counter()
        function()
        times.append(time.perf_counter() - before)
    return 1e3 * float(np.median(times))


def best_of(run: Callable[[], Any], seconds: float, clock: Callable[[], float]) -> tuple[float, Any]:
    """Return the shortest time of a run, repeated for a while but at least once, and what it returned."""
    best, end = np.inf, clock() + seconds
    while True:
        start = clock()
        found = run()
        best = min(best, clock() - start)
        if clock() > end:
            return best, found


def ase_step_ms(atoms: Atoms, calculator: Any) -> float:
    """Median time of an MD-like step through ASE: every atom moves by about 1e-3 angstrom, then forces and energy."""
    atoms = atoms.copy()
    atoms.calc = calculator
    rng = np.random.default_rng(1)

    def step() -> None:
        atoms.positions += rng.normal(0.0, 1e-3, atoms.positions.shape)
        atoms.get_forces()
        atoms.get_potential_energy()

    return median_ms(step)


def qm9_molecules(path: str, count: int = 100) -> list[Atoms]:
    """Return random QM9 molecules from the flat .npz file, the same on every call."""
    with np.load(path) as data:
        numbers, positions = data["numbers"], data["positions"]
        ptr = np.concatenate([[0], np.cumsum(data["n_atoms"].astype(np.int64))])
    chosen = np.random.default_rng(0).choice(len(ptr) - 1, count)
    return [Atoms(numbers[ptr[k] : ptr[k + 1]], positions[ptr[k] : ptr[k + 1]]) for k in chosen]


def rmd17_frames(path: str | Path, count: int = 10) -> list[Atoms]:
    """Return the first frames of a file of rMD17."""
    with np.load(path) as data:
        numbers, frames = data["nuclear_charges"], data["coords"][:count]
    return [Atoms(numbers, frame) for frame in frames]


def training_batches(data: str) -> dict[str, tuple[list[Atoms], bool]]:
    """Return the training batches by name, with whether forces are trained; ``data`` is the folder of QM9 and rMD17."""
    return {
        "qm9 x100, energy": (qm9_molecules(f"{data}/qm9/qm9.npz"), False),
        "ethanol x10, forces": (rmd17_frames(f"{data}/rmd17/rmd17_ethanol_train_01.npz"), True),
    }


def peak_memory_mb() -> float:
    """Return the peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
