"""The sbibm benchmark: classifier two-sample tests of posteriors against the reference posteriors, as the table of the README.

SIMKIT_DATA_DIR=FOLDER python benchmarks/inference_sbibm.py [--tasks sir,slcp] [--methods npe,snle] [--budgets 1000,10000]
    [--observations 1,2,3] [--seed 1] [--out FILE.json]

An accuracy of 0.5 means that 10,000 samples cannot be told from 10,000 of the reference; 1 that none looks alike. Amortised methods learn
once and are asked for every observation. Results are written as they come: a run that was cut off goes on where it was. The published
figures are means over ten observations (Lueckmann et al., AISTATS 2021), ours over those that are there.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from simkit.inference.infer import AMORTISED, Inference, infer
from simkit.inference.simulators import build
from simkit.inference.simulators.reference import load_reference
from simkit.inference.two_samples import classifier_two_sample_test

TASKS = ("two_moons", "slcp", "gaussian_linear_uniform", "lotka_volterra", "sir")
PUBLISHED_NPE = dict(zip(TASKS, (0.606, 0.901, 0.553, 0.997, 0.680), strict=True))
PUBLISHED_BEST = dict(zip(TASKS, (0.554, 0.713, 0.527, 0.738, 0.561), strict=True))
"""With 10,000 simulations; the best of all methods of the benchmark."""
SAMPLES = 10_000


def measure(task: str, method: str, budget: int, observations: list[int], seed: int) -> list[dict[str, Any]]:
    """Infer each observation and compare with its reference posterior."""
    simulator = build(task)
    references = {k: load_reference(task, k) for k in observations}
    amortised: Inference | None = None
    rows = []
    for k, reference in references.items():
        started = time.process_time()
        if method in AMORTISED:
            amortised = amortised or infer(simulator, method=method, budget=budget, seed=seed)
            done = amortised
        else:
            done = infer(simulator, reference.observation, method=method, budget=budget, seed=seed + k)
        learned = time.process_time()
        samples = done.posterior.sample(SAMPLES, reference.observation, seed=seed + k)
        drawn = time.process_time()
        accuracy = classifier_two_sample_test(reference.samples, samples)
        row = {"task": task, "method": method, "budget": budget, "observation": k, "c2st": accuracy}
        row |= {"simulations": len(done.simulations), "learning_s": learned - started, "sampling_s": drawn - learned}
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Means over observations: methods and budgets down, tasks across."""
    lines = ["| | simulations | " + " | ".join(TASKS) + " |", "| --- " * (len(TASKS) + 2) + "|"]
    for method, budget in sorted({(row["method"], row["budget"]) for row in rows}, key=lambda key: (key[1], key[0])):
        cells = []
        for task in TASKS:
            found = [r["c2st"] for r in rows if (r["method"], r["budget"], r["task"]) == (method, budget, task)]
            cells.append(
                f"{statistics.mean(found):.3f}" + ("" if len(found) == 3 else f" ({len(found)})") if found else ""
            )
        lines.append(f"| {method} | {budget:,} | " + " | ".join(cells) + " |")
    for name, published in (("published NPE", PUBLISHED_NPE), ("best published", PUBLISHED_BEST)):
        lines.append(f"| {name} | 10,000 | " + " | ".join(f"{published[task]:.3f}" for task in TASKS) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is not in the file yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--methods", default="npe,snpe,snle")
    parser.add_argument("--budgets", default="1000,10000")
    parser.add_argument("--observations", default="1,2,3")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("inference_sbibm.json"))
    args = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(args.out.read_text()) if args.out.exists() else []
    have = {(row["task"], row["method"], row["budget"], row["observation"]) for row in rows}
    for budget in map(int, args.budgets.split(",")):
        for method in args.methods.split(","):
            for task in args.tasks.split(","):
                left = [k for k in map(int, args.observations.split(",")) if (task, method, budget, k) not in have]
                if left:
                    rows += measure(task, method, budget, left, args.seed)
                    args.out.write_text(json.dumps(rows, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
