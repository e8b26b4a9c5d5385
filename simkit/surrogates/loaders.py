"""Trajectories from files of other origin, and derivatives where they were not measured.

CSV and npz files hold times ``t``, coordinates ``q``, and momenta ``p`` or velocities ``v`` where they are known; derivatives that are
not in the file are estimated by `estimate_derivative`.
"""

from __future__ import annotations

import csv
import os
import re
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from simkit.errors import ConfigError, DataError
from simkit.surrogates.trajectories import Trajectories

Array = NDArray[np.float64]
_COLUMN = re.compile(r"(dq|dp|dv|q|p|v|u)(\d*)")
_NAMES = ("q", "p", "v", "dq", "dp", "dv", "u")


def estimate_derivative(times: Array, values: Array, *, window: int = 7, degree: int = 3, order: int = 1) -> Array:
    """Return time derivatives by a polynomial that is fitted to the points around each point.

    With equal intervals this is the filter of Savitzky and Golay 1964 (Analytical Chemistry 36, 1627); intervals may differ. Near the
    ends the window is one-sided, with less accuracy.

    Args:
        times: [T], or [S, T].
        values: [S, T, D].
        window: points that a polynomial is fitted to; an odd number.
        degree: of the polynomial.
        order: which derivative.

    Returns:
        [S, T, D].

    Raises:
        ConfigError: unless ``order <= degree < window``, the window is odd and not longer than a trajectory.
    """
    points = values.shape[1]
    if not 1 <= order <= degree < window <= points or window % 2 == 0:
        raise ConfigError(
            "derivatives need an odd window of at most the points of a trajectory, more than the degree of the polynomial, "
            f"which must be at least the order; found window {window}, degree {degree}, order {order}, {points} points"
        )
    starts = np.clip(np.arange(points) - window // 2, 0, points - window)
    columns = starts[:, None] + np.arange(window)
    distances = times[..., columns] - times[..., :, None]
    scale = np.abs(distances).max(axis=-1, keepdims=True)
    powers = (distances / scale)[..., None] ** np.arange(degree + 1)
    # Row ``order`` of the pseudo-inverse makes that coefficient of the fitted polynomial from the values in the window.
    weights = np.linalg.pinv(powers)[..., order, :] * np.prod(np.arange(1, order + 1)) / scale**order
    found: Array = np.einsum("stw,stwd->std", np.broadcast_to(weights, (*values.shape[:2], window)), values[:, columns])
    return found


def with_derivatives(data: Trajectories, *, window: int = 7, degree: int = 3) -> Trajectories:
    """Return trajectories with what they lack of dq, v, dp and dv, by `estimate_derivative`.

    Velocities that were not measured are taken to be dq/dt. Momenta are never made up: they depend on masses that are not known.
    """
    arrays: dict[str, Any] = data.arrays()

    def rate(name: str, order: int = 1) -> Array:
        return estimate_derivative(data.times, arrays[name], window=window, degree=degree, order=order)

    if "dq" not in arrays:
        arrays["dq"] = arrays["v"] if "v" in arrays else rate("q")
    if "v" not in arrays and "p" not in arrays:
        arrays["v"] = arrays["dq"]
        arrays.setdefault("dv", rate("q", 2))
    for name in ("p", "v"):
        if name in arrays:
            arrays.setdefault(f"d{name}", rate(name))
    return Trajectories(**arrays, info={**data.info, "derivatives": {"window": window, "degree": degree}})


def load_csv(path: str | os.PathLike[str], *, window: int = 7, degree: int = 3) -> Trajectories:
    """Read a table with the columns t, q (or q1, q2, ...), and where known p, v, dq, dp, dv and inputs u, numbered in the same way.

    An optional column ``trajectory`` numbers the trajectories, which must have equal numbers of rows. Lines that start with # are
    left out.

    Args:
        window: points that derivatives which are not in the file are estimated from.
        degree: of the polynomial for that.

    Raises:
        DataError: if the file is missing or malformed, or a column is unknown or missing.
    """
    header, table = _read_table(Path(path))
    places: dict[str, list[tuple[int, int]]] = {name: [] for name in _NAMES}
    for place, column in enumerate(header):
        match = _COLUMN.fullmatch(column)
        if match:
            places[match[1]].append((int(match[2] or 0), place))
        elif column not in {"t", "trajectory"}:
            raise DataError(
                f"{path}: column {column!r} is unknown; the columns are trajectory, t, q1, p1, v1, dq1, dp1, dv1, u1, ..."
            )
    if "t" not in header or not places["q"]:
        raise DataError(f"{path} must have the columns t and q (or q1, q2, ...); found {', '.join(header)}")
    labels = table[:, header.index("trajectory")] if "trajectory" in header else np.zeros(len(table))
    order = np.argsort(labels, kind="stable")
    _, counts = np.unique(labels, return_counts=True)
    if len(set(counts.tolist())) > 1:
        raise DataError(f"{path}: trajectories must have equal numbers of rows; found {sorted(set(counts.tolist()))}")
    shape = (len(counts), int(counts[0]))
    arrays = {
        {"u": "controls"}.get(name, name): table[order][:, [place for _, place in sorted(found)]].reshape(*shape, -1)
        for name, found in places.items()
        if found
    }
    times = table[order, header.index("t")].reshape(shape)
    data = Trajectories(times=times, **arrays, info={"source": Path(path).name})
    return with_derivatives(data, window=window, degree=degree)


def _read_table(path: Path) -> tuple[list[str], Array]:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.reader(line for line in stream if line.strip() and not line.lstrip().startswith("#")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if len(rows) < 2:
        raise DataError(f"{path} must have a line of column names and rows of numbers; found {len(rows)} lines")
    header = [name.strip() for name in rows[0]]
    if len(set(header)) < len(header):
        raise DataError(f"{path}: column names must differ; found {', '.join(header)}")
    if any(len(row) != len(header) for row in rows):
        raise DataError(f"{path}: every row must have {len(header)} values, as many as there are column names")
    try:
        return header, np.array(rows[1:], dtype=np.float64)
    except ValueError as error:
        raise DataError(f"{path}: every value must be a number: {error}") from None


def load_npz(path: str | os.PathLike[str], *, window: int = 7, degree: int = 3) -> Trajectories:
    """Read an npz file: what `Trajectories.save` wrote, or arrays t, q and where known p, v, dq, dp, dv and inputs u.

    Arrays are [S, T, D], [T, D], or [T]; t is [T] or [S, T]. ``qdot`` is another name for v.

    Args:
        window: points that derivatives which are not in the file are estimated from.
        degree: of the polynomial for that.

    Raises:
        DataError: if the file is missing or malformed, or an array is unknown or missing.
    """
    try:
        with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            content = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read trajectories from {path}: {error}") from error
    if "format" in content:
        return Trajectories.load(path)
    aliases = {"t": "times", "qdot": "v", "u": "controls"}
    renamed = {aliases.get(name, name): value for name, value in content.items()}
    unknown = sorted(renamed.keys() - {"times", "controls", *_NAMES})
    if unknown or not {"times", "q"} <= renamed.keys():
        raise DataError(f"{path} must hold t, q and at most p, v, dq, dp, dv, u; found {', '.join(content)}")
    arrays = {
        name: value.reshape(1, len(value), -1) if name != "times" and value.ndim in {1, 2} else value
        for name, value in renamed.items()
    }
    data = Trajectories(**arrays, info={"source": Path(path).name})
    return with_derivatives(data, window=window, degree=degree)


def load(path: str | os.PathLike[str]) -> Trajectories:
    """Read trajectories with `load_csv` or `load_npz`, as the name of the file ends.

    Raises:
        DataError: if it ends otherwise, or the file is missing or malformed.
    """
    readers = {".csv": load_csv, ".npz": load_npz}
    suffix = Path(path).suffix.lower()
    if suffix not in readers:
        raise DataError(f"trajectories are read from .csv and .npz files; found {path}")
    return readers[suffix](path)


def load_real_pendulum(
    path: str | os.PathLike[str], *, derivatives: Literal["forward", "polynomial"] = "forward"
) -> Trajectories:
    """Read the measured pendulum of Schmidt and Lipson 2009 (Science 324, 81), ``real_pend_h_1.txt``: angle and angular velocity.

    The momentum is the angular velocity, as in Greydanus et al. 2019 (section 3, task 3, experiment-real/data.py). There the energy is
    p^2 + 2.4 (1 - cos q), the first 80% of the points are for training and the last 20% for tests (`real_pendulum_split`).

    Args:
        derivatives: "forward", differences to the following point, as in that paper, which leave out the last point; or "polynomial",
            by `estimate_derivative`.

    Returns:
        One trajectory with q, p, v, dq, dp and dv.

    Raises:
        DataError: if the file is missing or malformed.
        ConfigError: if the kind of derivatives is unknown.
    """
    if derivatives not in {"forward", "polynomial"}:
        raise ConfigError(f'derivatives must be "forward" or "polynomial"; found {derivatives!r}')
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        table = np.array(
            [line.split() for line in lines if line.strip() and not line.startswith("%")], dtype=np.float64
        )
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the pendulum's data from {path}: {error}") from error
    if table.ndim != 2 or table.shape[1] != 4:
        raise DataError(
            f"{path} must have four columns: trial, time, angle and angular velocity; found shape {table.shape}"
        )
    times, q, v = table[:, 1], table[None, :, 2:3], table[None, :, 3:4]
    info = {"system": "real pendulum", "source": "Schmidt and Lipson 2009", "derivatives": derivatives}
    if derivatives == "polynomial":
        dq, dv = estimate_derivative(times, q), estimate_derivative(times, v)
    else:
        interval = np.diff(times)[None, :, None]
        dq, dv = np.diff(q, axis=1) / interval, np.diff(v, axis=1) / interval
        times, q, v = times[:-1], q[:, :-1], v[:, :-1]
    return Trajectories(times=times, q=q, p=v, v=v, dq=dq, dp=dv, dv=dv, info=info)


def real_pendulum_split(data: Trajectories) -> dict[str, Trajectories]:
    """Return the points of "train" and "test" as Greydanus et al. 2019 do: the first 80% and, but for rounding, the last 20%.

    With the 555 points of forward differences these are 444 and 110; the authors' code adds the last point to the training points, which
    is left out here.
    """
    points = data.q.shape[1]
    count = int(points * 0.8)
    return {"train": data.between(0, count), "test": data.between(count, count + int(points * (1 - 0.8)))}
