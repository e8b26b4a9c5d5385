"""Plots: arrays in, matplotlib Axes out. No pyplot, no global figure, nothing shown on a screen; `save` writes the file."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simkit.files import atomic_path
from simkit.label_placement import place_boxes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette, distinguishable with every common colour blindness.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#666666"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 5),
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "mathtext.default": "regular",
}
DENSE = 1000  # beyond this many points a parity plot is coloured by their density
MOST_IN_A_ROW = 5  # panels side by side
LINE_POINTS = 4000  # longer traces are drawn as the range within each bin

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def styled(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Run with simkit's style; matplotlib's own settings are as before afterwards."""

    @functools.wraps(function)
    def wrapper(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return function(*args, **kwargs)

    return wrapper


def save(figure: Figure | Axes, path: str | os.PathLike[str]) -> None:
    """Write a figure, or the one that an Axes belongs to; the suffix names the format (.png, .pdf, .svg). Atomic.

    Raises:
        OutputError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    whole = figure if isinstance(figure, Figure) else figure.figure
    with atomic_path(path) as temporary:
        whole.savefig(temporary, dpi=160)  # type: ignore[union-attr]


def new_axes(width: float = 5.2, height: float = 3.6) -> Axes:
    """Return the one panel of a new figure, of a size in inches."""
    return new_panels(1, width, height)[0]


def new_panels(count: int, width: float, height: float) -> list[Axes]:
    """Return the panels of a new figure side by side, in rows of equal length where there are more than fit into one."""
    from matplotlib.figure import Figure

    rows = math.ceil(count / MOST_IN_A_ROW)
    columns = math.ceil(count / rows)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    if rows > 1:
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    return [figure.add_subplot(rows, columns, k + 1) for k in range(count)]


@styled
def learning_curve(
    rows: Sequence[Mapping[str, float | None]], units: Mapping[str, tuple[str, float]] | None = None
) -> list[Axes]:
    """Plot what was logged per epoch: one panel for each quantity, with training and validation together, on a log scale.

    A quantity that falls below zero, as a log-likelihood may, has a linear scale.

    Args:
        rows: one mapping per epoch with ``epoch`` and columns called ``train_<quantity>`` or ``valid_<quantity>``; other columns are left
            out. Missing values (None or nan) leave gaps. ``*_mae`` and ``*_rmse`` are in eV and angstrom.
        units: name of a quantity without ``_mae`` -> the unit that its errors are shown in ("" for none) and the factor to it; meV by
            default.
    """
    epochs = np.array([row["epoch"] for row in rows], dtype=float)
    columns = dict.fromkeys(name for row in rows for name in row if name.startswith(("train_", "valid_")))
    quantities = list(dict.fromkeys(name.split("_", 1)[1] for name in columns)) or ["loss"]
    panels = new_panels(len(quantities), 4.2, 3.4)
    for ax, quantity in zip(panels, quantities, strict=True):
        title, unit, factor = _describe(quantity, units)
        negative = False
        for prefix, label, colour in (("train_", "training", BLUE), ("valid_", "validation", VERMILION)):
            values = np.array([_number(row.get(prefix + quantity)) for row in rows]) * factor
            kept = np.isfinite(values) & (values != 0)
            negative |= bool((values[kept] < 0).any())
            if kept.any():
                ax.plot(epochs[kept], values[kept], color=colour, label=label, marker="." if kept.sum() < 30 else None)
        if ax.lines and not negative:
            ax.set_yscale("log")
            plain_log_ticks(ax)
        ax.set(title=title, xlabel="epoch", ylabel=unit)
        if ax.lines:
            ax.legend()
    return panels


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _describe(quantity: str, given: Mapping[str, tuple[str, float]] | None = None) -> tuple[str, str, float]:
    """Title, axis label and factor of a logged quantity."""
    kind = quantity.removesuffix("_per_atom").rsplit("_", 1)[-1]
    if kind not in ("mae", "rmse"):
        return quantity.replace("_", " "), quantity.replace("_", " "), 1.0
    name, per_atom = quantity.removesuffix("_per_atom").rsplit("_", 1)[0], quantity.endswith("_per_atom")
    units = {"energy": "meV", "forces": "meV/Å", "stress": "meV/Å$^3$", "dipole": "me·Å"}
    unit, factor = (given or {}).get(name, (units.get(name, "10$^{-3}$ units"), 1000.0))
    unit = f"{unit}{'/atom' if per_atom else ''}"
    return name.replace("_", " "), f"{kind.upper()} ({unit})" if unit else kind.upper(), factor


def plain_log_ticks(ax: Axes, which: Literal["x", "y"] = "y") -> None:
    """Write numbers instead of powers of ten; on an axis that spans less than two decades label others between them as well."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis, (low, high) = (ax.yaxis, ax.get_ylim()) if which == "y" else (ax.xaxis, ax.get_xlim())
    between = (
        (1.0,) if high >= 100 * low else (1.0, 2.0, 5.0) if high >= 8 * low else (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
    )
    axis.set_major_locator(LogLocator(subs=between))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


@styled
def parity(reference: ArrayLike, predicted: ArrayLike, unit: str, label: str, axes: Axes | None = None) -> Axes:
    """Plot predicted against reference values, coloured by density where there are many, with MAE and RMSE in the corner.

    Args:
        reference, predicted: same shape; components of vectors count one by one.
        unit: of the values, such as "eV/Å"; label: what they are, such as "force".
        axes: where to draw; a figure of its own by default.
    """
    x, y = np.ravel(np.asarray(reference, dtype=float)), np.ravel(np.asarray(predicted, dtype=float))
    ax = axes if axes is not None else new_axes(4.4, 4.2)
    if len(x) > DENSE:
        counts, x_edges, y_edges = np.histogram2d(x, y, bins=150)
        column = np.clip(np.searchsorted(x_edges, x) - 1, 0, 149)
        density = counts[column, np.clip(np.searchsorted(y_edges, y) - 1, 0, 149)]
        order = np.argsort(density, kind="stable")  # the densest on top
        points = ax.scatter(
            x[order], y[order], c=density[order], s=3, norm="log", cmap="viridis", linewidths=0, rasterized=True
        )
        bar = ax.figure.colorbar(points, ax=ax, shrink=0.75, aspect=25, pad=0.02, format="%g")
        bar.minorticks_off()
        bar.set_label("points per bin", fontsize=9)
        bar.outline.set_visible(False)
    else:
        ax.scatter(x, y, color=BLUE, s=12, alpha=0.6, linewidths=0)
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    margin = 0.04 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    ax.plot(limits, limits, color="black", linewidth=0.8, linestyle="--", zorder=0)
    ax.set(xlim=limits, ylim=limits, aspect="equal", xlabel=f"reference {label} ({unit})")
    ax.set_ylabel(f"predicted {label} ({unit})")
    ax.locator_params(nbins=5)
    error = y - x
    scale, error_unit = (1000.0, "m" + unit) if unit.startswith(("eV", "e·")) else (1.0, unit)
    text = f"MAE {short_number(scale * np.abs(error).mean())} {error_unit}\n"
    text += f"RMSE {short_number(scale * np.sqrt((error**2).mean()))} {error_unit}"
    ax.text(0.04, 0.96, text, transform=ax.transAxes, va="top", fontsize=9)
    return ax


@styled
def parity_panels(panels: Sequence[tuple[ArrayLike, ArrayLike, str, str]]) -> list[Axes]:
    """Plot several parities side by side; each panel is the four arguments of `parity`."""
    row = new_panels(len(panels), 4.6, 4.2)
    return [parity(*panel, ax) for panel, ax in zip(panels, row, strict=True)]


def short_number(value: float) -> str:
    """Three significant digits without an exponent where that is readable."""
    if not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}"
    return f"{value:.{max(0, 2 - int(np.floor(np.log10(abs(value)))))}f}"


def draw_line(ax: Axes, x: NDArray[np.float64], y: NDArray[np.float64], colour: str, label: str | None = None) -> None:
    """Draw a trace; a long one as the range of values in each of many bins, which looks the same at a fraction of the work."""
    if len(x) <= LINE_POINTS:
        ax.plot(x, y, color=colour, label=label, linewidth=0.8 if len(x) > 300 else 1.4)
        return
    starts = np.linspace(0, len(x), LINE_POINTS // 2, endpoint=False).astype(int)
    low, high = np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
    ax.plot(np.repeat(x[starts], 2), np.stack([low, high], axis=1).ravel(), color=colour, label=label, linewidth=0.6)


@styled
def relaxation(energies: ArrayLike, max_forces: ArrayLike, fmax: float) -> list[Axes]:
    """Plot energy (eV, above the lowest) and largest force (eV/Å) per optimisation step, with the threshold ``fmax``."""
    energies, forces = np.asarray(energies, dtype=float), np.asarray(max_forces, dtype=float)
    left, right = new_panels(2, 4.0, 3.2)
    marker = "." if len(energies) < 60 else None
    above = energies - energies.min()
    left.plot(above, color=BLUE, marker=marker)
    left.set(xlabel="step", ylabel="energy above the lowest (eV)", title=f"Energy, lowest {energies.min():.4f} eV")
    right.plot(forces, color=BLUE, marker=marker)
    right.axhline(fmax, color=VERMILION, linestyle="--", label=f"threshold {fmax:g} eV/Å")
    right.set(xlabel="step", ylabel="largest force (eV/Å)", title="Force", yscale="log")
    plain_log_ticks(right)
    right.legend()
    return [left, right]


@styled
def equation_of_state(
    volumes: ArrayLike,
    energies: ArrayLike,
    fit_volumes: ArrayLike,
    fit_energies: ArrayLike,
    *,
    volume: float,
    bulk_modulus: float,
    n_atoms: int,
) -> Axes:
    """Plot energy against volume, both per atom, with the fitted curve and its minimum.

    Args:
        volumes, energies: of the whole structure, angstrom^3 and eV; fit_volumes, fit_energies: the fitted curve.
        volume: at the minimum, angstrom^3; bulk_modulus: GPa; n_atoms: atoms in the structure.
    """
    v, e = np.asarray(volumes, dtype=float) / n_atoms, np.asarray(energies, dtype=float) / n_atoms
    fit_e = np.asarray(fit_energies, dtype=float) / n_atoms
    zero = fit_e.min()
    ax = new_axes()
    label = f"$V_0$ = {volume / n_atoms:.3f} Å$^3$/atom\n$B_0$ = {bulk_modulus:.1f} GPa"
    ax.plot(np.asarray(fit_volumes, dtype=float) / n_atoms, (fit_e - zero) * 1000, color=BLUE, label=label)
    ax.plot(v, (e - zero) * 1000, "o", color=VERMILION, markersize=5)
    ax.axvline(volume / n_atoms, color=GREY, linewidth=0.8, linestyle="--")
    ax.set(xlabel="volume (Å$^3$/atom)", ylabel="energy above the minimum (meV/atom)", title="Equation of state")
    ax.legend(loc="upper center", handlelength=0, frameon=True, framealpha=1.0, edgecolor="none")
    return ax


@dataclass(frozen=True)
class CostPanel:
    """One panel of `error_against_cost`; ``points`` maps names to (cost, error), both positive."""

    title: str
    cost_label: str
    error_label: str
    points: Mapping[str, tuple[float, float]]


@styled
def error_against_cost(panels: Sequence[CostPanel]) -> list[Axes]:
    """Plot errors against costs on logarithmic axes, every point with its name.

    A line joins the points that no other one beats in both, which are blue.
    """
    row = new_panels(len(panels), 4.6, 3.9)
    for ax, panel in zip(row, panels, strict=True):
        x, y = np.array(list(panel.points.values()), dtype=float).reshape(-1, 2).T
        best = _unbeaten(x, y)
        ax.plot(x[best], y[best], color="#BBBBBB", linewidth=1.2, zorder=1)
        colours = [BLUE if k in best else VERMILION for k in range(len(x))]
        ax.scatter(x, y, s=36, c=colours, edgecolors="white", linewidths=0.6, zorder=3)
        ax.set(xscale="log", yscale="log", xlabel=panel.cost_label, ylabel=panel.error_label, title=panel.title)
        ax.set(xlim=_with_room(x), ylim=_with_room(y))
        plain_log_ticks(ax)
        plain_log_ticks(ax, "x")
    row[0].get_figure().draw_without_rendering()  # type: ignore[union-attr]  # places are known from here on
    for ax, panel in zip(row, panels, strict=True):
        _name_points(ax, panel.points)
    return row


def _unbeaten(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[int]:
    """Indices of the points with the lowest y among all of at most their x, in the order of x."""
    best: list[int] = []
    for k in np.lexsort((y, x)).tolist():
        if not best or y[k] < y[best[-1]]:
            best.append(k)
    return best


def _with_room(values: NDArray[np.float64]) -> tuple[float, float]:
    """Limits of a logarithmic axis that leave room for names around the outermost points."""
    low, high = float(values.min()), float(values.max())
    room = max((high / low) ** 0.15, 1.4)
    return low / room, high * room


def _name_points(ax: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write the names beside the points, none over another, with a thin line where a name is not next to its point."""
    from matplotlib.patheffects import withStroke

    pixel = 72.0 / ax.figure.dpi  # in points
    texts = [
        ax.annotate(name, at, (0, 0), textcoords="offset points", fontsize=9, zorder=4) for name, at in points.items()
    ]
    boxes = [text.get_window_extent() for text in texts]
    sizes = np.array([(box.width, box.height) for box in boxes]).reshape(-1, 2) * pixel
    anchors = ax.transData.transform(np.array(list(points.values()), dtype=float).reshape(-1, 2)) * pixel
    left, bottom, right, top = pixel * np.array(ax.get_window_extent().padded(-2.0).extents)
    x, y = pixel * ax.transData.transform(ax.lines[0].get_xydata()).T
    along = np.linspace(0, len(x) - 1, 100 * len(x))
    line = np.stack([np.interp(along, np.arange(len(x)), values) for values in (x, y)], axis=1)
    centres = place_boxes(anchors, sizes, (left, bottom, right, top), gap=5.0, lines=line)
    for text, anchor, centre, size in zip(texts, anchors, centres, sizes, strict=True):
        text.set(ha="center", va="center", position=centre - anchor, in_layout=False)
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        nearest = np.clip(anchor, centre - size / 2, centre + size / 2)
        if np.linalg.norm(nearest - anchor) > 9.0:
            style = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
            offset = nearest - anchor
            leader = ax.annotate("", text.xy, offset, textcoords="offset points", arrowprops=style, zorder=2)
            leader.set_in_layout(False)
