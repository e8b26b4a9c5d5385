"""DeePMD-kit's folders of NumPy arrays: ``type.raw``, ``type_map.raw`` and ``set.*/{coord,energy,force,box,virial}.npy``.

The format: Wang, Zhang, Han and E, Comput. Phys. Commun. 228, 178 (2018), and DeePMD-kit's documentation ("System formats").
Lengths are in angstrom, energies in eV, forces in eV/angstrom; the virial is ``-V * stress`` in eV.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simkit.datasets.npz_file import Array
from simkit.datasets.store import Store, concatenate
from simkit.errors import DataError, LabelError
from simkit.progress import track

PathLike = str | os.PathLike[str]


def load_deepmd(
    paths: PathLike | Sequence[PathLike],
    type_map: Sequence[str] | None = None,
    level_of_theory: str | None = None,
    name: str | None = None,
) -> Store:
    """Open one or several DeePMD systems.

    Args:
        paths: a system (a folder with ``type.raw``), a folder of systems at any depth, or several of them.
        type_map: the element symbol of every type; by default that of ``type_map.raw``.
        level_of_theory: what the labels were computed with, for the reports.
        name: a name for the data set; by default that of the folders.

    Returns:
        Store with the labels that are there: ``energy`` (eV), ``forces`` (eV/angstrom) and ``stress`` (eV/angstrom^3, from
        the virial). Structures are periodic unless the system has a file ``nopbc``. Its groups are the systems.

    Raises:
        DataError: if files are missing, empty or do not fit together.
        LabelError: if a label is in some sets but not in all, of a wrong shape or not finite.
    """
    systems: list[Path] = []
    for given in [paths] if isinstance(paths, str | os.PathLike) else paths:
        path = Path(given).expanduser()
        found = [path] if (path / "type.raw").is_file() else sorted(file.parent for file in path.rglob("type.raw"))
        if not found:
            raise DataError(f"{path} is no DeePMD system and holds none: there is no type.raw")
        systems += found
    title = name or ", ".join(system.name for system in systems[:3]) + (", ..." if len(systems) > 3 else "")
    info = {"name": title, "level_of_theory": level_of_theory, "source": ", ".join(map(str, systems))}
    stores = [
        _read_set(folder, numbers, (system / "nopbc").exists(), str(system))
        for system in track(systems, "read DeePMD systems")
        for numbers in [_numbers(system, type_map)]
        for folder in _sets(system)
    ]
    return concatenate(stores, info)


def _sets(system: Path) -> list[Path]:
    folders = sorted(folder for folder in system.glob("set.*") if folder.is_dir())
    if not folders:
        raise DataError(f"{system} holds no folder set.*, which DeePMD's structures lie in")
    return folders


def _numbers(system: Path, type_map: Sequence[str] | None) -> Array:
    from ase.data import atomic_numbers

    if type_map is None:
        if not (system / "type_map.raw").is_file():
            raise DataError(f"{system} has no type_map.raw; give the elements as type_map=['O', 'H'], one per type")
        type_map = (system / "type_map.raw").read_text().split()
    unknown = [symbol for symbol in type_map if symbol not in atomic_numbers]
    if unknown:
        raise DataError(f"{system}: type_map has {unknown[0]!r}, which is no element; give type_map= with elements")
    try:
        types = np.loadtxt(system / "type.raw", dtype=np.int64, ndmin=1).reshape(-1)
    except ValueError as error:
        raise DataError(f"{system / 'type.raw'}: expected one whole number per atom ({error})") from error
    if not len(types) or types.min() < 0 or types.max() >= len(type_map):
        raise DataError(f"{system / 'type.raw'}: expected types from 0 to {len(type_map) - 1} as in the type map")
    return np.asarray([atomic_numbers[symbol] for symbol in type_map], dtype=np.uint8)[types]


def _array(folder: Path, name: str, shape: tuple[int, ...]) -> Array | None:
    """Return an array with a row per frame, or None if there is no such file."""
    path = folder / f"{name}.npy"
    if not path.is_file():
        return None
    try:
        value: Array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is no readable array (truncated, or with objects in it): {error}") from error
    if value.size != len(value) * int(np.prod(shape)):
        raise LabelError(
            f"{path}: expected {int(np.prod(shape))} numbers per frame, found the shape {list(value.shape)}"
        )
    return value.reshape(len(value), *shape)


def _read_set(folder: Path, numbers: Array, isolated: bool, system: str) -> Store:
    atoms = len(numbers)
    coord, box = _array(folder, "coord", (atoms, 3)), _array(folder, "box", (3, 3))
    if coord is None or not len(coord):
        raise DataError(f"{folder} has no coord.npy, or an empty one")
    if box is None and not isolated:
        raise DataError(f"{folder} has no box.npy; isolated molecules need an empty file 'nopbc' in {system}")
    frames = len(coord)
    found: dict[str, Any] = {
        "energy": _array(folder, "energy", ()),
        "forces": _array(folder, "force", (atoms, 3)),
        "virial": _array(folder, "virial", (3, 3)),
        "box": box,
    }
    for name, value in found.items():
        if value is not None and len(value) != frames:
            raise LabelError(f"{folder}: {name} has {len(value)} frames, coord has {frames}")
    labels = {name: found[name] for name in ("energy", "forces") if found[name] is not None}
    if "forces" in labels:
        labels["forces"] = labels["forces"].reshape(-1, 3)
    if found["virial"] is not None and box is not None and not isolated:
        volume = np.abs(np.linalg.det(box.astype(np.float64)))
        labels["stress"] = -found["virial"].astype(np.float64) / volume[:, None, None]
    return Store(
        np.tile(numbers, frames),
        coord.reshape(-1, 3),
        np.arange(frames + 1, dtype=np.int64) * atoms,
        labels,
        cell=None if isolated else box,
        pbc=np.full((frames, 3), not isolated),
        groups=np.full(frames, system),
        info={"name": str(folder)},
    )
