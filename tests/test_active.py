"""Active learning: killed at every file that it writes and resumed, labels that fail, each rule that ends it, and the shell."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from typer.testing import CliRunner

from simkit import cli, files, plotting
from simkit.config import parse_options
from simkit.datasets.splits import Splits
from simkit.errors import ConfigError, DataError, LabelError, OutputError
from simkit.graph import AtomGraph
from simkit.inference import active_plots
from simkit.inference.active import Exploration
from simkit.inference.committee import Committee
from simkit.labeling import label
from simkit.labeling.base import Label, Method
from simkit.potentials import load
from simkit.training.recipe import merge_settings
from simkit.workflows import active as workflow
from simkit.workflows.active import active_learning
from simkit.workflows.active_recipe import ActiveRecipe, read_active_recipe

TOY = Method("emt", "numpy", "EMT")
EXAMPLE = Path(__file__).parents[1] / "examples" / "recipes" / "active" / "ethanol.yaml"


def toy_label(atoms: Atoms, method: Method) -> Label:
    """ASE's effective medium theory: no chemistry, but smooth forces in no time."""
    copy = atoms.copy()
    copy.calc = EMT()
    return Label(copy.get_potential_energy(), copy.get_forces())


def fails_for_some(atoms: Atoms, method: Method) -> Label:
    if int(1e6 * abs(atoms.positions[0, 0])) % 2 == 0:
        raise LabelError("SCF not converged")
    return toy_label(atoms, method)


@pytest.fixture(autouse=True)
def toy_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label, "compute_label", toy_label)
    for module in (label, workflow):
        monkeypatch.setattr(module, "check_method", lambda *_: TOY)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Labelled frames of water at EMT's minimum, shaken."""
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(14):
        atoms = molecule("H2O")
        atoms.positions += rng.normal(size=(3, 3)) * 0.04
        found = toy_label(atoms, TOY)
        atoms.calc = SinglePointCalculator(atoms, energy=found.energy, forces=found.forces)
        frames.append(atoms)
    write(tmp_path / "water.xyz", frames, format="extxyz")
    return tmp_path / "water.xyz"


def recipe(data: Path, *settings: str) -> ActiveRecipe:
    values: dict[str, Any] = {
        "initial": {"data": {"name": "frames", "paths": [str(data)]}, "frames": 8},
        "method": "gfn2-xtb",
        "members": 2,
        "model": {"name": "painn", "cutoff": 3.0, "channels": 4, "layers": 1, "basis": 4},
        "training": {"epochs": 4, "batch_size": 4, "device": "cpu", "checkpoint_minutes": 0.0, "learning_rate": 5e-3},
        "dynamics": {"trajectories": 2, "steps": 30, "interval": 5, "watch_bonds": False, "upper": 100.0},
        "selection": {"frames": 3, "largest_force": 1e6},
        "stop": {"rounds": 1},
    }
    merge_settings(values, settings, None)
    return parse_options(ActiveRecipe, values, "recipe of the test")


def silent(_: str) -> None:
    pass


# -------------------------------------------------------------------------------------------------------------- resuming


class Killed(BaseException):
    """Nothing that anyone catches: what follows is never done."""


def kill_at(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Die when the file of number ``count`` would replace its predecessor."""
    left = count

    def replace(source: str, target: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        os.rename(source, target)

    class Patched:
        def __getattr__(self, name: str) -> Any:
            return replace if name == "replace" else getattr(os, name)

    monkeypatch.setattr(files, "os", Patched())


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves, without times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            found |= {f"{name} {key}": value.numpy() for key, value in load(path).state_dict().items()}
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                found |= {f"{name} {key}": arrays[key] for key in arrays.files}
        elif path.name == "round.json":
            facts = json.loads(path.read_text())
            facts["training"].pop("seconds")
            found[name] = facts
        elif path.suffix == ".xyz":
            found[name] = path.read_text()
    return found


def test_a_run_killed_at_every_file_equals_one_that_was_not(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recipe(data)
    active_learning(whole, tmp_path / "whole", echo=silent)
    kills = 0
    for count in range(1, 60):
        with monkeypatch.context() as patch:
            kill_at(patch, count)
            try:
                report = active_learning(whole, tmp_path / "killed", resume=True, echo=silent)
                break
            except Killed:
                kills += 1
    assert kills > 5
    assert report.reason == "1 rounds are done"
    expected, found = outcome(tmp_path / "whole"), outcome(tmp_path / "killed")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_longer_run_goes_on_and_another_one_is_refused(data: Path, tmp_path: Path) -> None:
    active_learning(recipe(data, "stop.rounds=0"), tmp_path / "run", echo=silent)
    first = (tmp_path / "run" / "member-0.safetensors").read_bytes()
    told: list[str] = []
    report = active_learning(recipe(data), tmp_path / "run", resume=True, echo=told.append)
    assert [line.split(":")[0] for line in told] == ["round 0", "round 1", "ended"]
    assert [one["frames"] for one in report.rounds] == [8, 11]
    assert report.members[0].read_bytes() != first
    assert (tmp_path / "run" / "round-00" / "members" / "0" / "model.safetensors").read_bytes() == first
    with pytest.raises(OutputError, match="another selection; resume with its own recipe"):
        active_learning(recipe(data, "selection.frames=4"), tmp_path / "run", resume=True, echo=silent)
    with pytest.raises(OutputError, match="add --resume"):
        active_learning(recipe(data), tmp_path / "run", echo=silent)


# --------------------------------------------------------------------------------------------------------------- labels


def test_a_run_leaves_what_it_says(data: Path, tmp_path: Path) -> None:
    settings = (f"test={{name: frames, paths: ['{data}']}}", "stop.rounds=2")
    report = active_learning(recipe(data, *settings), tmp_path / "run", echo=silent)
    written = json.loads((report.folder / "report.json").read_text())
    assert written["calculations"] == 6
    assert [one["frames"] for one in written["rounds"]] == [8, 11, 14]
    assert all(one["errors"]["forces_mae"] > 0 and len(one["errors"]["members"]) == 2 for one in written["rounds"])
    assert "exploration" not in written["rounds"][2]
    for name in ("learning", "disagreement", "calibration"):
        assert (report.folder / f"{name}.png").stat().st_size > 5000
    assert report.model.read_bytes() in [path.read_bytes() for path in report.members]
    # What a member validates on stays out of its training in later rounds; members validate on different frames.
    held = {}
    for number, k in itertools.product(range(3), range(2)):
        split = Splits.load(report.folder / f"round-{number:02d}" / "members" / str(k) / "split.json")
        assert split.size == [8, 11, 14][number]
        assert set(split.train) | set(split.valid) == set(range(split.size))
        held[number, k] = set(split.valid.tolist())
    assert all({i for i in held[2, k] if i < 8} == held[0, k] != set() for k in range(2))
    # The labels are those of the method, and the calibration that of the committee before it was trained on them.
    frames = read(report.folder / "round-01" / "data.xyz", ":")
    before = Committee.load([report.folder / "round-00" / "members" / str(k) / "model.safetensors" for k in range(2)])
    found = before(AtomGraph.from_ase(frames, 3.0), ("forces", "disagreement"))
    for atoms in frames:
        expected = toy_label(atoms, TOY)
        np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-7)
        assert 0 < atoms.info["disagreement"] < 100.0
    errors = np.linalg.norm(found["forces"].numpy() - np.concatenate([atoms.get_forces() for atoms in frames]), axis=1)
    with np.load(report.folder / "round-01" / "calibration.npz") as arrays:
        np.testing.assert_allclose(arrays["error"], errors, rtol=1e-4)
        np.testing.assert_allclose(arrays["disagreement"], found["disagreement"].numpy(), rtol=1e-3, atol=1e-6)


def test_the_frames_come_from_the_dynamics_and_random_takes_as_many(data: Path, tmp_path: Path) -> None:
    for strategy in ("disagreement", "random"):
        folder = tmp_path / strategy
        active_learning(recipe(data, f"selection.strategy={strategy}", "selection.quantile=0.6"), folder, echo=silent)
        runs = [Exploration.load(folder / "round-00" / "md" / f"trajectory-{k}.npz") for k in range(2)]
        chosen = read(folder / "round-01" / "selected.xyz", ":")
        assert len(chosen) == 3
        for atoms in chosen:
            run = runs[atoms.info["trajectory"]]
            row = run.steps.tolist().index(atoms.info["step"])
            np.testing.assert_allclose(atoms.positions, run.positions[row], atol=1e-7)
            if strategy == "disagreement":
                scores = np.concatenate([one.scores() for one in runs])
                assert run.scores()[row] >= np.quantile(scores, 0.6)


def test_labels_that_fail_are_told_and_kept_out(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label, "compute_label", fails_for_some)
    told: list[str] = []
    report = active_learning(
        recipe(data, "selection.frames=8", "selection.quantile=0"), tmp_path / "run", echo=told.append
    )
    facts = report.rounds[1]["labels"]
    chosen = read(tmp_path / "run" / "round-01" / "selected.xyz", ":")
    expected = [k for k, atoms in enumerate(chosen) if int(1e6 * abs(atoms.positions[0, 0])) % 2 == 0]
    assert [failure["frame"] for failure in facts["failures"]] == expected != []
    assert facts["labelled"] == 8 - len(expected) == len(read(tmp_path / "run" / "round-01" / "data.xyz", ":"))
    assert sum("is left out: SCF not converged" in line for line in told) == len(expected)
    assert f"{len(expected)} left out" in " ".join(told)


def test_forces_that_no_training_should_see(data: Path, tmp_path: Path) -> None:
    report = active_learning(recipe(data, "selection.largest_force=1e-3"), tmp_path / "run", echo=silent)
    facts = report.rounds[1]["labels"]
    assert facts["labelled"] == 0
    assert facts["calculations"] == 3
    assert all("a force of" in failure["reason"] for failure in facts["failures"])
    assert report.rounds[1]["frames"] == 8


def test_no_labels_at_all(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(atoms: Atoms, method: Method) -> Label:
        raise LabelError("SCF not converged")

    monkeypatch.setattr(label, "compute_label", fail)
    with pytest.raises(LabelError, match="none of the 3 frames could be labelled"):
        active_learning(recipe(data), tmp_path / "run", echo=silent)
    monkeypatch.setattr(label, "compute_label", toy_label)
    assert active_learning(recipe(data), tmp_path / "run", resume=True, echo=silent).rounds[1]["frames"] == 11


# ------------------------------------------------------------------------------------------------------------ the end


@pytest.mark.parametrize(
    ("settings", "reason", "frames"),
    [
        (["stop.rounds=5", "stop.calculations=4"], "4 calculations are done, of 4", [8, 11, 12]),
        (["stop.rounds=5", "stop.tolerance=50", "stop.patience=2"], "below 50 eV/angstrom for 2 rounds", [8, 11]),
        (["stop.rounds=5", "selection.lower=50"], "no frame was visited", [8]),
    ],
)
def test_rules_that_end_it(data: Path, tmp_path: Path, settings: list[str], reason: str, frames: list[int]) -> None:
    report = active_learning(recipe(data, *settings, "update.start=scratch"), tmp_path / "run", echo=silent)
    assert reason in report.reason
    assert [one["frames"] for one in report.rounds] == frames


def test_unusable_data(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="initial.frames is 99, but water.xyz holds 14"):
        active_learning(recipe(data, "initial.frames=99"), tmp_path / "a", echo=silent)
    with pytest.raises(DataError, match="the loss names stress"):
        active_learning(
            recipe(data, "loss={forces: {weight: 1.0}, stress: {weight: 1.0}}"), tmp_path / "b", echo=silent
        )
    with pytest.raises(ConfigError, match="level of theory PBE, but method gives EMT"):
        active_learning(recipe(data, "initial.data.level_of_theory=PBE"), tmp_path / "c", echo=silent)
    left = [path for name in "abc" for path in (tmp_path / name).iterdir()]
    assert left == []  # nothing is in the way of the next try


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("members: 1", "members"),
        ("initial: {structure: a.xyz, data: {name: embedded}}", "expected one of data and structure"),
        ("dynamics: {settings: {frictoin: 0.1}}", "did you mean 'friction'?"),
        ("dynamics: {ensemble: nve, settings: {friction: 0.1}}", "the ensemble nve has no friction"),
        ("dynamics: {temperatures: [0]}", "above 0 K"),
        ("selection: {strategy: lucky}", "selection.strategy"),
        ("loss: {energy: {weight: 1}}", "expected forces"),
        ("stopp: {rounds: 3}", "did you mean 'stop'?"),
    ],
)
def test_mistakes_in_a_recipe_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text if text.startswith("initial") else f"initial: {{structure: a.xyz}}\n{text}\n")
    result = CliRunner().invoke(cli.app, ["active", str(path), "--out", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_command(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe(data).to_yaml())

    def command(*more: str) -> Any:
        return CliRunner().invoke(cli.app, ["active", str(path), "-o", str(tmp_path / "run"), *more])

    result = command("--set", "stop.rounds=0")
    assert result.exit_code == 0
    assert "ended: 0 rounds are done" in result.stdout
    assert f"simkit info {tmp_path / 'run' / 'model.safetensors'}" in result.stdout
    again = command()
    assert (again.exit_code, again.stderr.count("\n")) == (1, 1)
    assert "add --resume" in again.stderr
    assert command("--resume", "--set", "stop.rounds=0").exit_code == 0
    missing = CliRunner().invoke(cli.app, ["active", str(tmp_path / "none.yaml"), "-o", str(tmp_path / "run")])
    assert "there is no recipe" in missing.stderr


def test_the_example_is_valid() -> None:
    example = read_active_recipe(EXAMPLE)
    assert example.stop.calculations == 200
    assert read_active_recipe(None, [], json.loads(example.model_dump_json(exclude_none=True))) == example


def test_pictures_of_little(tmp_path: Path) -> None:
    nan = float("nan")
    plotting.save(active_plots.learning_course([8], {"test": [nan]}, {"mean": [nan]})[0], tmp_path / "a.png")
    plotting.save(active_plots.disagreement_histograms({"round 0": []}, 1.0), tmp_path / "b.png")
    axes = active_plots.disagreement_calibration([0.1, 0.0, 0.2], [0.2, 0.1, 0.4])
    x, y = axes.lines[0].get_data()
    np.testing.assert_allclose((x, y), ((100.0, 200.0), (200.0, 400.0)))
