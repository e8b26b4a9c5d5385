"""Training, evaluation and prediction as the shell asks for them: arguments resolved, results told."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from simkit.errors import ConfigError
from simkit.training.recipe import read_recipe
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
    if model is not None:
        overrides["model"] = {"name": model}
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
        f"  simkit md {path} STRUCTURE --temperature 300 --out md"
    )
    return report


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
