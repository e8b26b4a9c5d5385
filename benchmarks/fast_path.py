"""The fast path of SchNet and PaiNN: cost against size, error against float64, drift of the energy; as in the README.

[SIMKIT_DATA_DIR=FOLDER] python benchmarks/fast_path.py [--parts sizes,batches,errors,drift] [--models FILE ...] [--threads 2]
    [--out fast_path.json] [--figure fast_path.png]

- sizes: energies and forces of periodic silicon, 64 to 32,768 atoms, random weights at the published sizes, float32; the time beside
  that of the reference path, and the memory that the fast path keeps.
- batches: 1 to 4,096 molecules of ethanol in one call.
- errors: each model file on the first test set of every molecule of rMD17 and on mlearn silicon, where it knows the elements: the
  largest differences of forces from the reference path in float64, of the fast path in float32 and float64 and of the reference
  path in float32.
- drift: 100 ps of ethanol at constant energy with each model file that knows its elements, by the fast path.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read
from matplotlib.figure import Figure
from systems import median_ms, rmd17_frames
from tables import print_rows

import simkit
from simkit import plotting
from simkit.files import data_dir
from simkit.graph import AtomGraph
from simkit.md.analysis import energy_drift
from simkit.md.ensembles.nve import NVE
from simkit.md.simulation import Simulation
from simkit.potential import Potential

SIZES = {"painn": {"channels": 128, "layers": 3, "basis": 20}, "schnet": {"channels": 128, "layers": 6, "basis": 20}}
OUTPUTS = ("energy", "forces")
CUTOFF = 5.0


def cost(graph: AtomGraph, potential: Potential, reference: bool) -> dict[str, Any]:
    """Milliseconds of both paths, and the memory of the fast one."""
    fast = potential.fast()
    fast(graph, OUTPUTS)
    found: dict[str, Any] = {"atoms": len(graph.z), "edges": graph.edge_index.shape[1]}
    found["fast_ms"] = median_ms(lambda: fast(graph, OUTPUTS), budget_s=3.0)
    found["kilobytes_per_atom"] = fast.workspace.bytes / len(graph.z) / 1000
    if reference:
        found["reference_ms"] = median_ms(lambda: potential(graph, OUTPUTS), budget_s=3.0, warmup=2)
    return found


def costs(kind: str) -> list[dict[str, Any]]:
    """Sizes or batches, for both architectures."""
    rng, rows = np.random.default_rng(0), []
    for name, options in SIZES.items():
        potential = simkit.potentials.build(name, cutoff=CUTOFF, elements=[1, 6, 8, 14], **options).eval()
        potential.requires_grad_(False)
        for count in (2, 4, 8, 16) if kind == "sizes" else (1, 4, 16, 64, 256, 1024, 4096):
            if kind == "sizes":
                structures = [bulk("Si", cubic=True) * (count, count, count)]
            else:
                structures = [molecule("CH3CH2OH") for _ in range(count)]
            for atoms in structures:
                atoms.positions += rng.normal(0.0, 0.05, atoms.positions.shape)
            graph = AtomGraph.from_ase(structures, CUTOFF)
            rows.append({"model": name, "structures": count} | cost(graph, potential, len(graph.z) <= 5000))
            print(json.dumps(rows[-1]), flush=True)
    return rows


def test_sets(potential: Potential) -> Iterator[tuple[str, list[Atoms]]]:
    """Give the test sets, by name, whose elements a model knows."""
    folder = data_dir()
    if folder is None:
        raise SystemExit("set SIMKIT_DATA_DIR to the folder that holds rmd17 and mlearn")
    if 14 in potential.elements:
        yield "mlearn Si", read(folder / "mlearn" / "Si.xyz.gz", ":")
    for path in sorted((folder / "rmd17").glob("*_test_01.npz")):
        frames = rmd17_frames(path, 1000)
        if set(frames[0].numbers) <= set(potential.elements):
            yield f"rMD17 {path.name.split('_')[1]}", frames


def errors(paths: list[Path]) -> list[dict[str, Any]]:
    """Largest differences of forces, eV/angstrom."""
    rows = []
    for path in paths:
        models = {dtype: simkit.potentials.load(path).cast(dtype).eval() for dtype in (torch.float32, torch.float64)}
        single, double = models[torch.float32], models[torch.float64]
        calls = {"fast float32": single.fast(), "fast float64": double.fast(), "reference float32": single}
        for name, frames in test_sets(double):
            largest, strongest = dict.fromkeys(calls, 0.0), 0.0
            for first in range(0, len(frames), 20):
                graph = AtomGraph.from_ase(frames[first : first + 20], double.cutoff)
                exact = double(graph, OUTPUTS)["forces"]
                strongest = max(strongest, float(exact.abs().max()))
                for label, call in calls.items():
                    difference = (call(graph, OUTPUTS)["forces"].double() - exact).abs().max()
                    largest[label] = max(largest[label], float(difference))
            row = {"model": single.architecture, "frames": name, "count": len(frames), "strongest": strongest}
            rows.append(row | largest)
            print(json.dumps(rows[-1]), flush=True)
    return rows


def drifts(paths: list[Path], picoseconds: float) -> list[dict[str, Any]]:
    """Drift of the energy, meV/atom/ps, and its fluctuation, meV/atom, at 0.5 fs from 300 K."""
    rows = []
    for path in paths:
        potential = simkit.potentials.load(path)
        if not {1, 6, 8} <= set(potential.elements):
            continue
        atoms = molecule("CH3CH2OH")
        simulation = Simulation(potential, atoms, NVE(0.5), temperature=300.0, seed=1)
        times, energies = [], []
        for _ in range(round(picoseconds * 10)):
            simulation.run(200)
            state = simulation.state
            times.append(0.5 * simulation.step)
            energies.append(float(state.energy[0] + state.kinetic_energy()[0]))
        row = {"model": potential.architecture, "picoseconds": picoseconds}
        row["drift"] = energy_drift(times, energies, len(atoms))
        row["fluctuation"] = 1000 * float(np.std(energies)) / len(atoms)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def picture(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw time per atom against the number of atoms."""
    kinds = [kind for kind in ("sizes", "batches") if kind in found]
    figure = Figure(figsize=(4.8 * len(kinds), 3.6), layout="constrained")
    for ax, kind in zip(np.atleast_1d(figure.subplots(1, len(kinds))), kinds, strict=True):
        for name, colour in zip(SIZES, ("C0", "C1"), strict=True):
            own = [row for row in found[kind] if row["model"] == name]
            for label, style in (("fast", "o-"), ("reference", "s--")):
                with_time = [row for row in own if f"{label}_ms" in row]
                atoms = [row["atoms"] for row in with_time]
                micro = [1000 * row[f"{label}_ms"] / row["atoms"] for row in with_time]
                ax.loglog(
                    atoms, micro, style, color=colour, label=f"{name}, {label}", alpha=1.0 if label == "fast" else 0.5
                )
        ax.set_xlabel("atoms")
        ax.set_ylabel("µs per atom, energy and forces")
        ax.set_title("periodic silicon" if kind == "sizes" else "ethanol molecules in a batch")
        ax.legend(frameon=False)
    plotting.save(figure, path)


def main() -> None:
    """Measure what was asked for, print tables and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="sizes,batches,errors,drift")
    parser.add_argument("--models", type=Path, nargs="*", default=[])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--picoseconds", type=float, default=100.0)
    parser.add_argument("--out", type=Path, default=Path("fast_path.json"))
    parser.add_argument("--figure", type=Path, default=Path("fast_path.png"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    parts, found = options.parts.split(","), {}
    for kind in ("sizes", "batches"):
        if kind in parts:
            found[kind] = costs(kind)
    if "errors" in parts:
        found["errors"] = errors(options.models)
    if "drift" in parts:
        found["drift"] = drifts(options.models, options.picoseconds)
    for kind, rows in found.items():
        if rows:
            print_rows(f"{kind}, {options.threads} threads", rows)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if {"sizes", "batches"} & set(found):
        picture(found, options.figure)


if __name__ == "__main__":
    main()
