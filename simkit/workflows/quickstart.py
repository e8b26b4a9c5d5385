"""The quickstart: train a neural potential on the embedded data, judge it, and run molecular dynamics with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simkit.datasets.embedded import load_embedded
from simkit.files import ensure_output_dir
from simkit.md.ensembles import NVE
from simkit.md.run import CHECKPOINT, MDResult, run_md
from simkit.training.recipe import Recipe, read_recipe
from simkit.workflows.evaluate import errors_table, label_spread
from simkit.workflows.report import TrainingReport
from simkit.workflows.simulate import summary
from simkit.workflows.structures import open_calculator, write_structures
from simkit.workflows.train import MODEL, train

if TYPE_CHECKING:
    from ase import Atoms

    from simkit.datasets.store import Store

EPOCHS, CHANNELS, MD_STEPS = 50, 64, 4000
"""Chosen so that training takes about two minutes on two cores, and the dynamics 2 ps."""
TEMPERATURE, TIMESTEP = 300.0, 0.5


@dataclass(frozen=True)
class QuickstartResult:
    """The trained model's report and the run that was made with it."""

    training: TrainingReport
    dynamics: MDResult


def quickstart(
    out: str | os.PathLike[str],
    *,
    epochs: int = EPOCHS,
    channels: int = CHANNELS,
    md_steps: int = MD_STEPS,
    device: str = "auto",
    echo: Callable[[str], None] = print,
) -> QuickstartResult:
    """Train PaiNN on the embedded ethanol frames and run dynamics with it. Called again after an interruption, it goes on.

    Args:
        out: folder for everything.
        epochs, channels: of the training; md_steps: of 0.5 fs.
        echo: takes what is to be told.

    Raises:
        OutputError: if the folder cannot be written or holds a quickstart with other settings.
    """
    folder = ensure_output_dir(out)
    echo("1. Training PaiNN on 1,000 frames of ethanol (GFN2-xTB), which takes a few minutes.\n")
    report = train(quickstart_recipe(epochs, channels, device), folder / "training", resume=True, echo=echo)
    model = folder / "training" / MODEL
    test = load_embedded("test")
    echo("\n2. Errors on 300 frames that it never saw, beside those of always answering with the mean:\n")
    echo(errors_table(report.metrics["test"], label_spread(test, ("energy", "forces"))))
    echo(f"\n3. Molecular dynamics: {md_steps * TIMESTEP / 1000:g} ps at constant energy.\n")
    start = typical_structure(test)
    write_structures(folder / "ethanol.xyz", [start])
    run = run_md(
        open_calculator(model, device),
        start,
        NVE(TIMESTEP),
        out=folder / "md",
        steps=md_steps,
        temperature=TEMPERATURE,
        restart=(folder / "md" / CHECKPOINT).exists(),
    )
    echo(summary(run))
    echo("\n" + next_steps(folder, model))
    return QuickstartResult(report, run)


def quickstart_recipe(epochs: int = EPOCHS, channels: int = CHANNELS, device: str = "auto") -> Recipe:
    """Return the recipe that the quickstart trains with."""
    return read_recipe(
        None,
        overrides={
            "data": {"name": "embedded"},
            "split": {"method": "published"},
            "model": {"name": "painn", "cutoff": 5.0, "channels": channels, "layers": 3},
            "loss": {"energy": {"weight": 0.1}, "forces": {"weight": 1.0}},
            "training": {
                "epochs": epochs,
                "batch_size": 10,
                "learning_rate": 1e-3,
                "schedule": "cosine",
                "ema_decay": 0.99,
                "checkpoint_minutes": 0.5,
                "max_minutes": 8.0,  # on a busy machine: a less accurate model, but no endless wait
                "device": device,
            },
        },
    )


def typical_structure(store: Store) -> Atoms:
    """Return the frame of median energy at the temperature of the run, so that dynamics at constant energy stay near it."""
    frames = np.flatnonzero(store.columns["temperature"] == TEMPERATURE)
    order = np.argsort(store.labels["energy"].numpy()[frames])
    atoms = store.to_atoms([int(frames[order[len(order) // 2]])])[0]
    atoms.calc = None
    return atoms


def next_steps(folder: Path, model: Path) -> str:
    """Return where everything is and what to type next."""
    return "\n".join(
        [
            "Where everything is:",
            f"  {model}  the model",
            f"  {folder / 'training' / 'report.md'}  the report, with learning_curve.png and parity.png beside it",
            f"  {folder / 'md'}  trajectory, log and plots of the dynamics",
            "",
            "What to type next:",
            f"  simkit info {model}",
            f"  simkit md {model} {folder / 'ethanol.xyz'} --ensemble nvt --temperature 500 --out {folder / 'hot'}",
            f"  simkit relax {model} {folder / 'ethanol.xyz'} --out {folder / 'relaxed'}",
            "  simkit train --data YOUR_FRAMES.xyz --out my_model",
        ]
    )
