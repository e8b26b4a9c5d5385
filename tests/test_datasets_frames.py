"""Files of frames as data: what is read, with which units, and what a user is told when something is wrong."""

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.build
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.stress import voigt_6_to_full_3x3_stress

from simkit.datasets import load
from simkit.datasets.store import Store
from simkit.errors import ConfigError, DataError, LabelError
from simkit.units import BOHR, HARTREE


def labelled(count: int = 4, seed: int = 0) -> list[Atoms]:
    """Frames of water and of periodic copper in turn, with energy, forces and stress as stored results."""
    rng = np.random.default_rng(seed)
    frames = []
    for k in range(count):
        atoms = ase.build.bulk("Cu", cubic=True) if k % 2 else ase.build.molecule("H2O", vacuum=3.0)
        atoms.rattle(0.05, rng=rng)
        atoms.info["config_type"] = "solid" if k % 2 else "molecule"
        results = {
            "energy": rng.normal(),
            "forces": rng.normal(size=(len(atoms), 3)),
            "stress": rng.normal(size=6),
        }
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    return frames


def assert_holds(store: Store, frames: list[Atoms]) -> None:
    """The store holds exactly these frames and their stored results."""
    assert len(store) == len(frames)
    for atoms, copy in zip(frames, store.to_atoms(), strict=True):
        np.testing.assert_array_equal(copy.numbers, atoms.numbers)
        np.testing.assert_allclose(copy.positions, atoms.positions, atol=1e-8)
        np.testing.assert_allclose(copy.cell.array, atoms.cell.array, atol=1e-8)
        np.testing.assert_array_equal(copy.pbc, atoms.pbc)
        for name in ("energy", "forces", "stress"):
            np.testing.assert_allclose(copy.calc.results[name], atoms.calc.results[name], atol=1e-8)


@pytest.mark.parametrize("name", ["frames.xyz", "frames.extxyz", "frames.xyz.gz", "frames.traj", "frames.db"])
def test_frames_equal_what_was_written(tmp_path: Path, name: str) -> None:
    frames = labelled()
    write(tmp_path / name, frames)
    store = load("frames", paths=tmp_path / name)
    assert_holds(store, frames)
    assert store.info["keys"] == {"energy": "energy", "forces": "forces", "stress": "stress"}


def test_several_files_globs_and_folders(tmp_path: Path) -> None:
    frames = labelled(6)
    write(tmp_path / "b.xyz", frames[:2])
    write(tmp_path / "a.xyz.gz", frames[2:4])
    write(tmp_path / "c.traj", frames[4:])
    (tmp_path / "notes.txt").write_text("not read")
    order = [2, 3, 0, 1, 4, 5]
    assert_holds(load("frames", paths=tmp_path), [frames[k] for k in order])
    assert_holds(load("frames", paths=[tmp_path / "b.xyz", str(tmp_path / "a*")]), [frames[k] for k in (0, 1, 2, 3)])
    with pytest.raises(DataError, match="named more than once"):
        load("frames", paths=[tmp_path / "b.xyz", tmp_path / "*.xyz"])
    with pytest.raises(DataError, match="no file or folder"):
        load("frames", paths=tmp_path / "*.cif")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no file ending in"):
        load("frames", paths=tmp_path / "empty")


def test_units(tmp_path: Path) -> None:
    frames = labelled()
    write(tmp_path / "a.xyz", frames)
    plain = load("frames", paths=tmp_path / "a.xyz")
    store = load("frames", paths=tmp_path / "a.xyz", energy_unit="hartree", length_unit="bohr")
    for name, factor in (("energy", HARTREE), ("forces", HARTREE / BOHR), ("stress", HARTREE / BOHR**3)):
        np.testing.assert_allclose(store.labels[name], plain.labels[name] * factor)
    np.testing.assert_allclose(store.pos, plain.pos * BOHR)
    assert store.cell is not None
    np.testing.assert_allclose(store.cell, plain.cell * BOHR)
    with pytest.raises(ConfigError, match="energy_unit: unknown unit 'hartre'"):
        load("frames", paths=tmp_path / "a.xyz", energy_unit="hartre")


def test_names_given_and_detected(tmp_path: Path) -> None:
    frames = labelled()
    for atoms in frames:
        results, atoms.calc = atoms.calc.results, None
        atoms.info["REF_energy"] = results["energy"]
        atoms.arrays["my_forces"] = results["forces"]
    path = tmp_path / "a.xyz"
    write(path, frames)
    store = load("frames", paths=path)
    assert list(store.labels) == ["energy"]
    store = load("frames", paths=path, forces="my_forces")
    np.testing.assert_allclose(store.labels["forces"][:3], frames[0].arrays["my_forces"], atol=1e-7)
    with pytest.raises(LabelError, match="forces: no frame has 'my_force'; did you mean 'my_forces'"):
        load("frames", paths=path, forces="my_force")
    for atoms in frames:
        atoms.info["TotEnergy"] = 1.0
        atoms.info["gap"] = 2.5
    write(path, frames)
    with pytest.raises(ConfigError, match="'REF_energy' and 'TotEnergy' are both there"):
        load("frames", paths=path)
    store = load("frames", paths=path, energy="TotEnergy", labels=["gap"], group="config_type")
    assert store.labels["energy"].tolist() == [1.0] * 4
    assert store.labels["gap"].tolist() == [2.5] * 4
    assert store.groups is not None
    assert store.groups.tolist() == ["molecule", "solid"] * 2
    assert list(load("frames", paths=path, energy="none").labels) == []
    with pytest.raises(ConfigError, match="labels: expected further labels"):
        load("frames", paths=path, labels=["gapp"])
    with pytest.raises(DataError, match="has no 'kind' to group by"):
        load("frames", paths=path, energy="none", group="kind")


def test_virial_becomes_stress(tmp_path: Path) -> None:
    frames = [atoms for atoms in labelled() if atoms.pbc.all()]
    for atoms in frames:
        stress = voigt_6_to_full_3x3_stress(atoms.calc.results["stress"])
        atoms.calc = None
        atoms.info["virial"] = -stress * atoms.get_volume()
        atoms.info["expected"] = stress
    write(tmp_path / "a.xyz", frames)
    store = load("frames", paths=tmp_path / "a.xyz")
    np.testing.assert_allclose(store.labels["stress"], [atoms.info["expected"] for atoms in frames], atol=1e-7)
    frames[0].cell[:] = 0
    frames[0].pbc = False
    write(tmp_path / "a.xyz", frames)
    with pytest.raises(LabelError, match=r"frame 0 of .* has a virial 'virial' but no cell"):
        load("frames", paths=tmp_path / "a.xyz")


def isolated(symbol: str, energy: float, **info: Any) -> Atoms:
    atoms = Atoms(symbol, info=info)
    atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return atoms


def test_isolated_atoms(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    lone_in_a_box = isolated("O", -3.0, config_type="IsolatedAtom")
    lone_in_a_box.set_cell([9, 9, 9])
    lone_in_a_box.pbc = True
    crystal = ase.build.bulk("Li")  # one atom, but no isolated one
    crystal.calc = SinglePointCalculator(crystal, energy=1.0, forces=np.zeros((1, 3)), stress=np.zeros(6))
    frames = [*labelled(2), crystal]
    write(path, [isolated("H", -1.0), *frames, lone_in_a_box])
    store = load("frames", paths=path, energy_unit="hartree")
    assert len(store) == 3
    assert store.info["references"]["energy"] == pytest.approx({1: -HARTREE, 8: -3 * HARTREE})
    assert "2 isolated atoms were taken out of the data as reference energies" in store.describe()
    kept = load("frames", paths=path, isolated_atoms="keep", forces="none", stress="none")
    assert len(kept) == 5
    with pytest.raises(LabelError, match=r"'forces' is in 3 of 5 frames, but not in frame 0 of .*a\.xyz"):
        load("frames", paths=path, isolated_atoms="keep")
    write(path, [isolated("H", -1.0), *frames, isolated("H", -2.0)])
    with pytest.raises(DataError, match="an earlier frame has -1"):
        load("frames", paths=path)
    write(path, [isolated("H", -1.0)])
    with pytest.raises(DataError, match="isolated atoms only"):
        load("frames", paths=path)
    with pytest.raises(ConfigError, match="expected 'reference' or 'keep'"):
        load("frames", paths=path, isolated_atoms="drop")


def spoil_energy(frames: list[Atoms]) -> None:
    frames[2].calc.results["energy"] = np.nan


def spoil_forces(frames: list[Atoms]) -> None:
    frames[2].calc.results["forces"][1, 1] = np.inf


def drop_forces(frames: list[Atoms]) -> None:
    del frames[2].calc.results["forces"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil_energy, r"energy: 'energy' in frame 2 of .*a\.traj is not finite"),
        (spoil_forces, r"forces: 'forces' in frame 2 of .*a\.traj is not finite"),
        (drop_forces, r"forces: 'forces' is in 3 of 4 frames, but not in frame 2 of .*a\.traj"),
    ],
)
def test_bad_labels_name_file_and_frame(tmp_path: Path, change: Callable[[list[Atoms]], None], message: str) -> None:
    frames = labelled()
    change(frames)
    write(tmp_path / "a.traj", frames)
    with pytest.raises(LabelError, match=message):
        load("frames", paths=tmp_path / "a.traj")


def test_wrong_shapes_and_missing_values_under_a_given_name(tmp_path: Path) -> None:
    frames = labelled()
    for atoms in frames:
        atoms.info["pair"] = np.array([1.0, 2.0])
        atoms.info["word"] = "high"
    frames[1].info["mine"] = 1.0
    write(tmp_path / "a.xyz", frames)
    with pytest.raises(LabelError, match=r"'pair' in frame 0 of .* has the shape \[2\], expected \[\]"):
        load("frames", paths=tmp_path / "a.xyz", energy="pair")
    with pytest.raises(LabelError, match=r"'word' in frame 0 of .* is no number: 'high'"):
        load("frames", paths=tmp_path / "a.xyz", energy="word")
    with pytest.raises(LabelError, match=r"frame 0 of .* has no 'mine', which other frames have"):
        load("frames", paths=tmp_path / "a.xyz", energy="mine")


def test_damaged_and_empty_files(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    write(path, labelled())
    content = path.read_text()
    lines = content.splitlines()
    for kept in (1, 2, 4, 6, 10, len(lines) - 1):
        path.write_text("\n".join(lines[:kept]) + "\n")
        with pytest.raises(DataError, match=r"cannot read frame \d of .*; the file is cut off"):
            load("frames", paths=path)
    path.write_text("\n".join([*lines[:5], "", *lines[5:]]))
    with pytest.raises(DataError, match="expected a structure in line 6, found an empty line with more after it"):
        load("frames", paths=path)
    packed = tmp_path / "b.xyz.gz"
    whole = gzip.compress(content.encode())
    packed.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot read frame 0"):
        load("frames", paths=packed)
    for empty in (path, packed):
        empty.write_bytes(b"" if empty == path else gzip.compress(b""))
        with pytest.raises(DataError, match="holds no structure"):
            load("frames", paths=empty)


def test_flat_npz(tmp_path: Path) -> None:
    frames = labelled()
    write(tmp_path / "a.xyz", frames)
    store = load("frames", paths=tmp_path / "a.xyz")
    arrays = {
        "n_atoms": store.n_atoms.numpy(),
        "numbers": store.z.numpy(),
        "positions": store.pos.numpy(),
        "cell": store.cell.numpy(),  # type: ignore[union-attr]
        "pbc": store.pbc.numpy(),  # type: ignore[union-attr]
        "REF_energy": store.labels["energy"].numpy() / HARTREE,
        "unknown": np.arange(3),
    }
    np.savez(tmp_path / "flat.npz", **arrays)
    flat = load("frames", paths=tmp_path / "flat.npz", energy_unit="hartree")
    np.testing.assert_allclose(flat.labels["energy"], store.labels["energy"])
    assert "arrays that were not read: unknown" in flat.describe()
    with pytest.raises(LabelError, match="has no array 'energie'"):
        load("frames", paths=tmp_path / "flat.npz", energy="energie")
    del arrays["n_atoms"]
    np.savez(tmp_path / "flat.npz", **arrays)
    with pytest.raises(DataError, match="missing: n_atoms"):
        load("frames", paths=tmp_path / "flat.npz")
    store.save(tmp_path / "store.npz")
    assert load("frames", paths=tmp_path / "store.npz").hash() == store.hash()
    with pytest.raises(ConfigError, match="are fixed"):
        load("frames", paths=tmp_path / "store.npz", energy_unit="hartree")


@pytest.mark.data
@pytest.mark.parametrize("name", ["mlearn/Si.xyz.gz", "acac/train_300K.xyz.gz", "3bpa/train_300K.xyz.gz"])
def test_reference_frames_equal_ase(data_dir: Path, name: str) -> None:
    store = load("frames", paths=data_dir / name)
    with gzip.open(data_dir / name, "rt") as stream:
        text = stream.read()
    frames = read(io.StringIO(text), index=":", format="extxyz")
    assert len(store) == len(frames)
    for name in store.labels:
        expected = [atoms.calc.results[name] for atoms in frames]
        if name == "stress":
            expected = [voigt_6_to_full_3x3_stress(value) for value in expected]
        expected = np.concatenate(expected) if name == "forces" else np.asarray(expected)
        np.testing.assert_array_equal(store.labels[name], expected)
    np.testing.assert_array_equal(store.pos, np.concatenate([atoms.positions for atoms in frames]))
    assert ("stress" in store.labels) == (store.pbc is not None)
    assert "WARNING" not in store.describe()


@pytest.mark.data
def test_isolated_atoms_of_3bpa(data_dir: Path) -> None:
    store = load("frames", paths=data_dir / "3bpa" / "*")
    assert len(store) == 500
    assert store.info["references"]["energy"][8] == -2041.9816003861047


@pytest.mark.parametrize(("levels", "expected"), [(["GFN2-xTB", "GFN2-xTB"], "GFN2-xTB"), (["GFN2-xTB", "PBE"], None)])
def test_level_of_theory_of_the_frames(tmp_path, levels, expected):
    frames = []
    for level in levels:
        atoms = ase.build.molecule("H2O")
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
        atoms.info["level_of_theory"] = level
        frames.append(atoms)
    write(tmp_path / "frames.xyz", frames)
    store = load("frames", paths=tmp_path / "frames.xyz")
    assert store.info["level_of_theory"] == expected
    assert load("frames", paths=tmp_path / "frames.xyz", level_of_theory="PBE0").info["level_of_theory"] == "PBE0"
