"""What is named at the shell: structures, data sets and models; and structures written back to files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simkit.config import nearest
from simkit.datasets.frame_labels import KNOWN
from simkit.errors import ConfigError, DataError, OutputError
from simkit.files import atomic_path

if TYPE_CHECKING:
    from ase import Atoms

    from simkit.calculator import Calculator
    from simkit.potential import Potential

NAMED_SETS: dict[str, tuple[str, ...]] = {
    "embedded": ("split",),
    "qm9": ("target",),
    "rmd17": ("molecule", "split"),
}
"""Data sets with a name, and the options that may follow it after colons: ``rmd17:ethanol:test_01``."""


def data_source(given: Sequence[str | os.PathLike[str]]) -> dict[str, Any]:
    """Return what `simkit.datasets.load` takes for paths, or for the name of a data set.

    A name with options is ``rmd17:ethanol:test_01``, ``qm9:U0`` or ``embedded:test``. A file called like a data set is ``./qm9``.

    Returns:
        ``name`` and the options of the source; ``name`` is "deepmd" for folders that hold a ``type.raw``, else "frames".

    Raises:
        ConfigError: if a name is combined with anything else, or has too many options.
        DataError: if a path stands for nothing.
    """
    words = [os.fspath(value) for value in given]
    named = [word for word in words if word.split(":")[0] in NAMED_SETS]
    if named and len(words) > 1:
        raise ConfigError(f"{named[0]} is a data set of its own; give it alone, found {', '.join(words)}")
    if named:
        name, *values = words[0].split(":")
        options = NAMED_SETS[name]
        if len(values) > len(options):
            form = ":".join([name, *(option.upper() for option in options)])
            raise ConfigError(f"expected at most {form}, found {words[0]!r}")
        return {"name": name, **dict(zip(options, values, strict=False))}
    for word in words:
        _check_exists(word)
    deepmd = [_is_deepmd(Path(word).expanduser()) for word in words]
    if any(deepmd) and not all(deepmd):
        raise ConfigError(f"DeePMD folders and other files cannot be opened together, found {', '.join(words)}")
    return {"name": "deepmd" if words and all(deepmd) else "frames", "paths": words}


def with_labels(name: str, options: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """Return the options of a source of data with further labels to read: frames hold whatever they hold, and have to be asked.

    Args:
        name: of the source; only "frames" is asked, unless the options name labels already.
        labels: such as "gap"; energy, forces, stress, dipole and charge are found without.
    """
    further = [label for label in labels if label not in KNOWN]
    if name != "frames" or "labels" in options or not further:
        return dict(options)
    return {**options, "labels": further}


def labels_present(options: Mapping[str, Any], labels: Sequence[str]) -> list[str]:
    """Return which of the labels the first file of frames has, for the options of that source."""
    from simkit.datasets.frames import expand, read_file
    from simkit.datasets.npz_file import read_npz

    path = expand(options["paths"])[0]
    names = {key.removeprefix("label:") for key in read_npz(path)} if path.suffix == ".npz" else None
    if names is None:
        names = set(next(read_file(path)).names())
    return [label for label in labels if label in names]


def _check_exists(word: str) -> None:
    from simkit.datasets.frames import expand

    path = Path(word).expanduser()
    if not path.is_dir():
        try:
            expand(word)
        except DataError:
            hint = nearest(word.split(":")[0], NAMED_SETS).replace("known:", "known data sets:")
            raise DataError(f"there is no file, folder or data set {word!r}{hint}") from None


def _is_deepmd(path: Path) -> bool:
    return path.is_dir() and next(path.rglob("type.raw"), None) is not None


def read_structures(where: str | os.PathLike[str]) -> list[Atoms]:
    """Read structures from ``file``, a pattern, a folder, or ``file@index`` with an index or a slice as ASE writes them.

    Raises:
        DataError: if there is no such file, it is empty or cannot be read, or has no such index.
    """
    from simkit.datasets.frames import expand

    text = os.fspath(where)
    path, sign, index = text.rpartition("@")
    if not sign or Path(text).exists():
        path, index = text, ":"
    frames = [atoms for file in expand(path) for atoms in _read_file(file)]
    chosen = _choose(frames, index, path)
    if not chosen:
        raise DataError(f"{path} holds {len(frames)} structures, but none at {index!r}")
    return chosen


def read_structure(where: str | os.PathLike[str]) -> Atoms:
    """Read one structure; see `read_structures`.

    Raises:
        DataError: as there, and if there are several to choose from.
    """
    frames = read_structures(where)
    if len(frames) > 1:
        raise DataError(
            f"{where} holds {len(frames)} structures, expected one: say which, such as {where}@0 for the first or "
            f"{where}@-1 for the last"
        )
    return frames[0]


def _read_file(path: Path) -> list[Atoms]:
    from simkit.datasets.frames import load_frames, read_file

    if path.suffix == ".npz":
        return load_frames(path).to_atoms()
    return [frame.atoms for frame in read_file(path)]


def _choose(frames: list[Atoms], index: str, path: str) -> list[Atoms]:
    try:
        if ":" not in index:
            number = int(index)
            return [frames[number]] if -len(frames) <= number < len(frames) else []
        return frames[slice(*(int(part) if part else None for part in index.split(":")))]
    except (ValueError, TypeError):
        raise DataError(f"cannot read the index {index!r} of {path}; expected such as 0, -1, 10:20 or ::5") from None


def check_new_file(path: Path, overwrite: bool) -> None:
    """Refuse to replace a file that is there already, and a folder that is not, before the work begins.

    Raises:
        OutputError: saying which.
    """
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; add --overwrite to replace it, or choose another name")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}")


def check_format(path: Path) -> str:
    """Return the name of ASE's format for an output file.

    Raises:
        ConfigError: if ASE cannot write files with this suffix.
    """
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    try:
        name = filetype(path.name.removesuffix(".gz"), read=False, guess=False)
        known = ioformats[name].can_write
    except (UnknownFileTypeError, KeyError):
        known = False
    if not known:
        raise ConfigError(f"cannot tell how to write {path.name}; expected a name that ends in .xyz, .traj or .db")
    return str(name)


def write_structures(path: Path, frames: Sequence[Atoms], keep: Mapping[str, str] | None = None) -> None:
    """Write structures in the format that the suffix names, atomically.

    Args:
        keep: names of results, of ``info`` or of ``arrays``, and what to call them in the message, that must still be there when the file
            is read again.

    Raises:
        ConfigError: if the format cannot hold this.
        OutputError: if the file cannot be written.
    """
    from ase.io import read, write

    name = check_format(path)
    with atomic_path(path) as temporary:
        try:
            write(temporary, list(frames), format=name)
            last = read(temporary, index=-1, format=name)
        except OSError:
            raise
        except Exception as error:  # ASE's writers raise whatever they run into
            raise ConfigError(
                f"{path.name}: the format {name} cannot hold {len(frames)} such structures ({error}); write .xyz, .traj or .db"
            ) from error
        found = {*last.info, *last.arrays, *({} if last.calc is None else last.calc.results)}
        lost = [title for result, title in (keep or {}).items() if result not in found]
        if lost:
            raise ConfigError(f"the format {name} does not keep {' and '.join(lost)}; write .xyz or .traj")


def open_potential(path: str | os.PathLike[str], device: str = "auto", dtype: str | None = None) -> Potential:
    """Load a model file.

    Args:
        device: "auto" is the first GPU, else the CPU.
        dtype: None keeps that of the file.

    Raises:
        ModelFileError: if it is not a valid model.
        DeviceError: if the device is not there.
        ConfigError: if device or dtype are unknown.
    """
    from simkit.calculator import DTYPES
    from simkit.device import resolve_device
    from simkit.potentials import load

    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype must be float32 or float64, found {dtype!r}")
    target = resolve_device(device)
    potential = load(path)
    if dtype is not None:
        potential.cast(DTYPES[dtype])
    return potential.to(target)


def open_calculator(
    path: str | os.PathLike[str],
    device: str = "auto",
    dtype: str | None = None,
    skin: float = 0.5,
    fast: bool = True,
) -> Calculator:
    """Load a model file as an ASE calculator; see `open_potential`."""
    from simkit.calculator import Calculator

    potential = open_potential(path, device, dtype)
    name = str(potential.dtype).removeprefix("torch.")
    return Calculator(potential, device=str(potential.device), dtype=name, skin=skin, fast=fast)
