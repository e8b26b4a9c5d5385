"""`AtomGraph`: to and from ASE, edge vectors, and what PyG's loaders make of it."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.loader import DataLoader

from simkit import potentials
from simkit.errors import DataError, GeometryError, LabelError
from simkit.graph import LABELS, AtomGraph, one_direction


def slab() -> Atoms:
    frame = Atoms("HCO", positions=[[0, 0, 0], [1.1, 0.2, 0.9], [0.1, 1.3, 2.2]], pbc=(True, False, True))
    frame.set_cell([[3.0, 0.4, 0.0], [0.0, 9.0, 0.0], [0.5, 0.0, 3.3]])
    return frame


def mixed() -> list[Atoms]:
    """A molecule, a skewed cell with self images, one atom, a slab; in this order the first has no periodic direction."""
    silicon = bulk("Si", a=5.43)
    silicon.rattle(0.1, seed=1)
    return [molecule("CH3OH"), silicon, Atoms("O"), slab()]


# ----------------------------------------------------------------------------------------------------------- ASE


def test_from_ase_and_back() -> None:
    frames = mixed()
    frames[0].info["charge"] = -1.0
    graph = AtomGraph.from_ase(frames, cutoff=4.0)
    assert graph.num_structures == 4
    assert graph.z.dtype == graph.batch.dtype == graph.ptr.dtype == graph.edge_index.dtype == torch.int64
    assert graph.pos.dtype == graph.cell.dtype == graph.edge_shift.dtype == torch.float64
    assert (graph.pbc.dtype, tuple(graph.pbc.shape), tuple(graph.cell.shape)) == (torch.bool, (4, 3), (4, 3, 3))
    assert graph.ptr.tolist() == [0, 6, 8, 9, 12]
    assert graph.charge.tolist() == [-1.0, 0.0, 0.0, 0.0]
    assert (graph.edge_index[1].diff() >= 0).all()
    for before, after in zip(frames, graph.to_ase(), strict=True):
        assert before == after  # species, positions, cell and periodic directions
        assert after.info["charge"] == before.info.get("charge", 0.0)
        assert after.calc is None


def test_labels_become_results() -> None:
    frames = [slab(), slab()[:2]]
    graph = AtomGraph.from_ase(frames, cutoff=3.0)
    rng = np.random.default_rng(1)
    stress = rng.normal(size=(2, 3, 3))
    labels = {
        "energy": rng.normal(size=2),
        "forces": rng.normal(size=(5, 3)),
        "stress": stress + stress.transpose(0, 2, 1),
        "charges": rng.normal(size=5),
        "dipole": rng.normal(size=(2, 3)),
    }
    for name, value in labels.items():
        graph[name] = torch.from_numpy(value)
    for k, (frame, atoms) in enumerate(zip(graph.to_ase(), (slice(0, 3), slice(3, 5)), strict=True)):
        assert isinstance(frame.calc, SinglePointCalculator)
        assert frame.get_potential_energy() == labels["energy"][k]
        np.testing.assert_array_equal(frame.get_forces(), labels["forces"][atoms])
        np.testing.assert_array_equal(frame.get_stress(voigt=False), labels["stress"][k])
        np.testing.assert_array_equal(frame.get_charges(), labels["charges"][atoms])
        np.testing.assert_array_equal(frame.get_dipole_moment(), labels["dipole"][k])


@given(seed=st.integers(0, 2**32 - 1))
def test_edges_against_ase_distances(seed: int) -> None:
    """In a cell larger than twice the cutoff, edges are the pairs of ASE's minimum-image distances."""
    rng = np.random.default_rng(seed)
    n, cutoff = int(rng.integers(2, 12)), 3.0
    cell = 7.0 * (np.eye(3) + rng.uniform(-0.1, 0.1, (3, 3)))
    frame = Atoms("H" * n, positions=rng.uniform(-20, 20, (n, 3)), cell=cell, pbc=rng.integers(0, 2, 3) > 0)
    graph = AtomGraph.from_ase([frame, frame], cutoff)
    found = graph.edge_vectors().numpy()
    vectors = frame.get_all_distances(mic=True, vector=True)  # [i, j] from i to j
    distances = np.linalg.norm(vectors, axis=2)
    receiver, sender = np.nonzero((distances < cutoff) & ~np.eye(n, dtype=bool))
    expected = np.concatenate([vectors[receiver, sender]] * 2)
    np.testing.assert_array_equal(graph.edge_index.numpy()[0, : len(sender)], sender)
    np.testing.assert_array_equal(graph.edge_index.numpy()[1, : len(sender)], receiver)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_edge_vectors_with_and_without_shifts() -> None:
    graph = AtomGraph.from_ase([molecule("CH3OH"), molecule("H2O")], 4.0)
    expected = graph.edge_vectors()
    graph.edge_shift = None
    assert torch.equal(graph.edge_vectors(), expected)
    silicon = AtomGraph.from_ase(mixed()[1], 4.0)
    assert silicon.edge_vectors().norm(dim=1).max() < 4.0
    assert (silicon.edge_index[0] == silicon.edge_index[1]).any()  # atoms that see their own images


def test_edge_vectors_are_differentiable() -> None:
    graph = AtomGraph.from_ase(mixed()[1], 4.0)
    graph.pos.requires_grad_(True)
    graph.edge_vectors().square().sum().backward()
    assert graph.pos.grad is not None
    torch.testing.assert_close(graph.pos.grad.sum(dim=0), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_dtype_and_device(device: str) -> None:
    graph = AtomGraph.from_ase(mixed(), 4.0, dtype=torch.float32, device=device)
    for name in ("pos", "cell", "edge_shift"):
        assert graph[name].dtype == torch.float32
    for _, value in graph:
        assert value.device.type == device
    assert graph.edge_vectors().dtype == torch.float32
    torch.testing.assert_close(graph.to_ase()[3].positions, slab().positions, rtol=0, atol=1e-6)


@pytest.mark.parametrize("frames", [[], Atoms(), [molecule("H2O"), Atoms()]])
def test_empty_structures(frames: Atoms | list[Atoms]) -> None:
    with pytest.raises(DataError, match="at least one structure with at least one atom"):
        AtomGraph.from_ase(frames, 4.0)


def test_unusable_geometry() -> None:
    broken = molecule("H2O")
    broken.positions[1, 1] = np.nan
    with pytest.raises(GeometryError, match="finite"):
        AtomGraph.from_ase(broken, 4.0)
    with pytest.raises(GeometryError):
        AtomGraph.from_ase(Atoms("H", cell=[[1, 0, 0], [2, 0, 0], [0, 0, 1]], pbc=True), 4.0)


def test_unknown_label() -> None:
    with pytest.raises(LabelError, match="unknown label 'force'; known labels: energy, forces"):
        AtomGraph(force=torch.zeros(3, 3))


def test_label_table() -> None:
    for name, spec in LABELS.items():
        assert spec.name == name
        assert spec.unit
        assert spec.description
    assert LABELS["forces"].shape == (3,)
    assert LABELS["stress"].shape == (3, 3)
    assert LABELS["stress"].per == "graph"


# ----------------------------------------------------------------------------------------------------------- PyG


@pytest.mark.parametrize("workers", [0, 1])
def test_pyg_loader_gives_the_same_batch(workers: int) -> None:
    frames = mixed()
    expected = AtomGraph.from_ase(frames, 4.0)
    graphs = [AtomGraph.from_ase(frame, 4.0) for frame in frames]
    batch = next(iter(DataLoader(graphs, batch_size=4, num_workers=workers)))
    assert isinstance(batch, AtomGraph)
    assert batch.num_structures == 4
    assert set(batch.keys()) == set(expected.keys())
    for name, value in expected:
        assert torch.equal(batch[name], value), name
    assert [frame == again for frame, again in zip(frames, batch.to_ase(), strict=True)] == [True] * 4
    assert torch.equal(batch.get_example(1).pos, graphs[1].pos)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 1)])
def test_energies_of_a_pyg_batch(order: tuple[int, ...]) -> None:
    potential = potentials.build("painn", cutoff=4.0, elements=[1, 6, 8, 14], dtype="float64", channels=16, layers=2)
    frames = [mixed()[k] for k in order]
    batch = next(iter(DataLoader([AtomGraph.from_ase(frame, 4.0) for frame in frames], batch_size=4)))
    results = potential(batch, ("energy", "forces"))
    for key, value in potential(AtomGraph.from_ase(frames, 4.0), ("energy", "forces")).items():
        assert torch.equal(results[key], value)
    crystals = [AtomGraph.from_ase(frame, 4.0) for frame in (mixed()[1], bulk("Si"))]
    results = potential(next(iter(DataLoader(crystals, batch_size=2))), ("stress",))
    singles = torch.cat([potential(crystal, ("stress",))["stress"] for crystal in crystals])
    torch.testing.assert_close(results["stress"], singles, rtol=1e-10, atol=1e-12)


def test_labels_in_a_pyg_batch() -> None:
    graphs = []
    for energy, frame in enumerate((molecule("H2O"), slab())):
        graph = AtomGraph.from_ase(frame, 4.0)
        graph.energy = torch.tensor([float(energy)], dtype=torch.float64)
        graph.forces = torch.full((3, 3), float(energy))
        graph.stress = torch.full((1, 3, 3), float(energy))
        graphs.append(graph)
    batch = next(iter(DataLoader(graphs, batch_size=2)))
    assert batch.energy.tolist() == [0.0, 1.0]
    assert batch.forces.shape == (6, 3)
    assert batch.stress.shape == (2, 3, 3)


def test_pyg_does_not_collate_batches() -> None:
    """It would number the batches and not the structures."""
    graphs = [AtomGraph.from_ase([molecule("H2O"), slab()], 4.0)] * 2
    with pytest.raises(DataError, match="graphs of one structure each, found one of 2"):
        next(iter(DataLoader(graphs, batch_size=2)))


def test_copies_are_independent() -> None:
    graph = AtomGraph.from_ase(mixed(), 4.0)
    copied = graph.clone()
    copied.pos += 1.0
    assert isinstance(copied, AtomGraph)
    assert not torch.equal(graph.pos, copied.pos)


@pytest.mark.parametrize("pbc", [False, True, (True, False, True)])
@pytest.mark.parametrize("size", [1.8, 6.0])
def test_one_direction_takes_each_pair_once(pbc, size):
    """Also where atoms see several of their own images, which differ by the direction alone."""
    rng = np.random.default_rng(3)
    cell = size * np.eye(3) + rng.normal(0.0, 0.2, (3, 3))
    atoms = Atoms("C3", rng.uniform(0.0, size, (3, 3)), cell=cell, pbc=pbc)
    graph = AtomGraph.from_ase(atoms, 4.0)
    vectors = graph.edge_vectors()
    chosen = one_direction(graph.edge_index, vectors)
    assert 2 * len(chosen) == graph.edge_index.shape[1] > 0
    ends, half = graph.edge_index[:, chosen], vectors[chosen]
    both = torch.cat([torch.cat([ends, ends.flip(0)], dim=1).T.double(), torch.cat([half, -half])], dim=1)
    every = torch.cat([graph.edge_index.T.double(), vectors], dim=1)
    rows = sorted(tuple(row) for row in both.mul(1e8).round().tolist())
    assert rows == sorted(tuple(row) for row in every.mul(1e8).round().tolist())
