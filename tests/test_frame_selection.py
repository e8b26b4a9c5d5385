"""The choice of frames: properties that must hold for any input, definitions in loops, and a descriptor that knows no order of atoms."""

import itertools
import math

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from simkit.errors import ConfigError, DataError, ElementError
from simkit.inference.frame_descriptor import CENTRES, describe_frames
from simkit.inference.frame_selection import farthest_points, select_frames, uncertain_frames

finite = st.floats(-10, 10, allow_nan=False)
scores = hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 5))


@given(scores, st.floats(0, 0.99), st.floats(0, 3))
def test_uncertain_frames_are_a_window_at_the_top(values: np.ndarray, quantile: float, lower: float) -> None:
    chosen = uncertain_frames(values, quantile, lower)
    edge = np.quantile(values, quantile)
    assert sorted(chosen) == [k for k, value in enumerate(values) if value >= edge and value >= lower]
    assert (np.diff(values[chosen]) <= 0).all()
    if lower == 0:
        assert len(chosen) >= math.floor((1 - quantile) * len(values)) >= 0
        assert int(np.argmax(values)) in chosen


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 12), st.just(2)), elements=finite),
    st.integers(0, 6),
    st.integers(0, 4),
)
def test_each_point_is_the_farthest_from_those_before(points: np.ndarray, count: int, known: int) -> None:
    others = np.random.default_rng(known).normal(size=(known, 2))
    chosen = farthest_points(points, count, others)
    assert len(set(chosen.tolist())) == len(chosen) <= count
    before = [tuple(other) for other in others]
    for index in chosen.tolist():
        gaps = [min((math.dist(point, other) for other in before), default=math.inf) for point in points]
        assert gaps[index] == pytest.approx(max(gaps))
        before.append(tuple(points[index]))
    if len(chosen) < min(count, len(points)):  # nothing new was left
        gaps = [min((math.dist(point, other) for other in before), default=math.inf) for point in points]
        assert max(gaps) < 1e-150  # the squares of smaller distances are zero


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(3, 8), st.just(2)), elements=finite, unique=True), st.integers(1, 3)
)
def test_no_choice_covers_twice_as_well(points: np.ndarray, count: int) -> None:
    """Gonzalez' bound: the largest distance from a chosen point is at most twice the least possible one."""

    def radius(centres: tuple[int, ...]) -> float:
        return max(min(math.dist(point, points[c]) for c in centres) for point in points)

    best = min(radius(centres) for centres in itertools.combinations(range(len(points)), count))
    assert radius(tuple(farthest_points(points, count).tolist())) <= 2 * best + 1e-12


@given(scores, st.integers(1, 10), st.sampled_from(["disagreement", "random"]))
def test_a_choice_has_no_frame_twice_and_no_unknown_score(values: np.ndarray, count: int, strategy: str) -> None:
    values = np.where(np.arange(len(values)) % 3 == 2, np.nan, values)
    points = np.random.default_rng(0).normal(size=(len(values), 3))
    chosen = select_frames(values, points, count, strategy=strategy, quantile=0.0, seed=1)  # type: ignore[arg-type]
    assert len(chosen) == min(count, int(np.isfinite(values).sum()))
    assert len(set(chosen.tolist())) == len(chosen)
    assert np.isfinite(values[chosen]).all()


def test_disagreement_chooses_among_the_uncertain_and_random_does_not_look() -> None:
    values = np.arange(100.0)
    points = np.random.default_rng(0).normal(size=(100, 4))
    assert values[select_frames(values, points, 20, quantile=0.8)].min() >= 79
    counts = np.zeros(100)
    for seed in range(400):
        counts[select_frames(values, points, 20, strategy="random", seed=seed)] += 1
    assert np.abs(counts / 400 - 0.2).max() < 5 * math.sqrt(0.2 * 0.8 / 400)
    assert len(select_frames(values, points, 20, lower=1e3)) == 0


def test_unusable_choices() -> None:
    with pytest.raises(ConfigError, match="from 0 to below 1, found 1"):
        uncertain_frames([1.0], 1.0)
    with pytest.raises(DataError, match="points"):
        farthest_points(np.zeros((3, 2)), 2, np.zeros((3, 1)))
    with pytest.raises(DataError, match="not"):
        farthest_points([[math.nan]], 1)
    assert len(uncertain_frames([math.nan], 0.5)) == 0


# ----------------------------------------------------------------------------------------------------------- descriptor


def by_hand(atoms: Atoms, numbers: list[int], cutoff: float) -> np.ndarray:
    """The definition in loops, for a molecule."""
    pairs = list(itertools.combinations_with_replacement(numbers, 2))
    centres = np.linspace(0.5, cutoff, CENTRES)
    found = np.zeros((len(pairs), CENTRES))
    for i, j in itertools.permutations(range(len(atoms)), 2):
        r = math.dist(atoms.positions[i], atoms.positions[j])
        if r < cutoff:
            row = pairs.index(tuple(sorted((int(atoms.numbers[i]), int(atoms.numbers[j])))))
            gauss = np.exp(-0.5 * ((r - centres) / (centres[1] - centres[0])) ** 2)
            found[row] += gauss * 0.5 * (1 + math.cos(math.pi * r / cutoff)) / len(atoms)
    return found.ravel()


def test_descriptor_is_its_definition() -> None:
    frames = [molecule("CH3CH2OH"), molecule("H2O")]
    found = describe_frames(frames, [8, 1, 6], 4.0)
    for row, atoms in zip(found, frames, strict=True):
        np.testing.assert_allclose(row, by_hand(atoms, [1, 6, 8], 4.0), atol=1e-12)


def test_descriptor_tells_geometries_apart_but_not_orientations() -> None:
    atoms = molecule("CH3CH2OH")
    turned = atoms[np.random.default_rng(0).permutation(len(atoms))]
    turned.rotate(50, "x")
    turned.positions += 3.0
    bent = atoms.copy()
    bent.set_dihedral(0, 1, 2, 3, 60, indices=[3])
    first, same, other = describe_frames([atoms, turned, bent], [1, 6, 8])
    np.testing.assert_allclose(first, same, atol=1e-10)
    assert np.linalg.norm(first - other) > 0.1


def test_descriptor_of_a_crystal_does_not_depend_on_the_cell() -> None:
    cubic = bulk("Si", cubic=True)
    first, second = describe_frames([cubic, cubic.repeat((1, 2, 1))], [14])
    np.testing.assert_allclose(first, second, atol=1e-10)
    with pytest.raises(ElementError, match="found"):
        describe_frames([cubic], [6])
    assert describe_frames([], [14]).shape == (0, CENTRES)
