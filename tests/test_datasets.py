"""The sources of data by name, DeePMD's folders, and the embedded data: what is read, and what is said when something is wrong."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import ase.build
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT

from simkit.datasets import available, load
from simkit.errors import ConfigError, DataError, LabelError

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
