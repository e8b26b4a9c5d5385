"""Plots of learned motion beside the true one: arrays in, matplotlib Axes out, as in `simkit.plotting`.

The true motion is black, learned ones are coloured in the order in which they are given. Points that are not finite leave gaps.
Learning curves are drawn by `simkit.plotting.learning_curve`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from simkit.errors import DataError
from simkit.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, draw_line, new_axes, new_panels, styled
from simkit.surrogates.comparison import median

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
COLOURS = (VERMILION, BLUE, GREEN, ORANGE, PURPLE, "#56B4E9", "#B8860B")
_LEVELS = 14


def colour_of(index: int) -> str:
    """Return the colour of the learned motion number ``index``."""
    return COLOURS[index % len(COLOURS)]


@styled
def phase_portrait(
    true: ArrayLike,
    learned: Mapping[str, ArrayLike],
    *,
    coordinate: int = 0,
    labels: tuple[str, str] = ("q", "p"),
    axes: Axes | None = None,
) -> Axes:
    """Plot trajectories in the plane of one coordinate and its momentum or velocity, learned ones over the true ones.

    Args:
        true: states [S, T, 2 D].
        learned: name of a model -> states of the same shape.
        coordinate: which one, from 0.
        labels: of the two axes.
        axes: where to draw; a figure of its own by default.
    """
    ax = axes if axes is not None else new_axes(4.6, 4.2)
    for rank, (name, states) in enumerate({"true": true, **learned}.items()):
        values = _states(states)
        second = values.shape[-1] // 2 + coordinate
        if not 0 <= coordinate < values.shape[-1] // 2:
            raise DataError(f"the coordinate must be 0 to {values.shape[-1] // 2 - 1}; found {coordinate}")
        look = (
            {"color": "black", "linewidth": 2.2, "alpha": 0.45}
            if rank == 0
            else {"color": colour_of(rank - 1), "linewidth": 1.1}
        )
        for sample, trajectory in enumerate(values):
            ax.plot(trajectory[:, coordinate], trajectory[:, second], label=name if sample == 0 else None, **look)  # type: ignore[arg-type]
    ax.set(xlabel=labels[0], ylabel=labels[1])
    _legend(ax)
    return ax


@styled
def error_growth(
    times: ArrayLike,
    errors: Mapping[str, ArrayLike],
    *,
    label: str = "relative error",
    quantiles: tuple[float, float] = (0.25, 0.75),
    lyapunov_time: float | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Plot errors against time on a log scale: the median over trajectories as a line, the range between two quantiles as a band.

    Args:
        times: [T].
        errors: name of a model -> [S, T]; infinite values count in the quantiles and are not drawn.
        label: of the vertical axis.
        quantiles: lower and upper end of the band.
        lyapunov_time: unit of a second time axis on top, where it is given.
        axes: where to draw; a figure of its own by default.
    """
    ax = axes if axes is not None else new_axes()
    t = np.asarray(times, dtype=float)
    for rank, (name, values) in enumerate(errors.items()):
        array = np.asarray(values, dtype=float)
        # Nothing between values: infinite ones have no mean.
        low, middle, high = (
            _drawable(np.quantile(array, level, axis=0, method="nearest"))
            for level in (quantiles[0], 0.5, quantiles[1])
        )
        if len(array) > 1:
            ax.fill_between(t, low, high, color=colour_of(rank), alpha=0.2, linewidth=0)
        ax.plot(t, middle, color=colour_of(rank), label=name)
    ax.set(yscale="log", xlabel="time", ylabel=label)
    ax.margins(x=0.01)
    if lyapunov_time is not None:
        unit = lyapunov_time
        top = ax.secondary_xaxis("top", functions=(lambda x: np.asarray(x) / unit, lambda x: np.asarray(x) * unit))
        top.set_xlabel("Lyapunov times")
    _legend(ax)
    return ax


@styled
def energy_course(
    times: ArrayLike, true: ArrayLike, learned: Mapping[str, ArrayLike], axes: Axes | None = None
) -> Axes:
    """Plot the true energy along the true motion and along learned ones, for every trajectory.

    Args:
        times: [T].
        true: energies [S, T], or [T] of one trajectory.
        learned: name of a model -> energies of the same shape.
        axes: where to draw; a figure of its own by default.
    """
    ax = axes if axes is not None else new_axes()
    t = np.asarray(times, dtype=float)
    for rank, (name, values) in reversed(list(enumerate({"true": true, **learned}.items()))):
        colour = "black" if rank == 0 else colour_of(rank - 1)
        for sample, energies in enumerate(np.atleast_2d(np.asarray(values, dtype=float))):
            draw_line(ax, t, np.where(np.isfinite(energies), energies, np.nan), colour, name if sample == 0 else None)
    ax.set(xlabel="time", ylabel="energy")
    ax.margins(x=0.01)
    handles, names = ax.get_legend_handles_labels()
    _legend(ax, handles[::-1], names[::-1])
    return ax


def energy_grid(
    energy: Callable[[Tensor], Tensor | None],
    x: ArrayLike,
    y: ArrayLike,
    *,
    components: tuple[int, int] = (0, 1),
    state: ArrayLike = (0.0, 0.0),
    dtype: torch.dtype = torch.float64,
) -> Array:
    """Return energies on a grid over two components of the state, [Y, X].

    Args:
        energy: of states [..., 2 D]: the ``energy`` of a model or of a system.
        x, y: values of the two components, [X] and [Y].
        components: their places in the state.
        state: the other components, [2 D].
        dtype: of the states that the function takes; that of a model.

    Raises:
        DataError: if there is no energy.
    """
    first, second = np.meshgrid(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
    states = np.tile(np.asarray(state, dtype=float), (*first.shape, 1))
    states[..., components[0]], states[..., components[1]] = first, second
    with torch.no_grad():
        values = energy(torch.from_numpy(states).to(dtype))
    if values is None:
        raise DataError("this model has no energy to draw")
    result: Array = values.double().numpy()
    return result


@styled
def energy_landscape(
    x: ArrayLike,
    y: ArrayLike,
    learned: ArrayLike,
    true: ArrayLike | None = None,
    *,
    labels: tuple[str, str] = ("q", "p"),
) -> list[Axes]:
    """Plot contours of a learned energy; with the true one, both on the same levels, and their difference.

    The zero of a learned energy is free: its mean over the grid is brought to that of the true one, or else its lowest value to zero.

    Args:
        x, y: [X] and [Y]; learned, true: [Y, X], as from `energy_grid`.
        labels: of the two axes.
    """
    found = np.asarray(learned, dtype=float)
    if true is None:
        panels = {"learned": found - np.nanmin(found)}
    else:
        reference = np.asarray(true, dtype=float)
        found = found + (reference - found).mean()
        panels = {"true": reference, "learned": found, "learned − true": found - reference}
    levels = _levels([values for name, values in panels.items() if name in ("true", "learned")], _LEVELS)
    row = new_panels(len(panels), 4.0, 3.4)
    for ax, (name, values) in zip(row, panels.items(), strict=True):
        difference = name not in ("true", "learned")
        limit = float(np.abs(values).max()) or 1.0
        used = _levels([np.array([-limit, limit])], _LEVELS) if difference else levels
        filled = ax.contourf(x, y, values, used, cmap="RdBu_r" if difference else "viridis")
        if not difference:
            ax.contour(x, y, values, used, colors="white", linewidths=0.5)
        bar = ax.figure.colorbar(filled, ax=ax, shrink=0.85, aspect=22, pad=0.02)
        bar.outline.set_visible(False)
        ax.set(title=name, xlabel=labels[0], ylabel=labels[1])
        ax.grid(visible=False)
    return row


@styled
def comparison(
    values: Mapping[str, Sequence[float | None]],
    label: str,
    *,
    published: Mapping[str, float] | None = None,
    scale: Literal["log", "linear"] = "log",
    axes: Axes | None = None,
) -> Axes:
    """Plot a figure of merit of several models over seeds: every seed as a dot, the range as a line, the median as a bar across it.

    Args:
        values: name of a model -> the value of each seed; None or infinite values are counted beside the name.
        label: of the values.
        published: name of one of these models -> the value in its paper, drawn as a diamond.
        scale: of the values.
        axes: where to draw; a figure of its own by default.
    """
    ax = axes if axes is not None else new_axes(5.6, 1.3 + 0.42 * len(values))
    names = []
    for row, (name, seeds) in enumerate(values.items()):
        array = np.array([np.inf if value is None else value for value in seeds], dtype=float)
        kept, lost = array[np.isfinite(array)], int((~np.isfinite(array)).sum())
        names.append(f"{name} ({lost} of {len(array)} infinite)" if lost else name)
        ax.plot(kept, np.full(len(kept), row), "o", color=colour_of(row), markersize=4, alpha=0.7)
        if len(kept):
            ax.plot([kept.min(), kept.max()], [row, row], color=colour_of(row), linewidth=2)
        middle = median(seeds)
        if np.isfinite(middle):
            ax.plot([middle], [row], "|", color=colour_of(row), markersize=16, markeredgewidth=2.5)
        if published and name in published:
            ax.plot([published[name]], [row], "D", color=GREY, markersize=5, zorder=4)
    if published:
        ax.plot([], [], "D", color=GREY, markersize=5, label="published")
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0))
    ax.set(yticks=range(len(names)), yticklabels=names, xlabel=label, xscale=scale, ylim=(len(names) - 0.4, -0.6))
    ax.grid(visible=False, axis="y")
    return ax


def _states(states: ArrayLike) -> Array:
    array = np.asarray(states, dtype=float)
    if array.ndim != 3 or array.shape[-1] % 2:
        raise DataError(f"states must be [trajectories, times, 2 D]; found shape {array.shape}")
    return array


def _drawable(values: Array) -> Array:
    """Zeros and infinite values have no place on a log axis."""
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def _levels(values: Sequence[Array], count: int) -> Array:
    """Round numbers that reach from the lowest to the highest value."""
    from matplotlib.ticker import MaxNLocator

    low, high = min(np.nanmin(v) for v in values), max(np.nanmax(v) for v in values)
    return np.asarray(MaxNLocator(count).tick_values(low, high if high > low else low + 1.0))


def _legend(ax: Axes, *entries: Sequence[object]) -> None:
    """Beside the panel: curves fill all of it."""
    ax.legend(*entries, loc="upper left", bbox_to_anchor=(1.0, 1.0))
