"""GIF animations of true and learned motion side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from simkit.errors import DataError
from simkit.files import atomic_path
from simkit.plotting import GREY, new_panels, styled
from simkit.surrogates.plots import colour_of
from simkit.surrogates.systems.base import System
from simkit.surrogates.systems.chain_pendulum import ChainPendulum
from simkit.surrogates.systems.charged_particle import ChargedParticle
from simkit.surrogates.systems.gravity import Gravity
from simkit.surrogates.systems.henon_heiles import HenonHeiles
from simkit.surrogates.systems.lennard_jones import LennardJonesParticles
from simkit.surrogates.systems.pendulum import Pendulum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
Kind = Literal["rods", "points", "box", "phase"]
_MARGIN = 0.1


@dataclass(frozen=True)
class Scene:
    """Moving points in a plane.

    Attributes:
        points: [T, n, 2].
        kind: "rods", a chain from the origin through the points; "points", each with a trail; "box", points in a periodic box;
            "phase", as "points", over the whole path.
        box: its side, for "box".
        labels: of the axes; none for motion in space.
    """

    points: Array
    kind: Kind
    box: float = 0.0
    labels: tuple[str, str] | None = None


def scene(system: System | None, states: ArrayLike, *, cartesian: bool = False, coordinate: int = 0) -> Scene:
    """Return one trajectory as it is drawn: pendulums with rods, bodies with trails, particles in their box, others in phase space.

    Particles in three dimensions are seen along the third.

    Args:
        system: what it is of, or None.
        states: one trajectory, [T, 2 D].
        cartesian: whether the first half are Cartesian coordinates of the system's embedding.
        coordinate: which one is drawn in phase space, from 0.
    """
    array = np.asarray(states, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] % 2:
        raise DataError(f"one trajectory [times, 2 D] is animated; found shape {array.shape}")
    q = array[:, : array.shape[1] // 2]
    if isinstance(system, ChainPendulum):
        return Scene(_by_point(q if cartesian else _chain(system, q)), "rods")
    if isinstance(system, Pendulum):
        return Scene(np.stack([np.sin(q), -np.cos(q)], axis=-1), "rods")
    if isinstance(system, LennardJonesParticles):
        flat = q.reshape(len(q), -1, system.dimensions)[..., :2]
        return Scene(np.mod(flat, system.box), "box", system.box)
    if isinstance(system, (Gravity, HenonHeiles, ChargedParticle)):
        return Scene(_by_point(q), "points")
    if not 0 <= coordinate < q.shape[1]:
        raise DataError(f"the coordinate must be 0 to {q.shape[1] - 1}; found {coordinate}")
    return Scene(array[:, None, [coordinate, q.shape[1] + coordinate]], "phase", labels=("q", "p"))


@styled
def animate(
    path: str | os.PathLike[str],
    times: ArrayLike,
    scenes: Mapping[str, Scene],
    *,
    seconds: float = 8.0,
    frames_per_second: int = 20,
    trail: float = 0.15,
) -> int:
    """Write a GIF with one panel for each motion, all at the same time and scale; the first, the true one, is black. Atomic.

    Frames are the nearest points in time; a motion stops where it is not finite, and its panel says so.

    Args:
        path: ends in .gif.
        times: [T].
        scenes: name -> what is drawn, [T, n, 2] each.
        seconds: length of the film, or less where there are fewer points than frames.
        frames_per_second: at most 50, which is what viewers show.
        trail: length of the trails as a fraction of the whole time.

    Returns:
        The number of frames.

    Raises:
        DataError: if there is nothing to draw, or an argument is out of range.
        OutputError: if the file cannot be written.
    """
    from matplotlib.animation import PillowWriter

    t = np.asarray(times, dtype=np.float64)
    lengths = {len(item.points) for item in scenes.values()}
    if lengths != {len(t)} or not os.fspath(path).endswith(".gif"):
        raise DataError(
            f"scenes of {len(t)} points and a path that ends in .gif are needed; found {sorted(lengths)}, {path}"
        )
    if not (seconds > 0 and 1 <= frames_per_second <= 50 and 0 <= trail <= 1):
        raise DataError(
            f"the film must last, at 1 to 50 frames a second; found {seconds} s, {frames_per_second}, trail {trail}"
        )
    frames = _frames(t, round(seconds * frames_per_second))
    panels = new_panels(len(scenes), 3.4, 3.6)
    limits = _limits(list(scenes.values()))
    draw = [
        _panel(ax, name, item, "black" if rank == 0 else colour_of(rank - 1), limits, max(1, round(trail * len(t))))
        for rank, (ax, (name, item)) in enumerate(zip(panels, scenes.items(), strict=True))
    ]
    figure = panels[0].figure
    clock = figure.suptitle("t = 0", x=0.01, horizontalalignment="left", fontsize=9)
    figure.draw_without_rendering()  # type: ignore[union-attr]
    figure.set_layout_engine("none")  # type: ignore[union-attr]  # places are found once, not for every frame
    writer = PillowWriter(fps=frames_per_second)
    with atomic_path(path) as temporary, writer.saving(figure, str(temporary), dpi=80):  # type: ignore[arg-type]
        for frame in frames:
            clock.set_text(f"t = {t[frame]:.2f}")
            for update in draw:
                update(int(frame))
            writer.grab_frame()
    return len(frames)


def _frames(times: Array, count: int) -> NDArray[np.int64]:
    """The points nearest to equally spaced times, each once."""
    wanted = np.linspace(times[0], times[-1], max(1, min(len(times), count)))
    return np.unique(np.abs(times[:, None] - wanted).argmin(axis=0))


def _panel(
    ax: Axes, name: str, item: Scene, colour: str, limits: tuple[float, float, float, float], trail: int
) -> Callable[[int], None]:
    """Prepare a panel and return what moves it to a frame."""
    ax.set(title=name, xlim=limits[:2], ylim=limits[2:])
    ax.grid(visible=False)
    if item.labels is None:
        ax.set(aspect="equal", xticks=[], yticks=[])
        ax.spines[:].set_visible(item.kind == "box")
    else:
        ax.set(xlabel=item.labels[0], ylabel=item.labels[1])
    points = item.points
    alive = np.isfinite(points).all(axis=(1, 2))
    end = len(points) if alive.all() else int(alive.argmin())
    if item.kind == "phase":
        ax.plot(*points[:, 0].T, color=GREY, linewidth=0.8, alpha=0.5)
    size = 6.0 if item.kind == "box" else 9.0
    (dots,) = ax.plot([], [], "o", color=colour, markersize=size, zorder=3)
    rods = ax.plot([], [], color=colour, linewidth=1.8)[0] if item.kind == "rods" else None
    traced = [] if item.kind == "box" else list(range(points.shape[1]))[-1 if item.kind == "rods" else 0 :]
    trails = {k: ax.plot([], [], color=colour, linewidth=1.2, alpha=0.4)[0] for k in traced}

    def update(frame: int) -> None:
        shown = min(frame, end - 1)
        if shown < 0:
            return
        if frame >= end:
            ax.set_title(f"{name}: not finite")
        dots.set_data(*points[shown].T)
        if rods is not None:
            rods.set_data(*np.concatenate([[[0.0, 0.0]], points[shown]]).T)
        for k, line in trails.items():
            line.set_data(*points[max(0, shown - trail) : shown + 1, k].T)

    return update


def _limits(scenes: list[Scene]) -> tuple[float, float, float, float]:
    """Of the true motion, with room for twice its extent where learned ones leave it: one that flies off does not shrink the others."""
    if scenes[0].kind == "box":
        return 0.0, scenes[0].box, 0.0, scenes[0].box
    ranges = []
    for axis in (0, 1):
        low, high = _extent(scenes[0], axis)
        room = (high - low) or 1.0
        for item in scenes[1:]:
            found = _extent(item, axis)
            low, high = min(low, max(found[0], low - room / 2)), max(high, min(found[1], high + room / 2))
        ranges.append((low, high))
    half = [(high - low) / 2 or 1.0 for low, high in ranges]
    if scenes[0].kind != "phase":
        half = [max(half)] * 2
    (left, right), (bottom, top) = (
        (sum(ends) / 2 - (1 + _MARGIN) * reach, sum(ends) / 2 + (1 + _MARGIN) * reach)
        for ends, reach in zip(ranges, half, strict=True)
    )
    return left, right, bottom, top


def _extent(item: Scene, axis: int) -> tuple[float, float]:
    values = item.points[..., axis]
    values = values[np.isfinite(values)]
    if item.kind == "rods":
        values = np.append(values, 0.0)
    if not values.size:
        raise DataError("a motion has no finite point to draw")
    return float(values.min()), float(values.max())


def _by_point(flat: Array) -> Array:
    return flat.reshape(len(flat), -1, 2)


def _chain(system: ChainPendulum, q: Array) -> Array:
    angles = torch.from_numpy(np.ascontiguousarray(q))
    result: Array = system.embedding().to_cartesian(angles, torch.zeros_like(angles))[0].numpy()
    return result
