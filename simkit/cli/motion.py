"""Commands for surrogates of dynamics: `simkit surrogate ...`."""

from pathlib import Path
from typing import Annotated

import typer

from simkit.cli.arguments import OutDir, Overwrite, Seed

surrogate = typer.Typer(
    help="Learn the motion of a system from trajectories, roll it out, and compare models.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Settings = Annotated[list[str] | None, typer.Option("--set", help="As in model.width=64 or training.epochs=500.")]
System = Annotated[str | None, typer.Option(help="Known system; see simkit surrogate list.", show_default=False)]
Files = Annotated[list[str] | None, typer.Option("--data", help="CSV or npz files with trajectories; any number.")]
RecipeFile = Annotated[Path | None, typer.Argument(help="Recipe (YAML).", show_default=False)]


@surrogate.command("list")
def list_() -> None:
    """List known systems, their data protocols, and models."""
    from simkit.workflows.surrogate_rollout import list_surrogates

    typer.echo(list_surrogates())


@surrogate.command("make-data")
def make_data(
    system: Annotated[str, typer.Argument(help="Known system; see simkit surrogate list.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output file (.npz).")],
    protocol: Annotated[str, typer.Option(help="Of the system; by default its first.")] = "",
    settings: Annotated[list[str] | None, typer.Option("--set", help="Parameter, as in links=3.")] = None,
    coordinates: Annotated[str, typer.Option(help="canonical or cartesian.")] = "canonical",
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Trajectories of a known system, as a paper drew them."""
    from simkit.training.recipe import merge, parse_setting
    from simkit.workflows.surrogate_rollout import make_data as make

    parameters: dict[str, object] = {}
    for setting in settings or []:
        merge(parameters, parse_setting(setting))
    make(
        system,
        out,
        protocol=protocol,
        parameters=parameters,
        coordinates=coordinates,
        seed=seed,
        overwrite=overwrite,
        echo=typer.echo,
    )


@surrogate.command()
def train(
    out: OutDir,
    recipe: RecipeFile = None,
    settings: Settings = None,
    system: System = None,
    data: Files = None,
    model: Annotated[str | None, typer.Option(help="See simkit surrogate list.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the training in OUT.")] = False,
) -> None:
    """Train a model of motion: model, metrics and plots."""
    from simkit.workflows.surrogate_shell import train_from_shell

    train_from_shell(recipe, settings or [], system, data or [], model, out, resume=resume, echo=typer.echo)


@surrogate.command()
def compare(
    out: OutDir,
    recipe: RecipeFile = None,
    settings: Settings = None,
    system: System = None,
    data: Files = None,
    models: Annotated[str | None, typer.Option(help="Such as hnn,neural-ode; by default the recipe's.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each model.")] = 3,
) -> None:
    """Train several models from several seeds on the same data: table and plot."""
    from simkit.workflows.surrogate_shell import compare_from_shell

    compare_from_shell(recipe, settings or [], system, data or [], models, seeds, out, echo=typer.echo)


@surrogate.command()
def rollout(
    model: Annotated[Path, typer.Argument(help="Model file written by simkit surrogate train.")],
    out: OutDir,
    initial: Annotated[
        Path | None, typer.Option(help="Trajectories (CSV, npz) to start from and compare with.", show_default=False)
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Initial states drawn where no file is given.")] = 10,
    seed: Seed = 1,
    duration: Annotated[float | None, typer.Option(help="By default that of the training data.")] = None,
    points: Annotated[int | None, typer.Option(min=2, help="By default as in the training data.")] = None,
    method: Annotated[str | None, typer.Option(help="Integrator; by default what suits the model.")] = None,
    timestep: Annotated[float | None, typer.Option(help="Longest step; by default one to each point.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Roll a model out and compare with the truth where it is known."""
    from simkit.workflows.surrogate_rollout import Start, rollout_model

    rollout_model(
        model,
        out,
        Start(initial, count, seed, duration, points),
        method=method,
        timestep=timestep,
        overwrite=overwrite,
        echo=typer.echo,
    )
