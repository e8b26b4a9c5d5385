"""Splits: sizes, no overlap, whole groups, files with a hash, and duplicated geometries across parts."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simkit.datasets import load
from simkit.datasets.duplicates import duplicates_across
from simkit.datasets.splits import Splits, codes_split, group_split, indices_split, random_split, time_split
from simkit.datasets.store import Store
from simkit.errors import ConfigError, DataError


def parts(splits: Splits) -> list[set[int]]:
    return [set(part.tolist()) for part in (splits.train, splits.valid, splits.test)]


@given(size=st.integers(10, 300), seed=st.integers(0, 2**32))
def test_random_split_uses_everything_once(size: int, seed: int) -> None:
    splits = random_split(size, 0.7, 0.2, seed=seed)
    train, valid, test = parts(splits)
    assert len(train) == round(0.7 * size)
    assert len(valid) == round(0.2 * size)
    assert train | valid | test == set(range(size))
    assert len(train) + len(valid) + len(test) == size
    assert splits.hash == random_split(size, 0.7, 0.2, seed=seed).hash


def test_random_split_depends_on_the_seed_and_not_on_the_global_state() -> None:
    np.random.seed(0)  # noqa: NPY002
    first = random_split(100, 90, 10, 0, seed=1)
    state = np.random.get_state()[1].sum()  # type: ignore[index,union-attr]  # noqa: NPY002
    assert random_split(100, 90, 10, 0, seed=1).hash == first.hash
    assert random_split(100, 90, 10, 0, seed=2).hash != first.hash
    assert np.random.get_state()[1].sum() == state  # type: ignore[index,union-attr]  # noqa: NPY002


def test_counts_and_fractions() -> None:
    splits = random_split(1000, 950, 50, seed=0)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (950, 50, 0)
    splits = random_split(1000, 500, 0.1, 100, seed=0)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (500, 100, 100)
    assert (splits.codes == -1).sum() == 300
    splits = random_split(7, 1 / 3, 1 / 3, 1 / 3, seed=0)
    assert sum(map(len, parts(splits))) == 7


@given(groups=st.lists(st.integers(0, 12), min_size=30, max_size=200), seed=st.integers(0, 1000))
def test_groups_are_never_shared(groups: list[int], seed: int) -> None:
    names = np.array(groups)
    largest = np.bincount(names).max()
    try:
        splits = group_split(names, 0.6, 0.2, 0.2, seed=seed)
    except ConfigError:
        assert len(set(groups)) < 3 or largest > 0.2 * len(groups)
        return
    held = [set(names[list(part)].tolist()) for part in parts(splits)]
    assert all(held)
    assert not held[0] & held[1] | held[0] & held[2] | held[1] & held[2]
    for part, wanted in zip(parts(splits), (0.6, 0.2, 0.2), strict=True):
        assert abs(len(part) - wanted * len(groups)) <= 2 * largest + 1


def test_too_few_groups() -> None:
    with pytest.raises(ConfigError, match="cannot split 1 groups into 3 parts"):
        group_split(["a"] * 10, 0.8, 0.1, 0.1, seed=0)


@given(size=st.integers(20, 200), gap=st.integers(0, 3))
def test_time_blocks(size: int, gap: int) -> None:
    splits = time_split(size, 0.5, 0.25, 0.25, gap=gap)
    for part in (splits.train, splits.valid, splits.test):
        assert (np.diff(part) == 1).all()
    assert splits.train[0] == 0
    assert splits.valid[0] - splits.train[-1] == splits.test[0] - splits.valid[-1] == gap + 1
    assert splits.test[-1] == size - 1


def test_published_codes() -> None:
    splits = codes_split([0, 1, 2, 0])
    assert [sorted(part) for part in parts(splits)] == [[0, 3], [1], [2]]
    assert splits.codes.tolist() == [0, 1, 2, 0]
    with pytest.raises(DataError, match="found also 3"):
        codes_split([0, 3])


@pytest.mark.parametrize(
    ("train", "valid", "test", "message"),
    [
        (90, 20, None, "asks for 110 structures"),
        (-1, 0, None, "expected a count"),
        (1.5, 0.0, None, "expected a count"),
        (True, 0, None, "expected a count"),
        (0, 10, None, "none for training"),
    ],
)
def test_bad_sizes(train: float, valid: float, test: float | None, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        random_split(100, train, valid, test, seed=0)


def test_bad_indices() -> None:
    with pytest.raises(DataError, match="structure 2 occurs more than once"):
        indices_split(5, [0, 1, 2], [2])
    with pytest.raises(DataError, match="not within 0 to 4"):
        indices_split(5, [0, 5])
    with pytest.raises(ConfigError, match="gaps of 60"):
        time_split(100, 0.5, 0.25, gap=60)
    with pytest.raises(ValueError, match="read-only"):
        indices_split(5, [0, 1]).train[0] = 3


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    splits = random_split(50, 30, 10, seed=4)
    splits.save(path)
    again = Splits.load(path)
    assert again.hash == splits.hash
    assert (again.method, again.seed, again.size) == ("random", 4, 50)
    np.testing.assert_array_equal(again.test, splits.test)
    text = path.read_text()
    content = json.loads(text)
    content["train"][0], content["train"][1] = content["train"][1], content["train"][0]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="was altered"):
        Splits.load(path)
    path.write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match="cut off"):
        Splits.load(path)
    with pytest.raises(DataError, match="there is no file"):
        Splits.load(tmp_path / "absent.json")


# -------------------------------------------------------------------------------------------------------- duplicates


def cluster_store(copies: list[np.ndarray], numbers: np.ndarray) -> Store:
    size = len(numbers)
    return Store(
        np.tile(numbers, len(copies)), np.concatenate(copies), np.arange(len(copies) + 1) * size, info={"name": "x"}
    )


def test_duplicates_up_to_rotation_reflection_and_order(rng: np.random.Generator) -> None:
    numbers = np.array([6, 6, 8, 1, 1, 1, 1])
    frames = [rng.normal(size=(7, 3)) * 1.5 for _ in range(40)]
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    order = np.array([1, 0, 2, 6, 4, 5, 3])
    frames[30] = frames[3] @ rotation + 7.0
    frames[31] = frames[4][order]
    frames[32] = frames[5] * [1, 1, -1] + rng.uniform(-3e-5, 3e-5, size=(7, 3))
    frames[33] = frames[6] + rng.uniform(-0.05, 0.05, size=(7, 3))  # near, but not the same
    frames[7] = frames[8]  # both for training
    store = cluster_store(frames, numbers)
    splits = indices_split(40, np.arange(20), np.arange(20, 30), np.arange(30, 40))
    assert duplicates_across(store, splits) == [(3, 30), (4, 31), (5, 32)]
    assert len(duplicates_across(store, splits, limit=2)) == 2


def test_elements_matter_for_duplicates(rng: np.random.Generator) -> None:
    place = rng.normal(size=(3, 3))
    store = Store(
        np.array([6, 8, 1, 8, 6, 1, 6, 8, 1]),
        np.concatenate([place, place, place]),
        np.arange(4) * 3,
        info={"name": "x"},
    )
    assert duplicates_across(store, indices_split(3, [0, 1], (), [2])) == [(0, 2)]


def test_duplicates_of_periodic_structures(rng: np.random.Generator) -> None:
    cell, places = np.eye(3) * 4.0 + rng.normal(size=(3, 3)) * 0.3, rng.normal(size=(4, 3))
    moved = places + np.array([[1, 0, 0], [0, -2, 0], [0, 0, 0], [0, 0, 0]]) @ cell + 0.3
    store = Store(
        np.full(12, 14),
        np.concatenate([places, moved, moved * 1.01]),
        np.arange(4) * 4,
        cell=np.stack([cell, cell, cell]),
        pbc=np.ones((3, 3), dtype=bool),
    )
    assert duplicates_across(store, indices_split(3, [0], [1], [2])) == [(0, 1)]


@pytest.mark.data
def test_published_split_of_qm9(data_dir: Path) -> None:
    store = load("qm9", root=data_dir / "qm9")
    splits = codes_split(store.columns["split"])
    assert [len(part) for part in parts(splits)] == [110_000, 10_000, 10_829]
    few = np.arange(20_000)
    part = store.select(few)
    pairs = duplicates_across(part, codes_split(part.columns["split"]))
    energies = part.labels["U0"].numpy()
    assert pairs
    assert all(abs(energies[i] - energies[j]) < 1e-3 for i, j in pairs)
