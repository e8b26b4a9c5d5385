"""Rollouts and training steps of Hamiltonian networks, and ensembles of known systems, beside SciPy's and torchdiffeq's.

python benchmarks/surrogates_speed.py [--threads 1] [--quick] [--only networks ensembles training] [--out surrogates_speed.json]

networks: 1,000 trajectories of a Hamiltonian network (two hidden layers of 200 units, float64, trained by derivative matching for a short
while; the weights do not matter for the time, but decide how accurate a step is). The rows:

- scipy: what the script of Greydanus et al. does: `solve_ivp` (RK45, rtol 1e-10, SciPy's atol) for one trajectory after the other, with the
  gradient of the network by autograd for one state at a time. Measured on 20 trajectories and scaled up. Written anew for this file.
- torchdiffeq: all trajectories in one batch, by `rk4` (the 3/8 rule) and by `dopri5` with its own tolerances (1e-7 and 1e-9).
- simkit: the model's own rollout and the compiled one. The steps of `rk4` are halved until the script's accuracy is reached.

The error of each is the largest over components and times, against SciPy's DOP853 with rtol 1e-12 on ten of the trajectories.

ensembles: Lotka-Volterra and the pendulum by a Runge-Kutta method of fourth order, torchdiffeq's batched and simkit's, with the same steps.

training: derivative matching on batches of 200 states of the two-body problem with Adam, by simkit's models, and as a straightforward
script does it. Everything runs in the same number of threads, and times are the best of several runs.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from systems import best_of
from tables import print_rows
from torch import Tensor, nn
from torchdiffeq import odeint

from simkit.surrogates import systems
from simkit.surrogates.compiled import compile_model
from simkit.surrogates.models import build
from simkit.surrogates.models.base import DynamicsModel

Rows = list[dict[str, Any]]
F64 = torch.float64

clock = time.perf_counter


def matching_step(model: DynamicsModel, optimizer: torch.optim.Optimizer, states: Tensor, rates: Tensor) -> None:
    optimizer.zero_grad()
    (model.derivative(0.0, states) - rates).square().mean().backward()
    optimizer.step()


def trained(name: str, steps: int) -> tuple[DynamicsModel, np.ndarray, float]:
    """A network that has seen a system for a short while, initial states, and how long to roll out."""
    system = systems.build(name)
    data = system.generate(seed=0)
    states = torch.from_numpy(np.concatenate([data.q, data.p], axis=-1)).reshape(-1, 2 * system.dof)
    rates = system.vector_field(0.0, states)
    model = build("hnn", system.dof, dtype="float64", width=200)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(states), (200,), generator=generator)
        matching_step(model, optimizer, states[chosen], rates[chosen])
    return model, system.sample(1000, 1), 20.0 if name == "two_body" else 3.0


class Script:
    """One state at a time, as a script does it that knows no batches."""

    def __init__(self, model: DynamicsModel) -> None:
        self.network: Any = model.get_submodule("hamiltonian.network.network.layers")

    def __call__(self, t: float, state: np.ndarray) -> np.ndarray:
        x = torch.tensor(state, dtype=F64, requires_grad=True).view(1, -1)
        (gradient,) = torch.autograd.grad(self.network(x).sum(), x)
        to_q, to_p = gradient[0].chunk(2)
        return torch.cat([to_p, -to_q]).numpy()


class Comparison:
    """Rollouts of one network: what each costs, and how far it is from the reference."""

    def __init__(self, name: str, quick: bool, seconds: float) -> None:
        self.name, self.seconds, self.rows = name, seconds, Rows()
        self.model, states, duration = trained(name, 50 if quick else 2000)
        self.states, duration = (states[:64], duration / 10) if quick else (states, duration)
        self.times, self.few = np.linspace(0, duration, 51), 2 if quick else 20
        self.script = Script(self.model)
        self.exact = self.by_script(self.few // 2, method="DOP853", rtol=1e-12, atol=1e-13)

    def by_script(self, count: int, **options: Any) -> np.ndarray:
        """The first trajectories [T, count, 2D], one by one."""
        span = self.times[[0, -1]]
        found = [solve_ivp(self.script, span, x, t_eval=self.times, **options).y.T for x in self.states[:count]]
        return np.stack(found, axis=1)

    def error(self, found: np.ndarray) -> float:
        return float(np.abs(found[:, : self.exact.shape[1]] - self.exact).max())

    def add(self, label: str, found: np.ndarray, elapsed: float, measured: int) -> None:
        seconds = elapsed * len(self.states) / measured
        ratio = self.rows[0]["seconds"] / seconds if self.rows else 1.0
        row = {"system": self.name, "trajectories": len(self.states), "by": label, "error": self.error(found)}
        self.rows.append(row | {"seconds": seconds, "measured on": measured, "times faster": ratio})

    def run(self) -> Rows:
        start = clock()
        found = self.by_script(self.few, method="RK45", rtol=1e-10)
        self.add("scipy RK45, one by one", found, clock() - start, self.few)
        fast, states, times = compile_model(self.model), self.states, self.times
        substeps = 1  # as many as reach the accuracy of the script
        while substeps < 64:
            h = float(times[1] / substeps)
            tried = fast.rollout(states[: self.few], times, method="rk4", timestep=h)
            if self.error(tried) <= self.rows[0]["error"]:
                break
            substeps *= 2
        self.in_batches(h)
        count = len(states)
        elapsed, found = best_of(lambda: fast.rollout(states, times, method="rk4", timestep=h), self.seconds, clock)
        self.add(f"simkit rk4 {h:.3g}, compiled", found, elapsed, count)
        single, small = compile_model(self.model.float()), states.astype(np.float32)
        single.rollout(small[:1], times[:2], method="rk4")
        elapsed, found = best_of(lambda: single.rollout(small, times, method="rk4", timestep=h), self.seconds, clock)
        self.add(f"simkit rk4 {h:.3g}, compiled, float32", found, elapsed, count)
        return self.rows

    @torch.no_grad()
    def in_batches(self, h: float) -> None:
        """All trajectories in one batch of tensors."""
        given, moments, count = torch.from_numpy(self.states), torch.from_numpy(self.times), len(self.states)

        def field(t: Tensor, y: Tensor) -> Tensor:
            return self.model.derivative(0.0, y)

        for label, options in (
            (f"torchdiffeq rk4 {h:.3g}", {"method": "rk4", "options": {"step_size": h}}),
            ("torchdiffeq dopri5", {"method": "dopri5"}),
        ):
            elapsed, found = best_of(lambda: odeint(field, given, moments, **options), self.seconds, clock)  # noqa: B023
            self.add(label, found.numpy(), elapsed, count)
        elapsed, found = best_of(
            lambda: self.model.rollout(given, moments, method="rk4", timestep=h), self.seconds, clock
        )
        self.add(f"simkit rk4 {h:.3g}, model.rollout", found.numpy(), elapsed, count)


def networks(quick: bool, seconds: float) -> Rows:
    return [row for name in ("two_body", "pendulum") for row in Comparison(name, quick, seconds).run()]


def ensembles(quick: bool, seconds: float) -> Rows:
    rows: Rows = []
    for name in ("lotka_volterra", "pendulum"):
        system = systems.build_any(name)
        for count in (1000,) if quick else (1000, 100_000):
            steps = 10 if quick else 100
            states, times = system.sample(count, 0), np.array([0.0, 0.01 * steps])
            given, moments = torch.from_numpy(states), torch.from_numpy(times)
            with torch.no_grad():
                theirs, found = best_of(
                    lambda: odeint(system.vector_field, given, moments, method="rk4", options={"step_size": 0.01}), seconds, clock,  # noqa: B023
                )  # fmt: skip
            system.ensemble(states[:1], times, timestep=0.01)
            ours, own = best_of(lambda: system.ensemble(states, times, timestep=0.01), seconds, clock)  # noqa: B023
            exact = system.integrate(states[:100], times)[:, 1]
            row = {"system": name, "trajectories": count, "steps": steps}
            row |= {
                "torchdiffeq ns per step": 1e9 * theirs / count / steps,
                "simkit ns per step": 1e9 * ours / count / steps,
            }
            row |= {"ratio": theirs / ours, "error torchdiffeq": float(np.abs(found[1, :100].numpy() - exact).max())}
            rows.append(row | {"error simkit": float(np.abs(own[:100, 1] - exact).max())})
    return rows


def training(quick: bool, seconds: float) -> Rows:
    """A step of derivative matching; the script's network is a plain sequence of layers, its symplectic gradient a matrix product."""
    system = systems.build("two_body")
    states = torch.from_numpy(system.sample(200, 0)).float()
    rates = system.vector_field(0.0, states)
    model = build("hnn", system.dof, width=200)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    layers = nn.Sequential(nn.Linear(8, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 1, bias=False))
    script_optimizer = torch.optim.Adam(layers.parameters(), lr=1e-3)
    unit = torch.eye(4)
    symplectic = torch.cat([torch.cat([0 * unit, unit]), torch.cat([-unit, 0 * unit])], dim=1)

    def script() -> None:
        x = states.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(layers(x).sum(), x, create_graph=True)
        loss = (gradient @ symplectic - rates).pow(2).mean()
        loss.backward()
        script_optimizer.step()
        script_optimizer.zero_grad()

    row = {"batch": len(states)}
    for label, run in (("script", script), ("simkit", lambda: matching_step(model, optimizer, states, rates))):
        row[f"{label} ms"] = 1e3 * best_of(run, 0.2 if quick else 2 * seconds, clock)[0]
    return [row | {"ratio": row["script ms"] / row["simkit ms"]}]


PARTS = {"networks": networks, "ensembles": ensembles, "training": training}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure that is repeated")
    parser.add_argument("--quick", action="store_true", help="only show that everything runs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("surrogates_speed.json"))
    parser.add_argument(
        "--cpu-time", action="store_true", help="of the process, not of the clock: for busy machines, 1 thread"
    )
    options = parser.parse_args()
    if options.cpu_time:
        globals()["clock"] = time.process_time
    torch.set_num_threads(options.threads)  # governs simkit's kernels, too
    result: dict[str, Any] = {"threads": options.threads, "cpu time": options.cpu_time}
    for part in options.only:
        rows = PARTS[part](options.quick, 0.05 if options.quick else options.seconds)
        print_rows(f"{part}, {options.threads} thread(s)", rows)
        result[part] = rows
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
