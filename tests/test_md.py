"""Molecular dynamics, relaxation and equation of state on ASE's integrators and optimisers."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import all_changes
from ase.cluster import Icosahedron
from ase.constraints import FixAtoms
from ase.io import read

import simkit
from simkit import potentials
from simkit.errors import ConfigError, DataError, GeometryError, OutputError, SimkitError
from simkit.md.analysis import energy_drift
from simkit.md.ensembles import draw_velocities, scale_velocities, temperature_of, thermal_directions
from simkit.md.eos import equation_of_state
from simkit.md.relax import relax
from simkit.md.run import MDResult, run_md
from simkit.units import GPA

EPSILON, SIGMA = 0.0104, 3.4
SETTINGS: dict[str, Any] = {"timestep": 1.0, "temperature": 300.0, "interval": 3, "checkpoint_interval": 10, "seed": 4}
STEPS = 40


def argon_calculator(cutoff: float = 8.0, **options: Any) -> simkit.Calculator:
    model = potentials.build(
        "lennard_jones", cutoff=cutoff, elements=[18], epsilon=EPSILON, sigma=SIGMA, dtype="float64"
    )
    return simkit.Calculator(model, dtype="float64", **options)


def argon() -> Atoms:
    return bulk("Ar", "fcc", a=5.3, cubic=True) * (2, 2, 2)


class Failing(simkit.Calculator):
    """A small random PaiNN for which something happens at a given evaluation."""

    def __init__(self, at: int = 0, event: str = "") -> None:
        model = potentials.build("painn", elements=[1, 6, 8], cutoff=4.0, channels=8, layers=2, dtype="float64")
        super().__init__(model, dtype="float64", skin=0.1)
        self.at, self.event = at, event

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        if self.evaluations == self.at:
            if self.event == "nan":
                self.results["energy"] = float("nan")
            elif self.event == "kick":
                self.results["forces"] = self.results["forces"] * 1e6
            else:
                os.kill(os.getpid(), getattr(signal, self.event))


def ethanol_run(out: Path, calculator: simkit.Calculator | None = None, **changes: Any) -> MDResult:
    atoms = molecule("CH3CH2OH")
    return run_md(calculator or Failing(), atoms, out=out, **{**SETTINGS, "steps": STEPS, **changes})


def assert_same_run(one: Path, two: Path) -> None:
    """The same bits in the log and in every frame."""
    assert (one / "thermo.csv").read_bytes() == (two / "thermo.csv").read_bytes()
    frames, others = read(one / "trajectory.traj", ":"), read(two / "trajectory.traj", ":")
    assert len(frames) == len(others)
    for a, b in zip(frames, others, strict=True):
        assert a == b  # positions, numbers, cell and pbc, exactly
        assert a.info == b.info
        np.testing.assert_array_equal(a.get_momenta(), b.get_momenta())
        np.testing.assert_array_equal(a.get_forces(), b.get_forces())
        assert a.get_potential_energy() == b.get_potential_energy()


@pytest.fixture(scope="module", params=["nve", "nvt"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, MDResult]:
    """A run that never stopped."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, ethanol_run(folder, ensemble=request.param)


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take longer than the runs; those of `whole`, which is made before this applies, are enough."""
    monkeypatch.setattr("simkit.md.run.save_plots", lambda *_: None)


def test_files_of_a_run(whole: tuple[str, Path, MDResult]) -> None:
    ensemble, folder, result = whole
    plots = {"temperature.png", "energy.png"} | ({"drift.png"} if ensemble == "nve" else set())
    files = {"thermo.csv", "trajectory.traj", "checkpoint.npz", "run.json"} | plots
    assert {path.name for path in folder.iterdir()} == files
    assert result.steps == STEPS
    assert (result.drift is None) == (ensemble == "nvt")
    assert json.loads((folder / "run.json").read_text())["ensemble"] == ensemble
    thermo = result.thermo
    np.testing.assert_array_equal(thermo["step"], np.arange(0, STEPS + 1, 3))
    np.testing.assert_array_equal(thermo["time_fs"], thermo["step"] * 1.0)
    np.testing.assert_allclose(thermo["total_eV"], thermo["potential_eV"] + thermo["kinetic_eV"], atol=1e-12)
    assert thermo["temperature_K"][0] == pytest.approx(300.0)
    frames = read(folder / "trajectory.traj", ":")
    for k, frame in enumerate(frames):
        assert frame.info == {"step": 3 * k, "time_fs": 3.0 * k}
        assert frame.get_potential_energy() == thermo["potential_eV"][k]
        assert frame.get_kinetic_energy() == thermo["kinetic_eV"][k]


# Imports take longer than the runs: one process makes them, and each run is a fork of it.
KILLED = """
import os, signal, sys, torch
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_md import Failing, ethanol_run
for ensemble in ("nve", "nvt"):
    process = os.fork()
    if process == 0:
        torch.set_num_threads(int(sys.argv[3]))
        ethanol_run(Path(sys.argv[2]) / ensemble, Failing(27, "SIGKILL"), ensemble=ensemble)
        os._exit(0)
    status = os.waitpid(process, 0)[1]
    if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
        sys.exit(f"{ensemble} was not killed: status {status}")
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of each ensemble, killed in the middle."""
    folder = tmp_path_factory.mktemp("killed")
    arguments = [str(Path(__file__).parent), str(folder), str(torch.get_num_threads())]
    done = subprocess.run([sys.executable, "-P", "-c", KILLED, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_killed_run_goes_on_bit_for_bit(whole: tuple[str, Path, MDResult], killed: Path) -> None:
    ensemble, folder, _ = whole
    out = killed / ensemble
    written = (out / "thermo.csv").read_bytes()
    assert len(written) < len((folder / "thermo.csv").read_bytes())
    result = ethanol_run(out, ensemble=ensemble, restart=True)
    assert result.steps == STEPS - 20
    assert_same_run(out, folder)


def test_rubbish_at_the_end_of_the_files_is_removed(whole: tuple[str, Path, MDResult], tmp_path: Path) -> None:
    """As a machine that goes down leaves them."""
    ensemble, folder, _ = whole
    with pytest.raises(KeyboardInterrupt):
        ethanol_run(tmp_path, Failing(24, "SIGTERM"), ensemble=ensemble)
    for name, rest in (("thermo.csv", b"24,24.0,3"), ("trajectory.traj", b"\0\1" * 500)):
        with (tmp_path / name).open("ab") as stream:
            stream.write(rest)
    ethanol_run(tmp_path, ensemble=ensemble, restart=True)
    assert_same_run(tmp_path, folder)


def test_interrupting_saves_the_step(whole: tuple[str, Path, MDResult], tmp_path: Path) -> None:
    ensemble, folder, _ = whole
    with pytest.raises(KeyboardInterrupt):
        ethanol_run(tmp_path, Failing(18, "SIGINT"), ensemble=ensemble)
    result = ethanol_run(tmp_path, ensemble=ensemble, restart=True)
    assert result.steps == STEPS - 17  # evaluation 1 belongs to the start
    assert_same_run(tmp_path, folder)


def test_a_run_can_be_made_longer(whole: tuple[str, Path, MDResult], tmp_path: Path) -> None:
    ensemble, folder, result = whole
    ethanol_run(tmp_path, ensemble=ensemble, steps=13)
    longer = ethanol_run(tmp_path, ensemble=ensemble, restart=True)
    assert_same_run(tmp_path, folder)
    np.testing.assert_array_equal(longer.atoms.positions, result.atoms.positions)
    assert ethanol_run(tmp_path, ensemble=ensemble, restart=True).steps == 0
    with pytest.raises(ConfigError, match="20 steps were asked for in all, but the run has done 40"):
        ethanol_run(tmp_path, ensemble=ensemble, restart=True, steps=20)


def test_nothing_is_overwritten_or_mixed(whole: tuple[str, Path, MDResult], tmp_path: Path) -> None:
    ensemble, original, _ = whole
    folder = tmp_path / "copy"
    shutil.copytree(original, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OutputError, match="holds a run already"):
        ethanol_run(folder, ensemble=ensemble)
    with pytest.raises(OutputError, match="no run to continue"):
        ethanol_run(tmp_path, ensemble=ensemble, restart=True)
    with pytest.raises(OutputError, match=r"timestep 0\.5 instead of 1\.0, seed 5 instead of 4"):
        ethanol_run(folder, ensemble=ensemble, restart=True, timestep=0.5, seed=5)
    other_model = simkit.Calculator(
        potentials.build("painn", elements=[1, 6, 8], cutoff=4.0, channels=8, layers=2, seed=1)
    )
    with pytest.raises(OutputError, match="another model"):
        ethanol_run(folder, other_model, ensemble=ensemble, restart=True)
    with pytest.raises(OutputError, match="another structure"):
        run_md(Failing(), molecule("CH3OH"), out=folder, steps=50, **SETTINGS, ensemble=ensemble, restart=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "checkpoint.npz").write_bytes(before["checkpoint.npz"][:700])
    with pytest.raises(DataError, match="is not a checkpoint"):
        ethanol_run(folder, ensemble=ensemble, restart=True)


def test_missing_rows_or_frames_are_noticed(whole: tuple[str, Path, MDResult], tmp_path: Path) -> None:
    ensemble, original, _ = whole
    for name in ("thermo.csv", "trajectory.traj"):
        folder = tmp_path / name
        shutil.copytree(original, folder)
        (folder / name).unlink()
        with pytest.raises(DataError, match=name):
            ethanol_run(folder, ensemble=ensemble, restart=True, steps=50)


@pytest.mark.parametrize(
    ("event", "message"), [("nan", "potential energy is nan"), ("kick", "ran away|not finite|finite")]
)
def test_a_breakdown_is_stopped_and_the_last_good_frame_kept(tmp_path: Path, event: str, message: str) -> None:
    with pytest.raises(SimkitError, match=message) as caught:
        ethanol_run(tmp_path, Failing(12, event))
    assert "broke down in step 11 (11 fs)" in str(caught.value)
    last = read(tmp_path / "trajectory.traj", "-1")
    assert last.info["step"] == 10
    good = ethanol_run(tmp_path / "good", steps=10, interval=10)
    np.testing.assert_array_equal(last.positions, good.atoms.positions)
    assert np.isfinite(np.loadtxt(tmp_path / "thermo.csv", delimiter=",", skiprows=1)).all()


def test_an_unusable_start_leaves_no_run_behind(tmp_path: Path) -> None:
    atoms = molecule("CH3CH2OH")
    atoms.positions[0] = atoms.positions[1]
    with pytest.raises(GeometryError):
        run_md(Failing(), atoms, out=tmp_path, steps=5)
    with pytest.raises(SimkitError, match="starting structure is nan"):
        run_md(Failing(1, "nan"), molecule("CH3CH2OH"), out=tmp_path, steps=5)
    assert not list(tmp_path.iterdir())


def test_unusable_settings_are_refused(tmp_path: Path) -> None:
    for changes, message in (
        ({"ensemble": "npt"}, "ensemble"),
        ({"timestep": -1.0}, "timestep"),
        ({"temperature": None, "ensemble": "nvt"}, "needs a temperature"),
        ({"temperature": None}, "no velocities"),
        ({"steps": 0}, "at least 1"),
        ({"interval": 0}, "interval"),
    ):
        with pytest.raises(ConfigError, match=message):
            ethanol_run(tmp_path, **changes)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        ethanol_run(tmp_path / "file")


def test_the_input_structure_is_not_changed_and_its_labels_not_carried_along(tmp_path: Path) -> None:
    atoms = molecule("CH3CH2OH")
    atoms.info.update(charge=0, energy=-1.0)
    atoms.set_array("old_forces", np.ones((9, 3)))
    before = atoms.copy()
    run_md(Failing(), atoms, out=tmp_path, steps=3, interval=3)
    assert atoms == before
    assert atoms.info == before.info
    assert atoms.calc is None
    frame = read(tmp_path / "trajectory.traj", "0")
    assert frame.info == {"charge": 0.0, "step": 0, "time_fs": 0.0}
    assert "old_forces" not in frame.arrays


def test_velocities_can_be_kept(tmp_path: Path) -> None:
    atoms = argon()
    draw_velocities(atoms, 80.0, np.random.default_rng(0))
    scale_velocities(atoms, 80.0, 93)
    result = run_md(argon_calculator(), atoms, out=tmp_path, steps=2, temperature=None, interval=1)
    np.testing.assert_array_equal(read(tmp_path / "trajectory.traj", "0").get_momenta(), atoms.get_momenta())
    assert result.thermo["temperature_K"][0] == pytest.approx(80.0)
    other = atoms.copy()
    other.set_momenta(-atoms.get_momenta())
    with pytest.raises(OutputError, match="another structure"):
        run_md(argon_calculator(), other, out=tmp_path, steps=3, temperature=None, interval=1, restart=True)


def test_constrained_atoms_stay(tmp_path: Path) -> None:
    atoms = argon()
    atoms.set_constraint(FixAtoms([0, 5]))
    result = run_md(argon_calculator(), atoms, out=tmp_path, steps=10, temperature=50.0, timestep=5.0)
    moved = np.abs(result.atoms.positions - atoms.positions).max(axis=1) > 0
    assert not moved[[0, 5]].any()
    assert moved.sum() == len(atoms) - 2


def test_argon_conserves_energy_to_second_order(tmp_path: Path) -> None:
    spread = []
    for timestep in (10.0, 5.0):
        out = tmp_path / str(timestep)
        settings: dict[str, Any] = {
            "temperature": 60.0,
            "timestep": timestep,
            "steps": int(2000 / timestep),
            "interval": 1,
        }
        result = run_md(argon_calculator(), argon(), out=out, **settings)
        total = result.thermo["total_eV"]
        spread.append(np.std(total))
        assert result.drift is not None
        assert abs(result.drift) < 0.02
        np.testing.assert_allclose(result.atoms.get_momenta().sum(axis=0), 0.0, atol=1e-10)
    assert spread[0] / spread[1] == pytest.approx(4.0, rel=0.25)


def test_langevin_reaches_the_temperature(tmp_path: Path) -> None:
    result = run_md(
        argon_calculator(),
        argon(),
        out=tmp_path,
        ensemble="nvt",
        temperature=60.0,
        timestep=5.0,
        friction=0.02,
        steps=800,
        interval=5,
    )
    assert result.thermo["temperature_K"][40:].mean() == pytest.approx(60.0, rel=0.1)


@pytest.mark.parametrize(
    ("atoms", "directions"),
    [
        (molecule("CH3CH2OH"), 21),
        (molecule("CO2"), 4),
        (Atoms("Ar"), 3),
        (argon(), 93),
        (Atoms("Ar2", [[0, 0, 0], [0, 0, 3.8]]), 1),
    ],
    ids=["molecule", "linear", "atom", "crystal", "dimer"],
)
def test_starting_velocities(atoms: Atoms, directions: int) -> None:
    draw_velocities(atoms, 250.0, np.random.default_rng(1))
    assert thermal_directions(atoms, "nve") == directions
    assert thermal_directions(atoms, "nvt") == 3 * len(atoms)
    again = atoms.copy()
    draw_velocities(again, 250.0, np.random.default_rng(1))
    np.testing.assert_array_equal(again.get_momenta(), atoms.get_momenta())
    scale_velocities(atoms, 250.0, directions)
    assert temperature_of(atoms, directions) == pytest.approx(250.0)
    if len(atoms) > 1:
        np.testing.assert_allclose(atoms.get_momenta().sum(axis=0), 0.0, atol=1e-12)
        if not atoms.pbc.any():
            np.testing.assert_allclose(atoms.get_angular_momentum(), 0.0, atol=1e-12)


def test_starting_velocities_follow_the_maxwell_boltzmann_distribution() -> None:
    atoms = Atoms("Ar4000", positions=np.zeros((4000, 3)), cell=[9.0] * 3, pbc=True)
    draw_velocities(atoms, 300.0, np.random.default_rng(2))
    scaled = (atoms.get_momenta() / np.sqrt(atoms.get_masses()[:, None] * units.kB * 300.0)).ravel()
    assert np.mean(scaled**2) == pytest.approx(1.0, abs=0.04)
    assert np.mean(scaled**4) == pytest.approx(3.0, abs=0.15)


def test_drift_of_a_straight_line() -> None:
    time = np.linspace(0, 20000, 401)
    energy = -1.5e5 + 2e-9 * time + 1e-4 * np.cos(2 * np.pi * time / 1000)
    assert energy_drift(time, energy, 4) == pytest.approx(2e-9 * 1e6 / 4, rel=0.05)
    assert energy_drift([0.0, 1000.0], [0.0, 1.0], 1) == pytest.approx(1000.0)
    for bad in (([0.0], [1.0]), ([0.0, 1.0], [1.0]), ([0.0, 1.0], [1.0, np.nan]), ([2.0, 2.0], [1.0, 1.0]), ([], [])):
        with pytest.raises(DataError):
            energy_drift(*bad, 1)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_live_line_on_a_terminal_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for screen in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", screen)
        ethanol_run(tmp_path / type(screen).__name__, steps=5)
        shown = screen.getvalue()
        assert ("5/5" in shown and " K " in shown) == screen.isatty()
        assert bool(shown) == screen.isatty()


@pytest.mark.parametrize("optimizer", ["bfgs", "lbfgs", "fire"])
def test_dimer_relaxes_to_the_minimum(tmp_path: Path, optimizer: str) -> None:
    atoms = Atoms("Ar2", [[0, 0, 0], [0, 0, 4.2]])
    result = relax(argon_calculator(20.0), atoms, out=tmp_path, fmax=1e-6, optimizer=optimizer)
    assert result.converged
    assert result.atoms.get_distance(0, 1) == pytest.approx(2 ** (1 / 6) * SIGMA, abs=1e-4)
    assert result.energies[-1] == pytest.approx(-EPSILON, abs=1e-9)
    assert atoms.get_distance(0, 1) == 4.2
    assert {path.name for path in tmp_path.iterdir()} == {"trajectory.traj", "relax.csv", "relaxed.xyz", "relax.png"}
    assert len(read(tmp_path / "trajectory.traj", ":")) == len(result.energies)
    log = np.loadtxt(tmp_path / "relax.csv", delimiter=",", skiprows=1)
    np.testing.assert_array_equal(log[:, 1], result.energies)
    assert read(tmp_path / "relaxed.xyz").get_potential_energy() == pytest.approx(result.energies[-1])


def test_thirteen_atoms_relax_to_the_icosahedron(tmp_path: Path) -> None:
    """The energy of the Lennard-Jones cluster of 13 atoms (Cambridge Cluster Database)."""
    atoms = Icosahedron("Ar", 2, latticeconstant=5.5)
    atoms.rattle(0.2, seed=1)
    result = relax(argon_calculator(40.0), atoms, out=tmp_path, fmax=1e-5)
    assert result.converged
    assert result.energies[-1] / EPSILON == pytest.approx(-44.326801, abs=1e-5)


def test_running_out_of_steps_is_reported(tmp_path: Path) -> None:
    atoms = Atoms("Ar2", [[0, 0, 0], [0, 0, 4.2]])
    result = relax(argon_calculator(20.0), atoms, out=tmp_path, fmax=1e-6, steps=2)
    assert not result.converged
    assert len(result.energies) == 3
    assert result.max_forces[-1] > 1e-6
    with pytest.raises(OutputError, match="holds a relaxation already"):
        relax(argon_calculator(20.0), atoms, out=tmp_path)


NEAREST = 1.375 * 2 ** (1 / 6) * SIGMA
"""A cutoff that leaves an fcc crystal, strained by up to two per cent, with its nearest neighbours alone, at full strength."""


def test_cell_relaxes_to_the_minimum(tmp_path: Path) -> None:
    atoms = bulk("Ar", "fcc", a=5.35)
    atoms.set_cell(
        atoms.cell.array @ (np.eye(3) + 0.005 * np.array([[1, 1, 0], [0, -1, 0], [0, 0, 0]])), scale_atoms=True
    )
    result = relax(argon_calculator(NEAREST), atoms, out=tmp_path, fmax=1e-6, cell=True)
    assert result.converged
    assert result.atoms.get_volume() == pytest.approx(SIGMA**3, rel=1e-4)
    assert result.energies[-1] == pytest.approx(-6 * EPSILON, abs=1e-8)
    np.testing.assert_allclose(result.atoms.get_stress(), 0.0, atol=1e-6)


def test_relaxation_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    dimer = Atoms("Ar2", [[0, 0, 0], [0, 0, 4.2]])
    for error, changes, message in (
        (ConfigError, {"optimizer": "bfg"}, "did you mean 'bfgs'"),
        (ConfigError, {"fmax": 0.0}, "fmax"),
        (ConfigError, {"steps": 0}, "steps"),
        (GeometryError, {"cell": True}, "periodic"),
    ):
        with pytest.raises(error, match=message):
            relax(argon_calculator(), dimer, out=tmp_path, **changes)
    with pytest.raises(SimkitError, match="broke down in step 1"):
        relax(Failing(2, "nan"), molecule("CH3CH2OH"), out=tmp_path)


def test_equation_of_state_of_nearest_neighbours() -> None:
    """E(r) = 24 eps ((s/r)^12 - (s/r)^6) with V = r^3 / sqrt(2): V0 = s^3, E0 = -6 eps, B = 48 eps / s^3, all per atom."""
    result = equation_of_state(argon_calculator(NEAREST), bulk("Ar", "fcc", a=5.36, cubic=True), strain=0.015, points=9)
    assert result.volumes.shape == result.energies.shape == (9,)
    assert result.volume == pytest.approx(4 * SIGMA**3, rel=1e-4)
    assert result.energy == pytest.approx(-24 * EPSILON, rel=1e-5)
    assert result.bulk_modulus == pytest.approx(48 * EPSILON / SIGMA**3 / GPA, rel=0.02)
    inside = np.interp(result.volumes, result.fit_volumes, result.fit_energies)
    np.testing.assert_allclose(inside, result.energies, atol=2e-5)


def test_equation_of_state_refuses_what_has_none() -> None:
    with pytest.raises(GeometryError, match="no minimum"):
        equation_of_state(argon_calculator(), bulk("Ar", "fcc", a=6.2), strain=0.02)
    with pytest.raises(GeometryError, match="periodic"):
        equation_of_state(argon_calculator(), Atoms("Ar2", [[0, 0, 0], [0, 0, 4.2]]))
    with pytest.raises(ConfigError, match="points"):
        equation_of_state(argon_calculator(), bulk("Ar", "fcc", a=5.3), points=2)
