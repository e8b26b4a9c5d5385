"""Whether the thermostats and barostats of simkit sample their ensembles: a Lennard-Jones fluid like argon, 64 atoms, many replicas.

python benchmarks/ensembles.py [--steps 3000] [--replicas 16] [--threads 1] [--out ensembles.json] [--figure ensembles.png]

For each ensemble at two states, two temperatures or two pressures, in one batch:

- kinetic energy: its mean against N_f kT/2, and the Kolmogorov-Smirnov distance of thinned samples from the law of chi^2;
- the ensemble check of M. R. Shirts, J. Chem. Theory Comput. 9, 909 (2013), doi:10.1021/ct300688p: the slope of ln(p_2/p_1) in the
  potential energy is 1/(k T_1) - 1/(k T_2), and in the volume (P_1 - P_2)/(k T);
- the mean pressure of the barostats, which is the target: with the centre of mass at rest, volumes have the weight V^(N-1) Z(V)
  exp(-P V/kT), Z in scaled coordinates, and the pressure with 3N - 3 degrees of freedom is kT times the derivative of ln V^(N-1) Z(V);
- by how much the conserved quantity moved, against the total energy.

Deviations are in standard errors of the means of replicas. A correct ensemble stays within about three.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy import stats

from simkit.classical import ClassicalPotential, LennardJones
from simkit.md.ensembles import Bussi, Langevin, MartynaTobiasKlein, NoseHooverChain, StochasticCell
from simkit.md.ensembles.validation import mean_and_error, two_state_slope
from simkit.md.forces_classical import ClassicalForces
from simkit.md.state import State
from simkit.md.velocities import draw_velocities
from simkit.plotting import BLUE, GREY, save, styled
from simkit.units import BOLTZMANN, GPA

EPSILON, SIGMA, ATOMS, TIMESTEP = 0.0104, 3.4, 64, 8.0
TEMPERATURES, PRESSURES = (145.0, 165.0), (0.04 * GPA, 0.06 * GPA)
MIDDLE = 150.0  # K, of the barostats
EVERY, SKIP = 25, 0.3  # steps between samples; share of the run that is left out


def ensembles(low_high: np.ndarray, temperature: np.ndarray) -> dict[str, Any]:
    """All of them, each with random numbers of its own; thermostats with temperatures of the replicas, barostats with pressures."""
    scr = (TIMESTEP, MIDDLE, low_high, 5 / GPA, 200.0, 400.0)
    mtk = (TIMESTEP, MIDDLE, low_high, 200.0, 600.0)
    return {
        "Langevin (BAOAB)": Langevin(TIMESTEP, temperature, 0.005, 5),
        "Nosé-Hoover chain": NoseHooverChain(TIMESTEP, temperature, 200.0),
        "Bussi": Bussi(TIMESTEP, temperature, 200.0, 6),
        "stochastic cell, isotropic": StochasticCell(*scr, 7),
        "stochastic cell, anisotropic": StochasticCell(*scr, 8, "anisotropic"),
        "MTK, isotropic": MartynaTobiasKlein(*mtk),
        "MTK, anisotropic": MartynaTobiasKlein(*mtk, "anisotropic"),
    }


def fluid(replicas: int, temperature: float) -> State:
    """Argon on a simple cubic lattice of the density 0.6/sigma^3, which melts at once."""
    side = (ATOMS / 0.6) ** (1 / 3) * SIGMA
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), -1).reshape(-1, 3) * side / 4
    state = State.from_atoms([Atoms(f"Ar{ATOMS}", positions=grid, cell=np.eye(3) * side, pbc=True)] * replicas)
    draw_velocities(state, temperature, 1)
    return state


def run(ensemble: Any, replicas: int, steps: int) -> dict[str, Any]:
    """Series [samples, replicas] of a simulation, and what it cost."""
    state = fluid(replicas, MIDDLE)
    model = ClassicalPotential([LennardJones(EPSILON, SIGMA, 2.2 * SIGMA, "switched")], cell=np.eye(3), skin=1.0)
    forces = ClassicalForces(model)
    forces.compute(state, energy=True, stress=ensemble.needs_stress)
    ensemble.start(state)
    series: dict[str, list[np.ndarray]] = {
        name: [] for name in ("kinetic", "potential", "volume", "pressure", "conserved")
    }
    started = time.perf_counter()
    for _ in range(steps // EVERY):
        ensemble.advance(state, forces, EVERY)
        pressure = state.pressure().diagonal(dim1=1, dim2=2).mean(1) / GPA
        looks = (state.kinetic_energy(), state.energy, state.volume(), pressure, ensemble.conserved(state))
        for kept, values in zip(series.values(), looks, strict=True):
            kept.append(values.numpy().copy())
    seconds = time.perf_counter() - started
    found: dict[str, Any] = {name: np.array(values)[int(SKIP * steps / EVERY) :] for name, values in series.items()}
    return found | {"degrees": float(state.degrees[0]), "steps_per_second": steps / seconds}


def judge(name: str, found: dict[str, Any], baric: bool) -> dict[str, Any]:
    """A row of the table: deviations in standard errors."""
    half = found["kinetic"].shape[1] // 2
    halves = (np.s_[:, :half], np.s_[:, half:])
    temperatures = (MIDDLE, MIDDLE) if baric else TEMPERATURES
    row: dict[str, Any] = {"ensemble": name}
    scaled = [2 * found["kinetic"][part] / (BOLTZMANN * t) for part, t in zip(halves, temperatures, strict=True)]
    mean, error = mean_and_error(np.concatenate(scaled, axis=1))
    row["2K/kT"], row["N_f"], row["dev K"] = mean, found["degrees"], (mean - found["degrees"]) / error
    thinned = np.concatenate([part[::8].ravel() for part in scaled])
    row["KS p"] = float(stats.kstest(thinned, stats.chi2(found["degrees"]).cdf).pvalue)
    x = found["volume" if baric else "potential"]
    slope, error = two_state_slope(x[halves[0]], x[halves[1]])
    expected = exact_slope(baric)
    row["slope/exact"], row["error"], row["dev slope"] = (
        slope / expected,
        error / abs(expected),
        (slope - expected) / error,
    )
    if baric:
        target = np.repeat(PRESSURES, half) / GPA
        mean, error = mean_and_error(found["pressure"] - target)
        row["P - target, MPa"], row["dev P"] = 1e3 * mean, mean / error
    moved = found["conserved"] - found["conserved"][0]
    energy = found["kinetic"] + found["potential"]
    row["drift meV/atom/ns"] = drift(moved) / ATOMS
    row["noise/energy"] = float((moved - moved.mean(0)).std() / energy.std())
    row["steps/s"] = found["steps_per_second"]
    return row


def exact_slope(baric: bool) -> float:
    """Of ln(p_2/p_1) in the volume or in the potential energy."""
    if baric:
        return (PRESSURES[0] - PRESSURES[1]) / (BOLTZMANN * MIDDLE)
    return (1 / TEMPERATURES[0] - 1 / TEMPERATURES[1]) / BOLTZMANN


def drift(conserved: np.ndarray) -> float:
    """Slope of the conserved quantity, meV/ns."""
    times = np.arange(len(conserved)) * EVERY * TIMESTEP * 1e-6
    return float(np.polyfit(times, conserved.mean(1) * 1e3, 1)[0])


def log_ratio(ax: Any, found: dict[str, Any], baric: bool) -> None:
    """ln(p_2/p_1) of histograms, with the errors of independent counts, and a line of the exact slope through them."""
    x = found["volume"] if baric else found["potential"]
    half = x.shape[1] // 2
    parts = (x[:, :half].ravel(), x[:, half:].ravel())
    edges = np.linspace(max(np.quantile(p, 0.02) for p in parts), min(np.quantile(p, 0.98) for p in parts), 13)
    counts = np.array([np.histogram(part, edges)[0] for part in parts])
    good = counts.min(0) > 10
    middle, counts = (edges[1:] + edges[:-1])[good] / 2, counts[:, good]
    if len(middle) == 0:
        return
    ratio, weight = np.log(counts[1] / counts[0]), 1 / (1 / counts).sum(0)
    around = np.average(middle, weights=weight), np.average(ratio, weights=weight)
    ax.errorbar(middle, ratio, weight**-0.5, fmt="o", ms=3.5, lw=1, color=BLUE)
    ax.plot(middle, around[1] + exact_slope(baric) * (middle - around[0]), "-", color=GREY, lw=1)


@styled
def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Kinetic energies against their law above, logarithms of ratios against lines of the exact slope below."""
    columns = len(results)
    figure = Figure(figsize=(2.6 * columns, 4.8), layout="constrained")
    for place, (name, found) in enumerate(results.items()):
        baric = "cell" in name or "MTK" in name
        above, below = (figure.add_subplot(2, columns, row * columns + place + 1) for row in (0, 1))
        half = found["kinetic"].shape[1] // 2
        t = np.repeat((MIDDLE, MIDDLE) if baric else TEMPERATURES, half)
        law = stats.chi2(found["degrees"])
        grid = np.linspace(law.ppf(1e-4), law.ppf(1 - 1e-4), 200)
        above.hist((2 * found["kinetic"] / (BOLTZMANN * t)).ravel(), bins=30, density=True, color=BLUE, alpha=0.4)
        above.plot(grid, law.pdf(grid), "-", color=GREY, lw=1.2)
        above.set_title(name, fontsize=10)
        above.set_xlabel("2K/kT")
        log_ratio(below, found, baric)
        below.set_xlabel("volume (Å³)" if baric else "potential energy (eV)")
        if place == 0:
            above.set_ylabel("density")
            below.set_ylabel("ln(p₂/p₁)")
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--replicas", type=int, default=16, help="at each of the two states")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("ensembles.json"))
    parser.add_argument("--figure", type=Path, default=Path("ensembles.png"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)  # governs simkit's kernels, too
    pressures, temperatures = (np.repeat(pair, options.replicas) for pair in (PRESSURES, TEMPERATURES))
    results, rows = {}, []
    for name, ensemble in ensembles(pressures, temperatures).items():
        results[name] = run(ensemble, 2 * options.replicas, options.steps)
        rows.append(judge(name, results[name], ensemble.needs_stress))
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = Table(
        title=f"Lennard-Jones fluid, {ATOMS} atoms, 2 x {options.replicas} replicas, {options.steps} steps of {TIMESTEP:g} fs"
    )
    for column in columns:
        table.add_column(column)
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells))
    Console(width=200).print(table)
    options.out.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    draw(results, options.figure)


if __name__ == "__main__":
    main()
