"""`Trajectories`: what a dynamics model is trained on and compared with, however it was made."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simkit.errors import DataError
from simkit.files import atomic_path

Array = NDArray[np.float64]
_PER_COORDINATE = ("q", "p", "v", "dq", "dp", "dv")
_ARRAYS = ("times", *_PER_COORDINATE, "controls")
_FORMAT = "simkit trajectories 1"


@dataclass(frozen=True)
class Trajectories:
    """S trajectories of a system with D coordinates, each at T times; all arrays are float64.

    Attributes:
        times: [T], common to all, or [S, T].
        q: [S, T, D] generalised (or Cartesian) coordinates.
        p: momenta [S, T, D], or None.
        v: velocities [S, T, D], or None.
        dq: time derivative of ``q``, exact or estimated, or None; it differs from ``v`` where noise was added to ``v``.
        dp: time derivative of ``p``, or None.
        dv: time derivative of ``v``, or None.
        controls: external inputs [S, T, U], or None.
        info: what the data are: system, parameters, noise, seed, protocol. Everything in it can be written as JSON.
    """

    times: Array
    q: Array
    p: Array | None = None
    v: Array | None = None
    dq: Array | None = None
    dp: Array | None = None
    dv: Array | None = None
    controls: Array | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, np.ascontiguousarray(value, dtype=np.float64))
        if self.q.ndim != 3 or 0 in self.q.shape:
            raise DataError(f"q must be [trajectories, times, coordinates] and not empty; found shape {self.q.shape}")
        samples, points = self.q.shape[:2]
        if self.times.shape not in {(points,), (samples, points)}:
            raise DataError(f"times must be {(points,)} or {(samples, points)}, as q is; found {self.times.shape}")
        if not (np.diff(self.times, axis=-1) > 0).all():
            raise DataError(
                "times must increase along every trajectory; sort them, or split the data where they jump back"
            )
        for name in _PER_COORDINATE[1:]:
            value = getattr(self, name)
            if value is not None and value.shape != self.q.shape:
                raise DataError(f"{name} must have the shape of q, {self.q.shape}; found {value.shape}")
        if self.controls is not None and (self.controls.ndim != 3 or self.controls.shape[:2] != (samples, points)):
            raise DataError(f"controls must be [{samples}, {points}, inputs]; found {self.controls.shape}")
        for name, value in self.arrays().items():
            if not np.isfinite(value).all():
                raise DataError(f"{name} holds values that are not finite; leave such points out")

    def __len__(self) -> int:
        """The number of trajectories."""
        return self.q.shape[0]

    @property
    def dof(self) -> int:
        """The number of coordinates D."""
        return self.q.shape[2]

    def arrays(self) -> dict[str, Array]:
        """Return the arrays that are there, by name."""
        return {name: value for name in _ARRAYS if (value := getattr(self, name)) is not None}

    def state(self, kind: str) -> Array:
        """Return [S, T, 2 D]: coordinates beside momenta ("qp") or velocities ("qv"), or coordinates alone ("q"), [S, T, D].

        Raises:
            DataError: if these data have none.
        """
        return np.concatenate([self.q, *self._second(kind, "")], axis=-1)

    def derivative(self, kind: str) -> Array:
        """Return the time derivative of `state`, of its shape.

        Raises:
            DataError: if these data have none.
        """
        if self.dq is None:
            raise DataError("these trajectories have no dq; estimate derivatives with simkit.surrogates.loaders")
        return np.concatenate([self.dq, *self._second(kind, "d")], axis=-1)

    def _second(self, kind: str, prefix: str) -> list[Array]:
        if kind not in {"q", "qp", "qv"}:
            raise DataError(f'a state is "q", "qp" or "qv"; found {kind!r}')
        if kind == "q":
            return []
        name = prefix + kind[1]
        value: Array | None = getattr(self, name)
        if value is None:
            raise DataError(f"these trajectories have no {name}; they have {', '.join(self.arrays())}")
        return [value]

    def take(self, index: Any) -> Trajectories:
        """Return the trajectories that a slice, a list of numbers or a mask selects."""
        changed: dict[str, Any] = {name: value[index] for name, value in self.arrays().items() if name != "times"}
        if self.times.ndim == 2:
            changed["times"] = self.times[index]
        return replace(self, **changed)

    def between(self, first: int, end: int) -> Trajectories:
        """Return the points ``first`` to ``end - 1`` of every trajectory."""
        return self._points(slice(first, end))

    def thinned(self, every: int) -> Trajectories:
        """Return every ``every``-th point of every trajectory, beginning with the first."""
        return self._points(slice(None, None, every))

    def _points(self, chosen: slice) -> Trajectories:
        changed: dict[str, Any] = {name: value[:, chosen] for name, value in self.arrays().items() if name != "times"}
        return replace(self, times=self.times[..., chosen], **changed)

    def split(self, parts: Mapping[str, int], seed: int | None = None) -> dict[str, Trajectories]:
        """Return named parts with so many trajectories each, in order, or shuffled where a seed is given.

        Raises:
            DataError: if a part is empty or there are not enough trajectories.
        """
        wanted = sum(parts.values())
        if min(parts.values(), default=0) < 1 or wanted > len(self):
            raise DataError(f"parts must have at least one trajectory and {len(self)} together; found {dict(parts)}")
        order = np.arange(len(self)) if seed is None else np.random.default_rng(seed).permutation(len(self))
        ends = np.cumsum(list(parts.values()))
        return {
            name: self.take(order[end - count : end]) for (name, count), end in zip(parts.items(), ends, strict=True)
        }

    def windows(self, length: int) -> Trajectories:
        """Cut every trajectory into pieces of ``length`` successive points that do not overlap; a shorter rest is left out.

        Returns:
            [S W, length, ...] with times [S W, length].
        """
        count = self._window_count(length)
        starts = np.tile(np.arange(count) * length, len(self))
        return self._pieces(np.repeat(np.arange(len(self)), count), starts, length)

    def segments(self, length: int) -> Trajectories:
        """Cut every trajectory into pieces of ``length`` successive points that share their end points; a shorter rest is left out.

        Returns:
            [S W, length, ...] with times [S W, length].
        """
        self._window_count(length)
        firsts = np.arange(0, self.q.shape[1] - length + 1, max(length - 1, 1))
        return self._pieces(np.repeat(np.arange(len(self)), len(firsts)), np.tile(firsts, len(self)), length)

    def random_windows(self, length: int, seed: int) -> Trajectories:
        """Return one of the `windows` of every trajectory, drawn uniformly (Finzi et al. 2020, section 6: chunks of 5 points)."""
        starts = np.random.default_rng(seed).integers(self._window_count(length), size=len(self)) * length
        return self._pieces(np.arange(len(self)), starts, length)

    def _window_count(self, length: int) -> int:
        points = self.q.shape[1]
        if not 1 <= length <= points:
            raise DataError(f"a window must have 1 to {points} points, those of a trajectory; found {length}")
        return points // length

    def _pieces(self, samples: NDArray[np.int64], starts: NDArray[np.int64], length: int) -> Trajectories:
        columns = starts[:, None] + np.arange(length)
        times = np.broadcast_to(self.times, self.q.shape[:2])
        arrays = {**self.arrays(), "times": times}
        pieces: dict[str, Any] = {name: value[samples[:, None], columns] for name, value in arrays.items()}
        return replace(self, **pieces)

    def add_noise(self, level: float, seed: int, *, relative: bool = False) -> Trajectories:
        """Return these trajectories with independent Gaussian noise on q, p and v; derivatives keep their values.

        Args:
            level: standard deviation; with ``relative``, as a fraction of the standard deviation of each coordinate over all points.

        Raises:
            DataError: if the level is negative or not finite.
        """
        if not (np.isfinite(level) and level >= 0):
            raise DataError(f"the level of noise must be a finite number of at least 0; found {level}")
        generator = np.random.default_rng(seed)
        noisy = {}
        for name in ("q", "p", "v"):
            value = getattr(self, name)
            if value is not None:
                scale = level * value.std(axis=(0, 1)) if relative else level
                noisy[name] = value + scale * generator.standard_normal(value.shape)
        noise = {"level": level, "seed": seed, "relative": relative}
        return replace(self, info={**self.info, "noise": noise}, **noisy)

    def hash(self) -> str:
        """Return the SHA-256 of all arrays."""
        return _checksum(self.arrays(), "")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything into one ``.npz`` file, with a checksum of its contents.

        Raises:
            OutputError: if the file cannot be written.
            DataError: if ``info`` cannot be written as JSON.
        """
        try:
            info = json.dumps(self.info, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DataError(f"info must be plain values that JSON has: {error}") from None
        arrays = self.arrays()
        text = {"format": _FORMAT, "info": info, "sha256": _checksum(arrays, info)}
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, **arrays, **{name: np.array(value) for name, value in text.items()})  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectories:
        """Read what `save` wrote; `simkit.surrogates.loaders` reads files of other origin.

        Raises:
            DataError: if the file is missing, of another format, or damaged.
        """
        try:
            with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                content = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"cannot read trajectories from {path}: {error}") from error
        found = str(content.get("format", "no format"))
        if found != _FORMAT:
            raise DataError(
                f"{path} must hold {_FORMAT!r}; found {found!r}; read it with simkit.surrogates.loaders.load_npz"
            )
        info = str(content["info"])
        arrays = {name: content[name] for name in _ARRAYS if name in content}
        if _checksum(arrays, info) != str(content["sha256"]):
            raise DataError(f"{path} is damaged: its contents do not have the checksum that was written with them")
        return cls(**arrays, info=json.loads(info))


def _checksum(arrays: Mapping[str, Array], info: str) -> str:
    digest = hashlib.sha256(info.encode())
    for name, value in sorted(arrays.items()):
        digest.update(f"{name} {value.shape} {value.dtype.str}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def concatenate(parts: list[Trajectories]) -> Trajectories:
    """Return all trajectories of several sets with equal numbers of points and the same arrays; ``info`` is that of the first.

    Raises:
        DataError: if there are none or they do not fit.
    """
    if not parts:
        raise DataError("at least one set of trajectories is needed; found none")
    names = list(parts[0].arrays())
    shapes = {part.q.shape[1:] for part in parts}
    if any(list(part.arrays()) != names for part in parts) or len(shapes) > 1:
        found = [(list(part.arrays()), part.q.shape) for part in parts]
        raise DataError(f"the sets must have the same arrays, times and coordinates; found {found}")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names if name != "times"}
    times = [np.broadcast_to(part.times, part.q.shape[:2]) for part in parts]
    return Trajectories(times=np.concatenate(times), info=parts[0].info, **joined)


__all__ = ["Trajectories", "concatenate"]
