"""Rows of edges: their order, pairs and forces against loops, autograd and what the reference path refuses."""

import numpy as np
import pytest
import torch
from ase import Atoms
from fast_cases import (
    ARCHITECTURES,
    CUTOFF,
    differences,
    ethanol,
    everything,
    graph,
    model,
    narrow,
    silicon,
    slab,
)
from global_settings import threads
from hypothesis import given
from hypothesis import strategies as st

from simkit.errors import GeometryError
from simkit.fast.rows import Rows, UnorderedEdgesError, _order
from simkit.fast.workspace import Workspace
from simkit.graph import AtomGraph


def rows_of(edges: AtomGraph, cutoff: float = CUTOFF) -> Rows:
    return Rows(Workspace(), edges, cutoff, 64, torch.float64)


def check_pairs(edges: AtomGraph, rows: Rows) -> None:
    """Each slot and its reverse are the two directions of one pair, and every slot is the reverse of one."""
    sender, receiver = edges.edge_index.numpy()
    back = rows.reverse
    np.testing.assert_array_equal(back[back], np.arange(len(back)))
    np.testing.assert_array_equal(sender[back], receiver)
    np.testing.assert_array_equal(receiver[back], sender)
    np.testing.assert_array_equal(edges.edge_shift.numpy()[back], -edges.edge_shift.numpy())
    np.testing.assert_allclose(rows.vector[back], -rows.vector, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(np.diff(rows.ptr), np.bincount(receiver, minlength=len(edges.z)))


@given(
    atoms=st.integers(1, 4),
    seed=st.integers(0, 10_000),
    cutoff=st.floats(1.5, 5.0),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_pairs_of_random_cells(atoms: int, seed: int, cutoff: float, pbc: tuple[bool, bool, bool]) -> None:
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(1.5, 4.0, 3)) + rng.uniform(-0.4, 0.4, (3, 3))
    frame = Atoms(f"H{atoms}", rng.uniform(-5, 5, (atoms, 3)), cell=cell, pbc=pbc)
    edges = graph(frame, ethanol(), cutoff=cutoff)
    rows = rows_of(edges, cutoff)
    check_pairs(edges, rows)
    np.testing.assert_allclose(rows.vector, edges.edge_vectors().numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(rows.unit.array * rows.distance[:, None], rows.vector, rtol=0, atol=1e-12)


def test_atoms_that_are_their_own_neighbors() -> None:
    edges = graph(narrow())
    sender, receiver = edges.edge_index
    assert int((sender == receiver).sum()) >= 4
    assert int(torch.bincount(sender * 2 + receiver).max()) >= 4
    check_pairs(edges, rows_of(edges))


@pytest.mark.parametrize("tasks", range(1, 9))
def test_every_row_has_one_task(tasks: int) -> None:
    edges = everything()
    sender, receiver = edges.edge_index.numpy()
    n = len(edges.z)
    ptr, reverse, following = np.empty(n + 1, np.int64), np.empty(len(sender), np.int64), np.empty(n, np.int64)
    bounds = np.full(tasks + 1, -7)
    assert _order(sender, receiver, ptr, reverse, following, bounds)
    assert (bounds[0], bounds[-1]) == (0, n)
    assert (np.diff(bounds) >= 0).all()
    shares = np.diff(ptr[bounds])
    assert shares.sum() == len(sender)
    # A row is not cut: no task exceeds its share by more than the longest.
    assert shares.max() <= len(sender) / tasks + np.diff(ptr).max()


@pytest.mark.parametrize(
    "frame", [ethanol(), silicon(2), narrow(), slab()], ids=["molecule", "crystal", "narrow", "slab"]
)
def test_forces_are_those_of_any_function_of_lengths_and_directions(frame: Atoms, rng: np.random.Generator) -> None:
    edges = graph(frame)
    rows = rows_of(edges)
    weights = rng.normal(size=(edges.edge_index.shape[1], 4))
    rows.gradient.array[:] = weights
    forces, virials = rows.forces(virial=True)
    assert rows.forces(virial=False)[1].shape == (0, 3, 3)

    pos, strain = edges.pos.clone().requires_grad_(True), torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    bent = edges.clone()
    bent.pos, bent.cell = pos @ (torch.eye(3) + strain), edges.cell @ (torch.eye(3) + strain)
    vectors = bent.edge_vectors()
    r = vectors.norm(dim=1)
    # A slot holds what the neighbor receives: the vector points the other way.
    energy = (torch.from_numpy(weights) * torch.cat([r[:, None], -vectors / r[:, None]], 1)).sum()
    gradient, virial = torch.autograd.grad(energy, [pos, strain])
    scale = np.abs(weights).max() * len(weights)
    np.testing.assert_allclose(forces.numpy(), -gradient.numpy(), rtol=0, atol=1e-13 * scale)
    np.testing.assert_allclose(virials.sum(0).numpy(), virial.numpy(), rtol=0, atol=1e-12 * scale)


def spoilt(kind: str) -> AtomGraph:
    """The edges of all kinds of structures, in no order or without one of a pair."""
    edges = everything()
    count = edges.edge_index.shape[1]
    if kind == "unsorted":
        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    elif kind == "by sender":
        chosen = edges.edge_index[0].argsort(stable=True)
    else:
        chosen = torch.arange(count)[torch.arange(count) != {"first": 0, "middle": count // 2, "last": count - 1}[kind]]
    edges.edge_index, edges.edge_shift = edges.edge_index[:, chosen].contiguous(), edges.edge_shift[chosen]
    return edges


@pytest.mark.parametrize("kind", ["unsorted", "by sender", "first", "middle", "last"])
def test_other_lists_are_left_to_the_reference(kind: str) -> None:
    edges = spoilt(kind)
    with pytest.raises(UnorderedEdgesError):
        rows_of(edges)
    for architecture in ARCHITECTURES:
        potential = model(architecture)
        fast = potential.fast()
        if kind in ("unsorted", "by sender"):  # the reference counts on pairs, too
            assert set(differences(fast(edges), potential(edges)).values()) == {0.0}
            assert fast.calls == 0
            assert fast.reason == ""


def moved(kind: str, atom: int) -> AtomGraph:
    edges = graph(silicon(), ethanol(), silicon(2))
    edges.pos = edges.pos.clone()
    sender = int(edges.edge_index[0, edges.edge_index[1] == atom][-1])
    if kind == "coincide":
        # The edge may lead to an image: take the sender there.
        slot = int(((edges.edge_index[1] == atom) & (edges.edge_index[0] == sender)).nonzero()[-1])
        edges.pos[atom] += edges.edge_vectors()[slot] + 1e-7
    else:
        edges.pos[atom, 1] = float(kind)
    return edges


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("atom", [0, 3, 12, 32])
@pytest.mark.parametrize("kind", ["coincide", "nan"])
def test_atoms_at_the_same_place_or_nowhere_are_refused(kind: str, atom: int, count: int) -> None:
    edges, potential = moved(kind, atom), model("schnet", layers=1)
    with pytest.raises(GeometryError, match="same place or not finite") as expected:
        potential(edges)
    fast = potential.fast()
    with threads(count):
        fast(graph(silicon(2)))
        with pytest.raises(GeometryError) as found:
            fast(edges)
    assert str(found.value) == str(expected.value)
