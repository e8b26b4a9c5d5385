"""Labels of single structures: against finite differences, published numbers and direct calls of the programs."""

import builtins
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from labeling_cases import needs_dft, needs_xtb, shaken, shaken_frames

from simkit.errors import ConfigError, GeometryError, LabelError, MissingDependencyError
from simkit.labeling import dft, xtb
from simkit.labeling.label import label_structures
from simkit.labeling.methods import check_method, compute_label, isolated_atom_energies, method_calculator, parse_method
from simkit.units import BOHR, DEBYE, HARTREE


def force_error(atoms: Atoms, method: str, step: float, **state: int) -> float:
    """Largest difference between the forces and central differences of the energy, two coordinates of every atom."""
    forces = compute_label(atoms, method, **state).forces
    errors = []
    for atom in range(len(atoms)):
        for axis in (0, 2):
            energies = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions[atom, axis] += sign * step
                energies.append(compute_label(moved, method, **state).energy)
            errors.append(forces[atom, axis] + (energies[0] - energies[1]) / (2 * step))
    return float(np.abs(errors).max())


# Method names


@pytest.mark.parametrize(
    ("text", "name", "level"),
    [
        ("GFN2-xTB", "gfn2-xtb", "GFN2-xTB"),
        ("gfn1-xtb", "gfn1-xtb", "GFN1-xTB"),
        ("DFT:PBE/def2-SVP", "dft:pbe/def2-svp", "pbe/def2-svp"),
        ("hf/sto-3g", "hf/sto-3g", "hf/sto-3g"),
        ("dft:hf/sto-3g", "hf/sto-3g", "hf/sto-3g"),
        ("dft:b3lyp/6-31g(2df,p)", "dft:b3lyp/6-31g(2df,p)", "b3lyp/6-31g(2df,p)"),
    ],
)
def test_method_names(text: str, name: str, level: str) -> None:
    method = parse_method(text)
    assert method.name == name
    assert method.level_of_theory == level
    assert parse_method(method) is method
    assert parse_method(name) == method


@pytest.mark.parametrize("text", ["pm6", "dft:pbe", "pbe/def2-svp", "", "dft:/sto-3g", "dft:pbe/a/b"])
def test_an_unknown_method_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(ConfigError, match=r"known methods: gfn2-xtb, gfn1-xtb, dft:"):
        parse_method(text)


@pytest.mark.parametrize(("method", "library", "extra"), [("gfn2-xtb", "tblite", "xtb"), ("hf/sto-3g", "pyscf", "dft")])
def test_a_missing_library_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, method: str, library: str, extra: str
) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.split(".")[0] == library:
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'simkit\[{extra}\]'"):
        check_method(method)


# Tight binding


@needs_xtb
def test_xtb_energies_equal_those_in_tblites_documentation() -> None:
    assert compute_label(molecule("H2O"), "gfn2-xtb").energy == pytest.approx(-137.96777625229421, abs=2e-6)
    assert compute_label(molecule("CH4"), "gfn2-xtb").energy == pytest.approx(-113.60956621093894, abs=2e-6)
    assert compute_label(molecule("H2O"), "gfn1-xtb").energy == pytest.approx(-156.9675057724589, abs=2e-6)


@needs_xtb
@pytest.mark.parametrize(
    ("name", "state"),
    [("CH3OH", {}), ("H2O", {"charge": 1}), ("OH", {}), ("CH2_s3B1d", {"multiplicity": 3})],
)
def test_xtb_forces_are_the_derivative_of_the_energy(name: str, state: dict[str, int]) -> None:
    assert force_error(shaken(name), "gfn2-xtb", 1e-3, **state) < 1e-4


@needs_xtb
def test_xtb_dipole_of_water_has_the_right_size_sign_and_unit() -> None:
    water = molecule("H2O")  # oxygen above the hydrogens on z
    found = compute_label(water, "gfn2-xtb")
    assert found.dipole is not None
    assert found.charges is not None
    assert np.abs(found.dipole[:2]).max() < 1e-8
    assert 1.8 < -found.dipole[2] / DEBYE < 2.8  # from minus (oxygen) to plus; 1.85 D in experiment
    assert found.charges.sum() == pytest.approx(0, abs=1e-6)
    assert found.charges[0] < 0
    assert found.stress is None


@needs_xtb
def test_xtb_dipole_is_the_response_to_an_electric_field() -> None:
    from tblite.interface import Calculator

    atoms, field = shaken("H2O"), 1e-4
    energies = []
    for sign in (1, -1):
        calculator = Calculator("GFN2-xTB", atoms.numbers, atoms.positions / BOHR)
        calculator.set("verbosity", 0)
        calculator.set("accuracy", 0.01)
        calculator.add("electric-field", [0.0, 0.0, sign * field])
        energies.append(calculator.singlepoint().get("energy"))
    dipole = compute_label(atoms, "gfn2-xtb").dipole
    assert dipole is not None
    assert -(energies[0] - energies[1]) / (2 * field) * BOHR == pytest.approx(dipole[2], abs=1e-4)


@needs_xtb
def test_xtb_stress_is_the_derivative_by_strain() -> None:
    crystal = bulk("MgO", "rocksalt", 4.3, cubic=True)
    crystal.positions += np.random.default_rng(0).normal(size=(8, 3)) * 0.03
    stress = compute_label(crystal, "gfn1-xtb").stress
    assert stress is not None
    np.testing.assert_allclose(stress, stress.T)
    step = 1e-3
    for row, column in ((0, 0), (1, 2)):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[row, column] += sign * step / 2
            strain[column, row] += sign * step / 2
            strained = crystal.copy()
            strained.set_cell(crystal.cell.array @ strain, scale_atoms=True)
            energies.append(compute_label(strained, "gfn1-xtb").energy)
        numeric = (energies[0] - energies[1]) / (2 * step) / crystal.get_volume()
        assert stress[row, column] == pytest.approx(numeric, abs=2e-5)
    compressed = crystal.copy()
    compressed.set_cell(crystal.cell.array * 0.9, scale_atoms=True)
    compressed_stress = compute_label(compressed, "gfn1-xtb").stress
    assert compressed_stress is not None
    assert np.trace(compressed_stress) < 0  # ASE's sign


@needs_xtb
def test_xtb_energy_of_a_crystal_repeats_in_its_supercell() -> None:
    molecules = [molecule("CO2") for _ in range(2)]
    molecules[1].rotate(90, "x")
    molecules[1].positions += 2.8
    crystal = molecules[0] + molecules[1]
    crystal.set_cell([5.6, 5.6, 5.6])
    crystal.pbc = True
    energies = [compute_label(cell, "gfn1-xtb").energy for cell in (crystal, crystal.repeat((2, 1, 1)))]
    assert energies[1] / 2 == pytest.approx(energies[0], abs=5e-3)  # what remains is the Gamma point


@needs_xtb
def test_an_old_tblite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xtb, "version", lambda _: "0.7.0")
    with pytest.raises(MissingDependencyError, match=r"tblite 0\.7\.0 gives wrong"):
        check_method("gfn2-xtb")


@needs_xtb
def test_xtb_orbital_energies_and_isolated_atoms() -> None:
    water = compute_label(molecule("H2O"), "gfn2-xtb")
    assert water.homo is not None
    assert water.lumo is not None
    assert -13 < water.homo < -11
    assert water.gap == pytest.approx(water.lumo - water.homo)
    energies = isolated_atom_energies("gfn2-xtb", ["H", 8])
    assert energies[1] == pytest.approx(
        -0.393482763936 * HARTREE, abs=1e-6
    )  # one orbital: its energy is GFN2's parameter
    assert list(energies) == [1, 8]
    lone = compute_label(Atoms("H"), "gfn2-xtb")
    assert lone.lumo is None
    assert lone.gap is None


@needs_xtb
def test_xtb_calculator_gives_ase_what_the_label_holds() -> None:
    atoms = shaken("CH3OH")
    found = compute_label(atoms, "gfn2-xtb")
    atoms.calc = method_calculator("gfn2-xtb")
    assert atoms.get_potential_energy() == found.energy
    np.testing.assert_array_equal(atoms.get_forces(), found.forces)
    np.testing.assert_array_equal(atoms.get_dipole_moment(), found.dipole)
    crystal = bulk("Si")
    crystal.calc = method_calculator("gfn1-xtb")
    stress = compute_label(crystal, "gfn1-xtb").stress
    np.testing.assert_array_equal(crystal.get_stress(voigt=False), stress)


# Density-functional theory


@needs_dft
@pytest.mark.parametrize(("method", "functional"), [("hf/sto-3g", None), ("dft:pbe/sto-3g", "pbe")])
def test_dft_equals_a_direct_call_and_finite_differences(method: str, functional: str | None) -> None:
    from pyscf import dft as pyscf_dft
    from pyscf import gto, scf

    atoms = shaken("H2O")
    mole = gto.M(atom=list(zip(atoms.get_chemical_symbols(), atoms.positions, strict=True)), basis="sto-3g", verbose=0)
    field = scf.RHF(mole) if functional is None else pyscf_dft.RKS(mole, xc=functional)
    energy = field.kernel() * HARTREE
    found = compute_label(atoms, method)
    assert found.energy == pytest.approx(energy, abs=1e-5)  # PySCF's own bohr differs in the tenth digit
    np.testing.assert_allclose(np.asarray(found.dipole), field.dip_moment(unit="Debye", verbose=0) * DEBYE, atol=1e-5)
    occupied = int(mole.nelectron // 2)
    assert found.homo == pytest.approx(field.mo_energy[occupied - 1] * HARTREE, abs=1e-4)
    assert found.lumo == pytest.approx(field.mo_energy[occupied] * HARTREE, abs=1e-4)
    assert force_error(shaken("LiH"), method, 1e-3) < 1e-4


@needs_dft
def test_dft_open_shells_are_unrestricted() -> None:
    from pyscf import gto, scf

    found = compute_label(Atoms("O"), "hf/sto-3g", multiplicity=3)
    field = scf.UHF(gto.M(atom="O 0 0 0", basis="sto-3g", spin=2, verbose=0))
    assert found.energy == pytest.approx(field.kernel() * HARTREE, abs=1e-6)
    assert compute_label(Atoms("H"), "hf/sto-3g").energy == pytest.approx(
        -0.46658185 * HARTREE, abs=1e-6
    )  # Szabo-Ostlund
    assert force_error(shaken("H2O"), "hf/sto-3g", 1e-3, charge=1) < 1e-4


@needs_dft
def test_dft_uses_the_core_potential_of_the_basis() -> None:
    iodide = Atoms("HI", positions=[[0, 0, 0], [0, 0, 1.61]])
    energy = compute_label(iodide, "hf/def2-svp").energy / HARTREE
    assert -300 < energy < -295  # the 28 core electrons are worth some 6600 hartree


@needs_dft
def test_dft_refuses_what_it_cannot_do() -> None:
    with pytest.raises(GeometryError, match="molecules only"):
        compute_label(bulk("Si"), "hf/sto-3g")
    with pytest.raises(ConfigError, match="does not know the functional 'foo'"):
        check_method("dft:foo/sto-3g")
    with pytest.raises(ConfigError, match="no basis set 'foo' for O"):
        check_method("dft:pbe/foo", [8])


# Charge, spin and failures


@needs_xtb
def test_charge_and_multiplicity_come_from_the_frame_or_the_argument() -> None:
    atoms = shaken("H2O")
    by_argument = compute_label(atoms, "gfn2-xtb", charge=1)
    atoms.info["charge"] = 1
    assert compute_label(atoms, "gfn2-xtb").energy == by_argument.energy
    assert compute_label(atoms, "gfn2-xtb", charge=1).energy == by_argument.energy
    assert by_argument.charges is not None
    assert by_argument.charges.sum() == pytest.approx(1, abs=1e-6)
    with pytest.raises(ConfigError, match="charge 0 was asked for, but the frame says 1"):
        compute_label(atoms, "gfn2-xtb", charge=0)
    atoms.info["charge"] = 0.5
    with pytest.raises(ConfigError, match="whole number"):
        compute_label(atoms, "gfn2-xtb")


@needs_xtb
@pytest.mark.parametrize(
    ("atoms", "state", "error", "match"),
    [
        (molecule("H2O"), {"multiplicity": 2}, LabelError, "not compatible"),
        (molecule("H2O"), {"charge": 1, "multiplicity": 1}, LabelError, "cannot have multiplicity 1"),
        (molecule("H2O"), {"multiplicity": 0}, ConfigError, "expected 1"),
        (Atoms("H"), {"charge": 1}, LabelError, "0 electrons"),
        (Atoms(), {}, GeometryError, "no atoms"),
        (Atoms("X"), {}, GeometryError, "unknown element"),
        (Atoms("H2"), {}, GeometryError, "angstrom apart"),
        (Atoms("H", positions=[[np.nan, 0, 0]]), {}, GeometryError, "not finite"),
        (Atoms("Pu"), {}, LabelError, "Z >86"),
        (Atoms("Si", cell=[3, 3, 9], pbc=(True, True, False)), {}, GeometryError, "some directions only"),
        (Atoms("Si", cell=[3, 3, 0], pbc=True), {}, GeometryError, "no volume"),
    ],
)
def test_unusable_frames_are_refused(atoms: Atoms, state: dict[str, int], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        compute_label(atoms, "gfn2-xtb", **state)


@needs_xtb
def test_an_scf_that_does_not_converge_is_an_error_that_names_the_frame(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(xtb, "MAX_ITERATIONS", 2)
    with pytest.raises(LabelError, match=r"frame 0 \(H2O\): GFN2-xTB: SCF not converged"):
        label_structures(shaken_frames(2), "gfn2-xtb", tmp_path / "out.xyz")
    assert not (tmp_path / "out.xyz").exists()


@needs_dft
def test_a_dft_scf_that_does_not_converge_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dft, "MAX_ITERATIONS", 2)
    with pytest.raises(LabelError, match="SCF not converged in 2 cycles"):
        compute_label(shaken("H2O"), "hf/sto-3g")
