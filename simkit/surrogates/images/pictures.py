"""Pictures of films: strips of frames, errors and energies along rollouts, and GIFs. Arrays in, matplotlib Axes out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simkit.errors import DataError
from simkit.files import atomic_path
from simkit.plotting import BLUE, GREY, ORANGE, VERMILION, new_axes, new_panels, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]


def _films(films: Mapping[str, ArrayLike], times: Floats) -> dict[str, Floats]:
    """As [T, H, W, 3] with values from 0 to 1; films of one channel become grey."""
    arrays = {name: np.clip(np.asarray(film, dtype=float), 0, 1) for name, film in films.items()}
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) != 1 or (shape := shapes.pop())[0] != len(times) or len(shape) != 4 or shape[1] not in (1, 3):
        found = {name: array.shape for name, array in arrays.items()}
        raise DataError(f"films must all be [{len(times)}, 1 or 3, rows, columns]; found {found}")
    return {name: np.moveaxis(np.broadcast_to(x, (shape[0], 3, *shape[2:])), 1, -1) for name, x in arrays.items()}


@styled
def film_strip(films: Mapping[str, ArrayLike], times: ArrayLike, *, trained: float, most: int = 12) -> Axes:
    """Plot frames of several films below each other.

    Args:
        films: name -> [T, C, H, W].
        times: [T].
        trained: the last time of training; a line is drawn behind it.
        most: frames of each film, equally spaced.
    """
    t = np.asarray(times, dtype=float)
    arrays = _films(films, t)
    chosen = np.unique(np.linspace(0, len(t) - 1, min(most, len(t))).round().astype(int))
    rows, columns = next(iter(arrays.values())).shape[1:3]
    gap = max(1, columns // 16)
    sheet = np.ones((len(arrays) * (rows + gap) - gap, len(chosen) * (columns + gap) - gap, 3))
    for row, film in enumerate(arrays.values()):
        for column, frame in enumerate(chosen):
            top, left = row * (rows + gap), column * (columns + gap)
            sheet[top : top + rows, left : left + columns] = film[frame]
    ax = new_axes(0.75 * len(chosen) + 1.2, 0.75 * len(arrays) + 0.7)
    ax.imshow(sheet, interpolation="nearest")
    ax.set_xticks(np.arange(len(chosen)) * (columns + gap) + columns / 2 - 0.5, [f"{x:.1f}" for x in t[chosen]])
    ax.set_yticks(np.arange(len(arrays)) * (rows + gap) + rows / 2 - 0.5, list(arrays))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.grid(visible=False)
    ax.set(xlabel="time", ylabel="")
    inside = int((t[chosen] <= trained).sum())
    if 0 < inside < len(chosen):
        ax.axvline(inside * (columns + gap) - (gap + 1) / 2, color=VERMILION, linewidth=2)
    return ax


@styled
def error_course(
    times: ArrayLike, model: ArrayLike, last_frame: ArrayLike, mean_image: ArrayLike, *, trained: float
) -> Axes:
    """Plot mean squared errors per pixel value [T] along rollouts, on a log scale, with the time up to which was trained."""
    ax = new_axes()
    t = np.asarray(times, dtype=float)
    curves = (("model", model, BLUE), ("last frame seen", last_frame, ORANGE), ("mean image", mean_image, GREY))
    for name, values, colour in curves:
        error = np.asarray(values, dtype=float)
        ax.plot(t, np.where(error > 0, error, np.nan), color=colour, label=name)
    ax.axvline(trained, color=VERMILION, linewidth=1.0, linestyle="--", label="end of training films")
    ax.set(xlabel="time", ylabel="mean squared error per pixel", yscale="log", title="Predicted frames")
    ax.legend()
    return ax


@styled
def energy_course(times: ArrayLike, energies: ArrayLike, *, trained: float, most: int = 8) -> Axes:
    """Plot the learned energy along the first rollouts; ``energies`` is [S, T]."""
    ax = new_axes()
    for course in np.asarray(energies, dtype=float)[:most]:
        ax.plot(np.asarray(times, dtype=float), course, color=BLUE, linewidth=1.0)
    ax.axvline(trained, color=VERMILION, linewidth=1.0, linestyle="--")
    ax.set(xlabel="time", ylabel="learned energy", title="Energy along rollouts")
    return ax


@styled
def write_film(
    path: str | os.PathLike[str], films: Mapping[str, ArrayLike], times: ArrayLike, *, frames_per_second: int = 15
) -> None:
    """Write a GIF of films [T, C, H, W] side by side. Atomic.

    Raises:
        DataError: if the films differ in shape, or the path does not end in .gif.
        OutputError: if the file cannot be written.
    """
    from matplotlib.animation import PillowWriter

    t = np.asarray(times, dtype=float)
    arrays = _films(films, t)
    if not os.fspath(path).endswith(".gif"):
        raise DataError(f"a path that ends in .gif is needed; found {path}")
    panels = new_panels(len(arrays), 2.2, 2.6)
    drawn = []
    for ax, (name, film) in zip(panels, arrays.items(), strict=True):
        ax.set(title=name, xticks=[], yticks=[])
        ax.grid(visible=False)
        drawn.append((ax.imshow(film[0], interpolation="nearest", vmin=0, vmax=1), film))
    figure = panels[0].figure
    writer = PillowWriter(fps=frames_per_second)
    with atomic_path(path) as temporary, writer.saving(figure, str(temporary), dpi=80):  # type: ignore[arg-type]
        for frame, time in enumerate(t):
            panels[0].set_xlabel(f"t = {time:.2f}")
            for image, film in drawn:
                image.set_data(film[frame])
            writer.grab_frame()
