"""Analysis of a trajectory: `simkit analyze`. What was found as numbers (JSON), curves (CSV) and pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simkit import md_plots, plotting
from simkit.config import nearest
from simkit.errors import ConfigError, DataError, OutputError
from simkit.files import ensure_output_dir, write_json, write_text
from simkit.md.analysis import energy_drift
from simkit.md.averages import SHORTEST, BlockAverage, block_average, correlation_time
from simkit.md.output import THERMO, TRAJECTORY, read_thermo
from simkit.md.rdf import radial_distribution
from simkit.md.spectra import WAVENUMBER, velocity_autocorrelation, vibrational_spectrum
from simkit.md.trajectory_arrays import TrajectoryArrays
from simkit.md.transport import BLOCKS, CM2_PER_S, Diffusion, diffusion, mean_squared_displacement
from simkit.workflows.structures import read_structures
from simkit.workflows.text import table

if TYPE_CHECKING:
    from ase import Atoms

Echo = Callable[[str], None]
Floats = NDArray[np.float64]

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
MOST_FRAMES = 1000
"""Frames, evenly chosen, that distances are counted in where neighbor lists are needed."""
DEFAULT_RANGE = (6.0, 12.0)
"""Shortest and longest default range of g(r), angstrom; half the cell where that lies between."""
BIN_WIDTHS = (0.05, 0.02)
"""Default width of the bins, angstrom: of periodic systems, and of molecules, whose bonds are narrow peaks."""
FASTEST = 4000.0
"""cm^-1; a trajectory that tells less may show stretches of hydrogen at wrong wavenumbers."""
QUANTITIES = {
    "temperature_K": "temperature (K)",
    "potential_eV": "potential energy (eV)",
    "total_eV": "total energy (eV)",
    "volume_angstrom3": "volume (Å$^3$)",
}


@dataclass(frozen=True)
class AnalysisSettings:
    """How to analyse.

    Attributes:
        r_max: of the distances, angstrom; None for half the cell, or all of a molecule.
        bin_width: of the distances, angstrom; None for `BIN_WIDTHS`.
        fit_range: lags of the diffusion's fit, fs; None for the default of `diffusion`.
        resolution: of the spectrum, cm^-1.
    """

    r_max: float | None = None
    bin_width: float | None = None
    fit_range: tuple[float, float] | None = None
    resolution: float = 10.0


@dataclass(frozen=True)
class _Job:
    """A trajectory and where its analysis goes."""

    frames: Sequence[Atoms]
    arrays: TrajectoryArrays
    thermo: Mapping[str, Floats] | None
    settings: AnalysisSettings
    folder: Path
    echo: Echo


def analyze(
    trajectory: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    only: Sequence[str] = (),
    skip: int = 0,
    frame_time: float | None = None,
    settings: AnalysisSettings | None = None,
    overwrite: bool = False,
    echo: Echo,
) -> dict[str, Any]:
    """Analyse a trajectory and write ``analysis.json``, tables and pictures; return what is in ``analysis.json``.

    Args:
        trajectory: file of any format of ASE, or file@100:200; or the folder of a run of `simkit md`.
        only: names of `ANALYSES`; without, all that the trajectory has the data for.
        skip: frames left out at the start, for equilibration.
        frame_time: fs between two frames, where the trajectory does not tell.

    Raises:
        ConfigError: if a setting is unusable.
        DataError: if the trajectory cannot be read, its frames do not belong together, or lack what ``only`` asks for.
        OutputError: if the folder cannot be written, or holds an analysis.
    """
    for name in only:
        if name not in ANALYSES:
            raise ConfigError(f"unknown analysis {name!r}{nearest(name, ANALYSES)}")
    frames, thermo = _read(trajectory)
    if not 0 <= skip < len(frames):
        raise DataError(
            f"{trajectory} holds {len(frames)} frames; expected to skip 0 to {len(frames) - 1}, found {skip}"
        )
    arrays = TrajectoryArrays.from_frames(frames[skip:], frame_time)
    folder = _prepare(out, overwrite)
    job = _Job(
        frames[skip : len(frames) - arrays.dropped], arrays, thermo, settings or AnalysisSettings(), folder, echo
    )
    results: dict[str, Any] = {
        "trajectory": os.fspath(trajectory),
        "frames": len(job.frames),
        "skipped": skip,
        "atoms": len(arrays.numbers),
        "frame_time_fs": arrays.frame_time,
    }
    time = f", {arrays.frame_time:g} fs apart" if arrays.frame_time is not None else ""
    echo(f"{len(job.frames)} frames of {job.frames[0].symbols}{time}")
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


def _read(where: str | os.PathLike[str]) -> tuple[list[Atoms], dict[str, Floats] | None]:
    """Frames, and the log of the run that they belong to where it lies beside them."""
    text = os.fspath(where)
    folder, sign, index = text.rpartition("@")
    if not sign or Path(text).exists():
        folder, sign, index = text, "", ""
    path = Path(folder).expanduser()
    if (path / TRAJECTORY).is_file():
        path = path / TRAJECTORY
        text = f"{path}{sign}{index}"
    logged = path.name == TRAJECTORY and (path.parent / THERMO).is_file()
    return read_structures(text), read_thermo(path.parent) if logged else None


def _write_table(path: Path, columns: Mapping[str, Floats]) -> None:
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    write_text(path, "\n".join([",".join(columns), *(",".join(map(repr, row)) for row in rows)]) + "\n")


# ------------------------------------------------------------------------------------------------------------------ averages


def _series(job: _Job) -> dict[str, Floats]:
    """What can be averaged: from the log of the run by the frames' steps, else from energies and velocities of the frames."""
    frames = job.frames
    found: dict[str, Floats] = {}
    steps = [atoms.info.get("step") for atoms in frames]
    if job.thermo is not None and None not in steps:
        rows = np.searchsorted(job.thermo["step"], steps)
        if (rows < len(job.thermo["step"])).all() and np.array_equal(job.thermo["step"][rows], steps):
            found = {name: job.thermo[name][rows] for name in ("temperature_K", "potential_eV", "total_eV")}
    if not found:
        has_energy = all(atoms.calc is not None and "energy" in atoms.calc.results for atoms in frames)
        if job.arrays.velocities is not None:
            found["temperature_K"] = np.array([float(atoms.get_temperature()) for atoms in frames])
        if has_energy:
            found["potential_eV"] = np.array([float(atoms.calc.results["energy"]) for atoms in frames])
        if has_energy and job.arrays.velocities is not None:
            kinetic = np.array([float(atoms.get_kinetic_energy()) for atoms in frames])
            found["total_eV"] = found["potential_eV"] + kinetic
    volumes = np.abs(np.linalg.det(job.arrays.cells))
    if job.arrays.pbc.all() and np.ptp(volumes) > 0:
        found["volume_angstrom3"] = volumes
    return found


def _averages(job: _Job) -> dict[str, Any]:
    """Means with error bars, and the drift of the total energy."""
    series = {name: values for name, values in _series(job).items() if np.ptp(values) > 0}
    if not series or len(job.frames) < SHORTEST:
        raise DataError(
            f"averages need {SHORTEST} frames at least with energies, velocities or a cell that changes; found {len(job.frames)} frames"
        )
    spacing = job.arrays.frame_time
    results: dict[str, Any] = {}
    panels, rows = [], []
    for name, values in series.items():
        average, correlation = block_average(values), correlation_time(values)
        results[name] = {
            "mean": average.mean,
            "standard_error": average.error,
            "standard_deviation": float(values.std()),
            "plateau": average.converged,
            "block_frames": average.block,
            "correlation_frames": correlation.time,
            "correlation_fs": None if spacing is None else correlation.time * spacing,
            "independent_values": correlation.independent,
        }
        panels.append(_panel(QUANTITIES[name], average, spacing))
        sign = "" if average.converged else "> "  # no plateau
        rows.append([name, f"{average.mean:.6g}", f"{sign}{average.error:.2g}"])
    job.echo(table(["mean over the trajectory", "mean", "error"], rows))
    if "total_eV" in series and spacing is not None:
        times = np.arange(len(job.frames)) * spacing
        results["drift_meV_per_atom_per_ps"] = energy_drift(times, series["total_eV"], len(job.arrays.numbers))
    label = "length of the blocks (frames)" if spacing is None else "length of the blocks (fs)"
    plotting.save(md_plots.block_averages(panels, label)[0], job.folder / "averages.png")
    return results


def _panel(title: str, average: BlockAverage, spacing: float | None) -> md_plots.BlockPanel:
    chosen = int(np.flatnonzero(average.blocks == average.block)[0])
    time = average.blocks * (spacing or 1.0)
    return md_plots.BlockPanel(title, time, average.errors, average.uncertainties, chosen, average.converged)


# ----------------------------------------------------------------------------------------------------------------- distances


def _distances(job: _Job) -> dict[str, Any]:
    """Radial distribution function, or the histogram of distances."""
    arrays, settings = job.arrays, job.settings
    width = settings.bin_width if settings.bin_width is not None else BIN_WIDTHS[0 if arrays.pbc.any() else 1]
    if not width > 0:
        raise ConfigError(f"the width of the bins must be positive, found {width} angstrom")
    if len(arrays.numbers) == 1 and not arrays.pbc.any():
        raise DataError("a single atom has no distances")
    r_max = settings.r_max if settings.r_max is not None else _default_range(arrays)
    bins = max(1, round(r_max / width))
    chosen = np.arange(len(arrays.positions))
    if arrays.pbc.any() and len(chosen) > MOST_FRAMES:
        chosen = np.unique(np.linspace(0, len(chosen) - 1, MOST_FRAMES).astype(int))
    result = radial_distribution(
        arrays.positions[chosen], arrays.cells[chosen], arrays.pbc, arrays.species(), r_max=r_max, bins=bins
    )
    columns = {"distance_angstrom": result.distances, "total": result.total}
    pairs = {pair: values for pair, values in result.pairs.items() if values.any()}
    columns |= {f"{a}-{b}": values for (a, b), values in pairs.items()}
    columns |= {f"neighbors_{b}_around_{a}": values for (a, b), values in result.neighbors.items()}
    _write_table(job.folder / "rdf.csv", columns)
    axes = md_plots.radial_distribution(result.distances, result.total, pairs, result.normalised)
    plotting.save(axes, job.folder / "rdf.png")
    peaks = {
        f"{a}-{b}": {"distance_angstrom": float(result.distances[values.argmax()]), "height": float(values.max())}
        for (a, b), values in pairs.items()
    }
    return {
        "kind": "g(r)" if result.normalised else "pairs per structure and angstrom",
        "r_max_angstrom": r_max,
        "bin_width_angstrom": result.width,
        "frames": len(chosen),
        "highest_peaks": peaks,
    }


def _default_range(arrays: TrajectoryArrays) -> float:
    """Half the smallest height of the cell within limits; for molecules, somewhat more than their largest extent."""
    if arrays.pbc.any():
        cells = arrays.cells.copy()
        cells[:, ~arrays.pbc] = 0.0
        heights = 1 / np.linalg.norm(np.linalg.pinv(cells), axis=1)[:, arrays.pbc]
        return float(np.clip(heights.min() / 2, *DEFAULT_RANGE))
    spread = arrays.positions - arrays.positions.mean(axis=1, keepdims=True)
    return float(2 * np.sqrt((spread**2).sum(axis=2).max()) + 0.1)


# -------------------------------------------------------------------------------------------------------------- displacements


def _displacements(job: _Job) -> dict[str, Any]:
    """Mean squared displacements per element and, in periodic systems, diffusion coefficients."""
    arrays = job.arrays
    spacing = arrays.needed_frame_time()
    if len(arrays.positions) < 2:
        raise DataError("a displacement needs two frames at least")
    path = arrays.diffusing_positions()
    lags = np.arange(len(path), dtype=np.float64) * spacing
    curves: dict[str, Floats] = {}
    lines: dict[str, md_plots.DiffusionLine] = {}
    results: dict[str, Any] = {}
    enough = len(path) >= 5 * BLOCKS
    for name, mask in arrays.species().items():
        if not (arrays.pbc.any() and enough):
            curves[name] = mean_squared_displacement(path[:, mask])
            continue
        found = diffusion(path[:, mask], spacing, job.settings.fit_range)
        curves[name] = found.displacement
        lines[name] = _fitted_line(found)
        results[name] = _diffusion_results(found)
        job.echo(f"diffusion of {name}: {lines[name].text}{_doubt(found)}")
    if not arrays.pbc.any():
        results["note"] = "no diffusion coefficient: the system is not periodic"
    elif not enough:
        results["note"] = f"no diffusion coefficient: it needs {5 * BLOCKS} frames at least"
    columns = {f"{name}_angstrom2": values for name, values in curves.items()}
    _write_table(job.folder / "msd.csv", {"time_fs": lags, **columns})
    plotting.save(md_plots.mean_squared_displacement(lags, curves, lines)[0], job.folder / "msd.png")
    return results


def _fitted_line(found: Diffusion) -> md_plots.DiffusionLine:
    value, error = (1e5 * CM2_PER_S * number for number in (found.coefficient, found.error))
    text = f"D = ({value:.3g} ± {error:.2g}) 10⁻⁵ cm²/s"
    return md_plots.DiffusionLine(6 * found.coefficient, found.intercept, *found.fit_range, text)


def _diffusion_results(found: Diffusion) -> dict[str, Any]:
    return {
        "diffusion_cm2_per_s": found.coefficient * CM2_PER_S,
        "standard_error_cm2_per_s": found.error * CM2_PER_S,
        "fit_range_fs": list(found.fit_range),
        "exponent": None if np.isnan(found.exponent) else found.exponent,
    }


def _doubt(found: Diffusion) -> str:
    if abs(found.exponent - 1) <= 0.2:
        return ""
    return (
        f"; doubtful: the displacement grows as time^{found.exponent:.2f} from {found.fit_range[0]:g} to {found.fit_range[1]:g} fs, "
        "not as time^1 (a solid, or too short a range: see msd.png)"
    )


# ------------------------------------------------------------------------------------------------------------------ vibrations


def _vibrations(job: _Job) -> dict[str, Any]:
    """Velocity autocorrelation and vibrational spectrum."""
    arrays = job.arrays
    velocities, spacing = arrays.needed_velocities(), arrays.needed_frame_time()
    spectrum = vibrational_spectrum(
        velocities, arrays.masses, spacing, arrays.species(), resolution=job.settings.resolution
    )
    correlation = velocity_autocorrelation(velocities, arrays.masses)
    lags = np.arange(len(correlation), dtype=np.float64) * spacing
    _write_table(job.folder / "vacf.csv", {"time_fs": lags, "autocorrelation": correlation})
    columns = {"wavenumber_per_cm": spectrum.wavenumbers, "total": spectrum.total, **spectrum.species}
    _write_table(job.folder / "spectrum.csv", columns)
    plotting.save(md_plots.velocity_autocorrelation(lags, correlation), job.folder / "vacf.png")
    axes = md_plots.vibrational_spectrum(spectrum.wavenumbers, spectrum.total, spectrum.species, spectrum.resolution)
    plotting.save(axes, job.folder / "spectrum.png")
    limit = WAVENUMBER / (2 * spacing)
    if limit < FASTEST and 1 in arrays.numbers:
        job.echo(
            f"warning: frames every {spacing:g} fs tell wavenumbers up to {limit:.0f} cm^-1; faster vibrations of hydrogen appear at "
            "wrong, lower ones: store a frame every 4 fs or less"
        )
    return {
        "resolution_per_cm": spectrum.resolution,
        "segments": spectrum.segments,
        "highest_wavenumber_per_cm": limit,
        "strongest_per_cm": float(spectrum.wavenumbers[spectrum.total.argmax()]),
    }


ANALYSES: dict[str, Callable[[_Job], dict[str, Any]]] = {
    "averages": _averages,
    "rdf": _distances,
    "msd": _displacements,
    "spectrum": _vibrations,
}
"""What can be asked for by name."""
