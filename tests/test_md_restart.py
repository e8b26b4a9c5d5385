"""Simulations that are killed and restarted against those that are left alone: every file must be the same."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ase.io.trajectory import TrajectoryReader

WORKER = Path(__file__).parent / "md_worker.py"
ENSEMBLES: dict[str, dict[str, Any]] = {
    "nve": {},
    "langevin": {"temperature": 60.0, "final_temperature": 80.0, "ramp_steps": 30, "seed": 1},
    "nose-hoover": {"temperature": 60.0, "damping": 50.0},
    "bussi": {"temperature": 60.0, "time_constant": 20.0, "seed": 1},
    "scr": {"temperature": 60.0, "time_constant": 20.0, "pressure_time": 50.0, "coupling": "anisotropic", "seed": 1},
    "mtk": {"temperature": 60.0, "damping": 50.0, "pressure_damping": 100.0},
}
STEPS = 37


def work(*jobs: dict[str, Any]) -> list[str]:
    """Run jobs and return how they ended: "0", the number of a signal, or an error."""
    command = [sys.executable, str(WORKER), json.dumps(jobs)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    return result.stdout.splitlines()


def ensemble(name: str) -> dict[str, Any]:
    return {"ensemble": name, "timestep": 2.0, **ENSEMBLES[name]}


def h5_contents(path: Path) -> dict[str, np.ndarray]:
    """Every dataset of a file by name, read by nothing but h5py."""
    found: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:

        def visit(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                found[name] = item[()]

        file.visititems(visit)
    return found


def assert_same_files(folder: Path, reference: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {path.name for path in reference.iterdir()}
    assert (folder / "thermo.csv").read_bytes() == (reference / "thermo.csv").read_bytes()
    found, expected = h5_contents(folder / "trajectory.h5"), h5_contents(reference / "trajectory.h5")
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    for path in reference.glob("*.traj"):
        with TrajectoryReader(folder / path.name) as a, TrajectoryReader(path) as b:
            assert len(a) == len(b) > 0
            for one, other in zip(a, b, strict=True):
                assert one.info == other.info
                for get in ("get_positions", "get_momenta", "get_forces", "get_potential_energy"):
                    np.testing.assert_array_equal(getattr(one, get)(), getattr(other, get)())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each ensemble, the folder of a run left alone, and of one killed twice."""
    folder = tmp_path_factory.mktemp("runs")
    jobs, expected = [], []
    for name in ENSEMBLES:
        job = {"ensemble": ensemble(name), "steps": STEPS, "out": str(folder / f"{name}-killed")}
        jobs.append({**job, "out": str(folder / name)})
        # In the middle of a stretch between checkpoints (every 10 steps), and on the step of one, before it is saved.
        jobs += [{**job, "kill": 16}, {**job, "kill": 30, "restart": True}, {**job, "restart": True}]
        expected += ["0", str(int(signal.SIGKILL)), str(int(signal.SIGKILL)), "0"]
    assert work(*jobs) == expected
    return folder


@pytest.mark.parametrize("name", ENSEMBLES)
def test_killed_runs_equal_uninterrupted_ones(runs: Path, name: str) -> None:
    assert_same_files(runs / f"{name}-killed", runs / name)
    rows = (runs / name / "thermo.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * (STEPS + 1)
    volumes = {row.rsplit(",", 1)[1] for row in rows[1:]}
    assert len(volumes) == (
        2 * (STEPS + 1) - 1 if name in ("scr", "mtk") else 1
    )  # the barostats move the cell, others do not


def test_a_run_killed_at_any_time_goes_on(runs: Path, tmp_path: Path) -> None:
    """The process is killed from outside, wherever it happens to be."""
    job = {"ensemble": ensemble("langevin"), "steps": 400, "out": str(tmp_path / "killed")}
    table, checkpoint = tmp_path / "killed" / "thermo.csv", tmp_path / "killed" / "checkpoint.npz"
    with subprocess.Popen(
        [sys.executable, str(WORKER), json.dumps([job])], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 120
        while not (checkpoint.exists() and table.read_bytes().count(b"\n") > 50):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in children:
            subprocess.run(["kill", "-9", pid], check=True)
        assert process.communicate()[0].decode().split() == [str(int(signal.SIGKILL))]
    # What there is can be read by anyone, at once.
    frames = h5_contents(tmp_path / "killed" / "trajectory.h5")["replicas/positions"]
    assert 0 < len(frames) <= 201
    (tmp_path / "killed" / ".checkpoint-0.npz").touch()  # as if it had been killed while it wrote the next checkpoint
    assert work({**job, "restart": True}, {**job, "out": str(tmp_path / "whole")}) == ["0", "0"]
    assert_same_files(tmp_path / "killed", tmp_path / "whole")


def test_full_disk(tmp_path: Path) -> None:
    """Files may grow up to a size only: the run ends with an error that names the file, and goes on once there is room."""
    job = {"ensemble": ensemble("nve"), "steps": 80, "out": str(tmp_path / "full")}
    (error, *rest) = work(
        {**job, "largest_file": 300_000, "fails": True},
        {**job, "restart": True},
        {**job, "out": str(tmp_path / "whole")},
    )
    assert error.startswith("OutputError: cannot write")
    assert "trajectory.h5: File too large" in error
    assert "restart the run" in error
    assert rest == ["0", "0"]
    assert_same_files(tmp_path / "full", tmp_path / "whole")


def test_another_run_is_refused(runs: Path, tmp_path: Path) -> None:
    old = {"steps": STEPS + 10, "out": str(runs / "nve"), "restart": True, "fails": True}
    before = {path.name: path.read_bytes() for path in (runs / "nve").iterdir()}
    errors = work(
        {**old, "ensemble": {**ensemble("nve"), "timestep": 1.0}},
        {**old, "ensemble": ensemble("langevin")},
        {**old, "ensemble": ensemble("nve"), "replicas": 3},
        {**old, "ensemble": ensemble("nve"), "restart": False},
        {**old, "ensemble": ensemble("nve"), "out": str(tmp_path)},
    )
    for error, part in zip(
        errors,
        (
            "ensemble timestep 1.0 instead of 2.0",
            "ensemble ensemble 'langevin' instead of 'nve'",
            "another structures",
            "trajectory.h5 exists already",
            "there is no checkpoint",
        ),
        strict=True,
    ):
        assert error.startswith("OutputError")
        assert part in error
    assert {path.name: path.read_bytes() for path in (runs / "nve").iterdir()} == before
