"""Structures in a flat ``.npz`` file: stores written by simkit, or arrays laid out like those of simkit's QM9."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from simkit.datasets.frame_labels import KNOWN
from simkit.datasets.npz_file import Array, read_npz
from simkit.datasets.store import Store
from simkit.errors import ConfigError, DataError, LabelError
from simkit.units import unit_factor


def load_flat(
    path: Path,
    wanted: Mapping[str, str | None],
    energy_unit: str,
    length_unit: str,
    group: str | None,
    info: Mapping[str, Any],
) -> Store:
    """Open a flat file with ``n_atoms`` [F], ``numbers`` [A], ``positions`` [A, 3], and ``cell`` [F, 3, 3] and ``pbc`` [F, 3]
    where structures are periodic; labels are [F, ...] or [A, ...]. A store written by `Store.save` is opened as it is.

    Args:
        wanted: see `simkit.datasets.frame_labels.choose_keys`.
        group: the array that becomes the group.
        info: what becomes the store's info.

    Raises:
        ConfigError: if two names could be the same label, or a store is opened with options that it cannot follow.
        DataError: if arrays are missing or do not fit; LabelError if a label is.
    """
    arrays = read_npz(path)
    if "checksum" in arrays:
        renamed = [label for label, key in wanted.items() if key not in (None, "none", label)]
        if (energy_unit, length_unit, group) != ("eV", "angstrom", None) or renamed:
            raise ConfigError(f"{path} is a store of simkit: its labels, units and groups are fixed, leave them out")
        store = Store.load(path)
        for label in [label for label, key in wanted.items() if key == "none"]:
            store.labels.pop(label, None)
        return store
    missing = [key for key in ("n_atoms", "numbers", "positions") if key not in arrays]
    if missing:
        found = ", ".join(arrays) or "none"
        raise DataError(
            f"{path}: expected the arrays n_atoms, numbers and positions, found {found}; missing: {missing[0]}"
        )
    keys = _choose(arrays, wanted, path)
    length, unit = unit_factor(length_unit), unit_factor(energy_unit)
    factors = {"energy": unit, "forces": unit / length, "stress": unit / length**3, "dipole": length}
    used = {"n_atoms", "numbers", "positions", "cell", "pbc", *keys.values()} | ({group} if group else set())
    if group is not None and group not in arrays:
        raise DataError(f"{path} has no array {group!r} to group by, found {', '.join(arrays)}")
    unread = sorted(arrays.keys() - used)
    cell = arrays.get("cell")
    return Store(
        arrays["numbers"],
        arrays["positions"] * np.asarray(length, arrays["positions"].dtype),
        np.concatenate([[0], np.cumsum(arrays["n_atoms"], dtype=np.int64)]),
        {label: arrays[key] * factors.get(label, 1.0) for label, key in keys.items()},
        cell=None if cell is None else cell * length,
        pbc=arrays.get("pbc"),
        groups=None if group is None else arrays[group].astype(str),
        info={
            **info,
            "name": path.name,
            "keys": keys,
            "notes": [f"arrays that were not read: {', '.join(unread)}"] if unread else [],
        },
    )


def _choose(arrays: Mapping[str, Array], wanted: Mapping[str, str | None], path: Path) -> dict[str, str]:
    chosen = {}
    for label, key in wanted.items():
        known = [name for name in KNOWN.get(label, ()) if name in arrays and "virial" not in name]
        if key is not None and key != "none":
            if key not in arrays:
                raise LabelError(f"{label}: {path} has no array {key!r}, found {', '.join(arrays)}")
            chosen[label] = key
        elif key is None and len(known) > 1:
            raise ConfigError(f"{label}: {path} has {' and '.join(known)}; say which is meant: {label}={known[0]!r}")
        elif key is None and known:
            chosen[label] = known[0]
    return chosen
