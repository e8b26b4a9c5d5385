"""What the commands of `simkit surrogate` say on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from simkit.config import names_in
from simkit.errors import ConfigError, SimkitError
from simkit.surrogates.recipe import read_surrogate_recipe
from simkit.workflows.surrogate_compare import (
    MARKDOWN,
    PLOT,
    SurrogateComparison,
    compare_surrogates,
    surrogate_recipes,
)
from simkit.workflows.surrogate_train import CURVE, METRICS, MODEL, SurrogateReport, train_surrogate

Echo = Callable[[str], None]


def train_from_shell(
    recipe: Path | None,
    settings: Sequence[str],
    system: str | None,
    data: Sequence[str],
    model: str | None,
    out: Path,
    *,
    resume: bool,
    echo: Echo,
) -> SurrogateReport:
    """Train a model and tell its errors, where everything is, and what to type next."""
    overrides = _source(system, data)
    if model:
        overrides["model"] = {"name": model}
    report = train_surrogate(read_surrogate_recipe(recipe, settings, overrides), out, resume=resume, echo=echo)
    test = report.metrics.get("test", {})
    if "relative_error" in test:
        echo(
            f"\ntest: geometric mean of the relative rollout error {test['relative_error']['geometric_mean']:.3g} over "
            f"{test['duration']:g}; {test['blown_up']} of {test['trajectories']} blown up"
        )
    path = report.folder / MODEL
    echo(f"\nmodel:   {path}\nmetrics: {report.folder / METRICS}, with {CURVE} and other plots beside it")
    start = "" if report.parts.system is not None else " --initial YOUR_DATA"
    echo(f"\nWhat to type next:\n  simkit surrogate rollout {path}{start} --out rollout")
    return report


def compare_from_shell(
    recipe: Path | None,
    settings: Sequence[str],
    system: str | None,
    data: Sequence[str],
    models: str | None,
    seeds: int,
    out: Path,
    *,
    echo: Echo,
) -> SurrogateComparison:
    """Compare models and tell the table, where everything is, and what failed.

    Raises:
        SimkitError: also if a training failed, after all others are done.
    """
    recipes = surrogate_recipes(recipe, settings, _source(system, data), names_in(models or ""))
    comparison = compare_surrogates(recipes, seeds, out, echo)
    if comparison.metrics:
        echo(f"\n{comparison}\n\ntable: {comparison.folder / MARKDOWN}\nplot:  {comparison.folder / PLOT}")
    if comparison.failures:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in comparison.failures.items())
        raise SimkitError(f"{len(comparison.failures)} trainings failed: {reasons}")
    return comparison


def _source(system: str | None, files: Sequence[str]) -> dict[str, Any]:
    """The section data that the options of the command line ask for."""
    if system and files:
        raise ConfigError("the data come from a system or from files; give --system or --data, not both")
    if system:
        return {"data": {"system": system}}
    return {"data": {"files": list(files)}} if files else {}
