"""Reading the original archive of QM9, one file per molecule in its own format, into flat arrays."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from simkit.datasets.download import fetch
from simkit.datasets.npz_file import Array
from simkit.errors import DataError
from simkit.files import atomic_path
from simkit.progress import track

ARCHIVE_URL = "https://ndownloader.figshare.com/files/3195389"
EXCLUDED_URL = "https://ndownloader.figshare.com/files/3195404"
_ARCHIVE_MD5 = "ad1ebd51ee7f5b3a6e32e974e5d54012"
_EXCLUDED_MD5 = "a361887bacb427b8a0ce7903d92a53b4"

PROPERTIES = ("A", "B", "C", "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "Cv")
"""The numbers of a molecule's second line, in their order."""
_NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
_MOLECULES, _EXCLUDED = 133_885, 3_054


def download(target: Path) -> Path:
    """Download the original files beside ``target``, parse them and write ``target``, a flat ``.npz``.

    Raises:
        DataError: if they cannot be downloaded or are not what was published.
    """
    archive = fetch(ARCHIVE_URL, target.parent / "dsgdb9nsd.xyz.tar.bz2", _ARCHIVE_MD5)
    excluded = read_excluded(fetch(EXCLUDED_URL, target.parent / "uncharacterized.txt", _EXCLUDED_MD5))
    if len(excluded) != _EXCLUDED:
        raise DataError(f"expected a list of {_EXCLUDED} uncharacterised molecules, found {len(excluded)}")
    arrays = read_archive(archive, excluded, _MOLECULES)
    with atomic_path(target) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)
    return target


def read_excluded(path: Path) -> set[int]:
    """Return the molecules of the published list: lines that begin with a number, after a header of nine lines."""
    words = (line.split() for line in path.read_text().splitlines()[9:])
    return {int(word[0]) for word in words if word and word[0].isdigit()}


def read_archive(path: Path, excluded: set[int], expected: int | None = None) -> dict[str, Array]:
    """Parse the archive without the molecules ``excluded``.

    Args:
        expected: how many molecules the archive has to hold, the excluded ones among them; None for any number.

    Returns:
        Flat arrays in the units of the original: ``gdb_id``, ``n_atoms``, the `PROPERTIES`, ``smiles`` and ``inchi`` (as
        relaxed) per molecule; ``numbers``, ``positions`` (angstrom, float32: the files have ten decimals, of which
        float32 keeps 1e-6) and ``mulliken`` (e) per atom; ``frequencies`` (1/cm) end to end with ``n_frequencies``.

    Raises:
        DataError: if the archive is truncated, has another number of molecules or a file is malformed.
    """
    columns: dict[str, list[object]] = {
        key: [] for key in ("gdb_id", "n_atoms", "n_frequencies", "properties", "smiles", "inchi")
    }
    flat: dict[str, list[Array]] = {key: [] for key in ("numbers", "positions", "mulliken", "frequencies")}
    found = 0
    for name, text in track(_members(path), "parse QM9", expected):
        found += 1
        try:
            identifier, properties, numbers, atoms, frequencies, smiles, inchi = _parse(text)
        except (ValueError, IndexError, KeyError) as error:
            raise DataError(f"{name} in {path} is no QM9 file ({error}); delete the archive and try again") from error
        if identifier in excluded:
            continue
        for key, value in zip(
            columns, (identifier, len(numbers), len(frequencies), properties, smiles, inchi), strict=True
        ):
            columns[key].append(value)
        for key, rows in zip(flat, (numbers, atoms[:, :3], atoms[:, 3], frequencies), strict=True):
            flat[key].append(rows)
    if not columns["gdb_id"] or (expected is not None and found != expected):
        raise DataError(f"{path}: expected {expected or 'some'} molecules, found {found}; delete it and try again")
    order = np.argsort(np.asarray(columns["gdb_id"]), kind="stable")
    properties_of_all = np.asarray(columns.pop("properties"), dtype=np.float64)[order]
    types = {"gdb_id": np.int32, "n_atoms": np.uint8, "n_frequencies": np.uint8, "smiles": np.str_, "inchi": np.str_}
    arrays: dict[str, Array] = {key: np.asarray(values, dtype=types[key])[order] for key, values in columns.items()}
    arrays |= {key: properties_of_all[:, k] for k, key in enumerate(PROPERTIES)}
    flat_types = {"numbers": np.uint8, "positions": np.float32, "mulliken": np.float32, "frequencies": np.float32}
    return arrays | {
        key: np.concatenate([rows[k] for k in order]).astype(flat_types[key]) for key, rows in flat.items()
    }


def _members(path: Path) -> Iterator[tuple[str, str]]:
    """Yield name and text of every file of the archive, read as a stream because seeking in bzip2 is slow."""
    try:
        with tarfile.open(path, "r|bz2") as tar:
            for member in tar:
                stream = tar.extractfile(member) if member.name.endswith(".xyz") else None
                if stream is not None:
                    yield member.name, stream.read().decode()
    except (tarfile.TarError, EOFError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no complete QM9 archive ({error}); delete it and try again") from error


def _parse(text: str) -> tuple[int, list[float], Array, Array, Array, str, str]:
    """Parse one file: count; ``gdb``, number and properties; atoms with Mulliken charges; frequencies; SMILES; InChI."""
    lines = text.replace("*^", "e").splitlines()
    count = int(lines[0])
    tag, identifier, *values = lines[1].split()
    rows = [line.split() for line in lines[2 : 2 + count]]
    if tag != "gdb" or len(values) != len(PROPERTIES) or any(len(row) != 5 for row in rows):
        raise ValueError("expected 'gdb', a number and 15 properties, then atoms with five columns")
    frequencies, smiles, inchi = lines[2 + count : 5 + count]
    return (
        int(identifier),
        [float(value) for value in values],
        np.asarray([_NUMBERS[row[0]] for row in rows]),
        np.asarray([row[1:] for row in rows], dtype=np.float64),
        np.asarray(frequencies.split(), dtype=np.float64),
        smiles.split()[-1],
        inchi.split()[-1],
    )
