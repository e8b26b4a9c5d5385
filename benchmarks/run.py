"""Run the benchmarks that the machine has data for: python benchmarks/run.py [--peer-python ENV/bin/python].

finetune.py and active_learning.py, which train for 20 minutes and more, are run by themselves.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", help="Python of an environment that holds schnetpack==2.1.1")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    peer = ["--peer-python", options.peer_python] if options.peer_python else []
    commands = [["speed.py", *peer, "--out", str(options.out / "speed.json")]]
    peers = ["--peer", f"schnetpack={options.peer_python}"] if options.peer_python else []
    commands.append(["architectures.py", *peers, "--out", str(options.out / "architectures.json")])
    commands += [[f"{name}.py", "--out", str(options.out / f"{name}.json")] for name in ("integrators", "classical")]
    if os.environ.get("SIMKIT_DATA_DIR"):
        commands.append(["data_loading.py", "--out", str(options.out / "data_loading.json")])
    else:
        print("SIMKIT_DATA_DIR is not set: data_loading.py is left out")
    for script, *arguments in commands:
        subprocess.run([sys.executable, str(HERE / script), *arguments], check=True)


if __name__ == "__main__":
    main()
