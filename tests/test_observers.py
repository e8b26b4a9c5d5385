"""Files that observers write: exact, readable by others, cut back, and what stops a simulation."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read
from numpy.random import Generator, default_rng

from simkit.errors import ConfigError, OutputError, SimkitError
from simkit.md.observers.ase_trajectory import ASETrajectory
from simkit.md.observers.checkpoint import Checkpoint
from simkit.md.observers.h5md import H5MDTrajectory
from simkit.md.observers.progress import Progress
from simkit.md.observers.stop import StopNotFinite, StopOutsideDomain, StopRunaway
from simkit.md.observers.thermo_table import ThermoTable, read_thermo_table
from simkit.md.protocols import Frame, Observer
from simkit.md.state import State

GPA_IN_EV = 160.21766208  # 1 eV/angstrom^3 in GPa


@pytest.fixture
def rng() -> Generator:
    return default_rng(7)


def mixed() -> State:
    """Three replicas of different size and boundaries."""
    silicon = bulk("Si")
    slab = Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.1]], cell=[4, 5, 20], pbc=[True, True, False])
    state = State.from_atoms([silicon, molecule("H2O"), slab])
    state.replicas[:] = [7, 12345, 2]  # a batch may be a part of a larger one
    return state


def random_frame(state: State, rng: Generator, step: int, timestep: float = 0.5) -> Frame:
    n, b = len(state.numbers), state.size
    values = {name: rng.normal(size=(n, 3)) * 10 for name in ("positions", "velocities", "forces")}
    values |= {name: rng.normal(size=(b, 3, 3)) for name in ("cells", "pressure", "stress")}
    names = ("energy", "kinetic_energy", "temperature", "conserved", "volume")
    return Frame(step, step * timestep, values | {name: rng.normal(size=b) for name in names})


def watch(observer: Observer, state: State, frames: list[Frame], kept: int | None = None) -> None:
    observer.open(state, 0.5, kept)
    for frame in frames[kept or 0 :]:
        observer.observe(Frame(frame.step, frame.time_fs, {name: frame.values[name] for name in observer.needs}))
    observer.close()


def test_h5md_follows_the_specification(rng: Generator, tmp_path: Path) -> None:
    """Read by nothing but h5py, by the names of version 1.1."""
    state = mixed()
    frames = [random_frame(state, rng, 10 * k) for k in range(70)]  # more than two blocks
    watch(H5MDTrajectory(tmp_path / "t.h5", 10, forces=True, author="N. N."), state, frames)
    with h5py.File(tmp_path / "t.h5") as file:
        assert file["h5md"].attrs["version"].tolist() == [1, 1]
        assert file["h5md/author"].attrs["name"] == b"N. N."
        assert file["h5md/creator"].attrs["name"] == b"simkit"
        assert set(file["h5md/creator"].attrs) == {"name", "version"}
        assert file["h5md/modules/units"].attrs["version"].tolist() == [1, 0]
        assert set(file["particles"]) == {"replica_0002", "replica_0007", "replica_12345"}
        for k, name in enumerate(("replica_0007", "replica_12345", "replica_0002")):
            group, part = file["particles"][name], slice(state.offsets[k], state.offsets[k + 1])
            np.testing.assert_array_equal(group["species"], state.numbers[part])
            np.testing.assert_array_equal(group["mass"], state.masses[part])
            elements = {"position": "positions", "velocity": "velocities", "force": "forces"}
            for element, quantity in elements.items():
                values = np.array([frame.values[quantity][part] for frame in frames])
                np.testing.assert_array_equal(group[element]["value"], values)
                np.testing.assert_array_equal(group[element]["step"], np.arange(70) * 10)
                np.testing.assert_array_equal(group[element]["time"], np.arange(70) * 5.0)
            units = [group[element]["value"].attrs["unit"] for element in elements]
            assert units == ["Angstrom", "Angstrom fs-1", "eV Angstrom-1"]
            assert group["position/time"].attrs["unit"] == "fs"
            box = group["box"]
            assert box.attrs["dimension"] == 3
            assert [text == b"periodic" for text in box.attrs["boundary"]] == state.pbc[k].tolist()
            assert ("edges" in box) == state.pbc[k].any()
            if "edges" in box:
                assert box["edges/step"] == group["position/step"]  # one object, as required
                np.testing.assert_array_equal(box["edges/value"], [frame.values["cells"][k] for frame in frames])
        energies = np.array([frame.values["energy"] for frame in frames])
        np.testing.assert_array_equal(file["observables/potential_energy/value"], energies)
        np.testing.assert_array_equal(file["observables/temperature/step"], np.arange(70) * 10)


def test_one_replica_is_one_plain_group(rng: Generator, tmp_path: Path) -> None:
    state = State.from_atoms([molecule("CH3CH2OH")])
    frames = [random_frame(state, rng, k) for k in range(5)]
    for name, options, kind in (
        ("double", {}, np.float64),
        ("single", {"precision": "single", "velocities": False}, np.float32),
        ("small", {"compress": True}, np.float64),
    ):
        watch(H5MDTrajectory(tmp_path / name, 1, **options), state, frames)  # type: ignore[arg-type]
        with h5py.File(tmp_path / name) as file:
            assert list(file["particles"]) == ["all"]
            assert not file["particles/all/position/value"].is_virtual
            expected = np.array([frame.values["positions"] for frame in frames]).astype(kind)
            assert file["particles/all/position/value"].dtype == kind
            np.testing.assert_array_equal(file["particles/all/position/value"], expected)
            assert ("velocity" in file["particles/all"]) == (name != "single")
            assert (file["particles/all/position/value"].compression == "gzip") == (name == "small")


def test_a_running_trajectory_shows_its_last_checkpoint(rng: Generator, tmp_path: Path) -> None:
    state, path = mixed(), tmp_path / "t.h5"
    frames = [random_frame(state, rng, k) for k in range(80)]
    observer = H5MDTrajectory(path, 1)
    observer.open(state, 0.5, None)
    for k, frame in enumerate(frames):
        if k == 50:
            observer.flush()
        observer.observe(frame)
    with h5py.File(path) as file:
        assert file["particles/replica_0007/position/value"].shape == (50, 2, 3)
        np.testing.assert_array_equal(file["replicas/positions"], [frame.values["positions"] for frame in frames[:50]])
    observer.close()
    with h5py.File(path) as file:
        assert len(file["replicas/positions"]) == 80


def written(observer: Observer, path: Path, state: State, frames: list[Frame]) -> Any:
    """What a file holds that can be compared."""
    watch(observer, state, frames)
    return contents(path)


def contents(path: Path) -> Any:
    if path.suffix == ".csv":
        return path.read_bytes()
    if path.suffix == ".traj":
        return [
            (atoms.positions.tobytes(), atoms.get_momenta().tobytes(), atoms.get_forces().tobytes(), atoms.info)
            for atoms in read(path, index=":")
        ]
    with h5py.File(path) as file:
        return {name: file[name][()].tobytes() for name in ("replicas/positions", "replicas/cells", "replicas/time")}


FILES = {
    "t.h5": lambda path, interval=1: H5MDTrajectory(path, interval),
    "t.traj": lambda path, interval=1: ASETrajectory(path, interval),
    "t.csv": lambda path, interval=1: ThermoTable(path, interval, pressure=True),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0, 1, 33])
def test_files_are_cut_back_to_the_checkpoint(name: str, kept: int, rng: Generator, tmp_path: Path) -> None:
    state = mixed()
    frames, others = ([random_frame(state, rng, k) for k in range(40)] for _ in range(2))
    shown = f"t_{state.replicas[0]:04d}.traj" if name == "t.traj" else name
    expected = written(FILES[name](tmp_path / name), tmp_path / shown, state, frames)
    (tmp_path / "b").mkdir()
    # After the checkpoint other frames were written; they must vanish.
    watch(FILES[name](tmp_path / "b" / name), state, frames[:kept] + others[kept:])
    watch(FILES[name](tmp_path / "b" / name), state, frames, kept)
    assert contents(tmp_path / "b" / shown) == expected


@pytest.mark.parametrize("name", FILES)
def test_unusable_files(name: str, rng: Generator, tmp_path: Path) -> None:
    state, path = mixed(), tmp_path / name
    frames = [random_frame(state, rng, k) for k in range(3)]
    watch(FILES[name](path), state, frames)
    shown = tmp_path / f"t_{state.replicas[0]:04d}.traj" if name == "t.traj" else path
    before = shown.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        watch(FILES[name](path), state, frames)
    with pytest.raises(OutputError, match="holds 3 frames, but the checkpoint 4"):
        watch(FILES[name](path), state, frames, 4)
    another = mixed()
    if name == "t.csv":
        another.replicas[2] = 3
    else:
        another.masses[0] = 30.0
    with pytest.raises(OutputError, match="other replicas|another system"):
        watch(FILES[name](path), another, frames, 3)
    assert shown.read_bytes() == before
    shown.write_bytes(before[: len(before) // 3] if name != "t.csv" else b"a,b\n1,2\n")
    with pytest.raises(OutputError, match="cannot be read|has the columns|holds"):
        watch(FILES[name](path), state, frames, 3)
    with pytest.raises(ConfigError, match="at least 1"):
        FILES[name](path, 0)
    with pytest.raises(OutputError, match="cannot write"):
        watch(FILES[name](tmp_path / "no folder" / name), state, frames)


def test_another_way_of_writing_is_refused(rng: Generator, tmp_path: Path) -> None:
    state, path = mixed(), tmp_path / "t.h5"
    frames = [random_frame(state, rng, k) for k in range(3)]
    watch(H5MDTrajectory(path, 1), state, frames)
    for observer in (
        H5MDTrajectory(path, 2),
        H5MDTrajectory(path, 1, forces=True),
        H5MDTrajectory(path, 1, precision="single"),
    ):
        with pytest.raises(OutputError, match="the restart would write"):
            watch(observer, state, frames, 2)
    with pytest.raises(ConfigError, match="precision"):
        H5MDTrajectory(path, 1, precision="half")  # type: ignore[arg-type]


def test_the_table_holds_every_bit(rng: Generator, tmp_path: Path) -> None:
    state = mixed()
    frames = [random_frame(state, rng, 3 * k) for k in range(4)]
    watch(ThermoTable(tmp_path / "t.csv", 3, pressure=True), state, frames)
    found = read_thermo_table(tmp_path / "t.csv")
    np.testing.assert_array_equal(found["step"], [0, 3, 6, 9])
    np.testing.assert_array_equal(found["replica"], [7, 12345, 2])
    for k, frame in enumerate(frames):
        for column, name in (
            ("potential_eV", "energy"),
            ("kinetic_eV", "kinetic_energy"),
            ("conserved_eV", "conserved"),
        ):
            np.testing.assert_array_equal(found[column][k], frame.values[name])
        np.testing.assert_array_equal(found["total_eV"][k], frame.values["energy"] + frame.values["kinetic_energy"])
        np.testing.assert_array_equal(found["volume_angstrom3"][k], frame.values["volume"])
        pressure = [np.mean(np.diag(tensor)) * GPA_IN_EV for tensor in frame.values["pressure"]]
        np.testing.assert_allclose(found["pressure_GPa"][k], pressure, rtol=1e-14)
    one = State.from_atoms([molecule("H2O")])
    watch(ThermoTable(tmp_path / "one.csv", 1), one, [random_frame(one, rng, k) for k in range(2)])
    header = (tmp_path / "one.csv").read_text().splitlines()[0]
    assert header == "step,time_fs,temperature_K,potential_eV,kinetic_eV,total_eV,conserved_eV"
    assert read_thermo_table(tmp_path / "one.csv")["total_eV"].shape == (2, 1)


def test_ase_reads_what_was_seen(rng: Generator, tmp_path: Path) -> None:
    from ase.units import fs

    state = State.from_atoms([bulk("Si")])
    frames = [random_frame(state, rng, k) for k in range(3)]
    watch(ASETrajectory(tmp_path / "t.traj", 1), state, frames)
    for atoms, frame in zip(read(tmp_path / "t.traj", index=":"), frames, strict=True):
        np.testing.assert_array_equal(atoms.positions, frame.values["positions"])
        np.testing.assert_array_equal(atoms.cell.array, frame.values["cells"][0])
        np.testing.assert_array_equal(atoms.get_forces(), frame.values["forces"])
        np.testing.assert_allclose(atoms.get_velocities() * fs, frame.values["velocities"], rtol=1e-14)
        assert atoms.get_potential_energy() == frame.values["energy"][0]
        assert atoms.info == {"step": frame.step, "time_fs": frame.time_fs}


def test_a_process_may_be_killed_at_any_call(tmp_path: Path) -> None:
    """The worker checks the file after each kill; here, that what is found is what was committed, in the right order."""
    worker = Path(__file__).parent / "journal_worker.py"
    result = subprocess.run([sys.executable, str(worker), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    found = [int(word) for word in result.stdout.split()]
    assert found == sorted(found)
    assert set(found) == {-1, 1, 2, 3}
    assert min(found.count(blocks) for blocks in (1, 2, 3)) > 5


def test_checkpoints(rng: Generator, tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    arrays = {"positions": rng.normal(size=(4, 3)), "extra.xi": rng.normal(size=2), "nothing": np.array([np.nan])}
    identity = {"model": "abc", "ensemble": {"name": "nve", "timestep": 0.1 + 0.2}, "intervals": (1, 2)}
    Checkpoint(identity, 5, [3, 1], arrays).save(path)
    found = Checkpoint.load(path)
    assert (found.step, found.frames) == (5, [3, 1])
    assert found.arrays.keys() == arrays.keys()
    assert all(found.arrays[name].tobytes() == arrays[name].tobytes() for name in arrays)
    found.check(identity, tmp_path)
    for changed, text in (
        ({"model": "abd"}, "another model"),
        ({"ensemble": {"name": "nve", "timestep": 0.5}}, "ensemble timestep 0.5 instead of 0.30000000000000004"),
        ({"seed": 1}, "seed 1 instead of None"),
    ):
        with pytest.raises(OutputError, match=text):
            found.check({**identity, **changed}, tmp_path)
    whole = path.read_bytes()
    place = whole.index(arrays["positions"].tobytes())
    damaged = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    for content in (b"", whole[:-30], whole[: len(whole) // 2], damaged, b"PK" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(OutputError, match="not a checkpoint"):
            Checkpoint.load(path)
    buffer = io.BytesIO()
    np.savez(buffer, positions=arrays["positions"])
    path.write_bytes(buffer.getvalue())
    with pytest.raises(OutputError, match="not a checkpoint"):
        Checkpoint.load(path)
    with pytest.raises(OutputError, match="there is no checkpoint"):
        Checkpoint.load(tmp_path / "nothing.npz")


def test_simulations_are_stopped(rng: Generator) -> None:
    state = mixed()
    good = random_frame(state, rng, 4)
    for observer, name, value, text in (
        (StopNotFinite(), "energy", np.nan, "step 4 .2 fs.: replica 12345 has a potential energy of nan"),
        (StopNotFinite(), "kinetic_energy", np.inf, "replica 12345 has a kinetic energy of inf"),
        (StopRunaway(target=400.0), "temperature", 20001.0, "replica 12345 is at 2e.04 K, the limit is 20000 K"),
        (StopRunaway(limit=900.0), "temperature", np.nan, "replica 12345 is at nan K, the limit is 900 K"),
    ):
        observer.open(state, 0.5, None)
        observer.observe(good)
        values = dict(good.values)
        values[name] = np.where(np.arange(3) == 1, value, values[name])
        with pytest.raises(SimkitError, match=text):
            observer.observe(Frame(4, 2.0, values))
    assert StopRunaway(target=10.0).limit == 15000.0
    with pytest.raises(ConfigError, match="positive"):
        StopRunaway(limit=-1.0)


def test_leaving_the_training_domain_stops() -> None:
    water = molecule("H2O")
    closest = {"H-O": 0.9, "H-H": 1.4}
    crystal = Atoms(
        "HO", positions=[[0.1, 0, 0], [4.1, 0, 0]], cell=[5.0, 5, 5], pbc=True
    )  # 1 angstrom through the boundary
    for structures, replica, move, text in (
        ([water, water], 1, [0.0, 0.0, -0.4], r"replica 1 left the training domain: atoms [01] and [01] .H-O."),
        ([water, crystal], 1, [0.0, 0.0, 0.0], None),
        ([water, crystal], 1, [0.2, 0.0, 0.0], r"replica 1 .* are 0.800 angstrom apart, the closest .* is 0.900"),
    ):
        state = State.from_atoms(structures)
        stop = StopOutsideDomain(1, closest)
        stop.open(state, 0.5, None)
        positions, cells = state.positions.numpy().copy(), state.cells.numpy().copy()
        stop.observe(Frame(0, 0.0, {"positions": positions, "cells": cells}))
        last = int(state.offsets[replica + 1]) - 1 if structures[1] is crystal else int(state.offsets[replica])
        positions[last] += move
        frame = Frame(3, 1.5, {"positions": positions, "cells": cells})
        if text is None:
            stop.observe(frame)
        else:
            with pytest.raises(SimkitError, match=text):
                stop.observe(frame)
    # A pair that was never near in the training data.
    state = State.from_atoms([Atoms("OO", positions=[[0, 0, 0], [1.2, 0, 0]])])
    stop = StopOutsideDomain(1, closest)
    stop.open(state, 0.5, None)
    with pytest.raises(SimkitError, match="never within the cutoff"):
        stop.observe(Frame(0, 0.0, {"positions": state.positions.numpy(), "cells": state.cells.numpy()}))
    for table, text in (
        ({}, "does not know"),
        ({"C-Xy": 1.0}, "pairs of elements"),
        ({"CH": 1.0}, "pairs of elements"),
    ):
        with pytest.raises(ConfigError, match=text):
            StopOutsideDomain(1, table)


def test_progress_is_quiet_without_a_terminal(
    rng: Generator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = mixed()
    quiet = Progress(20)
    assert not quiet.needs
    watch(quiet, state, [random_frame(state, rng, 0)])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    shown = Progress(20)
    assert shown.needs == {"temperature", "energy", "conserved"}
    frames = [random_frame(state, rng, step) for step in (0, 20)]
    shown.open(state, 0.5, None)
    for frame in frames:
        shown.observe(frame)
    shown.close()
    drift = (frames[1].values["conserved"] - frames[0].values["conserved"]).sum() / 7 / 10.0 * 1e6
    text = capsys.readouterr().err
    assert "20/20" in text
    assert f"E {frames[1].values['energy'].mean():.4f} eV" in text
    assert f"drift {drift:.2g} meV/atom/ps" in text
