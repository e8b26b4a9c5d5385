"""`H5MDReader`: trajectories in H5MD files, of simkit or of others, one replica at a time."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from simkit.errors import DataError
from simkit.md.observers.h5md_layout import OBSERVABLES, replica_name
from simkit.md.observers.journaled_file import JournaledFile
from simkit.md.trajectory_arrays import TrajectoryArrays

Floats = NDArray[np.float64]

LENGTHS = {"Angstrom": 1.0, "Ang": 1.0, "angstrom": 1.0, "A": 1.0, "nm": 10.0, "pm": 0.01}
TIMES = {"fs": 1.0, "ps": 1000.0, "ns": 1e6}
VELOCITIES = {f"{length} {time}-1": a / b for length, a in LENGTHS.items() for time, b in TIMES.items()}
MASSES = {"u": 1.0, "amu": 1.0}


class H5MDReader:
    """An H5MD file opened to read; it may be one that a simulation is writing to, or was killed while writing to.

    Every particles group with positions is a replica. Elements are ``species``, which must be atomic numbers. Nothing is read before it
    is asked for.

    Attributes:
        path: of the file. groups: names of the replicas, in order. frames: of the first of them.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises DataError if it is not a readable H5MD file with positions."""
        self.path = Path(path)
        self._disk: JournaledFile | None = None
        try:
            self._disk = JournaledFile(self.path, "r")
            self._file = h5py.File(self._disk, "r")
        except OSError as error:
            if self._disk is not None:
                self._disk.close()
            raise DataError(f"{self.path} cannot be read as HDF5 ({error}); expected an H5MD trajectory") from None
        particles = self._file.get("particles", {})
        self.groups = [name for name in particles if "position/value" in particles[name]]
        # In the order of the simulation, which that of observables is, too; names sort in another one.
        names = [replica_name(int(name)) for name in self._file.get("parameters/replica", [])]
        if set(names) == set(self.groups):
            self.groups = names
        if "h5md" not in self._file or not self.groups:
            self.close()
            raise DataError(
                f"{self.path} is not an H5MD trajectory: expected the groups h5md and particles, with positions"
            )
        self.frames = len(particles[self.groups[0]]["position/value"])

    def __enter__(self) -> H5MDReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        if self._disk is not None:
            self._disk.close()
            self._disk = None

    def numbers(self, group: str) -> NDArray[np.int64]:
        """Atomic numbers [N] of a replica.

        Raises:
            DataError: if there are none.
        """
        found = self._file["particles"][group]
        if "species" not in found or not isinstance(found["species"], h5py.Dataset):
            raise DataError(f"{self.path}: expected the atomic numbers of {group} as its species, which do not change")
        return np.asarray(found["species"], dtype=np.int64)

    def pbc(self, group: str) -> NDArray[np.bool_]:
        """Which directions [3] of a replica are periodic."""
        boundary = self._file["particles"][group]["box"].attrs["boundary"]
        return np.array([text in (b"periodic", "periodic") for text in boundary])

    def steps(self, group: str, frames: slice) -> NDArray[np.int64]:
        """The steps [T] of chosen frames."""
        return np.asarray(self._axis(self._file["particles"][group]["position"], "step")[frames], dtype=np.int64)

    def arrays(self, group: str, frames: slice, frame_time: float | None = None) -> TrajectoryArrays:
        """Return chosen frames of a replica; see `TrajectoryArrays.from_arrays`.

        Raises:
            DataError: if something is missing, or in units that are not known.
        """
        from ase.data import atomic_masses

        found = self._file["particles"][group]
        numbers, pbc = self.numbers(group), self.pbc(group)
        masses = self._values(found["mass"], MASSES, ...) if "mass" in found else atomic_masses[numbers]
        positions = self._values(found["position/value"], LENGTHS, frames)
        velocities = self._values(found["velocity/value"], VELOCITIES, frames) if "velocity" in found else None
        times = None
        if "time" in found["position"]:
            times = self._axis(found["position"], "time")[frames] * self._factor(found["position/time"], TIMES)
        return TrajectoryArrays.from_arrays(
            numbers,
            masses,
            positions,
            self._cells(found["box"], frames, len(positions)),
            pbc,
            velocities,
            None if times is None else times.tolist(),
            frame_time,
        )

    def observables(self, group: str, frames: slice) -> dict[str, Floats]:
        """Energies and temperatures [T] of a replica under the names of `simkit.md.protocols.Frame`, those that simkit stored."""
        k = self.groups.index(group)
        found = {}
        for name, quantity in OBSERVABLES.items():
            path = f"observables/{quantity.element}/value"
            if path in self._file and self._file[path].shape == (self.frames, len(self.groups)):
                found[name] = np.asarray(self._file[path][frames, k], dtype=np.float64)
        return found

    def _axis(self, element: Any, name: str) -> NDArray[Any]:
        """Steps or times [T], which may be stored as an increment."""
        found = element[name]
        if found.shape:
            return np.asarray(found)
        return found.attrs.get("offset", 0) + np.arange(len(element["value"])) * found[()]

    def _cells(self, box: Any, frames: slice, count: int) -> Floats:
        if "edges" not in box:
            return np.zeros((count, 3, 3))
        edges = box["edges"]
        grows = isinstance(edges, h5py.Group)
        values = self._values(edges["value"] if grows else edges, LENGTHS, frames if grows else ...)
        if values.ndim == (2 if grows else 1):  # lengths of a cuboid
            values = values[..., None] * np.eye(3)
        return np.broadcast_to(values, (count, 3, 3)).copy()

    def _values(self, dataset: Any, units: dict[str, float], part: Any) -> Floats:
        values = np.asarray(dataset[part], dtype=np.float64)
        factor = self._factor(dataset, units)
        return values if factor == 1 else values * factor

    def _factor(self, dataset: Any, units: dict[str, float]) -> float:
        unit = dataset.attrs.get("unit")
        unit = unit.decode() if isinstance(unit, bytes) else unit
        if unit not in units:
            raise DataError(f"{self.path}: {dataset.name} has the unit {unit}; expected one of {', '.join(units)}")
        return units[unit]
