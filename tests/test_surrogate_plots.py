"""Plots and animations of learned motion: what is drawn is what was given."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from known_motion import hamiltonian_model
from matplotlib.colors import to_rgb
from PIL import Image

from simkit.errors import DataError, OutputError
from simkit.plotting import VERMILION, save
from simkit.surrogates import animation, plots
from simkit.surrogates.animation import Scene, animate, scene
from simkit.surrogates.models import build as build_model
from simkit.surrogates.systems import Protocol, build

TIMES = np.linspace(0, 4, 21)


def states(count: int = 2, dof: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 21, 2 * dof))


def test_phase_portrait_draws_the_coordinate_asked_for() -> None:
    true, learned = states(), states() + 0.1
    learned[1, 5:] = np.nan
    ax = plots.phase_portrait(true, {"HNN": learned}, coordinate=1, labels=("angle", "momentum"))
    assert len(ax.lines) == 4
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), true[0][:, [1, 3]])
    np.testing.assert_array_equal(ax.lines[3].get_xydata(), learned[1][:, [1, 3]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["true", "HNN"]  # type: ignore[union-attr]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("angle", "momentum")
    with pytest.raises(DataError, match="0 to 1"):
        plots.phase_portrait(true, {}, coordinate=2)
    with pytest.raises(DataError, match="2 D"):
        plots.phase_portrait(true[0], {})


def test_error_growth_shows_median_and_quantiles() -> None:
    errors = np.random.default_rng(1).uniform(0.01, 1, (5, 21))
    errors[:, 0] = 0
    errors[0, 10:] = np.inf
    ax = plots.error_growth(TIMES, {"HNN": errors}, lyapunov_time=2.0)
    middle = np.asarray(ax.lines[0].get_ydata())
    np.testing.assert_array_equal(middle[1:], np.median(errors[:, 1:], axis=0))
    assert np.isnan(middle[0])  # zero has no place on the log axis
    drawn = ax.collections[0].get_paths()[0].vertices
    ordered = np.sort(errors[:, 1:], axis=0)
    assert np.isclose(drawn[:, 1].min(), ordered[1].min())  # type: ignore[index]
    assert np.isclose(drawn[:, 1].max(), ordered[3].max())  # type: ignore[index]
    assert ax.get_yscale() == "log"
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    (top,) = ax.child_axes
    assert np.allclose(top.get_xlim(), np.array(ax.get_xlim()) / 2)
    everything_lost = plots.error_growth(TIMES, {"HNN": np.where(errors > 0, np.inf, 0)})
    assert np.isnan(everything_lost.lines[0].get_ydata()).all()


def test_energy_course_draws_every_trajectory() -> None:
    true, learned = np.ones((3, 21)), np.full((3, 21), 1.1)
    learned[2, 4:] = np.inf
    ax = plots.energy_course(TIMES, true, {"HNN": learned})
    assert len(ax.lines) == 6
    assert np.isnan(np.asarray(ax.lines[2].get_ydata())[4:]).all()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["true", "HNN"]  # type: ignore[union-attr]
    assert len(plots.energy_course(TIMES, true[0], {}).lines) == 1


def test_energy_landscape_of_a_known_model() -> None:
    """The grid has H written out; the free zero of the learned energy is that of the true one."""
    x, y = np.linspace(-1, 1, 9), np.linspace(-2, 2, 7)
    grid = plots.energy_grid(
        hamiltonian_model(build("henon_heiles")).energy, x, y, components=(1, 3), state=[0.2, 0, 0.5, 0]
    )
    for i, b in enumerate(y):
        for j, a in enumerate(x):
            assert grid[i, j] == pytest.approx((0.25 + b**2 + 0.04 + a**2) / 2 + 0.04 * a - a**3 / 3)
    row = plots.energy_landscape(x, y, grid + 7.0, grid, labels=("y", "p"))
    assert [ax.get_title() for ax in row] == ["true", "learned", "learned − true"]
    levels = [ax.collections[0].levels for ax in row]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(levels[0], levels[1])
    assert levels[0][0] <= grid.min() < grid.max() <= levels[0][-1]
    np.testing.assert_allclose(row[1].collections[0].get_array(), row[0].collections[0].get_array())
    assert row[2].collections[0].get_clim()[1] < 1e-12  # type: ignore[operator]
    (alone,) = plots.energy_landscape(x, y, grid + 7.0)
    assert alone.collections[0].levels[0] == 0  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="no energy"):
        plots.energy_grid(build_model("neural-ode", 2, dtype="float64").energy, x, y, state=[0.0] * 4)


def test_comparison_shows_seeds_range_and_median() -> None:
    values: dict[str, list[float | None]] = {"HNN": [3e-3, 1e-3, 2e-3], "neural ODE": [0.5, None, None]}
    ax = plots.comparison(values, "relative error", published={"HNN": 1.9e-3})
    assert [label.get_text() for label in ax.get_yticklabels()] == ["HNN", "neural ODE (2 of 3 infinite)"]
    drawn = [np.asarray(line.get_xdata()).tolist() for line in ax.lines]
    assert drawn == [[3e-3, 1e-3, 2e-3], [1e-3, 3e-3], [2e-3], [1.9e-3], [0.5], [0.5, 0.5], []]
    assert ax.get_xscale() == "log"


def test_every_plot_can_be_written(tmp_path: Path) -> None:
    for k, ax in enumerate([plots.comparison({"a": [1.0]}, "x"), plots.error_growth(TIMES, {"a": np.ones((2, 21))})]):
        save(ax, tmp_path / f"{k}.png")
        assert (tmp_path / f"{k}.png").stat().st_size > 1000


def test_scenes() -> None:
    """Rods have their lengths in angles and in Cartesian coordinates; bodies, boxes and phase space are what they are called."""
    chain = build("chain_pendulum", {"links": 3})
    plan = Protocol("test", {"test": 1}, 1.0, 20)
    data, cartesian = (chain.generate(plan, 0, coordinates=c) for c in ("canonical", "cartesian"))
    rods = scene(chain, data.state("qp")[0])
    steps = np.diff(np.concatenate([np.zeros((20, 1, 2)), rods.points], axis=1), axis=1)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=-1), np.tile(chain.lengths, (20, 1)))  # type: ignore[attr-defined]
    np.testing.assert_allclose(scene(chain, cartesian.state("qp")[0], cartesian=True).points, rods.points, atol=1e-12)
    assert (rods.kind, rods.points[:, -1, 1].min() < 0) == ("rods", True)
    pendulum = scene(build("pendulum"), [[0.0, 1.0], [np.pi / 2, 1.0]])
    np.testing.assert_allclose(pendulum.points[:, 0], [[0, -1], [1, 0]], atol=1e-15)
    bodies = scene(build("two_body"), np.arange(24.0).reshape(3, 8))
    assert (bodies.kind, bodies.points[1].tolist()) == ("points", [[8.0, 9.0], [10.0, 11.0]])
    fluid = build("lennard_jones", {"particles": 8, "dimensions": 3})
    box = scene(fluid, np.full((2, 48), -0.5))
    assert box.points.shape == (2, 8, 2)
    np.testing.assert_allclose(box.points, fluid.box - 0.5)  # type: ignore[attr-defined]
    plane = scene(build("coupled_oscillators"), states()[0], coordinate=1)
    np.testing.assert_array_equal(plane.points[:, 0], states()[0][:, [1, 3]])
    assert plane.kind == scene(None, states()[0]).kind == "phase"
    with pytest.raises(DataError, match="one trajectory"):
        scene(None, states())


def red_centre(frame: Image.Image) -> float:
    """The mean column of the pixels in the colour of the first learned motion."""
    wanted = 255 * np.array(to_rgb(VERMILION))
    near = np.abs(np.asarray(frame.convert("RGB")) - wanted).sum(axis=-1) < 40
    return float(np.nonzero(near)[1].mean())


def test_the_animation_moves(tmp_path: Path) -> None:
    """A point that goes to the right does so in the film, at the times asked for; one that is lost stays where it was last."""
    t = np.linspace(0, 1, 11)
    moving = Scene(np.stack([t, 0 * t], axis=-1)[:, None], "points")
    lost = moving.points.copy()
    lost[6:] = np.nan
    scenes = {"true": moving, "learned": moving, "lost": Scene(lost, "points")}
    path = tmp_path / "film.gif"
    assert animate(path, t, {"true": moving, "learned": moving}, seconds=0.5, frames_per_second=10, trail=0.0) == 5
    with Image.open(path) as film:
        assert (film.n_frames, film.info["duration"]) == (5, 100)
        centres = []
        for k in range(film.n_frames):
            film.seek(k)
            centres.append(red_centre(film))
    np.testing.assert_allclose(np.diff(centres), np.diff(centres).mean(), rtol=0.3)  # frames at 0, 0.2 or 0.3, 0.5, ...
    assert centres[0] < centres[1] < centres[-1]
    assert animate(path, t, scenes, seconds=10.0) == 11  # no more frames than points
    with pytest.raises(OutputError, match="cannot write"):
        animate(tmp_path / "missing" / "film.gif", t, scenes)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("film.mp4", {}, "ends in .gif"),
        ("film.gif", {"frames_per_second": 100}, "1 to 50 frames"),
        ("film.gif", {"seconds": 0.0}, "1 to 50 frames"),
    ],
)
def test_films_that_cannot_be_made(tmp_path: Path, name: str, options: dict[str, Any], message: str) -> None:
    still = Scene(np.zeros((3, 1, 2)), "points")
    with pytest.raises(DataError, match=message):
        animate(tmp_path / name, np.arange(3.0), {"true": still}, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_motion_that_flies_off_does_not_shrink_the_others() -> None:
    inside = Scene(np.array([[[0.0, 0.0]], [[1.0, 0.5]]]), "points")
    outside = Scene(np.array([[[0.0, 0.0]], [[1e6, -1e6]]]), "points")
    left, right, bottom, top = animation._limits([inside, outside])
    assert left <= 0
    assert 1 <= right < 3
    assert bottom < 0
    assert top - bottom == pytest.approx(right - left)
