"""The analysis of trajectories against analytic results, and against the same sums written out in loops."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.lj import LennardJones
from ase.io import read, write
from matplotlib.axes import Axes
from typer.testing import CliRunner

from simkit import cli, md_plots, plotting
from simkit.errors import ConfigError, DataError, GeometryError, OutputError
from simkit.md import correlation, rdf, spectra
from simkit.md.averages import block_average, correlation_time
from simkit.md.correlation import autocorrelation, mean_autocorrelation
from simkit.md.ensembles import NVE
from simkit.md.observers.thermo_table import read_thermo_table
from simkit.md.rdf import RadialDistribution, radial_distribution
from simkit.md.run import run_md
from simkit.md.spectra import WAVENUMBER, velocity_autocorrelation, vibrational_spectrum
from simkit.md.trajectory_arrays import TrajectoryArrays, unwrap
from simkit.md.transport import BLOCKS, diffusion, mean_squared_displacement
from simkit.workflows.analyze import AnalysisSettings, analyze

TRICLINIC = np.array([[9.0, 0.0, 0.0], [2.0, 8.0, 0.0], [-1.5, 1.0, 8.5]])
CUBE = 10.0 * np.eye(3)
PERIODIC, ISOLATED = np.ones(3, dtype=bool), np.zeros(3, dtype=bool)
Generator = np.random.Generator


def silent(_: str) -> None:
    pass


def autoregressive(rng: Generator, series: int, n: int, memory: float) -> np.ndarray:
    """Stationary series [S, n] of unit variance with rho(k) = memory^k."""
    noise = rng.normal(size=(n, series)) * np.sqrt(1 - memory**2)
    values = np.empty((n, series))
    values[0] = rng.normal(size=series)
    for k in range(1, n):
        values[k] = memory * values[k - 1] + noise[k]
    return values.T


# --------------------------------------------------------------------------------------------------------------- correlation


def test_autocorrelation_is_the_sum_over_origins(rng: Generator) -> None:
    series = rng.normal(size=(37, 2, 3)) + 1.0
    expected = [np.mean([series[t] * series[t + k] for t in range(37 - k)], axis=0) for k in range(37)]
    np.testing.assert_allclose(autocorrelation(series), expected, atol=1e-13)
    with pytest.raises(DataError):
        autocorrelation([1.0, np.nan])
    with pytest.raises(DataError):
        autocorrelation([])


def test_mean_autocorrelation_does_not_depend_on_the_chunks(rng: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    series, weights = rng.normal(size=(50, 7, 3)), rng.uniform(size=7)
    expected = np.einsum("tnx,n->t", autocorrelation(series), weights)
    for chunk in (1, 50 * 3 * 2, correlation.CHUNK):
        monkeypatch.setattr(correlation, "CHUNK", chunk)
        np.testing.assert_allclose(mean_autocorrelation(series, weights), expected, atol=1e-13)
    np.testing.assert_allclose(mean_autocorrelation(series)[0], (series**2).sum(axis=2).mean(), atol=1e-13)
    with pytest.raises(DataError):
        mean_autocorrelation(series, weights[:-1])


# ------------------------------------------------------------------------------------------------------------------ averages


@pytest.mark.parametrize("memory", [0.0, 0.8, 0.95])
def test_blocking_finds_the_error_of_a_correlated_series(rng: Generator, memory: float) -> None:
    """Var(mean) = (1 + memory) / (1 - memory) / n for long series; the mean over many series leaves 3 % of noise and bias."""
    n, count = 2**14, 40
    exact = np.sqrt((1 + memory) / (1 - memory) / n)
    results = [block_average(series) for series in autoregressive(rng, count, n, memory)]
    assert all(result.converged for result in results)
    errors = np.array([result.error for result in results])
    assert errors.mean() == pytest.approx(exact, rel=0.06)
    # The error bars cover the truth as they say, and the error's own uncertainty is its scatter.
    scores = np.array([result.mean for result in results]) / errors
    assert 0.7 < scores.std() < 1.35
    stated = np.mean([result.error_uncertainty for result in results])
    assert errors.std() == pytest.approx(stated, rel=0.6)


def test_blocking_levels_are_the_naive_errors_of_block_means(rng: Generator) -> None:
    series = rng.normal(size=1001) + 5.0
    result = block_average(series)
    assert result.mean == pytest.approx(series.mean(), abs=1e-14)
    assert result.blocks.tolist() == [2**k for k in range(9)]
    for block, error, own in zip(result.blocks, result.errors, result.uncertainties, strict=True):
        n = 1001 // block
        means = series[: n * block].reshape(n, block).mean(axis=1)
        assert error == pytest.approx(means.std(ddof=1) / np.sqrt(n), rel=1e-12)
        assert own == pytest.approx(error / np.sqrt(2 * (n - 1)), rel=1e-12)


def test_blocking_says_when_a_series_is_too_short(rng: Generator) -> None:
    (series,) = autoregressive(rng, 1, 256, 0.999)
    result = block_average(series)
    assert not result.converged
    assert result.error == result.errors.max()
    constant = block_average(np.full(100, 3.0))
    assert (constant.mean, constant.error) == (3.0, 0.0)
    for wrong in ([1.0, 2.0, 3.0], [[1.0] * 8], [1.0, 2.0, np.inf, 4.0]):
        with pytest.raises(DataError):
            block_average(wrong)


@pytest.mark.parametrize("memory", [0.0, 0.8, 0.95])
def test_correlation_time_of_a_known_series(rng: Generator, memory: float) -> None:
    exact = 0.5 * (1 + memory) / (1 - memory)
    results = [correlation_time(series) for series in autoregressive(rng, 200, 2**14, memory)]
    times = np.array([result.time for result in results])
    assert times.mean() == pytest.approx(exact, rel=0.03)
    assert results[0].independent == pytest.approx(2**14 / (2 * times[0]))
    if memory:
        assert times.std() == pytest.approx(np.mean([result.error for result in results]), rel=0.35)
    with pytest.raises(DataError, match="constant"):
        correlation_time(np.ones(10))


# ----------------------------------------------------------------------------------------------------------------- distances


def everything(n_atoms: int) -> dict[str, np.ndarray]:
    return {"X": np.ones(n_atoms, dtype=bool)}


def test_ideal_gas_has_no_structure(rng: Generator) -> None:
    """g_ab = 1, and 1 - 1/N_a for a = b, within the noise of the counts; in a triclinic cell, beyond half of it, too."""
    frames, n = 400, 40
    positions = rng.uniform(size=(frames, n, 3)) @ TRICLINIC
    species = {"A": np.arange(n) < 30, "B": np.arange(n) >= 30}
    result = radial_distribution(positions, TRICLINIC, PERIODIC, species, r_max=3.9, bins=13)
    assert result.normalised
    shells = 4 * np.pi / 3 * np.diff(np.linspace(0, 3.9, 14) ** 3) / np.linalg.det(TRICLINIC)
    members = {"A": 30, "B": 10}
    for (a, b), values in result.pairs.items():
        exact = 1 - (a == b) / members[a]
        independent = frames * members[a] * members[b] * exact * shells / (2 if a == b else 1)
        assert (np.abs(values - exact) < 4 * exact / np.sqrt(independent)).all()
    independent = frames * n * (n - 1) / 2 * shells
    assert (np.abs(result.total - (1 - 1 / n)) < 4 / np.sqrt(independent)).all()
    assert set(result.pairs) == {("A", "A"), ("A", "B"), ("B", "B")}


def test_crystal_peaks_and_coordination_numbers() -> None:
    """fcc: 12 neighbors at a / sqrt 2, 6 at a, 24 at a sqrt 1.5, 12 at a sqrt 2, from a primitive cell far smaller than that."""
    primitive = bulk("Ar", a=5.0)
    result = radial_distribution(
        primitive.positions[None], primitive.cell.array, PERIODIC, everything(1), r_max=7.2, bins=720
    )
    places = np.flatnonzero(result.total)
    np.testing.assert_allclose(result.distances[places], 5.0 * np.sqrt([0.5, 1.0, 1.5, 2.0]), atol=result.width)
    np.testing.assert_allclose(result.neighbors["X", "X"][places], [12, 18, 42, 54])
    repeated = primitive * (3, 3, 3)
    again = radial_distribution(
        repeated.positions[None], repeated.cell.array, PERIODIC, everything(27), r_max=7.2, bins=36
    )
    coarse = radial_distribution(
        primitive.positions[None], primitive.cell.array, PERIODIC, everything(1), r_max=7.2, bins=36
    )
    np.testing.assert_allclose(again.total, coarse.total, rtol=1e-12)


def test_pairs_of_elements_in_rock_salt() -> None:
    salt = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    species = {name: np.array(salt.symbols) == name for name in ("Na", "Cl")}
    result = radial_distribution(salt.positions[None], salt.cell.array, PERIODIC, species, r_max=4.5, bins=450)
    nearest = {pair: result.distances[np.flatnonzero(values)[0]] for pair, values in result.pairs.items()}
    assert nearest["Na", "Cl"] == pytest.approx(2.82, abs=result.width)
    assert nearest["Na", "Na"] == pytest.approx(5.64 / np.sqrt(2), abs=result.width)
    assert result.neighbors["Na", "Cl"][300] == result.neighbors["Cl", "Na"][300] == 6
    assert result.neighbors["Na", "Na"][-1] == 12
    # The mean of all pairs, weighted by their numbers, is the total.
    parts = 0.25 * result.pairs["Na", "Na"] + 0.5 * result.pairs["Na", "Cl"] + 0.25 * result.pairs["Cl", "Cl"]
    np.testing.assert_allclose(parts, result.total, rtol=1e-12)


def test_changing_cells_count_with_their_volume(rng: Generator) -> None:
    """Frames scaled as a whole, with bins scaled alike, have the same g(r); two different ones have the mean of their own."""
    positions = rng.uniform(size=(2, 20, 3)) @ CUBE
    cells = np.stack([CUBE, 1.2 * CUBE])
    both = radial_distribution(positions, cells, PERIODIC, everything(20), r_max=4.0, bins=10)
    each = [
        radial_distribution(positions[k : k + 1], cells[k], PERIODIC, everything(20), r_max=4.0, bins=10)
        for k in (0, 1)
    ]
    np.testing.assert_allclose(both.total, (each[0].total + each[1].total) / 2, rtol=1e-12)
    scaled = radial_distribution(1.2 * positions[:1], cells[1], PERIODIC, everything(20), r_max=4.8, bins=10)
    np.testing.assert_allclose(scaled.total, each[0].total, rtol=1e-9)


def water_distances() -> RadialDistribution:
    water = molecule("H2O")
    species = {"H": water.numbers == 1, "O": water.numbers == 8}
    frames = np.stack([water.positions, water.positions + 3.0])
    return radial_distribution(frames, water.cell.array, ISOLATED, species, r_max=3.0, bins=300)


def test_molecules_have_counts_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    result = water_distances()
    assert not result.normalised
    assert result.pairs["H", "O"].sum() * result.width == pytest.approx(2.0)
    assert result.pairs["H", "H"].sum() * result.width == pytest.approx(1.0)
    assert result.total.sum() * result.width == pytest.approx(3.0)
    assert not result.pairs["O", "O"].any()
    assert result.distances[result.pairs["H", "O"].argmax()] == pytest.approx(0.9686, abs=0.01)
    assert (result.neighbors["O", "H"][-1], result.neighbors["H", "O"][-1]) == (2.0, 1.0)
    monkeypatch.setattr(rdf, "ALL_PAIRS", 0)  # by neighbor lists, as for large molecules
    np.testing.assert_allclose(water_distances().total, result.total)


def test_slabs_are_periodic_along_two_directions() -> None:
    square = np.diag([3.0, 3.0, 0.0])
    result = radial_distribution(np.zeros((1, 1, 3)), square, [True, True, False], everything(1), r_max=3.1, bins=31)
    assert not result.normalised
    assert result.neighbors["X", "X"][-1] == 4
    assert result.total.sum() * result.width == pytest.approx(2.0)  # pairs per cell: four half neighbors


def test_unusable_distances() -> None:
    with pytest.raises(ConfigError):
        radial_distribution(np.zeros((1, 1, 3)), CUBE, PERIODIC, everything(1), r_max=0.0)
    with pytest.raises(ConfigError, match="shorter r_max"):
        radial_distribution(np.zeros((1, 1, 3)), CUBE, PERIODIC, everything(1), r_max=1e5)
    with pytest.raises(ConfigError, match="bins"):
        radial_distribution(np.zeros((1, 1, 3)), CUBE, PERIODIC, everything(1), r_max=5.0, bins=10**9)
    with pytest.raises(GeometryError, match="no volume"):
        radial_distribution(np.zeros((1, 1, 3)), np.ones((3, 3)), PERIODIC, everything(1), r_max=0.001)
    with pytest.raises(GeometryError, match="each atom to one"):
        radial_distribution(np.zeros((1, 2, 3)), CUBE, PERIODIC, {"A": [True, False]}, r_max=1.0)
    with pytest.raises(GeometryError, match="cells"):
        radial_distribution(np.zeros((2, 1, 3)), CUBE[None], PERIODIC, everything(1), r_max=1.0)
    with pytest.raises(GeometryError):
        radial_distribution(np.zeros((1, 1)), CUBE, PERIODIC, everything(1), r_max=1.0)


# ------------------------------------------------------------------------------------------------------- paths and diffusion


def brownian(rng: Generator, frames: int, atoms: int, coefficient: float, frame_time: float = 1.0) -> np.ndarray:
    steps = rng.normal(size=(frames - 1, atoms, 3)) * np.sqrt(2 * coefficient * frame_time)
    return np.concatenate([np.zeros((1, atoms, 3)), np.cumsum(steps, axis=0)])


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (False, False, False)])
def test_unwrapping_undoes_wrapping(rng: Generator, pbc: tuple[bool, bool, bool]) -> None:
    path = brownian(rng, 500, 5, 0.05) + rng.uniform(size=(5, 3))
    wrapped = path - np.where(pbc, np.floor(path @ np.linalg.inv(TRICLINIC)), 0.0) @ TRICLINIC
    restored = unwrap(wrapped, TRICLINIC, pbc)
    np.testing.assert_allclose(restored - restored[0], path - path[0], atol=1e-10)
    np.testing.assert_allclose(unwrap(path, TRICLINIC, pbc), path, atol=1e-10)
    assert np.abs(path - path[0]).max() > 5.0  # it went through the cell


def test_a_breathing_cell_does_not_move_atoms_that_have_travelled() -> None:
    """An atom a thousand cells from its start must not move a thousand times as much as the cell."""
    frames = 200
    scale = 1 + 0.01 * np.sin(np.arange(frames))
    cells = scale[:, None, None] * CUBE
    fraction = np.array([0.3, 0.6, 0.5])
    near = (fraction @ cells)[:, None]
    far = near + 1000 * cells[:, :1]
    for path in (near, far):
        motion = unwrap(path, cells, PERIODIC)
        assert np.abs(motion - motion[0]).max() < 0.2


def test_unusable_paths() -> None:
    with pytest.raises(GeometryError, match="volume"):
        unwrap(np.zeros((2, 1, 3)), np.zeros((3, 3)), PERIODIC)
    with pytest.raises(GeometryError, match="volume"):
        unwrap(np.zeros((2, 1, 3)), np.ones((3, 3)), PERIODIC)
    with pytest.raises(GeometryError):
        unwrap(np.zeros((2, 3)), CUBE, PERIODIC)
    with pytest.raises(GeometryError):
        unwrap(np.zeros((2, 1, 3)), CUBE[None], PERIODIC)


def test_displacement_is_the_mean_over_origins_and_atoms(rng: Generator) -> None:
    path = rng.normal(size=(40, 3, 3)) + 100.0
    expected = [np.mean([((path[t + k] - path[t]) ** 2).sum(axis=1) for t in range(40 - k)]) for k in range(40)]
    np.testing.assert_allclose(mean_squared_displacement(path), expected, rtol=1e-11, atol=1e-11)


def test_free_flight(rng: Generator) -> None:
    velocity = rng.normal(size=(4, 3))
    time = np.arange(100.0)
    path = time[:, None, None] * velocity
    exact = (velocity**2).sum(axis=1).mean() * time**2
    np.testing.assert_allclose(mean_squared_displacement(path), exact, rtol=1e-9, atol=1e-9)
    assert diffusion(path, 1.0).exponent == pytest.approx(2.0)


def test_brownian_motion(rng: Generator) -> None:
    """<r^2> = 6 D t; the coefficient within three of its own error bars, which are small."""
    exact, frame_time = 0.02, 5.0
    result = diffusion(brownian(rng, 4000, 60, exact, frame_time), frame_time)
    assert abs(result.coefficient - exact) < 3 * result.error
    assert result.error < 0.05 * exact
    assert result.exponent == pytest.approx(1.0, abs=0.1)
    assert result.intercept == pytest.approx(0.0, abs=0.1 * 6 * exact * result.fit_range[1])
    short = slice(1, 20)
    np.testing.assert_allclose(result.displacement[short], 6 * exact * result.lags[short], rtol=0.05)
    chosen = diffusion(brownian(rng, 4000, 60, exact, frame_time), frame_time, (10.0, 50.0))
    assert chosen.fit_range == (10.0, 50.0)
    assert abs(chosen.coefficient - exact) < 3 * chosen.error


def test_error_bars_of_diffusion_are_right(rng: Generator) -> None:
    """The scatter of the coefficients of 60 independent trajectories is what each of them says it is."""
    results = [diffusion(brownian(rng, 800, 8, 1.0), 1.0) for _ in range(60)]
    scatter = np.std([result.coefficient for result in results], ddof=1)
    stated = np.sqrt(np.mean([result.error**2 for result in results]))
    assert 0.75 < scatter / stated < 1.3
    assert abs(np.mean([result.coefficient for result in results]) - 1.0) < 4 * scatter / np.sqrt(60)


def test_unusable_fits(rng: Generator) -> None:
    path = brownian(rng, 400, 2, 1.0)
    for wrong in ((10.0, 5.0), (0.2, 0.8), (5.0, 60.0), (-1.0, 20.0)):
        with pytest.raises(ConfigError, match="cannot fit"):
            diffusion(path, 1.0, wrong)
    with pytest.raises(DataError, match=f"{5 * BLOCKS} frames"):
        diffusion(path[:30], 1.0)
    with pytest.raises(ConfigError):
        diffusion(path, 0.0)
    with pytest.raises(DataError, match="not finite"):
        mean_squared_displacement(np.full((2, 1, 3), np.nan))


# ------------------------------------------------------------------------------------------------------------------- spectra


def oscillators(wavenumbers: list[float], amplitudes: list[float], frames: int, frame_time: float) -> np.ndarray:
    """Velocities [T, N, 3] of independent atoms, each vibrating along x."""
    time = np.arange(frames) * frame_time
    velocities = np.zeros((frames, len(wavenumbers), 3))
    phase = np.arange(len(wavenumbers)) + 0.3
    velocities[:, :, 0] = amplitudes * np.cos(2 * np.pi * np.outer(time, wavenumbers) / WAVENUMBER + phase)
    return velocities


def integral(values: np.ndarray, spacing: float) -> float:
    return float((values.sum() - (values[0] + values[-1]) / 2) * spacing)


def test_wavenumbers_of_one_femtosecond() -> None:
    assert (
        pytest.approx(1 / units.fs * units._hplanck * units.J * units.fs / units.invcm * 1e15, rel=1e-6) == WAVENUMBER
    )


def test_a_harmonic_oscillator_is_a_line_and_a_cosine() -> None:
    frame_time, wavenumber = 2.0, 1500.0
    velocities = oscillators([wavenumber], [1.0], 20_000, frame_time)
    vacf = velocity_autocorrelation(velocities, [12.0])
    lags = np.arange(2000) * frame_time
    np.testing.assert_allclose(vacf[:2000], np.cos(2 * np.pi * lags * wavenumber / WAVENUMBER), atol=2e-3)
    spectrum = vibrational_spectrum(velocities, [12.0], frame_time, everything(1), resolution=10.0)
    spacing = spectrum.wavenumbers[1]
    assert spectrum.wavenumbers[spectrum.total.argmax()] == pytest.approx(wavenumber, abs=spacing)
    assert spectrum.wavenumbers[-1] == pytest.approx(WAVENUMBER / (2 * frame_time))
    assert spectrum.resolution == pytest.approx(10.0, rel=1e-3)
    assert spectrum.segments > 10
    half = spectrum.wavenumbers[spectrum.total > spectrum.total.max() / 2]
    assert half[-1] - half[0] == pytest.approx(10.0, abs=2 * spacing)
    assert integral(spectrum.total, spacing) == pytest.approx(1.0, rel=1e-12)


def test_lines_have_the_share_of_their_kinetic_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    masses, amplitudes = np.array([1.0, 16.0, 1.0]), [2.0, 1.0, 1.0]
    velocities = oscillators([3000.0, 1000.0, 2000.0], amplitudes, 8192, 2.0)
    species = {"H": masses == 1, "O": masses == 16}
    spectrum = vibrational_spectrum(velocities, masses, 2.0, species, resolution=20.0)
    energies = masses * np.square(amplitudes)
    spacing = spectrum.wavenumbers[1]
    for place, energy in zip((3000.0, 1000.0, 2000.0), energies, strict=True):
        near = np.abs(spectrum.wavenumbers - place) < 150
        assert integral(spectrum.total[near], spacing) == pytest.approx(energy / energies.sum(), rel=1e-3)
    assert integral(spectrum.species["O"], spacing) == pytest.approx(16 / 21, rel=1e-3)
    np.testing.assert_allclose(spectrum.species["H"] + spectrum.species["O"], spectrum.total, rtol=1e-12)
    monkeypatch.setattr(spectra, "CHUNK", 1)
    again = vibrational_spectrum(velocities, masses, 2.0, species, resolution=20.0)
    np.testing.assert_allclose(again.total, spectrum.total, rtol=1e-9, atol=1e-15)


def test_brownian_velocities_decay_and_are_a_lorentzian(rng: Generator) -> None:
    """Langevin: C(t) = exp(-t / tau), whose spectrum is 4 tau / (1 + (2 pi nu tau)^2) over positive frequencies."""
    frame_time, tau = 5.0, 100.0
    memory = np.exp(-frame_time / tau)
    velocities = autoregressive(rng, 60, 2**14, memory).T.reshape(2**14, 20, 3)
    masses = np.ones(20)
    vacf = velocity_autocorrelation(velocities, masses)
    np.testing.assert_allclose(vacf[:60], memory ** np.arange(60), atol=0.02)
    spectrum = vibrational_spectrum(velocities, masses, frame_time, everything(20), resolution=10.0)
    exact = 4 * tau / (1 + (2 * np.pi * spectrum.wavenumbers / WAVENUMBER * tau) ** 2) / WAVENUMBER
    shown = (spectrum.wavenumbers > 5) & (spectrum.wavenumbers < 300)  # above, the sampling folds the tail back
    np.testing.assert_allclose(spectrum.total[shown], exact[shown], rtol=0.2)
    assert np.mean(spectrum.total[shown] / exact[shown]) == pytest.approx(1.0, abs=0.02)
    assert spectrum.total[0] == pytest.approx(exact[0], rel=0.2)  # four times the integral of C(t): the diffusion


def test_unusable_velocities() -> None:
    still, one = np.zeros((20, 1, 3)), everything(1)
    with pytest.raises(DataError, match="zero"):
        velocity_autocorrelation(still, [1.0])
    with pytest.raises(DataError, match="zero"):
        vibrational_spectrum(still, [1.0], 1.0, one)
    with pytest.raises(DataError, match="positive masses"):
        velocity_autocorrelation(still + 1, [0.0])
    with pytest.raises(DataError, match="8 frames"):
        vibrational_spectrum(still[:4] + 1, [1.0], 1.0, one)
    with pytest.raises(ConfigError):
        vibrational_spectrum(still + 1, [1.0], 1.0, one, resolution=0.0)
    with pytest.raises(DataError, match="each of 1 atoms"):
        vibrational_spectrum(still + 1, [1.0], 1.0, {"H": [False]})


# -------------------------------------------------------------------------------------------------------------- trajectories


def waters(count: int = 5, frame_time: float | None = 2.0) -> list[Atoms]:
    frames = []
    for k in range(count):
        atoms = molecule("H2O", vacuum=4.0)
        spread = np.sqrt(300 * units.kB * atoms.get_masses())[:, None]
        atoms.set_momenta(np.random.default_rng(k).normal(size=(3, 3)) * spread)
        if frame_time is not None:
            atoms.info["time_fs"] = k * frame_time
        frames.append(atoms)
    return frames


def test_stacked_frames() -> None:
    frames = waters()
    arrays = TrajectoryArrays.from_frames(frames)
    assert arrays.frame_time == 2.0
    assert list(arrays.species()) == ["H", "O"]
    assert arrays.species()["O"].tolist() == [True, False, False]
    kinetic = 0.5 * (arrays.masses * (arrays.needed_velocities() ** 2).sum(axis=2)).sum(axis=1)
    joule = 1.66053906660e-27 * 1e10 / 1.602176634e-19  # amu angstrom^2/fs^2 in eV
    np.testing.assert_allclose(kinetic * joule, [atoms.get_kinetic_energy() for atoms in frames], rtol=1e-6)
    path = arrays.diffusing_positions()
    centre = np.einsum("tnx,n->tx", path, arrays.masses)
    np.testing.assert_allclose(centre, np.broadcast_to(centre[0], centre.shape), atol=1e-9)


def test_times_of_frames() -> None:
    untimed = waters(frame_time=None)
    with pytest.raises(DataError, match="--frame-time"):
        TrajectoryArrays.from_frames(untimed).needed_frame_time()
    assert TrajectoryArrays.from_frames(untimed, 3.0).needed_frame_time() == 3.0
    with pytest.raises(DataError, match="leave it out"):
        TrajectoryArrays.from_frames(waters(), 3.0)
    with pytest.raises(DataError, match="positive"):
        TrajectoryArrays.from_frames(untimed, 0.0)
    broken = waters()
    broken[-1].info["time_fs"] = 6.5
    arrays = TrajectoryArrays.from_frames(broken)
    assert (len(arrays.positions), arrays.dropped, arrays.frame_time) == (4, 1, 2.0)
    broken[2].info["time_fs"] = 5.0
    with pytest.raises(DataError, match="not evenly spaced"):
        TrajectoryArrays.from_frames(broken)


def test_frames_that_do_not_belong_together() -> None:
    with pytest.raises(DataError, match="frame 5 has other atoms"):
        TrajectoryArrays.from_frames([*waters(), molecule("CH4")])
    with pytest.raises(DataError, match="found none"):
        TrajectoryArrays.from_frames([])
    frames = waters()
    frames[1].pbc = True
    with pytest.raises(DataError, match="frame 1 has pbc"):
        TrajectoryArrays.from_frames(frames)
    frames = waters()
    frames[1].positions[0, 0] = np.nan
    with pytest.raises(GeometryError, match="not finite"):
        TrajectoryArrays.from_frames(frames)
    bare = [Atoms(atoms.symbols, atoms.positions) for atoms in waters()]
    with pytest.raises(DataError, match="simkit md"):
        TrajectoryArrays.from_frames(bare).needed_velocities()


# ------------------------------------------------------------------------------------------------------- command and pictures


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of argon with everything that a run writes."""
    crystal = bulk("Ar", a=5.3, cubic=True) * (2, 2, 2)
    folder = tmp_path_factory.mktemp("argon")
    calculator = LennardJones(sigma=3.4, epsilon=0.0103, rc=5.0)
    run_md(calculator, crystal, NVE(4.0), out=folder, steps=240, temperature=60.0, interval=4)
    return folder


def command(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, ["analyze", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


FILES = {
    *("analysis.json", "averages.png", "rdf.csv", "rdf.png", "msd.csv", "msd.png"),
    *("vacf.csv", "vacf.png", "spectrum.csv", "spectrum.png"),
}


def test_the_folder_of_a_run(run_folder: Path, tmp_path: Path) -> None:
    status, text, _ = command(run_folder, "--out", tmp_path / "out", "--r-max", 7)
    assert status == 0, text
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    found = json.loads((tmp_path / "out" / "analysis.json").read_text(encoding="utf-8"))
    assert (found["frames"], found["atoms"], found["frame_time_fs"]) == (61, 32, 16.0)
    assert not found["left_out"]
    thermo = read_thermo_table(run_folder / "thermo.csv")
    assert found["averages"]["temperature_K"]["mean"] == pytest.approx(thermo["temperature_K"].mean(), rel=1e-12)
    assert found["rdf"]["kind"] == "g(r)"
    assert found["rdf"]["highest_peaks"]["Ar-Ar"]["distance_angstrom"] == pytest.approx(5.3 / np.sqrt(2), abs=0.2)
    assert found["msd"]["Ar"]["fit_range_fs"] == [16.0, 48.0]
    table = np.genfromtxt(tmp_path / "out" / "rdf.csv", delimiter=",", names=True)
    assert table["neighbors_Ar_around_Ar"][np.searchsorted(table["distance_angstrom"], 4.5)] == pytest.approx(
        12, abs=0.2
    )
    assert table["distance_angstrom"][-1] == pytest.approx(6.975)
    # No atom of this crystal leaves its place, and that is said.
    assert "doubtful" in text
    status, _, message = command(run_folder, "--out", tmp_path / "out")
    assert status == 1
    assert "--overwrite" in message
    assert command(run_folder, "--out", tmp_path / "out", "--overwrite", "--only", "rdf")[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"analysis.json", "rdf.csv", "rdf.png"}


def test_parts_of_a_trajectory(run_folder: Path, tmp_path: Path) -> None:
    whole = run_folder / "trajectory.traj"
    for where, skip in ((f"{whole}@20:", 0), (str(run_folder), 20), (f"{run_folder}@20:", 0)):
        found = analyze(where, out=tmp_path, only=["averages"], skip=skip, overwrite=True, echo=silent)
        thermo = read_thermo_table(run_folder / "thermo.csv")["potential_eV"][20:]
        assert found["averages"]["potential_eV"]["mean"] == pytest.approx(thermo.mean(), rel=1e-12)
        assert found["frames"] == 41
    # Another place and format: energies and temperatures are those of the frames.
    write(tmp_path / "copy.xyz", read(whole, index="20:"), columns=["symbols", "positions", "momenta"])
    copied = analyze(tmp_path / "copy.xyz", out=tmp_path / "copy", only=["averages"], echo=silent)["averages"]
    assert copied["potential_eV"]["mean"] == pytest.approx(thermo.mean(), rel=1e-6)
    dof = 31 / 32  # the run leaves out the directions of the centre of mass
    assert copied["temperature_K"]["mean"] == pytest.approx(found["averages"]["temperature_K"]["mean"] * dof, rel=1e-3)


def test_a_molecule_without_velocities(tmp_path: Path) -> None:
    frames = [Atoms(atoms.symbols, atoms.positions) for atoms in waters(12)]
    for atoms in frames:
        atoms.rattle(0.01, rng=np.random.default_rng(0))
    write(tmp_path / "water.xyz", frames)
    status, text, _ = command(tmp_path / "water.xyz", "--out", tmp_path / "a", "--frame-time", 1)
    assert status == 0
    assert "left out: spectrum: the trajectory has no velocities" in text
    found = json.loads((tmp_path / "a" / "analysis.json").read_text(encoding="utf-8"))
    assert set(found["left_out"]) == {"averages", "spectrum"}
    assert found["rdf"]["kind"] == "pairs per structure and angstrom"
    assert "not periodic" in found["msd"]["note"]
    status, _, message = command(tmp_path / "water.xyz", "--out", tmp_path / "b", "--only", "rdf,spectrum")
    assert status == 1
    assert "write(..., columns=" in message


def test_fast_vibrations_are_warned_of(tmp_path: Path) -> None:
    write(tmp_path / "water.traj", waters(12, 10.0))
    _, text, _ = command(tmp_path / "water.traj", "--out", tmp_path / "a", "--only", "spectrum")
    assert "frames every 10 fs tell wavenumbers up to 1668" in text


def test_unusable_requests(run_folder: Path, tmp_path: Path) -> None:
    for arguments, text in (
        (["--only", "rfd"], "did you mean 'rdf'"),
        (["--skip", 61], "expected to skip 0 to 60, found 61"),
        (["--skip", -1], "found -1"),
        (["--fit-start", 10], "both ends"),
        (["--fit-start", 16, "--fit-end", 500], "cannot fit"),
        (["--bin-width", 0], "must be positive"),
        (["--frame-time", 3], "leave it out"),
    ):
        status, _, message = command(run_folder, "--out", tmp_path / "x", "--overwrite", *arguments)
        assert status == 1, arguments
        assert text in message
        assert message.count("\n") == 1
    status, _, message = command(tmp_path / "nothing.traj", "--out", tmp_path / "x")
    assert status == 1
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        analyze(run_folder, out=tmp_path / "file", settings=AnalysisSettings(), echo=silent)


def every_plot() -> dict[str, Axes]:
    x = np.linspace(0.1, 10, 50)
    line = md_plots.DiffusionLine(1.0, 0.0, 1.0, 2.0, "D = 1")
    panel = md_plots.BlockPanel("energy (eV)", [1, 2, 4], [0.1, 0.2, 0.2], [0.01, 0.02, 0.04], 1, True)
    names = ["AA", "AB", "AC", "BB", "BC", "CC", "CD", "DD"]
    return {
        "rdf": md_plots.radial_distribution(x, x, {(name[0], name[1]): x for name in names}, True),
        "distances": md_plots.radial_distribution(x, x, {("A", "A"): x}, False),
        "msd": md_plots.mean_squared_displacement(x - 0.1, {"A": x, "B": x - 0.1}, {"A": line})[0],
        "long": md_plots.mean_squared_displacement(1000 * x, {"A": x}, {})[1],
        "vacf": md_plots.velocity_autocorrelation(x, np.cos(x)),
        "spectrum": md_plots.vibrational_spectrum(x, np.sin(x) ** 2, {"A": x, "B": x}, 10.0),
        "blocks": md_plots.block_averages([panel, panel], "length (fs)")[0],
    }


def test_every_plot_is_written_and_labelled(tmp_path: Path) -> None:
    plots = every_plot()
    for name, ax in plots.items():
        assert ax.get_xlabel()
        assert ax.get_ylabel()
        plotting.save(ax, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert plots["rdf"].get_ylabel() == "g(r)"
    assert plots["distances"].get_ylabel() == "pairs per Å"
    assert plots["long"].get_xlabel() == "time (ps)"
    assert len({(line.get_color(), line.get_linestyle()) for line in plots["rdf"].lines[:8]}) == 8
