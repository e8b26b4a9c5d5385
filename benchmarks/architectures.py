"""Every architecture at its default size: parameters, ASE steps, memory and numerical checks, as the table of the README.

python benchmarks/architectures.py [--models painn,mace] [--threads 1] [--rounds 3] [--peer schnetpack=ENV/bin/python] [--out FILE.json]

Random weights, float32 (the checks in float64 and float32), cutoff 5 angstrom. Each architecture is timed in a process of its own, and so
is a peer's own implementation where ``--peer`` names an environment that holds it (see peers/); they take turns, and the table shows
medians over the rounds. A peer's size is the one in its script.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from speed import HERE, run
from systems import ase_step_ms, peak_memory_mb, structures

CUTOFF = 5.0
SYSTEMS = ("mol14", "si64", "si512")
PEERS = {
    "schnetpack": ("schnetpack_speed.py", ("painn", "schnet")),
    "mace": ("mace_speed.py", ("mace",)),
    "nequip": ("nequip_speed.py", ("nequip",)),
}
"""Peer -> its script, and the architectures that it has."""
COLUMNS = {"equivariance": "equivariance error", "smoothness": "jump at the cutoff", "force_error": "force error"}


def measure(name: str) -> dict[str, Any]:
    """Time ASE steps; then peak memory, which is that of this process."""
    import simkit

    potential = simkit.potentials.build(name, cutoff=CUTOFF, elements=[1, 6, 14])
    calculator = simkit.Calculator(potential)
    steps = {label: ase_step_ms(atoms, calculator) for label, atoms in structures().items()}
    return {"parameters": potential.num_parameters, "ms": steps, "peak_mb": peak_memory_mb()}


def check(name: str) -> dict[str, Any]:
    """Run the numerical checks on the isolated molecule."""
    import simkit
    from simkit.workflows.verify import check_potential

    potential = simkit.potentials.build(name, cutoff=CUTOFF, elements=[1, 6, 14])
    found = {d: check_potential(potential, [structures()["mol14"]], d) for d in ("float64", "float32")}
    problems = [text for checks in found.values() for text in checks.problems()]
    columns = {d: {name: getattr(checks, name) for name in COLUMNS} for d, checks in found.items()}
    return {"checks": {d: {**vars(checks), **columns[d]} for d, checks in found.items()}, "problems": problems}


def in_a_process(task: str, name: str) -> dict[str, Any]:
    return run(sys.executable, HERE / "architectures.py", f"--{task}", name, "")


def peers_of(name: str, pythons: dict[str, str]) -> dict[str, tuple[str, Path]]:
    """Peers that have an architecture and that there is an environment for."""
    return {
        peer: (pythons[peer], HERE / "peers" / script)
        for peer, (script, architectures) in PEERS.items()
        if peer in pythons and name in architectures
    }


def row_of(name: str, rounds: int, pythons: dict[str, str]) -> dict[str, Any]:
    """Everything about one architecture: medians over the rounds, in which simkit and the peers take turns."""
    own, others = [], {peer: [] for peer in peers_of(name, pythons)}
    for _ in range(rounds):
        own.append(in_a_process("measure", name))
        for peer, (python, script) in peers_of(name, pythons).items():
            others[peer].append(run(python, script, name, "md", ""))
    row = {"name": name, "parameters": own[0]["parameters"], "peak_mb": max(r["peak_mb"] for r in own)}
    row["ms"] = {label: statistics.median(r["ms"][label] for r in own) for label in SYSTEMS}
    row["peers"] = {
        peer: {
            "ms": {label: statistics.median(r["ms"][label] for r in results) for label in SYSTEMS},
            "ratio": {
                label: statistics.median(r["ms"][label] / o["ms"][label] for r, o in zip(results, own, strict=True))
                for label in SYSTEMS
            },
            "peak_mb": max(r["peak_mb"] for r in results),
        }
        for peer, results in others.items()
    }
    return row | in_a_process("check", name)


def digits(value: float) -> str:
    """Three significant digits, and never an exponent."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown; checks in float64 / float32."""
    header = ["", "parameters", *(f"{label}, ms" for label in SYSTEMS), "peak, MB"]
    header += COLUMNS.values()
    lines = [header, ["---"] * len(header)]
    for row in rows:
        checks = [" / ".join(f"{c[name]:.0e}" for c in row["checks"].values()) for name in COLUMNS]
        times = [digits(row["ms"][label]) for label in SYSTEMS]
        lines.append([row["name"], f"{row['parameters']:,}", *times, f"{row['peak_mb']:.0f}", *checks])
        for peer, other in row["peers"].items():
            times = [f"{digits(other['ms'][label])} ({other['ratio'][label]:.2g}x)" for label in SYSTEMS]
            lines.append([f"{row['name']} of {peer}", "", *times, f"{other['peak_mb']:.0f}", "", "", ""])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="names separated by commas; by default all with weights")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help=f"one of {', '.join(PEERS)}")
    parser.add_argument("--out", type=Path, default=Path("architectures.json"))
    options = parser.parse_args()
    pythons = dict(peer.split("=", 1) for peer in options.peer)
    if unknown := sorted(set(pythons) - set(PEERS)):
        parser.error(f"unknown peer {', '.join(unknown)}; known: {', '.join(PEERS)}")
    os.environ.update(OMP_NUM_THREADS=str(options.threads), MKL_NUM_THREADS=str(options.threads))
    listing = "from simkit.workflows.compare_recipes import trainable; print(','.join(trainable()))"
    names = (
        options.models
        or subprocess.run(
            [sys.executable, "-P", "-c", listing], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    rows = []
    for name in names.split(","):
        rows.append(row_of(name, options.rounds, pythons))
        print(f"{name}: {', '.join(f'{label} {ms:.3g} ms' for label, ms in rows[-1]['ms'].items())}", file=sys.stderr)
        content = {"cores": os.cpu_count(), "threads": options.threads, "rounds": options.rounds, "rows": rows}
        options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table(rows)}\n\nthreads: {options.threads}, rounds: {options.rounds}; written to {options.out}")
    for row in rows:
        for text in row["problems"]:
            print(f"warning: {row['name']}: {text}")


if __name__ == "__main__":
    if sys.argv[1:2] in (["--measure"], ["--check"]):
        print(json.dumps((measure if sys.argv[1] == "--measure" else check)(sys.argv[2])))
    else:
        main()
