"""Fine-tuning from the shell: the whole workflow, resuming, replay, and what is refused."""

import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from finetune_cases import EMBEDDED, SMALL
from shell import run
from torch import Tensor, nn

import simkit
from simkit import potentials
from simkit.errors import OutputError
from simkit.graph import AtomGraph
from simkit.training.evaluation import predict
from simkit.training.finetune import lineage
from simkit.training.losses import PotentialObjective
from simkit.training.options import LossTerm
from simkit.training.recipe import read_recipe
from simkit.workflows import report
from simkit.workflows.info import describe_file
from simkit.workflows.train import train

# ------------------------------------------------------------------------------------------------------------- workflow

QUICK = {"epochs": 2, "batch_size": 4, "device": "cpu", "learning_rate": 1e-3}


@pytest.fixture(autouse=True)
def short_dynamics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "NVE_STEPS", 20)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of xTB energies that was trained for a moment."""
    folder = tmp_path_factory.mktemp("parent")
    values = {"data": EMBEDDED, "split": {"train": 20, "valid": 4}, "model": SMALL, "training": QUICK}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "NVE_STEPS", 20)
        train(read_recipe(None, overrides=values), folder, echo=lambda _: None)
    return folder / "model.safetensors"


def pbe_frames(path: Path, count: int = 16, extra: str | None = None) -> Path:
    """Ethanol with energies and forces of another method: those of xTB with other atoms and stiffer by a tenth."""
    frames = simkit.datasets.load("embedded").to_atoms(range(1000, 1000 + count))
    rng = np.random.default_rng(0)
    for k, atoms in enumerate(frames):
        energy, forces = 1.1 * atoms.get_potential_energy() - 4000.0, 1.1 * atoms.get_forces()
        if extra is not None and k % 2:
            atoms += Atoms([extra], [atoms.positions.max(axis=0) + 1.0])
            energy, forces = energy - 500.0, np.concatenate([forces, rng.normal(0, 0.1, (1, 3))])
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        atoms.info["level_of_theory"] = "PBE"
    write(path, frames)
    return path


def settings(**values: object) -> list[object]:
    return [word for key, value in values.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]


BASE = settings(training__epochs=2, training__batch_size=4, training__device="cpu", split__valid=4)


@pytest.mark.parametrize("mode", ["full", "frozen", "low_rank"])
def test_fine_tuning_from_the_shell(mode: str, parent: Path, tmp_path: Path) -> None:
    data, out = pbe_frames(tmp_path / "pbe.xyz", extra="S"), tmp_path / "out"
    more = settings(start__mode=mode, **({"start__rank": 3, "loss_weights": "learned"} if mode == "low_rank" else {}))
    status, text, message = run("train", "--data", data, "--start", parent, *BASE, *more, "--out", out)
    assert (status, message) == (0, "")
    for part in (
        "started from model.safetensors (SHA-256",
        "GFN2-xTB",
        f"{mode}: ",
        "numbers train",
        "new elements with fresh weights: S",
    ):
        assert part in text
    child, start = simkit.load(out / "model.safetensors"), simkit.load(parent)
    assert child.elements == [1, 6, 8, 16]
    assert child.options == start.options
    info = child.info["started_from"]
    assert (info["mode"], info["level_of_theory"], info["elements"]) == (mode, "GFN2-xTB", [1, 6, 8])
    assert info["sha256"] == simkit.files.sha256_file(parent)
    assert info["data_hash"] == start.info["data_hash"]
    assert child.info["level_of_theory"] == "PBE"
    words = (out / "report.md").read_text()
    assert words.startswith("# painn, started from model.safetensors, on pbe.xyz")
    assert f"- started from {lineage(info)}; {mode}: {info['trained']}" in words
    assert "started from" in describe_file(out)

    # The model of the last step differs from the averaged one, and is an ordinary model as well.
    raw = simkit.load(out / "model_raw.safetensors")
    assert raw.state_dict().keys() == child.state_dict().keys()
    assert any(not torch.equal(raw.state_dict()[key], value) for key, value in child.state_dict().items())
    metrics = json.loads((out / "metrics.json").read_text())
    store = simkit.datasets.load("frames", paths=str(data)).with_neighbors(child.cutoff)
    splits = json.loads((out / "split.json").read_text())
    found = predict(child, store.select(splits["valid"]), ("forces",))["forces"]
    error = float((found - store.select(splits["valid"]).labels["forces"]).abs().mean())
    assert metrics["valid"]["forces_mae"] == pytest.approx(error, rel=1e-6)


def test_a_grandchild_names_its_ancestors(parent: Path, tmp_path: Path) -> None:
    data = pbe_frames(tmp_path / "pbe.xyz")
    assert run("train", "--data", data, "--start", parent, *BASE, "--out", tmp_path / "a")[0] == 0
    child = tmp_path / "a" / "model.safetensors"
    status, text, _ = run(
        "train", "--data", data, "--start", child, *BASE, *settings(split__seed=1), "--out", tmp_path / "b"
    )
    assert status == 0
    assert "was trained on these data with another split" in text
    text = lineage(simkit.load(tmp_path / "b" / "model.safetensors").info["started_from"])
    assert "pbe.xyz, PBE), which started from model.safetensors" in text
    assert text.endswith("embedded ethanol train, GFN2-xTB)")


class Interrupted(PotentialObjective):
    """An objective that interrupts its training in the middle of a step."""

    def __init__(self, step: int) -> None:
        super().__init__({"energy": LossTerm(weight=0.1), "forces": LossTerm(weight=1.0)})
        self.remaining = step

    def __call__(
        self, model: nn.Module, batch: AtomGraph, counts: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.remaining -= model.training
        if self.remaining == 0:
            signal.raise_signal(signal.SIGINT)
        return super().__call__(model, batch, counts)


def test_resumed_from_the_shell(parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted after the first epoch; the parent may lie elsewhere by then, but must be the same."""
    data = pbe_frames(tmp_path / "pbe.xyz")
    model = tmp_path / "p.safetensors"
    model.write_bytes(parent.read_bytes())
    low_rank = settings(start__mode="low_rank", start__rank=2, training__epochs=3)
    command = ["train", "--data", data, "--start", model, *BASE, *low_rank]
    assert run(*command, "--out", tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr("simkit.workflows.prepare.PotentialObjective", lambda *a, **k: Interrupted(4))
        assert run(*command, "--out", tmp_path / "parts")[0] == 130
    other = tmp_path / "other.safetensors"
    potential = simkit.load(model)
    potential.shift.add_(1.0)
    potential.save(other)
    command[4] = other
    status, _, message = run(*command, "--out", tmp_path / "parts", "--resume")
    assert status == 1
    assert "belongs to another training" in message
    moved = tmp_path / "moved.safetensors"
    model.rename(moved)
    command[4] = moved
    status, _, message = run(*command, "--out", tmp_path / "parts", "--resume")
    assert (status, message) == (0, "")
    whole, parts = (simkit.load(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(parts.state_dict()[key], value) for key, value in whole.state_dict().items())


def test_replay_in_a_recipe(parent: Path, tmp_path: Path) -> None:
    values = {
        "data": {"name": "embedded", "split": "test"},
        "split": {"train": 12, "valid": 4},
        "start": {"model": str(parent), "replay": {"data": EMBEDDED, "fraction": 0.25}},
        "training": QUICK,
    }
    lines: list[str] = []
    result = train(read_recipe(None, overrides=values), tmp_path, echo=lines.append)
    assert "replay: 4 structures of embedded ethanol train beside 12 new ones" in lines
    assert set(result.metrics) == {"train", "valid", "replay"}
    info = simkit.load(tmp_path / "model.safetensors").info
    assert info["training_structures"] == 12
    assert (info["replay"]["data"], info["replay"]["structures"]) == ("embedded ethanol train", 4)
    assert "4 structures of embedded ethanol train" in describe_file(tmp_path)
    with pytest.raises(OutputError, match="already holds"):
        train(read_recipe(None, overrides=values), tmp_path, echo=lines.append)


# --------------------------------------------------------------------------------------------------------- broken input


Case = Callable[[Path, Path], tuple[list[object], list[str]]]
"""Folder and model file -> what is typed besides data and out, and what the line on stderr must say."""


def no_file(folder: Path, parent: Path) -> tuple[list[object], list[str]]:
    return ["--start", folder / "no.safetensors"], ["no model file at", "no.safetensors"]


def not_a_model(folder: Path, parent: Path) -> tuple[list[object], list[str]]:
    (folder / "x.safetensors").write_text("no model")
    return ["--start", folder / "x.safetensors"], ["x.safetensors", "not a complete safetensors file"]


def pickled(folder: Path, parent: Path) -> tuple[list[object], list[str]]:
    torch.save({"w": torch.zeros(2)}, folder / "model.pt")
    return ["--start", folder / "model.pt"], ["pickled", "does not read"]


def unknown_mode(folder: Path, parent: Path) -> tuple[list[object], list[str]]:
    return ["--start", parent, *settings(start__mode="lora")], [
        "start.mode",
        "'full', 'frozen' or 'low_rank'",
        "'lora'",
    ]


def mode_without_model(folder: Path, parent: Path) -> tuple[list[object], list[str]]:
    return settings(start__mode="frozen"), ["'start.model' is missing"]


def large_rank(folder: Path, parent: Path) -> tuple[list[object], list[str]]:
    return ["--start", parent, *settings(start__mode="low_rank", start__rank=64)], [
        "start.rank 64",
        "largest that does is 14",
    ]


def other_dtype(folder: Path, parent: Path) -> tuple[list[object], list[str]]:
    return ["--start", parent, *settings(training__precision="float64")], [
        "float64",
        "float32",
        "set training.precision",
    ]


def other_architecture(folder: Path, parent: Path) -> tuple[list[object], list[str]]:
    return ["--start", parent, "--model", "schnet"], ["model.name is 'schnet'", "'painn'", "leave it out"]


def other_options(folder: Path, parent: Path) -> tuple[list[object], list[str]]:
    return ["--start", parent, *settings(model__channels=32)], ["model.channels is 32", "16 in", "leave it out"]


def missing_head(folder: Path, parent: Path) -> tuple[list[object], list[str]]:
    return ["--start", parent, *settings(loss__dipole__weight=1.0)], ["dipole"]


def unknown_layer(folder: Path, parent: Path) -> tuple[list[object], list[str]]:
    return ["--start", parent, *settings(start__mode="frozen", start__layers="[update]")], ["start.layers", "'update'"]


def other_level(folder: Path, parent: Path) -> tuple[list[object], list[str]]:
    replay = settings(start__replay__data__name="embedded")
    return ["--start", parent, *replay], ["start.replay", "GFN2-xTB", "PBE"]


def no_element(folder: Path, parent: Path) -> tuple[list[object], list[str]]:
    given = settings(start__references="{H: -13.0, C: -1000.0, Ox: -2000.0}")
    return ["--start", parent, *given], ["start.references", "Ox"]


def missing_references(folder: Path, parent: Path) -> tuple[list[object], list[str]]:
    return ["--start", parent, *settings(start__references="{H: -13.0}")], ["no reference energy for C, O"]


def no_weights(folder: Path, parent: Path) -> tuple[list[object], list[str]]:
    potentials.build("lennard_jones", elements=[1, 6, 8], dtype="float32").save(folder / "lj.safetensors")
    return [
        "--start", folder / "lj.safetensors", *settings(training__precision="float64")
    ], ["lennard_jones", "no weights to train"]  # fmt: skip


BROKEN: list[Case] = [
    no_file,
    not_a_model,
    pickled,
    unknown_mode,
    mode_without_model,
    large_rank,
    other_dtype,
    other_architecture,
    other_options,
    missing_head,
    unknown_layer,
    other_level,
    no_element,
    missing_references,
    no_weights,
]


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.__name__)
def test_broken_input_is_one_line(case: Case, parent: Path, tmp_path: Path) -> None:
    command, expected = case(tmp_path, parent)
    data = pbe_frames(tmp_path / "pbe.xyz", 8)
    status, _, message = run("train", "--data", data, *BASE, *command, "--out", tmp_path / "out")
    assert status == 1
    assert message.startswith("error: ")
    assert message.count("\n") == 1, message
    for part in expected:
        assert part in message, message


def test_data_without_the_labels_that_are_needed(parent: Path, tmp_path: Path) -> None:
    frames = simkit.datasets.load("embedded").to_atoms(range(8))
    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, forces=atoms.get_forces())
    write(tmp_path / "forces.xyz", frames)
    command = ["train", "--data", tmp_path / "forces.xyz", "--start", parent, *BASE]
    status, _, message = run(*command, "--out", tmp_path / "out")
    assert status == 1
    assert "the training data have none" in message
    assert message.count("\n") == 1
    assert run(*command, *settings(start__references="keep"), "--out", tmp_path / "kept")[0] == 0
