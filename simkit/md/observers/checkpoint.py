"""`Checkpoint`: one file that holds everything needed to go on as if a simulation had never stopped."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simkit.errors import OutputError
from simkit.files import atomic_path

VERSION = 1
ABOUT = "about"
HASHED = frozenset({"model", "structures"})
"""Parts of an identity that are hashes: a message does not show them."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a simulation after ``step`` steps.

    Attributes:
        identity: name -> plain value of all that must be the same when the simulation goes on.
        step: steps done.
        frames: taken by each observer.
        arrays: by name, all that changes in a simulation.
    """

    identity: dict[str, Any]
    step: int
    frames: list[int]
    arrays: dict[str, NDArray[Any]]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file: NumPy's npz with a checksum. The old one stays until the new one is whole and on the disk.

        Raises:
            OutputError: if it cannot be written.
        """
        about = {"version": VERSION, "identity": self.identity, "step": self.step, "frames": self.frames}
        text = json.dumps({**about, "sha256": _checksum(about, self.arrays)})
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **{ABOUT: np.array(text), **self.arrays})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Read a file. Nothing in it is executed.

        Raises:
            OutputError: if there is none, or it is not a checkpoint, or damaged.
        """
        try:
            with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                about = json.loads(str(file[ABOUT]))
                arrays = {name: file[name] for name in file.files if name != ABOUT}
            checksum = about.pop("sha256")
            if about.pop("version") != VERSION:
                raise ValueError("it is of another version of simkit")
            if checksum != _checksum({"version": VERSION, **about}, arrays):
                raise ValueError("its checksum is wrong")
            return cls(arrays=arrays, **about)
        except FileNotFoundError:
            raise OutputError(f"there is no checkpoint {path}; start the simulation without a restart") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise OutputError(
                f"{path} is not a checkpoint of a simulation, or damaged ({error}); start again in a new folder"
            ) from None

    def check(self, identity: dict[str, Any], folder: Path) -> None:
        """Refuse to go on with another structure, model or setting.

        Raises:
            OutputError: naming what differs.
        """
        changed = _differences(self.identity, json.loads(json.dumps(identity)))
        if changed:
            raise OutputError(
                f"the simulation in {folder} cannot be continued with {', '.join(changed)}; use what it was started with, or a new folder"
            )


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two identities, as "another model" or "timestep 2.0 instead of 1.0"."""
    found = []
    for name in {**old, **new}:
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            found += _differences(before, now, f"{prefix}{name} ")
        elif before != now:
            text = f"another {name}" if name in HASHED else f"{prefix}{name} {now!r} instead of {before!r}"
            found.append(text)
    return found


def _checksum(about: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
