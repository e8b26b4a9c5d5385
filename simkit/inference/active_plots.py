"""Plots of active learning: arrays in, matplotlib Axes out, as in `simkit.plotting`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from simkit.plotting import BLUE, GREY, VERMILION, new_axes, new_panels, plain_log_ticks, short_number, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 12
"""Groups of atoms with the same number in each that a calibration is averaged over."""


@styled
def learning_course(
    labelled: Sequence[int], errors: Mapping[str, Sequence[float]], disagreements: Mapping[str, Sequence[float]]
) -> list[Axes]:
    """Plot force errors and disagreements against the number of labelled frames.

    Args:
        labelled: of each round. errors, disagreements: name -> one value for each round, eV/angstrom; nan where there is none.
    """
    from matplotlib.ticker import MaxNLocator

    panels = new_panels(2, 4.6, 3.4)
    groups = (("force error", errors, "MAE (meV/Å)"), ("disagreement in dynamics", disagreements, "meV/Å"))
    for ax, (title, lines, unit) in zip(panels, groups, strict=True):
        for (name, values), colour in zip(lines.items(), (BLUE, VERMILION, GREY), strict=False):
            y = 1000 * np.asarray(values, dtype=float)
            kept = np.isfinite(y)
            if kept.any():
                ax.plot(np.asarray(labelled)[kept], y[kept], "o-", color=colour, markersize=4, label=name)
        if ax.lines:
            ax.set_yscale("log")
            plain_log_ticks(ax)
            ax.legend()
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(title=title, xlabel="labelled frames", ylabel=unit)
    return panels


@styled
def disagreement_histograms(rounds: Mapping[str, ArrayLike], upper: float) -> Axes:
    """Plot how the largest disagreements of an atom in the frames visited are distributed, a line for each round.

    Args:
        rounds: name -> [C] eV/angstrom. upper: where trajectories ended, eV/angstrom.
    """
    import matplotlib

    values = {name: 1000 * np.asarray(v, dtype=float) for name, v in rounds.items() if np.size(v)}
    ax = new_axes()
    if values:
        positive = np.concatenate([v[v > 0] for v in values.values()])
        edges = np.geomspace(positive.min(), positive.max() * 1.01, 40)
        colours = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, len(values)))
        for (name, v), colour in zip(values.items(), colours, strict=True):
            counts, _ = np.histogram(v, edges)
            ax.stairs(
                counts / len(v),
                edges,
                color=colour,
                label=f"{name}: median {short_number(float(np.median(v)))}",
                linewidth=1.4,
            )
        ax.set_xscale("log")
        if edges[-1] > 1000 * upper:
            ax.axvline(1000 * upper, color="black", linestyle="--", linewidth=0.8)
        ax.legend(title="meV/Å", fontsize=8)
    ax.set(
        title="Disagreement during dynamics", xlabel="largest disagreement of an atom (meV/Å)", ylabel="share of frames"
    )
    return ax


@styled
def disagreement_calibration(disagreement: ArrayLike, error: ArrayLike) -> Axes:
    """Plot true errors against disagreements of atoms, and the root mean squares of groups of atoms of like disagreement.

    Args:
        disagreement, error: [A] eV/angstrom; the error is the norm of the difference between mean and label.
    """
    x, y = 1000 * np.asarray(disagreement, dtype=float), 1000 * np.asarray(error, dtype=float)
    ax = new_axes(4.4, 4.2)
    usable = (x > 0) & (y > 0)
    x, y = x[usable], y[usable]
    if len(x) == 0:
        ax.set(title="no atoms to compare")
        return ax
    ax.scatter(x, y, s=5, color=BLUE, alpha=0.25, linewidths=0, rasterized=True)
    groups = np.array_split(np.argsort(x, kind="stable"), min(BINS, len(x)))
    means = np.array([(np.sqrt((x[g] ** 2).mean()), np.sqrt((y[g] ** 2).mean())) for g in groups])
    ax.plot(means[:, 0], means[:, 1], "o-", color=VERMILION, markersize=4, label="RMS of groups")
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    ax.plot([low, high], [low, high], color="black", linewidth=0.8, linestyle="--", label="error = disagreement")
    ax.set(
        xscale="log", yscale="log", xlabel="disagreement of an atom (meV/Å)", ylabel="error of the mean force (meV/Å)"
    )
    ax.set_title("New frames, before training on them")
    ax.legend()
    return ax
