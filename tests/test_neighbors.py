"""Neighbor lists against ASE's, molecules against periodic code, and the skin cache against fresh lists."""

import numpy as np
import pytest
import torch
import vesin
from ase.neighborlist import primitive_neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from simkit.errors import GeometryError
from simkit.neighbors import NeighborList, SkinCache, molecule_edges, neighbor_list

OPEN = [False, False, False]
PERIODIC = [True, True, True]
seeds = st.integers(0, 2**32 - 1)
directions = st.tuples(st.booleans(), st.booleans(), st.booleans())


def pairs(edges: NeighborList, keep: np.ndarray | None = None) -> list[list[int]]:
    """Rows (receiver, sender, shift) of a list, in its order."""
    rows = np.column_stack([edges.edge_index[1], edges.edge_index[0], edges.shift])
    return rows[keep].tolist() if keep is not None else rows.tolist()


def brute_force_pairs(positions: np.ndarray, cell: np.ndarray, pbc, cutoff: float) -> list[list[int]]:
    """All pairs of atoms over all images that could matter."""
    lattice = cell * np.array(pbc)[:, None]
    inverse = np.linalg.pinv(lattice)  # norms of its columns: 1 / distance between lattice planes
    counts = np.ceil(cutoff * np.linalg.norm(inverse, axis=0) + np.ptp(positions @ inverse, axis=0)).astype(int) * pbc
    shifts = np.stack(np.meshgrid(*[np.arange(-n, n + 1) for n in counts], indexing="ij"), -1).reshape(-1, 3)
    vectors = positions[None, :, None] - positions[:, None, None] + shifts @ lattice
    i, j, s = np.nonzero((vectors**2).sum(-1) < cutoff**2)
    rows = np.column_stack([i, j, shifts[s]])
    return rows[(i != j) | shifts[s].any(axis=1)].tolist()


def random_cell(rng: np.random.Generator, size: float, skew: float) -> np.ndarray:
    """A cell of bounded flatness, so that counting images by force stays feasible."""
    while True:
        cell = np.diag(rng.uniform(0.6, 1.0, 3) * size) + rng.normal(0.0, skew * size, (3, 3))
        if (np.linalg.norm(np.linalg.inv(cell), axis=0) < 3.0 / size).all():
            return cell


@settings(max_examples=100, deadline=None)
@given(seeds, st.integers(1, 5), st.floats(0.0, 1.0), directions, st.floats(0.1, 1.5), st.booleans())
def test_agrees_with_brute_force(seed, n_atoms, skew, pbc, cutoff, zero_open):
    rng = np.random.default_rng(seed)
    cell = random_cell(rng, 3.0, skew)
    if zero_open:
        cell[~np.array(pbc)] = 0.0
    positions = rng.normal(0.0, 2.5, (n_atoms, 3))  # many atoms outside the cell
    edges = neighbor_list(positions, cell, pbc, 3.0 * cutoff)
    assert edges.edge_index.dtype == np.int64
    assert edges.shift.dtype == np.int32
    assert edges.edge_index.shape == (2, len(edges.shift))
    assert pairs(edges) == brute_force_pairs(positions, cell, pbc, 3.0 * cutoff)  # in this order too
    assert (np.linalg.norm(edges.vectors(positions, cell), axis=1) < 3.0 * cutoff).all()


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 30), st.floats(0.0, 0.3), directions, st.floats(0.5, 5.0))
def test_agrees_with_ase(seed, n_atoms, skew, pbc, cutoff):
    """ASE 3.29 misses pairs in skewed cells with vanishing open directions (brute force finds them): whole cells only."""
    rng = np.random.default_rng(seed)
    cell = random_cell(rng, 5.0, skew)
    positions = rng.normal(0.0, 4.0, (n_atoms, 3))
    i, j, shift = primitive_neighbor_list("ijS", pbc, cell, positions, cutoff)
    assert pairs(neighbor_list(positions, cell, pbc, cutoff)) == sorted(np.column_stack([i, j, shift]).tolist())


def test_order_does_not_rely_on_vesin(monkeypatch):
    rng = np.random.default_rng(3)
    positions, cell = rng.normal(0.0, 5.0, (20, 3)), random_cell(rng, 4.0, 0.3)
    expected = pairs(neighbor_list(positions, cell, PERIODIC, 5.0))
    plain = vesin.NeighborList
    monkeypatch.setattr(vesin, "NeighborList", lambda **options: plain(**{**options, "sorted": False}))
    assert pairs(neighbor_list(positions, cell, PERIODIC, 5.0)) == expected == sorted(expected)


def test_tiny_cell_counts_lattice_points():
    """One atom in a cubic cell of 1 angstrom: as many edges as integer points inside the sphere, none dropped."""
    grid = np.stack(np.meshgrid(*[np.arange(-8, 9)] * 3), -1).reshape(-1, 3)
    inside = grid[((grid**2).sum(1) < 7.5**2) & grid.any(1)]
    edges = neighbor_list(np.zeros((1, 3)), np.eye(3), PERIODIC, 7.5)
    assert len(edges.shift) == len(inside) > 1700
    assert edges.shift.tolist() == sorted(inside.tolist())


def test_strongly_skewed_cell_is_the_same_crystal():
    """Adding multiples of one cell vector to another changes the shifts but not the crystal."""
    rng = np.random.default_rng(0)
    positions, cell = rng.uniform(0.0, 4.0, (5, 3)), np.diag([4.0, 3.0, 5.0])
    skewed = np.array([[1, 0, 0], [40, 1, 0], [-7, 3, 1]]) @ cell
    plain, tilted = neighbor_list(positions, cell, PERIODIC, 6.0), neighbor_list(positions, skewed, PERIODIC, 6.0)
    for edges in (plain, tilted):
        assert len(edges.shift) == len(plain.shift)
    distances = [np.sort(np.linalg.norm(e.vectors(positions, c), axis=1)) for e, c in ((plain, cell), (tilted, skewed))]
    np.testing.assert_allclose(distances[0], distances[1], atol=1e-9)


@pytest.mark.parametrize(
    ("stretch", "cell", "pbc"),
    [
        ([1e6, 1e6, 0], [0, 0, 0], OPEN),
        ([1e6, 0, 0], [0, 0, 0], OPEN),
        ([1e6, 1e6, 1e6], [0, 0, 0], OPEN),
        ([1e6, 1e6, 4], [0, 0, 4], [False, False, True]),
        ([1e6, 4, 4], [0, 4, 4], [False, True, True]),
        ([1e6, 4, 4], [1e6, 4, 4], PERIODIC),
        ([1e4, 1e4, 4], [1e4, 1e4, 4], PERIODIC),
        ([1e4, 1e4, 4], [1e4, 1e4, 0], [True, True, False]),
    ],
)
def test_flat_and_spread_out_systems(stretch, cell, pbc):
    """Close pairs thrown far apart: on these boxes vesin's own grid divides by zero (see _search_radius)."""
    rng = np.random.default_rng(1)
    centers = rng.uniform(0.1, 0.9, (10, 1, 3)) * stretch
    positions = (centers + np.array([[0.0, 0, 0], [0.5, 0.3, 0.0]])).reshape(-1, 3)
    edges = neighbor_list(positions, np.diag(np.array(cell, dtype=float)), pbc, 3.0)
    cell_or_open = np.where(np.array(cell) < 10, cell, 0.0)  # across the long directions nothing meets
    assert pairs(edges) == brute_force_pairs(positions, np.diag(cell_or_open), cell_or_open > 0, 3.0)


def test_far_from_the_origin():
    rng = np.random.default_rng(2)
    molecule = rng.normal(0.0, 1.5, (12, 3))
    cell = random_cell(rng, 5.0, 0.2)
    far = np.round(molecule + np.array([1e6, -1e6, 1e6]), 6)
    assert pairs(neighbor_list(far, np.zeros((3, 3)), OPEN, 3.0)) == pairs(
        neighbor_list(molecule, np.zeros((3, 3)), OPEN, 3.0)
    )
    moved = molecule + 200_000 * cell[0] - 7 * cell[2]
    assert pairs(neighbor_list(moved, cell, PERIODIC, 4.0)) == pairs(neighbor_list(molecule, cell, PERIODIC, 4.0))


def test_edge_cases():
    zero = np.zeros((3, 3))
    assert pairs(neighbor_list(np.zeros((1, 3)), zero, OPEN, 5.0)) == []
    assert pairs(neighbor_list(np.zeros((0, 3)), zero, OPEN, 5.0)) == []
    assert pairs(neighbor_list(np.zeros((0, 3)), np.eye(3), PERIODIC, 5.0)) == []
    assert pairs(neighbor_list([[0, 0, 0], [0, 0, 0]], zero, OPEN, 5.0)) == [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert pairs(neighbor_list([[0, 0, 0], [3, 0, 0]], zero, OPEN, 3.0)) == []  # the cutoff itself is outside
    assert len(pairs(neighbor_list([[0, 0, 0], [3, 0, 0]], zero, OPEN, np.nextafter(3.0, 4.0)))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[0, 0, np.nan]], np.eye(3), PERIODIC, 3.0), "first is atom 0"),
        (([[0, 0, 0], [np.inf, 0, 0]], np.eye(3), OPEN, 3.0), "first is atom 1"),
        (([[0, 0, 1e300]], np.eye(3), OPEN, 3.0), "exploded"),
        (([[0, 0, 0]], np.zeros((3, 3)), PERIODIC, 3.0), "0.1 to"),
        (([[0, 0, 0]], [[1, 0, 0], [0, 1, 0], [1, 1, 0]], PERIODIC, 3.0), "no volume"),
        (([[0, 0, 0]], [[1, 2, 3], [2, 4, 6], [0, 0, 0]], [True, True, False], 3.0), "no volume"),
        (([[0, 0, 0]], np.full((3, 3), np.nan), PERIODIC, 3.0), "nan"),
        (([[0, 0, 0]], np.eye(3), PERIODIC, 0.0), "cutoff"),
        (([[0, 0, 0]], np.eye(3), PERIODIC, -1.0), "cutoff"),
        (([[0, 0, 0]], np.eye(3), PERIODIC, np.inf), "cutoff"),
        (([[0, 0]], np.eye(3), PERIODIC, 3.0), r"\[1, 2\]"),
        (([0, 0, 0], np.eye(3), PERIODIC, 3.0), "shape"),
        (([[0, 0, 0]], np.ones(3), PERIODIC, 3.0), "shape"),
        (([[0, 0, 0]], np.eye(3), True, 3.0), "shape"),
        (([["a", "b", "c"]], np.eye(3), PERIODIC, 3.0), "arrays of numbers"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(GeometryError, match=message):
        neighbor_list(*arguments)


def test_shift_overflow_is_refused():
    with pytest.raises(GeometryError, match="wrap"):
        neighbor_list([[0, -9e7, 0], [0, 9e7, 0]], [[1, 0, 0], [99, 0.1, 0], [0, 0, 1]], PERIODIC, 1.0)


@settings(max_examples=40, deadline=None)
@given(seeds, st.lists(st.integers(0, 9), max_size=6), st.floats(0.5, 6.0), st.booleans())
def test_molecule_edges_agree_with_neighbor_list(seed, sizes, cutoff, double):
    rng = np.random.default_rng(seed)
    ptr = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    positions = rng.normal(0.0, 2.0, (ptr[-1], 3)).astype(np.float64 if double else np.float32)
    edges = molecule_edges(torch.from_numpy(positions).requires_grad_(), torch.from_numpy(ptr), cutoff)
    expected = [
        neighbor_list(positions[a:b], np.zeros((3, 3)), OPEN, cutoff).edge_index + a
        for a, b in zip(ptr[:-1], ptr[1:], strict=True)
    ]
    assert edges.dtype == torch.int64
    assert not edges.requires_grad
    assert edges.tolist() == np.concatenate([np.empty((2, 0), dtype=np.int64), *expected], axis=1).tolist()


@pytest.mark.parametrize(
    ("pos", "ptr", "cutoff", "message"),
    [
        (torch.zeros(4, 2), torch.tensor([0, 4]), 3.0, "pos"),
        (torch.zeros(4, 3, dtype=torch.int64), torch.tensor([0, 4]), 3.0, "pos"),
        (torch.zeros(4, 3), torch.tensor([0, 3]), 3.0, "ptr"),
        (torch.zeros(4, 3), torch.tensor([0, 5, 4]), 3.0, "ptr"),
        (torch.zeros(4, 3), torch.tensor([1, 4]), 3.0, "ptr"),
        (torch.zeros(4, 3), torch.tensor([0.0, 4.0]), 3.0, "ptr"),
        (torch.full((4, 3), torch.nan), torch.tensor([0, 4]), 3.0, "finite"),
        (torch.zeros(4, 3), torch.tensor([0, 4]), 0.0, "cutoff"),
    ],
)
def test_molecule_edges_errors(pos, ptr, cutoff, message):
    with pytest.raises(GeometryError, match=message):
        molecule_edges(pos, ptr, cutoff)


@pytest.mark.gpu
def test_molecule_edges_on_gpu():
    pos, ptr = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 7, 7, 30, 40])
    assert torch.equal(molecule_edges(pos.cuda(), ptr.cuda(), 2.0).cpu(), molecule_edges(pos, ptr, 2.0))


def check_complete(cache: SkinCache, positions, cell, pbc) -> None:
    """The cached list, cut at the cutoff, is the fresh list: same pairs, same shifts, same order."""
    edges = cache.update(positions, cell, pbc)
    near = np.linalg.norm(edges.vectors(positions, cell), axis=1) < cache.cutoff
    fresh = neighbor_list(positions, cell, pbc, cache.cutoff)
    assert sorted(pairs(edges, near)) == pairs(fresh)
    assert (np.diff(edges.edge_index[1]) >= 0).all()


@settings(max_examples=40, deadline=None)
@given(
    seeds,
    directions,
    st.sampled_from([0.0, 0.3, 1.0]),
    st.lists(st.sampled_from(["still", "jiggle", "wrap", "strain", "cell only", "drift", "leap", "swap"]), max_size=15),
)
def test_skin_cache_is_always_complete(seed, pbc, skin, moves):
    rng = np.random.default_rng(seed)
    cell = random_cell(rng, 4.0, 0.3)
    positions = rng.normal(0.0, 4.0, (6, 3))
    cache = SkinCache(3.0, skin)
    for move in ["still", *moves]:
        if move == "jiggle":
            positions = positions + rng.normal(0.0, 0.05, positions.shape)
        elif move == "wrap":
            positions = positions + (rng.integers(-2, 3, positions.shape) * pbc) @ cell
        elif move == "strain":
            deformation = np.eye(3) + rng.normal(0.0, 0.01, (3, 3))
            positions, cell = (positions - 1.0) @ deformation + 1.0, cell @ deformation
        elif move == "cell only":
            cell = cell + rng.normal(0.0, 0.02, (3, 3))
        elif move == "drift":
            positions = positions + rng.normal(0.0, 2.0, 3)
        elif move == "leap":
            positions = positions.copy()
            positions[rng.integers(6)] += rng.normal(0.0, 1.0, 3)
        elif move == "swap":
            positions = positions[::-1].copy()
        check_complete(cache, positions, cell, pbc)


def test_skin_cache_saves_builds():
    """A thermal walk with wrapping after every step and slow strain, as in constant-pressure dynamics."""
    rng = np.random.default_rng(5)
    cell = np.diag([9.0, 8.0, 10.0]) + rng.normal(0.0, 0.5, (3, 3))
    positions = rng.uniform(0.0, 1.0, (40, 3)) @ cell
    cache = SkinCache(4.0, 1.0)
    wraps = 0
    for _ in range(60):
        positions = positions + rng.normal(0.0, 0.02, positions.shape)
        deformation = np.eye(3) + rng.normal(0.0, 2e-4, (3, 3))
        positions, cell = positions @ deformation, cell @ deformation
        outside = np.floor(positions @ np.linalg.inv(cell))
        wraps += int(np.abs(outside).sum())
        positions = positions - outside @ cell
        check_complete(cache, positions, cell, PERIODIC)
    assert wraps > 10
    assert 1 <= cache.builds <= 6


def test_skin_cache_bound_is_the_familiar_rule():
    positions = np.array([[0.0, 0, 0], [6.01, 0, 0]])
    cache = SkinCache(5.0, 1.0)
    zero = np.zeros((3, 3))
    approach = np.array([[1.0, 0, 0], [-1, 0, 0]])
    first = cache.update(positions, zero, OPEN)
    assert cache.rebuilt
    assert cache.update(positions + 0.499 * approach, zero, OPEN) is first
    assert not cache.rebuilt
    closer = cache.update(positions + 0.51 * approach, zero, OPEN)
    assert cache.rebuilt
    assert cache.builds == 2
    assert len(closer.shift) == 2


def test_skin_cache_in_a_large_cell():
    """Atoms scaled with the cell keep the list; atoms left behind by a shrinking cell meet across its boundary."""
    positions, cell = np.array([[0.0, 0, 0], [97.995, 0, 0], [40, 30, 60]]), 100.0 * np.eye(3)
    cache = SkinCache(1.0, 1.0)
    cache.update(positions, cell, PERIODIC)
    cache.update(1.01 * positions, 1.01 * cell, PERIODIC)
    assert cache.builds == 1
    check_complete(cache, positions, 0.9899 * cell, PERIODIC)  # the first two atoms are now 0.995 apart
    assert cache.builds == 2


def test_skin_cache_rebuilds_when_the_system_changes():
    cache = SkinCache(3.0, 1.0)
    positions, cell = np.array([[0.0, 0, 0], [1, 1, 1]]), 5.0 * np.eye(3)
    cache.update(positions, cell, PERIODIC)
    cache.update(positions, cell, [True, True, False])
    cache.update(positions[:1], cell, [True, True, False])
    cache.update(positions[:1], 0.5 * cell, [True, True, False])
    assert cache.builds == 4
    cache.update(positions[:1], 0.5 * cell + np.diag([0.0, 0, 7.0]), [True, True, False])  # the open direction
    assert cache.builds == 4
    cache.update(np.zeros((0, 3)), cell, PERIODIC)
    cache.update(np.zeros((0, 3)), 2 * cell, PERIODIC)
    assert cache.rebuilt


def test_skin_cache_does_not_see_later_changes_of_its_input():
    cache = SkinCache(3.0, 0.5)
    positions, cell = np.array([[0.0, 0, 0], [4, 4, 4]]), 9.0 * np.eye(3)
    cache.update(positions, cell, PERIODIC)
    positions[1] = 1.0
    check_complete(cache, positions, cell, PERIODIC)
    cell[:] = 3.0 * np.eye(3)
    check_complete(cache, positions, cell, PERIODIC)
    assert cache.builds == 3


def test_skin_cache_without_skin_is_exact():
    cache = SkinCache(3.0, 0.0)
    positions, cell = np.array([[0.0, 0, 0], [1, 1, 1]]), 4.0 * np.eye(3)
    assert cache.update(positions, cell, PERIODIC) is cache.update(positions.copy(), cell.copy(), PERIODIC)
    cache.update(positions + 1e-12, cell, PERIODIC)
    cache.update(positions + 1e-12, 1.001 * cell, PERIODIC)
    assert cache.builds == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300, 1e200])
def test_skin_cache_errors_leave_it_usable(bad):
    cache = SkinCache(3.0, 1.0)
    positions, cell = np.array([[0.0, 0, 0], [1, 1, 1]]), 4.0 * np.eye(3)
    first = cache.update(positions, cell, PERIODIC)
    with pytest.raises(GeometryError, match="first is atom 0"):
        cache.update(np.array([[bad, 0, 0], [1, 1, 1]]), cell, PERIODIC)
    for broken in (0 * cell, np.full((3, 3), bad)):
        with pytest.raises(GeometryError, match="cell"):
            cache.update(positions, broken, PERIODIC)
    assert cache.update(positions, cell, PERIODIC) is first


@pytest.mark.parametrize(("cutoff", "skin"), [(0.0, 1.0), (np.nan, 1.0), (3.0, np.nan), (3.0, -1.0), (3.0, np.inf)])
def test_skin_cache_refuses_bad_lengths(cutoff, skin):
    with pytest.raises(GeometryError, match=r"cutoff|skin"):
        SkinCache(cutoff, skin)
