"""What a file is: the whole of `simkit info`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from simkit.datasets import load as load_dataset
from simkit.potentials import architecture, available, load
from simkit.training.evaluation import Metrics
from simkit.training.finetune import lineage
from simkit.workflows.report import error_rows, noise_text, reference_lines
from simkit.workflows.structures import data_source
from simkit.workflows.text import table

MODEL_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".model")


def describe_file(where: str | os.PathLike[str]) -> str:
    """Return what a model file, a file or folder of structures, a named data set or a training's folder holds.

    Raises:
        ModelFileError: if it is called like a model and is not a valid one.
        DataError: if it is something else and cannot be read.
    """
    path = Path(where)
    trained = path / "model.safetensors"
    if path.is_dir() and trained.is_file():
        return describe_model(trained)
    if path.suffix in MODEL_SUFFIXES:
        return describe_model(path)
    source = data_source([where])
    return load_dataset(source.pop("name"), **source).describe()


def describe_model(path: Path) -> str:
    """Return architecture, domain, origin and errors of a model.

    Raises:
        ModelFileError: if it is not a valid model.
    """
    from ase.data import chemical_symbols

    potential = load(path)
    info = dict(potential.info)
    lines = [
        ("file", f"{path} ({path.stat().st_size / 1e6:.2f} MB)"),
        ("architecture", f"{potential.architecture}, {_options(potential.options)}"),
        ("parameters", f"{potential.num_parameters:,} in {str(potential.dtype).removeprefix('torch.')}"),
        ("cutoff", f"{potential.cutoff:g} angstrom"),
        ("elements", " ".join(chemical_symbols[z] for z in potential.elements)),
        ("outputs", ", ".join(potential.outputs)),
        *(line.split(": ", 1) for line in reference_lines(potential, {})),
        *([("anchored", "isolated atoms have exactly their reference energies")] if potential.anchored else []),
        ("level of theory", info.pop("level_of_theory", None) or "not stated"),
    ]
    errors = info.pop("errors", {})
    domain = info.pop("domain", {})
    if noise := info.pop("learned_noise", None):
        lines.append(("learned noise", noise_text(noise)))
    if start := info.pop("started_from", None):
        lines.append(("started from", lineage(start)))
    if replay := info.pop("replay", None):
        lines.append(("replayed", f"{replay['structures']} structures of {replay['data']}"))
    lines += [(key.replace("_", " "), str(value)) for key, value in info.items() if value is not None]
    if domain.get("closest"):
        closest = ", ".join(f"{pair} {distance:.2f}" for pair, distance in domain["closest"].items())
        lines.append(("closest distances", f"{closest} angstrom in the training data"))
    width = max(len(name) for name, _ in lines)
    text = "\n".join(f"{name:<{width}}  {value}" for name, value in lines)
    return text + ("\n\n" + errors_of_parts(errors) if errors else "")


def errors_of_parts(errors: dict[str, Metrics]) -> str:
    """Return the table of errors of training, validation and test data."""
    return table(["part", "quantity", "MAE", "RMSE"], error_rows(errors))


def describe_architectures() -> str:
    """Return every registered architecture with the options that a recipe can set and their defaults."""
    lines = []
    for name in available():
        representation, options = architecture(name)
        summary = (sys.modules[representation.__module__].__doc__ or "").strip().splitlines()[0]
        lines += [name, f"    {summary}", f"    {_options(options().model_dump())}"]
    return "\n".join(lines)


def _options(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())
