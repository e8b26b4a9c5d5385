"""Sampling of geometries: reproducible, at the right temperature, with the right normal modes."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from labeling_cases import needs_xtb

from simkit.errors import ConfigError, GeometryError, LabelError
from simkit.labeling.methods import compute_label
from simkit.labeling.sample import changed_bonds, normal_modes, sample_normal_modes, sample_thermal
from simkit.units import BOLTZMANN


def thermal(seed: int, jobs: int = 1) -> list[Atoms]:
    return sample_thermal(
        molecule("H2O"),
        "gfn2-xtb",
        temperatures=[300, 600],
        frames=5,
        seed=seed,
        spacing_steps=5,
        equilibration_steps=10,
        jobs=jobs,
    )


def global_state() -> list[int]:
    return np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002


@needs_xtb
def test_thermal_sampling_depends_on_the_seed_alone() -> None:
    state = global_state()
    first = thermal(1)
    assert [atoms.info["temperature"] for atoms in first] == [300, 300, 300, 600, 600]
    assert all(atoms.info["changed_bonds"] == 0 for atoms in first)
    assert global_state() == state
    for other, same in ((thermal(1), True), (thermal(1, jobs=2), True), (thermal(2), False)):
        for one, two in zip(first, other, strict=True):
            assert np.array_equal(one.positions, two.positions) is same


@needs_xtb
def test_thermal_sampling_has_the_energy_of_its_temperature() -> None:
    # Methane is stiff, so nearly harmonic: <E - E0> = 9 kT / 2.
    methane = normal_modes(molecule("CH4"), "gfn2-xtb").atoms
    frames = sample_thermal(
        methane,
        "gfn2-xtb",
        temperatures=[300],
        frames=100,
        seed=1,
        spacing_steps=10,
        equilibration_steps=200,
        friction_per_fs=0.1,
    )
    lowest = compute_label(methane, "gfn2-xtb").energy
    energies = np.array([compute_label(atoms, "gfn2-xtb").energy for atoms in frames]) - lowest
    assert energies.mean() == pytest.approx(9 / 2 * BOLTZMANN * 300, rel=0.2)


@needs_xtb
def test_an_exploding_run_is_an_error() -> None:
    with pytest.raises((GeometryError, LabelError), match="1000 K"):
        sample_thermal(molecule("H2O"), "gfn2-xtb", temperatures=[1000], frames=50, seed=1, timestep_fs=8)


@needs_xtb
def test_wavenumbers_of_water_equal_those_of_the_xtb_program() -> None:
    found = normal_modes(molecule("H2O"), "gfn2-xtb").wavenumbers()
    np.testing.assert_allclose(found, [1539.3, 3643.5, 3651.9], atol=2)


@needs_xtb
@pytest.mark.parametrize(("name", "vibrations"), [("H2", 1), ("CO2", 4), ("H2O", 3)])
def test_translations_and_rotations_are_projected_out(name: str, vibrations: int) -> None:
    found = normal_modes(molecule(name), "gfn2-xtb")
    assert found.modes.shape[0] == vibrations
    momenta = found.modes * np.sqrt(found.atoms.get_masses())[:, None]
    np.testing.assert_allclose(momenta.sum(axis=1), 0, atol=1e-10)
    centred = found.atoms.positions - found.atoms.get_center_of_mass()
    np.testing.assert_allclose(np.cross(centred, momenta).sum(axis=1), 0, atol=1e-8)
    np.testing.assert_allclose(np.einsum("ina,jna->ij", found.modes, found.modes), np.eye(vibrations), atol=1e-10)


@needs_xtb
def test_normal_mode_frames_have_the_harmonic_energy_of_their_temperature() -> None:
    frames = sample_normal_modes(molecule("CH3OH"), "gfn2-xtb", temperatures=[20], frames=400, seed=0)
    again = sample_normal_modes(molecule("CH3OH"), "gfn2-xtb", temperatures=[20], frames=400, seed=0)
    assert all(np.array_equal(one.positions, two.positions) for one, two in zip(frames, again, strict=True))
    expected = (3 * 6 - 6) / 2 * BOLTZMANN * 20
    assert np.mean([atoms.info["harmonic_energy"] for atoms in frames]) == pytest.approx(expected, rel=0.05)
    lowest = compute_label(normal_modes(molecule("CH3OH"), "gfn2-xtb").atoms, "gfn2-xtb").energy
    energies = [compute_label(atoms, "gfn2-xtb").energy - lowest for atoms in frames]
    assert np.mean(energies) == pytest.approx(expected, rel=0.08)  # at 20 K the molecule is harmonic


@needs_xtb
def test_sampling_refuses_what_it_cannot_do() -> None:
    water = molecule("H2O")
    with pytest.raises(ConfigError, match="above 0 K"):
        sample_thermal(water, "gfn2-xtb", temperatures=[], frames=2, seed=0)
    with pytest.raises(ConfigError, match="above 0 K"):
        sample_normal_modes(water, "gfn2-xtb", temperatures=[-5], frames=2, seed=0)
    with pytest.raises(ConfigError, match="expected 1 or more"):
        sample_thermal(water, "gfn2-xtb", temperatures=[300], frames=0, seed=0)
    with pytest.raises(ConfigError, match="timestep_fs"):
        sample_thermal(water, "gfn2-xtb", temperatures=[300], frames=1, seed=0, timestep_fs=0)
    with pytest.raises(GeometryError, match="single atom"):
        normal_modes(Atoms("He"), "gfn2-xtb")
    flat = Atoms("NH3", positions=[[0, 0, 0], [1, 0, 0], [-0.5, 0.8660254, 0], [-0.5, -0.8660254, 0]])
    with pytest.raises(GeometryError, match="no minimum"):
        normal_modes(flat, "gfn2-xtb")


def test_changed_bonds_are_counted() -> None:
    water = molecule("H2O")
    assert changed_bonds(water, water) == 0
    broken = water.copy()
    broken.positions[1] *= 3
    assert changed_bonds(water, broken) == 1
    touching = Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.7]])
    apart = Atoms("H2", positions=[[0, 0, 0], [0, 0, 3.0]])
    assert changed_bonds(apart, touching) == 1
