"""Active learning against random labelling: force errors of an ethanol potential, frames chosen by disagreement and at random.

python benchmarks/active_learning.py [--seeds 3] [--work FOLDER] [--out active_learning.json] [--figure active_learning.png]; needs tblite.
It takes about 25 minutes on one thread, and goes on where it was interrupted.

Every run begins with the same 20 frames for both ways of choosing: normal modes of the trans minimum at 300 K. Then, in each round, a
committee of two small PaiNN runs four trajectories of 0.5 ps at 300 and 600 K, 20 of the frames visited are labelled with GFN2-xTB, and
training goes on. The two ways differ in the choice of the 20 alone; the first round, where nothing was chosen yet, is computed once.

Test frames come from GFN2-xTB itself: Langevin dynamics at 600 K, and rare geometries: such frames with the hydroxyl and the methyl group
turned by random angles. They are the same for all runs. Medians and ranges are over the seeds, which are those of the first frames, of
weights, of dynamics and of the random choice.
"""

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.io import read, write
from rich.console import Console
from rich.table import Table

import simkit.datasets
from simkit import plotting
from simkit.files import write_json
from simkit.inference.committee import Committee
from simkit.labeling.label import label_structures
from simkit.labeling.sample import sample_thermal
from simkit.potential import Potential
from simkit.training.evaluation import error_metrics, predict
from simkit.workflows.active import active_learning
from simkit.workflows.active_recipe import ActiveRecipe, read_active_recipe

METHOD = "gfn2-xtb"
STRATEGIES = ("disagreement", "random")
FRAMES = {"dynamics": 200, "torsions": 100}
# Atoms of ASE's ethanol: C (methyl), C, O, H (hydroxyl), two H of the second carbon, three H of methyl.
TURNED = {(1, 2): [3], (1, 0): [6, 7, 8]}


def silent(_: str) -> None:
    pass


def test_frames(folder: Path) -> dict[str, Path]:
    """Make the test frames, or find those of an earlier run of this script."""
    paths = {name: folder / f"test_{name}.xyz" for name in FRAMES}
    if not paths["dynamics"].exists():
        options: dict[str, Any] = {"temperatures": [600.0], "seed": 1, "spacing_steps": 50, "equilibration_steps": 1000}
        drawn = sample_thermal(molecule("CH3CH2OH"), METHOD, frames=FRAMES["dynamics"], **options)
        label_structures([atoms for atoms in drawn if not atoms.info["changed_bonds"]], METHOD, paths["dynamics"])
    if not paths["torsions"].exists():
        rng = np.random.default_rng(2)
        moved = cast(list[Atoms], read(paths["dynamics"], ":"))
        turned = [turn(moved[k].copy(), rng) for k in rng.choice(len(moved), FRAMES["torsions"], replace=False)]
        label_structures(turned, METHOD, paths["torsions"])
    return paths


def turn(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """Turn hydroxyl and methyl by random angles."""
    for (first, second), group in TURNED.items():
        axis = atoms.positions[second] - atoms.positions[first]
        part = atoms[group]
        part.rotate(rng.uniform(0, 360), axis, center=atoms.positions[second])
        atoms.positions[group] = part.positions
    return atoms


def recipe(strategy: str, seed: int, rounds: int, start: Path) -> ActiveRecipe:
    """The recipe of one run."""
    return read_active_recipe(
        None,
        overrides={
            "initial": {"structure": str(start), "frames": 20, "kind": "modes", "temperature": 300.0},
            "method": METHOD,
            "members": 2,
            "model": {"name": "painn", "cutoff": 5.0, "channels": 32, "layers": 2},
            "training": {
                "epochs": 200, "batch_size": 5, "learning_rate": 2e-3, "ema_decay": 0.99, "warmup_steps": 20, "device": "cpu",
                "validate_every": 10,
            },
            "update": {"start": "warm", "epochs": 80},
            "dynamics": {"trajectories": 4, "temperatures": [300.0, 600.0], "steps": 1000, "interval": 10},
            "selection": {"frames": 20, "strategy": strategy},
            "stop": {"rounds": rounds},
            "seed": seed,
        },
    )  # fmt: skip


def share_first_round(source: Path, target: Path) -> None:
    """Copy what two runs have in common: everything until the first choice is made."""
    if (target / "round-00").exists():
        return
    part = target / "copying"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source / "round-00", part)
    part.rename(target / "round-00")


def errors(folder: Path, rounds: int, tests: dict[str, Path]) -> list[dict[str, Any]]:
    """Force errors of the committee of every finished round on both sets of test frames; kept in a file beside them."""
    stores = {
        name: simkit.datasets.load("frames", paths=[str(path)]).with_neighbors(5.0) for name, path in tests.items()
    }
    rows = []
    for number in range(rounds + 1):
        here = folder / f"round-{number:02d}"
        facts = json.loads((here / "round.json").read_text()) if (here / "round.json").exists() else {}
        if "training" not in facts:
            break
        path = here / "test.json"
        if not path.exists():
            committee = cast(
                Potential, Committee.load([here / "members" / str(k) / "model.safetensors" for k in range(2)])
            )
            found = {
                name: error_metrics(store, predict(committee, store, ("forces",))) for name, store in stores.items()
            }
            write_json(path, found)
        labels = [
            json.loads((folder / f"round-{k:02d}" / "round.json").read_text())["labels"] for k in range(number + 1)
        ]
        row = {
            "calculations": sum(label["calculations"] for label in labels),
            "frames": sum(label["labelled"] for label in labels),
        }
        rows.append({**row, "errors": json.loads(path.read_text()), "exploration": facts.get("exploration"),
                     "calibration": facts.get("calibration")})  # fmt: skip
    return rows


@plotting.styled
def draw(results: dict[str, dict[str, list[dict[str, Any]]]], path: Path) -> None:
    """Force errors against calculations: medians with the range over the seeds, for each set of test frames."""
    panels = plotting.new_panels(len(FRAMES), 4.6, 3.6)
    for ax, name in zip(panels, FRAMES, strict=True):
        for strategy, colour in zip(STRATEGIES, (plotting.BLUE, plotting.VERMILION), strict=True):
            runs = [rows for rows in results[strategy].values() if rows]
            length = min((len(rows) for rows in runs), default=0)
            if not length:
                continue
            values = 1000 * np.array([[row["errors"][name]["forces_mae"] for row in rows[:length]] for rows in runs])
            x = [row["calculations"] for row in runs[0][:length]]
            ax.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
            ax.plot(x, np.median(values, axis=0), "o-", color=colour, markersize=4, label=strategy)
        ax.set(yscale="log", xlabel="GFN2-xTB calculations", ylabel="force MAE (meV/Å)", title=f"test frames: {name}")
        plotting.plain_log_ticks(ax)
        ax.legend()
    plotting.save(panels[0], path)


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def show(results: dict[str, dict[str, list[dict[str, Any]]]], console: Console) -> None:
    table = Table("calculations", *(f"{name}, {strategy}" for name in FRAMES for strategy in STRATEGIES))
    for k in range(max(len(rows) for runs in results.values() for rows in runs.values())):
        cells, count = [], 0
        for name in FRAMES:
            for strategy in STRATEGIES:
                rows = [rows[k] for rows in results[strategy].values() if len(rows) > k]
                count = rows[0]["calculations"] if rows else count
                cells.append(spread([1000 * row["errors"][name]["forces_mae"] for row in rows]) if rows else "")
        table.add_row(str(count), *cells)
    console.print("Force MAE, meV/Å: median over the seeds, and the range")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=Path("runs/active_learning"), help="what is there is not done again"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("active_learning.json"))
    parser.add_argument("--figure", type=Path, default=Path("active_learning.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=140)
    options.work.mkdir(parents=True, exist_ok=True)
    start = options.work / "ethanol.xyz"
    if not start.exists():
        write(start, molecule("CH3CH2OH"))
    tests = test_frames(options.work)
    console.print("test frames are there")
    results: dict[str, dict[str, list[dict[str, Any]]]] = {strategy: {} for strategy in STRATEGIES}
    for seed in range(options.seeds):
        for strategy in STRATEGIES:
            folder = options.work / f"{strategy}-{seed}"
            if strategy != STRATEGIES[0]:
                folder.mkdir(exist_ok=True)
                share_first_round(options.work / f"{STRATEGIES[0]}-{seed}", folder)
            active_learning(recipe(strategy, seed, options.rounds, start), folder, resume=True, echo=console.print)
            results[strategy][str(seed)] = errors(folder, options.rounds, tests)
            settings = recipe(strategy, seed, options.rounds, start).model_dump(
                mode="json", exclude={"initial": {"structure"}}
            )
            write_json(options.out, {"force_errors": "eV/angstrom", "recipe": settings, "results": results})
            draw(results, options.figure)
            show(results, console)


if __name__ == "__main__":
    main()
