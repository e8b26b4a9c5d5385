"""Fine-tuning against training from scratch: an ethanol model of GFN2-xTB adapted to rMD17's level of theory with 50 frames.

python benchmarks/finetune.py [--work FOLDER] [--out finetune.json]; needs SIMKIT_DATA_DIR or a cached rMD17, and tblite. It takes about
20 minutes on one thread.

PaiNN with 64 channels is first trained on the 1,000 training frames of the embedded data. Each way of going on then gets the same 50 frames
of rMD17 ethanol (train_01, drawn with the seed), 200 epochs, and the learning rate that was better on other frames of that part (`--tune`);
nothing is held out, and the errors are those on the 1,000 frames of test_01. Medians and ranges are over the seeds.

The second table is about the reference energies at the start: small molecules of the G2 set, a model of their GFN2-xTB energies, and errors
of total energies at the level of GFN1-xTB after nothing but a fit of reference energies to a few frames of it.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.collections import g2
from rich.console import Console
from rich.table import Table

import simkit
from simkit.datasets.splits import random_split
from simkit.datasets.store import Store
from simkit.labeling.label import label_structures
from simkit.training.evaluation import error_metrics, predict
from simkit.training.finetune import start_from, start_references
from simkit.training.recipe import StartOptions, read_recipe
from simkit.training.references import set_reference_energies
from simkit.workflows.report import TrainingReport
from simkit.workflows.train import MODEL, train

LOSS = {"energy": {"weight": 0.1}, "forces": {"weight": 1.0}}
NEW = {"name": "rmd17", "molecule": "ethanol", "split": "train_01"}
TEST = {"name": "rmd17", "molecule": "ethanol", "split": "test_01"}
FRAMES, EPOCHS, RANK = 50, 200, 8
# Learning rates that were tried, the better one first.
RATES = {"scratch": (2e-3, 1e-3), "frozen": (1e-2, 1e-3), "low_rank": (3e-3, 1e-3), "full": (3e-4, 1e-3)}
ELEMENTS = [1, 6, 7, 8]


def silent(_: str) -> None:
    pass


def fit(folder: Path, epochs: int, rate: float, **sections: Any) -> TrainingReport:
    """Train, or read the result of an earlier run of this script."""
    training = {"epochs": epochs, "learning_rate": rate, "ema_decay": 0.99, "warmup_steps": 50, "device": "cpu"}
    sections["training"] = {"batch_size": 5, **training, **sections.get("training", {})}
    return train(read_recipe(None, overrides={"loss": LOSS, **sections}), folder, resume=True, echo=silent)


def pretrain(folder: Path) -> Path:
    fit(
        folder,
        60,
        1e-3,
        data={"name": "embedded"},
        split={"method": "published"},
        model={"name": "painn", "channels": 64},
        training={"batch_size": 10},
    )
    return folder / MODEL


def adapt(parent: Path, mode: str, rate: float, seed: int, folder: Path, held_out: int = 0) -> TrainingReport:
    """Train on 50 frames in one of the ways; without ``held_out`` frames of the same part, test on the published ones."""
    sections: dict[str, Any] = {"data": NEW, "split": {"train": FRAMES, "valid": 0, "test": held_out, "seed": seed}}
    if not held_out:
        sections["test"] = TEST
    if mode == "scratch":
        sections["model"] = {"name": "painn", "channels": 64, "seed": seed}
    else:
        rank = {"rank": RANK} if mode == "low_rank" else {}
        sections |= {"start": {"model": str(parent), "mode": mode, **rank}, "model": {"seed": seed}}
    return fit(folder, EPOCHS, rate, **sections)


def before_training(parent: Path, seeds: int) -> list[dict[str, float]]:
    """Errors of the model that all but one way start from, with nothing but its reference energies fitted."""
    test = simkit.datasets.load(**TEST).with_neighbors(5.0)
    results = []
    for seed in range(seeds):
        chosen = random_split(1000, FRAMES, 0, 0, seed=seed).train  # those that are trained on
        options = StartOptions(model=str(parent))
        potential = start_from(options, test.elements, seed)
        start_references(potential, simkit.datasets.load(**NEW).select(chosen), options)
        results.append(error_metrics(test, predict(potential, test, ("energy", "forces"))))
    return results


def small_molecules(folder: Path, method: str) -> Store:
    """Closed-shell molecules of H, C, N and O from the G2 set, ten displaced geometries each, labelled."""
    rng = np.random.default_rng(0)
    frames = []
    for name in g2.names:
        atoms = g2[name]
        known = set(atoms.numbers) <= set(ELEMENTS) and 3 <= len(atoms) <= 12
        if known and atoms.numbers.sum() % 2 == 0 and not atoms.get_initial_magnetic_moments().any():
            for _ in range(10):
                frames.append(atoms.copy())
                frames[-1].positions += rng.normal(0, 0.06, atoms.positions.shape)
    path = folder / f"g2_{method}.xyz"
    if not path.exists():
        label_structures(frames, method, path)
    return simkit.datasets.load("frames", paths=str(path))


def reference_fits(folder: Path, seeds: int) -> list[dict[str, Any]]:
    """Mean absolute errors, eV, of total energies at a new level of theory before any training."""
    old, new = small_molecules(folder, "gfn2-xtb"), small_molecules(folder, "gfn1-xtb").with_neighbors(4.5)
    splits = random_split(len(old), 400, 40, 100, seed=0)
    test = new.select(splits.test)
    fit(
        folder / "g2",
        60,
        2e-3,
        data={"name": "frames", "paths": [str(folder / "g2_gfn2-xtb.xyz")]},
        split={"train": 400, "valid": 40, "test": 100, "seed": 0},
        model={"name": "painn", "channels": 48, "cutoff": 4.5},
        training={"batch_size": 10},
    )
    options = StartOptions(model=str(folder / "g2" / MODEL))
    results = []
    for frames in (10, 50, 200):
        for seed in range(seeds):
            chosen = np.random.default_rng(seed).choice(splits.train, frames, replace=False)
            row: dict[str, Any] = {"frames": frames, "seed": seed}
            for way in ("keep", "plain", "refit"):
                potential = start_from(options, ELEMENTS, 0)
                if way == "plain":  # what every other training starts with; the scale belongs to the network
                    scale = potential.scale.clone()
                    set_reference_energies(potential, new.select(chosen))
                    potential.scale.copy_(scale)
                elif way == "refit":
                    start_references(potential, new.select(chosen), options)
                row[way] = error_metrics(test, predict(potential, test, ("energy",)))["energy_mae"]
            results.append(row)
    return results


def spread(values: list[float], factor: float = 1000.0) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{factor * middle:.1f} ({factor * low:.1f} to {factor * high:.1f})"


def tune(parent: Path, work: Path, console: Console) -> None:
    """Force errors on 300 other frames of the training part, for frames drawn with a seed of its own."""
    for mode, rates in RATES.items():
        for rate in rates:
            report = adapt(parent, mode, rate, 10, work / f"tune_{mode}_{rate:g}", held_out=300)
            console.print(f"{mode} {rate:g}: {1000 * report.metrics['test']['forces_mae']:.1f} meV/Å")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/finetune"), help="models; those already there are used")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tune", action="store_true", help="try learning rates, and nothing else")
    parser.add_argument("--out", type=Path, default=Path("finetune.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    options.work.mkdir(parents=True, exist_ok=True)
    parent = pretrain(options.work / "parent")
    if options.tune:
        tune(parent, options.work, console)
        return
    results: dict[str, list[dict[str, float]]] = {"not trained": before_training(parent, options.seeds)}
    for mode, (rate, _) in RATES.items():
        reports = [adapt(parent, mode, rate, s, options.work / f"{mode}_{s}") for s in range(options.seeds)]
        results[mode] = [{**report.metrics["test"], "seconds": report.seconds} for report in reports]
    table = Table("start", "energy MAE, meV", "forces MAE, meV/Å", "forces RMSE, meV/Å", "s")
    for mode, rows in results.items():
        columns = [spread([row[key] for row in rows]) for key in ("energy_mae", "forces_mae", "forces_rmse")]
        table.add_row(mode, *columns, f"{statistics.median(row.get('seconds', 0.0) for row in rows):.0f}")
    console.print(table)
    fits = reference_fits(options.work, options.seeds)
    table = Table("frames", "kept, meV", "fitted to the energies, meV", "fitted to what the model leaves, meV")
    for frames in sorted({row["frames"] for row in fits}):
        chosen = [row for row in fits if row["frames"] == frames]
        table.add_row(str(frames), *(spread([row[way] for row in chosen]) for way in ("keep", "plain", "refit")))
    console.print(table)
    content = {
        "frames": FRAMES,
        "epochs": EPOCHS,
        "rates": {mode: rates[0] for mode, rates in RATES.items()},
        "rmd17_ethanol": results,
        "references": fits,
    }
    options.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
