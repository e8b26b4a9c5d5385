"""Commands that compute reference data."""

from pathlib import Path
from typing import Annotated

import typer

from simkit.cli.arguments import Charge, Jobs, Method, Multiplicity, OutFile, Overwrite, Seed, Structure, Structures


def label(
    structures: Structures,
    method: Method,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output file (.xyz, .extxyz or .npz).")],
    charge: Charge = None,
    multiplicity: Multiplicity = None,
    jobs: Jobs = 1,
    overwrite: Overwrite = False,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Leave out structures that fail.")] = False,
) -> None:
    """Compute energies and forces with GFN-xTB or DFT."""
    from simkit.workflows.labels import label_file

    label_file(
        structures,
        method,
        out,
        charge=charge,
        multiplicity=multiplicity,
        jobs=jobs,
        overwrite=overwrite,
        keep_going=keep_going,
        echo=typer.echo,
    )


def sample(
    structure: Structure,
    method: Method,
    out: OutFile,
    frames: Annotated[int, typer.Option(help="How many in all.")] = 100,
    temperatures: Annotated[str, typer.Option(help="K, separated by commas.")] = "300",
    kind: Annotated[str, typer.Option(help="thermal (dynamics) or modes (normal modes).")] = "thermal",
    seed: Seed = 0,
    charge: Charge = None,
    multiplicity: Multiplicity = None,
    jobs: Jobs = 1,
    overwrite: Overwrite = False,
) -> None:
    """Draw diverse geometries with GFN-xTB or DFT."""
    from simkit.workflows.labels import sample_file

    sample_file(
        structure,
        method,
        out,
        kind=kind,
        temperatures=temperatures,
        frames=frames,
        seed=seed,
        charge=charge,
        multiplicity=multiplicity,
        jobs=jobs,
        overwrite=overwrite,
        echo=typer.echo,
    )
