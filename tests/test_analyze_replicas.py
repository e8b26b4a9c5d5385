"""`simkit analyze` on files of the native engine: one replica, several, and what others read from and write to H5MD."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from numpy.random import default_rng

from simkit.errors import DataError
from simkit.md.averages import block_average
from simkit.md.h5md_reader import H5MDReader
from simkit.md.observers.ase_trajectory import ASETrajectory
from simkit.md.observers.h5md import H5MDTrajectory
from simkit.md.protocols import Frame
from simkit.md.replicas import mean_average, spread
from simkit.md.state import State
from simkit.workflows.analyze import analyze

TIMESTEP, FRAMES = 2.0, 60


def silent(_: str) -> None:
    pass


def brownian(structures: list[Atoms], seed: int = 0) -> tuple[State, list[Frame]]:
    """Replicas whose atoms diffuse with known steps, and made-up energies."""
    state, rng = State.from_atoms(structures), default_rng(seed)
    state.replicas[:] = np.arange(state.size)[::-1] + 9_999  # names that sort in another order than the replicas
    positions, frames = state.positions.numpy().copy(), []
    for k in range(FRAMES):
        values = {
            "positions": positions.copy(),
            "velocities": rng.normal(size=positions.shape) * 0.01,
            "forces": np.zeros_like(positions),
            "cells": state.cells.numpy() * (1 + 0.001 * rng.normal(size=(state.size, 1, 1))),
            "energy": rng.normal(size=state.size) + np.arange(state.size),
            "kinetic_energy": rng.normal(size=state.size) ** 2,
            "temperature": 300 + rng.normal(size=state.size),
        }
        frames.append(Frame(k, k * TIMESTEP, values))
        positions += rng.normal(scale=0.1, size=positions.shape)
    return state, frames


def store(observer: H5MDTrajectory | ASETrajectory, state: State, frames: list[Frame]) -> None:
    observer.open(state, TIMESTEP, None)
    for frame in frames:
        observer.observe(frame)
    observer.close()


def test_arrays_are_those_of_the_simulation(tmp_path: Path) -> None:
    state, frames = brownian([bulk("NaCl", "rocksalt", a=5.6), molecule("H2O"), bulk("Si")])
    store(H5MDTrajectory(tmp_path / "t.h5", 1), state, frames)
    with H5MDReader(tmp_path / "t.h5") as reader:
        assert reader.groups == ["replica_10001", "replica_10000", "replica_9999"]
        for k, group in enumerate(reader.groups):
            part = slice(state.offsets[k], state.offsets[k + 1])
            found = reader.arrays(group, slice(5, 50, 5))
            chosen = frames[5:50:5]
            np.testing.assert_array_equal(found.positions, [frame.values["positions"][part] for frame in chosen])
            assert found.velocities is not None
            np.testing.assert_array_equal(found.velocities, [frame.values["velocities"][part] for frame in chosen])
            np.testing.assert_array_equal(found.numbers, state.numbers[part])
            np.testing.assert_array_equal(found.masses, state.masses[part])
            assert found.frame_time == 5 * TIMESTEP
            if state.pbc[k].any():
                np.testing.assert_array_equal(found.cells, [frame.values["cells"][k] for frame in chosen])
            observables = reader.observables(group, slice(5, 50, 5))
            np.testing.assert_array_equal(observables["energy"], [frame.values["energy"][k] for frame in chosen])


def test_replicas_are_averaged(tmp_path: Path) -> None:
    """The results of all replicas are the means of those of each, read from ASE's files one by one."""
    state, frames = brownian([bulk("Ar", cubic=True, a=5.3) for _ in range(3)])
    (tmp_path / "h5").mkdir()
    (tmp_path / "ase").mkdir()
    store(H5MDTrajectory(tmp_path / "h5" / "trajectory.h5", 1), state, frames)
    store(ASETrajectory(tmp_path / "ase" / "trajectory.traj", 1), state, frames)
    said: list[str] = []
    whole = analyze(tmp_path / "h5", out=tmp_path / "out", echo=said.append)
    assert whole["replicas"] == 3
    assert "3 replicas: means over all of them" in said[0]
    assert not whole["left_out"]
    files = sorted((tmp_path / "ase").glob("*.traj"), reverse=True)  # by name; the order of the replicas is the reverse
    single = [analyze(path, out=tmp_path / path.stem, echo=silent) for path in files]

    def each(*names: str) -> list[float]:
        found = []
        for one in single:
            for name in names:
                one = one[name]
            found.append(one)
        return found

    energy = whole["averages"]["potential_eV"]
    assert energy["mean"] == pytest.approx(np.mean(each("averages", "potential_eV", "mean")), rel=1e-12)
    means = np.array([[frame.values["energy"][k] for frame in frames] for k in range(3)]).mean(axis=1)
    assert energy["standard_error_from_replicas"] == pytest.approx(np.std(means, ddof=1) / np.sqrt(3), rel=1e-12)
    diffusion = whole["msd"]["Ar"]
    assert diffusion["diffusion_cm2_per_s"] == pytest.approx(
        np.mean(each("msd", "Ar", "diffusion_cm2_per_s")), rel=1e-9
    )
    errors = np.array(each("msd", "Ar", "standard_error_cm2_per_s"))
    assert diffusion["standard_error_cm2_per_s"] == pytest.approx(np.sqrt((errors**2).sum()) / 3, rel=1e-9)
    for name in ("rdf.csv", "msd.csv", "vacf.csv", "spectrum.csv"):
        table = np.genfromtxt(tmp_path / "out" / name, delimiter=",", names=True)
        tables = [np.genfromtxt(tmp_path / path.stem / name, delimiter=",", names=True) for path in files]
        for column in tables[0].dtype.names:
            expected = np.mean([one[column] for one in tables], axis=0)
            np.testing.assert_allclose(table[column], expected, rtol=1e-6, atol=1e-9, err_msg=f"{name} {column}")
    # A folder of ASE's files is the same as the file; and one replica can be asked for.
    other = analyze(tmp_path / "ase", out=tmp_path / "other", only=["msd"], echo=silent)
    assert other["replicas"] == 3
    assert other["msd"]["Ar"]["diffusion_cm2_per_s"] == pytest.approx(diffusion["diffusion_cm2_per_s"], rel=1e-9)
    one = analyze(f"{tmp_path / 'h5'}@10:", out=tmp_path / "one", only=["averages"], replica=1, skip=5, echo=silent)
    assert (one["replicas"], one["frames"]) == (1, FRAMES - 15)
    mean = np.mean([frame.values["energy"][1] for frame in frames[15:]])
    assert one["averages"]["potential_eV"]["mean"] == pytest.approx(mean, rel=1e-12)
    assert json.loads((tmp_path / "one" / "analysis.json").read_text())["averages"] == one["averages"]


def test_different_systems_are_not_averaged(tmp_path: Path) -> None:
    state, frames = brownian([bulk("Ar"), bulk("Si")])
    store(H5MDTrajectory(tmp_path / "t.h5", 1), state, frames)
    for arguments, text in (
        ({}, "different systems .* choose one with --replica, 0 to 1"),
        ({"replica": 2}, "expected one from 0 to 1, found 2"),
        ({"replica": 0, "skip": 60}, "expected to skip 0 to 59, found 60"),
    ):
        with pytest.raises(DataError, match=text):
            analyze(tmp_path / "t.h5", out=tmp_path / "out", echo=silent, **arguments)  # type: ignore[arg-type]
    assert analyze(tmp_path / "t.h5", out=tmp_path / "out", only=["rdf"], replica=1, echo=silent)["atoms"] == 2


def test_files_of_other_programs(tmp_path: Path) -> None:
    """Other units, times as an increment, and a cuboid that does not change, as the format allows."""
    positions = default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file.create_group("h5md").attrs["version"] = [1, 1]
        group = file.create_group("particles/all")
        group["species"] = [18, 18]
        group["position/value"] = positions
        group["position/value"].attrs["unit"] = np.bytes_("nm")
        group["position/step"], group["position/time"] = 10, 0.05
        group["position/time"].attrs.update({"offset": 1.0, "unit": "ps"})
        group["box/edges"] = [1.0, 2.0, 3.0]
        group["box/edges"].attrs["unit"] = "nm"
        group["box"].attrs.update({"dimension": 3, "boundary": ["periodic", "periodic", "none"]})
    with H5MDReader(tmp_path / "t.h5") as reader:
        found = reader.arrays("all", slice(None))
        np.testing.assert_array_equal(reader.steps("all", slice(None)), [0, 10, 20, 30])
    np.testing.assert_array_equal(found.positions, positions.astype(float) * 10)
    np.testing.assert_array_equal(found.cells, [np.diag([10.0, 20, 30])] * 4)
    assert found.frame_time == pytest.approx(50.0, rel=1e-12)
    assert found.pbc.tolist() == [True, True, False]
    assert found.velocities is None
    np.testing.assert_allclose(found.masses, 39.948, atol=0.01)
    with h5py.File(tmp_path / "t.h5", "r+") as file:
        del file["particles/all/position/value"].attrs["unit"]
    with H5MDReader(tmp_path / "t.h5") as reader, pytest.raises(DataError, match="has the unit None"):
        reader.arrays("all", slice(None))
    (tmp_path / "no.h5").write_bytes(b"no")
    with pytest.raises(DataError, match="cannot be read"):
        H5MDReader(tmp_path / "no.h5")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(DataError, match="not an H5MD trajectory"):
        H5MDReader(tmp_path / "empty.h5")


def test_errors_over_replicas_are_right() -> None:
    """Of many sets of correlated replicas, the error of the mean is the scatter of the means."""
    rng = default_rng(3)
    sets, replicas, frames, memory = 200, 4, 512, 0.8
    noise = rng.normal(size=(sets, replicas, frames))
    series = np.empty_like(noise)
    series[..., 0] = noise[..., 0] / np.sqrt(1 - memory**2)
    for k in range(1, frames):
        series[..., k] = memory * series[..., k - 1] + noise[..., k]
    found = [mean_average([block_average(values) for values in one]) for one in series]
    scatter = np.std([one.mean for one in found])
    # The relative error of a standard deviation of 200 values is 5 %, and blocking underestimates by a few per cent.
    assert np.sqrt(np.mean([one.error**2 for one in found])) == pytest.approx(scatter, rel=0.2)
    own = [spread(one.mean(axis=1)) for one in series]
    assert np.sqrt(np.mean(np.square(own))) == pytest.approx(scatter, rel=0.2)
    for one in (mean_average, spread):
        with pytest.raises(DataError):
            one([])
