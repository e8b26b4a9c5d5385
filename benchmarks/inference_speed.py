"""Simulations of Lotka-Volterra and SIR as inference needs them, beside torchdiffeq's and SciPy's; and all other ready simulators.

python benchmarks/inference_speed.py [--threads 2] [--count 100000] [--quick] [--only equations simulators] [--out inference_speed.json]

equations: parameters from the benchmark's prior (sbibm), a trajectory and its noisy observation for each. The rows:

- simkit: `simulate` of the ready simulator, noise included.
- torchdiffeq rk4: all trajectories in one batch of 10,000, with the same steps (the 3/8 rule, of the same order), and noise by
  `torch.distributions`. Several batches take several times as long, so the time is scaled up to the number of simulations.
- scipy odeint: LSODA with its default tolerances, one trajectory after the other, as scripts of the field do it, and noise by NumPy. On 200
  trajectories, scaled up.
- scipy solve_ivp: the same with its default method (RK45) and default tolerances, which are looser.

The error of each is against steps of an eighth of ours: for Lotka-Volterra that of the logarithm of a population, for SIR that of the share
infected; the largest over times, and the 99th percentile over trajectories. Rows of failed trajectories count as infinitely wrong.

simulators: microseconds for one simulation with parameters from the prior, in batches.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.integrate import odeint, solve_ivp
from systems import best_of
from tables import print_rows
from torch import Tensor
from torchdiffeq import odeint as torch_odeint

from simkit.inference.simulator import simulation_seeds
from simkit.inference.simulators import build
from simkit.inference.simulators.populations import SIR, LotkaVolterra

Rows = list[dict[str, Any]]
BATCH, FEW = 10_000, 200
EIGHTH = 8
clock = time.perf_counter


def rate(name: str, y: Any, p: Any) -> list[Any]:
    """The equations, for numbers, arrays and tensors."""
    if name == "lotka_volterra":
        return [y[0] * (p[0] - p[1] * y[1]), y[1] * (p[3] * y[0] - p[2])]
    infections = p[0] * y[0] * y[1] / 1e6
    return [-infections, infections - p[1] * y[1]]


class Comparison:
    """Simulations of one model: what each way costs, and how far its trajectories are from exact ones."""

    def __init__(self, model: type[LotkaVolterra] | type[SIR], count: int, seconds: float) -> None:
        self.simulator, self.fine = model(), model(timestep=model().timestep / EIGHTH)
        self.name, self.count, self.seconds, self.rows = model.name, count, seconds, Rows()
        self.theta, self.seeds = self.simulator.prior.sample(count, 0), simulation_seeds(0, 0, count)
        self.exact = self.fine.solve(self.theta[:BATCH])

    def error(self, states: np.ndarray) -> float:
        exact = self.exact[: len(states)]
        if self.name == "lotka_volterra":
            with np.errstate(invalid="ignore", divide="ignore"):
                wrong = np.abs(np.log(states / exact))
        else:
            wrong = np.abs(states - exact)[..., 1] / 1e6
        return float(np.quantile(np.nan_to_num(wrong, nan=np.inf).reshape(len(states), -1).max(1), 0.99))

    def observe(self, states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.name == "lotka_volterra":
            return np.clip(states, 1e-10, 1e4) * np.exp(0.1 * rng.standard_normal(states.shape))
        return rng.binomial(1000, np.clip(states[..., 1] / 1e6, 0, 1))

    def add(self, label: str, states: np.ndarray, elapsed: float, measured: int) -> None:
        seconds = elapsed * self.count / measured
        ratio = seconds / self.rows[0]["seconds"] if self.rows else 1.0
        row = {"model": self.name, "simulations": self.count, "by": label, "99% error": self.error(states)}
        self.rows.append(row | {"seconds": seconds, "measured on": measured, "simkit is faster by": ratio})

    def run(self) -> Rows:
        simulator, theta = self.simulator, self.theta
        simulator.simulate(theta[:1], self.seeds[:1])  # compiles
        elapsed, _ = best_of(lambda: simulator.simulate(theta, self.seeds), self.seconds, clock)
        self.add(f"simkit rk4 {simulator.timestep:g}", simulator.solve(theta[:BATCH]), elapsed, self.count)
        batch = theta[:BATCH]
        elapsed, states = best_of(lambda: self.by_torchdiffeq(batch), self.seconds, clock)
        self.add(f"torchdiffeq rk4 {simulator.timestep:g}", states, elapsed, len(batch))
        for label, solve in (("scipy odeint", self.by_odeint), ("scipy solve_ivp", self.by_solve_ivp)):
            few = theta[:FEW]
            elapsed, states = best_of(lambda: self.one_by_one(solve, few), self.seconds, clock)  # noqa: B023
            self.add(label, states, elapsed, len(few))
        return self.rows

    @torch.no_grad()
    def by_torchdiffeq(self, theta: np.ndarray) -> np.ndarray:
        p = torch.from_numpy(theta).unbind(-1)
        start = torch.from_numpy(self.simulator.initial())[:, None].expand(-1, len(theta))

        def field(t: Tensor, y: Tensor) -> Tensor:
            return torch.stack(rate(self.name, y, p))

        times, options = torch.from_numpy(self.simulator.times), {"step_size": self.simulator.timestep}
        states = torch_odeint(field, start, times, method="rk4", options=options)
        if self.name == "lotka_volterra":
            torch.distributions.LogNormal(states.clamp(1e-10, 1e4).log(), 0.1).sample()
        else:
            torch.distributions.Binomial(1000, (states[:, 1] / 1e6).clamp(0, 1)).sample()
        return states.permute(2, 0, 1).numpy()

    def one_by_one(self, solve: Callable[[np.ndarray], np.ndarray], theta: np.ndarray) -> np.ndarray:
        rng, found = np.random.default_rng(0), []
        for p in theta:
            found.append(solve(p))
            self.observe(found[-1], rng)
        return np.stack(found)

    def by_odeint(self, p: np.ndarray) -> np.ndarray:
        return odeint(lambda y, t: rate(self.name, y, p), self.simulator.initial(), self.simulator.times)

    def by_solve_ivp(self, p: np.ndarray) -> np.ndarray:
        times = self.simulator.times
        start, span = self.simulator.initial(), (0.0, times[-1])
        return solve_ivp(lambda t, y: rate(self.name, y, p), span, start, t_eval=times).y.T


def equations(count: int, seconds: float) -> Rows:
    return [row for model in (LotkaVolterra, SIR) for row in Comparison(model, count, seconds).run()]


# Name -> a share of the simulations that does not take long.
OTHERS = {
    "two_moons": 1.0,
    "gaussian_linear": 1.0,
    "gaussian_linear_uniform": 1.0,
    "gaussian_mixture": 1.0,
    "slcp": 1.0,
    "slcp_distractors": 0.5,
    "bernoulli_glm": 0.5,
    "lotka_volterra_jump": 0.02,
    "sir_jump": 0.1,
}


def simulators(count: int, seconds: float) -> Rows:
    rows: Rows = []
    for name, share in OTHERS.items():
        simulator, number = build(name), max(1, int(share * count))
        theta, seeds = simulator.prior.sample(number, 0), simulation_seeds(0, 0, number)
        simulator.simulate(theta[:1], seeds[:1])
        elapsed, x = best_of(lambda: simulator.simulate(theta, seeds), seconds, clock)  # noqa: B023
        row = {
            "simulator": name,
            "simulations": number,
            "failed": int(np.isnan(x).any(1).sum()),
            "values": simulator.size,
        }
        rows.append(row | {"microseconds each": 1e6 * elapsed / number})
    return rows


PARTS = {"equations": equations, "simulators": simulators}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure that is repeated")
    parser.add_argument("--quick", action="store_true", help="only show that everything runs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("inference_speed.json"))
    parser.add_argument(
        "--cpu-time", action="store_true", help="of the process, not of the clock: for busy machines, 1 thread"
    )
    options = parser.parse_args()
    if options.cpu_time:
        globals()["clock"] = time.process_time
    if options.quick:
        globals().update(BATCH=100, FEW=2)
    torch.set_num_threads(options.threads)  # governs simkit's kernels, too
    result: dict[str, Any] = {"threads": options.threads, "cpu time": options.cpu_time}
    for part in options.only:
        rows = PARTS[part](200 if options.quick else options.count, 0.0 if options.quick else options.seconds)
        print_rows(f"{part}, {options.threads} thread(s)", rows)
        result[part] = rows
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
