"""Correlation functions, averages and spectra of trajectories against analytic results, and against the same sums written out in loops."""

import numpy as np
import pytest
from analysis_cases import everything
from ase import units
from numpy.random import Generator

from simkit.errors import ConfigError, DataError
from simkit.md import correlation, spectra
from simkit.md.averages import block_average, correlation_time
from simkit.md.correlation import autocorrelation, mean_autocorrelation
from simkit.md.spectra import WAVENUMBER, velocity_autocorrelation, vibrational_spectrum


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
