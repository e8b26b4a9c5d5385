"""Fine-tuning: references of another level of theory, what a recipe inherits, replay, and the whole workflow from the shell."""

import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from torch import Tensor, nn
from typer.testing import CliRunner

import simkit
from simkit import cli, potentials
from simkit.datasets.store import Store
from simkit.errors import ConfigError, DataError, ElementError, LabelError, OutputError
from simkit.graph import AtomGraph
from simkit.potential import Potential
from simkit.training.evaluation import predict
from simkit.training.finetune import inherited, lineage, start_from, start_references
from simkit.training.losses import PotentialObjective
from simkit.training.options import LossTerm
from simkit.training.recipe import Recipe, ReplayOptions, StartOptions, read_recipe
from simkit.training.references import set_reference_energies
from simkit.training.replay import duplicates_of, open_replay, with_replay
from simkit.workflows import report
from simkit.workflows.info import describe_file
from simkit.workflows.train import train

CUTOFF = 4.0
ELEMENTS = [1, 6, 8]
SMALL = {"channels": 16, "layers": 2}


def small(dtype: str = "float64", **changes: Any) -> Potential:
    """A small potential with references, scale and shift that are not the defaults."""
    given = {"cutoff": CUTOFF, "elements": ELEMENTS, "dtype": dtype, **SMALL, **changes}
    potential = potentials.build("painn", **given)
    potential.set_references({z: -10.0 * z for z in potential.elements})
    potential.scale.fill_(3.0)
    potential.shift.fill_(0.2)
    return potential


def saved(potential: Potential, folder: Path) -> str:
    path = folder / "parent.safetensors"
    potential.save(path)
    return str(path)


def started(potential: Potential, folder: Path, elements: list[int] = ELEMENTS, **options: Any) -> Potential:
    """The potential as `start_from` gives it back from a file."""
    return start_from(StartOptions(model=saved(potential, folder), **options), elements, seed=3)


def clusters(count: int = 12, seed: int = 0) -> Store:
    """Small molecules of H, C and O near their shapes, with energies and forces of a Morse potential and per-element energies."""
    rng = np.random.default_rng(seed)
    frames = [molecule(name) for name in ("H2O", "CH4", "CO2", "H2CO", "CH3OH", "CO")]
    teacher = potentials.build("morse", cutoff=CUTOFF, elements=ELEMENTS, r0=1.3, depth=0.8)
    teacher.set_references({1: -13.6, 6: -1027.0, 8: -2041.0})
    made = []
    for k in range(count):
        atoms = frames[k % len(frames)].copy()
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        made.append(atoms)
    graph = AtomGraph.from_ase(made, CUTOFF)
    labels = teacher(graph)
    store = Store(graph.z, graph.pos, graph.ptr, labels, info={"name": "clusters", "level_of_theory": "Morse"})
    return store.with_neighbors(CUTOFF)


# ----------------------------------------------------------------------------------------------------------- references


def relabelled(store: Store, potential: Potential, offsets: Mapping[int, float], noise: float = 0.0) -> Store:
    """The structures with the model's own energies, plus an energy per element: what another level of theory would do at best."""
    table = torch.zeros(100, dtype=torch.float64)
    for z, value in offsets.items():
        table[z] = value
    energy = predict(potential, store, ("energy",))["energy"]
    energy += torch.zeros(len(store), dtype=torch.float64).index_add(
        0, torch.repeat_interleave(torch.arange(len(store)), store.n_atoms), table[store.z.long()]
    )
    energy += noise * torch.randn(len(store), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = {**store.labels, "energy": energy}
    return Store(store.z, store.pos, store.ptr, labels, info=store.info).with_neighbors(CUTOFF)


def starting_error(potential: Potential, store: Store) -> float:
    return float((predict(potential, store, ("energy",))["energy"] - store.labels["energy"]).abs().max())


OFFSETS = {1: -3.0, 6: 11.0, 8: 400.0}


def test_refitted_references_are_those_that_the_model_needs(tmp_path: Path) -> None:
    parent = small()
    parent.scale.fill_(20.0)  # so that the network's part of the energy matters
    store = relabelled(clusters(), parent, OFFSETS)
    potential = started(parent, tmp_path)
    origins = start_references(potential, store, StartOptions(model="x"))
    assert "H, C, O fitted" in origins["energy"]
    assert starting_error(potential, store) < 1e-8
    expected = parent.reference + torch.tensor([OFFSETS[z] for z in ELEMENTS], dtype=torch.float64)
    torch.testing.assert_close(potential.reference, expected, rtol=0, atol=1e-8)
    assert float(potential.scale) == 20.0
    assert float(potential.shift) == float(parent.shift)
    # A fit to the energies alone, as at the start of any other training, takes part of the network's energy for the atoms'.
    plain = started(parent, tmp_path)
    set_reference_energies(plain, store)
    plain.scale.copy_(parent.scale)
    assert starting_error(plain, store) > 0.1


def test_refitted_references_are_a_least_squares_solution(tmp_path: Path) -> None:
    """No other references give a smaller sum of squares, also where the labels are not explained."""
    parent = small()
    store = relabelled(clusters(), parent, OFFSETS, noise=0.3)
    potential = started(parent, tmp_path)
    start_references(potential, store, StartOptions(model="x"))
    residual = store.labels["energy"] - predict(potential, store, ("energy",))["energy"]
    assert float((store.composition().t() @ residual).abs().max()) < 1e-8
    assert float(residual.abs().max()) > 0.1


def test_references_of_one_molecule_change_as_little_as_possible(tmp_path: Path) -> None:
    ethanol = simkit.datasets.load("embedded").select(range(8)).with_neighbors(CUTOFF)
    parent = small()
    potential = started(parent, tmp_path)
    start_references(potential, ethanol, StartOptions(model="x"))
    error = predict(potential, ethanol, ("energy",))["energy"] - ethanol.labels["energy"]
    assert abs(float(error.mean())) < 1e-8
    change = potential.reference - parent.reference
    counts = torch.tensor([6.0, 2.0, 1.0], dtype=torch.float64)  # C2H6O: the shortest vector is along the counts
    torch.testing.assert_close(change, counts * change[2], rtol=1e-8, atol=0)


def test_kept_references_and_those_of_new_elements(tmp_path: Path) -> None:
    parent = small(elements=[6, 8])
    potential = started(parent, tmp_path, [1])
    store = relabelled(clusters(), potential, {1: -7.0})
    origins = start_references(potential, store, StartOptions(model="x", references="keep"))
    assert "with H fitted" in origins["energy"]
    assert float(potential.reference[0]) == pytest.approx(-7.0, abs=1e-8)
    assert torch.equal(potential.reference[1:], parent.reference)

    known = started(small(), tmp_path)
    origins = start_references(known, store, StartOptions(model="x", references="keep"))
    assert origins["energy"] == "those of the model that it starts from"
    assert torch.equal(known.reference, small().reference)


def test_given_references(tmp_path: Path) -> None:
    potential, store = started(small(), tmp_path), clusters()
    given = StartOptions(model="x", references={"H": -1.0, "C": -2.0, "O": -3.0})
    assert start_references(potential, store, given) == {"energy": "given"}
    assert potential.reference.tolist() == [-1.0, -2.0, -3.0]
    with pytest.raises(ConfigError, match="Hx are not element symbols"):
        start_references(potential, store, StartOptions(model="x", references={"Hx": 1.0}))
    with pytest.raises(ElementError, match="no reference energy for C, O"):
        start_references(potential, store, StartOptions(model="x", references={"H": 1.0}))


def test_an_anchored_model_takes_the_isolated_atoms(tmp_path: Path) -> None:
    store = clusters()
    store.info["references"] = {"energy": {1: -13.0, 6: -1000.0, 8: -2000.0}}
    anchored = started(small(anchored=True), tmp_path)
    assert start_references(anchored, store, StartOptions(model="x"))["energy"] == "isolated atoms of the data set"
    assert anchored.reference.tolist() == [-13.0, -1000.0, -2000.0]
    free = started(small(), tmp_path)
    assert "fitted" in start_references(free, store, StartOptions(model="x"))["energy"]


def test_references_of_other_properties(tmp_path: Path) -> None:
    parent, store = small(outputs=["U0", "gap"]), clusters()
    predicted = predict(parent, store, ("U0", "gap"))
    counts = store.composition()
    labels = {
        "U0": predicted["U0"] + counts @ torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64),
        "gap": predicted["gap"] + 4.0,
    }
    store = Store(store.z, store.pos, store.ptr, labels, info=store.info)
    potential = started(parent, tmp_path)
    assert set(start_references(potential, store, StartOptions(model="x"))) == {"U0", "gap"}
    found = predict(potential, store.with_neighbors(CUTOFF), ("U0", "gap"))
    for name, values in found.items():
        torch.testing.assert_close(values, labels[name], rtol=0, atol=1e-8)


def test_references_need_energies(tmp_path: Path) -> None:
    store = clusters()
    bare = Store(store.z, store.pos, store.ptr, {"forces": store.labels["forces"]})
    with pytest.raises(LabelError, match=r"have none; give them as start.references, or set it to keep"):
        start_references(started(small(), tmp_path), bare, StartOptions(model="x"))
    assert start_references(started(small(), tmp_path), bare, StartOptions(model="x", references="keep")) == {}


# ------------------------------------------------------------------------------------------------------- what is inherited


def recipe_for(file: str, **sections: Any) -> Recipe:
    values = {"data": {"name": "embedded"}, "start": {"model": file}, **sections}
    return read_recipe(None, overrides=values)


def test_the_model_section_comes_from_the_file(tmp_path: Path) -> None:
    path = saved(small(dtype="float32", anchored=True), tmp_path)
    recipe = inherited(recipe_for(path, model={"seed": 5}))
    assert (recipe.model.name, recipe.model.cutoff, recipe.model.anchored, recipe.model.seed) == (
        "painn",
        CUTOFF,
        True,
        5,
    )
    assert recipe.model.options == small().options
    # What is written beside the model can be read again.
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert inherited(read_recipe(tmp_path / "recipe.yaml")) == recipe
    # Saying the same again is no contradiction.
    same = recipe_for(path, model={"name": "painn", "cutoff": 4, "channels": 16, "anchored": True})
    assert inherited(same).model.options == recipe.model.options
    untouched = read_recipe(None, overrides={"data": {"name": "embedded"}})
    assert inherited(untouched) is untouched


@pytest.mark.parametrize(
    ("model", "training", "message"),
    [
        ({"name": "schnet"}, {}, "model.name is 'schnet' in the recipe, but 'painn' in"),
        ({"cutoff": 5.0}, {}, "model.cutoff is 5.0 in the recipe, but 4.0 in"),
        ({"channels": 64}, {}, "model.channels is 64 in the recipe, but 16 in"),
        ({"anchored": True}, {}, "model.anchored is True in the recipe, but False in"),
        ({"chanels": 16}, {}, "'chanels'|model.chanels is no option of the painn in"),
        ({"references": "least_squares"}, {}, "use start.references"),
        ({}, {"precision": "float64"}, "those of .* are float32; set training.precision=float32"),
    ],
)
def test_contradictions_are_refused(
    model: dict[str, Any], training: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = saved(small(dtype="float32"), tmp_path)
    with pytest.raises(ConfigError, match=message):
        inherited(recipe_for(path, model=model, training=training))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"mode": "lora"}, "start.mode"),
        ({"mode": "full", "rank": 4}, "rank belongs to mode low_rank, but mode is full"),
        ({"mode": "low_rank", "rank": 0}, "start.rank"),
        ({"layers": ["*"]}, "layers belong to the modes frozen and low_rank"),
        ({"references": "refitt"}, "start.references"),
        ({"replay": {"data": {"name": "embedded"}, "fraction": 1.0}}, "start.replay.fraction"),
        ({"modell": "x"}, "unknown key 'start.modell'; did you mean 'model'"),
    ],
)
def test_unusable_start_sections(start: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe_for("x.safetensors", start={"model": "x.safetensors", **start})


# --------------------------------------------------------------------------------------------------------------- replay

EMBEDDED = {"name": "embedded", "split": "train"}


def new_frames(count: int = 8, level: str | None = "GFN2-xTB") -> Store:
    store = simkit.datasets.load("embedded").select(range(1400, 1400 + count))
    store.info["level_of_theory"] = level
    return store.with_neighbors(CUTOFF)


@pytest.mark.parametrize(("fraction", "count"), [(0.5, 8), (0.2, 2), (0.8, 32), (0.01, 1)])
def test_replay_draws_the_fraction(fraction: float, count: int) -> None:
    options = ReplayOptions(data=EMBEDDED, fraction=fraction)
    replay = open_replay(options, new_frames(), ["energy", "forces"], seed=0)
    assert len(replay) == count
    same = open_replay(options, new_frames(), ["energy", "forces"], seed=0)
    assert torch.equal(same.pos, replay.pos)
    assert count < 2 or not torch.equal(open_replay(options, new_frames(), ["energy"], seed=1).pos, replay.pos)


def test_new_and_replayed_structures_together() -> None:
    train, replay = new_frames(), open_replay(ReplayOptions(data=EMBEDDED), new_frames(), ["energy"], seed=0)
    forces_only = Store(replay.z, replay.pos, replay.ptr, {"forces": replay.labels["forces"]}, info=replay.info)
    both = with_replay(train, replay)
    assert len(both) == 16
    assert both.info == train.info
    first, second = both.batch(torch.arange(8)), both.batch(torch.arange(8, 16))
    for graph, source in ((first, train), (second, replay.with_neighbors(CUTOFF))):
        expected = source.batch(torch.arange(8))
        for key in ("pos", "energy", "forces", "edge_index"):
            assert torch.equal(graph[key], expected[key])
    assert list(with_replay(train, forces_only).labels) == ["forces"]


def test_replay_of_another_level_of_theory_is_refused() -> None:
    with pytest.raises(DataError, match="is of the level of theory GFN2-xTB, embedded ethanol of PBE"):
        open_replay(ReplayOptions(data=EMBEDDED), new_frames(level="PBE"), ["energy"], seed=0)
    with pytest.raises(DataError, match="of not stated"):
        open_replay(ReplayOptions(data=EMBEDDED), new_frames(level=None), ["energy"], seed=0)


def test_replay_needs_labels_and_structures() -> None:
    with pytest.raises(LabelError, match="the loss names stress"):
        open_replay(ReplayOptions(data=EMBEDDED), new_frames(), ["energy", "stress"], seed=0)
    with pytest.raises(DataError, match=r"takes 1584, but embedded ethanol train holds \d+; lower the fraction"):
        open_replay(ReplayOptions(data=EMBEDDED, fraction=0.99), new_frames(16), ["energy"], seed=0)


def test_replayed_structures_that_are_held_out_are_found() -> None:
    replay, other = new_frames(4), simkit.datasets.load("embedded").select([3, 1402, 5, 1400])
    assert duplicates_of(replay, [other]) == 2
    assert duplicates_of(replay, [other.select([0]), other.select([3])]) == 1
    assert duplicates_of(replay, []) == 0


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


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


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
