"""The Lennard-Jones fluid beside published values: energy and pressure, diffusion, and the structure of liquid argon.

python benchmarks/lennard_jones_nist.py [--steps 2000000] [--threads 1] [--out lennard_jones_nist.json] [--plot argon_rdf.png]

Energies and pressures: 500 atoms, truncated at rc = 3 sigma with tail corrections, as in the NVT Monte Carlo results of NIST's Standard
Reference Simulation Website (https://mmlapps.nist.gov/srs/LJ_PURE/mc.htm). Here by BAOAB with a friction of 2 and a step of 0.005 in
reduced units, from a molten lattice, a tenth of the steps before anything is measured, then every 20 steps.

Monte Carlo weighs a configuration by exp(-E/kT) with the truncated E, which falls by u(rc) with each of the n pairs that come within rc.
Dynamics do not feel that step: they sample the shifted energy E - n u(rc). Averages are therefore weighed by exp(-n u(rc)/kT), which is
exact, and compared with NIST's; the averages without weights are in the file, too. Error bars are standard errors by blocking. The
columns "apart" are in standard errors, ours and NIST's added in quadrature where NIST's is known.

Diffusion: NVE at the mean energy of those runs, beside NIST's molecular dynamics of 500 atoms at temperatures of 0.849 to 0.852
(https://mmlapps.nist.gov/srs/LJ_PURE/md.htm), which gives no error bars. Its values are those of a periodic cell of that size, as ours are.

Argon: 864 atoms at 94.4 K and 1.374 g/cm3, epsilon 120 K, sigma 3.4 angstrom, cutoff 2.25 sigma: A. Rahman, Phys. Rev. 136, A405
(1964), whose g(r) has its maxima at 3.7, 7.0 and 10.4 angstrom, and D = 2.43e-5 cm2/s.
"""

import argparse
import json
from dataclasses import dataclass, replace
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
from simkit.md.averages import BlockAverage, block_average
from simkit.md.rdf import RadialDistribution, radial_distribution
from simkit.md.transport import Diffusion, diffusion
from simkit.units import BOLTZMANN, FORCE_TO_ACCELERATION

# T*, density, U* / N, its uncertainty, p*, its uncertainty (NIST's NVT Monte Carlo); None where the uncertainty was not at hand. Taken from
# public copies: the means from two that agree, the uncertainties from the tests of HOOMD-blue.
STATES = [
    (0.85, 0.005, -5.1901e-2, 7.53e-5, 4.1003e-3, 5.05e-7),
    (0.85, 0.009, -9.3973e-2, 1.29e-4, 7.1641e-3, 2.24e-6),
    (0.85, 0.776, -5.5121, None, 6.7714e-3, None),
    (0.85, 0.820, -5.7947, None, 5.5355e-1, None),
    (0.85, 0.860, -6.0305, 2.38e-3, 1.2660, 1.36e-2),
    (0.90, 0.776, -5.4689, 4.20e-4, 2.4056e-1, 2.74e-3),
    (0.90, 0.860, -5.9753, None, 1.5781, None),
]
DIFFUSION = {0.776: 0.061, 0.820: 0.048, 0.860: 0.035}  # density: D* (NIST's molecular dynamics)
ATOMS, TIMESTEP, FRICTION, EVERY, CUTOFF = 500, 0.005, 2.0, 20, 3.0
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
        self.term, self.skin, self.steps = term, skin, 0
        self.potential = self.potential_of(term)

    def potential_of(self, term: LennardJones) -> ClassicalPotential:
        """The atoms' potential if they interact by this term."""
        return ClassicalPotential([term], cell=np.eye(3) * self.length, skin=self.skin)

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


@dataclass(frozen=True)
class Sampled:
    """A mean with its standard error: of the shifted potential that dynamics follow, and of the truncated one (``weighed``)."""

    plain: BlockAverage
    weighed: float
    weighed_error: float
    converged: bool


def averages(values: np.ndarray, steps: np.ndarray, kT: float) -> Sampled:
    """Averages of a series [T], and of the same weighed by exp(-step/kT), ``steps`` [T] being the truncated energy less the shifted."""
    weights = np.exp((steps.mean() - steps) / kT)
    weights /= weights.mean()
    mean = float((weights * values).mean())
    error = block_average(weights * (values - mean))  # of a ratio of two means, to first order
    plain = block_average(values)
    return Sampled(plain, mean, error.error, plain.converged and error.converged)


def thermodynamics(fluid: Fluid, steps: int) -> tuple[Sampled, Sampled]:
    """Energy of an atom and pressure, with the kinetic part at the temperature of the bath."""
    scheme, masses = integrators.get("baoab"), np.full(len(fluid.x), fluid.mass)
    engine = cpu.Integrator(scheme, fluid.potential, fluid.x, fluid.v, fluid.f, masses)
    engine.evaluate_forces()
    shifted = fluid.potential_of(replace(fluid.term, form="shifted", tail=False))
    energies, pressures, jumps, unused = [], [], [], np.empty_like(fluid.f)
    volume = fluid.length**3
    for _ in range(steps // EVERY):
        bath = Bath(FRICTION, fluid.kT, seed=2)
        engine.run(EVERY, timestep=TIMESTEP, first_step=fluid.steps, bath=bath)
        fluid.steps += EVERY
        energy, virial = fluid.potential.evaluate(fluid.x, fluid.f)
        energies.append(energy / len(fluid.x))
        pressures.append((len(fluid.x) * fluid.kT + np.trace(virial) / 3) / volume)
        jumps.append(energy - shifted.evaluate(fluid.x, unused)[0])  # and the tail, which is constant
    u, p = (averages(np.array(series), np.array(jumps), fluid.kT) for series in (energies, pressures))
    return u, p


def path(
    fluid: Fluid, frames: int, every: int, timestep: float, energy: float | None = None
) -> tuple[np.ndarray, float]:
    """NVE trajectory [frames, N, 3], unwrapped, without the drift of the whole; and its mean kT.

    It begins with the kinetic energy of the temperature, or with that which makes up for what the potential energy lacks of its mean.
    """
    degrees = fluid.v.size - 3
    missing = 0.0 if energy is None else energy - fluid.potential.evaluate(fluid.x, fluid.f)[0]
    fluid.v -= fluid.v.mean(axis=0)
    fluid.v *= np.sqrt((degrees * fluid.kT + 2 * missing) / (fluid.mass * (fluid.v**2).sum()))
    found, kinetic = [], []
    for _ in range(frames):
        fluid.run(every, timestep, 0.0)
        found.append(fluid.x.copy())
        kinetic.append(fluid.mass * float((fluid.v**2).sum()) / degrees)
    return np.array(found), float(np.mean(kinetic))


def state_point(row: tuple[Any, ...], steps: int) -> dict[str, Any]:
    """One line of the table."""
    temperature, density, energy, energy_error, pressure, pressure_error = row
    term = LennardJones(1.0, 1.0, CUTOFF, tail=True)
    fluid = Fluid(ATOMS, density, term, 1.0, temperature, 0.35 if density > 0.1 else 3.0)
    fluid.melt(max(steps // 20, 2000), TIMESTEP, FRICTION)
    u, p = thermodynamics(fluid, steps)
    found = {"temperature": temperature, "density": density}
    for name, ours, nist, error in (("energy", u, energy, energy_error), ("pressure", p, pressure, pressure_error)):
        found |= {
            name: ours.weighed, f"{name}_error": ours.weighed_error, f"{name}_converged": ours.converged,
            f"nist_{name}": nist, f"nist_{name}_error": error,
            f"{name}_apart": (ours.weighed - nist) / np.hypot(ours.weighed_error, error or 0.0),
            f"shifted_{name}": ours.plain.mean, f"shifted_{name}_error": ours.plain.error,
        }  # fmt: skip
    if temperature == 0.85 and density in DIFFUSION:
        frames, kT = path(fluid, max(steps // 100, 200), 20, TIMESTEP, u.plain.mean * ATOMS)
        d = diffusion(frames, 20 * TIMESTEP)
        found["diffusion_temperature"] = kT
        found |= {"diffusion": d.coefficient, "diffusion_error": d.error, "nist_diffusion": DIFFUSION[density]}
    return found


def tabulate(rows: list[dict[str, Any]]) -> Table:
    """The lines of `state_point` beside NIST's."""
    names = ("T*", "density", "U*", "NIST", "apart", "p*", "NIST", "apart", "D*", "NIST")
    table = Table(*names, title="Lennard-Jones fluid")
    for r in rows:
        cells = [f"{r['temperature']}", f"{r['density']}"]
        for name in ("energy", "pressure"):
            error = r[f"nist_{name}_error"]
            cells += [
                f"{r[name]:.6g} +- {r[f'{name}_error']:.1g}",
                f"{r[f'nist_{name}']:.6g}" + (f" +- {error:.2g}" if error else ""),
                f"{r[f'{name}_apart']:+.1f}",
            ]
        if "diffusion" in r:
            cells += [f"{r['diffusion']:.4f} +- {r['diffusion_error']:.4f}", f"{r['nist_diffusion']}"]
        table.add_row(*cells)
    return table


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
    console = Console(width=170)
    rows = []
    for k in options.states:
        rows.append(state_point(STATES[k], options.steps))
        console.print(rows[-1])
    console.print(tabulate(rows))
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
