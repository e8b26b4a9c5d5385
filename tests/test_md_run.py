"""`run_md`: the files of a run, restarts, breakdowns and refusals. What the engine computes is tested with its parts."""

import io
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.lj import LennardJones
from ase.io import read

from simkit.errors import ConfigError, GeometryError, OutputError, SimkitError
from simkit.md import run as run_module
from simkit.md.ensembles import NVE, Langevin, MartynaTobiasKlein
from simkit.md.h5md_reader import H5MDReader
from simkit.md.run import MDResult, run_md
from simkit.units import GPA

STEPS = 40
ARGON = LennardJones(sigma=3.4, epsilon=0.0104, rc=5.0, smooth=True)
FILES = {"thermo.csv", "checkpoint.npz", "run.json", "temperature.png", "energy.png", "drift.png"}


def argon() -> Atoms:
    return bulk("Ar", "fcc", a=5.3, cubic=True) * (2, 1, 1)


class Failing(Calculator):
    """Springs to where the atoms began; at a given evaluation the energy is not a number, or the forces are absurd."""

    implemented_properties = ("energy", "forces")
    name = "failing"

    def __init__(self, at: int = 0, event: str = "") -> None:
        super().__init__()
        self.at, self.event, self.count, self.start = at, event, 0, None

    def todict(self) -> dict[str, Any]:
        return {"springs": 1.0}

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        self.start = self.atoms.positions.copy() if self.start is None else self.start
        moved = self.atoms.positions - self.start
        self.count += 1
        self.results = {"energy": float((moved**2).sum()), "forces": -2.0 * moved}
        if self.at and self.count >= self.at:
            self.results["energy" if self.event == "nan" else "forces"] *= np.nan if self.event == "nan" else 1e9


def argon_run(out: Path, **changes: Any) -> MDResult:
    given = {"temperature": 60.0, "seed": 4, "interval": 3, "checkpoint_interval": 10, "steps": STEPS, **changes}
    ensemble = given.pop("ensemble", Langevin(2.0, 60.0, 0.02, 1))
    return run_md(given.pop("model", ARGON), given.pop("structures", argon()), ensemble, out=out, **given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MDResult]:
    """A run that never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, argon_run(folder)


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take longer than the runs."""
    monkeypatch.setattr(run_module, "save_plots", lambda *_: 0.0)


def test_files_of_a_run(whole: tuple[Path, MDResult]) -> None:
    folder, result = whole
    assert {path.name for path in folder.iterdir()} == FILES | {"trajectory.traj"}
    assert result.steps == STEPS
    assert json.loads((folder / "run.json").read_text())["ensemble"]["ensemble"] == "langevin"
    thermo = result.thermo
    np.testing.assert_array_equal(thermo["step"], np.arange(0, STEPS + 1, 3))
    np.testing.assert_array_equal(thermo["time_fs"], thermo["step"] * 2.0)
    np.testing.assert_allclose(thermo["total_eV"], thermo["potential_eV"] + thermo["kinetic_eV"], atol=1e-12)
    assert thermo["temperature_K"][0, 0] == pytest.approx(60.0)
    frames = read(folder / "trajectory.traj", ":")
    for k, frame in enumerate(frames):
        assert frame.info == {"step": 3 * k, "time_fs": 6.0 * k}
        assert frame.get_potential_energy() == thermo["potential_eV"][k, 0]
        assert frame.get_kinetic_energy() == pytest.approx(thermo["kinetic_eV"][k, 0], rel=1e-7)  # other constants


@pytest.mark.usefixtures("no_plots")
def test_a_run_can_be_made_longer(whole: tuple[Path, MDResult], tmp_path: Path) -> None:
    folder, result = whole
    argon_run(tmp_path, steps=13)
    longer = argon_run(tmp_path, restart=True)
    assert longer.steps == STEPS - 13
    assert (tmp_path / "thermo.csv").read_bytes() == (folder / "thermo.csv").read_bytes()
    np.testing.assert_array_equal(longer.atoms[0].positions, result.atoms[0].positions)
    for one, two in zip(read(tmp_path / "trajectory.traj", ":"), read(folder / "trajectory.traj", ":"), strict=True):
        assert one == two
        np.testing.assert_array_equal(one.get_momenta(), two.get_momenta())
    assert argon_run(tmp_path, restart=True).steps == 0
    with pytest.raises(ConfigError, match="20 steps were asked for in all, but the run has done 40"):
        argon_run(tmp_path, restart=True, steps=20)


@pytest.mark.usefixtures("no_plots")
def test_nothing_is_overwritten_or_mixed(whole: tuple[Path, MDResult], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole[0], folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OutputError, match="holds a run already"):
        argon_run(folder)
    with pytest.raises(OutputError, match="there is no checkpoint"):
        argon_run(tmp_path / "empty", restart=True)
    with pytest.raises(OutputError, match=r"timestep 1\.0 instead of 2\.0"):
        argon_run(folder, restart=True, ensemble=Langevin(1.0, 60.0, 0.02, 1))
    with pytest.raises(OutputError, match="another model"):
        argon_run(folder, restart=True, model=LennardJones(sigma=3.3))
    with pytest.raises(OutputError, match="another structures"):
        argon_run(folder, restart=True, structures=argon() * (1, 2, 1))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("name", ["thermo.csv", "trajectory.traj"])
def test_missing_rows_or_frames_are_noticed(whole: tuple[Path, MDResult], tmp_path: Path, name: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole[0], folder)
    (folder / name).unlink()
    with pytest.raises(OutputError, match=name):
        argon_run(folder, restart=True, steps=50)


def test_replicas_and_pressure_in_one_file(tmp_path: Path) -> None:
    ensemble = MartynaTobiasKlein(2.0, 60.0, 0.1 * GPA, 100.0, 1000.0)
    result = argon_run(tmp_path, ensemble=ensemble, replicas=3, trajectory="h5", steps=9)
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"trajectory.h5", "pressure.png", "volume.png"}
    assert len(result.atoms) == 3
    assert result.thermo["pressure_GPa"].shape == (4, 3)
    with H5MDReader(tmp_path / "trajectory.h5") as reader:
        assert (reader.frames, len(reader.groups)) == (4, 3)


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(("trajectory", "replicas", "files"), [("auto", 8, 8), ("auto", 9, 1), ("none", 1, 0)])
def test_trajectories(tmp_path: Path, trajectory: Any, replicas: int, files: int) -> None:
    run_md(
        Failing(), Atoms("Ar", [[0, 0, 0]]), NVE(1.0), out=tmp_path, steps=1, replicas=replicas, trajectory=trajectory
    )
    found = sorted(tmp_path.glob("trajectory*"))
    assert len(found) == files
    assert all(path.suffix == (".h5" if replicas > 8 else ".traj") for path in found)


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(("event", "message"), [("nan", "potential energy is nan"), ("kick", "angstrom per step")])
def test_a_breakdown_is_stopped_and_the_last_good_structure_kept(tmp_path: Path, event: str, message: str) -> None:
    settings: dict[str, Any] = {"temperature": 300.0, "interval": 5}
    with pytest.raises(SimkitError, match=message) as caught:
        run_md(Failing(13, event), molecule("CH3CH2OH"), NVE(1.0), out=tmp_path / "bad", steps=60, **settings)
    assert "last_good.xyz" in str(caught.value)
    assert np.isfinite(np.loadtxt(tmp_path / "bad" / "thermo.csv", delimiter=",", skiprows=1)).all()
    last = read(tmp_path / "bad" / "last_good.xyz")
    assert np.isfinite(last.positions).all()
    steps = read(tmp_path / "bad" / "trajectory.traj", "-1").info["step"]
    good = run_md(Failing(), molecule("CH3CH2OH"), NVE(1.0), out=tmp_path / "good", steps=steps, **settings)
    np.testing.assert_array_equal(read(tmp_path / "bad" / "trajectory.traj", "-1").positions, good.atoms[0].positions)


def test_an_unusable_start_leaves_no_run_behind(tmp_path: Path) -> None:
    atoms = argon()
    atoms.positions[0] = np.nan
    with pytest.raises(GeometryError):
        argon_run(tmp_path, structures=atoms)
    with pytest.raises(SimkitError, match="cannot start"):
        run_md(Failing(1, "nan"), molecule("CH3CH2OH"), NVE(0.5), out=tmp_path, steps=5)
    assert not list(tmp_path.iterdir())


def test_unusable_settings_are_refused(tmp_path: Path) -> None:
    for changes in ({"steps": 0}, {"interval": 0}, {"replicas": 0}, {"checkpoint_interval": 0}):
        with pytest.raises(ConfigError, match=f"{next(iter(changes))}.*at least 1"):
            argon_run(tmp_path, **changes)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        argon_run(tmp_path / "file")


@pytest.mark.usefixtures("no_plots")
def test_the_input_structure_is_not_changed_and_its_labels_not_carried_along(tmp_path: Path) -> None:
    atoms = argon()
    atoms.info.update(energy=-1.0)
    atoms.set_array("old_forces", np.ones((len(atoms), 3)))
    before = atoms.copy()
    argon_run(tmp_path, structures=atoms, steps=3)
    assert atoms == before
    assert atoms.info == before.info
    frame = read(tmp_path / "trajectory.traj", "0")
    assert frame.info == {"step": 0, "time_fs": 0.0}
    assert "old_forces" not in frame.arrays


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("no_plots")
def test_progress_on_a_terminal_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for screen in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", screen)
        argon_run(tmp_path / type(screen).__name__, steps=6)
        shown = screen.getvalue()
        assert ("6/6" in shown and " K " in shown) == screen.isatty()
        assert bool(shown) == screen.isatty()
