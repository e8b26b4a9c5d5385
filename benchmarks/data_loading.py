"""Opening QM9 and gathering batches: python benchmarks/data_loading.py [--out data_loading.json]; needs SIMKIT_DATA_DIR or a cached QM9.

Opening is timed in fresh processes, imports included; resident memory is that process's peak.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from systems import median_ms

import simkit

OPEN = """
import resource, time
start = time.perf_counter()
import simkit
store = simkit.datasets.load("qm9")
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, len(store))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data_loading.json"))
    options = parser.parse_args()
    runs = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-P", "-c", OPEN], capture_output=True, text=True, check=True)
        runs.append([float(value) for value in done.stdout.split()])
    seconds, memory, molecules = (statistics.median(column) for column in zip(*runs, strict=True))
    generator = torch.Generator().manual_seed(0)
    result = {"molecules": molecules, "open_s": seconds, "peak_mb": memory, "threads": torch.get_num_threads()}
    qm9 = simkit.datasets.load("qm9")
    chosen = torch.randint(len(qm9), (100,), generator=generator)
    for cutoff in (5.0,):
        for mode, store in (("on_the_fly", qm9), ("stored", qm9.select(torch.arange(20000)))):
            ready = store.with_neighbors(cutoff, mode)
            rows = chosen % len(store)
            result[f"batch of 100, {cutoff} A, edges {mode}, ms"] = median_ms(lambda r=ready, i=rows: r.batch(i))
    table = Table(title="QM9")
    table.add_column("figure")
    table.add_column("value")
    for name, value in result.items():
        table.add_row(name, f"{value:.4g}")
    Console().print(table)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
