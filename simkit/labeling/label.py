"""Labelling many structures with an electronic-structure method: parallel, resumable, written at once."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from simkit.errors import ConfigError, DataError, LabelError, MissingDependencyError, OutputError, SimkitError
from simkit.files import atomic_path, write_json
from simkit.labeling.base import LABELS, Label, Method, charge_and_multiplicity, check_frame
from simkit.labeling.methods import ase_results, check_method, compute_label
from simkit.labeling.parallel import parallel_map
from simkit.labeling.partfile import PartFile, part_path
from simkit.progress import track

UNITS = {
    "positions": "angstrom",
    "cell": "angstrom",
    "energy": "eV",
    "forces": "eV/angstrom",
    "dipole": "e*angstrom",
    "stress": "eV/angstrom^3",
    "charges": "e",
    "homo": "eV",
    "lumo": "eV",
    "gap": "eV",
    "charge": "e",
}
"""Units of the arrays of an ``.npz`` output; stress in ASE's sign."""


@dataclass(frozen=True)
class LabelSummary:
    """What ``label_structures`` did.

    ``labelled`` of ``frames`` frames are in ``out``, ``resumed`` of them from an earlier run; the ``failures`` (frame
    index from 0, reason) are not. ``labels`` are the names that every frame has; ``notes`` what the user should know.
    """

    out: Path
    method: str
    frames: int
    labelled: int
    resumed: int
    failures: tuple[tuple[int, str], ...]
    labels: tuple[str, ...]
    seconds: float
    notes: tuple[str, ...]


def label_structures(
    frames: Sequence[Atoms],
    method: str | Method,
    out: str | Path,
    *,
    charge: int | None = None,
    multiplicity: int | None = None,
    jobs: int = 1,
    resume: bool = True,
    overwrite: bool = False,
    on_error: Literal["stop", "keep-going"] = "stop",
) -> LabelSummary:
    """Compute energy, forces and whatever else the method gives for every frame, and write them in the same order.

    ``out`` ends in ``.xyz`` or ``.extxyz`` (extended xyz that ASE reads back: results in its calculator; ``homo``,
    ``lumo``, ``gap``, ``charge``, ``multiplicity`` and ``level_of_theory`` in ``atoms.info``; coordinates and forces
    with 8 decimals), or in ``.npz`` (flat arrays of full precision, see ``flat_arrays``). Labels that the frames
    already have are replaced; other entries of ``info`` are kept in the xyz.

    Finished frames are kept in ``<out>.part`` until the end. A run that was interrupted continues from it and gives the
    same file as one that was not. With ``on_error="keep-going"`` frames that fail are left out of ``out`` and listed in
    ``<out>.failures.json`` and in the summary.

    Args:
        frames: what to label; see ``compute_label`` for charge and multiplicity.
        method: as for ``parse_method``.
        out: the output file.
        charge: of every frame, where ``info`` does not say it.
        multiplicity: of every frame, where ``info`` does not say it.
        jobs: processes; with more than one, each computes with one thread.
        resume: continue a part file; if False, discard it.
        overwrite: replace ``out`` if it exists.
        on_error: ``"stop"`` at the first frame that fails, or ``"keep-going"``.

    Raises:
        DataError: if there are no frames.
        ConfigError: if the method, the suffix of ``out`` or an option is unknown.
        GeometryError: if a frame is unusable (the message names it).
        LabelError: if a frame fails (the message names it), or all of them do.
        OutputError: if ``out`` exists, cannot be written, or its part file belongs to other frames or another method.
        MissingDependencyError: if the library of the method is not installed.
    """
    start = time.perf_counter()
    out = Path(out)
    if not frames:
        raise DataError("there are no frames to label")
    if on_error not in ("stop", "keep-going"):
        raise ConfigError(f"on_error is {on_error!r}, expected 'stop' or 'keep-going'")
    _check_output(out, frames, overwrite)
    elements = {number for atoms in frames for number in atoms.numbers.tolist()}
    method = check_method(method, elements - {0})
    prepared = [
        _prepare(atoms, index, method, charge, multiplicity, check=on_error == "stop")
        for index, atoms in enumerate(frames)
    ]
    run = {
        "method": method.name,
        "program": method.program_version(),
        "frames": len(frames),
        "hash": _input_hash(prepared),
    }
    with PartFile(part_path(out), run, resume=resume) as part:
        resumed = len(part.labels)
        failures = _compute(prepared, part, method, jobs, stop=on_error == "stop")
        if not part.labels:
            raise LabelError(f"none of the {len(frames)} frames could be labelled; the first: {failures[0][1]}")
        done = sorted(part.labels)
        labels = [part.labels[index] for index in done]
        _write(out, [prepared[index] for index in done], labels, method)
    notes = [*_write_failures(out, failures, len(frames)), *_gamma_note(frames)]
    part.path.unlink()
    return LabelSummary(
        out=out,
        method=method.name,
        frames=len(frames),
        labelled=len(done),
        resumed=resumed,
        failures=tuple(failures),
        labels=tuple(common_labels(labels)),
        seconds=time.perf_counter() - start,
        notes=tuple(notes),
    )


def flat_arrays(frames: Sequence[Atoms], labels: Sequence[Label]) -> dict[str, np.ndarray]:
    """Return frames and labels as flat arrays: all atoms end to end (A in total, of F frames).

    ``n_atoms`` [F], ``numbers`` [A] uint8, ``positions`` [A, 3], where periodic ``cell`` [F, 3, 3] and ``pbc`` [F, 3],
    ``charge`` [F], and those labels that every frame has: ``energy`` [F], ``forces`` [A, 3], ``dipole`` [F, 3],
    ``stress`` [F, 3, 3], ``charges`` [A], ``homo``, ``lumo``, ``gap`` [F]. Units as in ``UNITS``.
    """
    arrays: dict[str, np.ndarray] = {
        "n_atoms": np.array([len(atoms) for atoms in frames], dtype=np.int64),
        "numbers": np.concatenate([atoms.numbers for atoms in frames]).astype(np.uint8),
        "positions": np.concatenate([atoms.positions for atoms in frames]),
        "charge": np.array([charge_and_multiplicity(atoms)[0] for atoms in frames], dtype=np.int64),
    }
    if any(atoms.pbc.any() for atoms in frames):
        arrays["cell"] = np.stack([atoms.cell.array for atoms in frames])
        arrays["pbc"] = np.stack([atoms.pbc for atoms in frames])
    for name in common_labels(labels):
        values = [getattr(label, name) for label in labels]
        arrays[name] = np.concatenate(values) if name in ("forces", "charges") else np.array(values)
    return arrays


def common_labels(labels: Sequence[Label]) -> list[str]:
    """The names of the labels that every frame has."""
    return [name for name in LABELS if all(getattr(label, name) is not None for label in labels)]


def _check_output(out: Path, frames: Sequence[Atoms], overwrite: bool) -> None:
    if out.suffix not in (".xyz", ".extxyz", ".npz"):
        raise ConfigError(f"the output {out} ends in {out.suffix!r}, expected .xyz, .extxyz or .npz")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists; choose another output or ask for it to be overwritten")
    if not out.parent.is_dir():
        raise OutputError(f"cannot write {out}: there is no folder {out.parent}")
    periodic = [bool(atoms.pbc.any()) for atoms in frames]
    if out.suffix == ".npz" and any(periodic) and not all(periodic):
        raise ConfigError(
            "an .npz cannot hold molecules and periodic frames together, because their labels differ; write .extxyz"
        )


def _prepare(
    atoms: Atoms, index: int, method: Method, charge: int | None, multiplicity: int | None, check: bool
) -> Atoms:
    """A copy of the frame without old labels, with charge and multiplicity in ``info``."""
    copy = atoms.copy()
    for name in (*LABELS, "free_energy"):
        copy.info.pop(name, None)
        copy.arrays.pop(name, None)
    try:
        if check:  # what can be seen before the first calculation
            check_frame(atoms, method)
        copy.info["charge"], spin = charge_and_multiplicity(atoms, charge, multiplicity)
    except SimkitError as error:
        raise type(error)(f"{_name(atoms, index)}: {error}") from error
    if spin is not None:
        copy.info["multiplicity"] = spin
    copy.info["level_of_theory"] = method.level_of_theory
    return copy


def _name(atoms: Atoms, index: int) -> str:
    return f"frame {index} ({atoms.get_chemical_formula()})"


def _input_hash(frames: Sequence[Atoms]) -> str:
    """SHA-256 of everything that the labels depend on besides the method."""
    digest = hashlib.sha256()
    for atoms in frames:
        digest.update(repr((len(atoms), atoms.info["charge"], atoms.info.get("multiplicity"))).encode())
        for array in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _compute(frames: Sequence[Atoms], part: PartFile, method: Method, jobs: int, stop: bool) -> list[tuple[int, str]]:
    """Label every frame that the part file lacks; return those that failed with the reasons."""
    todo = [(index, atoms) for index, atoms in enumerate(frames) if index not in part.labels]
    results: Iterator[tuple[int, Label | str]] = parallel_map(partial(_label_or_reason, method=method), todo, jobs)
    failures = []
    for index, result in track(results, f"Labelling with {method.name}", total=len(todo)):
        if isinstance(result, Label):
            part.add(index, result)
        elif stop:
            raise LabelError(
                f"{_name(frames[index], index)}: {result}; {len(part.labels)} finished frames are kept in {part.path}. "
                "Run again to continue there, keeping going past failures"
            )
        else:
            failures.append((index, result))
    return sorted(failures)


def _label_or_reason(item: tuple[int, Atoms], method: Method) -> tuple[int, Label | str]:
    index, atoms = item
    try:
        return index, compute_label(atoms, method)
    except MissingDependencyError:
        raise
    except SimkitError as error:
        return index, str(error)


def _write(out: Path, frames: Sequence[Atoms], labels: Sequence[Label], method: Method) -> None:
    if out.suffix != ".npz":
        labelled = [_labelled_atoms(atoms, label) for atoms, label in zip(frames, labels, strict=True)]
        with atomic_path(out) as temporary:
            write(temporary, labelled, format="extxyz")
        return
    arrays = flat_arrays(frames, labels)
    metadata = {
        "level_of_theory": method.level_of_theory,
        "method": method.name,
        "program": method.program_version(),
        "units": {name: unit for name, unit in UNITS.items() if name in arrays},
    }
    with atomic_path(out) as temporary:
        np.savez_compressed(temporary, metadata=np.array(json.dumps(metadata)), **arrays)  # type: ignore[arg-type]


def _labelled_atoms(atoms: Atoms, label: Label) -> Atoms:
    """A copy of the frame with its labels where ASE keeps them."""
    copy = atoms.copy()
    orbitals = ("homo", "lumo", "gap")  # which ASE's calculators do not know
    copy.info.update({name: value for name, value in label.present().items() if name in orbitals})
    results = ase_results(label)
    del results["free_energy"]  # the same number as the energy
    copy.calc = SinglePointCalculator(copy, **results)
    return copy


def _write_failures(out: Path, failures: list[tuple[int, str]], frames: int) -> list[str]:
    """List the failures beside the output and return a note on them."""
    path = out.with_name(out.name + ".failures.json")
    path.unlink(missing_ok=True)  # that of an output which was replaced
    if not failures:
        return []
    write_json(path, [{"frame": index, "reason": reason} for index, reason in failures])
    return [f"{len(failures)} of {frames} frames failed and are not in the output; the reasons are in {path}"]


def _gamma_note(frames: Sequence[Atoms]) -> list[str]:
    if not any(atoms.pbc.any() for atoms in frames):
        return []
    return ["periodic frames were computed at the Gamma point only: check that the cells are large enough for that"]
