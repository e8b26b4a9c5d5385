"""The sources of data: what is read, with which units, and what a user is told when something is wrong."""

import bz2
import gzip
import hashlib
import importlib.util
import io
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.build
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.stress import voigt_6_to_full_3x3_stress

from simkit.datasets import available, load, qm9_archive, rmd17
from simkit.datasets.download import fetch
from simkit.datasets.store import Store
from simkit.errors import ConfigError, DataError, LabelError
from simkit.units import BOHR, DEBYE, HARTREE, KCAL_PER_MOL


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


# -------------------------------------------------------------------------------------------------------------- load


def test_unknown_names_and_options() -> None:
    assert available() == ["qm9", "rmd17", "frames", "deepmd", "embedded"]
    with pytest.raises(ConfigError, match="unknown data set 'qm8'; did you mean 'qm9'"):
        load("qm8")
    with pytest.raises(ConfigError, match="unknown option 'molecul' for the data set 'rmd17'; did you mean 'molecule'"):
        load("rmd17", molecul="ethanol")
    with pytest.raises(ConfigError, match="needs the option 'molecule'"):
        load("rmd17")


def test_the_folder_refuses_to_be_the_top_level_package_datasets() -> None:
    path = importlib.util.find_spec("simkit.datasets").origin  # type: ignore[union-attr]
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('datasets', {path!r})\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "this folder is the package simkit.datasets, but it was imported as 'datasets'" in done.stderr


# ------------------------------------------------------------------------------------------------------------ frames


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


# ------------------------------------------------------------------------------------------------------------ DeePMD


def write_deepmd(system: Path, frames: list[Atoms], **extra: np.ndarray) -> None:
    folder = system / f"set.{len(list(system.glob('set.*'))):03d}"
    folder.mkdir(parents=True)
    symbols = sorted(set(frames[0].get_chemical_symbols()))
    (system / "type_map.raw").write_text("\n".join(symbols) + "\n")
    types = [symbols.index(symbol) for symbol in frames[0].get_chemical_symbols()]
    (system / "type.raw").write_text("\n".join(map(str, types)) + "\n")
    np.save(folder / "coord.npy", np.stack([atoms.positions.ravel() for atoms in frames]))
    np.save(folder / "box.npy", np.stack([atoms.cell.array.ravel() for atoms in frames]))
    np.save(folder / "energy.npy", np.array([atoms.get_potential_energy() for atoms in frames]))
    np.save(folder / "force.npy", np.stack([atoms.get_forces().ravel() for atoms in frames]))
    for name, value in extra.items():
        np.save(folder / f"{name}.npy", value)


def strained_alloy(count: int = 3) -> list[Atoms]:
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(count):
        atoms = ase.build.bulk("Cu", cubic=True).repeat((2, 1, 1))
        atoms.numbers[[0, 5]] = 79
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(size=(3, 3)) * 0.03), scale_atoms=True)
        atoms.rattle(0.05, rng=rng)
        atoms.calc = EMT()
        frames.append(atoms)
    return frames


def virial_by_strain(atoms: Atoms, step: float = 1e-4) -> np.ndarray:
    """DeePMD's virial: minus the derivative of the energy by a homogeneous strain."""
    virial = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            energies = []
            for sign in (1, -1):
                strain = np.eye(3)
                strain[i, j] += sign * step
                moved = atoms.copy()
                moved.set_cell(atoms.cell.array @ strain, scale_atoms=True)
                moved.calc = EMT()
                energies.append(moved.get_potential_energy())
            virial[i, j] = -(energies[0] - energies[1]) / (2 * step)
    return virial


def test_deepmd(tmp_path: Path) -> None:
    frames = strained_alloy()
    virials = [virial_by_strain(atoms).ravel() for atoms in frames]
    write_deepmd(tmp_path / "alloy", frames[:2], virial=np.stack(virials[:2]))
    write_deepmd(tmp_path / "alloy", frames[2:], virial=np.stack(virials[2:]))
    store = load("deepmd", paths=tmp_path / "alloy")
    assert len(store) == 3
    for k, atoms in enumerate(store.to_atoms()):
        assert atoms.get_chemical_symbols() == frames[k].get_chemical_symbols()
        np.testing.assert_allclose(atoms.positions, frames[k].positions)
        np.testing.assert_allclose(atoms.get_potential_energy(), frames[k].get_potential_energy())
        np.testing.assert_allclose(atoms.get_forces(), frames[k].get_forces())
        np.testing.assert_allclose(atoms.get_stress(), frames[k].get_stress(), atol=1e-6)
    again = load("deepmd", paths=tmp_path)  # a folder of systems
    assert again.hash() == store.hash()


def test_deepmd_problems(tmp_path: Path) -> None:
    frames = strained_alloy(2)
    system = tmp_path / "alloy"
    with pytest.raises(DataError, match=r"no type\.raw"):
        load("deepmd", paths=tmp_path)
    write_deepmd(system, frames)
    with pytest.raises(DataError, match="load it as 'deepmd'"):
        load("frames", paths=system)
    np.save(system / "set.000" / "energy.npy", np.zeros(3))
    with pytest.raises(LabelError, match=r"set\.000: energy has 3 frames, coord has 2"):
        load("deepmd", paths=system)
    np.save(system / "set.000" / "energy.npy", np.array([0.0, np.nan]))
    with pytest.raises(LabelError, match=r"energy of frame 1 of .*set\.000 is not finite"):
        load("deepmd", paths=system)
    np.save(system / "set.000" / "energy.npy", np.zeros(2))
    (system / "type_map.raw").write_text("Au\n")
    with pytest.raises(DataError, match="types from 0 to 0"):
        load("deepmd", paths=system)
    (system / "type_map.raw").write_text("TYPE_0 TYPE_1\n")
    with pytest.raises(DataError, match="'TYPE_0', which is no element"):
        load("deepmd", paths=system)
    assert load("deepmd", paths=system, type_map=["Au", "Cu"]).elements == [29, 79]
    np.save(system / "set.000" / "force.npy", np.zeros((2, 5)))
    with pytest.raises(LabelError, match="expected 24 numbers per frame"):
        load("deepmd", paths=system, type_map=["Au", "Cu"])
    (system / "set.000" / "force.npy").unlink()
    assert list(load("deepmd", paths=system, type_map=["Au", "Cu"]).labels) == ["energy"]
    (system / "nopbc").touch()
    assert load("deepmd", paths=system, type_map=["Au", "Cu"]).pbc is None


@pytest.mark.data
def test_deepmd_water(data_dir: Path) -> None:
    store = load("deepmd", paths=data_dir / "water" / "data_0")
    assert (len(store), store.elements, set(store.n_atoms.tolist())) == (80, [1, 8], {192})
    assert set(store.formulas().tolist()) == {"H128O64"}
    np.testing.assert_array_equal(
        store.labels["forces"].numpy().ravel(), np.load(data_dir / "water/data_0/set.000/force.npy").ravel()
    )
    assert "WARNING" not in store.describe()


# ------------------------------------------------------------------------------------------------------------- rMD17


def rmd17_arrays(frames: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(frames)
    return {
        "nuclear_charges": np.array([8, 1, 1], dtype=np.uint8),
        "coords": rng.normal(size=(frames, 3, 3)),
        "energies": rng.normal(size=frames) - 47000.0,
        "forces": rng.normal(size=(frames, 3, 3)),
        "old_indices": np.arange(frames) * 10,
    }


def test_rmd17_files(tmp_path: Path) -> None:
    arrays = rmd17_arrays(20)
    index = np.random.default_rng(0).permutation(20)[:5]
    (tmp_path / "npz_data").mkdir()
    (tmp_path / "splits").mkdir()
    np.savez(tmp_path / "npz_data" / "rmd17_uracil.npz", **arrays)
    np.savetxt(tmp_path / "splits" / "index_train_01.csv", index, fmt="%d")
    whole = load("rmd17", molecule="uracil", split=None, root=tmp_path)
    assert len(whole) == 20
    store = load("rmd17", molecule="uracil", root=tmp_path)
    np.testing.assert_allclose(store.labels["energy"], arrays["energies"][index] * KCAL_PER_MOL, rtol=1e-15)
    np.testing.assert_allclose(store.labels["forces"], arrays["forces"][index].reshape(-1, 3) * KCAL_PER_MOL)
    np.testing.assert_array_equal(store.columns["old_indices"], index * 10)
    part = {key: value if key == "nuclear_charges" else value[index] for key, value in arrays.items()}
    other = tmp_path / "other"
    other.mkdir()
    np.savez(other / "rmd17_uracil_train_01.npz", **part)
    assert load("rmd17", molecule="uracil", root=other).hash() == store.hash()
    with pytest.raises(DataError, match=r"expected rmd17_uracil_test_01\.npz, or .*index_test_01\.csv"):
        load("rmd17", molecule="uracil", split="test_01", root=other)
    with pytest.raises(ConfigError, match="unknown molecule 'uracill'; did you mean 'uracil'"):
        load("rmd17", molecule="uracill", root=other)
    with pytest.raises(ConfigError, match="unknown split 'train_1'; did you mean 'train_01'"):
        load("rmd17", molecule="uracil", split="train_1", root=other)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No reference data and an empty cache."""
    monkeypatch.delenv("SIMKIT_DATA_DIR", raising=False)
    monkeypatch.setenv("SIMKIT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def test_rmd17_is_downloaded_when_absent(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = empty_home / "source.tar.bz2"
    with tarfile.open(archive, "w:bz2") as tar:
        for name, content in (
            ("npz_data/rmd17_uracil.npz", None),
            ("splits/index_train_01.csv", b"3\n1\n"),
            ("readme", b""),
        ):
            stream = io.BytesIO()
            if content is None:
                np.savez(stream, **rmd17_arrays(4))
                content = stream.getvalue()
            member = tarfile.TarInfo(f"rmd17/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(rmd17, "URL", archive.as_uri())
    monkeypatch.setattr(rmd17, "_SHA256", "0" * 64)
    with pytest.raises(DataError, match="the download was cut off or replaced"):
        load("rmd17", molecule="uracil")
    monkeypatch.setattr(rmd17, "_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    store = load("rmd17", molecule="uracil")
    np.testing.assert_allclose(store.labels["energy"], rmd17_arrays(4)["energies"][[3, 1]] * KCAL_PER_MOL)
    archive.unlink()
    assert load("rmd17", molecule="uracil").hash() == store.hash()  # from the cache


def test_a_failed_download_says_what_to_do(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.bin"
    with pytest.raises(DataError, match=r"cannot download file:///.*download it by hand and save it as .*file\.bin"):
        fetch((tmp_path / "absent").as_uri(), target, "0")
    assert list(target.parent.iterdir()) == []
    target.write_bytes(b"damaged")
    with pytest.raises(DataError, match="is damaged"):
        fetch((tmp_path / "absent").as_uri(), target, "0")


@pytest.mark.data
def test_rmd17_reference_files(data_dir: Path) -> None:
    for molecule in set(rmd17.MOLECULES) - {"malonaldehyde", "uracil"}:
        store = load("rmd17", molecule=molecule, split="test_01", root=data_dir / "rmd17")
        assert len(store) == 1000
        assert len(set(store.formulas().tolist())) == 1
        assert store.info["level_of_theory"] == "PBE/def2-SVP"
        assert "WARNING" not in store.describe()
    with np.load(data_dir / "rmd17" / "rmd17_toluene_test_01.npz") as arrays:
        energies = arrays["energies"]
    store = load("rmd17", molecule="toluene", split="test_01", root=data_dir)
    np.testing.assert_allclose(store.labels["energy"], energies * 0.0433641043, rtol=1e-7)


# --------------------------------------------------------------------------------------------------------------- QM9

METHANE = r"""5
gdb 1\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t0.044749\t
-40.47893\t-40.476062\t-40.475117\t-40.498597\t6.469\t
C\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689
H\t 0.002150416\t-0.0060313176\t 0.0019761204\t 0.133921
H\t 1.0117308433\t 1.4637511618\t 0.0002765748\t 0.133922
H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923
H\t-0.5238136345\t 1.4379326443\t 9.063972942*^-1\t 0.133923
1341.307\t1341.3284\t1341.365\t1562.6731\t1562.7453\t3038.3205\t3151.6034\t3151.6788\t3151.7078
C\tC\t
InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4
"""
WATER = r"""3
gdb 3\t799.58812\t437.90386\t282.94545\t1.8511\t6.31\t-0.2928\t0.0687\t0.3615\t19.0002\t2.1375*^-2\t
-76.404702\t-76.401867\t-76.400922\t-76.422349\t6.002\t
O\t-0.0343604951\t 0.9775395708\t 0.0076015923\t-0.589706
H\t 0.0647664923\t 0.0205721989\t 0.0015346341\t 0.294853
H\t 0.8717903737\t 1.3007924048\t 0.0069312682\t 0.294853
1671.4222\t3803.6305\t3907.698
O\tO\t
InChI=1S/H2O/h1H2\tInChI=1S/H2O/h1H2
"""
# The second line of the original is a long one.
METHANE, WATER = (text.replace("\\t\n-", "\\t-").replace("\\t", "\t") for text in (METHANE, WATER))
HEADER = "\n" * 8 + "Index  SMILES\n"


def write_archive(path: Path, texts: dict[str, str]) -> None:
    with tarfile.open(path, "w:bz2") as tar:
        for name, text in texts.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))


@pytest.fixture
def small_qm9(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The original files in small: methane, a molecule on the list of uncharacterised ones, and water."""
    archive, excluded = empty_home / "original.tar.bz2", empty_home / "excluded.txt"
    bad = METHANE.replace("gdb 1", "gdb 2")
    write_archive(
        archive, {"dsgdb9nsd_000003.xyz": WATER, "dsgdb9nsd_000001.xyz": METHANE, "dsgdb9nsd_000002.xyz": bad}
    )
    excluded.write_text(f"{HEADER}     2  C  C  0.5\n------\n")
    for name, value in {
        "ARCHIVE_URL": archive.as_uri(),
        "EXCLUDED_URL": excluded.as_uri(),
        "_ARCHIVE_MD5": md5(archive),
        "_EXCLUDED_MD5": md5(excluded),
        "_MOLECULES": 3,
        "_EXCLUDED": 1,
    }.items():
        monkeypatch.setattr(qm9_archive, name, value)
    return archive


def test_qm9_is_downloaded_parsed_and_cached(small_qm9: Path) -> None:
    store = load("qm9")
    assert store.formulas().tolist() == ["CH4", "H2O"]
    assert store.columns["gdb_id"].tolist() == [1, 3]
    assert store.columns["A"].tolist() == [157.7118, 799.58812]
    assert store.columns["smiles"].tolist() == ["C", "O"]
    assert store.columns["inchi"].tolist() == ["InChI=1S/CH4/h1H4", "InChI=1S/H2O/h1H2"]
    expected = {
        "energy": -76.404702 * HARTREE,
        "U0": -76.404702 * HARTREE,
        "G": -76.422349 * HARTREE,
        "zpve": 0.021375 * HARTREE,
        "gap": 0.3615 * HARTREE,
        "mu": 1.8511 * DEBYE,
        "alpha": 6.31 * BOHR**3,
        "r2": 19.0002 * BOHR**2,
        "Cv": 6.002e-3 * KCAL_PER_MOL,
    }
    assert {name: float(store.labels[name][1]) for name in expected} == pytest.approx(expected, rel=1e-12)
    assert store.labels["charges"].tolist()[3:6] == pytest.approx([0.133923, 0.133923, -0.589706], rel=1e-6)
    np.testing.assert_allclose(store.pos[4], [-0.5238136345, 1.4379326443, 0.9063972942], rtol=1e-7)
    assert store.info["references"]["U0"][1] == -0.500273 * HARTREE
    assert store.info["references"]["energy"] == store.info["references"]["U0"]
    small_qm9.unlink()
    again = load("qm9", target="G")  # from the cache
    np.testing.assert_array_equal(again.labels["energy"], store.labels["G"])
    assert again.info["references"]["energy"] == again.info["references"]["G"]
    with pytest.raises(ConfigError, match="unknown target 'U1'"):
        load("qm9", target="U1")


def test_qm9_archive_that_is_not_what_was_published(
    small_qm9: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qm9_archive, "_MOLECULES", 4)
    with pytest.raises(DataError, match="expected 4 molecules, found 3"):
        load("qm9")
    with pytest.raises(DataError, match="leave out root= to download"):
        load("qm9", root=empty_home)
    content = small_qm9.read_bytes()
    for name, raw in (("cut", content[: len(content) // 2]), ("broken", bz2.compress(b"no archive"))):
        (empty_home / name).write_bytes(raw)
        with pytest.raises(DataError, match="no complete QM9 archive"):
            qm9_archive.read_archive(empty_home / name, set())
    write_archive(small_qm9, {"dsgdb9nsd_000001.xyz": METHANE.replace("-0.535689", "")})
    with pytest.raises(DataError, match=r"dsgdb9nsd_000001\.xyz in .* is no QM9 file"):
        qm9_archive.read_archive(small_qm9, set())


@pytest.mark.data
def test_qm9_reference_file(data_dir: Path) -> None:
    store = load("qm9", root=data_dir / "qm9")
    assert len(store) == 130_829
    assert len(store.z) == 2_359_192
    atomization = store.labels["U0"][0] - sum(
        store.info["references"]["U0"][number] * count
        for number, count in zip(store.elements, store.composition()[0].tolist(), strict=True)
    )
    assert float(atomization) == pytest.approx(-395.999594594 * KCAL_PER_MOL, abs=1e-4)  # published for methane
    assert "WARNING" not in store.describe()


# ---------------------------------------------------------------------------------------------------------- embedded


def test_embedded() -> None:
    whole = load("embedded")
    sizes = [len(load("embedded", split=part)) for part in ("train", "valid", "test")]
    assert sum(sizes) == len(whole)
    assert min(sizes) > 0
    assert set(whole.formulas().tolist()) == {"C2H6O"}
    assert set(whole.labels) == {"energy", "forces", "dipole"}
    assert "GFN2" in whole.info["level_of_theory"]
    assert set(whole.info["references"]["energy"]) == {1, 6, 8}
    assert "WARNING" not in whole.describe()
    with pytest.raises(ConfigError, match="unknown split 'validation' of the embedded data set; did you mean 'valid'"):
        load("embedded", split="validation")


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
