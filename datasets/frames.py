"""Structures from the user's own files: whatever ASE reads (extended xyz, ``.db``, ``.traj``, ...) and flat ``.npz`` files."""

from __future__ import annotations

import glob
import gzip
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simkit.config import nearest
from simkit.datasets.flat_npz import load_flat
from simkit.datasets.frame_labels import Frame, check_options, choose_keys, read_labels
from simkit.datasets.npz_file import Array
from simkit.datasets.store import Store, concatenate
from simkit.errors import ConfigError, DataError
from simkit.graph import LABELS
from simkit.progress import track
from simkit.units import unit_factor

if TYPE_CHECKING:
    from ase import Atoms

SUFFIXES = (".xyz", ".extxyz", ".xyz.gz", ".extxyz.gz", ".db", ".traj", ".npz")
"""What is read of a folder."""
_ISOLATED = {"isolatedatom", "isolatedatoms"}

PathLike = str | os.PathLike[str]


def load_frames(
    paths: PathLike | Sequence[PathLike],
    energy: str | None = None,
    forces: str | None = None,
    stress: str | None = None,
    dipole: str | None = None,
    charge: str | None = None,
    labels: Sequence[str] = (),
    energy_unit: str = "eV",
    length_unit: str = "angstrom",
    group: str | None = None,
    isolated_atoms: str = "reference",
    level_of_theory: str | None = None,
    name: str | None = None,
) -> Store:
    """Open structures with their labels.

    Args:
        paths: a file, a glob, a folder, or several of them. Of a folder, files ending in `SUFFIXES` are read.
        energy, forces, stress, dipole, charge: the name under which the label lies in the files: a stored result of ASE, a
            key of ``info`` or of ``arrays``. None detects it among the names of `simkit.datasets.frame_labels.KNOWN`;
            "none" leaves the label out. A name with "virial" in it is read as ``-V * stress``.
        labels: further labels of `simkit.graph.LABELS` such as "gap", under their own names and in the units given there.
        energy_unit, length_unit: the units in the files, such as "hartree" and "bohr"; those of the other labels follow:
            forces are in energy per length, stress in energy per volume, dipoles in e times length.
        group: the key of ``info`` that becomes the structures' group, such as "config_type".
        isolated_atoms: what happens to single atoms without periodicity or with a ``config_type`` of "IsolatedAtom":
            "reference" takes their energies as reference energies and them out of the data, "keep" keeps them as data.
        level_of_theory: what the labels were computed with, for the reports.
        name: a name for the data set; by default that of the files.

    Returns:
        Store in eV and angstrom; labels found in any frame are in all of them.

    Raises:
        ConfigError: if an option is unusable, or two names could be the same label.
        DataError: if a file is missing, empty or unreadable.
        LabelError: if a label is missing, of a wrong shape or not finite in any frame, naming the file and the frame.
    """
    if isolated_atoms not in ("reference", "keep"):
        raise ConfigError(f"isolated_atoms: expected 'reference' or 'keep', found {isolated_atoms!r}")
    check_options({"energy_unit": energy_unit, "length_unit": length_unit})
    files = expand(paths)
    wanted: dict[str, str | None] = {
        "energy": energy,
        "forces": forces,
        "stress": stress,
        "dipole": dipole,
        "charge": charge,
    }
    for label in labels:
        if label in wanted or label not in LABELS:
            raise ConfigError(f"labels: expected further labels of simkit, found {label!r}{nearest(label, LABELS)}")
        wanted[label] = label
    title = name or (files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more files")
    info: dict[str, Any] = {"name": title, "source": ", ".join(map(str, files)), "level_of_theory": level_of_theory}
    stores = [load_flat(path, wanted, energy_unit, length_unit, group, info) for path in files if path.suffix == ".npz"]
    others = [path for path in files if path.suffix != ".npz"]
    if others:
        frames = [frame for path in track(others, "read structures") for frame in read_file(path)]
        stores.insert(0, _build(frames, wanted, (energy_unit, length_unit), group, isolated_atoms == "reference", info))
    return stores[0] if len(stores) == 1 else concatenate(stores)


def expand(paths: PathLike | Sequence[PathLike]) -> list[Path]:
    """Return the files that paths, globs and folders stand for, in order and sorted within each.

    Raises:
        DataError: if one stands for nothing.
    """
    files: list[Path] = []
    for given in [paths] if isinstance(paths, str | os.PathLike) else paths:
        path = Path(given).expanduser()
        if path.is_dir():
            if (path / "type.raw").is_file():
                raise DataError(f"{path} is a DeePMD folder; load it as 'deepmd'")
            found = sorted(entry for entry in path.iterdir() if entry.is_file() and entry.name.endswith(SUFFIXES))
            if not found:
                raise DataError(f"the folder {path} holds no file ending in {', '.join(SUFFIXES)}")
        elif path.is_file():
            found = [path]
        else:
            found = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
            if not found:
                raise DataError(f"there is no file or folder {path}, and nothing that it matches as a pattern")
        files += found
    if not files:
        raise DataError("expected at least one file of structures, found none")
    twice = {str(path) for path in files if files.count(path) > 1}
    if twice:
        raise DataError(f"these files are named more than once: {', '.join(sorted(twice))}")
    return files


def read_file(path: Path) -> Iterator[Frame]:
    """Read the structures of a file one by one.

    Raises:
        DataError: if the file is missing, empty, unreadable or cut off.
    """
    count = 0
    iterator = _read_database(path) if path.suffix == ".db" else _read_ase(path)
    while True:
        try:
            atoms = next(iterator, None)
        except DataError:
            raise
        except Exception as error:  # ASE's readers raise whatever their parsers run into
            raise DataError(
                f"cannot read frame {count} of {path}; the file is cut off, damaged or in a format that ASE does not "
                f"know ({type(error).__name__}: {error})"
            ) from error
        if atoms is None:
            break
        if len(atoms) == 0:
            raise DataError(f"frame {count} of {path} has no atoms")
        yield Frame(atoms, str(path), count)
        count += 1
    if count == 0:
        raise DataError(f"{path} holds no structure that ASE can read; expected at least one")


def _read_ase(path: Path) -> Iterator[Atoms]:
    from ase.io import iread

    if path.name.endswith((".xyz", ".extxyz", ".xyz.gz", ".extxyz.gz")):
        yield from _read_xyz(path)
    elif path.stat().st_size > 0:
        yield from iread(str(path), index=":", do_not_split_by_at_sign=True)


def _read_xyz(path: Path) -> Iterator[Atoms]:
    """Read (extended) xyz from memory, since ASE seeks in the file, which takes a compressed one ten times as long."""
    from ase.io import iread

    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as stream:
        text = stream.read()
    lines = text.rstrip().count("\n") + 1 - sum(line.lstrip().startswith("VEC") for line in text.splitlines())
    read = 0
    for atoms in iread(io.StringIO(text), index=":", format="extxyz") if text.strip() else ():
        yield atoms
        read += len(atoms) + 2
    if text.strip() and read < lines:  # ASE takes an empty line for the end of the file
        raise DataError(f"{path}: expected a structure in line {read + 1}, found an empty line with more after it")


def _read_database(path: Path) -> Iterator[Atoms]:
    from ase.db import connect

    with connect(str(path)) as database:
        for row in database.select():
            atoms = row.toatoms()
            atoms.info.update(row.key_value_pairs | row.data)
            yield atoms


def _build(
    frames: list[Frame],
    wanted: dict[str, str | None],
    units: tuple[str, str],
    group: str | None,
    take_references: bool,
    info: dict[str, Any],
) -> Store:
    isolated = [frame for frame in frames if take_references and _is_isolated(frame)]
    if isolated:
        frames = [frame for frame in frames if not _is_isolated(frame)]
    if not frames:
        raise DataError(f"{info['source']} holds isolated atoms only; keep them with isolated_atoms='keep'")
    keys = choose_keys(frames, wanted)
    info = info | {"keys": keys}
    # `simkit label` writes the level of theory into every frame; it is that of the set only if all frames agree.
    levels = {frame.atoms.info.get("level_of_theory") for frame in frames}
    if info["level_of_theory"] is None and len(levels) == 1:
        info["level_of_theory"] = levels.pop()
    if isolated and "energy" in keys:
        info["references"] = {"energy": _references(isolated, keys["energy"], units)}
        info["notes"] = [f"{len(isolated)} isolated atoms were taken out of the data as reference energies"]
    elif isolated:
        info["notes"] = [f"{len(isolated)} isolated atoms were left out: no energies were asked for"]
    length = unit_factor(units[1])
    counts = [len(frame.atoms) for frame in frames]
    return Store(
        np.concatenate([frame.atoms.numbers for frame in frames]),
        np.concatenate([frame.atoms.positions for frame in frames]) * length,
        np.concatenate([[0], np.cumsum(counts)]),
        read_labels(frames, keys, *units),
        cell=np.stack([frame.atoms.cell.array for frame in frames]) * length,
        pbc=np.stack([frame.atoms.pbc for frame in frames]),
        groups=None if group is None else _groups(frames, group),
        info=info,
    )


def _is_isolated(frame: Frame) -> bool:
    if len(frame.atoms) != 1:
        return False
    kind = str(frame.atoms.info.get("config_type", "")).replace("_", "").lower()
    return kind in _ISOLATED or not frame.atoms.pbc.any()


def _references(isolated: list[Frame], key: str, units: tuple[str, str]) -> dict[int, float]:
    energies = read_labels(isolated, {"energy": key}, *units)["energy"]
    references: dict[int, float] = {}
    for frame, energy in zip(isolated, energies.tolist(), strict=True):
        number = int(frame.atoms.numbers[0])
        if abs(references.setdefault(number, energy) - energy) > 1e-6:
            raise DataError(
                f"{frame}: isolated {frame.atoms.symbols} has the energy {energy} eV, an earlier frame has "
                f"{references[number]} eV; remove one of them, or keep both as data with isolated_atoms='keep'"
            )
    return references


def _groups(frames: list[Frame], key: str) -> Array:
    for frame in frames:
        if frame.value(key) is None:
            raise DataError(f"{frame} has no {key!r} to group by; it has: {', '.join(frame.names()) or 'nothing'}")
    return np.asarray([str(frame.value(key)) for frame in frames])
