"""Analysis of a trajectory: `simkit analyze`. What was found as numbers (JSON), curves (CSV) and pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from simkit.config import nearest
from simkit.errors import ConfigError, DataError, OutputError
from simkit.files import ensure_output_dir, write_json
from simkit.workflows.trajectories import open_trajectory
from simkit.workflows.trajectory_analyses import ANALYSES, AnalysisSettings, Job

Echo = Callable[[str], None]

RESULTS = "analysis.json"
CURVES = (
    "averages.png",
    "rdf.csv",
    "rdf.png",
    "msd.csv",
    "msd.png",
    "vacf.csv",
    "vacf.png",
    "spectrum.csv",
    "spectrum.png",
)


def analyze(
    trajectory: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    only: Sequence[str] = (),
    skip: int = 0,
    frame_time: float | None = None,
    replica: int | None = None,
    settings: AnalysisSettings | None = None,
    overwrite: bool = False,
    echo: Echo,
) -> dict[str, Any]:
    """Analyse a trajectory and write ``analysis.json``, tables and pictures; return what is in ``analysis.json``.

    Replicas of one system are analysed one after the other and averaged. Standard errors are those of the mean over all of them, from
    the blocks within each; beside them stand those from the spread of the replicas, which must agree if replicas are independent and
    equilibrated.

    Args:
        trajectory: an H5MD file, a file of any format of ASE, or file@100:200; or the folder of a run of `simkit md`.
        only: names of `ANALYSES`; without, all that the trajectory has the data for.
        skip: frames left out at the start, for equilibration.
        frame_time: fs between two frames, where the trajectory does not tell.
        replica: the only one to analyse, from 0; None for all.

    Raises:
        ConfigError: if a setting is unusable.
        DataError: if the trajectory cannot be read, its frames do not belong together, or lack what ``only`` asks for.
        OutputError: if the folder cannot be written, or holds an analysis.
    """
    for name in only:
        if name not in ANALYSES:
            raise ConfigError(f"unknown analysis {name!r}{nearest(name, ANALYSES)}")
    found = open_trajectory(trajectory, skip, frame_time, replica)
    arrays = found.load(0).arrays
    folder = _prepare(out, overwrite)
    job = Job(found, settings or AnalysisSettings(), folder, echo)
    results: dict[str, Any] = {
        "trajectory": os.fspath(trajectory),
        "replicas": found.replicas,
        "frames": len(arrays.positions),
        "skipped": skip,
        "atoms": len(arrays.numbers),
        "frame_time_fs": arrays.frame_time,
    }
    time = f", {arrays.frame_time:g} fs apart" if arrays.frame_time is not None else ""
    many = f", {found.replicas} replicas: means over all of them" if found.replicas > 1 else ""
    echo(f"{len(arrays.positions)} frames of {arrays.formula()}{time}{many}")
    if arrays.dropped:
        echo("warning: the last frame is not at its time, as after a run that broke down; it is left out")
    left_out: dict[str, str] = {}
    for name in only or ANALYSES:
        try:
            results[name] = ANALYSES[name](job)
        except DataError as error:
            if only:
                raise
            left_out[name] = str(error)
            echo(f"left out: {name}: {error}")
    results["left_out"] = left_out
    write_json(folder / RESULTS, results)
    echo(f"numbers, tables and pictures: {folder}")
    return results


def _prepare(out: str | os.PathLike[str], overwrite: bool) -> Path:
    """Make the folder and take away what an earlier analysis left: it must not stand beside the new numbers."""
    folder = ensure_output_dir(out)
    present = [name for name in (RESULTS, *CURVES) if (folder / name).exists()]
    if present and not overwrite:
        raise OutputError(f"{folder} holds an analysis already ({', '.join(present)}); choose another, or --overwrite")
    for name in present:
        (folder / name).unlink()
    return folder
