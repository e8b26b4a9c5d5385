"""Labels of many structures in files, and the embedded data set."""

import json
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read
from labeling_cases import needs_xtb, shaken, shaken_frames

from simkit.errors import ConfigError, DataError, GeometryError, LabelError, OutputError
from simkit.labeling import label
from simkit.labeling.base import Label
from simkit.labeling.label import label_structures
from simkit.labeling.methods import compute_label, isolated_atom_energies

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
