"""`H5MDTrajectory`: the trajectory of a batch in one H5MD file, for any number of replicas and any reader of that format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from simkit.errors import ConfigError, OutputError
from simkit.md.observers import h5md_layout as layout
from simkit.md.observers.files import check_interval, check_kept, new_file, writing
from simkit.md.observers.journaled_file import JournaledFile, journal_path

if TYPE_CHECKING:
    from simkit.md.protocols import Frame
    from simkit.md.state import State


class H5MDTrajectory:
    """Positions, velocities, boxes and energies of all replicas, laid out as `h5md_layout.create` says.

    The file can be read by anything that reads HDF5 at any time, also while the simulation runs: it shows the state of the last
    checkpoint. Between checkpoints nothing that it refers to is changed (see `JournaledFile`), so that a process may be killed anywhere.

    Numbers are stored as they are (float64), and a trajectory read back equals the simulation bit for bit. ``precision="single"`` halves
    the size, for positions good to 1e-7 of their distance from the origin: enough for analysis, not for energies of stiff bonds.
    Compression saves some tenths of that, for several times the time: digits of thermal motion are noise.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        interval: int,
        *,
        velocities: bool = True,
        forces: bool = False,
        precision: Literal["double", "single"] = "double",
        compress: bool = False,
        author: str = "unknown",
    ) -> None:
        """Nothing is written before `open`.

        Raises:
            ConfigError: if the interval is not positive, or the precision unknown.
        """
        if precision not in ("double", "single"):
            raise ConfigError(f"precision must be 'double' or 'single', found {precision!r}")
        self.path, self.interval = Path(path), check_interval(interval)
        kept = {"positions": True, "velocities": velocities, "forces": forces, "cells": True}
        self._names = (*(name for name, wanted in kept.items() if wanted), *layout.OBSERVABLES)
        self.needs = frozenset(self._names)
        self._dtype = np.dtype(np.float64 if precision == "double" else np.float32)
        self._compress, self._author = compress, author
        self._file: Any = None
        self._disk: JournaledFile | None = None
        self._sets: dict[str, Any] = {}
        self._buffers: dict[str, NDArray[Any]] = {}
        self._block, self._waiting, self._frames = 1, 0, 0

    def open(self, state: State, timestep: float, kept: int | None) -> None:
        """See `Observer.open`."""
        if kept is None:
            new_file(self.path)
        with writing(self.path):
            if kept:
                self._continue(state, timestep, kept)
            else:
                self._start(state, timestep)
        self._frames, self._waiting = kept or 0, 0
        self._block = layout.frames_per_block(len(state.numbers))
        self._buffers = {
            name: np.empty((self._block, *found.shape[1:]), dtype=found.dtype) for name, found in self._sets.items()
        }

    def observe(self, frame: Frame) -> None:
        """See `Observer.observe`."""
        if frame.values["positions"].shape != self._sets["positions"].shape[1:]:
            raise OutputError(f"{self.path} is for other atoms than those of step {frame.step}")
        k = self._waiting
        for name, buffer in self._buffers.items():
            if name == "step":
                buffer[k] = frame.step
            elif name == "time":
                buffer[k] = frame.time_fs
            else:
                buffer[k] = frame.values[name].reshape(buffer.shape[1:])
        self._waiting += 1
        if (self._frames + self._waiting) % self._block == 0 or self._waiting == self._block:
            with writing(self.path):
                self._write()

    def flush(self) -> None:
        """See `Observer.flush`."""
        if self._disk is not None:
            with writing(self.path):
                self._write()
                self._file.flush()
                self._disk.commit()

    def close(self) -> None:
        """See `Observer.close`."""
        disk = self._disk
        if disk is None:
            return
        with writing(self.path):
            try:
                if disk.error is None:
                    self._write()
                self._file.close()
                if disk.error is None:
                    disk.commit()
            finally:
                self._disk, self._sets, self._buffers = None, {}, {}
                disk.close()

    def _start(self, state: State, timestep: float) -> None:
        import h5py

        for path in (self.path, journal_path(self.path)):  # of a run killed before its first checkpoint
            path.unlink(missing_ok=True)
        self._disk = JournaledFile(self.path, "x")
        self._file = h5py.File(self._disk, "w")
        self._sets = layout.create(self._file, state, self._names, self._dtype, self._compress, self._author)
        self._file["parameters"].attrs.update({"timestep": timestep, "interval": self.interval})
        self._file.flush()
        self._disk.commit()

    def _continue(self, state: State, timestep: float, kept: int) -> None:
        import h5py

        disk = file = None
        try:
            disk = JournaledFile(self.path, "a")
            file = h5py.File(disk, "r+")
            self._check(file, state, timestep)
            sets = layout.opened(file, self._names)
            check_kept(self.path, len(sets["step"]), kept)
        except (OSError, KeyError) as error:
            if disk is not None:
                disk.discard()
                if file is not None:
                    file.close()
                disk.close()
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"the trajectory {self.path} cannot be read ({error}); use a new folder") from error
        self._disk, self._file, self._sets = disk, file, sets
        for found in sets.values():
            found.resize(kept, axis=0)

    def _check(self, file: Any, state: State, timestep: float) -> None:
        """Refuse a trajectory of another system, or one that holds something else."""
        stored = file["parameters"]
        wrong = [
            name for name, values in layout.system_arrays(state).items() if not np.array_equal(stored[name][()], values)
        ]
        if wrong:
            raise OutputError(
                f"{self.path} is the trajectory of another system (other {', '.join(wrong)}); restart with what it was made with, or "
                "use a new folder"
            )
        sets = layout.opened(file, tuple(layout.QUANTITIES) + tuple(layout.OBSERVABLES))
        expected = set(self._names) | {"step", "time"}
        if not state.pbc.any():
            expected -= {"cells"}
        same = set(sets) == expected and sets["positions"].dtype == self._dtype
        times = (float(stored.attrs["timestep"]), int(stored.attrs["interval"]))
        if not same or times != (timestep, self.interval):
            raise OutputError(
                f"{self.path} holds {', '.join(sorted(sets))} in {sets['positions'].dtype}, every {times[1]} steps of {times[0]:g} fs; the "
                f"restart would write {', '.join(sorted(expected))} in {self._dtype}, every {self.interval} of {timestep:g} fs. Use the "
                "settings that it was started with, or a new folder"
            )

    def _write(self) -> None:
        """Append what waits."""
        if self._disk is None or not self._waiting:
            return
        start, end = self._frames, self._frames + self._waiting
        for name, found in self._sets.items():
            found.resize(end, axis=0)
            found[start:end] = self._buffers[name][: self._waiting]
        self._frames, self._waiting = end, 0
        if self._disk.error is not None:
            raise self._disk.error
