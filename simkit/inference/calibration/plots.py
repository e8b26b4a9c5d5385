"""Plots of how far a posterior is to be trusted: arrays in, matplotlib Axes out, as in `simkit.plotting`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from simkit.errors import DataError
from simkit.inference.calibration.outliers import OutlierTest
from simkit.inference.calibration.ranks import RankTest
from simkit.inference.plots import COLOURS
from simkit.plotting import BLUE, GREY, VERMILION, new_axes, new_panels, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@styled
def rank_difference(tests: Sequence[RankTest], level: float = 0.05) -> list[Axes]:
    """Plot how far the cumulative distribution of each test's ranks is from that of uniform ones, with the band that it should stay in.

    Args:
        tests: from `simkit.inference.calibration`; those of parameters and of distances.
        level: those whose p-value is not above it are drawn in another colour.
    """
    row = new_panels(len(tests), 3.3, 2.9)
    for ax, test in zip(row, tests, strict=True):
        band, failed = test.band, test.p_value <= level
        ax.fill_between(
            band.points, band.low - band.points, band.high - band.points, color=GREY, alpha=0.2, linewidth=0
        )
        ax.axhline(0.0, color=GREY, linewidth=0.8)
        colour = VERMILION if failed else BLUE
        ax.plot(band.points, band.ecdf - band.points, color=colour)
        ax.set(xlim=(0, 1), xlabel="rank of the truth", title=f"{test.name}\n{_p_text(test.p_value)}")
        if failed:
            ax.text(0.5, 0.03, test.fault(), transform=ax.transAxes, ha="center", fontsize=8, color=colour)
            ax.margins(y=0.15)
    row[0].set_ylabel("cumulative share − uniform")
    return row


@styled
def expected_coverage(tests: Sequence[RankTest], axes: Axes | None = None) -> Axes:
    """Plot the coverage of regions around points (TARP) against their credibility, with the band that it should stay in.

    Args:
        tests: those whose kind is "random" or "similar" are drawn.
        axes: where to draw; a figure of its own by default.
    """
    drawn = [test for test in tests if test.kind != "parameter"]
    if not drawn:
        raise DataError("expected the coverage tests of a calibration; found none")
    ax = axes if axes is not None else new_axes(4.4, 4.2)
    band = drawn[0].band
    ax.fill_between(band.points, band.low, band.high, color=GREY, alpha=0.2, linewidth=0, label="expected")
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    for test, colour in zip(drawn, (BLUE, VERMILION), strict=False):
        ax.plot(test.band.points, test.band.ecdf, color=colour, label=f"{test.name}, {_p_text(test.p_value)}")
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="credibility", ylabel="share of true parameters inside")
    ax.legend(loc="upper left", fontsize=8)
    return ax


@styled
def interval_coverage(tests: Sequence[RankTest]) -> Axes:
    """Plot how often central credible intervals of each parameter hold the truth, with 95 % confidence intervals."""
    drawn = [test for test in tests if test.kind == "parameter"]
    ax = new_axes(5.2, 3.6)
    for rank, test in enumerate(drawn):
        found = test.coverage()
        nominal, observed = np.array([c.nominal for c in found]), np.array([c.observed for c in found])
        errors = np.array([[c.observed - c.low for c in found], [c.high - c.observed for c in found]])
        shift = 0.008 * (rank - (len(drawn) - 1) / 2)
        colour = COLOURS[rank % len(COLOURS)]
        ax.errorbar(
            nominal + shift,
            observed - nominal,
            errors,
            fmt="o",
            color=colour,
            markersize=4,
            linewidth=1.1,
            label=test.name,
        )
    ax.axhline(0.0, color=GREY, linewidth=0.8)
    ax.set(xlabel="credibility", ylabel="share that holds the truth − credibility")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


@styled
def outlier_distances(test: OutlierTest, label: str = "simulations under the prior", axes: Axes | None = None) -> Axes:
    """Plot how far out simulations lie, and the observation.

    Args:
        test: from `simkit.inference.calibration`.
        label: what the simulations are.
        axes: where to draw; a figure of its own by default.
    """
    ax = axes if axes is not None else new_axes()
    top = max(float(test.distances.max()), test.distance)
    ax.hist(test.distances, bins=np.linspace(0, 1.05 * top, 50).tolist(), color=BLUE, alpha=0.6, label=label)
    ax.axvline(1.0, color=GREY, linestyle="--", linewidth=0.9, label="95 % of them lie below")
    ax.axvline(test.distance, color=VERMILION, linewidth=1.6, label=f"observation, {_p_text(test.p_value)}")
    ax.set(xlabel="distance from the other simulations", ylabel="simulations")
    ax.legend(fontsize=8)
    return ax


def _p_text(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"
