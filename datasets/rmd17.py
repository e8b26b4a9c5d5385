"""The revised MD17 data set: molecular dynamics frames of ten small molecules, PBE/def2-SVP.

Christensen and von Lilienfeld, "On the role of gradients for machine learning of molecular energies and forces", Mach.
Learn.: Sci. Technol. 1, 045018 (2020); doi:10.6084/m9.figshare.12672038; licence CC0. It repairs the numerical noise of
MD17. Not more than 1000 frames should be used for training, since the frames come from one trajectory each; the
published splits hold 1000 frames for training and 1000 for testing.
"""

from __future__ import annotations

import os
import tarfile
import zlib
from pathlib import Path

import numpy as np

from simkit.config import nearest
from simkit.datasets.download import fetch
from simkit.datasets.npz_file import Array, read_npz
from simkit.datasets.store import Store
from simkit.errors import ConfigError, DataError
from simkit.files import atomic_path, cache_dir, data_dir, ensure_output_dir
from simkit.units import unit_factor

MOLECULES = (
    "aspirin",
    "azobenzene",
    "benzene",
    "ethanol",
    "malonaldehyde",
    "naphthalene",
    "paracetamol",
    "salicylic",
    "toluene",
    "uracil",
)
"""The molecules under the names of the original files; "salicylic" is salicylic acid."""
SPLITS = [f"{part}_{number:02d}" for number in range(1, 6) for part in ("train", "test")]
"""The published splits."""

URL = "https://figshare.com/ndownloader/files/23950376"
_SHA256 = "cddeea2ec2c4b22a9de16a9a65a3eeedac5b29da9c99c20bbff0153912bf922b"


def load_rmd17(molecule: str, split: str | None = "train_01", root: str | os.PathLike[str] | None = None) -> Store:
    """Open the frames of one molecule.

    Files are looked for in ``root``, or else in ``SIMKIT_DATA_DIR`` and simkit's cache; when they are in neither, the
    original archive (1.1 GB) is downloaded. A folder may hold the original files (``rmd17_ethanol.npz`` and, for
    splits, ``splits/index_train_01.csv``) or one file per split (``rmd17_ethanol_train_01.npz``).

    Args:
        molecule: one of `MOLECULES`.
        split: one of `SPLITS`, or None for all frames.

    Returns:
        Store with ``energy`` (eV) and ``forces`` (eV/angstrom), both float64 and converted from kcal/mol; the column
        ``old_indices`` is the frame's number in MD17.

    Raises:
        ConfigError: if the molecule or the split is unknown.
        DataError: if files are missing, unreadable or cannot be downloaded.
    """
    if molecule not in MOLECULES:
        raise ConfigError(f"unknown molecule {molecule!r}{nearest(molecule, MOLECULES)}")
    if split is not None and split not in SPLITS:
        raise ConfigError(f"unknown split {split!r}{nearest(split, SPLITS)}; or None for all frames")
    if root is not None:
        folders = [Path(root)]
    else:
        folders = [cache_dir() / "rmd17"]
        if (data := data_dir()) is not None:
            folders.insert(0, data / "rmd17")
    found = _find(folders, molecule, split)
    if found is None and root is None:
        _unpack(fetch(URL, folders[-1] / "rmd17.tar.bz2", _SHA256, "sha256"), folders[-1])
        found = _find(folders, molecule, split)
    if found is None:
        raise DataError(
            f"{' and '.join(map(str, folders))}: expected rmd17_{molecule}"
            + (f"_{split}.npz, or rmd17_{molecule}.npz with splits/index_{split}.csv" if split else ".npz")
            + f"; they are in the archive {URL}"
        )
    path, index = found
    return _open(path, index, f"rMD17 {molecule}" + (f" {split}" if split else ""))


def _find(folders: list[Path], molecule: str, split: str | None) -> tuple[Path, Path | None] | None:
    """Return the file of frames and, if it holds more than the split, the file of the split's indices."""
    for folder in folders:
        for base in (folder, folder / "rmd17"):
            part, index = base / f"rmd17_{molecule}_{split}.npz", base / "splits" / f"index_{split}.csv"
            if split is not None and part.is_file():
                return part, None
            for full in (base / f"rmd17_{molecule}.npz", base / "npz_data" / f"rmd17_{molecule}.npz"):
                if full.is_file() and (split is None or index.is_file()):
                    return full, None if split is None else index
    return None


def _open(path: Path, index: Path | None, name: str) -> Store:
    arrays = read_npz(path)
    missing = [key for key in ("nuclear_charges", "coords", "energies", "forces") if key not in arrays]
    if missing:
        raise DataError(f"{path} has no array {missing[0]!r}, found {', '.join(arrays) or 'none'}: it is no rMD17 file")
    numbers = arrays.pop("nuclear_charges")
    frames = len(arrays["coords"])
    if arrays["coords"].shape[1:] != (len(numbers), 3) or arrays["forces"].shape != arrays["coords"].shape:
        raise DataError(
            f"{path}: expected coords and forces of shape [frames, {len(numbers)}, 3], found "
            f"{list(arrays['coords'].shape)} and {list(arrays['forces'].shape)}"
        )
    if index is not None:
        rows = _read_index(index, frames)
        arrays = {key: value[rows] for key, value in arrays.items()}
        frames = len(rows)
    energy_unit, force_unit = unit_factor("kcal/mol"), unit_factor("kcal/mol/angstrom")
    return Store(
        np.tile(numbers.astype(np.uint8), frames),
        arrays["coords"].reshape(-1, 3),
        np.arange(frames + 1, dtype=np.int64) * len(numbers),
        {"energy": arrays["energies"] * energy_unit, "forces": arrays["forces"].reshape(-1, 3) * force_unit},
        columns={"old_indices": arrays["old_indices"]} if "old_indices" in arrays else None,
        info={
            "name": name,
            "level_of_theory": "PBE/def2-SVP",
            "source": "Christensen and von Lilienfeld (2020), doi:10.6084/m9.figshare.12672038, CC0",
        },
    )


def _read_index(path: Path, frames: int) -> Array:
    try:
        rows = np.loadtxt(path, dtype=np.int64, ndmin=1)
    except ValueError as error:
        raise DataError(f"{path}: expected one frame number per line ({error})") from error
    if not len(rows) or rows.min() < 0 or rows.max() >= frames:
        raise DataError(f"{path}: expected frame numbers from 0 to {frames - 1}, found {rows.min()} to {rows.max()}")
    return rows


def _unpack(archive: Path, folder: Path) -> None:
    """Write the frames and splits of the original archive to ``folder``, each file atomically."""
    try:
        with tarfile.open(archive, "r|bz2") as tar:
            for member in tar:
                name = Path(member.name)
                if not member.isfile() or name.parent.name not in ("npz_data", "splits"):
                    continue
                stream = tar.extractfile(member)
                target = ensure_output_dir(folder / name.parent.name) / name.name
                with atomic_path(target) as temporary, temporary.open("wb") as out:
                    while stream is not None and (chunk := stream.read(1 << 20)):
                        out.write(chunk)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{archive} is no complete archive ({error}); delete it and try again") from error
