"""The data set that comes with simkit: ethanol at 300 to 1000 K with GFN2-xTB energies, forces and dipoles.

Made by simkit itself (``simkit sample`` and ``simkit label``), for the quickstart and the tests; MIT like simkit. GFN2-xTB:
Bannwarth, Ehlert and Grimme, J. Chem. Theory Comput. 15, 1652 (2019).
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np

from simkit.config import nearest
from simkit.datasets.npz_file import read_npz
from simkit.datasets.store import Store
from simkit.errors import ConfigError, DataError

PARTS = ("train", "valid", "test")
"""The parts, in the order of their codes 0, 1, 2 in the file."""
_FILE = "embedded_ethanol_gfn2.npz"


def load_embedded(split: str | None = None) -> Store:
    """Open the embedded data set.

    Args:
        split: one of `PARTS`, or None for all frames.

    Returns:
        Store with ``energy`` (eV), ``forces`` (eV/angstrom) and ``dipole`` (e*angstrom); the columns ``temperature``
        (K), ``source`` and ``split``.

    Raises:
        ConfigError: if the split is unknown.
        DataError: if the file is missing or damaged, which means that simkit is not installed completely.
    """
    if split is not None and split not in PARTS:
        raise ConfigError(f"unknown split {split!r} of the embedded data set{nearest(split, PARTS)}")
    with resources.as_file(resources.files("simkit.datasets") / _FILE) as path:
        store = _open(path)
    if split is None:
        return store
    part = store.select(np.flatnonzero(store.columns["split"] == PARTS.index(split)))
    part.info["name"] += f" {split}"
    return part


def _open(path: Path) -> Store:
    arrays = read_npz(path)
    try:
        metadata = json.loads(str(arrays["metadata"]))
        references = dict(zip(arrays["reference_numbers"].tolist(), arrays["reference_energies"].tolist(), strict=True))
        counts = arrays["n_atoms"].astype(np.int64)
        return Store(
            arrays["numbers"],
            arrays["positions"],
            np.concatenate([[0], np.cumsum(counts)]),
            {name: arrays[name] for name in ("energy", "forces", "dipole")},
            columns={name: arrays[name] for name in ("temperature", "source", "split")},
            info={
                **metadata,
                "name": "embedded ethanol",
                "source": "made by simkit with examples/make_embedded_data.py, MIT",
                "level_of_theory": metadata.get("level_of_theory", "GFN2-xTB"),
                "references": {"energy": references},
            },
        )
    except KeyError as error:
        raise DataError(f"{path} has no array {error}; install simkit again") from error
