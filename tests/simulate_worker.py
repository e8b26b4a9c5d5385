"""Runs 10,000 slow simulations and says how many are done: a process for tests to kill. Arguments: folder, seed."""

import sys

from exact_posterior import LinearSimulator

from simkit.inference.simulations import simulate

if __name__ == "__main__":
    simulate(
        LinearSimulator(failing=0.1, pause=1e-3),
        10_000,
        seed=int(sys.argv[2]),
        store=sys.argv[1],
        progress=lambda done, wanted: print(done, flush=True),
    )
