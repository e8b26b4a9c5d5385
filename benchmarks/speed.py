"""ASE steps and training steps of simkit's PaiNN and SchNet, beside SchNetPack's on the same structures in the same run.

python benchmarks/speed.py [--peer-python ENV/bin/python] [--rounds 3] [--out speed.json]

The two take turns, each figure in a process of its own (peak memory is that process's); the table shows medians over the rounds and
their ratio. ENV is a virtual environment with ``schnetpack==2.1.1``, which pins an older torch and cannot share simkit's.
Training batches need SIMKIT_DATA_DIR (QM9 and rMD17); without it they are left out, and it says so.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent


def run(python: str, script: Path, model: str, task: str, data: str) -> dict[str, Any]:
    # The scripts import their neighbour systems.py, which PYTHONSAFEPATH would forbid.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [python, str(script), model, task, data], capture_output=True, text=True, cwd=HERE, env=env, check=False
    )
    if done.returncode:
        raise SystemExit(f"{script.name} {model} {task} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="Python of an environment that holds schnetpack")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("speed.json"))
    options = parser.parse_args()
    data = os.environ.get("SIMKIT_DATA_DIR", "")
    console = Console()
    if not data:
        console.print("SIMKIT_DATA_DIR is not set: training steps are left out")
    programs = {"simkit": (sys.executable, HERE / "simkit_speed.py")}
    if options.peer_python:
        programs["schnetpack"] = (options.peer_python, HERE / "peers" / "schnetpack_speed.py")
    rows = []
    for model in ("painn", "schnet"):
        for task in ("md", "train") if data else ("md",):
            results: dict[str, list[dict[str, Any]]] = {name: [] for name in programs}
            for _ in range(options.rounds):
                for name, (python, script) in programs.items():
                    results[name].append(run(python, script, model, task, data))
            for label in results["simkit"][0]["ms"]:
                row: dict[str, Any] = {"model": model, "task": task, "system": label}
                for name, rounds in results.items():
                    row[f"{name}_ms"] = statistics.median(r["ms"][label] for r in rounds)
                    row[f"{name}_peak_mb"] = max(r["peak_mb"] for r in rounds)
                if "schnetpack" in results:
                    pairs = zip(results["schnetpack"], results["simkit"], strict=True)
                    row["ratio"] = statistics.median(peer["ms"][label] / own["ms"][label] for peer, own in pairs)
                rows.append(row)
    columns = list(rows[0])
    table = Table(title=f"milliseconds per step, {os.cpu_count()} cores, median of {options.rounds} rounds")
    for name in columns:
        table.add_column(name)
    for row in rows:
        table.add_row(*(f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name]) for name in columns))
    console.print(table)
    options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    console.print(f"written to {options.out}")


if __name__ == "__main__":
    main()
