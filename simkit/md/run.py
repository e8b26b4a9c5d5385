"""`run_md`: a whole molecular dynamics run in a folder, with log, trajectory, checkpoint and plots; restartable to the bit."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from simkit import plotting, run_plots
from simkit.errors import ConfigError, OutputError, SimkitError
from simkit.files import atomic_path, ensure_output_dir, write_json
from simkit.md.analysis import energy_drift
from simkit.md.observers import ASETrajectory, H5MDTrajectory, Progress, StopRunaway, ThermoTable
from simkit.md.observers.thermo_table import read_thermo_table
from simkit.md.simulation import Simulation

if TYPE_CHECKING:
    from ase import Atoms

    from simkit.md.forces import ForceModel
    from simkit.md.protocols import Ensemble, Observer

CHECKPOINT, SETTINGS, LAST_GOOD = "checkpoint.npz", "run.json", "last_good.xyz"
THERMO, TRAJECTORY, H5MD = "thermo.csv", "trajectory.traj", "trajectory.h5"
MOST_FILES = 8  # replicas that get a file each in ASE's format, unless asked for otherwise

TrajectoryFormat = Literal["auto", "traj", "h5", "none"]


@dataclass(frozen=True)
class MDResult:
    """A finished run.

    Attributes:
        atoms: the last structures, with velocities; folder: where the files are.
        thermo: the columns of ``thermo.csv``, all parts of the run together; see `read_thermo_table`.
        drift: of the conserved quantity, meV/atom/ps, mean over the replicas; None where there are less than two rows.
        steps: done in this call; seconds: that they took.
    """

    atoms: list[Atoms]
    folder: Path
    thermo: dict[str, NDArray[np.float64]]
    drift: float | None
    steps: int
    seconds: float


def run_md(
    model: ForceModel,
    structures: Atoms | Sequence[Atoms],
    ensemble: Ensemble,
    *,
    out: str | os.PathLike[str],
    steps: int,
    temperature: float | None = None,
    seed: int = 0,
    replicas: int = 1,
    interval: int = 10,
    trajectory: TrajectoryFormat = "auto",
    checkpoint_interval: int = 1000,
    restart: bool = False,
    observers: Sequence[Observer] = (),
    device: str | None = None,
    dtype: str | None = None,
    skin: float | None = None,
    fast: bool | None = None,
) -> MDResult:
    """Run molecular dynamics and write ``thermo.csv``, a trajectory, ``checkpoint.npz``, ``run.json`` and plots into ``out``.

    Interrupting (Ctrl-C, SIGTERM) saves a checkpoint. A run that was interrupted, killed or is to be made longer goes on with
    ``restart=True`` and the same structures, model and settings; on a CPU with the same number of threads, everything that it writes
    is the same, bit for bit, as if it had never stopped. The structures passed in are not changed.

    Args:
        model, structures, ensemble, replicas, device, dtype, skin, fast: see `Simulation`.
        steps: of the whole run, including those done before a restart.
        temperature: kelvin, of starting velocities; None keeps those of the structures.
        seed: of the starting velocities.
        interval: steps between two rows of ``thermo.csv`` and frames of the trajectory.
        trajectory: "traj" (ASE's, a file for each replica), "h5" (H5MD, all in one), "none", or "auto": "traj" for up to eight replicas.
        checkpoint_interval: steps between checkpoints; at most these are lost when the process is killed.
        observers: further ones.

    Raises:
        ConfigError: if a setting is unusable.
        OutputError: if the folder cannot be written, holds a run (without ``restart``), or none or another one (with it).
        SimkitError: if the simulation breaks down; the message names the step, and ``last_good.xyz`` holds the last good structures.
        KeyboardInterrupt: if interrupted, after the checkpoint has been saved.
    """
    if steps < 1 or interval < 1:
        raise ConfigError(f"steps and interval must be at least 1, found {steps} and {interval}")
    folder = ensure_output_dir(out)
    _check_folder(folder, restart)
    count = replicas * (len(structures) if isinstance(structures, Sequence) else 1)
    simulation = Simulation(
        model, structures, ensemble, replicas=replicas, temperature=temperature, seed=seed, device=device, dtype=dtype, skin=skin,
        fast=fast,
        observers=[*_observers(folder, ensemble, steps, interval, trajectory, count), *observers],
        checkpoint=folder / CHECKPOINT, checkpoint_interval=checkpoint_interval,
    )  # fmt: skip
    if restart:
        simulation.restore(folder / CHECKPOINT)
        if simulation.step > steps:
            raise ConfigError(f"{steps} steps were asked for in all, but the run has done {simulation.step} already")
    else:
        write_json(folder / SETTINGS, simulation.identity)
    started, first = time.perf_counter(), simulation.step
    with simulation:
        try:
            simulation.run(steps - first)
        except (ConfigError, OutputError):  # nothing is wrong with the structures
            raise
        except SimkitError as error:
            _keep(folder / LAST_GOOD, simulation.atoms())
            raise SimkitError(f"{error}. The last good structures are in {folder / LAST_GOOD}") from error
    seconds = time.perf_counter() - started
    thermo = read_thermo_table(folder / THERMO)
    atoms = simulation.atoms()
    drift = save_plots(folder, thermo, [len(a) for a in atoms]) if len(thermo["step"]) > 1 else None
    return MDResult(atoms, folder, thermo, drift, simulation.step - first, seconds)


def _check_folder(folder: Path, restart: bool) -> None:
    """Refuse to mix two runs."""
    if restart:
        return  # the checkpoint and the observers check what they find
    present = [name for name in (CHECKPOINT, SETTINGS, THERMO) if (folder / name).exists()]
    present += sorted(path.name for path in folder.glob("trajectory*"))
    if present:
        raise OutputError(
            f"{folder} holds a run already ({', '.join(present)}); continue it with restart, or choose another folder"
        )


def _observers(
    folder: Path, ensemble: Ensemble, steps: int, interval: int, trajectory: TrajectoryFormat, replicas: int
) -> list[Observer]:
    found: list[Observer] = [ThermoTable(folder / THERMO, interval, pressure=ensemble.needs_stress)]
    if trajectory == "traj" or (trajectory == "auto" and replicas <= MOST_FILES):
        found.append(ASETrajectory(folder / TRAJECTORY, interval))
    elif trajectory != "none":
        found.append(H5MDTrajectory(folder / H5MD, interval))
    return [*found, StopRunaway(interval), Progress(steps, interval)]


def _keep(path: Path, structures: Sequence[Atoms]) -> None:
    from ase.io import write

    with atomic_path(path) as temporary:
        write(temporary, list(structures), format="extxyz")


def save_plots(folder: Path, thermo: dict[str, NDArray[np.float64]], atoms: Sequence[int]) -> float:
    """Draw the columns of a table into a folder, and return the drift of the conserved quantity, meV/atom/ps.

    Args:
        thermo: see `read_thermo_table`. atoms: of each replica.
    """
    time_fs, conserved = thermo["time_fs"], thermo["conserved_eV"]
    drift = float(np.mean([energy_drift(time_fs, conserved[:, k], n) for k, n in enumerate(atoms)]))
    axes = {
        "energy": run_plots.energy_trace(time_fs, thermo["potential_eV"], thermo["kinetic_eV"], conserved),
        "temperature": run_plots.course(time_fs, thermo["temperature_K"], "temperature", "K"),
        "drift": run_plots.drift_plot(time_fs, conserved, atoms, drift),
    }
    if "pressure_GPa" in thermo:
        axes["pressure"] = run_plots.course(time_fs, thermo["pressure_GPa"], "pressure", "GPa")
        axes["volume"] = run_plots.course(time_fs, thermo["volume_angstrom3"], "volume", "Å³")
    for name, drawn in axes.items():
        plotting.save(drawn, folder / f"{name}.png")
    return drift
