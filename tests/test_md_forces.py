"""Forces of batches against `simkit.Calculator` and ASE, and edges that are kept against new ones."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from hypothesis import given
from hypothesis import strategies as st

from simkit import potentials
from simkit.calculator import Calculator
from simkit.classical import ClassicalCalculator, ClassicalPotential, LennardJones
from simkit.errors import ConfigError, ElementError, GeometryError
from simkit.md.cell_list import batch_neighbor_list
from simkit.md.edges import Edges
from simkit.md.forces import CHUNK_ATOMS, PotentialForces, as_forces
from simkit.md.forces_ase import CalculatorForces
from simkit.md.forces_classical import ClassicalForces
from simkit.md.state import State
from simkit.neighbors import neighbor_list
from simkit.potential import Potential

CUTOFF = 4.0


def painn() -> Potential:
    return potentials.build("painn", cutoff=CUTOFF, elements=[1, 6, 8, 14], channels=16, layers=2, basis=8, seed=3)


def silicon(rng: np.random.Generator, repeat: int = 1) -> Atoms:
    atoms = bulk("Si", cubic=True) * (repeat, 1, 1)
    atoms.positions += rng.normal(0.0, 0.1, atoms.positions.shape)
    return atoms


def mixed(rng: np.random.Generator) -> list[Atoms]:
    slab = Atoms(
        "Si4", rng.uniform(0, 4, (4, 3)) + np.arange(4)[:, None], cell=[5.0, 4.0, 0.0], pbc=[True, True, False]
    )
    far = molecule("CH4")
    far.positions += [50.0, -30.0, 7.0]
    return [molecule("CH3CH2OH"), silicon(rng), far, slab, Atoms("H"), silicon(rng, 2)]


def lennard_jones() -> ClassicalPotential:
    return ClassicalPotential([LennardJones(0.01, 2.2, cutoff=5.0, form="switched")], cell=np.eye(3), pbc=True)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_mixed_batch_has_the_calculators_numbers(dtype: str, rng: np.random.Generator) -> None:
    structures = mixed(rng)
    state = State.from_atoms(structures)
    PotentialForces(painn(), dtype=dtype).compute(state)
    tolerance = 1e-12 if dtype == "float64" else 2e-5
    for k, atoms in enumerate(structures):
        atoms.calc = Calculator(painn(), dtype=dtype)
        part = slice(state.offsets[k], state.offsets[k + 1])
        np.testing.assert_allclose(state.forces[part].numpy(), atoms.get_forces(), rtol=0, atol=tolerance)
        np.testing.assert_allclose(float(state.energy[k]), atoms.get_potential_energy(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", ["molecule", "crystal"])
def test_one_replica_has_the_calculators_bits(dtype: str, kind: str, rng: np.random.Generator) -> None:
    atoms = molecule("CH3CH2OH") if kind == "molecule" else silicon(rng)
    state, forces = State.from_atoms([atoms]), PotentialForces(painn(), dtype=dtype)
    atoms.calc = Calculator(painn(), dtype=dtype)
    for _ in range(5):
        forces.compute(state, stress=kind == "crystal")
        assert (state.forces.numpy() == atoms.get_forces()).all()
        assert float(state.energy) == atoms.get_potential_energy()
        if kind == "crystal":
            assert (state.stress[0].numpy() == atoms.get_stress(voigt=False)).all()
        atoms.positions += rng.normal(0.0, 0.1, atoms.positions.shape)
        state.positions.copy_(torch.from_numpy(atoms.positions))


def test_stress_and_cells_that_change(rng: np.random.Generator) -> None:
    structures = [silicon(rng), silicon(rng, 2)]
    state, forces = State.from_atoms(structures), PotentialForces(painn(), dtype="float64")
    for _ in range(6):
        forces.compute(state, stress=True)
        for k, atoms in enumerate(structures):
            atoms.calc = Calculator(painn(), dtype="float64")
            np.testing.assert_allclose(state.stress[k].numpy(), atoms.get_stress(voigt=False), rtol=0, atol=1e-13)
            strain = np.eye(3) + rng.normal(0.0, 0.01, (3, 3))
            atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            state.cells[k] = torch.from_numpy(atoms.cell.array)
            state.positions[state.offsets[k] : state.offsets[k + 1]] = torch.from_numpy(atoms.positions)
    forces.compute(state)
    assert state.stress.isnan().all(), "the stress of earlier positions must not stay"


def test_total_charges_reach_the_model(rng: np.random.Generator) -> None:
    model = potentials.build(
        "painn", cutoff=CUTOFF, elements=[1, 8], channels=8, layers=1, basis=4, outputs=["energy", "dipole"], seed=1
    )
    water = molecule("H2O")
    water.info["charge"] = 1.0
    state = State.from_atoms([water, molecule("H2O")])
    forces = PotentialForces(model)
    forces.compute(state)
    graph = forces._chunks[0].graph
    charges = forces.potential(graph, ["charges"])["charges"]
    np.testing.assert_allclose(charges.view(2, 3).sum(1).numpy(), [1.0, 0.0], atol=1e-6)


def test_large_batches_are_cut(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    structures = [*mixed(rng), molecule("CH3CH2OH")]
    whole, cut = State.from_atoms(structures), State.from_atoms(structures)
    PotentialForces(painn(), dtype="float64").compute(whole)
    monkeypatch.setitem(CHUNK_ATOMS, "cpu", 10)
    forces = PotentialForces(painn(), dtype="float64")
    forces.compute(cut)
    assert forces.evaluations == 5  # 9 | 8 | 5 + 4 + 1 | 16 | 9: at most ten atoms, or one replica
    np.testing.assert_allclose(cut.forces.numpy(), whole.forces.numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(cut.energy.numpy(), whole.energy.numpy(), rtol=0, atol=1e-12)


def test_classical_forces(rng: np.random.Generator) -> None:
    structures = [silicon(rng), silicon(rng, 2)]
    state, forces = State.from_atoms(structures), ClassicalForces(lennard_jones())
    for step in range(8):
        forces.compute(state, stress=True)
        for k, atoms in enumerate(structures):
            atoms.calc = ClassicalCalculator(lennard_jones().terms)
            part = slice(state.offsets[k], state.offsets[k + 1])
            np.testing.assert_allclose(state.forces[part].numpy(), atoms.get_forces(), rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(float(state.energy[k]), atoms.get_potential_energy(), rtol=1e-12)
            np.testing.assert_allclose(state.stress[k].numpy(), atoms.get_stress(voigt=False), rtol=1e-10, atol=1e-14)
            atoms.positions += rng.normal(0.0, 0.1, atoms.positions.shape)
            if step == 5:
                atoms.set_cell(atoms.cell.array * 1.02, scale_atoms=True)
            state.positions[part] = torch.from_numpy(atoms.positions)
            state.cells[k] = torch.from_numpy(atoms.cell.array)
    forces.compute(state, energy=False)
    assert state.energy.isnan().all()
    assert state.stress.isnan().all()


def test_classical_lists_are_restored_to_the_bit(rng: np.random.Generator) -> None:
    """The order of sums depends on when a list was built: the positions of the build lie in the state."""
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True) * (4, 4, 4)
    state, forces = State.from_atoms([atoms]), ClassicalForces(lennard_jones())
    forces.compute(state)
    state.positions += torch.from_numpy(rng.normal(0.0, 0.05, atoms.positions.shape))
    forces.compute(state)
    expected = state.forces.clone()
    fresh = ClassicalForces(lennard_jones())
    fresh.compute(state)
    assert torch.equal(state.forces, expected)
    del state.extra["classical.list"], state.extra["classical.list_cells"]
    forgetful = ClassicalForces(lennard_jones())
    forgetful.compute(state)
    assert not torch.equal(state.forces, expected), "if this holds, the positions need not be kept"


def test_ase_calculators(rng: np.random.Generator) -> None:
    structures = [bulk("Cu", cubic=True), bulk("Al", cubic=True)]
    for atoms in structures:
        atoms.positions += rng.normal(0.0, 0.1, atoms.positions.shape)
    state = State.from_atoms(structures)
    as_forces(EMT()).compute(state, stress=True)
    for k, atoms in enumerate(structures):
        atoms.calc = EMT()
        assert (state.forces[4 * k : 4 * k + 4].numpy() == atoms.get_forces()).all()
        assert float(state.energy[k]) == atoms.get_potential_energy()
        np.testing.assert_allclose(state.stress[k].numpy(), atoms.get_stress(voigt=False), atol=1e-15)


def test_models_find_their_forces(tmp_path) -> None:
    model = painn()
    model.save(tmp_path / "model.safetensors")
    for source in (model, tmp_path / "model.safetensors", str(tmp_path / "model.safetensors"), Calculator(model)):
        found = as_forces(source)
        assert isinstance(found, PotentialForces)
        assert found.identity() == PotentialForces(model).identity()
    double = as_forces(Calculator(model, dtype="float64"))
    assert isinstance(double, PotentialForces)
    assert double.potential.dtype == torch.float64
    assert double.identity() != PotentialForces(model).identity()
    for source in (lennard_jones(), ClassicalCalculator(lennard_jones().terms)):
        assert isinstance(as_forces(source), ClassicalForces)
    assert (
        ClassicalForces(lennard_jones()).identity()
        != ClassicalForces(ClassicalPotential([LennardJones(0.01, 2.3, cutoff=5.0)])).identity()
    )
    assert isinstance(as_forces(EMT()), CalculatorForces)
    assert as_forces(double) is double
    with pytest.raises(ConfigError, match="expected a Potential"):
        as_forces(3)
    with pytest.raises(ConfigError, match="dtype='float32' is for neural"):
        as_forces(EMT(), dtype="float32")


def test_bad_states_are_named(rng: np.random.Generator) -> None:
    forces = PotentialForces(painn())
    with pytest.raises(ElementError, match=r"replica 1 holds N"):
        forces.compute(State.from_atoms([molecule("CH4"), molecule("NH3")]))
    with pytest.raises(ConfigError, match="pbc of replica 0"):
        forces.compute(State.from_atoms([molecule("CH4"), silicon(rng)]), stress=True)
    same = molecule("CH4")
    same.positions[1] = same.positions[0]
    with pytest.raises(GeometryError, match="same place"):
        forces.compute(State.from_atoms([same]))
    lost = State.from_atoms([molecule("CH4")])
    lost.positions[2] = torch.nan
    with pytest.raises(GeometryError):
        forces.compute(lost)


def expected_edges(state: State, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    edges, shifts = [], []
    for k in range(state.size):
        part = slice(state.offsets[k], state.offsets[k + 1])
        found = neighbor_list(state.positions[part].numpy(), state.cells[k].numpy(), state.pbc[k], cutoff)
        edges.append(found.edge_index + state.offsets[k])
        shifts.append(found.shift)
    return np.concatenate(edges, axis=1), np.concatenate(shifts)


@given(
    seed=st.integers(0, 10**6),
    skin=st.sampled_from([0.0, 0.3, 1.0]),
    strain=st.sampled_from([0.0, 0.003, 0.03]),
    on_device=st.booleans(),
)
def test_kept_edges_are_those_of_a_new_list(seed: int, skin: float, strain: float, on_device: bool) -> None:
    """``on_device``: the way it goes on a GPU, here on the CPU's tensors."""
    rng = np.random.default_rng(seed)
    structures = [
        Atoms(
            f"H{n}",
            rng.uniform(-9.0, 9.0, (n, 3)),
            cell=np.eye(3) * rng.uniform(2.5, 7.0) + rng.normal(0.0, 0.3, (3, 3)),
            pbc=rng.integers(0, 2, 3),
        )
        for n in rng.integers(1, 12, 3)
    ]
    structures.append(Atoms("H40", rng.uniform(0.0, 9.0, (40, 3))))
    state = State.from_atoms(structures)
    edges = Edges(state.positions, state.cells, state.pbc, state.offsets, CUTOFF, skin)
    edges._on_device = on_device
    for _ in range(4):
        edge_index, shift = edges.update()
        expected, shifts = expected_edges(state, CUTOFF)
        assert np.array_equal(edge_index.numpy(), expected)
        assert np.array_equal(np.zeros_like(shifts) if shift is None else shift.numpy(), shifts)
        state.positions += torch.from_numpy(rng.normal(0.0, 0.06, state.positions.shape))
        state.positions += 3.0  # all atoms together: no reason to build lists
        for k in range(state.size):
            move = torch.from_numpy(np.eye(3) + strain * rng.normal(size=(3, 3)))
            state.cells[k] = state.cells[k] @ move
            part = slice(state.offsets[k], state.offsets[k + 1])
            state.positions[part] = state.positions[part] @ move


def test_a_gpu_keeps_all_pairs_of_small_molecules() -> None:
    state = State.from_atoms([molecule("CH4"), Atoms("H3", [[0, 0, 0], [1, 0, 0], [9, 0, 0]])])
    edges = Edges(state.positions, state.cells, state.pbc, state.offsets, CUTOFF, 0.5)
    assert edges.update()[0].shape[1] == 22
    edges._on_device = True
    edge_index, shift = edges.update()
    assert edge_index[:, -6:].tolist() == [[6, 7, 5, 7, 5, 6], [5, 5, 6, 6, 7, 7]]
    assert edge_index.shape[1] == 26
    assert shift is None


def test_lists_are_built_where_needed_only() -> None:
    structures = [bulk("Cu", cubic=True) * 2, bulk("Cu", cubic=True) * 2, molecule("CH4")]
    state = State.from_atoms(structures)
    edges = Edges(state.positions, state.cells, state.pbc, state.offsets, CUTOFF, 0.5)
    edges.update()
    state.positions += 7.3
    state.positions[3, 0] += 0.2
    edges.update()
    assert edges.builds.tolist() == [1, 1, 0]
    state.positions[3, 0] += 0.2
    edges.update()
    assert edges.builds.tolist() == [2, 1, 0]
    state.cells[1] *= 0.99  # little enough for the list to reach far enough
    edges.update()
    assert edges.builds.tolist() == [2, 1, 0]
    state.cells[1] *= 0.96  # the atoms stay where they were: they have moved against their lattice
    edges.update()
    assert edges.builds.tolist() == [2, 2, 0]
    with pytest.raises(ConfigError, match="skin"):
        Edges(state.positions, state.cells, state.pbc, state.offsets, CUTOFF, -1.0)


@given(seed=st.integers(0, 10**6), cutoff=st.sampled_from([1.0, 3.0, 6.0]))
def test_the_device_builder_finds_the_same_pairs(seed: int, cutoff: float) -> None:
    rng = np.random.default_rng(seed)
    structures = []
    for n in rng.integers(1, 14, 3):
        cell = np.eye(3) * rng.uniform(2.0, 9.0, (3, 1)) + rng.normal(0.0, 0.4, (3, 3))
        pbc = rng.integers(0, 2, 3).astype(bool)
        cell[~pbc] *= rng.integers(0, 2)
        structures.append(Atoms(f"H{n}", rng.normal(0.0, 8.0, (n, 3)), cell=cell, pbc=pbc))
    state = State.from_atoms(structures)
    edge_index, shift = batch_neighbor_list(state.positions, state.cells, state.pbc, state.offsets, cutoff)
    expected, shifts = expected_edges(state, cutoff)
    assert np.array_equal(edge_index.numpy(), expected)
    assert np.array_equal(shift.numpy(), shifts)


def test_the_device_builder_refuses_bad_input() -> None:
    state = State.from_atoms([bulk("Cu", cubic=True), bulk("Cu", cubic=True)])
    flat, lost = state.cells.clone(), state.positions.clone()
    flat[1, 2] = flat[1, 1]
    lost[5] = torch.inf
    for positions, cells, what in (
        (state.positions, flat, "replica 1 has no volume"),
        (lost, state.cells, "positions"),
    ):
        with pytest.raises(GeometryError, match=what):
            batch_neighbor_list(positions, cells, state.pbc, state.offsets, CUTOFF)
