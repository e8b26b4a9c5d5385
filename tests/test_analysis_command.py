"""Trajectories as arrays, and `simkit analyze` with its tables and pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.lj import LennardJones
from ase.io import read, write
from matplotlib.axes import Axes
from typer.testing import CliRunner

from simkit import cli, md_plots, plotting
from simkit.errors import DataError, GeometryError, OutputError
from simkit.md.ensembles import NVE
from simkit.md.observers.thermo_table import read_thermo_table
from simkit.md.run import run_md
from simkit.md.trajectory_arrays import TrajectoryArrays
from simkit.workflows.analyze import AnalysisSettings, analyze


def silent(_: str) -> None:
    pass


# -------------------------------------------------------------------------------------------------------------- trajectories


def waters(count: int = 5, frame_time: float | None = 2.0) -> list[Atoms]:
    frames = []
    for k in range(count):
        atoms = molecule("H2O", vacuum=4.0)
        spread = np.sqrt(300 * units.kB * atoms.get_masses())[:, None]
        atoms.set_momenta(np.random.default_rng(k).normal(size=(3, 3)) * spread)
        if frame_time is not None:
            atoms.info["time_fs"] = k * frame_time
        frames.append(atoms)
    return frames


def test_stacked_frames() -> None:
    frames = waters()
    arrays = TrajectoryArrays.from_frames(frames)
    assert arrays.frame_time == 2.0
    assert list(arrays.species()) == ["H", "O"]
    assert arrays.species()["O"].tolist() == [True, False, False]
    kinetic = 0.5 * (arrays.masses * (arrays.needed_velocities() ** 2).sum(axis=2)).sum(axis=1)
    joule = 1.66053906660e-27 * 1e10 / 1.602176634e-19  # amu angstrom^2/fs^2 in eV
    np.testing.assert_allclose(kinetic * joule, [atoms.get_kinetic_energy() for atoms in frames], rtol=1e-6)
    path = arrays.diffusing_positions()
    centre = np.einsum("tnx,n->tx", path, arrays.masses)
    np.testing.assert_allclose(centre, np.broadcast_to(centre[0], centre.shape), atol=1e-9)


def test_times_of_frames() -> None:
    untimed = waters(frame_time=None)
    with pytest.raises(DataError, match="--frame-time"):
        TrajectoryArrays.from_frames(untimed).needed_frame_time()
    assert TrajectoryArrays.from_frames(untimed, 3.0).needed_frame_time() == 3.0
    with pytest.raises(DataError, match="leave it out"):
        TrajectoryArrays.from_frames(waters(), 3.0)
    with pytest.raises(DataError, match="positive"):
        TrajectoryArrays.from_frames(untimed, 0.0)
    broken = waters()
    broken[-1].info["time_fs"] = 6.5
    arrays = TrajectoryArrays.from_frames(broken)
    assert (len(arrays.positions), arrays.dropped, arrays.frame_time) == (4, 1, 2.0)
    broken[2].info["time_fs"] = 5.0
    with pytest.raises(DataError, match="not evenly spaced"):
        TrajectoryArrays.from_frames(broken)


def test_frames_that_do_not_belong_together() -> None:
    with pytest.raises(DataError, match="frame 5 has other atoms"):
        TrajectoryArrays.from_frames([*waters(), molecule("CH4")])
    with pytest.raises(DataError, match="found none"):
        TrajectoryArrays.from_frames([])
    frames = waters()
    frames[1].pbc = True
    with pytest.raises(DataError, match="frame 1 has pbc"):
        TrajectoryArrays.from_frames(frames)
    frames = waters()
    frames[1].positions[0, 0] = np.nan
    with pytest.raises(GeometryError, match="not finite"):
        TrajectoryArrays.from_frames(frames)
    bare = [Atoms(atoms.symbols, atoms.positions) for atoms in waters()]
    with pytest.raises(DataError, match="simkit md"):
        TrajectoryArrays.from_frames(bare).needed_velocities()


# ------------------------------------------------------------------------------------------------------- command and pictures


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of argon with everything that a run writes."""
    crystal = bulk("Ar", a=5.3, cubic=True) * (2, 2, 2)
    folder = tmp_path_factory.mktemp("argon")
    calculator = LennardJones(sigma=3.4, epsilon=0.0103, rc=5.0)
    run_md(calculator, crystal, NVE(4.0), out=folder, steps=240, temperature=60.0, interval=4)
    return folder


def command(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, ["analyze", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


FILES = {
    *("analysis.json", "averages.png", "rdf.csv", "rdf.png", "msd.csv", "msd.png"),
    *("vacf.csv", "vacf.png", "spectrum.csv", "spectrum.png"),
}


def test_the_folder_of_a_run(run_folder: Path, tmp_path: Path) -> None:
    status, text, _ = command(run_folder, "--out", tmp_path / "out", "--r-max", 7)
    assert status == 0, text
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    found = json.loads((tmp_path / "out" / "analysis.json").read_text(encoding="utf-8"))
    assert (found["frames"], found["atoms"], found["frame_time_fs"]) == (61, 32, 16.0)
    assert not found["left_out"]
    thermo = read_thermo_table(run_folder / "thermo.csv")
    assert found["averages"]["temperature_K"]["mean"] == pytest.approx(thermo["temperature_K"].mean(), rel=1e-12)
    assert found["rdf"]["kind"] == "g(r)"
    assert found["rdf"]["highest_peaks"]["Ar-Ar"]["distance_angstrom"] == pytest.approx(5.3 / np.sqrt(2), abs=0.2)
    assert found["msd"]["Ar"]["fit_range_fs"] == [16.0, 48.0]
    table = np.genfromtxt(tmp_path / "out" / "rdf.csv", delimiter=",", names=True)
    assert table["neighbors_Ar_around_Ar"][np.searchsorted(table["distance_angstrom"], 4.5)] == pytest.approx(
        12, abs=0.2
    )
    assert table["distance_angstrom"][-1] == pytest.approx(6.975)
    # No atom of this crystal leaves its place, and that is said.
    assert "doubtful" in text
    status, _, message = command(run_folder, "--out", tmp_path / "out")
    assert status == 1
    assert "--overwrite" in message
    assert command(run_folder, "--out", tmp_path / "out", "--overwrite", "--only", "rdf")[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"analysis.json", "rdf.csv", "rdf.png"}


def test_parts_of_a_trajectory(run_folder: Path, tmp_path: Path) -> None:
    whole = run_folder / "trajectory.traj"
    for where, skip in ((f"{whole}@20:", 0), (str(run_folder), 20), (f"{run_folder}@20:", 0)):
        found = analyze(where, out=tmp_path, only=["averages"], skip=skip, overwrite=True, echo=silent)
        thermo = read_thermo_table(run_folder / "thermo.csv")["potential_eV"][20:]
        assert found["averages"]["potential_eV"]["mean"] == pytest.approx(thermo.mean(), rel=1e-12)
        assert found["frames"] == 41
    # Another place and format: energies and temperatures are those of the frames.
    write(tmp_path / "copy.xyz", read(whole, index="20:"), columns=["symbols", "positions", "momenta"])
    copied = analyze(tmp_path / "copy.xyz", out=tmp_path / "copy", only=["averages"], echo=silent)["averages"]
    assert copied["potential_eV"]["mean"] == pytest.approx(thermo.mean(), rel=1e-6)
    dof = 31 / 32  # the run leaves out the directions of the centre of mass
    assert copied["temperature_K"]["mean"] == pytest.approx(found["averages"]["temperature_K"]["mean"] * dof, rel=1e-3)


def test_a_molecule_without_velocities(tmp_path: Path) -> None:
    frames = [Atoms(atoms.symbols, atoms.positions) for atoms in waters(12)]
    for atoms in frames:
        atoms.rattle(0.01, rng=np.random.default_rng(0))
    write(tmp_path / "water.xyz", frames)
    status, text, _ = command(tmp_path / "water.xyz", "--out", tmp_path / "a", "--frame-time", 1)
    assert status == 0
    assert "left out: spectrum: the trajectory has no velocities" in text
    found = json.loads((tmp_path / "a" / "analysis.json").read_text(encoding="utf-8"))
    assert set(found["left_out"]) == {"averages", "spectrum"}
    assert found["rdf"]["kind"] == "pairs per structure and angstrom"
    assert "not periodic" in found["msd"]["note"]
    status, _, message = command(tmp_path / "water.xyz", "--out", tmp_path / "b", "--only", "rdf,spectrum")
    assert status == 1
    assert "write(..., columns=" in message


def test_fast_vibrations_are_warned_of(tmp_path: Path) -> None:
    write(tmp_path / "water.traj", waters(12, 10.0))
    _, text, _ = command(tmp_path / "water.traj", "--out", tmp_path / "a", "--only", "spectrum")
    assert "frames every 10 fs tell wavenumbers up to 1668" in text


def test_unusable_requests(run_folder: Path, tmp_path: Path) -> None:
    for arguments, text in (
        (["--only", "rfd"], "did you mean 'rdf'"),
        (["--skip", 61], "expected to skip 0 to 60, found 61"),
        (["--skip", -1], "found -1"),
        (["--fit-start", 10], "both ends"),
        (["--fit-start", 16, "--fit-end", 500], "cannot fit"),
        (["--bin-width", 0], "must be positive"),
        (["--frame-time", 3], "leave it out"),
    ):
        status, _, message = command(run_folder, "--out", tmp_path / "x", "--overwrite", *arguments)
        assert status == 1, arguments
        assert text in message
        assert message.count("\n") == 1
    status, _, message = command(tmp_path / "nothing.traj", "--out", tmp_path / "x")
    assert status == 1
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        analyze(run_folder, out=tmp_path / "file", settings=AnalysisSettings(), echo=silent)


def every_plot() -> dict[str, Axes]:
    x = np.linspace(0.1, 10, 50)
    line = md_plots.DiffusionLine(1.0, 0.0, 1.0, 2.0, "D = 1")
    panel = md_plots.BlockPanel("energy (eV)", [1, 2, 4], [0.1, 0.2, 0.2], [0.01, 0.02, 0.04], 1, True)
    names = ["AA", "AB", "AC", "BB", "BC", "CC", "CD", "DD"]
    return {
        "rdf": md_plots.radial_distribution(x, x, {(name[0], name[1]): x for name in names}, True),
        "distances": md_plots.radial_distribution(x, x, {("A", "A"): x}, False),
        "msd": md_plots.mean_squared_displacement(x - 0.1, {"A": x, "B": x - 0.1}, {"A": line})[0],
        "long": md_plots.mean_squared_displacement(1000 * x, {"A": x}, {})[1],
        "vacf": md_plots.velocity_autocorrelation(x, np.cos(x)),
        "spectrum": md_plots.vibrational_spectrum(x, np.sin(x) ** 2, {"A": x, "B": x}, 10.0),
        "blocks": md_plots.block_averages([panel, panel], "length (fs)")[0],
    }


def test_every_plot_is_written_and_labelled(tmp_path: Path) -> None:
    plots = every_plot()
    for name, ax in plots.items():
        assert ax.get_xlabel()
        assert ax.get_ylabel()
        plotting.save(ax, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert plots["rdf"].get_ylabel() == "g(r)"
    assert plots["distances"].get_ylabel() == "pairs per Å"
    assert plots["long"].get_xlabel() == "time (ps)"
    assert len({(line.get_color(), line.get_linestyle()) for line in plots["rdf"].lines[:8]}) == 8
