"""Commands that make, judge and apply models."""

from pathlib import Path
from typing import Annotated

import typer

from simkit.cli.arguments import Device, Dtype, Model, OutDir, OutFile, Overwrite, Structures


def train(
    out: OutDir,
    recipe: Annotated[Path | None, typer.Argument(help="Recipe (YAML).", show_default=False)] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="As in model.channels=64; any number.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Files or folders of frames, or embedded, qm9:U0, rmd17:ethanol.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Property to train on, such as U0, mu or all; any number.", show_default=False),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Architecture; see simkit models.", show_default=False)] = None,
    start: Annotated[
        Path | None, typer.Option(help="Model file to start from (fine-tuning).", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the training in OUT.")] = False,
) -> None:
    """Train a potential: model, metrics, plots and report."""
    from simkit.workflows.shell import train_model

    train_model(
        recipe, settings or [], data or [], model, out, target=target or [], start=start, resume=resume, echo=typer.echo
    )


def compare(
    out: OutDir,
    recipe: Annotated[Path | None, typer.Argument(help="Recipe (YAML), also with a section models.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="As in models.nequip.model.l_max=1.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Training data, as for train.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="Property to train on, as for train.")] = None,
    test: Annotated[list[str] | None, typer.Option(help="Test data; for rmd17 by default its test split.")] = None,
    models: Annotated[str | None, typer.Option(help="Such as painn,schnet; by default all that train.")] = None,
    budget_minutes: Annotated[float, typer.Option(help="Wall-clock time for each training.")] = 10.0,
) -> None:
    """Train several models under one budget and plot error against cost."""
    from simkit.workflows.shell import compare_models

    compare_models(
        recipe,
        settings or [],
        data or [],
        models,
        out,
        target=target or [],
        test=test or [],
        minutes=budget_minutes,
        echo=typer.echo,
    )


def evaluate(
    model: Model,
    data: Annotated[list[str], typer.Argument(help="Labelled frames, or embedded:test, rmd17:ethanol:test_01.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for metrics.json and parity.png.")] = None,
    batch_size: Annotated[int, typer.Option(help="Structures evaluated together.")] = 100,
    device: Device = "auto",
    dtype: Dtype = None,
    energy: Annotated[str | None, typer.Option(help="Name of the energies in the files.")] = None,
    forces: Annotated[str | None, typer.Option(help="Name of the forces in the files.")] = None,
    stress: Annotated[str | None, typer.Option(help="Name of the stress or virial in the files.")] = None,
    dipole: Annotated[str | None, typer.Option(help="Name of the dipole in the files.")] = None,
    energy_unit: Annotated[str | None, typer.Option(help="Such as hartree; by default eV.")] = None,
    length_unit: Annotated[str | None, typer.Option(help="Such as bohr; by default angstrom.")] = None,
    group: Annotated[str | None, typer.Option(help="Key of info to report groups by.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Errors of a model on labelled structures."""
    from simkit.workflows.shell import evaluate_model

    names = {"energy": energy, "forces": forces, "stress": stress, "dipole": dipole}
    options = {**names, "energy_unit": energy_unit, "length_unit": length_unit, "group": group}
    evaluate_model(
        model,
        data,
        {key: value for key, value in options.items() if value is not None},
        out=out,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        overwrite=overwrite,
        echo=typer.echo,
    )


def predict(
    model: Model,
    structures: Structures,
    out: OutFile,
    device: Device = "auto",
    dtype: Dtype = None,
    overwrite: Overwrite = False,
) -> None:
    """Energies, forces and more for structures."""
    from simkit.workflows.shell import predict_structures

    predict_structures(model, structures, out, device=device, dtype=dtype, overwrite=overwrite, echo=typer.echo)


def info(
    file: Annotated[str, typer.Argument(help="Model file, training folder, data file or name of a data set.")],
) -> None:
    """Describe a model or a data set."""
    from simkit.workflows.info import describe_file

    typer.echo(describe_file(file))


def models() -> None:
    """List the architectures and their options."""
    from simkit.workflows.info import describe_architectures

    typer.echo(describe_architectures())


def quickstart(out: OutDir, device: Device = "auto") -> None:
    """Train on the embedded data and run dynamics, in a few minutes."""
    from simkit.workflows.quickstart import quickstart as run

    run(out, device=device, echo=typer.echo)
