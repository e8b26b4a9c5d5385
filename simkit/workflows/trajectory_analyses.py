"""The analyses of `simkit analyze`, each averaged over the replicas of a trajectory: numbers, tables and pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simkit import md_plots, plotting
from simkit.errors import ConfigError, DataError
from simkit.files import write_text
from simkit.md.analysis import energy_drift
from simkit.md.averages import SHORTEST, BlockAverage, block_average, correlation_time
from simkit.md.rdf import RadialDistribution, radial_distribution
from simkit.md.replicas import mean_average, spread
from simkit.md.spectra import WAVENUMBER, velocity_autocorrelation, vibrational_spectrum
from simkit.md.trajectory_arrays import TrajectoryArrays
from simkit.md.transport import BLOCKS, CM2_PER_S, Diffusion, diffusion, mean_squared_displacement
from simkit.workflows.text import table
from simkit.workflows.trajectories import Replica, Trajectory

Echo = Callable[[str], None]
Floats = NDArray[np.float64]

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
class Job:
    """A trajectory and where its analysis goes."""

    trajectory: Trajectory
    settings: AnalysisSettings
    folder: Path
    echo: Echo

    @property
    def first(self) -> Replica:
        """The first replica."""
        return self.trajectory.load(0)

    def replicas(self) -> Iterator[Replica]:
        """All replicas, one in memory at a time."""
        for k in range(self.trajectory.replicas):
            yield self.trajectory.load(k)


def _write_table(path: Path, columns: Mapping[str, Floats]) -> None:
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    write_text(path, "\n".join([",".join(columns), *(",".join(map(repr, row)) for row in rows)]) + "\n")


def averages(job: Job) -> dict[str, Any]:
    """Means with error bars, and the drift of the total energy."""
    frames, spacing = len(job.first.arrays.positions), job.first.arrays.frame_time
    atoms = len(job.first.arrays.numbers)
    series: dict[str, list[Floats]] = {}
    for replica in job.replicas():
        for name, values in replica.series.items():
            series.setdefault(name, []).append(values)
    count = job.trajectory.replicas
    # Something that never changes has no error bar to find; a quantity must be known of every replica.
    series = {k: v for k, v in series.items() if len(v) == count and all(np.ptp(values) > 0 for values in v)}
    if not series or frames < SHORTEST:
        raise DataError(
            f"averages need {SHORTEST} frames at least with energies, velocities or a cell that changes; found {frames} frames"
        )
    results: dict[str, Any] = {}
    panels, rows = [], []
    for name, runs in series.items():
        parts, correlations = [block_average(values) for values in runs], [correlation_time(values) for values in runs]
        average, time = mean_average(parts), float(np.mean([found.time for found in correlations]))
        results[name] = {
            "mean": average.mean,
            "standard_error": average.error,
            "standard_deviation": float(np.mean([values.std() for values in runs])),
            "plateau": average.converged,
            "block_frames": average.block,
            "correlation_frames": time,
            "correlation_fs": None if spacing is None else time * spacing,
            "independent_values": float(sum(found.independent for found in correlations)),
        }
        if count > 1:
            results[name]["standard_error_from_replicas"] = float(spread([part.mean for part in parts]))
        panels.append(_panel(QUANTITIES[name], average, spacing))
        sign = "" if average.converged else "> "  # no plateau
        rows.append([name, f"{average.mean:.6g}", f"{sign}{average.error:.2g}"])
    over = "the trajectory" if count == 1 else f"{count} replicas"
    job.echo(table([f"mean over {over}", "mean", "error"], rows))
    if "total_eV" in series and spacing is not None:
        times = np.arange(frames) * spacing
        drifts = [energy_drift(times, values, atoms) for values in series["total_eV"]]
        results["drift_meV_per_atom_per_ps"] = float(np.mean(drifts))
        if count > 1:
            results["drift_standard_error_from_replicas"] = float(spread(drifts))
    label = "length of the blocks (frames)" if spacing is None else "length of the blocks (fs)"
    plotting.save(md_plots.block_averages(panels, label)[0], job.folder / "averages.png")
    return results


def _panel(title: str, average: BlockAverage, spacing: float | None) -> md_plots.BlockPanel:
    chosen = int(np.flatnonzero(average.blocks == average.block)[0])
    time = average.blocks * (spacing or 1.0)
    return md_plots.BlockPanel(title, time, average.errors, average.uncertainties, chosen, average.converged)


def distances(job: Job) -> dict[str, Any]:
    """Radial distribution function, or the histogram of distances."""
    arrays, settings, count = job.first.arrays, job.settings, job.trajectory.replicas
    width = settings.bin_width if settings.bin_width is not None else BIN_WIDTHS[0 if arrays.pbc.any() else 1]
    if not width > 0:
        raise ConfigError(f"the width of the bins must be positive, found {width} angstrom")
    if len(arrays.numbers) == 1 and not arrays.pbc.any():
        raise DataError("a single atom has no distances")
    r_max = settings.r_max
    if r_max is None:
        ranges = [_default_range(replica.arrays) for replica in job.replicas()]
        r_max = min(ranges) if arrays.pbc.any() else max(ranges)
    bins = max(1, round(r_max / width))
    found, counted = [], 0
    for replica in job.replicas():
        arrays = replica.arrays
        chosen = np.arange(len(arrays.positions))
        most = max(1, MOST_FRAMES // count)
        if arrays.pbc.any() and len(chosen) > most:
            chosen = np.unique(np.linspace(0, len(chosen) - 1, most).astype(int))
        counted += len(chosen)
        found.append(
            radial_distribution(
                arrays.positions[chosen], arrays.cells[chosen], arrays.pbc, arrays.species(), r_max=r_max, bins=bins
            )
        )
    return _distance_files(job, found) | {"r_max_angstrom": r_max, "frames": counted}


def _distance_files(job: Job, found: Sequence[RadialDistribution]) -> dict[str, Any]:
    """The table and the picture of distributions of several replicas, averaged; and what to say of them."""

    def mean(values: list[Floats]) -> Floats:
        return np.asarray(np.mean(values, axis=0))

    first = found[0]
    total = mean([one.total for one in found])
    columns = {"distance_angstrom": first.distances, "total": total}
    if len(found) > 1:
        columns["total_standard_error"] = spread([one.total for one in found])
    pairs = {pair: mean([one.pairs[pair] for one in found]) for pair in first.pairs}
    pairs = {pair: values for pair, values in pairs.items() if values.any()}
    columns |= {f"{a}-{b}": values for (a, b), values in pairs.items()}
    columns |= {f"neighbors_{b}_around_{a}": mean([one.neighbors[a, b] for one in found]) for a, b in first.neighbors}
    _write_table(job.folder / "rdf.csv", columns)
    axes = md_plots.radial_distribution(first.distances, total, pairs, first.normalised)
    plotting.save(axes, job.folder / "rdf.png")
    peaks = {
        f"{a}-{b}": {"distance_angstrom": float(first.distances[values.argmax()]), "height": float(values.max())}
        for (a, b), values in pairs.items()
    }
    kind = "g(r)" if first.normalised else "pairs per structure and angstrom"
    return {"kind": kind, "bin_width_angstrom": first.width, "highest_peaks": peaks}


def _default_range(arrays: TrajectoryArrays) -> float:
    """Half the smallest height of the cell within limits; for molecules, somewhat more than their largest extent."""
    if arrays.pbc.any():
        cells = arrays.cells.copy()
        cells[:, ~arrays.pbc] = 0.0
        heights = 1 / np.linalg.norm(np.linalg.pinv(cells), axis=1)[:, arrays.pbc]
        return float(np.clip(heights.min() / 2, *DEFAULT_RANGE))
    spread = arrays.positions - arrays.positions.mean(axis=1, keepdims=True)
    return float(2 * np.sqrt((spread**2).sum(axis=2).max()) + 0.1)


def displacements(job: Job) -> dict[str, Any]:
    """Mean squared displacements per element and, in periodic systems, diffusion coefficients."""
    arrays = job.first.arrays
    spacing = arrays.needed_frame_time()
    if len(arrays.positions) < 2:
        raise DataError("a displacement needs two frames at least")
    enough = len(arrays.positions) >= 5 * BLOCKS
    runs: dict[str, list[Floats]] = {}
    fits: dict[str, list[Diffusion]] = {}
    for replica in job.replicas():
        path = replica.arrays.diffusing_positions()
        for name, mask in replica.arrays.species().items():
            if not (arrays.pbc.any() and enough):
                runs.setdefault(name, []).append(mean_squared_displacement(path[:, mask]))
                continue
            fits.setdefault(name, []).append(diffusion(path[:, mask], spacing, job.settings.fit_range))
            runs.setdefault(name, []).append(fits[name][-1].displacement)
    curves = {name: np.asarray(np.mean(values, axis=0)) for name, values in runs.items()}
    lines: dict[str, md_plots.DiffusionLine] = {}
    results: dict[str, Any] = {}
    for name, found in fits.items():
        lines[name], results[name] = _fitted_line(found), _diffusion_results(found)
        job.echo(f"diffusion of {name}: {lines[name].text}{_doubt(found)}")
    if not arrays.pbc.any():
        results["note"] = "no diffusion coefficient: the system is not periodic"
    elif not enough:
        results["note"] = f"no diffusion coefficient: it needs {5 * BLOCKS} frames at least"
    lags = np.arange(len(arrays.positions), dtype=np.float64) * spacing
    columns = {f"{name}_angstrom2": values for name, values in curves.items()}
    if job.trajectory.replicas > 1:
        columns |= {f"{name}_standard_error_angstrom2": spread(values) for name, values in runs.items()}
    _write_table(job.folder / "msd.csv", {"time_fs": lags, **columns})
    plotting.save(md_plots.mean_squared_displacement(lags, curves, lines)[0], job.folder / "msd.png")
    return results


def _mean(found: Sequence[Diffusion]) -> tuple[float, float]:
    """The mean coefficient of independent replicas, and its error from theirs."""
    error = float(np.sqrt(np.sum([one.error**2 for one in found]))) / len(found)
    return float(np.mean([one.coefficient for one in found])), error


def _fitted_line(found: Sequence[Diffusion]) -> md_plots.DiffusionLine:
    coefficient, own = _mean(found)
    value, error = (1e5 * CM2_PER_S * number for number in (coefficient, own))
    text = f"D = ({value:.3g} ± {error:.2g}) 10⁻⁵ cm²/s"
    intercept = float(np.mean([one.intercept for one in found]))
    return md_plots.DiffusionLine(6 * coefficient, intercept, *found[0].fit_range, text)


def _diffusion_results(found: Sequence[Diffusion]) -> dict[str, Any]:
    coefficient, error = _mean(found)
    exponent = float(np.mean([one.exponent for one in found]))
    results = {
        "diffusion_cm2_per_s": coefficient * CM2_PER_S,
        "standard_error_cm2_per_s": error * CM2_PER_S,
        "fit_range_fs": list(found[0].fit_range),
        "exponent": None if np.isnan(exponent) else exponent,
    }
    if len(found) > 1:
        own = spread([one.coefficient for one in found])
        results["standard_error_from_replicas_cm2_per_s"] = float(own) * CM2_PER_S
    return results


def _doubt(found: Sequence[Diffusion]) -> str:
    exponent, (start, end) = float(np.mean([one.exponent for one in found])), found[0].fit_range
    if abs(exponent - 1) <= 0.2:
        return ""
    return (
        f"; doubtful: the displacement grows as time^{exponent:.2f} from {start:g} to {end:g} fs, "
        "not as time^1 (a solid, or too short a range: see msd.png)"
    )


def vibrations(job: Job) -> dict[str, Any]:
    """Velocity autocorrelation and vibrational spectrum."""
    arrays = job.first.arrays
    spacing = arrays.needed_frame_time() if arrays.needed_velocities() is not None else 0.0
    spectra, correlations = [], []
    for replica in job.replicas():
        one, velocities = replica.arrays, replica.arrays.needed_velocities()
        spectra.append(
            vibrational_spectrum(velocities, one.masses, spacing, one.species(), resolution=job.settings.resolution)
        )
        correlations.append(velocity_autocorrelation(velocities, one.masses))
    first, correlation = spectra[0], np.asarray(np.mean(correlations, axis=0))
    total = np.asarray(np.mean([spectrum.total for spectrum in spectra], axis=0))
    species = {
        name: np.asarray(np.mean([spectrum.species[name] for spectrum in spectra], axis=0)) for name in first.species
    }
    lags = np.arange(len(correlation), dtype=np.float64) * spacing
    _write_table(job.folder / "vacf.csv", {"time_fs": lags, "autocorrelation": correlation})
    _write_table(job.folder / "spectrum.csv", {"wavenumber_per_cm": first.wavenumbers, "total": total, **species})
    plotting.save(md_plots.velocity_autocorrelation(lags, correlation), job.folder / "vacf.png")
    axes = md_plots.vibrational_spectrum(first.wavenumbers, total, species, first.resolution)
    plotting.save(axes, job.folder / "spectrum.png")
    limit = WAVENUMBER / (2 * spacing)
    if limit < FASTEST and 1 in arrays.numbers:
        job.echo(
            f"warning: frames every {spacing:g} fs tell wavenumbers up to {limit:.0f} cm^-1; faster vibrations of hydrogen appear at "
            "wrong, lower ones: store a frame every 4 fs or less"
        )
    return {
        "resolution_per_cm": first.resolution,
        "segments": sum(spectrum.segments for spectrum in spectra),
        "highest_wavenumber_per_cm": limit,
        "strongest_per_cm": float(first.wavenumbers[total.argmax()]),
    }


ANALYSES: dict[str, Callable[[Job], dict[str, Any]]] = {
    "averages": averages,
    "rdf": distances,
    "msd": displacements,
    "spectrum": vibrations,
}
"""What can be asked for by name."""
