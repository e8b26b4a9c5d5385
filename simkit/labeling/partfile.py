"""The labels of an unfinished run on disk, one line of JSON per finished frame: an interrupted run can continue."""

import json
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from simkit.errors import OutputError
from simkit.labeling.base import Label


def part_path(out: Path) -> Path:
    """The part file of an output file: beside it, with ``.part`` added to its name."""
    return out.with_name(out.name + ".part")


class PartFile:
    """An append-only file of labels; a context manager.

    Its first line says which run it belongs to. Every further line is ``{"frame": index, "energy": ...}``, in the order
    of finishing, and is flushed at once. Numbers are written with all digits, so that a continued run gives the same
    labels as one that never stopped.

    Args:
        path: where it lies.
        run: what identifies the run; a file of another run is refused.
        resume: continue an existing file; otherwise start anew and lose it.

    Raises:
        OutputError: if it cannot be written, or belongs to another run.
    """

    def __init__(self, path: Path, run: dict[str, Any], *, resume: bool) -> None:
        self.path = path
        self.labels: dict[int, Label] = {}
        try:
            if resume and path.exists():
                keep = self._read(run)
                self._stream: TextIO = path.open("r+", encoding="utf-8")
                self._stream.truncate(keep)  # a line that was cut off by the interruption
                self._stream.seek(0, 2)
            else:
                self._stream = path.open("w", encoding="utf-8")
                keep = 0
            if keep == 0:
                self._append(run)
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error

    def __enter__(self) -> "PartFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def _read(self, run: dict[str, Any]) -> int:
        """Fill ``labels`` and return the length of the intact part in bytes."""
        length = 0
        with self.path.open("rb") as stream:
            for line in stream:
                try:
                    entry = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    entry = None
                if entry is None:
                    if length == 0 and line.endswith(b"\n"):
                        raise OutputError(
                            f"{self.path} is in the way: it is no part file of simkit; remove it or choose another "
                            "output"
                        )
                    break
                if length == 0:
                    self._check(entry, run)
                else:
                    frame = entry.pop("frame")
                    self.labels[frame] = _label(entry)
                length += len(line)
        return length

    def _check(self, found: dict[str, Any], run: dict[str, Any]) -> None:
        different = [f"{key} {found.get(key)!r}, now {run[key]!r}" for key in run if found.get(key) != run[key]]
        if different:
            raise OutputError(
                f"{self.path} holds the labels of another run ({'; '.join(different)}); run that one to its end, start "
                "anew without resuming, or choose another output"
            )

    def add(self, frame: int, label: Label) -> None:
        """Store the label of a frame.

        Raises:
            OutputError: if it cannot be written (a full disk, say).
        """
        self.labels[frame] = label
        values = {name: np.asarray(value).tolist() for name, value in label.present().items() if name != "gap"}
        try:
            self._append({"frame": frame, **values})
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error

    def _append(self, entry: dict[str, Any]) -> None:
        self._stream.write(json.dumps(entry) + "\n")
        self._stream.flush()


def _label(entry: dict[str, Any]) -> Label:
    arrays: dict[str, Any] = {
        name: np.array(entry.pop(name)) for name in ("forces", "dipole", "stress", "charges") if name in entry
    }
    return Label(**arrays, **entry)
