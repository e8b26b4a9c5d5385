"""Labels and geometries from electronic-structure methods for the user's own structures: `simkit label`, `simkit sample`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from simkit.config import nearest
from simkit.errors import ConfigError
from simkit.labeling.label import LabelSummary, label_structures
from simkit.labeling.sample import sample_normal_modes, sample_thermal
from simkit.workflows.structures import (
    check_format,
    check_new_file,
    read_structure,
    read_structures,
    write_structures,
)

PathLike = str | os.PathLike[str]
Echo = Callable[[str], None]

KINDS = {"thermal": sample_thermal, "modes": sample_normal_modes}


def label_file(
    structures: PathLike,
    method: str,
    out: PathLike,
    *,
    charge: int | None,
    multiplicity: int | None,
    jobs: int,
    overwrite: bool,
    keep_going: bool,
    echo: Echo,
) -> LabelSummary:
    """Label structures and tell how it went; see `simkit.labeling.label.label_structures`."""
    check_new_file(Path(out), overwrite)
    summary = label_structures(
        read_structures(structures),
        method,
        Path(out),
        charge=charge,
        multiplicity=multiplicity,
        jobs=jobs,
        overwrite=overwrite,
        on_error="keep-going" if keep_going else "stop",
    )
    before = f", {summary.resumed} of them from an earlier run" if summary.resumed else ""
    echo(f"{summary.method}: {summary.labelled} of {summary.frames} structures in {summary.seconds:.1f} s{before}")
    echo(f"labels: {', '.join(summary.labels)}")
    for note in summary.notes:
        echo(f"note: {note}")
    echo(f"written: {summary.out}")
    return summary


def sample_file(
    structure: PathLike,
    method: str,
    out: PathLike,
    *,
    kind: str,
    temperatures: str,
    frames: int,
    seed: int,
    charge: int | None,
    multiplicity: int | None,
    jobs: int,
    overwrite: bool,
    echo: Echo,
) -> None:
    """Draw geometries of a structure and write them; see `simkit.labeling.sample`.

    Args:
        kind: one of `KINDS`; temperatures: in K, separated by commas.

    Raises:
        ConfigError: if these cannot be read.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of sampling {kind!r}{nearest(kind, KINDS)}")
    try:
        values = [float(part) for part in temperatures.split(",")]
    except ValueError:
        raise ConfigError(f"expected temperatures in K such as 300,600, found {temperatures!r}") from None
    target = Path(out)
    check_new_file(target, overwrite)
    check_format(target)
    atoms = read_structure(structure)
    drawn = KINDS[kind](
        atoms,
        method,
        temperatures=values,
        frames=frames,
        seed=seed,
        charge=charge,
        multiplicity=multiplicity,
        jobs=jobs,
    )
    write_structures(target, drawn)
    echo(f"{len(drawn)} geometries of {atoms.get_chemical_formula()}: {target}")
    broken = sum(frame.info.get("changed_bonds", 0) > 0 for frame in drawn)
    if broken:
        echo(f"warning: {broken} of them have broken or new bonds (changed_bonds in their info)")
    echo(f"label them with: simkit label {target} --method {method} -o {target.stem}_labelled.xyz")
