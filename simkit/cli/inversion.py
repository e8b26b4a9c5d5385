"""Commands of inference: `simkit infer` and `simkit simulators`."""

from pathlib import Path
from typing import Annotated

import typer

from simkit.cli.arguments import OutDir


def infer(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    out: OutDir,
    observe: Annotated[
        Path | None, typer.Option(help="Observation: csv, txt, json, yaml, npy or npz.", show_default=False)
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="As in budget=5000; any number.")] = None,
    posterior: Annotated[
        Path | None, typer.Option(help="Amortised posterior to reuse (.safetensors).", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the inference in OUT.")] = False,
) -> None:
    """Infer a simulator's parameters from an observation, with calibration."""
    from simkit.workflows.inference_shell import infer_from_shell

    infer_from_shell(recipe, settings or [], out, observe, posterior, resume=resume, echo=typer.echo)


def simulators() -> None:
    """List the simulators that parameters can be inferred of."""
    from simkit.workflows.inference import list_simulators

    typer.echo(list_simulators())
