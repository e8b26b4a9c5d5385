"""Labelling and sampling: against finite differences, published numbers and direct calls of the programs."""

import builtins
import json
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read

from simkit.errors import ConfigError, DataError, GeometryError, LabelError, MissingDependencyError, OutputError
from simkit.labeling import dft, label, xtb
from simkit.labeling.base import Label
from simkit.labeling.label import label_structures
from simkit.labeling.methods import (
    check_method,
    compute_label,
    isolated_atom_energies,
    method_calculator,
    parse_method,
)
from simkit.labeling.sample import changed_bonds, normal_modes, sample_normal_modes, sample_thermal
from simkit.units import BOHR, BOLTZMANN, DEBYE, HARTREE


def installed(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


needs_xtb = pytest.mark.skipif(not installed("tblite.interface"), reason="tblite is not installed (extra xtb)")
needs_dft = pytest.mark.skipif(not installed("pyscf"), reason="PySCF is not installed (extra dft)")


def shaken(name: str, seed: int = 0, size: float = 0.05) -> Atoms:
    atoms = molecule(name)
    atoms.positions += np.random.default_rng(seed).normal(size=(len(atoms), 3)) * size
    return atoms


def shaken_frames(count: int) -> list[Atoms]:
    return [shaken("H2O", seed) for seed in range(count)]


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


# Many structures


@needs_xtb
def test_labels_are_written_in_order_and_read_back_by_ase(tmp_path: Path) -> None:
    frames = shaken_frames(5)
    for number, atoms in enumerate(frames):
        atoms.info["number"] = number
        atoms.info["energy"] = 1.0  # an old label
    summary = label_structures(frames, "gfn2-xtb", tmp_path / "out.xyz", jobs=2)
    assert (summary.frames, summary.labelled, summary.resumed, summary.failures) == (5, 5, 0, ())
    assert summary.labels == ("energy", "forces", "dipole", "charges", "homo", "lumo", "gap")
    for number, (atoms, back) in enumerate(zip(frames, read(tmp_path / "out.xyz", ":"), strict=True)):
        found = compute_label(atoms, "gfn2-xtb")
        assert back.info["number"] == number
        assert back.info["level_of_theory"] == "GFN2-xTB"
        assert back.get_potential_energy() == pytest.approx(found.energy, abs=1e-10)
        np.testing.assert_allclose(back.get_forces(), found.forces, atol=1e-7)
        np.testing.assert_allclose(back.get_dipole_moment(), np.asarray(found.dipole), atol=1e-10)
        np.testing.assert_allclose(back.get_charges(), np.asarray(found.charges), atol=1e-7)
        assert back.info["gap"] == pytest.approx(found.gap)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.xyz"]
    assert frames[0].info["energy"] == 1.0  # the user's frames are left alone
    assert frames[0].calc is None


@needs_xtb
def test_flat_arrays_hold_the_labels_in_full_precision(tmp_path: Path) -> None:
    frames = [shaken("H2O", 1), shaken("CH3OH", 2)]
    label_structures(frames, "gfn2-xtb", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        assert arrays["n_atoms"].tolist() == [3, 6]
        np.testing.assert_array_equal(arrays["positions"], np.concatenate([atoms.positions for atoms in frames]))
        labels = [compute_label(atoms, "gfn2-xtb") for atoms in frames]
        np.testing.assert_array_equal(arrays["energy"], [item.energy for item in labels])
        np.testing.assert_array_equal(arrays["forces"], np.concatenate([item.forces for item in labels]))
        assert arrays["dipole"].shape == (2, 3)
        assert json.loads(str(arrays["metadata"]))["units"]["energy"] == "eV"
    label_structures([bulk("Si")], "gfn1-xtb", tmp_path / "si.npz")
    with np.load(tmp_path / "si.npz", allow_pickle=False) as arrays:
        assert arrays["stress"].shape == arrays["cell"].shape == (1, 3, 3)
        assert arrays["pbc"].all()
        assert "dipole" not in arrays
    with pytest.raises(ConfigError, match="cannot hold molecules and periodic frames together"):
        label_structures([bulk("Si"), molecule("H2O")], "gfn1-xtb", tmp_path / "mixed.npz")


class Interrupted(Exception):
    pass


def interrupt_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    calls = []

    def counting(*args: object, **kwargs: object) -> Label:
        calls.append(1)
        if len(calls) > count:
            raise Interrupted
        return compute_label(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(label, "compute_label", counting)


@needs_xtb
@pytest.mark.parametrize("suffix", [".extxyz", ".npz"])
def test_an_interrupted_run_continues_and_gives_the_same_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, suffix: str
) -> None:
    frames = shaken_frames(6)
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    label_structures(frames, "gfn2-xtb", whole)
    with monkeypatch.context() as patched:
        interrupt_after(patched, 4)
        with pytest.raises(Interrupted):
            label_structures(frames, "gfn2-xtb", out)
    part = out.with_name(out.name + ".part")
    assert part.read_bytes().count(b"\n") == 5  # the header and four frames
    part.write_bytes(part.read_bytes()[:-20])  # killed in the middle of a line
    assert not out.exists()
    summary = label_structures(frames, "gfn2-xtb", out)
    assert summary.resumed == 3
    assert not part.exists()
    if suffix == ".npz":
        with np.load(whole) as first, np.load(out) as second:
            assert first.files == second.files
            for name in first.files:
                np.testing.assert_array_equal(first[name], second[name])
    else:
        assert whole.read_bytes() == out.read_bytes()


@needs_xtb
def test_resuming_another_run_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    frames, out = shaken_frames(3), tmp_path / "out.xyz"
    with monkeypatch.context() as patched:
        interrupt_after(patched, 1)
        with pytest.raises(Interrupted):
            label_structures(frames, "gfn2-xtb", out)
    with pytest.raises(OutputError, match="method 'gfn2-xtb', now 'gfn1-xtb'"):
        label_structures(frames, "gfn1-xtb", out)
    moved = [atoms.copy() for atoms in frames]
    moved[2].positions[0, 0] += 1e-9
    with pytest.raises(OutputError, match="holds the labels of another run"):
        label_structures(moved, "gfn2-xtb", out)
    with pytest.raises(OutputError, match="holds the labels of another run"):
        label_structures(frames, "gfn2-xtb", out, charge=2)
    assert label_structures(frames, "gfn1-xtb", out, resume=False).resumed == 0
    with pytest.raises(OutputError, match="exists"):
        label_structures(frames, "gfn2-xtb", out)
    before = out.read_bytes()
    label_structures(frames, "gfn2-xtb", out, overwrite=True)
    assert out.read_bytes() != before


@needs_xtb
def test_failing_frames_stop_the_run_or_are_listed(tmp_path: Path) -> None:
    frames = [*shaken_frames(2), Atoms("Pu"), shaken("H2O", 9)]
    out = tmp_path / "out.xyz"
    with pytest.raises(LabelError, match=r"frame 2 \(Pu\): .*2 finished frames are kept"):
        label_structures(frames, "gfn2-xtb", out)
    summary = label_structures(frames, "gfn2-xtb", out, on_error="keep-going")
    assert (summary.labelled, summary.resumed) == (3, 2)
    assert [index for index, _ in summary.failures] == [2]
    assert "1 of 4 frames failed" in summary.notes[0]
    assert json.loads((tmp_path / "out.xyz.failures.json").read_text())[0]["frame"] == 2
    assert len(read(out, ":")) == 3
    with pytest.raises(LabelError, match="none of the 1 frames"):
        label_structures([Atoms("Pu")], "gfn2-xtb", tmp_path / "none.xyz", on_error="keep-going")


@needs_xtb
def test_unusable_requests_are_refused_before_any_work(tmp_path: Path) -> None:
    frames = shaken_frames(2)
    with pytest.raises(DataError, match="no frames"):
        label_structures([], "gfn2-xtb", tmp_path / "out.xyz")
    with pytest.raises(ConfigError, match=r"expected \.xyz"):
        label_structures(frames, "gfn2-xtb", tmp_path / "out.db")
    with pytest.raises(OutputError, match="no folder"):
        label_structures(frames, "gfn2-xtb", tmp_path / "missing" / "out.xyz")
    with pytest.raises(ConfigError, match="expected 1 or more"):
        label_structures(frames, "gfn2-xtb", tmp_path / "out.xyz", jobs=0)
    with pytest.raises(GeometryError, match=r"frame 1 \(H2\): two atoms"):
        label_structures([frames[0], Atoms("H2")], "gfn2-xtb", tmp_path / "other.xyz")
    (tmp_path / "taken.xyz.part").write_text("something else\n")
    with pytest.raises(OutputError, match="no part file of simkit"):
        label_structures(frames, "gfn2-xtb", tmp_path / "taken.xyz")


# Sampling


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


# The embedded data set


def embedded() -> dict[str, np.ndarray]:
    with as_file(files("simkit.datasets") / "embedded_ethanol_gfn2.npz") as path:
        assert path.stat().st_size <= 1_000_000
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)


def test_the_embedded_data_set_is_what_it_says() -> None:
    arrays = embedded()
    assert arrays["n_atoms"].tolist() == [9] * 1500
    assert np.bincount(arrays["split"]).tolist() == [1000, 200, 300]
    assert not arrays["changed_bonds"].any()
    forces = arrays["forces"].reshape(-1, 9, 3)
    np.testing.assert_allclose(forces.sum(axis=1), 0, atol=1e-5)
    dynamics = arrays["source"] == 0
    hotter = [forces[dynamics & (arrays["temperature"] == value)].std() for value in (300, 500, 700, 1000)]
    assert hotter == sorted(hotter)
    positions = arrays["positions"].reshape(1500, -1)
    assert len(np.unique(positions, axis=0)) == 1500


@needs_xtb
def test_the_embedded_labels_belong_to_the_stored_positions() -> None:
    arrays = embedded()
    for frame in (0, 700, 1499):
        rows = slice(9 * frame, 9 * frame + 9)
        found = compute_label(Atoms(arrays["numbers"][rows], arrays["positions"][rows].astype(np.float64)), "gfn2-xtb")
        assert arrays["energy"][frame] == pytest.approx(found.energy, abs=1e-6)
        np.testing.assert_allclose(arrays["forces"][rows], found.forces, atol=1e-5)
        np.testing.assert_allclose(arrays["dipole"][frame], np.asarray(found.dipole), atol=1e-5)
    references = dict(zip(arrays["reference_numbers"].tolist(), arrays["reference_energies"].tolist(), strict=True))
    assert references == pytest.approx(isolated_atom_energies("gfn2-xtb", [1, 6, 8]))
