"""The command line. Every command reads its arguments and calls one function; nothing heavy is imported before that."""

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from simkit import __version__
from simkit.errors import SimkitError

INTERRUPTED = {
    "train": "; what was done is saved; continue with the same command and --resume",
    "md": "; what was done is saved; continue with the same command and --restart",
    "label": "; what was done is saved; continue with the same command",
    "quickstart": "; what was done is saved; continue with the same command",
    "compare": "; what was done is saved; continue with the same command",
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

Model = Annotated[Path, typer.Argument(help="Model file written by simkit (.safetensors).")]
Structure = Annotated[str, typer.Argument(help="Structure in any format of ASE; file@0 picks one of several.")]
Structures = Annotated[str, typer.Argument(help="File, pattern or folder of structures, or file@0:100.")]
OutDir = Annotated[Path, typer.Option("--out", "-o", help="Folder for everything that is written.")]
OutFile = Annotated[Path, typer.Option("--out", "-o", help="Output file (.xyz, .traj or .db).")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]
Dtype = Annotated[str | None, typer.Option(help="float32 or float64; by default the model's own.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Method = Annotated[str, typer.Option(help="gfn2-xtb, gfn1-xtb, dft:<functional>/<basis> or hf/<basis>.")]
Jobs = Annotated[int, typer.Option(min=1, help="Processes.")]
Charge = Annotated[int | None, typer.Option(help="Total charge; by default the structure's, else 0.")]
Multiplicity = Annotated[int | None, typer.Option(help="Spin multiplicity; by default the structure's, else lowest.")]
Lag = Annotated[
    float | None, typer.Option(help="End of the range that diffusion is fitted in, fs.", show_default=False)
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"simkit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def info(
    file: Annotated[str, typer.Argument(help="Model file, training folder, data file or name of a data set.")],
) -> None:
    """Describe a model or a data set."""
    from simkit.workflows.info import describe_file

    typer.echo(describe_file(file))


@app.command()
def md(
    model: Model,
    structure: Structure,
    out: OutDir,
    ensemble: Annotated[str, typer.Option(help="nve (velocity Verlet) or nvt (Langevin).")] = "nve",
    temperature: Annotated[float, typer.Option(help="K; of the starting velocities and of the thermostat.")] = 300.0,
    timestep: Annotated[float, typer.Option(help="fs.")] = 0.5,
    steps: Annotated[int, typer.Option(help="Of the whole run, with those before a restart.")] = 1000,
    friction: Annotated[float, typer.Option(help="Of the thermostat, 1/fs.")] = 0.01,
    seed: Seed = 0,
    interval: Annotated[int, typer.Option(help="Steps between two frames.")] = 10,
    keep_velocities: Annotated[
        bool, typer.Option("--keep-velocities", help="Start with those of the structure (nve).")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Continue the run in OUT.")] = False,
    device: Device = "auto",
    dtype: Dtype = None,
    skin: Annotated[float, typer.Option(help="Of the neighbor list, angstrom.")] = 0.5,
) -> None:
    """Molecular dynamics."""
    from simkit.workflows.simulate import simulate

    simulate(
        model,
        structure,
        out=out,
        steps=steps,
        ensemble=ensemble,
        temperature=None if keep_velocities else temperature,
        timestep=timestep,
        friction=friction,
        seed=seed,
        interval=interval,
        restart=restart,
        device=device,
        dtype=dtype,
        skin=skin,
        echo=typer.echo,
    )


@app.command()
def relax(
    model: Model,
    structure: Structure,
    out: OutDir,
    fmax: Annotated[float, typer.Option(help="Largest force left, eV/angstrom.")] = 0.01,
    steps: Annotated[int, typer.Option(help="Give up after so many.")] = 500,
    optimizer: Annotated[str, typer.Option(help="bfgs, lbfgs or fire.")] = "bfgs",
    cell: Annotated[bool, typer.Option("--cell", help="Relax the cell, too.")] = False,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Relax a structure."""
    from simkit.workflows.simulate import relax_structure

    relax_structure(
        model,
        structure,
        out=out,
        fmax=fmax,
        steps=steps,
        optimizer=optimizer,
        cell=cell,
        device=device,
        dtype=dtype,
        echo=typer.echo,
    )


@app.command()
def eos(
    model: Model,
    structure: Structure,
    out: OutDir,
    strain: Annotated[float, typer.Option(help="The cell is scaled by 1 - strain to 1 + strain.")] = 0.05,
    points: Annotated[int, typer.Option(help="Volumes.")] = 11,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Equation of state of a crystal."""
    from simkit.workflows.simulate import fit_equation_of_state

    fit_equation_of_state(
        model, structure, out=out, strain=strain, points=points, device=device, dtype=dtype, echo=typer.echo
    )


@app.command()
def analyze(
    trajectory: Annotated[str, typer.Argument(help="Folder of a run, or trajectory in any format of ASE.")],
    out: OutDir,
    only: Annotated[str, typer.Option(help="Such as rdf,msd; averages, rdf, msd, spectrum.", show_default=False)] = "",
    skip: Annotated[int, typer.Option(help="Frames left out at the start (equilibration).")] = 0,
    frame_time: Annotated[
        float | None, typer.Option(help="fs between frames, if the file does not tell.", show_default=False)
    ] = None,
    r_max: Annotated[
        float | None, typer.Option(help="Longest distance, angstrom; by default half the cell.", show_default=False)
    ] = None,
    bin_width: Annotated[float | None, typer.Option(help="Of the distances, angstrom.", show_default=False)] = None,
    fit_start: Lag = None,
    fit_end: Lag = None,
    resolution: Annotated[float, typer.Option(help="Of the spectrum, 1/cm.")] = 10.0,
    overwrite: Overwrite = False,
) -> None:
    """Structure, diffusion, vibrations and averages of a trajectory."""
    from simkit.workflows.shell import analyze_trajectory

    analyze_trajectory(
        trajectory,
        out=out,
        only=only,
        skip=skip,
        frame_time=frame_time,
        r_max=r_max,
        bin_width=bin_width,
        fit=(fit_start, fit_end),
        resolution=resolution,
        overwrite=overwrite,
        echo=typer.echo,
    )


@app.command()
def label(
    structures: Structures,
    method: Method,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output file (.xyz, .extxyz or .npz).")],
    charge: Charge = None,
    multiplicity: Multiplicity = None,
    jobs: Jobs = 1,
    overwrite: Overwrite = False,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Leave out structures that fail.")] = False,
) -> None:
    """Compute energies and forces with GFN-xTB or DFT."""
    from simkit.workflows.labels import label_file

    label_file(
        structures,
        method,
        out,
        charge=charge,
        multiplicity=multiplicity,
        jobs=jobs,
        overwrite=overwrite,
        keep_going=keep_going,
        echo=typer.echo,
    )


@app.command()
def sample(
    structure: Structure,
    method: Method,
    out: OutFile,
    frames: Annotated[int, typer.Option(help="How many in all.")] = 100,
    temperatures: Annotated[str, typer.Option(help="K, separated by commas.")] = "300",
    kind: Annotated[str, typer.Option(help="thermal (dynamics) or modes (normal modes).")] = "thermal",
    seed: Seed = 0,
    charge: Charge = None,
    multiplicity: Multiplicity = None,
    jobs: Jobs = 1,
    overwrite: Overwrite = False,
) -> None:
    """Draw diverse geometries with GFN-xTB or DFT."""
    from simkit.workflows.labels import sample_file

    sample_file(
        structure,
        method,
        out,
        kind=kind,
        temperatures=temperatures,
        frames=frames,
        seed=seed,
        charge=charge,
        multiplicity=multiplicity,
        jobs=jobs,
        overwrite=overwrite,
        echo=typer.echo,
    )


@app.command()
def models() -> None:
    """List the architectures and their options."""
    from simkit.workflows.info import describe_architectures

    typer.echo(describe_architectures())


@app.command()
def quickstart(out: OutDir, device: Device = "auto") -> None:
    """Train on the embedded data and run dynamics, in a few minutes."""
    from simkit.workflows.quickstart import quickstart as run

    run(out, device=device, echo=typer.echo)


def main() -> None:
    """Run the command line."""
    # torch-geometric and e3nn compile small functions with TorchScript, which PyTorch announces the end of.
    warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
    app(prog_name="simkit")


if __name__ == "__main__":
    main()
