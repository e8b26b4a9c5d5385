"""Training, evaluation, prediction and analysis as the shell asks for them: arguments resolved, results told."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from simkit.config import names_in
from simkit.errors import ConfigError, SimkitError
from simkit.training.recipe import read_recipe
from simkit.workflows.analyze import AnalysisSettings, analyze
from simkit.workflows.compare import compare
from simkit.workflows.compare_recipes import comparison_recipes
from simkit.workflows.compare_report import COST_PLOT, MARKDOWN, SIZE_PLOT, Comparison
from simkit.workflows.evaluate import Evaluation, evaluate
from simkit.workflows.info import errors_of_parts
from simkit.workflows.predict import Predictions, predict_file
from simkit.workflows.report import TrainingReport
from simkit.workflows.structures import data_source
from simkit.workflows.train import MODEL, train

Echo = Callable[[str], None]


def train_model(
    recipe: Path | None,
    settings: Sequence[str],
    data: Sequence[str],
    model: str | None,
    out: Path,
    *,
    target: Sequence[str] = (),
    start: Path | None = None,
    resume: bool,
    echo: Echo,
) -> TrainingReport:
    """Train as recipe, settings, data and model say; tell the errors, where everything is and what to type next.

    Raises:
        ConfigError: also if neither a recipe nor data are given.
    """
    overrides: dict[str, object] = {}
    if data:
        overrides["data"] = data_source(data)
    if target:
        overrides["target"] = list(target)
    if model is not None:
        overrides["model"] = {"name": model}
    if start is not None:
        overrides["start"] = {"model": str(start)}
    report = train(read_recipe(recipe, settings, overrides), out, resume=resume, echo=echo)
    if not report.metrics:  # another process of the same training tells
        return report
    path = shlex.quote(str(report.folder / MODEL))
    echo("\n" + errors_of_parts(report.metrics))
    echo(f"\n{report.epochs} epochs in {report.seconds:.0f} s, {report.parameters:,} parameters")
    if report.drift is not None:
        echo(f"drift of the total energy in a short NVE run: {report.drift:.3g} meV/atom/ps")
    for message in report.warnings:
        echo(f"warning: {message}")
    echo(
        f"\nmodel:   {report.folder / MODEL}\nreport:  {report.folder / 'report.md'}, with learning_curve.png and parity.png\n"
        f"\nWhat to type next:\n  simkit info {path}\n  simkit evaluate {path} YOUR_DATA\n"
        + (
            f"  simkit md {path} STRUCTURE --temperature 300 --out md"
            if "forces" in report.outputs
            else f"  simkit predict {path} STRUCTURES --out predicted.xyz"
        )
    )
    return report


def compare_models(
    recipe: Path | None,
    settings: Sequence[str],
    data: Sequence[str],
    models: str | None,
    out: Path,
    *,
    target: Sequence[str] = (),
    test: Sequence[str] = (),
    minutes: float,
    echo: Echo,
) -> Comparison:
    """Compare models and tell the table, where everything is, and which ones failed.

    Args:
        models: names separated by commas; None for those of the recipe, or all.

    Raises:
        SimkitError: also if a model failed, after all others are done.
    """
    overrides: dict[str, object] = {}
    if data:
        overrides["data"] = data_source(data)
    if target:
        overrides["target"] = list(target)
    if test:
        overrides["test"] = data_source(test)
    names = names_in(models or "")
    comparison = compare(comparison_recipes(recipe, settings, overrides, names), out, minutes, echo)
    if comparison.results:
        echo(f"\n{comparison}\n")
        for result in comparison.results:
            for message in result.warnings:
                echo(f"warning: {result.name}: {message}")
        echo(f"table: {comparison.folder / MARKDOWN}\nplots: {comparison.folder / COST_PLOT}, {SIZE_PLOT}")
    if comparison.failures:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in comparison.failures.items())
        count = len(comparison.failures)
        raise SimkitError(f"{count} of {count + len(comparison.results)} models failed: {reasons}")
    return comparison


def evaluate_model(
    model: Path,
    data: Sequence[str],
    options: Mapping[str, str],
    *,
    out: Path | None,
    batch_size: int,
    device: str,
    dtype: str | None,
    overwrite: bool,
    echo: Echo,
) -> Evaluation:
    """Evaluate a model and tell the errors.

    Args:
        options: names, units and group for the source of the data.
    """
    source = data_source(data)
    if options and source["name"] != "frames":
        raise ConfigError(f"the labels of {source['name']} have fixed names and units; leave out {', '.join(options)}")
    result = evaluate(
        model,
        {**source, **options},
        out=out,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        overwrite=overwrite,
        echo=echo,
    )
    echo(f"\n{result}")
    if result.folder is not None:
        echo(f"\nmetrics.json and parity.png: {result.folder}")
    return result


def predict_structures(
    model: Path, structures: str, out: Path, *, device: str, dtype: str | None, overwrite: bool, echo: Echo
) -> Predictions:
    """Write predictions for structures and tell what was written."""
    result = predict_file(model, structures, out, device=device, dtype=dtype, overwrite=overwrite)
    echo(f"{result.structures} structures with {', '.join(result.properties)}: {result.out}")
    for message in result.warnings:
        echo(f"warning: {message}")
    return result


def analyze_trajectory(
    trajectory: str,
    *,
    out: Path,
    only: str,
    skip: int,
    frame_time: float | None,
    replica: int | None,
    r_max: float | None,
    bin_width: float | None,
    fit: tuple[float | None, float | None],
    resolution: float,
    overwrite: bool,
    echo: Echo,
) -> None:
    """Analyse a trajectory; see `simkit.workflows.analyze.analyze`.

    Args:
        only: names separated by commas; empty for all.
        fit: first and last lag of the diffusion's fit, fs; both or none.

    Raises:
        ConfigError: also if one end of the fit is given without the other.
    """
    start, end = fit
    if (start is None) != (end is None):
        raise ConfigError("a fit needs both ends: give --fit-start and --fit-end, in fs")
    fit_range = None if start is None or end is None else (start, end)
    settings = AnalysisSettings(r_max=r_max, bin_width=bin_width, fit_range=fit_range, resolution=resolution)
    analyze(
        trajectory,
        out=out,
        only=names_in(only),
        skip=skip,
        frame_time=frame_time,
        replica=replica,
        settings=settings,
        overwrite=overwrite,
        echo=echo,
    )
