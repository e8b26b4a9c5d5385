"""What an inference leaves in its folder: report, pictures, samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from simkit import plotting
from simkit.files import atomic_path, write_json
from simkit.inference.calibration import Calibration
from simkit.inference.calibration.plots import expected_coverage, interval_coverage, outlier_distances, rank_difference
from simkit.inference.export import write_netcdf
from simkit.inference.infer import Inference
from simkit.inference.plots import corner, predictive_bands
from simkit.inference.priors import Array
from simkit.inference.simulator import Simulator
from simkit.inference.summary import Summary

REPORT = "report.json"
PRIOR_SAMPLES = 4000


def write_report(
    folder: Path, simulator: Simulator, done: Inference, calibration: Calibration, summary: Summary | None
) -> None:
    """Write what was done and found, as report.json."""
    report: dict[str, Any] = {"simulator": simulator.name, "posterior": done.posterior.describe()}
    report |= {"simulations": len(done.simulations), "failures": done.simulations.failures, "stopped": done.stopped}
    report |= {"rounds": [vars(r) for r in done.rounds], "calibration": calibration.to_dict()}
    report["summary"] = None if summary is None else summary.to_dict()
    write_json(folder / REPORT, report)


def write_checks(folder: Path, calibration: Calibration) -> None:
    """Draw ranks, coverage, and the observation among simulations under the prior."""
    if calibration.ranks:
        pictures: dict[str, Callable[[], Axes]] = {
            "ranks": lambda: rank_difference(calibration.ranks)[0],
            "coverage": lambda: expected_coverage(calibration.ranks),
            "intervals": lambda: interval_coverage(calibration.ranks),
        }
        for name, draw in pictures.items():
            plotting.save(draw(), folder / f"{name}.png")
    if calibration.prior_test is not None:
        plotting.save(outlier_distances(calibration.prior_test), folder / "prior_check.png")


def write_samples(
    folder: Path,
    simulator: Simulator,
    done: Inference,
    calibration: Calibration,
    samples: Array,
    observation: Array,
    seed: int,
) -> None:
    """Write samples as npz and as netCDF for ArviZ, and draw them and what they predict."""
    prior = simulator.prior
    drawn = prior.sample(PRIOR_SAMPLES, seed)
    axes = corner({"posterior": samples}, prior.names, prior.units, prior=drawn, support=prior.support())
    plotting.save(axes[0], folder / "corner.png")
    check = calibration.predictive
    predictive = None if check is None or not len(check.x) else check.x
    predicted = {} if predictive is None else {"posterior": predictive}
    if len(calibration.x) > 1 and done.posterior.amortised:
        predicted = {"prior": calibration.x, **predicted}
    if predicted:
        plotting.save(predictive_bands(predicted, simulator.observables, observation)[0], folder / "predictive.png")
    with atomic_path(folder / "samples.npz") as temporary, temporary.open("wb") as stream:
        np.savez(stream, theta=samples, names=np.array(prior.names), units=np.array(prior.units))
    write_netcdf(
        folder / "posterior.nc",
        samples,
        prior,
        simulator.observables,
        observation=observation,
        predictive=predictive,
        prior_samples=drawn,
        attributes={"method": done.posterior.method, "simulations": float(len(done.simulations))},
    )
