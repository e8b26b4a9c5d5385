"""Simulators of particles, trained on 16 Lennard-Jones particles and rolled out with 256 at the same density.

python benchmarks/surrogates_particles.py [--quick] [--seeds 3] [--steps 10000] [--out surrogates_particles.json] [--plot FILE.png]

In reduced units: two dimensions, periodic, density 0.5, cutoff 2.5, forces shifted to vanish there. Training data: 40 trajectories that
start at kT = 1 and 20 at kT = 3, whose collisions are harder, 21 points each; derivatives at these points are matched. "graph-network"
learns a potential energy, "graph-network-simulator" accelerations; both have the same distances to see, the same number of training steps,
and the same integrator: velocity Verlet with a step of 0.005. So has the true system, from the same start: 256 particles that have
forgotten their lattice for 5 units of time.

Errors of energies are in units of the initial kinetic energy (the zero of the energy is arbitrary). "H" is the learned energy along the
learned motion, "E" the true energy along it. The drift is the slope of a fitted line times the length of the run. The error of g(r) is
its mean absolute difference from that of the true motion from the same start, up to r = 5, second half of the run; that of the true motion
is the difference between two stretches of it, which is the noise. Times are of the CPU.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot
from rich.console import Console
from rich.table import Table
from torch import Tensor

from simkit import integrators
from simkit.errors import GeometryError
from simkit.integrators.torch import integrate
from simkit.md.rdf import radial_distribution
from simkit.surrogates import models
from simkit.surrogates.models.graph_network import GraphNetworkSimulator, HamiltonianGraphNetwork
from simkit.surrogates.objectives import MotionObjective, ObjectiveOptions, Trainee
from simkit.surrogates.samples import Samples, single_states
from simkit.surrogates.systems.lennard_jones import LennardJonesParticles
from simkit.surrogates.systems.protocol import Protocol
from simkit.surrogates.trajectories import concatenate
from simkit.training.fit import fit
from simkit.training.options import TrainingOptions

SMALL, LARGE, TIMESTEP, EVERY, EQUILIBRATION = 16, 256, 0.005, 20, 5.0
R_MAX, BINS = 5.0, 100
SIZES: dict[str, dict[str, Any]] = {
    "graph-network": {"width": 32, "rounds": 1},
    "graph-network-simulator": {"width": 64, "rounds": 2},
}
TRUTH = "true system"
Model = HamiltonianGraphNetwork | GraphNetworkSimulator


def data(seed: int, quick: bool) -> tuple[Samples, Samples]:
    """States and derivatives of 16 particles, for training and for tests."""

    def some(temperature: float, count: int, number: int) -> Any:
        protocol = Protocol("this benchmark", {"all": count // (4 if quick else 1)}, 2.0, 21, equilibration=2.0)
        return LennardJonesParticles(SMALL, temperature=temperature).generate(protocol, 3 * seed + number)

    train, test = concatenate([some(1.0, 40, 0), some(3.0, 20, 1)]), some(1.0, 20, 2)
    first, second = (single_states(part, "canonical", torch.float32) for part in (train, test))
    return first, second


def train(name: str, parts: tuple[Samples, Samples], seed: int, epochs: int) -> tuple[Model, dict[str, float]]:
    """A trained model, with its error on the test data."""
    samples, test = parts
    given = LennardJonesParticles(SMALL).surroundings() | SIZES[name]
    model: Any = models.build(name, 2 * SMALL, seed=seed, scale=10.0, **given)
    options = TrainingOptions(
        epochs=epochs, batch_size=32, optimizer="adam", learning_rate=2e-3, ema_decay=0.99, validate_every=epochs,
        device="cpu", seed=seed,
    )  # fmt: skip
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        fit(Trainee(model), MotionObjective(ObjectiveOptions()), samples, None, options, folder)
    seconds = time.process_time() - began
    model.eval()
    found, expected = model.derivative(0.0, test.states).detach(), test.derivatives
    if expected is None:
        raise ValueError("the test data have no derivatives")
    error = (found - expected)[..., 2 * SMALL :].square().mean().sqrt()
    spread = expected[..., 2 * SMALL :].square().mean().sqrt()
    facts = {"parameters": model.num_parameters, "force_error": float(error / spread), "training_seconds": seconds}
    return model, facts


def force_of(model: Model) -> Callable[[Tensor], Tensor]:
    """Forces of a model for positions [N, 2]; all masses are 1."""
    forces = model.forces if isinstance(model, HamiltonianGraphNetwork) else model.accelerations
    return lambda x: forces(x.flatten()).view_as(x)


def true_force(system: LennardJonesParticles) -> Callable[[Tensor], Tensor]:
    """The same of the known system, compiled."""
    field, parameters = system.numba_field(), system.numba_parameters()
    state, rate = np.zeros(2 * system.dof), np.zeros(2 * system.dof)

    def force(x: Tensor) -> Tensor:
        state[: system.dof] = x.numpy().ravel()
        field(0.0, state, parameters, rate)
        return torch.from_numpy(rate[system.dof :].copy()).view_as(x)

    return force


def roll_out(force: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Tensor, float]:
    """States [T, 2 D] every 20 steps, up to the breakdown if there is one, and the seconds per step."""
    scheme = integrators.get("velocity-verlet")
    x, v = (part.reshape(-1, 2) for part in start.chunk(2))
    frames, began = [start], time.process_time()
    with torch.no_grad():
        for _ in range(steps // EVERY):
            try:
                x, v = integrate(scheme, force, x, v, masses=1.0, timestep=TIMESTEP, steps=EVERY)
            except GeometryError:
                break
            frames.append(torch.cat([x.flatten(), v.flatten()]))
    done = max(EVERY * (len(frames) - 1), 1)
    return torch.stack(frames).double(), (time.process_time() - began) / done


def pair_correlation(frames: Tensor, system: LennardJonesParticles) -> np.ndarray:
    """g(r) of particles in the plane, [BINS]."""
    places = np.zeros((len(frames), LARGE, 3))
    places[..., :2] = frames[:, : system.dof].reshape(-1, LARGE, 2).numpy()
    cell = np.diag([system.box, system.box, 1.0])
    everything = {"A": np.ones(LARGE, dtype=bool)}
    found = radial_distribution(places, cell, [True, True, False], everything, r_max=R_MAX, bins=BINS)
    return found.total * system.box**2 / (LARGE**2 * np.pi * found.distances)


def course(values: Tensor, scale: float) -> dict[str, Any]:
    """How an energy departs from its start: largest departure, its drift, and the departures themselves."""
    departure = ((values - values[0]) / scale).numpy()
    t = np.linspace(-0.5, 0.5, len(departure))
    half = len(departure) // 2
    return {
        "max": float(np.abs(departure).max()),
        "max_by_half": [float(np.abs(part).max()) for part in (departure[:half], departure[half:])],
        "drift": float(departure @ t / (t @ t)),
        "departure": departure.tolist(),
    }


def judge(frames: Tensor, system: LennardJonesParticles, reference: np.ndarray, half: int) -> dict[str, Any]:
    """Errors of a run of any kind."""
    kinetic = frames[:, system.dof :].square().sum(1) / 2
    energy = torch.cat([system.energy(part) for part in frames.split(10)])
    found: dict[str, Any] = {"steps": EVERY * (len(frames) - 1), "E": course(energy, float(kinetic[0]))}
    if len(frames) > half:
        g = pair_correlation(frames[half:], system)
        found |= {"g_error": float(np.abs(g - reference).mean()), "g": g.tolist()}
    found["momentum"] = float(frames[-1, system.dof :].reshape(-1, 2).sum(0).norm())
    return found


def one_seed(seed: int, steps: int, epochs: int, quick: bool) -> dict[str, Any]:
    """Train, roll out and judge the models, and the true system."""
    system = LennardJonesParticles(LARGE)
    initial = system.sample(1, seed)
    start = torch.from_numpy(system.integrate(initial, np.array([0.0, EQUILIBRATION]))[0, -1])
    half = steps // EVERY // 2
    true, true_seconds = roll_out(true_force(system), start, 2 * steps)
    end = steps // EVERY + 1
    reference = pair_correlation(true[half:end], system)
    later = pair_correlation(true[end + half :], system)
    runs: dict[str, Any] = {TRUTH: judge(true[:end], system, reference, half)}
    runs[TRUTH] |= {"g_error": float(np.abs(later - reference).mean()), "seconds_per_step": true_seconds}
    parts = data(seed, quick)
    for name in SIZES:
        model, facts = train(name, parts, seed, epochs)
        large = model.with_particles(LARGE, box=(system.box, system.box))
        frames, seconds = roll_out(force_of(large), start.float(), steps)
        runs[name] = facts | judge(frames, system, reference, half) | {"seconds_per_step": seconds}
        if isinstance(large, HamiltonianGraphNetwork):
            with torch.no_grad():
                learned = torch.cat([large.double().energy(part) for part in frames.split(10)])
            runs[name]["H"] = course(learned, float(start[system.dof :].square().sum() / 2))
    return runs


def median(seeds: list[dict[str, Any]], name: str, *keys: str) -> str:
    """Median and range of a number over the seeds."""
    values = []
    for seed in seeds:
        value: Any = seed[name]
        for key in keys:
            value = value.get(key) if value is not None else None
        values.append(value)
    found = [value for value in values if value is not None]
    if not found:
        return ""
    texts = [
        f"{v:,}" if isinstance(v, int) else f"{v:.2g}" for v in (statistics.median_low(found), min(found), max(found))
    ]
    return texts[0] if min(found) == max(found) else f"{texts[0]} ({texts[1]} .. {texts[2]})"


def tabulate(seeds: list[dict[str, Any]]) -> Table:
    """One line for each model, medians and ranges over the seeds."""
    rows = {
        "error of forces": ("force_error",), "largest error of H": ("H", "max"), "drift of H": ("H", "drift"),
        "largest error of E": ("E", "max"), "drift of E": ("E", "drift"), "error of g(r)": ("g_error",),
        "steps": ("steps",), "total momentum at the end": ("momentum",), "training, s": ("training_seconds",),
        "s per step": ("seconds_per_step",), "parameters": ("parameters",),
    }  # fmt: skip
    names = [TRUTH, *SIZES]
    table = Table("", *names, title=f"{LARGE} particles, trained on {SMALL}; seeds: {len(seeds)}")
    for label, keys in rows.items():
        table.add_row(label, *(median(seeds, name, *keys) for name in names))
    return table


def draw(seeds: list[dict[str, Any]], path: Path) -> None:
    """Departures of the energies over time, all seeds, and g(r) of the first."""
    matplotlib.use("Agg")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10.5, 4.3), layout="constrained")
    lines = [
        (TRUTH, "E", "black", "true motion"),
        ("graph-network", "H", "tab:blue", "graph-network: learned H"),
        ("graph-network", "E", "tab:cyan", "graph-network: true energy"),
        ("graph-network-simulator", "E", "tab:red", "graph-network-simulator: true energy"),
    ]
    for name, kind, colour, label in lines:
        for k, seed in enumerate(seeds):
            departure = np.abs(seed[name][kind]["departure"])
            t = EVERY * TIMESTEP * np.arange(len(departure))
            smooth = np.convolve(departure, np.ones(5) / 5, mode="valid")
            left.semilogy(t[2:-2], smooth, color=colour, lw=1.0, alpha=0.8, label=label if k == 0 else None)
    left.set(xlabel="time", ylabel="|change of energy| / kinetic energy", title="Energy")
    left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    r = (np.arange(BINS) + 0.5) * R_MAX / BINS
    colours = dict(zip((TRUTH, *SIZES), ("black", "tab:blue", "tab:red"), strict=True))
    for name, colour in colours.items():
        if "g" in seeds[0][name]:
            right.plot(r, seeds[0][name]["g"], color=colour, lw=2.5 if name == TRUTH else 1.2, label=name)
    right.set(xlabel="r", ylabel="g(r)", title="Pair correlation, first seed")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute: one seed, little training, a short rollout")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("surrogates_particles.json"))
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        options.seeds, options.steps, options.epochs = 1, 1000, 40
    seeds = []
    for seed in range(options.seeds):
        seeds.append(one_seed(seed, options.steps, options.epochs, options.quick))
        print(f"seed {seed} done, {time.process_time():.0f} s of the CPU", flush=True)
        facts = {"cores": os.cpu_count(), "threads": 1, "steps": options.steps, "epochs": options.epochs}
        options.out.write_text(json.dumps(facts | {"seeds": seeds}, indent=1) + "\n", encoding="utf-8")
    Console(width=140).print(tabulate(seeds))
    if options.plot:
        draw(seeds, options.plot)


if __name__ == "__main__":
    main()
