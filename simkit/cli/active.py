"""The command of active learning."""

from pathlib import Path
from typing import Annotated

import typer

from simkit.cli.arguments import OutDir


def active(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML).")],
    out: OutDir,
    settings: Annotated[list[str] | None, typer.Option("--set", help="As in selection.frames=10; any number.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in OUT.")] = False,
) -> None:
    """Train a committee, explore, label what it disagrees on, repeat."""
    from simkit.workflows.active import run_active

    run_active(recipe, settings or [], out, resume=resume, echo=typer.echo)
