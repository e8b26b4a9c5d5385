"""What `simkit analyze` reads: trajectories of one system, one or several replicas of it, loaded one replica at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simkit.errors import DataError
from simkit.md.h5md_reader import H5MDReader
from simkit.md.observers.thermo_table import read_thermo_table
from simkit.md.run import H5MD, THERMO, TRAJECTORY
from simkit.md.trajectory_arrays import TrajectoryArrays
from simkit.workflows.structures import read_structures

if TYPE_CHECKING:
    from ase import Atoms

Floats = NDArray[np.float64]

H5MD_SUFFIXES = {".h5", ".h5md", ".hdf5"}
THERMAL = {"temperature": "temperature_K", "energy": "potential_eV"}


@dataclass(frozen=True)
class Replica:
    """A trajectory and the quantities [T] that can be averaged, by the names of the thermodynamic table."""

    arrays: TrajectoryArrays
    series: Mapping[str, Floats]


@dataclass(frozen=True)
class Trajectory:
    """Replicas of one system.

    Attributes:
        found: frames of each in the file. replicas: how many. load: the k-th replica; only the last one loaded is kept in memory.
    """

    found: int
    replicas: int
    load: Callable[[int], Replica]


def open_trajectory(
    where: str | os.PathLike[str], skip: int = 0, frame_time: float | None = None, replica: int | None = None
) -> Trajectory:
    """Look at a trajectory: H5MD, any format of ASE, or the folder of a run; with ``@100:200``, a part of it.

    Args:
        skip: frames left out at the start; frame_time: fs between frames, where nothing tells it.
        replica: the place, from 0, of the only replica that is wanted.

    Raises:
        DataError: if it cannot be read, has no such replica or too few frames, or holds replicas of different systems.
    """
    text = os.fspath(where)
    name, sign, index = text.rpartition("@")
    if not sign or Path(text).exists():
        name, sign, index = text, "", ""
    path = Path(name).expanduser()
    if (path / H5MD).is_file():
        path = path / H5MD
    elif (path / TRAJECTORY).is_file():
        path = path / TRAJECTORY
    if path.suffix in H5MD_SUFFIXES and path.is_file():
        return _h5md(path, index, skip, frame_time, replica)
    stem, suffix = os.path.splitext(TRAJECTORY)
    files = sorted(path.glob(f"{stem}_[0-9]*{suffix}")) if path.is_dir() else []
    parts = [f"{file}{sign}{index}" for file in files] or [f"{path}{sign}{index}" if path.name == TRAJECTORY else text]
    return _structures([parts[k] for k in _chosen(len(parts), replica, text)], skip, frame_time)


def _h5md(path: Path, index: str, skip: int, frame_time: float | None, replica: int | None) -> Trajectory:
    with H5MDReader(path) as reader:
        found = len(range(reader.frames)[_slice(index, path)])
        groups = [reader.groups[k] for k in _chosen(len(reader.groups), replica, os.fspath(path))]
        frames = _skipped(_slice(index, path), reader.frames, skip, path)
        first = (reader.numbers(groups[0]), reader.pbc(groups[0]))
        for group in groups[1:]:
            if not (np.array_equal(reader.numbers(group), first[0]) and np.array_equal(reader.pbc(group), first[1])):
                raise DataError(
                    f"{path} holds different systems ({groups[0]} and {group}, for example), which are not averaged; choose one with "
                    f"--replica, 0 to {len(groups) - 1}"
                )

    @lru_cache(maxsize=1)
    def load(k: int) -> Replica:
        with H5MDReader(path) as reader:
            arrays = reader.arrays(groups[k], frames, frame_time)
            known = reader.observables(groups[k], frames)
        kept = len(arrays.positions)
        series = {THERMAL[name]: values[:kept] for name, values in known.items() if name in THERMAL}
        if {"energy", "kinetic_energy"} <= known.keys():
            series["total_eV"] = (known["energy"] + known["kinetic_energy"])[:kept]
        return Replica(arrays, _with_volume(series, arrays))

    return Trajectory(found, len(groups), load)


def _structures(parts: Sequence[str], skip: int, frame_time: float | None) -> Trajectory:
    @lru_cache(maxsize=1)
    def read(k: int) -> list[Atoms]:
        return read_structures(parts[k])

    @lru_cache(maxsize=1)
    def load(k: int) -> Replica:
        frames = read(k)
        arrays = TrajectoryArrays.from_frames(frames[skip:], frame_time)
        used = frames[skip : len(frames) - arrays.dropped]
        path = Path(parts[k].rpartition("@")[0] or parts[k])
        path = path if path.suffix else Path(parts[k])
        log = path.parent / THERMO
        thermo = read_thermo_table(log) if path.name == TRAJECTORY and log.is_file() else None
        return Replica(arrays, _with_volume(_series_of_frames(used, arrays, thermo), arrays))

    found = len(read(0))
    _skipped(slice(None), found, skip, parts[0])
    for k in range(1, len(parts)):
        numbers = load(0).arrays.numbers
        if not np.array_equal(load(k).arrays.numbers, numbers):
            raise DataError(
                f"{parts[0]} and {parts[k]} are different systems, which are not averaged; choose one with --replica, 0 to "
                f"{len(parts) - 1}"
            )
    return Trajectory(found, len(parts), load)


def _series_of_frames(
    frames: Sequence[Atoms], arrays: TrajectoryArrays, thermo: Mapping[str, Floats] | None
) -> dict[str, Floats]:
    """What can be averaged: from the log of the run by the frames' steps, else from energies and velocities of the frames."""
    steps = [atoms.info.get("step") for atoms in frames]
    if thermo is not None and None not in steps and thermo["temperature_K"].shape[1:] == (1,):
        rows = np.searchsorted(thermo["step"], steps)
        if (rows < len(thermo["step"])).all() and np.array_equal(thermo["step"][rows], steps):
            return {name: thermo[name][rows, 0] for name in ("temperature_K", "potential_eV", "total_eV")}
    found: dict[str, Floats] = {}
    if arrays.velocities is not None:
        found["temperature_K"] = np.array([float(atoms.get_temperature()) for atoms in frames])
    if all(atoms.calc is not None and "energy" in atoms.calc.results for atoms in frames):
        found["potential_eV"] = np.array([float(atoms.calc.results["energy"]) for atoms in frames])
        if arrays.velocities is not None:
            kinetic = np.array([float(atoms.get_kinetic_energy()) for atoms in frames])
            found["total_eV"] = found["potential_eV"] + kinetic
    return found


def _with_volume(series: dict[str, Floats], arrays: TrajectoryArrays) -> dict[str, Floats]:
    volumes = np.abs(np.linalg.det(arrays.cells))
    if arrays.pbc.all() and np.ptp(volumes) > 0:
        series["volume_angstrom3"] = volumes
    return series


def _chosen(count: int, replica: int | None, where: str) -> list[int]:
    if replica is None:
        return list(range(count))
    if not 0 <= replica < count:
        raise DataError(f"{where} holds {count} replicas; expected one from 0 to {count - 1}, found {replica}")
    return [replica]


def _slice(index: str, path: Path) -> slice:
    try:
        parts = [int(part) if part else None for part in index.split(":")] if index else [None]
        if index and ":" not in index:
            start = int(index)
            return slice(start, start + 1 or None)
        return slice(*parts) if index else slice(None)
    except (ValueError, TypeError):
        raise DataError(f"expected frames of {path} such as 100:200, found {index!r}") from None


def _skipped(chosen: slice, count: int, skip: int, path: str | Path) -> slice:
    """The frames that are left after skipping some of those chosen."""
    frames = range(count)[chosen]
    if not 0 <= skip < len(frames):
        raise DataError(f"{path} holds {len(frames)} frames; expected to skip 0 to {len(frames) - 1}, found {skip}")
    left = frames[skip:]
    if left.step < 0:
        raise DataError(f"expected frames of {path} in their order, found the step {left.step}")
    return slice(left.start, left.stop, left.step)
