"""The ASE calculator: values, derivatives, what is recomputed when, and what is refused."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.stress import full_3x3_to_voigt_6_stress

import simkit
from simkit import potentials
from simkit.calculator import PropertyError
from simkit.errors import ConfigError, DataError, DeviceError, ElementError, GeometryError, ModelFileError
from simkit.graph import AtomGraph
from simkit.neighbors import neighbor_list
from simkit.potential import Potential


def painn(**options: Any) -> Potential:
    arguments: dict[str, Any] = {
        "elements": [1, 6, 8, 14],
        "cutoff": 4.0,
        "channels": 16,
        "layers": 2,
        "dtype": "float64",
    }
    return potentials.build("painn", **{**arguments, **options})


def ethanol() -> Atoms:
    return molecule("CH3CH2OH")


def silicon(seed: int = 0) -> Atoms:
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=seed)
    return atoms


def with_calculator(atoms: Atoms, **options: Any) -> Atoms:
    atoms.calc = simkit.Calculator(painn(), dtype="float64", **options)
    return atoms


def forces_by_differences(atoms: Atoms, step: float = 3e-5) -> np.ndarray:
    forces = np.zeros((len(atoms), 3))
    for i, k in np.ndindex(*forces.shape):
        for sign in (1, -1):
            moved = atoms.copy()
            moved.calc = atoms.calc
            moved.positions[i, k] += sign * step
            forces[i, k] -= sign * moved.get_potential_energy() / (2 * step)
    return forces


def stress_by_differences(atoms: Atoms, step: float = 1e-5) -> np.ndarray:
    stress = np.zeros((3, 3))
    for i, k in np.ndindex(3, 3):
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, k] += sign * step / 2
            strain[k, i] += sign * step / 2
            moved = atoms.copy()
            moved.calc = atoms.calc
            moved.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            stress[i, k] += sign * moved.get_potential_energy() / (2 * step * atoms.get_volume())
    return full_3x3_to_voigt_6_stress(stress)


@pytest.mark.parametrize("atoms", [ethanol(), silicon()], ids=["molecule", "crystal"])
@pytest.mark.parametrize("skin", [0.0, 0.5])
def test_results_equal_those_of_the_potential(atoms: Atoms, skin: float) -> None:
    model = painn()
    atoms = with_calculator(atoms, skin=skin, fast=False)  # see test_fast_potential.py for the fast path
    periodic = bool(atoms.pbc.all())
    outputs = ("energy", "energies", "forces", *(("stress",) if periodic else ()))
    expected = model(AtomGraph.from_ase(atoms, model.cutoff), outputs)
    assert atoms.get_potential_energy() == pytest.approx(expected["energy"].item(), abs=1e-10)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_potential_energies(), expected["energies"].numpy(), atol=1e-10)
    np.testing.assert_allclose(atoms.get_forces(), expected["forces"].numpy(), atol=1e-10)
    if periodic:
        np.testing.assert_allclose(atoms.get_stress(voigt=False), expected["stress"][0].numpy(), atol=1e-10)


def test_float32_results_are_float64_arrays_close_to_double_precision() -> None:
    atoms, double = silicon(), with_calculator(silicon())
    atoms.calc = simkit.Calculator(painn())
    assert atoms.calc.potential.dtype == torch.float32
    assert isinstance(atoms.get_potential_energy(), float)
    for value in (atoms.get_forces(), atoms.get_stress(), atoms.get_potential_energies()):
        assert value.dtype == np.float64
    np.testing.assert_allclose(atoms.get_forces(), double.get_forces(), atol=1e-4)
    np.testing.assert_allclose(atoms.get_stress(), double.get_stress(), atol=1e-4)


def test_forces_and_stress_are_derivatives_of_the_energy() -> None:
    molecule_, crystal = with_calculator(ethanol()), with_calculator(silicon())
    np.testing.assert_allclose(molecule_.get_forces(), forces_by_differences(molecule_), atol=1e-7)
    np.testing.assert_allclose(crystal.get_forces(), forces_by_differences(crystal), atol=1e-7)
    np.testing.assert_allclose(crystal.get_stress(), stress_by_differences(crystal), atol=1e-7)


def test_dipole_and_charges_follow_the_total_charge() -> None:
    atoms = ethanol()
    atoms.calc = simkit.Calculator(painn(outputs=("energy", "dipole")), dtype="float64")
    neutral = atoms.get_dipole_moment()
    assert atoms.get_charges().sum() == pytest.approx(0.0, abs=1e-12)
    atoms.info["charge"] = 1
    assert atoms.get_charges().sum() == pytest.approx(1.0, abs=1e-12)
    assert not np.allclose(atoms.get_dipole_moment(), neutral)
    moved = atoms.get_dipole_moment()
    atoms.positions += [1.0, 0.0, 0.0]
    np.testing.assert_allclose(atoms.get_dipole_moment() - moved, [1.0, 0.0, 0.0], atol=1e-10)


def test_the_users_model_is_not_touched() -> None:
    model = painn(dtype="float32")
    before = copy.deepcopy(model.state_dict())
    atoms = ethanol()
    atoms.calc = simkit.Calculator(model, dtype="float64")
    atoms.get_forces()
    assert model.dtype == torch.float32
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.get_default_dtype() == torch.float32


def test_one_evaluation_per_step_and_none_for_what_is_known() -> None:
    atoms = with_calculator(silicon())
    calc = atoms.calc
    for step in range(1, 4):
        atoms.positions += 1e-3 * step * np.sin(np.arange(24.0)).reshape(8, 3)
        atoms.get_forces()
        atoms.get_potential_energy()
        atoms.get_potential_energies()
        assert calc.evaluations == step
    atoms.set_initial_magnetic_moments(np.ones(8))  # nothing to the model
    atoms.get_forces()
    assert calc.evaluations == 3
    assert calc.neighbor_builds == 1
    atoms.get_stress()  # asked for: computed now, and from now on together with the rest
    assert calc.evaluations == 4
    atoms.positions[0, 0] += 1e-3
    atoms.get_forces()
    atoms.get_stress()
    assert calc.evaluations == 5
    assert calc.neighbor_builds == 1


def test_neighbor_list_is_built_again_after_half_the_skin() -> None:
    atoms = with_calculator(ethanol(), skin=0.4)
    atoms.get_forces()
    atoms.positions[0, 0] += 0.19
    atoms.get_forces()
    assert atoms.calc.neighbor_builds == 1
    atoms.positions[0, 0] += 0.05  # motion of all atoms together does not count, which leaves it a little more room
    atoms.get_forces()
    assert atoms.calc.neighbor_builds == 2


def change_numbers(atoms: Atoms) -> None:
    atoms.numbers[0] = 6


def change_cell(atoms: Atoms) -> None:
    atoms.cell[0, 0] += 0.1


def change_cell_and_positions(atoms: Atoms) -> None:
    atoms.set_cell(atoms.cell.array * 1.01, scale_atoms=True)


def change_pbc(atoms: Atoms) -> None:
    atoms.pbc = [True, False, True]


def change_positions(atoms: Atoms) -> None:
    atoms.positions[3] += 0.05


def change_length(atoms: Atoms) -> None:
    del atoms[2]


CHANGES = [change_numbers, change_cell, change_cell_and_positions, change_pbc, change_positions, change_length]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(change: Callable[[Atoms], None]) -> None:
    atoms = with_calculator(silicon())
    before = atoms.get_potential_energy()
    change(atoms)
    after = atoms.get_potential_energy()
    assert after != before
    fresh = with_calculator(atoms.copy())
    assert after == fresh.get_potential_energy()
    np.testing.assert_array_equal(atoms.get_forces(), fresh.get_forces())


def test_wrapping_changes_nothing() -> None:
    atoms = with_calculator(silicon())
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    atoms.positions += [-1.3, 7.9, 2.2]
    atoms.wrap()
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-9)
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-9)
    np.testing.assert_allclose(atoms.get_stress(), stress, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bits_do_not_depend_on_what_was_computed_before(dtype: str) -> None:
    rng = np.random.default_rng(3)
    atoms = bulk("Si", cubic=True) * (2, 1, 1)
    walker = simkit.Calculator(painn(), dtype=dtype)
    for _ in range(12):
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        atoms.calc = walker
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = simkit.Calculator(painn(), dtype=dtype, skin=0.3)
        assert atoms.get_potential_energy() == energy
        np.testing.assert_array_equal(atoms.get_forces(), forces)
        exact = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, walker.potential.cutoff)
        np.testing.assert_array_equal(walker._graph.edge_index, exact.edge_index)
        np.testing.assert_array_equal(walker._graph.edge_shift, exact.shift)
    assert 1 < walker.neighbor_builds < 12


def test_a_failed_calculation_leaves_nothing_stale() -> None:
    atoms = with_calculator(ethanol())
    good = atoms.get_forces()
    position = atoms.positions[0].copy()
    atoms.positions[0] = atoms.positions[1]
    for _ in range(2):
        with pytest.raises(GeometryError, match="same place"):
            atoms.get_forces()
    atoms.positions[0] = position
    np.testing.assert_array_equal(atoms.get_forces(), good)


def test_single_atoms_and_no_edges() -> None:
    atom = with_calculator(Atoms("O", [[5.0, 6.0, 7.0]]))
    assert np.isfinite(atom.get_potential_energy())
    np.testing.assert_array_equal(atom.get_forces(), np.zeros((1, 3)))
    apart = with_calculator(Atoms("O2", [[0, 0, 0], [0, 0, 50.0]]))
    assert apart.get_potential_energy() == pytest.approx(2 * atom.get_potential_energy(), abs=1e-12)


def test_batch_equals_one_by_one() -> None:
    structures = [ethanol(), silicon(1), molecule("H2O"), Atoms("O"), silicon(2), molecule("CO2")]
    structures += [molecule("C6H6") for _ in range(50)]  # more atoms than go into one chunk
    calc = simkit.Calculator(painn(), dtype="float64")
    found = calc.batch(structures, properties=("energy", "forces", "energies", "free_energy"))
    assert 1 < calc.evaluations < len(structures)
    assert len(found) == len(structures)
    for atoms, result in zip(structures, found, strict=True):
        assert set(result) == {"energy", "forces", "energies", "free_energy"}
        single = with_calculator(atoms.copy())
        assert result["energy"] == pytest.approx(single.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(result["forces"], single.get_forces(), atol=1e-9)
        np.testing.assert_allclose(result["energies"], single.get_potential_energies(), atol=1e-9)
    assert calc.batch([]) == []


def test_batch_of_crystals_gives_stress_and_leaves_the_cache_alone() -> None:
    atoms = with_calculator(silicon())
    atoms.get_forces()
    crystals = [silicon(1), silicon(2) * (2, 1, 1)]
    found = atoms.calc.batch(crystals, properties=("stress",))
    for crystal, result in zip(crystals, found, strict=True):
        np.testing.assert_allclose(result["stress"], with_calculator(crystal.copy()).get_stress(), atol=1e-10)
    evaluations = atoms.calc.evaluations
    atoms.get_forces()
    assert atoms.calc.evaluations == evaluations


def test_implemented_properties_follow_the_model() -> None:
    assert set(simkit.Calculator(painn()).implemented_properties) == {
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
    }
    both = simkit.Calculator(painn(outputs=("energy", "dipole")))
    assert {"dipole", "charges", "forces"} <= set(both.implemented_properties)
    only_dipole = ethanol()
    only_dipole.calc = simkit.Calculator(painn(outputs=("dipole",)))
    assert only_dipole.get_dipole_moment().shape == (3,)
    with pytest.raises(PropertyError, match="cannot give energy"):
        only_dipole.get_potential_energy()


def test_undefined_properties_are_refused_as_ase_expects() -> None:
    atoms = with_calculator(ethanol())
    with pytest.raises(PropertyNotImplementedError, match="cannot give dipole; it gives energy"):
        atoms.get_dipole_moment()
    with pytest.raises(PropertyNotImplementedError, match="periodic in all three directions"):
        atoms.get_stress()
    with pytest.raises(PropertyError, match="periodic in all three directions"):
        atoms.calc.batch([silicon(), ethanol()], properties=("stress",))
    with pytest.raises(PropertyError, match="cannot give magmoms"):
        atoms.calc.batch([ethanol()], properties=("magmoms",))
    crystal = silicon()
    crystal.calc = simkit.Calculator(painn(outputs=("energy", "dipole")))
    assert crystal.get_charges().shape == (8,)
    with pytest.raises(PropertyError, match="dipole of a periodic structure"):
        crystal.get_dipole_moment()


def test_one_calculator_goes_from_crystal_to_molecule_and_back() -> None:
    calc = simkit.Calculator(painn(), dtype="float64")
    crystal, other = silicon(), ethanol()
    crystal.calc = other.calc = calc
    stress = crystal.get_stress()
    forces = other.get_forces()  # stress was asked for once, but is not defined here
    np.testing.assert_array_equal(forces, with_calculator(ethanol()).get_forces())
    np.testing.assert_array_equal(crystal.get_stress(), stress)


def test_unknown_elements_are_named() -> None:
    atoms = molecule("CH3Cl")
    atoms.calc = simkit.Calculator(painn())
    with pytest.raises(ElementError, match="Cl"):
        atoms.get_potential_energy()
    with pytest.raises(ElementError, match="Cl"):
        atoms.calc.batch([ethanol(), atoms])


def test_unusable_structures_are_refused() -> None:
    atoms = with_calculator(ethanol())
    atoms.positions[2, 1] = np.nan
    with pytest.raises(GeometryError, match="finite"):
        atoms.get_forces()
    with pytest.raises(DataError, match="empty"):
        with_calculator(Atoms()).get_potential_energy()
    charged = with_calculator(ethanol())
    charged.info["charge"] = "one"
    with pytest.raises(DataError, match="total charge in e, found 'one'"):
        charged.get_potential_energy()


def test_unusable_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="float32 or float64, found 'half'"):
        simkit.Calculator(painn(), dtype="half")
    with pytest.raises(ConfigError, match="unknown device 'gpu'"):
        simkit.Calculator(painn(), device="gpu")
    with pytest.raises(ConfigError, match="not supported"):
        simkit.Calculator(painn(), device="meta")
    with pytest.raises(GeometryError, match="skin"):
        simkit.Calculator(painn(), skin=-1.0)
    with pytest.raises(ModelFileError, match="no model file"):
        simkit.Calculator(tmp_path / "missing.safetensors")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_missing_gpu_is_said_plainly() -> None:
    with pytest.raises(DeviceError, match="no CUDA devices; use cpu"):
        simkit.Calculator(painn(), device="cuda")


def test_model_file_gives_the_same(tmp_path: Path) -> None:
    painn().save(tmp_path / "model.safetensors")
    atoms = ethanol()
    atoms.calc = simkit.Calculator(str(tmp_path / "model.safetensors"), dtype="float64")
    assert atoms.get_potential_energy() == with_calculator(ethanol()).get_potential_energy()


@pytest.mark.gpu
def test_gpu_agrees_with_cpu() -> None:
    for atoms in (ethanol(), silicon()):
        cpu = with_calculator(atoms.copy())
        gpu = with_calculator(atoms.copy(), device="cuda")
        assert gpu.get_potential_energy() == pytest.approx(cpu.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(gpu.get_forces(), cpu.get_forces(), atol=1e-9)
        gpu.positions[0] = gpu.positions[1]
        with pytest.raises(GeometryError, match="same place"):
            gpu.get_forces()
