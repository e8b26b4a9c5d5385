"""QM9: geometries and properties of 134,000 organic molecules of up to nine atoms of C, N, O and F, B3LYP/6-31G(2df,p).

Ramakrishnan, Dral, Rupp and von Lilienfeld, "Quantum chemistry structures and properties of 134 kilo molecules", Sci. Data
1, 140022 (2014); doi:10.6084/m9.figshare.c.978904; licence CC0. The 3,054 molecules whose geometry did not survive the
authors' consistency check (the published list of uncharacterised molecules) are left out.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from simkit.config import nearest
from simkit.datasets.npz_file import Array, read_npz
from simkit.datasets.qm9_archive import download
from simkit.datasets.store import Store
from simkit.errors import ConfigError, DataError
from simkit.files import cache_dir, data_dir
from simkit.units import unit_factor

UNITS = {
    "mu": "debye",
    "alpha": "bohr^3",
    "homo": "hartree",
    "lumo": "hartree",
    "gap": "hartree",
    "r2": "bohr^2",
    "zpve": "hartree",
    "U0": "hartree",
    "U": "hartree",
    "H": "hartree",
    "G": "hartree",
    "Cv": "cal/mol/k",
}
"""The properties that become labels, with the units of the original files; see `simkit.graph.LABELS` for those of the store."""

TARGETS = ("U0", "U", "H", "G")
"""The energies that can be trained on as ``energy``."""

REFERENCES = {
    "U0": {1: -0.500273, 6: -37.846772, 7: -54.583861, 8: -75.064579, 9: -99.718730},
    "U": {1: -0.498857, 6: -37.845355, 7: -54.582445, 8: -75.063163, 9: -99.717314},
    "H": {1: -0.497912, 6: -37.844411, 7: -54.581501, 8: -75.062219, 9: -99.716370},
    "G": {1: -0.510927, 6: -37.861317, 7: -54.598897, 8: -75.079532, 9: -99.733544},
    "Cv": dict.fromkeys((1, 6, 7, 8, 9), 2.981),
}
"""Energies of the isolated atoms (hartree) and their heat capacity (cal/mol/K): the data set's file atomref.txt."""


def load_qm9(root: str | os.PathLike[str] | None = None, target: str = "U0") -> Store:
    """Open QM9.

    The flat file ``qm9.npz`` is looked for in ``root``, or else in ``SIMKIT_DATA_DIR/qm9`` and simkit's cache; when it is
    in neither, the original archive (86 MB) is downloaded, parsed and cached as such a file.

    Args:
        target: which of `TARGETS` is the label ``energy``.

    Returns:
        Store with the labels of `UNITS` in eV and angstrom (``mu`` in e*angstrom, ``Cv`` in eV/K), and ``energy``. Its
        info holds the isolated atoms under ``references``, its columns ``gdb_id``. Where the file has them, there are also
        the label ``charges`` (Mulliken) and the columns ``split`` (published: 0, 1, 2 for 110,000 to train, 10,000 to
        validate, the rest to test), ``A``, ``B``, ``C`` (rotational constants, GHz), ``smiles`` and ``inchi``. (The cached
        file of a download keeps the harmonic frequencies, too.)

    Raises:
        ConfigError: if the target is unknown.
        DataError: if the file is unreadable or cannot be made.
    """
    if target not in TARGETS:
        hint = f"; to train on {target} give it as --target" if target in UNITS else nearest(target, TARGETS)
        raise ConfigError(f"unknown target {target!r} of QM9 for the label energy{hint}")
    if root is not None:
        folders = [Path(root), Path(root) / "qm9"]
    else:
        folders = [cache_dir() / "qm9"]
        if (data := data_dir()) is not None:
            folders.insert(0, data / "qm9")
    paths = [folder / "qm9.npz" for folder in folders]
    path = next((path for path in paths if path.is_file()), None)
    if path is None and root is not None:
        raise DataError(f"there is no file {paths[0]}; leave out root= to download and cache QM9")
    return _open(path or download(paths[-1]), target)


def _open(path: Path, target: str) -> Store:
    arrays = read_npz(path)
    missing = [key for key in ("n_atoms", "numbers", "positions", *UNITS) if key not in arrays]
    if missing:
        raise DataError(f"{path} has no array {missing[0]!r}: it is not QM9 as simkit caches it; remove it")
    labels: dict[str, Array] = {name: arrays[name] * unit_factor(unit) for name, unit in UNITS.items()}
    if "mulliken" in arrays:
        labels["charges"] = arrays["mulliken"]
    references: dict[str, Any] = {
        name: {number: value * unit_factor(UNITS[name]) for number, value in values.items()}
        for name, values in REFERENCES.items()
    }
    columns = ("gdb_id", "split", "A", "B", "C", "smiles", "inchi")
    return Store(
        arrays["numbers"],
        arrays["positions"],
        np.concatenate([[0], np.cumsum(arrays["n_atoms"], dtype=np.int64)]),
        {"energy": labels[target], **labels},
        columns={name: arrays[name] for name in columns if name in arrays},
        info={
            "name": "QM9",
            "level_of_theory": "B3LYP/6-31G(2df,p)",
            "source": "Ramakrishnan et al., Sci. Data 1, 140022 (2014), CC0",
            "target": target,
            "references": {"energy": references[target], **references},
        },
    )
