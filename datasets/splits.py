"""Splits of a data set into training, validation and test structures, kept in a file with a checksum."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simkit.errors import ConfigError, DataError
from simkit.files import write_json

Ints = NDArray[np.int64]
PARTS = ("train", "valid", "test")


@dataclass(frozen=True, eq=False)
class Splits:
    """Which of ``size`` structures are for training, validation and testing; a structure is in one part at most.

    Raises:
        DataError: if indices are out of range, occur twice, or there is nothing to train on.
    """

    train: Ints
    valid: Ints
    test: Ints
    size: int
    method: str
    seed: int | None = None

    def __post_init__(self) -> None:
        for part in PARTS:
            value = np.array(getattr(self, part), dtype=np.int64).reshape(-1)
            value.setflags(write=False)
            object.__setattr__(self, part, value)
        indices = np.concatenate([self.train, self.valid, self.test])
        if not len(self.train):
            raise DataError(f"the split ({self.method}) of {self.size} structures leaves none for training")
        if indices.min() < 0 or indices.max() >= self.size:
            raise DataError(f"split indices {indices.min()} to {indices.max()} are not within 0 to {self.size - 1}")
        if len(np.unique(indices)) != len(indices):
            values, counts = np.unique(indices, return_counts=True)
            raise DataError(f"structure {values[counts > 1][0]} occurs more than once in the split ({self.method})")

    @property
    def hash(self) -> str:
        """The SHA-256 of the indices, their order included."""
        digest = hashlib.sha256(f"{self.size}".encode())
        for part in PARTS:
            digest.update(f" {part} {len(getattr(self, part))} ".encode())
            digest.update(getattr(self, part).astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def codes(self) -> NDArray[np.int8]:
        """The part of every structure: 0 training, 1 validation, 2 test, -1 none; [size]."""
        codes = np.full(self.size, -1, dtype=np.int8)
        for code, part in enumerate(PARTS):
            codes[getattr(self, part)] = code
        return codes

    def __repr__(self) -> str:
        counts = ", ".join(f"{part} {len(getattr(self, part))}" for part in PARTS)
        return f"Splits({counts} of {self.size}, {self.method}, seed {self.seed}, {self.hash[:12]})"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the split and its hash as JSON, atomically."""
        content = {"method": self.method, "seed": self.seed, "size": self.size, "hash": self.hash}
        write_json(path, content | {part: getattr(self, part).tolist() for part in PARTS})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Splits:
        """Read a split written by `save`.

        Raises:
            DataError: if the file is missing, unreadable, or was altered.
        """
        try:
            with open(path, encoding="utf-8") as stream:
                content = json.load(stream)
            stored = content.pop("hash")
            splits = cls(**content)
        except FileNotFoundError as error:
            raise DataError(f"there is no file {path}") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is no split written by simkit, or was cut off: {error}") from error
        if splits.hash != stored:
            raise DataError(f"{path} was altered: its hash does not fit its indices; make the split again")
        return splits


def random_split(
    size: int, train: int | float, valid: int | float, test: int | float | None = None, *, seed: int
) -> Splits:
    """Split at random.

    Args:
        size: the number of structures.
        train, valid, test: how many go where: a count (int) or a fraction of all (float). ``test=None`` is the rest.
        seed: of the permutation (NumPy's PCG64).

    Raises:
        ConfigError: if they are negative, or more than there are.
    """
    counts = _counts(size, train, valid, test)
    order = np.random.default_rng(seed).permutation(size)
    train_part, valid_part, test_part = np.split(order[: sum(counts)], np.cumsum(counts)[:2])
    return Splits(train_part, valid_part, test_part, size, "random", seed)


def indices_split(size: int, train: ArrayLike, valid: ArrayLike = (), test: ArrayLike = ()) -> Splits:
    """Take published indices."""
    return Splits(np.asarray(train), np.asarray(valid), np.asarray(test), size, "indices")


def codes_split(codes: ArrayLike) -> Splits:
    """Take a published code per structure: 0 training, 1 validation, 2 test, such as QM9's column ``split``.

    Raises:
        DataError: if there are other codes.
    """
    codes = np.asarray(codes)
    other = np.setdiff1d(codes, [0, 1, 2])
    if len(other):
        raise DataError(f"expected the codes 0 (train), 1 (valid) and 2 (test) in the split, found also {other[0]}")
    train, valid, test = (np.flatnonzero(codes == code) for code in range(3))
    return Splits(train, valid, test, len(codes), "published")


def group_split(
    groups: ArrayLike, train: int | float, valid: int | float, test: int | float | None = None, *, seed: int
) -> Splits:
    """Split whole groups (formulas, molecules, trajectories) at random, so that no group is in two parts.

    Groups are dealt out in random order, each to the part that lacks the most; sizes are met as closely as groups allow.

    Args:
        groups: the group of every structure, such as ``store.formulas()`` or ``store.groups``.
        train, valid, test, seed: as in `random_split`.

    Raises:
        ConfigError: if there are fewer groups than parts.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(member)
    lacking = np.asarray(_counts(len(member), train, valid, test), dtype=np.int64)
    wanted = lacking > 0
    if len(names) < wanted.sum():
        raise ConfigError(f"cannot split {len(names)} groups into {wanted.sum()} parts; split at random instead")
    part_of = np.full(len(names), -1)
    for group in np.random.default_rng(seed).permutation(len(names)):
        part = int(np.argmax(lacking))
        if lacking[part] <= 0:
            break  # every part is full: the rest is used nowhere
        part_of[group] = part
        lacking[part] -= sizes[group]
    for name, code in zip(PARTS, range(3), strict=True):
        if wanted[code] and not (part_of == code).any():
            raise ConfigError(f"the groups are too large to leave any for {name}; ask for larger parts")
    train_part, valid_part, test_part = (np.flatnonzero(part_of[member] == code) for code in range(3))
    return Splits(train_part, valid_part, test_part, len(member), "group", seed)


def time_split(
    size: int, train: int | float, valid: int | float, test: int | float | None = None, *, gap: int = 0
) -> Splits:
    """Split a trajectory into contiguous blocks in its order: training, validation, test.

    Args:
        train, valid, test: as in `random_split`.
        gap: structures left out between two blocks, because neighbors in time are alike.

    Raises:
        ConfigError: if sizes or gap are unusable.
    """
    if gap < 0:
        raise ConfigError(f"expected a gap of 0 or more structures, found {gap}")
    usable = size - gap * ((valid > 0) + (test is None or test > 0))
    if usable < 1:
        raise ConfigError(f"gaps of {gap} leave nothing of {size} structures; ask for smaller ones")
    blocks: list[Ints] = []
    start = 0
    for count in _counts(usable, train, valid, test):
        blocks.append(np.arange(start, start + count))
        start += count + (gap if count else 0)
    return Splits(blocks[0], blocks[1], blocks[2], size, "time")


def _counts(size: int, train: int | float, valid: int | float, test: int | float | None) -> tuple[int, int, int]:
    given = {"train": train, "valid": valid} | ({} if test is None else {"test": test})
    counts = {}
    for part, value in given.items():
        if isinstance(value, bool) or value < 0 or (isinstance(value, float) and value > 1):
            raise ConfigError(f"{part}: expected a count (0, 1, 2, ...) or a fraction (0.0 to 1.0), found {value!r}")
        counts[part] = round(value * size) if isinstance(value, float) else value
    if all(isinstance(value, float) for value in given.values()) and abs(sum(given.values()) - 1) < 1e-9:
        counts["train"] += size - sum(counts.values())  # the fractions are meant to use everything up
    rest = size - sum(counts.values())
    if rest < 0:
        raise ConfigError(f"the split asks for {sum(counts.values())} structures ({counts}), there are {size}")
    return counts["train"], counts["valid"], counts.get("test", rest)
