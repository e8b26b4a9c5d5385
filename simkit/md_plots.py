"""Plots of what the analysis of a trajectory finds: arrays in, matplotlib Axes out, as in `simkit.plotting`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from simkit.plotting import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    VERMILION,
    draw_line,
    new_axes,
    new_panels,
    short_number,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, "#56B4E9", "#B8860B")
DASHES = ("-", "--", ":")


def _look(k: int) -> tuple[str, str]:
    """Colour and dashes of the k-th curve: all colours first, then the same ones dashed."""
    return COLOURS[k % len(COLOURS)], DASHES[k // len(COLOURS) % len(DASHES)]


def _beside(ax: Axes, entries: int) -> None:
    """Put the legend where it hides nothing once there are many entries."""
    if entries > 4:
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    else:
        ax.legend(loc="best")


@styled
def radial_distribution(
    distances: ArrayLike, total: ArrayLike, pairs: Mapping[tuple[str, str], ArrayLike], normalised: bool
) -> Axes:
    """Plot a radial distribution function, or the distances in a molecule, in total and for every pair of elements.

    Args:
        distances: [B] angstrom; total, pairs: [B], g(r) if ``normalised``, else pairs per angstrom. The total of a system of one element
            is left out: it is the pair's.
    """
    r = np.asarray(distances, dtype=float)
    ax = new_axes(6.0, 3.8)
    for k, ((first, second), values) in enumerate(pairs.items()):
        colour, dashes = _look(k)
        ax.plot(r, np.asarray(values, dtype=float), color=colour, linestyle=dashes, label=f"{first}–{second}")
    if len(pairs) > 1 and normalised:
        ax.plot(r, np.asarray(total, dtype=float), color="black", linewidth=1.0, label="all")
    if normalised:
        ax.axhline(1.0, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    ax.set(xlabel="distance (Å)", xlim=(0, float(r[-1] + r[0])), ylim=(0, None))
    ax.set(ylabel="g(r)" if normalised else "pairs per Å")
    ax.set_title("Radial distribution function" if normalised else "Distances between atoms")
    _beside(ax, len(pairs) + 1)
    return ax


@dataclass(frozen=True)
class DiffusionLine:
    """The line through a mean squared displacement; ``text`` stands in the legend.

    Attributes:
        slope: angstrom^2/fs; intercept: angstrom^2; start, end: of the fit, fs; text: such as "D = 2.3(1)".
    """

    slope: float
    intercept: float
    start: float
    end: float
    text: str


@styled
def mean_squared_displacement(
    lags: ArrayLike, displacements: Mapping[str, ArrayLike], lines: Mapping[str, DiffusionLine]
) -> list[Axes]:
    """Plot mean squared displacements on linear and on logarithmic axes, with the fitted lines over their range.

    Args:
        lags: [T] fs, from 0; the second half, which few time origins enter, is not drawn.
        displacements: name -> [T] angstrom^2; lines: name -> what was fitted; may be empty.
    """
    t = np.asarray(lags, dtype=float)
    shown = max(2, len(t) // 2)
    in_ps = t[shown - 1] >= 2000
    unit = 1000.0 if in_ps else 1.0
    panels = new_panels(2, 5.0, 3.8)
    for k, (name, values) in enumerate(displacements.items()):
        colour, _ = _look(k)
        y = np.asarray(values, dtype=float)[:shown]
        line = lines.get(name)
        label = name if line is None else f"{name}: {line.text}"
        draw_line(panels[0], t[:shown] / unit, y, colour, label)
        positive = y > 0
        panels[1].plot(t[:shown][positive] / unit, y[positive], color=colour, linewidth=1.2)
        if line is not None:
            ends = np.array([line.start, line.end])
            for ax in panels:
                ax.plot(ends / unit, line.slope * ends + line.intercept, color="black", linestyle="--", linewidth=1.2)
    for ax in panels:
        ax.set(xlabel="time (ps)" if in_ps else "time (fs)", ylabel="mean squared displacement (Å$^2$)")
    panels[0].set(xlim=(0, None), ylim=(0, None), title="Mean squared displacement")
    panels[0].legend(loc="best")
    panels[1].set(xscale="log", yscale="log", title="on logarithmic axes")
    return panels


@styled
def velocity_autocorrelation(lags: ArrayLike, correlation: ArrayLike, longest: float = 2000.0) -> Axes:
    """Plot a normalised velocity autocorrelation against time in fs, up to ``longest`` fs or half the trajectory."""
    t, y = np.asarray(lags, dtype=float), np.asarray(correlation, dtype=float)
    shown = (t <= longest) & (np.arange(len(t)) <= max(1, len(t) // 2))
    ax = new_axes()
    ax.axhline(0.0, color=GREY, linewidth=0.8, zorder=0)
    draw_line(ax, t[shown], y[shown], BLUE)
    ax.set(xlabel="time (fs)", ylabel="autocorrelation", title="Velocity autocorrelation, mass-weighted")
    ax.margins(x=0.01)
    return ax


@styled
def vibrational_spectrum(
    wavenumbers: ArrayLike, total: ArrayLike, species: Mapping[str, ArrayLike], resolution: float
) -> Axes:
    """Plot a vibrational spectrum and the parts of it that are in each element.

    Args:
        wavenumbers: [F] cm^-1; total, species: [F] share of the kinetic energy per cm^-1; resolution: cm^-1.
    """
    x, whole = np.asarray(wavenumbers, dtype=float), np.asarray(total, dtype=float) * 1000
    shown = x <= _last_above(x, whole)
    ax = new_axes(6.4, 3.6)
    for k, (name, values) in enumerate(species.items()):
        ax.plot(x[shown], np.asarray(values, dtype=float)[shown] * 1000, color=_look(k)[0], label=name)
    if len(species) > 1:
        ax.plot(x[shown], whole[shown], color="black", linewidth=0.9, label="all", zorder=1.5)
    ax.set(xlabel="wavenumber (cm$^{-1}$)", ylabel="share of kinetic energy (10$^{-3}$ cm)")
    ax.set(ylim=(0, None), title=f"Vibrational spectrum (resolution {short_number(resolution)} cm$^{{-1}}$)")
    ax.margins(x=0.01)
    ax.legend(loc="best")
    return ax


def _last_above(x: np.ndarray, y: np.ndarray) -> float:
    """Where a spectrum ends: a little beyond the last point above a thousandth of its maximum."""
    high = np.flatnonzero(y > 1e-3 * y.max())
    return min(float(x[high[-1]]) * 1.1 + 50.0, float(x[-1]))


@dataclass(frozen=True)
class BlockPanel:
    """One panel of `block_averages`.

    Attributes:
        title: with the unit; time: [L] length of the blocks; errors, uncertainties: [L]; chosen: index of the length taken.
        converged: whether there is a plateau.
    """

    title: str
    time: ArrayLike
    errors: ArrayLike
    uncertainties: ArrayLike
    chosen: int
    converged: bool


@styled
def block_averages(panels: Sequence[BlockPanel], time_label: str) -> list[Axes]:
    """Plot the standard error of means against the length of the blocks, with the length that was chosen."""
    row = new_panels(len(panels), 4.2, 3.4)
    for ax, panel in zip(row, panels, strict=True):
        x, y = np.asarray(panel.time, dtype=float), np.asarray(panel.errors, dtype=float)
        ax.errorbar(
            x, y, np.asarray(panel.uncertainties, dtype=float), color=BLUE, marker=".", linewidth=1.0, capsize=2
        )
        text = f"chosen: {short_number(float(y[panel.chosen]))}" if panel.converged else "no plateau: run longer"
        ax.plot(x[panel.chosen], y[panel.chosen], "o", color=VERMILION, markersize=7, zorder=3, label=text)
        ax.set(xscale="log", xlabel=time_label, ylabel="standard error of the mean", title=panel.title, ylim=(0, None))
        ax.legend(loc="best")
    return row
