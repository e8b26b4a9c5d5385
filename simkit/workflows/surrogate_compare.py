"""Several models of motion trained on the same data from several seeds: the whole of `simkit surrogate compare`."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from simkit import plotting
from simkit.config import parse_options
from simkit.errors import ConfigError, OutputError, SimkitError
from simkit.files import ensure_output_dir, write_json, write_text
from simkit.surrogates import plots
from simkit.surrogates.comparison import collected, comparison_table
from simkit.surrogates.preparation import MotionParts, open_data
from simkit.surrogates.recipe import MotionData, SurrogateRecipe
from simkit.training.recipe import merge, read_nested, recipe_title
from simkit.workflows.surrogate_train import METRICS, RECIPE, train_surrogate
from simkit.workflows.text import silent

Echo = Callable[[str], None]

# What a table shows: the heading, and which of the figures of an evaluation.
COLUMNS: Mapping[str, str] = {
    "derivative MSE": "derivative_mse",
    "rollout MSE": "mse.mean",
    "relative error": "relative_error.geometric_mean",
    "energy MSE": "energy_mse.mean",
    "blown up": "blown_up",
}
JSON, MARKDOWN, PLOT = "comparison.json", "comparison.md", "comparison.png"


@dataclass(frozen=True)
class SurrogateComparison:
    """What a comparison found.

    Attributes:
        folder: where everything is.
        metrics: model -> seed -> content of its metrics.json.
        failures: "model, seed n" -> why it could not be trained.
    """

    folder: Path
    metrics: dict[str, dict[int, dict[str, Any]]]
    failures: dict[str, str]

    def tests(self) -> dict[str, list[dict[str, Any]]]:
        """Return the figures of the test for each model and seed; none where there were no test data."""
        tests = {name: [found.get("test", {}) for found in runs.values()] for name, runs in self.metrics.items()}
        return tests if all(all(found) for found in tests.values()) else {}

    def columns(self) -> dict[str, str]:
        """Return the headings and figures that all tests have."""
        found = [figures for runs in self.tests().values() for figures in runs]
        return {title: name for title, name in COLUMNS.items() if all(name.split(".")[0] in test for test in found)}

    def __str__(self) -> str:
        """The table in Markdown, which is readable on a terminal as well."""
        return comparison_table(self.tests(), self.columns())


def surrogate_recipes(
    path: str | Path | None,
    settings: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    names: Sequence[str] = (),
) -> dict[str, SurrogateRecipe]:
    """Return the recipe of every model of a comparison by its name.

    A section ``models`` says what is particular to each one, as parts of a recipe; a name is a registered model unless its
    ``model.name`` says otherwise::

        models:
          hnn: {}
          separable-hnn: {model: {name: hnn, form: separable}}
          neural-ode: {training: {learning_rate: 0.003}}

    Args:
        names: which ones; by default all of that section.

    Raises:
        ConfigError: if no model is named, or a recipe is unusable.
    """
    where = recipe_title(path)
    values = read_nested(path, settings, overrides)
    particular = values.pop("models", None) or {}
    if not isinstance(particular, dict) or not all(isinstance(part, dict | None) for part in particular.values()):
        raise ConfigError(f"{where}: models must name models, each with parts of a recipe, such as hnn: {{}}")
    chosen = list(dict.fromkeys(names)) or list(particular)
    if not chosen:
        raise ConfigError(
            f"{where}: no models to compare; name some with --models hnn,neural-ode or in a section models"
        )
    recipes = {}
    for name in chosen:
        own: dict[str, Any] = copy.deepcopy(values)
        merge(own, {"model": {"name": name}})
        merge(own, particular.get(name) or {})
        recipes[name] = parse_options(SurrogateRecipe, own, f"{where}, {name}")
    return recipes


def compare_surrogates(
    recipes: Mapping[str, SurrogateRecipe], seeds: int, out: str | Path, echo: Echo = print
) -> SurrogateComparison:
    """Train every recipe from several seeds (of weights and batches; the data stay the same) and put what was found side by side.

    Called again after an interruption it goes on: what is finished stays, a training that was interrupted continues. A model that
    fails does not stop the others.

    Args:
        out: folder for the table, the plot, and one training folder for each model and seed.

    Raises:
        ConfigError: if there is nothing to compare.
        OutputError: if the folder cannot be written or holds a training with another recipe.
        KeyboardInterrupt: if interrupted, after a checkpoint has been saved.
    """
    if not recipes or seeds < 1:
        raise ConfigError(f"at least one model and one seed are needed; found {len(recipes)} and {seeds}")
    folder = ensure_output_dir(out)
    found = SurrogateComparison(folder, {}, {})
    # Making the data may take longer than a training: once for each description, and not at all where nothing is left to train.
    opened = functools.cache(lambda description: open_data(MotionData.model_validate_json(description)))
    for name, recipe in recipes.items():
        parts = functools.partial(opened, recipe.data.model_dump_json())
        for seed in range(seeds):
            try:
                metrics = _trained(_with_seed(recipe, seed), folder / name / f"seed-{seed}", parts)
            except OutputError:
                raise
            except SimkitError as error:
                found.failures[f"{name}, seed {seed}"] = str(error)
                echo(f"{name}, seed {seed}: failed: {error}")
                continue
            found.metrics.setdefault(name, {})[seed] = metrics
            echo(f"{name}, seed {seed}: {_short(metrics)}")
    if found.metrics:
        _write(found)
    return found


def _with_seed(recipe: SurrogateRecipe, seed: int) -> SurrogateRecipe:
    model = recipe.model.model_copy(update={"seed": seed})
    training = recipe.training.model_copy(update={"seed": seed})
    return recipe.model_copy(update={"model": model, "training": training})


def _trained(recipe: SurrogateRecipe, folder: Path, parts: Callable[[], MotionParts]) -> dict[str, Any]:
    """The metrics of a training that is there, or is done now on the data that ``parts`` opens."""
    if (folder / RECIPE).exists() and yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8")) != yaml.safe_load(
        recipe.to_yaml()
    ):
        raise OutputError(f"{folder} holds a training with another recipe; choose another folder, or remove it")
    if (folder / METRICS).exists():
        metrics: dict[str, Any] = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        return metrics
    return train_surrogate(recipe, folder, parts=parts(), resume=True, echo=silent).metrics


def _write(comparison: SurrogateComparison) -> None:
    """Write table, plot and everything as JSON."""
    write_json(comparison.folder / JSON, {"models": comparison.metrics, "failures": comparison.failures})
    tests, columns = comparison.tests(), comparison.columns()
    if not tests:
        return
    write_text(comparison.folder / MARKDOWN, f"Median over the seeds, and the range.\n\n{comparison}")
    shown = {title: name for title, name in columns.items() if name != "blown_up"}
    for panel, (title, name) in zip(plotting.new_panels(len(shown), 4.2, 3.0), shown.items(), strict=True):
        drawn = plots.comparison(collected(tests, name), title, axes=panel)
    plotting.save(drawn, comparison.folder / PLOT)


def _short(metrics: Mapping[str, Any]) -> str:
    """One run in one line."""
    test = metrics.get("test", {})
    figures = {title: name for title, name in COLUMNS.items() if name.split(".")[0] in test}
    values = {title: collected({"": [test]}, name)[""][0] for title, name in figures.items()}
    parts = [f"{title} {'not finite' if value is None else f'{value:.2g}'}" for title, value in values.items()]
    return f"{', '.join(parts)} ({metrics['train_seconds']:.0f} s)"
