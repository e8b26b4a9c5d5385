"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

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
