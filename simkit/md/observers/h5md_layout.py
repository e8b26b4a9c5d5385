"""How a batch of replicas is laid out in an H5MD file (version 1.1, https://nongnu.org/h5md/releases/h5md-1.1.0.html)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from h5py import h5d, h5p, h5s, h5t
from numpy.typing import NDArray

from simkit import __version__

if TYPE_CHECKING:
    from simkit.md.state import State

DATA = "replicas"
"""The group of the arrays of all replicas together; not part of H5MD."""
CHUNK_FRAMES, CHUNK_BYTES, BUFFER_BYTES = 32, 2**18, 2**24


@dataclass(frozen=True)
class Quantity:
    """What a quantity of `Frame.values` is called in the file, its unit (see `create`), and whether it belongs to atoms or replicas."""

    element: str
    unit: str
    of_atoms: bool


QUANTITIES = {
    "positions": Quantity("position", "Angstrom", True),
    "velocities": Quantity("velocity", "Angstrom fs-1", True),
    "forces": Quantity("force", "eV Angstrom-1", True),
    "cells": Quantity("box/edges", "Angstrom", False),
}
OBSERVABLES = {
    "energy": Quantity("potential_energy", "eV", False),
    "kinetic_energy": Quantity("kinetic_energy", "eV", False),
    "temperature": Quantity("temperature", "K", False),
}


def system_arrays(state: State) -> dict[str, NDArray[Any]]:
    """What tells one system from another: [N] species, masses and mobile; [B + 1] offsets; [B] replicas and charges; [B, 3] pbc."""
    return {
        "species": state.numbers.cpu().numpy(),
        "mass": state.masses.cpu().numpy(),
        "mobile": state.mobile.cpu().numpy().astype(np.int8),
        "offsets": state.offsets,
        "replica": state.replicas.astype(np.int64),
        "charge": state.charges.cpu().numpy(),
        "pbc": state.pbc.astype(np.int8),
    }


def frames_per_block(atoms: int) -> int:
    """How many frames are kept in memory and written at once."""
    return int(np.clip(BUFFER_BYTES // (24 * atoms), 1, CHUNK_FRAMES))


def create(file: Any, state: State, names: tuple[str, ...], dtype: Any, compress: bool, author: str) -> dict[str, Any]:
    """Lay out an empty file and return its growing datasets: ``step`` and ``time`` [T], and those of ``names``.

    Per-atom arrays of all replicas lie end to end in one dataset [T, N, 3], so that a frame is written at once. One replica is the H5MD
    group ``particles/all``. Of several, each is a group ``particles/replica_0000`` of its own, with virtual datasets that show its part
    of the arrays in `DATA`. Energies and temperatures are ``observables`` [T, B]. Edges are stored where a direction is periodic.

    ``unit`` attributes are strings of variable length, and the angstrom is spelt out: MDAnalysis reads no others, though the module
    ``units`` says ``Ang`` and fixed length. (It knows no electronvolts either: files with forces need ``convert_units=False`` there.)
    """
    _metadata(file, author)
    system = system_arrays(state)
    parameters = file.create_group("parameters")
    for name, values in system.items():
        parameters.create_dataset(name, data=values)
    single = state.size == 1
    data = file.create_group("particles/all/position" if single else DATA)
    sets = {
        "step": data.create_dataset("step", shape=(0,), maxshape=(None,), chunks=(1024,), dtype=np.int64),
        "time": data.create_dataset("time", shape=(0,), maxshape=(None,), chunks=(1024,), dtype=np.float64),
    }
    sets["time"].attrs["unit"] = "fs"
    options = {"shuffle": True, "compression": "gzip", "compression_opts": 1} if compress else {}
    atoms = len(state.numbers)
    shown = {name: QUANTITIES[name] for name in names if name in QUANTITIES and (name != "cells" or state.pbc.any())}
    for name, quantity in shown.items():
        shape: tuple[int, ...] = (atoms, 3) if quantity.of_atoms else (3, 3) if single else (state.size, 3, 3)
        # Edges are exact also beside positions in single precision: volumes are made of them.
        kind = dtype if quantity.of_atoms else np.float64
        path = f"particles/all/{quantity.element}/value" if single else f"{DATA}/{name}"
        sets[name] = _growing(file, path, shape, kind, frames_per_block(atoms), options, quantity.unit)
    shared: dict[bytes, Any] = {}
    for k in range(state.size):
        group = file.require_group("particles/all" if single else f"particles/{replica_name(int(state.replicas[k]))}")
        _fixed(group, state, k, system, shared)
        for name, quantity in shown.items():
            if name != "cells" or state.pbc[k].any():
                _element(group, state, k, quantity, sets, name, single)
    for name in names:
        if name in OBSERVABLES:
            quantity = OBSERVABLES[name]
            path = f"observables/{quantity.element}"
            sets[name] = _growing(
                file, f"{path}/value", (state.size,), np.float64, CHUNK_FRAMES, options, quantity.unit
            )
            file[path]["step"], file[path]["time"] = sets["step"], sets["time"]
    return sets


def opened(file: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """The growing datasets of a file made by `create`, those of ``names`` that it has."""
    single = DATA not in file
    data = file["particles/all/position" if single else DATA]
    sets = {"step": data["step"], "time": data["time"]}
    for name in names:
        if name in OBSERVABLES:
            path = f"observables/{OBSERVABLES[name].element}/value"
        else:
            path = f"particles/all/{QUANTITIES[name].element}/value" if single else f"{DATA}/{name}"
        if path in file:
            sets[name] = file[path]
    return sets


def replica_name(name: int) -> str:
    """The group of the replica that a number names."""
    return f"replica_{name:04d}"


def _metadata(file: Any, author: str) -> None:
    about = file.create_group("h5md")
    about.attrs["version"] = np.array([1, 1])
    for name, attributes in (
        ("author", {"name": author}),
        ("creator", {"name": "simkit", "version": __version__}),
        ("modules/units", {"system": "SI"}),
    ):
        group = about.create_group(name)
        for key, text in attributes.items():
            group.attrs[key] = np.bytes_(text.encode())
    about["modules/units"].attrs["version"] = np.array([1, 0])


def _growing(
    file: Any, path: str, shape: tuple[int, ...], dtype: Any, frames: int, options: dict[str, Any], unit: str
) -> Any:
    """A dataset [T, *shape] in chunks of some frames of some atoms."""
    row = int(np.prod(shape[1:], dtype=int)) * np.dtype(dtype).itemsize
    wide = int(np.clip(CHUNK_BYTES // (frames * row), 1, shape[0]))
    found = file.create_dataset(
        path, shape=(0, *shape), maxshape=(None, *shape), chunks=(frames, wide, *shape[1:]), dtype=dtype, **options
    )
    found.attrs["unit"] = unit
    return found


def _fixed(group: Any, state: State, k: int, system: dict[str, NDArray[Any]], shared: dict[bytes, Any]) -> None:
    """What does not change in a replica: species, masses and boundaries; equal ones of several replicas are one object with many names."""
    part = slice(int(state.offsets[k]), int(state.offsets[k + 1]))
    for name in ("species", "mass"):
        key = name.encode() + system[name][part].tobytes()
        if key in shared:
            group[name] = shared[key]
            continue
        shared[key] = group.create_dataset(name, data=system[name][part])
        if name == "mass":
            shared[key].attrs["unit"] = "u"
    if b"box" in shared and not state.pbc[k].any():
        group["box"] = shared[b"box"]
        return
    box = group.require_group("box")
    box.attrs["dimension"] = 3
    box.attrs["boundary"] = np.array(["periodic" if on else "none" for on in state.pbc[k]], dtype="S8")
    if not state.pbc[k].any():
        shared[b"box"] = box


def _element(
    group: Any, state: State, k: int, quantity: Quantity, sets: dict[str, Any], name: str, single: bool
) -> None:
    """An element of a replica that grows, with the common steps and times."""
    element = group.require_group(quantity.element)
    if not single:
        start, end = int(state.offsets[k]), int(state.offsets[k + 1])
        _view(element, sets[name], start if quantity.of_atoms else k, end - start if quantity.of_atoms else None)
        element["value"].attrs["unit"] = quantity.unit
    for axis in ("step", "time"):
        if axis not in element:
            element[axis] = sets[axis]


def _view(element: Any, source: Any, start: int, rows: int | None) -> None:
    """A virtual dataset ``value`` [T, ...]: rows of another one's second dimension, or with None a single row without that dimension.

    As long as its source, whenever it is opened. (h5py's VirtualLayout cannot map a source that is still empty.)
    """
    inner = source.shape[2:]
    shape = inner if rows is None else (rows, *inner)
    unlimited = h5s.UNLIMITED

    def frames(dimensions: tuple[int, ...], first: tuple[int, ...], block: tuple[int, ...]) -> Any:
        space = h5s.create_simple((0, *dimensions), (unlimited, *dimensions))
        space.select_hyperslab((0, *first), (unlimited, *(1 for _ in block)), None, (1, *block))
        return space

    mapped = h5p.create(h5p.DATASET_CREATE)
    mapped.set_virtual(
        frames(shape, (0,) * len(shape), shape),
        b".",
        source.name.encode(),
        frames(source.shape[1:], (start, *(0 for _ in inner)), (1 if rows is None else rows, *inner)),
    )
    space = h5s.create_simple((0, *shape), (unlimited, *shape))
    h5d.create(element.id, b"value", h5t.py_create(source.dtype), space, mapped)
