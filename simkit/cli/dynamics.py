"""Commands that move atoms, and judge how they moved."""

from typing import Annotated

import typer

from simkit.cli.arguments import Device, Dtype, Lag, Model, OutDir, Overwrite, Seed, Structure, Structures


def md(
    model: Model,
    structures: Structures,
    out: OutDir,
    ensemble: Annotated[str, typer.Option(help="nve; nvt (langevin), nose-hoover, bussi; npt (scr), mtk.")] = "nve",
    temperature: Annotated[float, typer.Option(help="K; of the starting velocities and of the thermostat.")] = 300.0,
    pressure: Annotated[float | None, typer.Option(help="GPa; by default 1 bar.", show_default=False)] = None,
    timestep: Annotated[float, typer.Option(help="fs.")] = 0.5,
    steps: Annotated[int, typer.Option(help="Of the whole run, with those before a restart.")] = 1000,
    friction: Annotated[
        float | None, typer.Option(help="Of langevin, 1/fs; 0.01 by default.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="More of the ensemble, as in final_temperature=600; any number.")
    ] = None,
    seed: Seed = 0,
    replicas: Annotated[int, typer.Option(min=1, help="Copies of each structure, all in one batch.")] = 1,
    interval: Annotated[int, typer.Option(help="Steps between two frames.")] = 10,
    trajectory: Annotated[
        str, typer.Option(help="traj (a file for each replica), h5 (H5MD), none; auto: traj for a few.")
    ] = "auto",
    keep_velocities: Annotated[
        bool, typer.Option("--keep-velocities", help="Start with those of the structures.")
    ] = False,
    stop_outside: Annotated[
        bool, typer.Option("--stop-outside", help="End where atoms come closer than in the training data.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Continue the run in OUT.")] = False,
    device: Device = "auto",
    dtype: Dtype = None,
    skin: Annotated[float, typer.Option(help="Of the neighbor list, angstrom.")] = 0.5,
    fast: Annotated[bool, typer.Option("--fast/--no-fast", help="Take the fast path, which checks itself.")] = True,
) -> None:
    """Molecular dynamics of one structure, or of several in one batch."""
    from simkit.workflows.simulate import simulate

    simulate(
        model,
        structures,
        {
            "ensemble": ensemble,
            "timestep": timestep,
            "temperature": temperature,
            "pressure": pressure,
            "friction": friction,
        },
        settings or [],
        out=out,
        steps=steps,
        keep_velocities=keep_velocities,
        seed=seed,
        replicas=replicas,
        interval=interval,
        trajectory=trajectory,
        stop_outside=stop_outside,
        restart=restart,
        device=device,
        dtype=dtype,
        skin=skin,
        fast=fast,
        echo=typer.echo,
    )


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


def analyze(
    trajectory: Annotated[str, typer.Argument(help="Folder of a run, or trajectory: H5MD or any format of ASE.")],
    out: OutDir,
    only: Annotated[str, typer.Option(help="Such as rdf,msd; averages, rdf, msd, spectrum.", show_default=False)] = "",
    skip: Annotated[int, typer.Option(help="Frames left out at the start (equilibration).")] = 0,
    frame_time: Annotated[
        float | None, typer.Option(help="fs between frames, if the file does not tell.", show_default=False)
    ] = None,
    replica: Annotated[
        int | None, typer.Option(help="The only replica to analyse, from 0; by default the mean.", show_default=False)
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
        replica=replica,
        r_max=r_max,
        bin_width=bin_width,
        fit=(fit_start, fit_end),
        resolution=resolution,
        overwrite=overwrite,
        echo=typer.echo,
    )
