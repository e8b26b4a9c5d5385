"""Distribution functions, paths and diffusion against analytic results, and against the same sums written out in loops."""

import numpy as np
import pytest
from analysis_cases import everything
from ase.build import bulk, molecule
from numpy.random import Generator

from simkit.errors import ConfigError, DataError, GeometryError
from simkit.md import rdf
from simkit.md.rdf import RadialDistribution, radial_distribution
from simkit.md.trajectory_arrays import unwrap
from simkit.md.transport import BLOCKS, diffusion, mean_squared_displacement

TRICLINIC = np.array([[9.0, 0.0, 0.0], [2.0, 8.0, 0.0], [-1.5, 1.0, 8.5]])
CUBE = 10.0 * np.eye(3)
PERIODIC, ISOLATED = np.ones(3, dtype=bool), np.zeros(3, dtype=bool)


# ----------------------------------------------------------------------------------------------------------------- distances


def test_ideal_gas_has_no_structure(rng: Generator) -> None:
    """g_ab = 1, and 1 - 1/N_a for a = b, within the noise of the counts; in a triclinic cell, beyond half of it, too."""
    frames, n = 400, 40
    positions = rng.uniform(size=(frames, n, 3)) @ TRICLINIC
    species = {"A": np.arange(n) < 30, "B": np.arange(n) >= 30}
    result = radial_distribution(positions, TRICLINIC, PERIODIC, species, r_max=3.9, bins=13)
    assert result.normalised
    shells = 4 * np.pi / 3 * np.diff(np.linspace(0, 3.9, 14) ** 3) / np.linalg.det(TRICLINIC)
    members = {"A": 30, "B": 10}
    for (a, b), values in result.pairs.items():
        exact = 1 - (a == b) / members[a]
        independent = frames * members[a] * members[b] * exact * shells / (2 if a == b else 1)
        assert (np.abs(values - exact) < 4 * exact / np.sqrt(independent)).all()
    independent = frames * n * (n - 1) / 2 * shells
    assert (np.abs(result.total - (1 - 1 / n)) < 4 / np.sqrt(independent)).all()
    assert set(result.pairs) == {("A", "A"), ("A", "B"), ("B", "B")}


def test_crystal_peaks_and_coordination_numbers() -> None:
    """fcc: 12 neighbors at a / sqrt 2, 6 at a, 24 at a sqrt 1.5, 12 at a sqrt 2, from a primitive cell far smaller than that."""
    primitive = bulk("Ar", a=5.0)
    result = radial_distribution(
        primitive.positions[None], primitive.cell.array, PERIODIC, everything(1), r_max=7.2, bins=720
    )
    places = np.flatnonzero(result.total)
    np.testing.assert_allclose(result.distances[places], 5.0 * np.sqrt([0.5, 1.0, 1.5, 2.0]), atol=result.width)
    np.testing.assert_allclose(result.neighbors["X", "X"][places], [12, 18, 42, 54])
    repeated = primitive * (3, 3, 3)
    again = radial_distribution(
        repeated.positions[None], repeated.cell.array, PERIODIC, everything(27), r_max=7.2, bins=36
    )
    coarse = radial_distribution(
        primitive.positions[None], primitive.cell.array, PERIODIC, everything(1), r_max=7.2, bins=36
    )
    np.testing.assert_allclose(again.total, coarse.total, rtol=1e-12)


def test_pairs_of_elements_in_rock_salt() -> None:
    salt = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    species = {name: np.array(salt.symbols) == name for name in ("Na", "Cl")}
    result = radial_distribution(salt.positions[None], salt.cell.array, PERIODIC, species, r_max=4.5, bins=450)
    nearest = {pair: result.distances[np.flatnonzero(values)[0]] for pair, values in result.pairs.items()}
    assert nearest["Na", "Cl"] == pytest.approx(2.82, abs=result.width)
    assert nearest["Na", "Na"] == pytest.approx(5.64 / np.sqrt(2), abs=result.width)
    assert result.neighbors["Na", "Cl"][300] == result.neighbors["Cl", "Na"][300] == 6
    assert result.neighbors["Na", "Na"][-1] == 12
    # The mean of all pairs, weighted by their numbers, is the total.
    parts = 0.25 * result.pairs["Na", "Na"] + 0.5 * result.pairs["Na", "Cl"] + 0.25 * result.pairs["Cl", "Cl"]
    np.testing.assert_allclose(parts, result.total, rtol=1e-12)


def test_changing_cells_count_with_their_volume(rng: Generator) -> None:
    """Frames scaled as a whole, with bins scaled alike, have the same g(r); two different ones have the mean of their own."""
    positions = rng.uniform(size=(2, 20, 3)) @ CUBE
    cells = np.stack([CUBE, 1.2 * CUBE])
    both = radial_distribution(positions, cells, PERIODIC, everything(20), r_max=4.0, bins=10)
    each = [
        radial_distribution(positions[k : k + 1], cells[k], PERIODIC, everything(20), r_max=4.0, bins=10)
        for k in (0, 1)
    ]
    np.testing.assert_allclose(both.total, (each[0].total + each[1].total) / 2, rtol=1e-12)
    scaled = radial_distribution(1.2 * positions[:1], cells[1], PERIODIC, everything(20), r_max=4.8, bins=10)
    np.testing.assert_allclose(scaled.total, each[0].total, rtol=1e-9)


def water_distances() -> RadialDistribution:
    water = molecule("H2O")
    species = {"H": water.numbers == 1, "O": water.numbers == 8}
    frames = np.stack([water.positions, water.positions + 3.0])
    return radial_distribution(frames, water.cell.array, ISOLATED, species, r_max=3.0, bins=300)


def test_molecules_have_counts_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    result = water_distances()
    assert not result.normalised
    assert result.pairs["H", "O"].sum() * result.width == pytest.approx(2.0)
    assert result.pairs["H", "H"].sum() * result.width == pytest.approx(1.0)
    assert result.total.sum() * result.width == pytest.approx(3.0)
    assert not result.pairs["O", "O"].any()
    assert result.distances[result.pairs["H", "O"].argmax()] == pytest.approx(0.9686, abs=0.01)
    assert (result.neighbors["O", "H"][-1], result.neighbors["H", "O"][-1]) == (2.0, 1.0)
    monkeypatch.setattr(rdf, "ALL_PAIRS", 0)  # by neighbor lists, as for large molecules
    np.testing.assert_allclose(water_distances().total, result.total)


def test_slabs_are_periodic_along_two_directions() -> None:
    square = np.diag([3.0, 3.0, 0.0])
    result = radial_distribution(np.zeros((1, 1, 3)), square, [True, True, False], everything(1), r_max=3.1, bins=31)
    assert not result.normalised
    assert result.neighbors["X", "X"][-1] == 4
    assert result.total.sum() * result.width == pytest.approx(2.0)  # pairs per cell: four half neighbors


def test_unusable_distances() -> None:
    with pytest.raises(ConfigError):
        radial_distribution(np.zeros((1, 1, 3)), CUBE, PERIODIC, everything(1), r_max=0.0)
    with pytest.raises(ConfigError, match="shorter r_max"):
        radial_distribution(np.zeros((1, 1, 3)), CUBE, PERIODIC, everything(1), r_max=1e5)
    with pytest.raises(ConfigError, match="bins"):
        radial_distribution(np.zeros((1, 1, 3)), CUBE, PERIODIC, everything(1), r_max=5.0, bins=10**9)
    with pytest.raises(GeometryError, match="no volume"):
        radial_distribution(np.zeros((1, 1, 3)), np.ones((3, 3)), PERIODIC, everything(1), r_max=0.001)
    with pytest.raises(GeometryError, match="each atom to one"):
        radial_distribution(np.zeros((1, 2, 3)), CUBE, PERIODIC, {"A": [True, False]}, r_max=1.0)
    with pytest.raises(GeometryError, match="cells"):
        radial_distribution(np.zeros((2, 1, 3)), CUBE[None], PERIODIC, everything(1), r_max=1.0)
    with pytest.raises(GeometryError):
        radial_distribution(np.zeros((1, 1)), CUBE, PERIODIC, everything(1), r_max=1.0)


# ------------------------------------------------------------------------------------------------------- paths and diffusion


def brownian(rng: Generator, frames: int, atoms: int, coefficient: float, frame_time: float = 1.0) -> np.ndarray:
    steps = rng.normal(size=(frames - 1, atoms, 3)) * np.sqrt(2 * coefficient * frame_time)
    return np.concatenate([np.zeros((1, atoms, 3)), np.cumsum(steps, axis=0)])


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (False, False, False)])
def test_unwrapping_undoes_wrapping(rng: Generator, pbc: tuple[bool, bool, bool]) -> None:
    path = brownian(rng, 500, 5, 0.05) + rng.uniform(size=(5, 3))
    wrapped = path - np.where(pbc, np.floor(path @ np.linalg.inv(TRICLINIC)), 0.0) @ TRICLINIC
    restored = unwrap(wrapped, TRICLINIC, pbc)
    np.testing.assert_allclose(restored - restored[0], path - path[0], atol=1e-10)
    np.testing.assert_allclose(unwrap(path, TRICLINIC, pbc), path, atol=1e-10)
    assert np.abs(path - path[0]).max() > 5.0  # it went through the cell


def test_a_breathing_cell_does_not_move_atoms_that_have_travelled() -> None:
    """An atom a thousand cells from its start must not move a thousand times as much as the cell."""
    frames = 200
    scale = 1 + 0.01 * np.sin(np.arange(frames))
    cells = scale[:, None, None] * CUBE
    fraction = np.array([0.3, 0.6, 0.5])
    near = (fraction @ cells)[:, None]
    far = near + 1000 * cells[:, :1]
    for path in (near, far):
        motion = unwrap(path, cells, PERIODIC)
        assert np.abs(motion - motion[0]).max() < 0.2


def test_unusable_paths() -> None:
    with pytest.raises(GeometryError, match="volume"):
        unwrap(np.zeros((2, 1, 3)), np.zeros((3, 3)), PERIODIC)
    with pytest.raises(GeometryError, match="volume"):
        unwrap(np.zeros((2, 1, 3)), np.ones((3, 3)), PERIODIC)
    with pytest.raises(GeometryError):
        unwrap(np.zeros((2, 3)), CUBE, PERIODIC)
    with pytest.raises(GeometryError):
        unwrap(np.zeros((2, 1, 3)), CUBE[None], PERIODIC)


def test_displacement_is_the_mean_over_origins_and_atoms(rng: Generator) -> None:
    path = rng.normal(size=(40, 3, 3)) + 100.0
    expected = [np.mean([((path[t + k] - path[t]) ** 2).sum(axis=1) for t in range(40 - k)]) for k in range(40)]
    np.testing.assert_allclose(mean_squared_displacement(path), expected, rtol=1e-11, atol=1e-11)


def test_free_flight(rng: Generator) -> None:
    velocity = rng.normal(size=(4, 3))
    time = np.arange(100.0)
    path = time[:, None, None] * velocity
    exact = (velocity**2).sum(axis=1).mean() * time**2
    np.testing.assert_allclose(mean_squared_displacement(path), exact, rtol=1e-9, atol=1e-9)
    assert diffusion(path, 1.0).exponent == pytest.approx(2.0)


def test_brownian_motion(rng: Generator) -> None:
    """<r^2> = 6 D t; the coefficient within three of its own error bars, which are small."""
    exact, frame_time = 0.02, 5.0
    result = diffusion(brownian(rng, 4000, 60, exact, frame_time), frame_time)
    assert abs(result.coefficient - exact) < 3 * result.error
    assert result.error < 0.05 * exact
    assert result.exponent == pytest.approx(1.0, abs=0.1)
    assert result.intercept == pytest.approx(0.0, abs=0.1 * 6 * exact * result.fit_range[1])
    short = slice(1, 20)
    np.testing.assert_allclose(result.displacement[short], 6 * exact * result.lags[short], rtol=0.05)
    chosen = diffusion(brownian(rng, 4000, 60, exact, frame_time), frame_time, (10.0, 50.0))
    assert chosen.fit_range == (10.0, 50.0)
    assert abs(chosen.coefficient - exact) < 3 * chosen.error


def test_error_bars_of_diffusion_are_right(rng: Generator) -> None:
    """The scatter of the coefficients of 60 independent trajectories is what each of them says it is."""
    results = [diffusion(brownian(rng, 800, 8, 1.0), 1.0) for _ in range(60)]
    scatter = np.std([result.coefficient for result in results], ddof=1)
    stated = np.sqrt(np.mean([result.error**2 for result in results]))
    assert 0.75 < scatter / stated < 1.3
    assert abs(np.mean([result.coefficient for result in results]) - 1.0) < 4 * scatter / np.sqrt(60)


def test_unusable_fits(rng: Generator) -> None:
    path = brownian(rng, 400, 2, 1.0)
    for wrong in ((10.0, 5.0), (0.2, 0.8), (5.0, 60.0), (-1.0, 20.0)):
        with pytest.raises(ConfigError, match="cannot fit"):
            diffusion(path, 1.0, wrong)
    with pytest.raises(DataError, match=f"{5 * BLOCKS} frames"):
        diffusion(path[:30], 1.0)
    with pytest.raises(ConfigError):
        diffusion(path, 0.0)
    with pytest.raises(DataError, match="not finite"):
        mean_squared_displacement(np.full((2, 1, 3), np.nan))
