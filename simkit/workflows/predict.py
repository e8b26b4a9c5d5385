"""Energies, forces and more for the user's own structures: the whole of `simkit predict`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ase.calculators.calculator import all_properties

from simkit.graph import LABELS, AtomGraph
from simkit.progress import track
from simkit.properties import isolated_only
from simkit.training.domain import extrapolation_warnings, graph_distances
from simkit.workflows.structures import (
    check_format,
    check_new_file,
    open_calculator,
    read_structures,
    write_structures,
)

if TYPE_CHECKING:
    from ase import Atoms

    from simkit.calculator import Calculator
    from simkit.potential import Potential

CHUNK = 64
"""Structures between two updates of the progress bar."""


@dataclass(frozen=True)
class Predictions:
    """The file that was written, how many structures it holds, the results that all or some of them have, and warnings."""

    out: Path
    structures: int
    properties: tuple[str, ...]
    warnings: list[str]


def predict_file(
    model: str | os.PathLike[str],
    structures: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str | None = None,
    overwrite: bool = False,
) -> Predictions:
    """Write structures with the model's energy and forces, and with stress, dipole and charges where model and structure have them.

    Other properties of the model are written as values of ``info`` (per structure) or as arrays (per atom), under the names and in the
    units of `simkit.graph.LABELS`.

    Args:
        structures: what to read, see `read_structures`.
        out: extended xyz, ``.traj``, ``.db`` or any other format of ASE that keeps energies and forces.
        device, dtype: see `open_potential`.

    Raises:
        OutputError: if the output exists (without ``overwrite``) or cannot be written.
        ConfigError: if its format is unknown or cannot hold the results.
        SimkitError: if model or structures are unusable.
    """
    target = Path(out)
    check_new_file(target, overwrite)
    check_format(target)
    calculator = open_calculator(model, device, dtype)
    frames = read_structures(structures)
    labelled, properties = _label(calculator, frames)
    last = {"energy", "forces", *labelled[-1].info, *labelled[-1].arrays}
    kept = [name for name in properties if name in last]
    write_structures(target, labelled, {name: name for name in kept})
    return Predictions(target, len(labelled), properties, visited_warnings(calculator.potential, frames, "structures"))


def visited_warnings(potential: Potential, frames: Sequence[Atoms], what: str) -> list[str]:
    """Say where structures lie outside what the model was trained on; nothing for models that do not know it."""
    if "domain" not in potential.info:
        return []
    least: dict[str, float] = {}
    for atoms in frames:
        for pair, distance in graph_distances(AtomGraph.from_ase(atoms, potential.cutoff)).items():
            least[pair] = min(distance, least.get(pair, distance))
    return extrapolation_warnings(potential.info["domain"], dict(sorted(least.items())), what)


def _label(calculator: Calculator, frames: Sequence[Atoms]) -> tuple[list[Atoms], tuple[str, ...]]:
    """Copies with the results as ASE's stored results, in the same order, and the names of the results."""
    from ase.calculators.singlepoint import SinglePointCalculator

    # What is defined depends on the boundaries; structures with the same ones are evaluated together.
    kinds: dict[tuple[str, ...], list[int]] = {}
    for index, atoms in enumerate(frames):
        kinds.setdefault(_properties(calculator, atoms), []).append(index)
    work = [(names, part[k : k + CHUNK]) for names, part in kinds.items() for k in range(0, len(part), CHUNK)]
    done: dict[int, Atoms] = {}
    for names, part in track(work, "predicting"):
        for index, results in zip(part, calculator.batch([frames[k] for k in part], names), strict=True):
            copy = frames[index].copy()
            for name in names:  # labels that the structures came with
                copy.info.pop(name, None)
                copy.arrays.pop(name, None)
            known = {name: value for name, value in results.items() if name in all_properties}
            for name in (name for name in results if name not in known):
                (copy.info if LABELS[name].per == "graph" else copy.arrays)[name] = results[name]
            if known:
                copy.calc = SinglePointCalculator(copy, **known)
            done[index] = copy
    properties = tuple(dict.fromkeys(name for names in kinds for name in names))
    return [done[index] for index in range(len(frames))], properties


def _properties(calculator: Calculator, atoms: Atoms) -> tuple[str, ...]:
    """All that the model gives for these boundaries, but for what other results say already."""
    heads = calculator.potential.heads
    left_out = {"energies", "free_energy"} - set(heads)
    left_out |= {"mu"} if "dipole" in heads else set()
    left_out |= {"alpha"} if "polarizability" in heads else set()
    left_out |= set() if atoms.pbc.all() else {"stress"}
    left_out |= isolated_only(heads) if atoms.pbc.any() else set()
    return tuple(name for name in calculator.implemented_properties if name not in left_out)
