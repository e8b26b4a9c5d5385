"""The command line. Every command reads its arguments and calls one function; nothing heavy is imported before that."""

import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from simkit import __version__
from simkit.cli.active import active
from simkit.cli.dynamics import analyze, eos, md, relax
from simkit.cli.fast_path import bench, verify
from simkit.cli.inversion import infer, simulators
from simkit.cli.labels import label, sample
from simkit.cli.learning import compare, evaluate, info, models, predict, quickstart, train
from simkit.cli.motion import surrogate
from simkit.errors import SimkitError

INTERRUPTED = {
    "train": "; what was done is saved; continue with the same command and --resume",
    "md": "; what was done is saved; continue with the same command and --restart",
    "label": "; what was done is saved; continue with the same command",
    "quickstart": "; what was done is saved; continue with the same command",
    "active": "; what was done is saved; continue with the same command and --resume",
    "infer": "; what was done is saved; continue with the same command and --resume",
    "compare": "; what was done is saved; continue with the same command",
    "surrogate": "; what was trained is saved; continue a comparison with the same command, a training with --resume",
}


class _Group(TyperGroup):
    """Commands whose expected errors are one line each."""

    def invoke(self, ctx: Any) -> Any:  # a context of click, which some versions of typer carry inside
        """Run the command; what the user can mend becomes a line on stderr and a non-zero exit."""
        try:
            return super().invoke(ctx)
        except SimkitError as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.echo(f"interrupted{INTERRUPTED.get(ctx.invoked_subcommand, '')}", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Group,
    help="Train, run and judge neural interatomic potentials. Units: eV, angstrom, fs, K.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"simkit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


for _command in (
    train,
    compare,
    evaluate,
    predict,
    info,
    md,
    relax,
    eos,
    verify,
    bench,
    analyze,
    label,
    sample,
    active,
    infer,
    simulators,
    models,
    quickstart,
):
    app.command()(_command)
app.add_typer(surrogate, name="surrogate")


def main() -> None:
    """Run the command line."""
    # torch-geometric and e3nn compile small functions with TorchScript, which PyTorch announces the end of.
    warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
    app(prog_name="simkit")
