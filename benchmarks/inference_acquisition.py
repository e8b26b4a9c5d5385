"""Simulations needed for a given accuracy: proposals that choose them against the prior, over tasks and seeds.

SIMKIT_DATA_DIR=FOLDER python benchmarks/inference_acquisition.py [--tasks sir,lotka_volterra,slcp] [--seeds 3] [--budget 4000]
    [--rounds 8] [--out FILE.json] [--figure FILE.png]

The estimator is that of the likelihood (nle) for all: with simulations of the prior (several budgets), of the posterior round by round
(snle), and where an ensemble of two disagrees. Accuracy is the classifier two-sample test against the reference posterior of sbibm, with
2,000 samples of each, and the mean of the posterior's standard deviations over the reference's. Results are written as they come; a run
that was cut off goes on.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from simkit import plotting
from simkit.inference.acquisition import StoppingOptions
from simkit.inference.infer import InferenceOptions, infer
from simkit.inference.learning import LearningOptions
from simkit.inference.plots import accuracy_curves
from simkit.inference.posterior import Posterior
from simkit.inference.simulators import build
from simkit.inference.simulators.reference import Reference, load_reference
from simkit.inference.two_samples import classifier_two_sample_test

TASKS = ("lotka_volterra", "sir", "slcp")
PROPOSALS = ("prior", "posterior", "disagreement")
SAMPLES = 2000


def judge(posterior: Posterior, reference: Reference, seed: int) -> dict[str, float]:
    """Return the two-sample accuracy and the relative width."""
    samples = posterior.sample(SAMPLES, reference.observation, seed=seed)
    accuracy = classifier_two_sample_test(reference.samples[:SAMPLES], samples, seed=1)
    return {"c2st": accuracy, "width": float(np.mean(samples.std(0) / reference.samples.std(0)))}


def measure(task: str, proposal: str, seed: int, budget: int, rounds: int) -> list[dict[str, Any]]:
    """One curve: accuracy after each number of simulations."""
    simulator, reference = build(task), load_reference(task, 1)
    rows: list[dict[str, Any]] = []

    def note(posterior: Posterior, simulations: int) -> None:
        found = judge(posterior, reference, seed)
        rows.append({"task": task, "proposal": proposal, "seed": seed, "simulations": simulations, **found})
        print(json.dumps(rows[-1]), flush=True)

    if proposal == "prior":
        for part in range(1, rounds + 1):
            if part & (part - 1) == 0:  # powers of two suffice for a curve
                count = budget * part // rounds
                note(infer(simulator, method="nle", budget=count, seed=seed).posterior, count)
        return rows
    options = InferenceOptions(
        rounds=rounds,
        proposal="posterior" if proposal == "posterior" else "disagreement",
        learning=LearningOptions(members=1 if proposal == "posterior" else 2),
        stopping=StoppingOptions(),
    )
    infer(
        simulator,
        reference.observation,
        method="snle",
        budget=budget,
        seed=seed,
        options=options,
        on_round=lambda posterior, report: note(posterior, report.simulations),
    )
    return rows


def picture(rows: list[dict[str, Any]], tasks: list[str], path: Path) -> None:
    """Draw the accuracies of each task."""
    figure = Figure(figsize=(4.6 * len(tasks), 3.8), layout="constrained")
    for ax, task in zip(np.atleast_1d(figure.subplots(1, len(tasks))), tasks, strict=True):
        curves = {}
        for proposal in PROPOSALS:
            own = [r for r in rows if r["task"] == task and r["proposal"] == proposal]
            counts, seeds = sorted({r["simulations"] for r in own}), sorted({r["seed"] for r in own})
            found = {(r["seed"], r["simulations"]): r["c2st"] for r in own}
            if own:
                curves[proposal] = (counts, [[found.get((s, c), np.nan) for c in counts] for s in seeds])
        accuracy_curves(curves, "classifier two-sample accuracy", target=0.5, axes=ax)
        ax.set_title(task)
    plotting.save(figure, path)


def table(rows: list[dict[str, Any]]) -> str:
    """Medians over seeds."""
    lines = ["| task | simulations | " + " | ".join(PROPOSALS) + " |", "| --- " * (2 + len(PROPOSALS)) + "|"]
    for task, count in sorted({(r["task"], r["simulations"]) for r in rows}):
        cells = []
        for proposal in PROPOSALS:
            own = [r for r in rows if (r["task"], r["simulations"], r["proposal"]) == (task, count, proposal)]
            values = [r["c2st"] for r in own]
            cells.append(f"{statistics.median(values):.3f} ({len(values)})" if values else "")
        lines.append(f"| {task} | {count:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is not in the file yet, print the table and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("inference_acquisition.json"))
    parser.add_argument("--figure", type=Path, default=Path("inference_acquisition.png"))
    args = parser.parse_args()
    tasks = args.tasks.split(",")
    rows: list[dict[str, Any]] = json.loads(args.out.read_text()) if args.out.exists() else []
    have = {(r["task"], r["proposal"], r["seed"]) for r in rows}
    for seed in range(1, args.seeds + 1):
        for task in tasks:
            for proposal in PROPOSALS:
                if (task, proposal, seed) not in have:
                    rows += measure(task, proposal, seed, args.budget, args.rounds)
                    args.out.write_text(json.dumps(rows, indent=1))
    print(table(rows))
    picture(rows, tasks, args.figure)


if __name__ == "__main__":
    main()
