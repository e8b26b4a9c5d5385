"""The Lennard-Jones fluid beside published values: energy and pressure, diffusion, and the structure of liquid argon.

python benchmarks/lennard_jones_nist.py [--steps 2000000] [--threads 1] [--out lennard_jones_nist.json] [--plot argon_rdf.png]

Energies and pressures: 500 atoms, truncated at 3 sigma with tail corrections, as in the NVT Monte Carlo results of NIST's Standard
Reference Simulation Website (https://mmlapps.nist.gov/srs/LJ_PURE/mc.htm). Here by BAOAB with a friction of 0.5 and a step of 0.005 in
reduced units, from a molten lattice, a tenth of the steps before anything is measured, then every 10 steps. Error bars are standard errors
by blocking. The last columns say how many standard errors the two lie apart, ours and NIST's added in quadrature where it is known.

Diffusion: NVE from the end of those runs, beside NIST's molecular dynamics of 500 atoms at temperatures of 0.849 to 0.852
(https://mmlapps.nist.gov/srs/LJ_PURE/md.htm), which gives no error bars. Its values are those of a periodic cell of that size, as ours are.

Argon: 864 atoms at 94.4 K and 1.374 g/cm3, epsilon 120 K, sigma 3.4 angstrom, cutoff 2.25 sigma: A. Rahman, Phys. Rev. 136, A405
(1964), whose g(r) has its maxima at 3.7, 7.0 and 10.4 angstrom, and D = 2.43e-5 cm2/s.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.signal import argrelmax

from simkit import integrators
from simkit.classical import ClassicalPotential, LennardJones
from simkit.integrators import Bath, cpu
from simkit.md.averages import block_average
from simkit.md.rdf import RadialDistribution, radial_distribution
from simkit.md.transport import Diffusion, diffusion
from simkit.units import BOLTZMANN, FORCE_TO_ACCELERATION

# T*, density, U* / N and its uncertainty, p* (NIST's NVT Monte Carlo, rc = 3 sigma); None where the uncertainty was not at hand
STATES = [
    (0.85, 0.009, -9.3973e-2, None, 7.1641e-3),
    (0.85, 0.776, -5.5121, 4e-4, 6.7714e-3),
    (0.85, 0.820, -5.7947, None, 5.5355e-1),
    (0.85, 0.860, -6.0305, 2.3e-4, 1.2660),
    (0.90, 0.776, -5.4689, None, 2.4056e-1),
    (0.90, 0.860, -5.9753, None, 1.5781),
]
DIFFUSION = {0.776: 0.061, 0.820: 0.048, 0.860: 0.035}  # density: D* (NIST's molecular dynamics)
ATOMS, TIMESTEP, FRICTION, EVERY = 500, 0.005, 0.5, 10
RAHMAN = {"temperature": 94.4, "density": 1.374, "peaks": [3.7, 7.0, 10.4], "diffusion": 2.43e-5}
AMU_PER_CUBIC_ANGSTROM = 1.66053906660  # g/cm3


class Fluid:
    """Atoms of one kind in a cubic cell and the machine that moves them; begins as a face-centred lattice."""

    def __init__(self, atoms: int, density: float, term: LennardJones, mass: float, kT: float, skin: float) -> None:
        side = round((atoms / 4) ** (1 / 3))
        self.length, self.mass, self.kT = float((atoms / density) ** (1 / 3)), mass, kT
        corners = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
        cells = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
        self.x = ((cells + corners + 0.25) / side * self.length).reshape(-1, 3)
        self.v = np.random.default_rng(1).normal(size=self.x.shape) * np.sqrt(kT / mass)
        self.v -= self.v.mean(axis=0)
        self.f = np.empty_like(self.x)
        self.potential = ClassicalPotential([term], cell=np.eye(3) * self.length, skin=skin)
        self.steps = 0

    def run(self, steps: int, timestep: float, friction: float) -> None:
        """NVT by BAOAB, or NVE by velocity Verlet where there is no friction."""
        scheme = integrators.get("baoab" if friction else "velocity-verlet")
        masses = np.full(len(self.x), self.mass)
        engine = cpu.Integrator(scheme, self.potential, self.x, self.v, self.f, masses)
        engine.evaluate_forces()
        bath = Bath(friction, self.kT, seed=2) if friction else None
        engine.run(steps, timestep=timestep, first_step=self.steps, bath=bath)
        self.steps += steps

    def melt(self, steps: int, timestep: float, friction: float) -> None:
        """Melt the lattice at twice the temperature, and cool down."""
        for factor in (2.0, 1.0):
            self.kT *= factor
            self.run(steps, timestep, friction)
            self.kT /= factor


def thermodynamics(fluid: Fluid, steps: int) -> tuple[Any, Any]:
    """Energy of an atom and pressure, with the kinetic part at the temperature of the bath."""
    scheme, masses = integrators.get("baoab"), np.full(len(fluid.x), fluid.mass)
    engine = cpu.Integrator(scheme, fluid.potential, fluid.x, fluid.v, fluid.f, masses)
    engine.evaluate_forces()
    energies, pressures = [], []
    volume = fluid.length**3
    for _ in range(steps // EVERY):
        bath = Bath(FRICTION, fluid.kT, seed=2)
        engine.run(EVERY, timestep=TIMESTEP, first_step=fluid.steps, bath=bath)
        fluid.steps += EVERY
        energy, virial = fluid.potential.evaluate(fluid.x, fluid.f)
        energies.append(energy / len(fluid.x))
        pressures.append((len(fluid.x) * fluid.kT + np.trace(virial) / 3) / volume)
    return block_average(energies), block_average(pressures)


def path(fluid: Fluid, frames: int, every: int, timestep: float) -> tuple[np.ndarray, float]:
    """NVE trajectory [frames, N, 3], unwrapped, without the drift of the whole; and its mean kT."""
    fluid.v -= fluid.v.mean(axis=0)
    fluid.v *= np.sqrt(fluid.kT * (fluid.v.size - 3) / (fluid.mass * (fluid.v**2).sum()))
    found, kinetic = [], []
    for _ in range(frames):
        fluid.run(every, timestep, 0.0)
        found.append(fluid.x.copy())
        kinetic.append(fluid.mass * float((fluid.v**2).sum()) / (fluid.v.size - 3))
    return np.array(found), float(np.mean(kinetic))


def state_point(row: tuple[Any, ...], steps: int) -> dict[str, Any]:
    """One line of the table."""
    temperature, density, energy, energy_error, pressure = row
    fluid = Fluid(
        ATOMS, density, LennardJones(1.0, 1.0, 3.0, tail=True), 1.0, temperature, 0.35 if density > 0.1 else 3.0
    )
    fluid.melt(max(steps // 20, 2000), TIMESTEP, FRICTION)
    u, p = thermodynamics(fluid, steps)
    found = {
        "temperature": temperature, "density": density,
        "energy": u.mean, "energy_error": u.error, "pressure": p.mean, "pressure_error": p.error,
        "converged": u.converged and p.converged,
        "nist_energy": energy, "nist_energy_error": energy_error, "nist_pressure": pressure,
        "energy_apart": (u.mean - energy) / np.hypot(u.error, energy_error or 0.0),
        "pressure_apart": (p.mean - pressure) / p.error,
    }  # fmt: skip
    if temperature == 0.85 and density in DIFFUSION:
        frames, kT = path(fluid, max(steps // 100, 200), 20, TIMESTEP)
        d = diffusion(frames, 20 * TIMESTEP)
        found["diffusion_temperature"] = kT
        found |= {"diffusion": d.coefficient, "diffusion_error": d.error, "nist_diffusion": DIFFUSION[density]}
    return found


def argon(steps: int) -> tuple[RadialDistribution, Diffusion]:
    """Rahman's liquid, in angstrom and femtoseconds."""
    kT, mass = BOLTZMANN * RAHMAN["temperature"], 39.948 / FORCE_TO_ACCELERATION  # type: ignore[operator]
    density = RAHMAN["density"] / AMU_PER_CUBIC_ANGSTROM / 39.948  # type: ignore[operator]
    fluid = Fluid(864, density, LennardJones(120 * BOLTZMANN, 3.4, 2.25 * 3.4), mass, kT, 1.1)
    fluid.melt(max(steps // 20, 2000), 10.0, 5e-4)
    frames, _ = path(fluid, max(steps // 100, 200), 20, 10.0)
    everything = {"Ar": np.ones(864, dtype=bool)}
    g = radial_distribution(
        frames[::4], np.eye(3) * fluid.length, [True] * 3, everything, r_max=fluid.length / 2, bins=240
    )
    return g, diffusion(frames, 200.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2_000_000, help="for each state; 200 times fewer frames for argon")
    parser.add_argument("--states", type=int, nargs="*", default=list(range(len(STATES))), help="rows of STATES")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("lennard_jones_nist.json"))
    parser.add_argument("--plot", type=Path, default=Path("argon_rdf.png"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=140)
    rows = []
    for k in options.states:
        rows.append(state_point(STATES[k], options.steps))
        console.print(rows[-1])
    table = Table(
        "T*", "density", "U*", "NIST", "apart", "p*", "NIST", "apart", "D*", "NIST", title="Lennard-Jones fluid"
    )
    for r in rows:
        d = (
            (f"{r['diffusion']:.4f} +- {r['diffusion_error']:.4f}", f"{r['nist_diffusion']}")
            if "diffusion" in r
            else ()
        )
        table.add_row(
            f"{r['temperature']}", f"{r['density']}", f"{r['energy']:.5f} +- {r['energy_error']:.5f}",
            f"{r['nist_energy']}", f"{r['energy_apart']:+.1f}", f"{r['pressure']:.5f} +- {r['pressure_error']:.5f}",
            f"{r['nist_pressure']}", f"{r['pressure_apart']:+.1f}", *d,
        )  # fmt: skip
    console.print(table)
    g, d = argon(max(options.steps // 10, 20_000))
    smooth = np.convolve(g.total, np.ones(5) / 5, mode="same")
    peaks = [k for k in argrelmax(smooth, order=15)[0] if smooth[k] > 1.02][:3]
    found = {
        "peaks": [float(g.distances[k]) for k in peaks], "heights": [float(g.total[k]) for k in peaks],
        "diffusion_cm2_s": 0.1 * d.coefficient, "diffusion_error": 0.1 * d.error, "rahman": RAHMAN,
    }  # fmt: skip
    console.print(found)
    options.out.write_text(
        json.dumps({"states": rows, "argon": found}, indent=1, default=float) + "\n", encoding="utf-8"
    )
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # after the choice of a backend

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    axes.plot(g.distances, g.total, label="simkit, 864 atoms, 94.4 K")
    for k, r in enumerate(RAHMAN["peaks"]):  # type: ignore[arg-type]
        axes.axvline(r, color="0.6", linestyle=":", label=None if k else "maxima, Rahman 1964")
    axes.set_xlabel("r / angstrom")
    axes.set_ylabel("g(r)")
    axes.legend()
    figure.savefig(options.plot, dpi=160)


if __name__ == "__main__":
    main()
