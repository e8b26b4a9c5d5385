"""Plots of posteriors and of what they predict: arrays in, matplotlib Axes out, as in `simkit.plotting`.

Ranks, coverage and distances are drawn by `simkit.inference.calibration.plots`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

from simkit.errors import DataError
from simkit.inference.priors import Array
from simkit.inference.simulator import Observable
from simkit.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, new_axes, new_panels, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, "#56B4E9", "#B8860B")
MASSES = (0.95, 0.68)
"""Shares of the posterior within the contours."""
BINS = 40


def with_unit(name: str, unit: str) -> str:
    """Return the label of an axis."""
    return f"{name} ({unit})" if unit else name


@styled
def corner(
    samples: Mapping[str, ArrayLike],
    names: Sequence[str],
    units: Sequence[str],
    *,
    truth: ArrayLike | None = None,
    prior: ArrayLike | None = None,
    support: tuple[ArrayLike, ArrayLike] | None = None,
) -> list[Axes]:
    """Plot the densities of parameters and of their pairs, with contours that hold 68 % and 95 % of the samples.

    Args:
        samples: name -> samples of a posterior [N, D]; the first one is filled and gives the limits and the numbers above the panels
            (median and 68 % interval).
        names, units: of the parameters.
        truth: [D], marked.
        prior: samples of the prior, [N, D]; their densities are drawn in grey.
        support: lowest and highest possible values, [D] each; marked where they are near.

    Returns:
        Panels of the lower triangle, row by row: (0, 0), (1, 0), (1, 1), ...
    """
    from matplotlib.figure import Figure

    sets = {name: _samples(values, len(names)) for name, values in samples.items()}
    first = next(iter(sets.values()))
    limits = [_limits(first[:, k], k, truth, support) for k in range(len(names))]
    size = len(names)
    side = max(1.9, 4.2 / size)
    figure = Figure(figsize=(side * size + 0.6, side * size + 0.4), layout="constrained")
    panels = []
    for i in range(size):
        for j in range(i + 1):
            ax = figure.add_subplot(size, size, i * size + j + 1)
            ax.grid(visible=False)
            if i == j:
                _densities(
                    ax,
                    {n: v[:, i] for n, v in sets.items()},
                    limits[i],
                    None if prior is None else _samples(prior, size)[:, i],
                )
                ax.set_title(_interval_text(first[:, i]), fontsize=9)
            else:
                for rank, values in enumerate(sets.values()):
                    _contours(
                        ax, values[:, [j, i]], (limits[j], limits[i]), COLOURS[rank % len(COLOURS)], filled=rank == 0
                    )
                ax.set(xlim=_with_margin(limits[j]), ylim=_with_margin(limits[i]))
            _marks(ax, i, j, truth, support)
            ax.locator_params(nbins=4)
            ax.tick_params(labelleft=j == 0 and i > 0, left=i != j, labelbottom=i == size - 1)
            if i == size - 1:
                ax.set_xlabel(with_unit(names[j], units[j]))
            if j == 0 and i > 0:
                ax.set_ylabel(with_unit(names[i], units[i]))
            panels.append(ax)
    handles, labels = panels[0].get_legend_handles_labels()
    if len(handles) > 1:
        figure.legend(handles, labels, loc="upper right")
    return panels


def _samples(values: ArrayLike, size: int) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != size or len(array) < 1:
        raise DataError(f"expected samples [N, {size}]; found shape {array.shape}")
    return array


def _limits(
    values: Array, k: int, truth: ArrayLike | None, support: tuple[ArrayLike, ArrayLike] | None
) -> tuple[float, float]:
    """The range of nearly all samples and the truth, with room, within the support."""
    low, high = np.quantile(values, [0.002, 0.998]).tolist()
    if truth is not None:
        low, high = min(low, float(np.asarray(truth)[k])), max(high, float(np.asarray(truth)[k]))
    room = 0.08 * (high - low) or abs(high) or 1.0
    bottom, top = (-np.inf, np.inf) if support is None else (float(np.asarray(bound)[k]) for bound in support)
    return max(low - room, bottom), min(high + room, top)


def _with_margin(limits: tuple[float, float]) -> tuple[float, float]:
    """A little more on both sides, so that a bound can be seen."""
    margin = 0.02 * (limits[1] - limits[0])
    return limits[0] - margin, limits[1] + margin


def _densities(ax: Axes, sets: Mapping[str, Array], limits: tuple[float, float], prior: Array | None) -> None:
    edges = np.linspace(*limits, BINS + 1)
    if prior is not None:
        ax.stairs(_smooth(prior, edges), edges, color=GREY, linewidth=1.0, linestyle=":", label="prior")
    for rank, (name, values) in enumerate(sets.items()):
        heights, colour = _smooth(values, edges), COLOURS[rank % len(COLOURS)]
        if rank == 0:
            ax.stairs(heights, edges, color=colour, alpha=0.25, fill=True)
        ax.stairs(heights, edges, color=colour, label=name)
    ax.set(xlim=_with_margin(limits), ylim=(0, None), yticks=[])
    ax.spines["left"].set_visible(False)


def _smooth(values: Array, edges: Array) -> Array:
    """Density per bin, lightly smoothed."""
    counts, _ = np.histogram(values, edges)
    result: Array = gaussian_filter(counts / (len(values) * np.diff(edges)), 0.8, mode="nearest")
    return result


def _contours(ax: Axes, values: Array, limits: Sequence[tuple[float, float]], colour: str, *, filled: bool) -> None:
    edges = [np.linspace(*limit, BINS + 1) for limit in limits]
    counts, _, _ = np.histogram2d(values[:, 0], values[:, 1], bins=edges)
    smooth = gaussian_filter(counts, 1.6, mode="nearest").T
    levels = _levels(smooth, len(values) * np.array(MASSES))
    # Up to the edges of the outermost bins, where the support may end.
    centres = [np.concatenate([edge[:1], (edge[:-1] + edge[1:]) / 2, edge[-1:]]) for edge in edges]
    density = np.pad(smooth, 1, mode="edge")
    if filled:
        for level, alpha in zip(levels, (0.2, 0.35), strict=False):
            ax.contourf(*centres, density, [level, np.inf], colors=[colour], alpha=alpha)
    ax.contour(*centres, density, levels, colors=[colour], linewidths=1.1)


def _levels(density: Array, masses: Array) -> list[float]:
    """Rising levels above which the density holds the given masses."""
    ordered = np.sort(density.ravel())[::-1]
    total = np.minimum(np.searchsorted(np.cumsum(ordered), masses), ordered.size - 1)
    return sorted({float(level) for level in ordered[total] if level > 0})


def _marks(ax: Axes, i: int, j: int, truth: ArrayLike | None, support: tuple[ArrayLike, ArrayLike] | None) -> None:
    if support is not None:
        for bound in support:
            across, up = float(np.asarray(bound)[j]), float(np.asarray(bound)[i])
            if ax.get_xlim()[0] <= across <= ax.get_xlim()[1]:
                ax.axvline(across, color=GREY, linewidth=1.2)
            if i != j and ax.get_ylim()[0] <= up <= ax.get_ylim()[1]:
                ax.axhline(up, color=GREY, linewidth=1.2)
    if truth is not None:
        values = np.asarray(truth, dtype=float)
        ax.axvline(values[j], color="black", linewidth=0.9, linestyle="--")
        if i != j:
            ax.axhline(values[i], color="black", linewidth=0.9, linestyle="--")
            ax.plot(values[j], values[i], "s", color="black", markersize=4)


def _interval_text(values: Array) -> str:
    """Median and 68 % interval, with two digits of the interval's smaller half."""
    low, middle, high = np.quantile(values, [0.16, 0.5, 0.84]).tolist()
    if not low < middle < high:
        return f"{middle:.4g}"
    size = math.floor(math.log10(max(abs(middle), high - low)))
    power = 0 if -3 <= size < 5 else size
    half = min(middle - low, high - middle) / 10**power
    digits = max(0, 1 - math.floor(math.log10(half)))
    number, up, down = (f"{v / 10**power:.{digits}f}" for v in (middle, high - middle, middle - low))
    return f"${number}^{{+{up}}}_{{-{down}}}" + (f" \\cdot 10^{{{power}}}$" if power else "$")


@styled
def predictive_bands(
    outputs: Mapping[str, ArrayLike], observables: Sequence[Observable], observation: ArrayLike | None = None
) -> list[Axes]:
    """Plot what simulations give beside what was observed: bands of 68 % and 95 % and the median over each observable's axis.

    Numbers are drawn as bars, series with C components as C panels.

    Args:
        outputs: name, such as "prior" and "posterior" -> outputs [N, K].
        observables: what they consist of.
        observation: [K].
    """
    sets = {name: _samples(x, sum(o.size for o in observables)) for name, x in outputs.items()}
    observed = None if observation is None else np.asarray(observation, dtype=np.float64)
    wanted: list[tuple[Observable, str, NDArray[np.int64]]] = []
    first = 0
    for o in observables:
        columns = np.arange(first, first + o.size)
        first += o.size
        if len(o.shape) < 2:
            wanted.append((o, o.name, columns))
        else:
            wanted += [(o, f"{o.name} [{k}]", c) for k, c in enumerate(columns.reshape(o.shape[0], -1).T)]
    row = new_panels(len(wanted), 4.2, 3.4)
    for ax, (o, title, columns) in zip(row, wanted, strict=True):
        parts = {name: x[:, columns] for name, x in sets.items()}
        draw = _draw_course if o.shape else _draw_numbers
        draw(ax, o, parts, None if observed is None else observed[columns])
        ax.set_title(title)
    row[0].legend(fontsize=8)
    return row


def _draw_course(ax: Axes, o: Observable, parts: Mapping[str, Array], observed: Array | None) -> None:
    axis = np.array(o.axis) if o.axis else np.arange(o.shape[0], dtype=float)
    for rank, (name, x) in enumerate(parts.items()):
        colour = COLOURS[rank % len(COLOURS)]
        outer, low, middle, high, top = np.quantile(x, [0.025, 0.16, 0.5, 0.84, 0.975], axis=0)
        ax.fill_between(axis, outer, top, color=colour, alpha=0.15, linewidth=0)
        ax.fill_between(axis, low, high, color=colour, alpha=0.3, linewidth=0)
        ax.plot(axis, middle, color=colour, label=name)
    if observed is not None:
        marker = "o" if len(axis) <= 60 else None
        ax.plot(axis, observed, color="black", marker=marker, markersize=3, linewidth=0.9, label="observed")
    ax.set(xlabel=o.axis_label or "index", ylabel=with_unit(o.name, o.unit))
    ax.margins(x=0.01 if len(axis) > 10 else 0.05)


def _draw_numbers(ax: Axes, o: Observable, parts: Mapping[str, Array], observed: Array | None) -> None:
    for rank, (name, x) in enumerate(parts.items()):
        colour = COLOURS[rank % len(COLOURS)]
        outer, low, middle, high, top = np.quantile(x[:, 0], [0.025, 0.16, 0.5, 0.84, 0.975]).tolist()
        ax.plot([outer, top], [rank, rank], color=colour, linewidth=1.4, solid_capstyle="butt")
        ax.plot([low, high], [rank, rank], color=colour, linewidth=7, alpha=0.6, solid_capstyle="butt")
        ax.plot(middle, rank, "|", color="white", markersize=9)
        ax.plot([], [], color=colour, label=name)
    if observed is not None:
        ax.axvline(float(observed[0]), color="black", linewidth=1.0, label="observed")
    ax.set(xlabel=with_unit(o.name, o.unit), yticks=range(len(parts)), ylim=(len(parts) - 0.4, -0.6))
    ax.set_yticklabels(list(parts))


@styled
def accuracy_curves(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    label: str,
    *,
    target: float | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Plot a figure of merit against the number of simulations: the median over seeds as a line, their range as a band.

    Args:
        curves: name -> numbers of simulations [C] and values [S, C], of S seeds; nan where a seed has none.
        label: of the figure of merit.
        target: a value to reach, marked.
        axes: where to draw; a figure of its own by default.
    """
    ax = axes if axes is not None else new_axes()
    for rank, (name, (counts, values)) in enumerate(curves.items()):
        x, y = np.asarray(counts, dtype=float), np.atleast_2d(np.asarray(values, dtype=float))
        if y.shape[1:] != x.shape:
            raise DataError(
                f"{name}: expected values [S, {len(x)}] for {len(x)} numbers of simulations; found {y.shape}"
            )
        known = np.isfinite(y).any(axis=0)
        x, y, colour = x[known], y[:, known], COLOURS[rank % len(COLOURS)]
        if len(y) > 1:
            ax.fill_between(x, np.nanmin(y, axis=0), np.nanmax(y, axis=0), color=colour, alpha=0.18, linewidth=0)
        ax.plot(x, np.nanmedian(y, axis=0), color=colour, marker="o", markersize=4, label=name)
    if target is not None:
        ax.axhline(target, color=GREY, linestyle="--", linewidth=0.9)
    ax.set(xscale="log", xlabel="simulations", ylabel=label)
    ax.legend()
    return ax
