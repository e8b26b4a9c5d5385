"""Commands about the fast path of models: whether it holds, and what it brings."""

from pathlib import Path
from typing import Annotated

import typer

from simkit.cli.arguments import Device, Dtype, Model, Overwrite, Structure, Structures

Compile = Annotated[
    bool,
    typer.Option("--compile", help="Compile the network first, which takes minutes, where that is the fast path."),
]


def verify(
    model: Model,
    structures: Structures,
    frames: Annotated[int, typer.Option(help="At most so many structures, spread over the file.")] = 100,
    compile_first: Compile = False,
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Compare the fast path of a model with the reference path and with float64."""
    from simkit.workflows.fast_path import verify_model

    verify_model(
        model,
        structures,
        frames=frames,
        device=device,
        dtype=dtype,
        compile_first=compile_first,
        echo=typer.echo,
    )


def bench(
    model: Model,
    structure: Structure,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File for the figures (.json); a plot (.png) beside it.")
    ] = None,
    sizes: Annotated[
        str, typer.Option(help="Copies of the structure, such as 1,8,64; by default more and more.", show_default=False)
    ] = "",
    seconds: Annotated[float, typer.Option(help="About what it may take in all.")] = 20.0,
    threads: Annotated[
        int | None, typer.Option(help="Of the CPU; by default what PyTorch takes.", show_default=False)
    ] = None,
    compile_first: Compile = False,
    device: Device = "auto",
    dtype: Dtype = None,
    overwrite: Overwrite = False,
) -> None:
    """Speed and memory of a model's fast and reference path, for growing systems."""
    from simkit.workflows.bench_report import bench_model

    bench_model(
        model,
        structure,
        out=out,
        sizes=sizes,
        seconds=seconds,
        threads=threads,
        device=device,
        dtype=dtype,
        compile_first=compile_first,
        overwrite=overwrite,
        echo=typer.echo,
    )
