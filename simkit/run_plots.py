"""Plots of a simulation's course: arrays over time in, matplotlib Axes out, as in `simkit.plotting`.

Values are [T], or [T, B] for several replicas: their mean is drawn as a line, and their range as a band.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simkit.plotting import BLUE, VERMILION, draw_line, new_axes, short_number, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]


def _by_replica(values: ArrayLike) -> Floats:
    """As [T, B]."""
    array = np.asarray(values, dtype=float)
    return array[:, None] if array.ndim == 1 else array


def _time_axis(ax: Axes, time_fs: ArrayLike) -> Floats:
    """Label the time axis and return the times in its unit."""
    time = np.asarray(time_fs, dtype=float)
    in_ps = len(time) > 0 and np.ptp(time) >= 2000
    ax.set_xlabel("time (ps)" if in_ps else "time (fs)")
    ax.margins(x=0.01)
    return time / 1000 if in_ps else time


def _draw(ax: Axes, x: Floats, values: Floats, colour: str, label: str | None = None) -> None:
    """The mean over the replicas, and their range."""
    if values.shape[1] > 1:
        ax.fill_between(x, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.2, linewidth=0)
    draw_line(ax, x, values.mean(axis=1), colour, label)


def _below(ax: Axes, columns: int) -> None:
    ax.legend(ncols=columns, loc="lower center", bbox_to_anchor=(0.5, -0.32))


def _title(text: str, values: Floats) -> str:
    return f"{text}: mean and range of {values.shape[1]} replicas" if values.shape[1] > 1 else text


@styled
def energy_trace(time_fs: ArrayLike, potential: ArrayLike, kinetic: ArrayLike, conserved: ArrayLike) -> Axes:
    """Plot potential and kinetic energy and the conserved quantity, eV; each replica counts from its potential energy at the start."""
    v, k, c = _by_replica(potential), _by_replica(kinetic), _by_replica(conserved)
    ax = new_axes()
    x = _time_axis(ax, time_fs)
    _draw(ax, x, v - v[0], BLUE, "potential")
    _draw(ax, x, k, VERMILION, "kinetic")
    _draw(ax, x, c - v[0], "black", "conserved")
    zero = f" (zero: potential energy at the start, {v[0, 0]:.3f} eV)" if v.shape[1] == 1 else ""
    ax.set(ylabel="energy (eV)", title=_title("Energy", v) + zero)
    _below(ax, 3)
    return ax


@styled
def course(time_fs: ArrayLike, values: ArrayLike, name: str, unit: str) -> Axes:
    """Plot a quantity such as the temperature in K, with its mean over time and replicas."""
    y = _by_replica(values)
    ax = new_axes()
    _draw(ax, _time_axis(ax, time_fs), y, BLUE)
    ax.axhline(y.mean(), color="black", linewidth=1.0, label=f"mean {short_number(y.mean())} {unit}")
    ax.set(ylabel=f"{name} ({unit})", title=_title(name.capitalize(), y))
    _below(ax, 1)
    return ax


@styled
def drift_plot(time_fs: ArrayLike, conserved: ArrayLike, atoms: ArrayLike, drift: float) -> Axes:
    """Plot how the conserved quantity departs from its start, in meV/atom, with the fitted line.

    Args:
        conserved: eV; atoms: of each replica, a number or [B]; drift: slope of the fitted line, meV/atom/ps.
    """
    t, energy = np.asarray(time_fs, dtype=float), _by_replica(conserved)
    change = (energy - energy[0]) / np.asarray(atoms) * 1000
    ax = new_axes()
    x = _time_axis(ax, t)
    _draw(ax, x, change, BLUE)
    line = change.mean() + drift * (t - t.mean()) / 1000
    ax.plot(x[[0, -1]], line[[0, -1]], color=VERMILION, linestyle="--", label=f"fit: {short_number(drift)} meV/atom/ps")
    ax.set(ylabel="change (meV/atom)", title=_title("Conserved quantity", change))
    ax.legend(loc="best")
    return ax
