"""Argon: simulations of the Lennard-Jones fluid for the inference of epsilon and sigma, a simulated observation, and the real liquid's.

python benchmarks/inference_argon.py [--state yarnell] [--simulations 200] [--atoms 108] [--steps 3000] [--threads 1] [--seed 0]
    [--store argon_simulations] [--out inference_argon.json]

States: "rahman", 94.4 K and 1.374 g/cm3 (A. Rahman, Phys. Rev. 136, A405 (1964)), and "yarnell", 85 K and 0.02125 atoms per cubic
angstrom (J. L. Yarnell, M. J. Katz, R. G. Wenzel, S. H. Koenig, Phys. Rev. A 7, 2130 (1973)), where g(r) was measured by neutrons.

The real liquid's values:
- g(r): a curve digitised from the figure of Yarnell et al., averaged over the bins; good to about 0.05, on the steep rise 0.1;
- pressure, and energy beyond that of an ideal gas: equation of state of C. Tegeler, R. Span, W. Wagner, J. Phys. Chem. Ref. Data 28, 779
  (1999); at these densities one percent of density is worth about 50 bar;
- viscosity, for the correction of diffusion in a periodic cell: E. W. Lemmon, R. T. Jacobsen, Int. J. Thermophys. 25, 21 (2004).
Rahman's D = 2.43e-5 cm2/s is that of his simulation, not of the real liquid.

What is printed: seconds per simulation, failures, and how far both observations lie from the simulations, in their standard deviations;
then epsilon and sigma inferred from each of them by npe (an ensemble of three) with its calibration, and for the simulated one by SMC ABC
with as many simulations and by sbi's own NPE from the same simulations, with its defaults.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from simkit import plotting
from simkit.inference.calibration import calibrate
from simkit.inference.calibration.plots import rank_difference
from simkit.inference.infer import infer
from simkit.inference.plots import corner, predictive_bands
from simkit.inference.simulations import Simulations, simulate
from simkit.inference.simulator import simulation_seeds
from simkit.inference.simulators.fluids import LennardJonesFluid
from simkit.inference.summary import summarise

TRUTH = {"epsilon": 120.0, "sigma": 3.4}
SAMPLES = 4000
OBSERVABLES = ("rdf", "pressure", "diffusion", "energy")
STATES: dict[str, dict[str, Any]] = {
    "rahman": {"temperature": 94.4, "density": 1.374, "viscosity": 0.2309, "real": {"pressure": 72.8, "energy": -58.51}},
    "yarnell": {
        "temperature": 85.0,
        "density": 1.4096,
        "viscosity": 0.2796,
        "real": {
            "pressure": 1.2,
            "energy": -60.74,
            # 27 bins from 3 to 8.4 angstrom; below 3 the measured curve is ripples of its Fourier transform
            "rdf": [
                0.01, 0.74, 2.28, 2.99, 2.40, 1.66, 1.25, 0.92, 0.72, 0.63, 0.58, 0.58, 0.62, 0.70, 0.81, 0.91, 1.04, 1.16,
                1.24, 1.27, 1.26, 1.22, 1.15, 1.05, 0.97, 0.90, 0.85,
            ],
        },
    },
}  # fmt: skip
"""K, g/cm3, mPa s; bar, meV per atom."""


def fluid(
    state: str, observables: Sequence[str] = OBSERVABLES, atoms: int = 108, steps: int = 3000
) -> LennardJonesFluid:
    """Return the simulator at a state, with the prior of `LennardJonesFluid`."""
    here = STATES[state]
    return LennardJonesFluid(
        fixed={"temperature": here["temperature"]}, density=here["density"], viscosity=here["viscosity"],
        observables=observables, atoms=atoms, steps=steps,
    )  # fmt: skip


def part(simulator: LennardJonesFluid, simulations: Simulations, names: Sequence[str]) -> Simulations:
    """Return simulations with some of the observables: those that a simulator of these alone gives for the same seeds."""
    values = simulator.split(simulations.x)
    columns = [values[name].reshape(len(simulations), -1) for name in names]
    return Simulations(simulations.theta, np.concatenate(columns, axis=1), simulations.seconds)


def simulated_observation(simulator: LennardJonesFluid, seed: int) -> dict[str, np.ndarray]:
    """Return what the simulator gives at `TRUTH`, from a stream of its own."""
    theta = np.array([[TRUTH[name] for name in simulator.prior.names]])
    return {
        name: value[0]
        for name, value in simulator.split(simulator.simulate(theta, simulation_seeds(seed + 1, 0, 1))).items()
    }


def compare(
    simulator: LennardJonesFluid, simulations: Simulations, observations: Mapping[str, Mapping[str, Any]]
) -> Table:
    """Say where observations lie among the simulations: of a series, the greatest deviation."""
    valid = simulations.select(simulations.valid)
    table = Table("observable", "simulated", *observations, title="(value - mean) / standard deviation over the prior")
    for name, values in simulator.split(valid.x).items():
        mean, spread = values.mean(axis=0), values.std(axis=0)
        cells = []
        for found in observations.values():
            z = (np.asarray(found[name]) - mean) / np.maximum(spread, 1e-12) if name in found else np.array([np.nan])
            cells.append(f"{np.ravel(z)[np.abs(z).argmax()]:+.2f}" if name in found else "")
        low, high = (
            np.percentile(values.reshape(len(valid), -1)[:, :1], [5, 95]) if values.ndim == 1 else (np.nan, np.nan)
        )
        table.add_row(name, f"{low:.3g} to {high:.3g}" if values.ndim == 1 else "series", *cells)
    return table


def by_npe(
    simulator: LennardJonesFluid, simulations: Simulations, observation: np.ndarray, tests: Simulations, out: Path
) -> dict[str, Any]:
    """Infer from simulations that were run, check on others, and draw."""
    started = time.perf_counter()
    done = infer(simulator, observation, method="npe", budget=len(simulations), seed=1, simulations=simulations)
    samples = done.posterior.sample(SAMPLES, seed=1)
    seconds = time.perf_counter() - started
    checks = calibrate(done.posterior, simulator, count=len(tests), tests=tests, predictive=60, seconds=300.0, seed=2)
    summary = summarise(samples, simulator.prior)
    out.mkdir(parents=True, exist_ok=True)
    drawn = simulator.prior.sample(SAMPLES, 3)
    prior = simulator.prior
    plotting.save(corner({"npe": samples}, prior.names, prior.units, prior=drawn)[0], out / "corner.png")
    if checks.ranks:
        plotting.save(rank_difference(checks.ranks)[0], out / "ranks.png")
    if checks.predictive is not None and len(checks.predictive.x):
        bands = {"prior": tests.x[tests.valid], "posterior": checks.predictive.x}
        plotting.save(predictive_bands(bands, simulator.observables, observation)[0], out / "predictive.png")
    return {
        "rows": summary.rows(), "seconds": seconds, "verdicts": checks.verdicts(), "calibrated": checks.calibrated,
        "misspecified": checks.misspecified,
    }  # fmt: skip


def by_smc(simulator: LennardJonesFluid, observation: np.ndarray, budget: int) -> dict[str, Any]:
    """Infer by SMC ABC, which runs simulations of its own."""
    started = time.perf_counter()
    done = infer(simulator, observation, method="smc_abc", budget=budget, seed=1)
    samples = done.posterior.sample(SAMPLES, seed=1)
    seconds = time.perf_counter() - started
    rows = summarise(samples, simulator.prior).rows()
    return {"rows": rows, "seconds": seconds, "simulations": len(done.simulations)}


def by_sbi(simulator: LennardJonesFluid, simulations: Simulations, observation: np.ndarray) -> dict[str, Any]:
    """Infer by sbi's NPE as its first tutorial does, from simulations that were run."""
    from sbi.inference import NPE
    from sbi.utils import BoxUniform

    low, high = simulator.prior.support()
    valid = simulations.select(simulations.valid)
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        trainer = NPE(prior=BoxUniform(torch.tensor(low).float(), torch.tensor(high).float()), show_progress_bars=False)
        trainer.append_simulations(torch.tensor(valid.theta).float(), torch.tensor(valid.x).float()).train()
        posterior = trainer.build_posterior()
        seen = torch.tensor(observation).float()
        samples = posterior.sample((SAMPLES,), x=seen, show_progress_bars=False).double().numpy()
    seconds = time.perf_counter() - started
    return {"rows": summarise(samples, simulator.prior).rows(), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", choices=list(STATES), default="yarnell")
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--tests", type=int, default=200)
    parser.add_argument("--atoms", type=int, default=108)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, default=Path("argon_simulations"))
    parser.add_argument("--out", type=Path, default=Path("inference_argon.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=140)
    simulator = fluid(options.state, atoms=options.atoms, steps=options.steps)
    observation = simulated_observation(simulator, options.seed)  # also compiles
    clock, cpu = time.perf_counter(), time.process_time()
    simulations = simulate(simulator, options.simulations, seed=options.seed, store=options.store)
    wall, work = time.perf_counter() - clock, time.process_time() - cpu
    each = float(simulations.seconds.mean())
    console.print(
        f"{len(simulations)} simulations of {options.atoms} atoms, {simulations.failures} failed; {each:.3f} s each when they ran, "
        f"{900 / each:.0f} in 15 minutes; this call took {wall:.1f} s, {work:.1f} s of processor time"
    )
    real = STATES[options.state]["real"]
    console.print(compare(simulator, simulations, {"at the truth": observation, "real liquid": real}))
    found = {
        "state": options.state, "atoms": options.atoms, "steps": options.steps, "simulations": len(simulations),
        "failures": simulations.failures, "seconds_each": each, "wall": wall, "processor": work, "truth": TRUTH,
        "observation": {name: np.asarray(value).tolist() for name, value in observation.items()}, "real": real,
    }  # fmt: skip
    real_names = [name for name in OBSERVABLES if name in real]
    tests = simulate(simulator, options.tests, seed=options.seed + 77, store=options.store.with_name("argon_tests"))
    known = simulator.observation({name: np.asarray(value) for name, value in observation.items()})
    liquid = fluid(options.state, real_names, options.atoms, options.steps)
    measured = liquid.observation({name: np.asarray(real[name]) for name in real_names})
    pictures = options.out.parent / "inference_argon"
    found["inference"] = {
        "simulated": by_npe(simulator, simulations, known, tests, pictures / "simulated"),
        "real": by_npe(
            liquid, part(simulator, simulations, real_names), measured, part(simulator, tests, real_names),
            pictures / "real",
        ),
        "sbi": by_sbi(simulator, simulations, known),
        "smc_abc": by_smc(simulator, known, options.simulations),
    }  # fmt: skip
    for name, result in found["inference"].items():
        console.print(f"{name}: {result['seconds']:.0f} s", *(" ".join(row) for row in result["rows"]), sep="\n  ")
        console.print(*result.get("verdicts", ()), sep="\n")
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
