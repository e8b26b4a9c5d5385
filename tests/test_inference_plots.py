"""Plots of posteriors and their calibration: what is drawn is what was given."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from exact_posterior import PRIOR, GaussianPosterior, LinearSimulator
from matplotlib.colors import to_hex

from simkit.errors import DataError
from simkit.inference import plots
from simkit.inference.calibration import Calibration, calibrate
from simkit.inference.calibration import plots as calibration_plots
from simkit.inference.simulator import Observable
from simkit.plotting import BLUE, VERMILION, save

OBSERVED = np.array([0.1, 0.2, 5.0, 0.4])
SIMULATOR = LinearSimulator()


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrate(GaussianPosterior(width=0.8), SIMULATOR, count=300, samples=99, observation=OBSERVED)


def samples(count: int = 4000, seed: int = 0) -> np.ndarray:
    return GaussianPosterior().sample(count, OBSERVED, seed=seed)


def test_every_plot_is_written_and_nothing_global_is_touched(tmp_path: Path, calibration: Calibration) -> None:
    settings = dict(matplotlib.rcParams)
    ranks, test, check = calibration.ranks, calibration.prior_test, calibration.predictive
    assert test is not None
    assert check is not None
    outputs = {"prior": calibration.x, "posterior": check.x}
    every: dict[str, Any] = {
        "corner": plots.corner({"a": samples()}, PRIOR.names, PRIOR.units)[0],
        "ranks": calibration_plots.rank_difference(ranks)[0],
        "coverage": calibration_plots.expected_coverage(ranks),
        "intervals": calibration_plots.interval_coverage(ranks),
        "bands": plots.predictive_bands(outputs, SIMULATOR.observables, OBSERVED)[0],
        "distances": calibration_plots.outlier_distances(test),
        "accuracy": plots.accuracy_curves({"prior": ([10, 100], [[0.9, 0.6]])}, "accuracy"),
    }
    for name, ax in every.items():
        save(ax, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert ax.get_xlabel() or name == "corner"
    assert dict(matplotlib.rcParams) == settings


def test_corner_shows_limits_truth_and_numbers() -> None:
    values = samples()
    truth = np.array([1.5, -6.0])
    diagonal, joint, last = plots.corner(
        {"inferred": values, "exact": samples(seed=1)},
        PRIOR.names,
        PRIOR.units,
        truth=truth,
        prior=PRIOR.sample(500, 0),
        support=PRIOR.support(),
    )
    assert (joint.get_xlabel(), joint.get_ylabel()) == ("stiffness (eV/Å²)", "offset (Å)")
    low, high = joint.get_ylim()
    assert low < truth[1] < np.quantile(values[:, 1], 0.998) < high
    assert joint.get_xlim() == diagonal.get_xlim()
    assert joint.get_ylim() == last.get_xlim()
    assert [line.get_xdata()[0] for line in joint.lines if line.get_marker() == "s"] == [1.5]  # type: ignore[index]
    legend = diagonal.figure.legends[0]  # type: ignore[union-attr]
    assert [text.get_text() for text in legend.get_texts()] == ["prior", "inferred", "exact"]
    middle = np.median(values[:, 0])
    assert diagonal.get_title().startswith(f"${middle:.2f}^")
    with pytest.raises(DataError, match=r"samples \[N, 2\]"):
        plots.corner({"a": values[:, :1]}, PRIOR.names, PRIOR.units)


def test_contours_hold_the_stated_shares() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(200_000, 2)) * [1.0, 10.0]
    joint = plots.corner({"a": values}, ["x", "y"], ["", ""])[1]
    lines = joint.collections[-1].get_paths()
    radii = sorted(float(np.hypot(*(path.vertices / [1.0, 10.0]).T).mean()) for path in lines)  # type: ignore[operator]
    # Circles of a normal distribution that hold 68 % and 95 %.
    assert radii == pytest.approx([np.sqrt(-2 * np.log(0.32)), np.sqrt(-2 * np.log(0.05))], rel=0.05)


def test_bounds_of_the_prior_are_marked_where_they_are_near() -> None:
    rng = np.random.default_rng(0)
    values = np.stack([rng.uniform(0, 1, 500), rng.normal(5, 0.1, 500)], axis=1)
    panels = plots.corner({"a": values}, ["x", "y"], ["", ""], support=([0, 0], [1, 10]))
    assert [line.get_xdata()[0] for line in panels[0].lines] == [0, 1]  # type: ignore[index]
    assert panels[0].get_xlim() == pytest.approx((-0.02, 1.02), abs=0.01)
    assert not panels[2].lines
    assert len(panels[1].lines) == 2


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1.0, 2.0, 3.0], "$2.00^{+0.68}_{-0.68}$"),
        ([1e-7, 2e-7, 3e-7], "$2.00^{+0.68}_{-0.68} \\cdot 10^{-7}$"),
        ([1e6, 1e6, 1e6], "1e+06"),
    ],
)
def test_numbers_above_the_panels(values: list[float], text: str) -> None:
    assert plots._interval_text(np.array(values)) == text


def test_rank_plots_show_bands_and_faults(calibration: Calibration) -> None:
    panels = calibration_plots.rank_difference(calibration.ranks, level=calibration.level)
    assert [ax.get_title().splitlines()[0] for ax in panels][:2] == ["stiffness", "offset"]
    for ax, test in zip(panels, calibration.ranks, strict=True):
        np.testing.assert_allclose(ax.lines[-1].get_ydata(), test.band.ecdf - test.band.points)
        failed = test.p_value <= calibration.level
        assert to_hex(ax.lines[-1].get_color()).lower() == (VERMILION if failed else BLUE).lower()
        assert bool(ax.texts) == failed
        drawn = ax.collections[0].get_paths()[0].vertices
        assert np.isclose(drawn[:, 1].max(), (test.band.high - test.band.points).max())  # type: ignore[index]
    assert any(text.get_text() == "too narrow" for ax in panels for text in ax.texts)
    coverage = calibration_plots.expected_coverage(calibration.ranks)
    np.testing.assert_array_equal(coverage.lines[1].get_ydata(), calibration.ranks[2].band.ecdf)
    np.testing.assert_array_equal(coverage.lines[2].get_ydata(), calibration.ranks[3].band.ecdf)
    with pytest.raises(DataError, match="coverage tests"):
        calibration_plots.expected_coverage(calibration.ranks[:2])


def test_interval_coverage_shows_each_parameter(calibration: Calibration) -> None:
    ax = calibration_plots.interval_coverage(calibration.ranks)
    for bars, test in zip(ax.containers, calibration.ranks[:2], strict=True):
        line = bars[0]  # type: ignore[index]
        np.testing.assert_allclose(line.get_ydata(), [c.observed - c.nominal for c in test.coverage()])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["stiffness", "offset"]  # type: ignore[union-attr]


def test_bands_hold_the_stated_shares_of_the_outputs() -> None:
    x = np.random.default_rng(0).normal(size=(999, 4))
    number, series = plots.predictive_bands({"prior": x, "posterior": 0.1 * x}, SIMULATOR.observables, OBSERVED)
    assert (number.get_xlabel(), series.get_ylabel(), series.get_xlabel()) == (
        "energy (eV)",
        "signal (mV)",
        "time (ps)",
    )
    outer = series.collections[0].get_paths()[0].vertices
    assert outer[:, 1].max() == pytest.approx(np.quantile(x[:, 1:], 0.975, axis=0).max())  # type: ignore[index]
    np.testing.assert_array_equal(series.lines[-1].get_ydata(), OBSERVED[1:])
    np.testing.assert_array_equal(series.lines[-1].get_xdata(), [0, 0.5, 1.0])
    low, high = number.lines[0].get_xdata()
    assert [low, high] == pytest.approx(np.quantile(x[:, 0], [0.025, 0.975]))
    assert [label.get_text() for label in number.get_yticklabels()] == ["prior", "posterior"]
    two = (Observable("angle", (5, 2), "rad", "series"),)
    panels = plots.predictive_bands({"posterior": np.tile(np.arange(10.0), (3, 1))}, two, np.arange(10.0))
    assert [ax.get_title() for ax in panels] == ["angle [0]", "angle [1]"]
    np.testing.assert_array_equal(panels[1].lines[-1].get_ydata(), [1, 3, 5, 7, 9])
    with pytest.raises(DataError, match=r"samples \[N, 4\]"):
        plots.predictive_bands({"prior": x[:, :3]}, SIMULATOR.observables)


def test_the_observation_is_marked_among_the_distances(calibration: Calibration) -> None:
    test = calibration.prior_test
    assert test is not None
    ax = calibration_plots.outlier_distances(test)
    assert [line.get_xdata()[0] for line in ax.lines] == [1.0, test.distance]  # type: ignore[index]
    assert sum(patch.get_height() for patch in ax.patches) == len(test.distances)  # type: ignore[attr-defined]


def test_accuracy_curves_show_median_and_range_over_seeds() -> None:
    values = np.array([[0.9, 0.8, np.nan], [0.8, 0.6, 0.55], [0.95, 0.7, np.nan]])
    ax = plots.accuracy_curves(
        {"prior": ([100, 1000, 5000], values), "one seed": ([100], [0.5])}, "accuracy", target=0.6
    )
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.9, 0.7, 0.55])
    band = ax.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0.55, 0.95)  # type: ignore[index]
    assert len(ax.collections) == 1
    assert ax.get_xscale() == "log"
    assert ax.lines[-1].get_ydata()[0] == 0.6  # type: ignore[index]
    with pytest.raises(DataError, match="prior: expected"):
        plots.accuracy_curves({"prior": ([1, 2], [[1.0]])}, "accuracy")
