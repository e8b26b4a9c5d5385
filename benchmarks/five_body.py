"""Steps per second of the leapfrog on the Sun and the four giant planets: simkit beside REBOUND, in turns in one run on one core.

python benchmarks/five_body.py [--steps 2000000] [--rounds 5] [--out five_body.json] --rebound-python /env/of/rebound/bin/python

Both run drift, kick, drift ("position-verlet"; REBOUND's "leapfrog" with its direct sum) from the same state with the same step, and the
positions at the end are compared. Figures are medians of the rounds. `--clock cpu` counts processor time in place of the clock on the wall.
"""

import argparse
import json
import math
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

# Masses of the Sun, Jupiter, Saturn, Uranus and Neptune in solar masses; distances in au, on circles; G = 1.
MASSES = [1.0, 9.5479e-4, 2.8589e-4, 4.3662e-5, 5.1514e-5]
DISTANCES = [0.0, 5.2044, 9.5826, 19.2184, 30.11]
TIMESTEP = 0.5  # of a year / 2 pi


def start() -> tuple[list[list[float]], list[list[float]]]:
    """Positions and velocities [5][3], the planets at different angles."""
    x, v = [[0.0] * 3], [[0.0] * 3]
    for k, a in enumerate(DISTANCES[1:]):
        speed, angle = math.sqrt(1.0 / a), 1.3 * k
        x.append([a * math.cos(angle), a * math.sin(angle), 0.01 * k])
        v.append([-speed * math.sin(angle), speed * math.cos(angle), 0.0])
    return x, v


def rebound_run(steps: int) -> dict[str, Any]:
    """Time of REBOUND; needs nothing but REBOUND."""
    import rebound

    simulation = rebound.Simulation()
    for m, x, v in zip(MASSES, *start(), strict=True):
        simulation.add(m=m, x=x[0], y=x[1], z=x[2], vx=v[0], vy=v[1], vz=v[2])
    simulation.integrator, simulation.dt = "leapfrog", TIMESTEP
    simulation.steps(1000)
    begin, cpu = time.perf_counter(), time.process_time()
    simulation.steps(steps)
    times = {"wall": time.perf_counter() - begin, "cpu": time.process_time() - cpu}
    return times | {"x": [[p.x, p.y, p.z] for p in simulation.particles], "version": rebound.__version__}


def simkit_run(steps: int) -> dict[str, Any]:
    """Time of simkit, with gravity as a compiled force."""
    import numpy as np
    from numba import njit

    from simkit import integrators
    from simkit.integrators import cpu

    @njit(error_model="numpy", forceinline=True)
    def gravity(replica, x, f, m):  # type: ignore[no-untyped-def]
        for i in range(len(m)):
            fx = fy = fz = 0.0
            for j in range(i):
                dx, dy, dz = x[j, 0] - x[i, 0], x[j, 1] - x[i, 1], x[j, 2] - x[i, 2]
                r2 = dx * dx + dy * dy + dz * dz
                g = m[i] * m[j] / (r2 * math.sqrt(r2))
                fx += g * dx
                fy += g * dy
                fz += g * dz
                f[j, 0] -= g * dx
                f[j, 1] -= g * dy
                f[j, 2] -= g * dz
            f[i, 0], f[i, 1], f[i, 2] = fx, fy, fz

    (x, v), m = (np.array(a) for a in start()), np.array(MASSES)
    engine = cpu.Integrator(
        integrators.get("position-verlet"), gravity, x, v, np.zeros_like(x), m, arguments=(m,), one_replica=True
    )
    engine.run(1000, timestep=TIMESTEP)
    begin, busy = time.perf_counter(), time.process_time()
    engine.run(steps, timestep=TIMESTEP, first_step=1000)
    return {"wall": time.perf_counter() - begin, "cpu": time.process_time() - busy, "x": x.tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--rebound-python", type=Path)
    parser.add_argument(
        "--rebound-only", action="store_true", help="print one run of REBOUND: what the others are started with"
    )
    parser.add_argument("--out", type=Path, default=Path("five_body.json"))
    options = parser.parse_args()
    if options.rebound_only:
        print(json.dumps(rebound_run(options.steps)))
        return
    if options.rebound_python is None:
        parser.error("--rebound-python: expected the Python of an environment with REBOUND")
    command = [str(options.rebound_python), __file__, "--rebound-only", "--steps", str(options.steps)]
    ours, theirs = [], []
    for _ in range(options.rounds):
        ours.append(simkit_run(options.steps))
        theirs.append(
            json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        )
    rates = [options.steps / statistics.median(run[options.clock] for run in runs) for runs in (ours, theirs)]
    apart = max(
        abs(a - b)
        for own, other in zip(ours[0]["x"], theirs[0]["x"], strict=True)
        for a, b in zip(own, other, strict=True)
    )
    result = {"simkit": rates[0], "rebound": rates[1], "ratio": rates[0] / rates[1], "apart_au": apart}
    result |= {"clock": options.clock, "steps": options.steps, "rebound_version": theirs[0]["version"]}
    print(json.dumps(result, indent=1))
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
