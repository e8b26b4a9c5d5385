"""Finding the labels of frames read by ASE: under the names that a user gives, or under well-known ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simkit.config import nearest
from simkit.datasets.npz_file import Array
from simkit.errors import ConfigError, LabelError
from simkit.graph import LABELS
from simkit.units import unit_factor

if TYPE_CHECKING:
    from ase import Atoms

KNOWN: dict[str, tuple[str, ...]] = {
    "energy": ("energy", "REF_energy", "dft_energy", "DFT_energy", "TotEnergy", "total_energy", "E0"),
    "forces": ("forces", "REF_forces", "dft_forces", "DFT_forces", "force", "dft_force"),
    "stress": ("stress", "REF_stress", "dft_stress", "DFT_stress", "virial", "REF_virial", "dft_virial", "DFT_virial"),
    "dipole": ("dipole", "REF_dipole", "dft_dipole", "DFT_dipole"),
    "charge": ("charge", "total_charge", "REF_charge"),
}
"""Names under which each label is recognised, as a stored result of ASE or as a key of ``info`` or ``arrays``."""


@dataclass(frozen=True)
class Frame:
    """A structure and where it was read."""

    atoms: Atoms
    path: str
    index: int

    def __str__(self) -> str:
        return f"frame {self.index} of {self.path}"

    def value(self, key: str) -> Any:
        """Return a stored result, a value of ``info`` or of ``arrays``; None if there is none of this name."""
        results = {} if self.atoms.calc is None else self.atoms.calc.results
        for place in (results, self.atoms.info, self.atoms.arrays):
            if place.get(key) is not None:
                return place[key]
        return None

    def names(self) -> list[str]:
        """Return the names that `value` knows, without ASE's own arrays."""
        results = {} if self.atoms.calc is None else self.atoms.calc.results
        return [*results, *self.atoms.info, *(key for key in self.atoms.arrays if key not in ("numbers", "positions"))]


def choose_keys(frames: Sequence[Frame], wanted: Mapping[str, str | None]) -> dict[str, str]:
    """Return the key under which each label is read.

    Args:
        wanted: per label the key that the user gave, None to detect it, or "none" to leave the label out.

    Raises:
        ConfigError: if two keys could be the same label.
        LabelError: if a given key is in no frame, or a detected one is not in all of them.
    """
    chosen = {}
    for label, key in wanted.items():
        if key == "none":
            continue
        if key is not None:
            if all(frame.value(key) is None for frame in frames):
                found = sorted({name for frame in frames for name in frame.names()})
                raise LabelError(f"{label}: no frame has {key!r}{nearest(key, found) if found else ''}")
            chosen[label] = key
            continue
        present = {name: [frame for frame in frames if frame.value(name) is not None] for name in KNOWN[label]}
        present = {name: having for name, having in present.items() if having}
        if len(present) > 1:
            names = " and ".join(map(repr, present))
            raise ConfigError(
                f"{label}: {names} are both there (in {present[next(iter(present))][0]}, for one); say which one is meant, "
                f"such as {label}={next(iter(present))!r}"
            )
        for name, having in present.items():
            if len(having) < len(frames):
                lacking = next(frame for frame in frames if frame.value(name) is None)
                raise LabelError(
                    f"{label}: {name!r} is in {len(having)} of {len(frames)} frames, but not in {lacking}; complete the "
                    f"frames, load them separately, or leave the label out with {label}='none'"
                )
            chosen[label] = name
    return chosen


def read_labels(
    frames: Sequence[Frame], keys: Mapping[str, str], energy_unit: str, length_unit: str
) -> dict[str, Array]:
    """Return the labels of all frames in internal units, per structure [F, ...] or per atom [A, ...].

    A key with "virial" in its name holds the virial ``W = -V * stress`` (QUIP's and DeePMD's sign), an energy; it is
    turned into a stress. Six numbers for a stress are in ASE's Voigt order xx, yy, zz, yz, xz, xy.

    Raises:
        LabelError: if one is missing, of a wrong shape or not finite, naming the file and the frame.
    """
    units = {
        "energy": energy_unit,
        "forces": f"{energy_unit}/{length_unit}",
        "stress": f"{energy_unit}/{length_unit}^3",
        "dipole": f"e*{length_unit}",
        "charge": "e",
    }
    labels = {}
    for label, key in keys.items():
        spec = LABELS[label]
        factor = unit_factor(units.get(label, "1"))  # further labels are in simkit's units already
        values = [_read(frame, label, key) * factor for frame in frames]
        labels[label] = np.stack(values) if spec.per == "graph" else np.concatenate(values)
    return labels


def _read(frame: Frame, label: str, key: str) -> Array:
    spec = LABELS[label]
    raw = frame.value(key)
    if raw is None:
        raise LabelError(f"{label}: {frame} has no {key!r}, which other frames have")
    try:
        value = np.asarray(raw, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise LabelError(f"{label}: {key!r} in {frame} is no number: {raw!r:.80}") from error
    if label == "stress" and value.size in (6, 9):
        value = _full_stress(value)
    expected = spec.shape if spec.per == "graph" else (len(frame.atoms), *spec.shape)
    if value.shape != expected and not (spec.shape == () and value.shape == (1,)):
        raise LabelError(f"{label}: {key!r} in {frame} has the shape {list(value.shape)}, expected {list(expected)}")
    if not np.isfinite(value).all():
        raise LabelError(f"{label}: {key!r} in {frame} is not finite; remove or repair the frame")
    if label == "stress" and "virial" in key.lower():
        volume = abs(np.linalg.det(frame.atoms.cell.array))
        if volume == 0:
            raise LabelError(f"stress: {frame} has a virial {key!r} but no cell to take the volume from")
        value = -value / volume
    return value.reshape(expected)


def _full_stress(value: Array) -> Array:
    if value.size == 9:
        return value.reshape(3, 3)
    xx, yy, zz, yz, xz, xy = value.reshape(6)
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


def check_options(options: Mapping[str, str]) -> None:
    """Refuse units that cannot be read before any file is.

    Raises:
        ConfigError: naming the option.
    """
    for option, unit in options.items():
        try:
            unit_factor(unit)
        except ConfigError as error:
            raise ConfigError(f"{option}: {error}") from None
