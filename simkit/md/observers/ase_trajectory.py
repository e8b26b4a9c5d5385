"""`ASETrajectory`: trajectories in ASE's own format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simkit.errors import OutputError
from simkit.files import atomic_path
from simkit.md.observers.files import check_interval, check_kept, new_file, writing

if TYPE_CHECKING:
    from ase import Atoms

    from simkit.md.protocols import Frame
    from simkit.md.state import State


class ASETrajectory:
    """ASE's ``.traj``: positions, velocities, cell, energy and forces, with ``step`` and ``time_fs`` in the info of every frame.

    Several replicas are several files, ``run_0000.traj`` for ``run.traj``, and each is written in turn: for more than some tens of them,
    `H5MDTrajectory` is the better choice.
    """

    needs = frozenset({"positions", "velocities", "forces", "cells", "energy"})

    def __init__(self, path: str | os.PathLike[str], interval: int) -> None:
        """Nothing is written before `open`.

        Raises:
            ConfigError: if the interval is not positive.
        """
        self.path, self.interval = Path(path), check_interval(interval)
        self._writers: list[Any] = []
        self._structures: list[Atoms] = []
        self._paths: list[Path] = []
        self._offsets: list[int] = []

    def open(self, state: State, timestep: float, kept: int | None) -> None:
        """See `Observer.open`."""
        from ase.io.trajectory import TrajectoryWriter

        self._structures, self._offsets = state.to_atoms(), state.offsets.tolist()
        self._paths = [self.path]
        if state.size > 1:
            stem, suffix = self.path.stem, self.path.suffix
            self._paths = [self.path.with_name(f"{stem}_{name:04d}{suffix}") for name in state.replicas.tolist()]
        for path, atoms in zip(self._paths, self._structures, strict=True):
            if kept is None:
                new_file(path)
            with writing(path):
                if kept:
                    _cut(path, atoms, kept)
                else:
                    path.unlink(missing_ok=True)
                self._writers.append(TrajectoryWriter(path, mode="a"))

    def observe(self, frame: Frame) -> None:
        """See `Observer.observe`."""
        from ase.calculators.singlepoint import SinglePointCalculator
        from ase.units import fs

        values = frame.values
        for k, (atoms, writer) in enumerate(zip(self._structures, self._writers, strict=True)):
            part = slice(self._offsets[k], self._offsets[k + 1])
            atoms.cell = values["cells"][k]
            atoms.set_positions(values["positions"][part], apply_constraint=False)
            momenta = values["velocities"][part] / fs * atoms.get_masses()[:, None]
            atoms.set_momenta(momenta, apply_constraint=False)
            atoms.info.update(step=frame.step, time_fs=float(frame.time_fs))
            energy, forces = float(values["energy"][k]), values["forces"][part]
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
            with writing(self._paths[k]):
                writer.write(atoms)

    def flush(self) -> None:
        """See `Observer.flush`."""
        for path in self._paths if self._writers else []:
            with writing(path), path.open("rb") as stream:
                os.fsync(stream.fileno())

    def close(self) -> None:
        """See `Observer.close`."""
        writers, self._writers = self._writers, []
        for path, writer in zip(self._paths, writers, strict=False):
            with writing(path):
                writer.close()


def _cut(path: Path, system: Atoms, kept: int) -> None:
    """Keep the first frames. The rest can be broken where a process was killed; the reader does not look at it."""
    from ase.io.trajectory import TrajectoryReader, TrajectoryWriter

    try:
        with TrajectoryReader(path) as old:
            check_kept(path, len(old), kept)
            first = old[0]
            same = np.array_equal(first.numbers, system.numbers) and np.array_equal(first.pbc, system.pbc)
            if not same or not np.array_equal(first.get_masses(), system.get_masses()):
                raise OutputError(
                    f"{path} is the trajectory of another system ({first.symbols}, pbc {first.pbc.tolist()}; the run is of "
                    f"{system.symbols}, pbc {system.pbc.tolist()}); restart with what it was made with, or use a new folder"
                )
            if len(old) > kept:
                with atomic_path(path) as temporary, TrajectoryWriter(temporary, mode="w") as new:
                    for k in range(kept):
                        new.write(old[k])
    except (OSError, ValueError) as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"the trajectory {path} cannot be read ({error}); start the run again in a new folder"
        ) from error
