"""Comparisons: recipes, plans, what they leave behind, and that an interruption or a failure costs nothing that is done."""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shell import run

import simkit
from simkit import plotting, potentials
from simkit.errors import ConfigError, OutputError, SimkitError
from simkit.label_placement import place_boxes
from simkit.potentials import available
from simkit.training import fit as fit_module
from simkit.training.recipe import read_recipe
from simkit.workflows import compare as compare_module
from simkit.workflows.compare import compare, plan
from simkit.workflows.compare_recipes import comparison_recipes, trainable
from simkit.workflows.compare_report import ModelResult, errors_of
from simkit.workflows.cost import StepCost, TrainingCost, measure_step

RECIPES = Path(__file__).parents[1] / "examples" / "recipes"
SMALL = ["split.train=24", "split.valid=6", "split.test=10", "training.batch_size=8", "training.device=cpu"]
TINY = [*SMALL, "model.channels=4", "model.layers=1"]
COST = TrainingCost(structures=24, step_seconds=0.19, validation_seconds=0.0, memory_mb=600.0)
"""With this, 0.04 minutes are planned to hold four epochs of three steps."""


def recipes(*names: str, settings: list[str] | None = None, **overrides: Any) -> dict[str, Any]:
    return comparison_recipes(
        None, TINY if settings is None else settings, {"data": {"name": "embedded"}, **overrides}, names
    )


def silent(_: str) -> None:
    pass


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No fresh processes and short reports; returns the names of what was measured."""
    measured = []

    def training(recipe: Any) -> TrainingCost:
        measured.append(recipe.model.name)
        return COST

    monkeypatch.setattr("simkit.workflows.report.NVE_STEPS", 20)
    monkeypatch.setattr(compare_module, "measure_training", training)
    monkeypatch.setattr(compare_module, "measure_step", lambda *_: StepCost(9, 1.8, 500.0))
    return measured


# -------------------------------------------------------------------------------------------------------------- recipes


def test_every_trainable_architecture_takes_part_by_default() -> None:
    found = recipes(settings=SMALL)
    assert list(found) == trainable()
    assert set(available()) - set(found) == {"lennard_jones", "morse"}
    assert all(recipe.model.options == {} for recipe in found.values())
    assert len({recipe.model_copy(update={"model": None}).to_yaml() for recipe in found.values()}) == 1


def test_options_go_to_those_that_know_them() -> None:
    found = recipes("painn", "schnet", settings=["model.channels=8", "model.filters=4", "model.cutoff=4.5"])
    assert found["painn"].model.options == {"channels": 8}
    assert found["schnet"].model.options == {"channels": 8, "filters": 4}
    assert {recipe.model.cutoff for recipe in found.values()} == {4.5}


def test_options_of_a_named_model_are_its_own(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {name: embedded}\nmodel: {name: painn, cutoff: 4.0, channels: 8}\n")
    found = comparison_recipes(path, names=["painn", "schnet"])
    assert found["painn"].model.options == {"channels": 8}
    assert found["schnet"].model.options == {}
    assert found["schnet"].model.cutoff == 4.0


def test_models_of_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "data: {name: embedded}\ntraining: {learning_rate: 0.002, batch_size: 5}\nmodels:\n  painn:\n"
        "  wide: {model: {name: painn, channels: 64}, training: {learning_rate: 0.001}}\n"
    )
    found = comparison_recipes(path)
    assert list(found) == ["painn", "wide"]
    assert found["wide"].model.name == "painn"
    assert found["wide"].model.options == {"channels": 64}
    assert (found["painn"].training.learning_rate, found["wide"].training.learning_rate) == (0.002, 0.001)
    assert found["wide"].training.batch_size == 5
    chosen = comparison_recipes(path, ["models.wide.model.layers=2"], names=["wide", "schnet"])
    assert list(chosen) == ["wide", "schnet"]
    assert chosen["wide"].model.options == {"channels": 64, "layers": 2}


def test_published_test_set_is_found() -> None:
    data = {"name": "rmd17", "molecule": "ethanol"}
    first = comparison_recipes(None, overrides={"data": {**data, "split": "train_03"}}, names=["painn"])["painn"]
    assert first.test is not None
    assert first.test.options == {"molecule": "ethanol", "split": "test_03"}
    given = comparison_recipes(None, overrides={"data": data, "test": {"name": "embedded"}}, names=["painn"])["painn"]
    assert given.test is not None
    assert given.test.name == "embedded"
    # A recipe's test set is that of its own data.
    other = comparison_recipes(
        RECIPES / "rmd17_ethanol_painn.yaml",
        overrides={"data": {"name": "rmd17", "molecule": "aspirin"}},
        names=["painn"],
    )["painn"]
    assert other.test is not None
    assert other.test.options["molecule"] == "aspirin"


@pytest.mark.parametrize(
    ("text", "settings", "names", "message"),
    [
        ("", [], ["pain"], "did you mean 'painn'"),
        ("", ["model.l_max=2"], ["painn", "schnet"], "model.l_max is an option of none of painn, schnet"),
        ("models: {painn: {model: {chanels: 8}}}", [], [], "did you mean 'channels'"),
        ("models: {painn: {split: {seed: 1}}}", [], [], "must be the same for all"),
        ("models: {painn: {channels: 8}}", [], [], "may hold the sections model, loss, training; found 'channels'"),
        ("models: [painn, schnet]", [], [], "models must map names"),
        ("models: {painn: 3}", [], [], "models.painn must be a part of a recipe"),
        ("models: {../painn: {model: {name: painn}}}", [], [], "names a folder"),
        ("start: {model: other.safetensors}", [], ["painn"], "from random weights"),
        ("", ["training.epoch=3"], ["painn"], "did you mean 'epochs'"),
    ],
)
def test_unusable_recipes(tmp_path: Path, text: str, settings: list[str], names: list[str], message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"data: {{name: embedded}}\n{text}\n")
    with pytest.raises(ConfigError, match=message):
        comparison_recipes(path, settings, names=names)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_build_for_ethanol(path: Path) -> None:
    recipe = read_recipe(path)
    potential = potentials.build(
        recipe.model.name, cutoff=recipe.model.cutoff, elements=[1, 6, 8], **recipe.model.options
    )
    assert potential.num_parameters > 1000


def test_there_is_a_recipe_for_every_architecture() -> None:
    found = {path.stem.removeprefix("rmd17_ethanol_"): path for path in RECIPES.glob("rmd17_ethanol_*.yaml")}
    assert sorted(found) == trainable()
    for name, path in found.items():
        recipe = read_recipe(path)
        assert recipe.model.name == name
        assert recipe.data.options == {"molecule": "ethanol", "split": "train_01"}
        assert recipe.test is not None
        assert recipe.test.options == {"molecule": "ethanol", "split": "test_01"}
        assert (recipe.split.train, recipe.split.valid) == (950, 50)


# ----------------------------------------------------------------------------------------------------------------- plans


def test_plan_fills_the_budget() -> None:
    recipe = recipes("painn")["painn"]
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"max_minutes": 10.0})})
    cost = TrainingCost(structures=950, step_seconds=0.01, validation_seconds=0.06, memory_mb=1.0)
    planned = plan(recipe, cost).training
    epoch = 119 * 0.01 + 0.06  # 950 structures in batches of 8
    assert planned.epochs == int(0.95 * 600 / epoch)
    assert planned.warmup_steps == 100
    rarely = recipe.model_copy(update={"training": recipe.training.model_copy(update={"validate_every": 10})})
    assert plan(rarely, cost).training.epochs == int(0.95 * 600 / (119 * 0.01 + 0.006))
    # A short training does not spend itself on warming up.
    slow = plan(recipe, replace(cost, step_seconds=1.0)).training
    assert slow.epochs == 4
    assert slow.warmup_steps == 47
    with pytest.raises(ConfigError, match=r"one epoch takes about 40 minutes.*--budget-minutes 42"):
        plan(recipe, replace(cost, step_seconds=20.0))


# ----------------------------------------------------------------------------------------------------------- comparisons


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_failure_does_not_stop_the_others(tmp_path: Path, quick: list[str]) -> None:
    asked = recipes("painn", "schnet", "egnn")
    asked["egnn"] = asked["egnn"].model_copy(update={"model": asked["egnn"].model.model_copy(update={"cutoff": -1.0})})
    lines: list[str] = []
    result = compare({name: asked[name] for name in ("painn", "egnn", "schnet")}, tmp_path, 0.04, lines.append)
    assert [r.name for r in result.results] == ["painn", "schnet"]
    assert list(result.failures) == ["egnn"]
    assert "expected a positive cutoff" in result.failures["egnn"]
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert [m["name"] for m in content["models"]] == ["painn", "schnet"]
    assert content["failures"] == result.failures
    for r, stored in zip(result.results, content["models"], strict=True):
        metrics = json.loads((tmp_path / r.name / "metrics.json").read_text())
        assert stored["errors"]["forces_mae"] == metrics["test"]["forces_mae"]
        assert stored["parameters"] == simkit.load(tmp_path / r.name / "model.safetensors").num_parameters
        assert stored["microseconds_per_atom"] == pytest.approx(200.0)
        assert stored["checks"]["float64"]["rotation_forces"] < 1e-9
        assert r.epochs == r.planned_epochs == 4
        assert read_recipe(tmp_path / r.name / "recipe.yaml").training.epochs == 4
    splits = [contents(tmp_path)[f"{folder}split.json"] for folder in ("", "painn/", "schnet/")]
    assert len(set(splits)) == 1
    table = (tmp_path / "comparison.md").read_text()
    for part in ("| painn | ", "| schnet | ", "forces, meV/Å", "200", "## Failed", "egnn", "error_against_cost.png"):
        assert part in table
    for name in ("error_against_cost.png", "error_against_size.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert not any("epoch " in line for line in lines)  # no terminal, no course of the training
    assert str(result).splitlines()[0].startswith("model")


def test_models_of_properties(tmp_path: Path, quick: list[str]) -> None:
    """Without an energy there are no forces to check, but errors and cost."""
    command = ["compare", "--data", "embedded", "--target", "dipole", "--models", "painn,schnet", "--out", tmp_path]
    command += [word for setting in TINY for word in ("--set", setting)]
    status, text, message = run(*command, "--budget-minutes", "0.04")
    assert (status, message) == (0, "")
    assert "dipole, me·Å" in text
    found = json.loads((tmp_path / "comparison.json").read_text())["models"]
    assert [m["checks"] for m in found] == [{}, {}]
    assert all(m["errors"]["dipole_mae"] > 0 for m in found)
    assert (tmp_path / "error_against_cost.png").is_file()


def test_an_unexpected_exception_is_kept(tmp_path: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of\nmemory")

    with monkeypatch.context() as patch:
        patch.setattr(compare_module, "train", broken)
        result = compare(recipes("painn"), tmp_path, 0.04, silent)
    assert result.failures["painn"].startswith("RuntimeError: out of memory (see ")
    assert "Traceback" in (tmp_path / "painn" / "error.txt").read_text()
    assert compare(recipes("painn"), tmp_path, 0.04, silent).failures == {}
    assert not (tmp_path / "painn" / "error.txt").exists()


def test_an_interrupted_comparison_goes_on(tmp_path: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the second training, it keeps the first one and ends with the very weights of a run that never stopped."""
    whole = tmp_path / "whole"
    compare(recipes("painn", "schnet"), whole, 0.04, silent)
    original, steps = fit_module._Run.train_step, iter(range(10**6))

    def stopping(self: Any, indices: torch.Tensor) -> None:
        original(self, indices)
        if next(steps) == 12 + 7:  # twelve steps of the first model, seven of the second
            os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "out"
    quick.clear()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fit_module._Run, "train_step", stopping)
        compare(recipes("painn", "schnet"), out, 0.04, silent)
    assert not (out / "schnet" / "model.safetensors").exists()
    assert (out / "schnet" / "checkpoint.pt").exists()
    first = contents(out / "painn")
    # The plan is that of the first start, whatever would be measured now.
    monkeypatch.setattr(compare_module, "measure_training", lambda recipe: replace(COST, step_seconds=0.05))
    lines: list[str] = []
    result = compare(recipes("painn", "schnet"), out, 0.04, lines.append)
    assert result.failures == {}
    assert contents(out / "painn") == first
    assert any(line.startswith("painn: finished before") for line in lines)
    assert quick == ["painn", "schnet"]
    for name in ("painn", "schnet"):
        weights = [simkit.load(folder / name / "model.safetensors").state_dict() for folder in (whole, out)]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert json.loads((out / "comparison.json").read_text())["models"][1]["epochs"] == 4


def test_other_settings_need_another_folder(tmp_path: Path, quick: list[str]) -> None:
    compare(recipes("painn"), tmp_path, 0.04, silent)
    before = contents(tmp_path)
    with pytest.raises(OutputError, match=r"painn holds a training with model.channels 4, but 5 is asked for"):
        compare(recipes("painn", settings=[*TINY, "model.channels=5"]), tmp_path, 0.04, silent)
    with pytest.raises(OutputError, match=r"training.max_minutes 0.04, but 1.0"):
        compare(recipes("painn"), tmp_path, 1.0, silent)
    with pytest.raises(OutputError, match="holds another split"):
        compare(recipes("schnet", settings=[*TINY, "split.seed=1"]), tmp_path, 0.04, silent)
    assert contents(tmp_path) == before
    # A device says nothing about the result that one would want to protect.
    assert not compare(recipes("painn", settings=[*TINY, "training.device=auto"]), tmp_path, 0.04, silent).failures


def test_a_comparison_needs_models_time_and_a_test_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model to compare"):
        compare({}, tmp_path, 1.0, silent)
    with pytest.raises(ConfigError, match="positive number of minutes"):
        compare(recipes("painn"), tmp_path, 0.0, silent)
    with pytest.raises(ConfigError, match="needs a test set"):
        compare(recipes("painn", settings=[*TINY, "split.test=0"]), tmp_path, 1.0, silent)


def test_unfinished_plans_are_told(tmp_path: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # Steps that turn out far slower than measured: time is up in the first epoch.
    monkeypatch.setattr(compare_module, "measure_training", lambda recipe: replace(COST, step_seconds=1e-5))
    (slow,) = compare(recipes("painn"), tmp_path / "slow", 0.0005, silent).results
    assert any(f"after {slow.epochs} of {slow.planned_epochs} epochs" in text for text in slow.warnings)
    monkeypatch.setattr(compare_module, "measure_training", lambda recipe: replace(COST, step_seconds=15.0))
    (fast,) = compare(recipes("painn"), tmp_path / "fast", 1.0, silent).results
    assert any("steps were faster" in text for text in fast.warnings)


# ------------------------------------------------------------------------------------------------------ the command line


@pytest.mark.slow
def test_the_command_with_everything_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cost is measured for real, in processes of their own: what this one holds must not count, as it does in getrusage() after vfork."""
    monkeypatch.setattr("simkit.workflows.report.NVE_STEPS", 20)
    ballast = np.ones(150_000_000)  # 1.2 GB
    command = ["compare", "--data", "embedded", "--models", "painn", "--budget-minutes", "0.03", "--out", tmp_path]
    command += [word for setting in TINY for word in ("--set", setting)]
    status, text, message = run(*command)
    assert (status, message) == (0, "")
    assert "equivariance error" in text
    assert str(tmp_path / "comparison.md") in text
    result = ModelResult.from_dict(json.loads((tmp_path / "painn" / "result.json").read_text())["result"])
    assert result.name == "painn"
    assert set(errors_of(result)) == {"forces", "energy"}
    assert result.step.atoms == 9
    assert 0 < result.step.milliseconds < 1000
    assert 0 < result.training.step_seconds < 1
    assert 100 < result.step.memory_mb < 1200
    assert 100 < result.training.memory_mb < 1200
    assert result.training.structures == 24
    assert math.isfinite(result.structures_per_second)
    assert ballast[-1] == 1.0


def test_the_command_tells_failures_in_one_line(tmp_path: Path, quick: list[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    wild = "{model: {name: painn}, training: {learning_rate: 1.0e+30, warmup_steps: 0, clip_norm: null}}"
    recipe.write_text(f"data: {{name: embedded}}\nmodels:\n  painn:\n  wild: {wild}\n")
    command = ["compare", recipe, "--budget-minutes", "0.04", "--out", tmp_path / "out"]
    command += [word for setting in TINY for word in ("--set", setting)]
    status, text, message = run(*command)
    assert status == 1
    assert message.startswith("error: 1 of 2 models failed: wild: training diverged")
    assert message.count("\n") == 1
    assert "painn" in text
    status, text, message = run(*command, "--models", "painn")
    assert (status, message) == (0, "")
    assert "painn: finished before" in text


def test_a_failing_measurement_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SimkitError, match=r"cost of a step failed: no model file at"):
        measure_step(tmp_path / "none.safetensors", tmp_path / "none.xyz", "cpu")


# --------------------------------------------------------------------------------------------------------------- the plot


@pytest.fixture(params=range(6))
def crowd(request: pytest.FixtureRequest) -> dict[str, tuple[float, float]]:
    """Eleven points with long names, some of them nearly on top of each other."""
    rng = np.random.default_rng(request.param)
    places = 10 ** rng.uniform(1.0, 2.0 + request.param % 3, (11, 2))
    places[3], places[4] = places[2] * 1.03, places[2] * 0.98
    return {
        f"{name}": (float(x), float(y))
        for name, (x, y) in zip([f"model_name_{k}" for k in range(11)], places, strict=True)
    }


def test_names_do_not_overlap(crowd: dict[str, tuple[float, float]]) -> None:
    panel = plotting.CostPanel("forces", "time (µs)", "MAE (meV/Å)", crowd)
    axes = plotting.error_against_cost([panel, panel])
    axes[0].figure.draw_without_rendering()  # type: ignore[union-attr]
    for ax in axes:
        texts = {text.get_text(): text for text in ax.texts if text.get_text()}
        assert set(texts) == set(crowd)
        boxes = [texts[name].get_window_extent() for name in crowd]
        points = ax.transData.transform(list(crowd.values()))
        frame = ax.get_window_extent()
        for k, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[k + 1 :])
            assert not any(box.contains(*point) for point in points)
            assert frame.x0 <= box.x0
            assert box.x1 <= frame.x1
            assert frame.y0 <= box.y0
            assert box.y1 <= frame.y1


def test_the_line_joins_the_unbeaten() -> None:
    points = {"a": (1.0, 10.0), "b": (2.0, 12.0), "c": (3.0, 4.0), "d": (3.0, 3.0), "e": (9.0, 2.0), "f": (8.0, 3.0)}
    (ax,) = plotting.error_against_cost([plotting.CostPanel("forces", "time", "error", points)])
    np.testing.assert_array_equal(np.asarray(ax.lines[0].get_xydata()), [points[k] for k in "ade"])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_a_lone_box_stands_to_the_right() -> None:
    centre = place_boxes(np.array([[50.0, 50.0]]), np.array([[20.0, 10.0]]), (0.0, 0.0, 100.0, 100.0), gap=4.0)
    np.testing.assert_allclose(centre, [[64.0, 50.0]])
    at_the_edge = place_boxes(np.array([[95.0, 50.0]]), np.array([[20.0, 10.0]]), (0.0, 0.0, 100.0, 100.0), gap=4.0)
    np.testing.assert_allclose(at_the_edge, [[81.0, 50.0]])
    line = np.stack([np.linspace(50.0, 100.0, 200), np.full(200, 50.0)], axis=1)
    beside = place_boxes(
        np.array([[50.0, 50.0]]), np.array([[20.0, 10.0]]), (0.0, 0.0, 100.0, 100.0), gap=4.0, lines=line
    )
    np.testing.assert_allclose(beside, [[36.0, 50.0]])
    assert place_boxes(np.zeros((0, 2)), np.zeros((0, 2)), (0.0, 0.0, 1.0, 1.0), gap=1.0).shape == (0, 2)
