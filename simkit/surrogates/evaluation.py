"""How good a trained model of motion is: its derivatives and its rollouts against the true ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from simkit.errors import DataError
from simkit.surrogates import metrics
from simkit.surrogates.free_rollouts import free_rollouts
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.samples import STATES, single_states
from simkit.surrogates.state_view import StateView
from simkit.surrogates.systems.base import System
from simkit.surrogates.trajectories import Trajectories

Array = NDArray[np.float64]

THRESHOLD = 0.1
"""A rollout has diverged where its relative error is above this: where the states differ by about a fifth of their size."""
_BATCH = 10_000


@dataclass(frozen=True)
class RolloutErrors:
    """Rollouts beside the true motion. Points that a rollout does not reach are nan in ``found``.

    Attributes:
        times: [T].
        found, true: states [S, T, 2 D] in the model's coordinates.
        relative: relative errors [S, T], from 0 to 1; `simkit.surrogates.metrics.relative_error` in the coordinates of
            `StateView.compared`.
        squared: mean square errors of the states [S, T]; infinite where a rollout is not finite.
        energy, true_energy: true energy along the rollouts and along the true motion [S, T], or None where no system is known.
        blown_up: whether a rollout becomes infinite or cannot be continued, [S].
    """

    times: Array
    found: Array
    true: Array
    relative: Array
    squared: Array
    energy: Array | None
    true_energy: Array | None
    blown_up: NDArray[np.bool_]


@dataclass(frozen=True)
class Evaluation:
    """What a test found.

    Attributes:
        figures: everything that can be said in numbers; JSON has it all. None stands for values that are not finite or not known.
        rollouts: the trajectories behind them, or None where the data are single states.
    """

    figures: dict[str, Any]
    rollouts: RolloutErrors | None


def evaluate(
    model: DynamicsModel,
    test: Trajectories,
    system: System | None = None,
    *,
    times: Array | None = None,
    method: str | None = None,
    timestep: float | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    threshold: float = THRESHOLD,
    lyapunov: float | None = None,
) -> Evaluation:
    """Roll a model out from the first state of every test trajectory and compare, and compare its derivatives on all states.

    The true motion is that of the data. It is the system's, from the same states, where ``times`` are given or the data are noisy and the
    system is known.

    The figures are ``trajectories``, ``duration``, ``blown_up`` (a number of trajectories), ``derivative_mse``,
    ``relative_error`` (``geometric_mean`` over trajectories and times but the first, and the statistics of that over time alone),
    ``mse`` and ``log10_mse`` (the logarithm of its mean, as Yin et al. 2021 have it), ``divergence_time`` (with ``diverged``, a number
    of trajectories, and ``threshold``), and where a system is known ``energy_mse``, ``energy_drift`` (its magnitude per unit of time)
    and ``final_energy_error`` (relative to ``energy_scale``, `StateView.largest_potential`). Statistics are mean, median, min and max
    over all trajectories. An error that a blown-up trajectory makes infinite, or the time of one that never diverges, is None.

    Args:
        model: the model to be judged.
        test: trajectories that it was not trained on.
        system: what they are of, where it is known.
        times: [T] of the rollouts, in place of the data's.
        method, timestep, rtol, atol: of the rollouts, as for `simkit.surrogates.rollout.rollout`.
        threshold: relative error at which a rollout has diverged.
        lyapunov: largest Lyapunov exponent, 1/time, to express that time in Lyapunov times as well.

    Raises:
        DataError: if the data lack what the model's states need, or their trajectories have different times.
        ConfigError: if an argument of the rollouts does not suit the model.
    """
    cartesian = system is not None and test.info.get("coordinates") == "cartesian"
    view = StateView(model.coordinates, system, cartesian)
    figures: dict[str, Any] = {"trajectories": len(test), "derivative_mse": derivative_mse(model, test)}
    if times is None and test.q.shape[1] == 1:
        return Evaluation(figures, None)
    moments, true, controls = _true_motion(view, test, times)
    controls = controls if model.controls else None
    found = free_rollouts(
        model, true[:, 0], moments, controls=controls, method=method, timestep=timestep, rtol=rtol, atol=atol
    )
    errors = _compare(view, moments, found, true)
    figures |= _figures(errors, view.largest_potential(true), threshold)
    if lyapunov is not None:
        figures["divergence_time"]["median_in_lyapunov_times"] = _scaled(figures["divergence_time"]["median"], lyapunov)
    return Evaluation(figures, errors)


def derivative_mse(model: DynamicsModel, test: Trajectories) -> float | None:
    """Return the mean square error of the time derivatives over all states and components, or None if the data have none.

    The test loss of Greydanus et al. 2019, with angles and units as they are in the data. None also where it is not finite.
    """
    kind = STATES[model.coordinates]
    if test.dq is None or any(getattr(test, f"d{name}") is None for name in kind[1:]):
        return None
    samples = single_states(test, model.coordinates, model.dtype).to(model.unit.device)
    total, count = 0.0, 0
    with torch.no_grad():
        for indices in samples.batches(_BATCH):
            batch = samples.batch(indices)
            if batch.derivatives is None:
                return None
            control = None if batch.controls is None or not model.controls else batch.controls[:, 0]
            error = model.derivative(0.0, batch.states[:, 0], control) - batch.derivatives[:, 0]
            total += float(error.double().square().sum())
            count += error.numel()
    return metrics.finite_or_none(total / count)


def _true_motion(view: StateView, test: Trajectories, times: Array | None) -> tuple[Array, Array, Array | None]:
    """Times [T], states [S, T, 2 D] and controls [S, T, U]."""
    states = test.state(STATES[view.coordinates])
    noisy = view.system is not None and bool(test.info.get("noise"))
    moments = _common_times(test) if times is None else np.asarray(times, dtype=np.float64)
    if times is None and not noisy:
        return moments, states, test.controls
    if moments.ndim != 1 or len(moments) < 2 or not (np.diff(moments) > 0).all():
        raise DataError(f"times must be at least two that increase, [T]; found shape {moments.shape}")
    controls = test.controls if times is None or view.system is None else view.system.controls(moments)
    if controls is not None and controls.ndim == 2:
        controls = np.repeat(controls[None], len(test), axis=0)
    return moments, view.motion(states[:, 0], moments), controls


def _common_times(test: Trajectories) -> Array:
    if test.times.ndim == 1:
        return test.times
    since = test.times - test.times[:, :1]
    if not np.allclose(since, since[0], rtol=0, atol=1e-6 * np.diff(since[0]).min()):
        raise DataError(
            "rollouts are compared at the same times of all trajectories, but they differ; resample the trajectories to equal steps"
        )
    return since[0]


def _compare(view: StateView, times: Array, found: Array, true: Array) -> RolloutErrors:
    return RolloutErrors(
        times=times,
        found=found,
        true=true,
        relative=metrics.relative_error(*view.compared(found, true)),
        squared=metrics.squared_error(*view.nearest(found, true)),
        energy=view.energy(found),
        true_energy=view.energy(true),
        blown_up=np.asarray(np.isnan(found).any(axis=(1, 2))),
    )


def _figures(errors: RolloutErrors, scale: float | None, threshold: float) -> dict[str, Any]:
    """See `evaluate`."""
    means = metrics.geometric_mean(errors.relative[:, 1:])
    mse = metrics.spread(errors.squared.mean(axis=1))
    ends = metrics.time_to_divergence(errors.times, errors.relative, threshold)
    figures: dict[str, Any] = {
        "duration": float(errors.times[-1] - errors.times[0]),
        "blown_up": int(errors.blown_up.sum()),
        "relative_error": {
            "geometric_mean": float(metrics.geometric_mean(errors.relative[:, 1:].ravel())),
            **metrics.spread(means),
        },
        "mse": mse,
        "log10_mse": None if not mse["mean"] else float(np.log10(mse["mean"])),
        "divergence_time": {
            **metrics.spread(ends),
            "threshold": threshold,
            "diverged": int(np.isfinite(ends).sum()),
        },
    }
    if errors.energy is None or errors.true_energy is None or scale is None:
        return figures
    energies = errors.energy, errors.true_energy
    figures["energy_mse"] = metrics.spread(metrics.energy_mse(*energies))
    figures["energy_drift"] = metrics.spread(np.abs(metrics.energy_drift(errors.times, *energies)))
    if scale > 0:
        last = metrics.energy_error(energies[0][:, -1:], energies[1][:, -1:], scale)[:, 0]
        figures["final_energy_error"] = metrics.spread(last)
        figures["energy_scale"] = scale
    return figures


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
