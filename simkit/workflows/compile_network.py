"""Compile the network of a model file: python -m simkit.workflows.compile_network MODEL DTYPE ARTEFACT [SPECIES ...]

`simkit.fast.compilation` runs this as a process of its own, because the compiler takes a minute or more, changes settings of PyTorch
while it works, and may fail in any way, as what it makes may: code that writes where it must not ends this process, and not the
simulation that would have used it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from simkit.fast.build import build
from simkit.potentials import load

NICE = 10
"""Priority below that of the simulation that goes on meanwhile."""


def main(model: str, dtype: str, artefact: str, *present: str) -> None:
    """Compile a model in a dtype for some species, see `simkit.fast.build.build`."""
    if hasattr(os, "nice"):
        os.nice(NICE)
    potential = load(model).cast(getattr(torch, dtype)).requires_grad_(False).eval()
    build(potential, Path(artefact), tuple(int(k) for k in present))


if __name__ == "__main__":
    main(*sys.argv[1:])
