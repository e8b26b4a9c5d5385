"""The examples run, each in its smoke mode, and the recipes are valid."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from simkit import potentials
from simkit.config import parse_options
from simkit.inference.recipe import build_simulator, read_inference_recipe
from simkit.surrogates.models import model_class
from simkit.training.recipe import read_nested, read_recipe
from simkit.workflows import report
from simkit.workflows.compare_recipes import comparison_recipes
from simkit.workflows.surrogate_compare import surrogate_recipes

EXAMPLES = Path(__file__).parents[1] / "examples"
RECIPES = sorted((EXAMPLES / "recipes").glob("*.yaml"))
SURROGATES = sorted((EXAMPLES / "recipes" / "surrogates").glob("*.yaml"))
INFERENCES = sorted((EXAMPLES / "recipes" / "inference").glob("*.yaml"))
COMPARISONS = sorted((EXAMPLES / "comparisons").glob("*.yaml"))


Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a script as the main program, in its smoke mode, and return what it prints."""
    monkeypatch.setattr(report, "NVE_STEPS", 20)

    def run_script(script: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments), "--smoke"])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return run_script


def test_every_numbered_script_is_tested() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES.glob("[0-9]*.py") if f'"{path.name}"' not in here] == []


def test_train_your_frames(tmp_path: Path, run: Run) -> None:
    text = run("01_train_your_frames.py", tmp_path / "frames.xyz", "--out", tmp_path / "model")
    assert "forces: MAE" in text
    assert (tmp_path / "model" / "report.md").is_file()


def test_ase_md(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "model.safetensors"
    potentials.build("painn", cutoff=4.0, elements=[1, 6, 8], channels=8, layers=1).save(path)
    lines = run("02_ase_md.py", path).splitlines()
    assert lines[0].startswith("relaxed: ")
    assert len(lines) == 3


def test_label_and_train(tmp_path: Path, run: Run) -> None:
    pytest.importorskip("tblite", reason="needs tblite (pip install 'simkit[xtb]')")
    assert "forces: MAE" in run("03_label_and_train.py", "--out", tmp_path / "water")


def test_fine_tune(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "model.safetensors"
    potentials.build("painn", cutoff=4.0, elements=[1, 6, 8], channels=16, layers=1).save(path)
    text = run("04_fine_tune.py", path, tmp_path / "frames.xyz", "--mode", "frozen", "--out", tmp_path / "tuned")
    assert "forces: MAE" in text
    assert (tmp_path / "tuned" / "model.safetensors").is_file()


def test_replicas_go_on(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "model.safetensors"
    potentials.build("painn", cutoff=4.0, elements=[1, 6, 8], channels=8, layers=1).save(path)
    assert "trajectory.traj" not in run("05_replicas.py", path, "--out", tmp_path / "run").split("written")[0]
    before = (tmp_path / "run" / "thermo.csv").read_bytes()
    assert "second half" in run("05_replicas.py", path, "--out", tmp_path / "run")
    assert (tmp_path / "run" / "thermo.csv").read_bytes() == before


def test_learn_a_pendulum(tmp_path: Path, run: Run) -> None:
    text = run("06_learn_a_pendulum.py", "--out", tmp_path)
    assert "| neural-ode | 1 |" in text
    assert (tmp_path / "rollout" / "motion.gif").is_file()


def test_infer_rates(tmp_path: Path, run: Run) -> None:
    pytest.importorskip("sbi", reason="needs sbi (pip install 'simkit[inference]')")
    text = run("07_infer_rates.py", "--out", tmp_path)
    assert text.count("true rates: {'alpha':") == 2
    assert (tmp_path / "first" / "corner.png").is_file()
    assert (tmp_path / "second" / "report.json").is_file()


@pytest.mark.parametrize("path", INFERENCES, ids=lambda path: path.stem)
def test_inference_recipe_is_valid(path: Path) -> None:
    recipe = read_inference_recipe(path)
    assert build_simulator(recipe.simulator, path.parent).prior.dim >= 2
    assert parse_options(type(recipe), recipe.model_dump(), "dumped recipe") == recipe


@pytest.mark.parametrize("path", SURROGATES, ids=lambda path: path.stem)
def test_surrogate_recipe_is_valid(path: Path) -> None:
    values = read_nested(path)
    names = list(values.get("models", {values["model"].get("name", "hnn"): {}}))
    for name, recipe in surrogate_recipes(path, names=names).items():
        expected = values.get("models", {}).get(name, {}).get("model", {}).get("name", name)
        assert recipe.model.name == expected
        known = model_class(recipe.model.name)[1].model_fields
        assert not set(recipe.model.options) - set(known)


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_comparison_is_valid(path: Path) -> None:
    for recipe in comparison_recipes(path).values():
        options = recipe.model.options
        potentials.build(recipe.model.name, cutoff=recipe.model.cutoff, elements=[1], **options)


def test_recipes_are_there() -> None:
    expected = {"rmd17_ethanol_painn", "rmd17_aspirin_painn", "qm9_u0_painn", "mlearn_si_painn"}
    assert expected <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_valid(path: Path) -> None:
    recipe = read_recipe(path)
    options = recipe.model.options
    potential = potentials.build(recipe.model.name, cutoff=recipe.model.cutoff, elements=[1], **options)
    assert potential.options.items() >= options.items()
    assert parse_options(type(recipe), recipe.model_dump(), "dumped recipe") == recipe
