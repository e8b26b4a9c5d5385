"""`ThermoTable`: energies and temperatures as a table of text that anything can read."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from simkit.errors import DataError, OutputError
from simkit.files import write_text
from simkit.md.observers.files import check_interval, check_kept, new_file, writing
from simkit.units import GPA

if TYPE_CHECKING:
    from simkit.md.protocols import Frame
    from simkit.md.state import State

Floats = NDArray[np.float64]


class ThermoTable:
    """CSV with a row for each look and replica, in that order: ``step, time_fs, replica`` (the number that names it; where there are
    several), ``temperature_K, potential_eV, kinetic_eV, total_eV, conserved_eV`` and, with ``pressure``, ``pressure_GPa``,
    ``volume_angstrom3``.

    The pressure is a third of the trace of the instantaneous tensor. Numbers are written so that reading gives back the same bits. A row
    is on its way to the disk as soon as it was seen, so that the file can be followed while the simulation runs.
    """

    def __init__(self, path: str | os.PathLike[str], interval: int, *, pressure: bool = False) -> None:
        """With ``pressure``, the model computes the stress for every look. Nothing is written before `open`.

        Raises:
            ConfigError: if the interval is not positive.
        """
        self.path, self.interval, self._pressure = Path(path), check_interval(interval), pressure
        needs = {"temperature", "energy", "kinetic_energy", "conserved"}
        self.needs = frozenset(needs | ({"pressure", "volume"} if pressure else set()))
        self._stream: BinaryIO | None = None
        self._replicas: list[str] = []

    def open(self, state: State, timestep: float, kept: int | None) -> None:
        """See `Observer.open`."""
        self._replicas = [str(name) for name in state.replicas.tolist()] if state.size > 1 else []
        header = ["step", "time_fs", *(["replica"] if self._replicas else [])]
        header += ["temperature_K", "potential_eV", "kinetic_eV", "total_eV", "conserved_eV"]
        header += ["pressure_GPa", "volume_angstrom3"] if self._pressure else []
        if kept is None:
            new_file(self.path)
        with writing(self.path):
            if kept:
                _cut(self.path, ",".join(header), kept, self._replicas)
            else:
                write_text(self.path, ",".join(header) + "\n")
            self._stream = self.path.open("ab", buffering=0)

    def observe(self, frame: Frame) -> None:
        """See `Observer.observe`."""
        values = frame.values
        columns = [values["temperature"], values["energy"], values["kinetic_energy"]]
        columns += [values["energy"] + values["kinetic_energy"], values["conserved"]]
        if self._pressure:
            columns += [np.trace(values["pressure"], axis1=1, axis2=2) / 3 / GPA, values["volume"]]
        start = f"{frame.step},{float(frame.time_fs)!r},"
        rows = [",".join(map(repr, row)) for row in np.stack(columns, axis=1).tolist()]
        if self._replicas:
            rows = [f"{name},{row}" for name, row in zip(self._replicas, rows, strict=True)]
        text = "".join(f"{start}{row}\n" for row in rows).encode()
        with writing(self.path):
            if self._stream is None:
                raise OutputError(f"{self.path} is not open")
            while text:  # an unbuffered write may take a part
                text = text[self._stream.write(text) :]

    def flush(self) -> None:
        """See `Observer.flush`."""
        if self._stream is not None:
            with writing(self.path):
                os.fsync(self._stream.fileno())

    def close(self) -> None:
        """See `Observer.close`."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _cut(path: Path, header: str, kept: int, replicas: list[str]) -> None:
    """Keep the header and the rows of the first looks."""
    if not path.is_file():
        raise OutputError(
            f"{path} is missing, but the checkpoint has {kept} frames; start the run again in a new folder"
        )
    per_frame = max(1, len(replicas))
    size = rows = 0
    with path.open("rb") as stream:
        first = stream.readline()
        if first.decode(errors="replace").rstrip("\n") != header:
            raise OutputError(
                f"{path} has the columns {first.decode(errors='replace').strip()!r}, the restart would write {header!r}; use the settings "
                "that it was started with, or a new folder"
            )
        size = len(first)
        for line in stream:
            if rows == kept * per_frame or not line.endswith(b"\n"):
                break
            if replicas and line.split(b",", 3)[2].decode() != replicas[rows % per_frame]:
                raise OutputError(
                    f"{path} is of other replicas; restart with those it was started with, or use a new folder"
                )
            size, rows = size + len(line), rows + 1
    check_kept(path, rows // per_frame, kept)
    os.truncate(path, size)


def read_thermo_table(path: str | os.PathLike[str]) -> dict[str, Floats]:
    """Return the columns of a table by name: ``step`` and ``time_fs`` [T], ``replica`` [B], all others [T, B].

    Without a column ``replica``, B is 1. A last look that was not written in full is left out.

    Raises:
        DataError: if the file is not such a table.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as stream:
            reader = csv.reader(stream)
            names = next(reader)
            if names[:2] != ["step", "time_fs"]:
                raise ValueError(f"expected the columns step, time_fs, ..., found {','.join(names)}")
            rows = np.array([[float(value) for value in row] for row in reader if len(row) == len(names)])
    except (OSError, ValueError, StopIteration) as error:
        raise DataError(f"{path} is not the table of a simulation ({error})") from None
    rows = rows.reshape(-1, len(names))
    several = "replica" in names
    first = rows[:, 0] == rows[0, 0] if len(rows) else np.zeros(0, dtype=bool)
    b = int(first.sum()) if several and len(rows) else 1
    table = rows[: len(rows) // b * b].reshape(-1, b, len(names))
    if (table[:, :, 0] != table[:, :1, 0]).any() or (several and (table[:, :, 2] != table[:1, :, 2]).any()):
        raise DataError(f"{path} does not hold the same replicas at every step")
    columns = {name: table[:, :, k] for k, name in enumerate(names)}
    found = {name: values for name, values in columns.items() if name not in ("step", "time_fs", "replica")}
    shared = {"step": columns["step"][:, 0], "time_fs": columns["time_fs"][:, 0]}
    return {**shared, "replica": columns["replica"][0] if several and len(table) else np.zeros(b), **found}
