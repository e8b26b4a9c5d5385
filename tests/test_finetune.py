"""Fine-tuning: references of another level of theory, what a recipe inherits, and replay."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_cases import CUTOFF, ELEMENTS, EMBEDDED, clusters, saved, small, started

import simkit
from simkit.datasets.store import Store
from simkit.errors import ConfigError, DataError, ElementError, LabelError
from simkit.potential import Potential
from simkit.training.evaluation import predict
from simkit.training.finetune import inherited, start_references
from simkit.training.recipe import Recipe, ReplayOptions, StartOptions, read_recipe
from simkit.training.references import set_reference_energies
from simkit.training.replay import duplicates_of, open_replay, with_replay

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
