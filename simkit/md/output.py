"""What a run writes: the thermodynamic log, the trajectory, a live line on the terminal, and plots."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simkit import plotting
from simkit.errors import DataError
from simkit.files import atomic_path, write_text
from simkit.md.analysis import energy_drift

if TYPE_CHECKING:
    from ase import Atoms

COLUMNS = ("step", "time_fs", "temperature_K", "potential_eV", "kinetic_eV", "total_eV")
THERMO, TRAJECTORY = "thermo.csv", "trajectory.traj"


class RunOutput:
    """``thermo.csv`` and ``trajectory.traj``, one row and one frame for the same step, opened to go on after ``frames`` of them.

    Numbers are written so that reading gives back the same bits.
    """

    def __init__(self, folder: Path, frames: int) -> None:
        """Anything beyond ``frames`` was written after the checkpoint and is removed.

        Raises:
            DataError: if there are fewer rows or frames.
        """
        from ase.io.trajectory import TrajectoryWriter

        self.thermo_path, self.trajectory_path = folder / THERMO, folder / TRAJECTORY
        self.frames = frames
        if frames == 0:
            self.trajectory_path.unlink(missing_ok=True)
            write_text(self.thermo_path, ",".join(COLUMNS) + "\n")
        else:
            _cut_rows(self.thermo_path, frames)
            _cut_frames(self.trajectory_path, frames)
        self._thermo = self.thermo_path.open("a", encoding="utf-8")
        self._trajectory = TrajectoryWriter(self.trajectory_path, mode="a")

    def write(self, atoms: Atoms, step: int, time_fs: float, temperature: float) -> None:
        """Append a row and a frame."""
        potential, kinetic = float(atoms.get_potential_energy()), float(atoms.get_kinetic_energy())
        row = (step, time_fs, temperature, potential, kinetic, potential + kinetic)
        self._thermo.write(",".join(map(repr, row)) + "\n")
        atoms.info.update(step=step, time_fs=time_fs)
        self._trajectory.write(atoms)
        self.frames += 1

    def flush(self) -> None:
        """Make sure that everything written is on the disk."""
        self._thermo.flush()
        os.fsync(self._thermo.fileno())
        if self.frames:
            with self.trajectory_path.open("rb") as stream:
                os.fsync(stream.fileno())

    def close(self) -> None:
        """Close both files."""
        self._thermo.close()
        self._trajectory.close()


def _cut_rows(path: Path, rows: int) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    complete = sum(line.endswith("\n") for line in lines) - 1
    if complete < rows:
        raise DataError(
            f"{path} holds {max(complete, 0)} rows, but the checkpoint {rows}; start the run again in a new folder"
        )
    if len(lines) > rows + 1:
        write_text(path, "".join(lines[: rows + 1]))


def _cut_frames(path: Path, frames: int) -> None:
    """Keep the first frames. The rest can be broken where a process was killed; the reader does not look at it."""
    from ase.io.trajectory import TrajectoryReader, TrajectoryWriter

    try:
        with TrajectoryReader(path) as old:
            found = len(old)
            if found > frames:
                with atomic_path(path) as temporary, TrajectoryWriter(temporary, mode="w") as new:
                    for k in range(frames):
                        new.write(old[k])
    except (OSError, ValueError) as error:
        raise DataError(
            f"the trajectory {path} cannot be read ({error}); start the run again in a new folder"
        ) from error
    if found < frames:
        raise DataError(
            f"{path} holds {found} frames, but the checkpoint {frames}; start the run again in a new folder"
        )


def read_thermo(folder: Path) -> dict[str, NDArray[np.float64]]:
    """Return the columns of ``thermo.csv``.

    Raises:
        DataError: if there is none, or it is not one.
    """
    path = folder / THERMO
    try:
        table = np.genfromtxt(path, delimiter=",", skip_header=1, ndmin=2)
        return {name: table[:, k] for k, name in enumerate(COLUMNS)}
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{path} is not the log of a run ({error})") from None


def save_plots(folder: Path, thermo: dict[str, NDArray[np.float64]], n_atoms: int, target: float | None) -> None:
    """Write ``temperature.png``, ``energy.png`` and, without a thermostat (``target`` None), ``drift.png``."""
    t, total = thermo["time_fs"], thermo["total_eV"]
    plotting.save(plotting.temperature_trace(t, thermo["temperature_K"], target), folder / "temperature.png")
    plotting.save(plotting.energy_trace(t, thermo["potential_eV"], thermo["kinetic_eV"], total), folder / "energy.png")
    if target is None:
        drift = energy_drift(t, total, n_atoms)
        plotting.save(plotting.drift_plot(t, total, n_atoms, drift), folder / "drift.png")


class LiveLine:
    """A progress bar with temperature and energy; nothing when standard error is not a terminal."""

    PERIOD = 0.2  # seconds between two updates

    def __init__(self, total: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._shown = sys.stderr.isatty()
        self._progress = Progress(
            TextColumn("MD"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"),
            console=Console(stderr=True),
            disable=not self._shown,
        )
        self._task = self._progress.add_task("MD", total=total, completed=done, state="")
        self._last = 0.0

    def __enter__(self) -> LiveLine:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def show(self, step: int, total: int, temperature: float, energy: float) -> None:
        """Update the line, at most a few times per second."""
        now = time.monotonic()
        if self._shown and (now - self._last > self.PERIOD or step == total):
            self._last = now
            self._progress.update(self._task, completed=step, state=f"T {temperature:6.0f} K   E {energy:.4f} eV")
