"""Accurate trajectories of ordinary differential equations, many initial states at a time.

`bulirsch_stoer` is compiled and is what data are made with. `dop853` is SciPy's, and shares nothing with it: the reference.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types
from numba.core.dispatcher import Dispatcher
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from simkit.errors import DataError

Array = NDArray[np.float64]

_vector = types.float64[::1]
FIELD = types.void(types.float64, _vector, _vector, _vector)
"""Numba signature of a vector field: ``field(time, state [2 D], parameters, derivative [2 D])`` writes into its last argument."""

_COLUMNS = 9
_SHRINK, _SAFETY = 0.1, 0.9


@functools.cache
def compiled_field(function: Callable[..., None]) -> Dispatcher:
    """Return a vector field, written as a plain function, compiled for `FIELD`."""
    return njit(FIELD, cache=True, error_model="numpy")(function)


def _modified_midpoint(field, t, y, first, span, substeps, parameters, work, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Gragg's method: ``substeps`` equal steps over ``span``; its error has even powers of the step only."""
    h = span / substeps
    for i in range(y.size):
        work[0, i] = y[i]
        work[1, i] = y[i] + h * first[i]
    for step in range(1, substeps):
        field(t + step * h, work[1], parameters, work[2])
        for i in range(y.size):
            following = work[0, i] + 2 * h * work[2, i]
            work[0, i] = work[1, i]
            work[1, i] = following
    field(t + span, work[1], parameters, work[2])
    for i in range(y.size):
        out[i] = 0.5 * (work[0, i] + work[1, i] + h * work[2, i])


def _extrapolated_step(field, t, y, first, span, parameters, work, table, tolerance):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Aitken-Neville extrapolation in the square of the substep; returns (column that converged or 0, error of the last)."""
    error = np.inf
    for k in range(1, _COLUMNS + 1):
        _midpoint(field, t, y, first, span, 2 * k, parameters, work, work[3])
        for i in range(y.size):
            value = work[3, i]
            for j in range(1, k):
                below = table[j - 1, i]
                table[j - 1, i] = value
                ratio = k / (k - j)
                value = value + (value - below) / (ratio * ratio - 1)
            table[k - 1, i] = value
        if k > 2:
            error = 0.0
            for i in range(y.size):
                scale = tolerance[1] + tolerance[0] * max(abs(y[i]), abs(table[k - 1, i]))
                difference = abs(table[k - 1, i] - table[k - 2, i]) / scale
                if not np.isfinite(difference):  # max() would let NaN through
                    return 0, np.inf
                error = max(error, difference)
            if error <= 1:
                return k, error
    return 0, error


def _run(field, states, times, parameters, tolerance, maximum, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Write ``out[sample, time]``; return the number of the first sample that failed, or -1."""
    size = states.shape[1]
    y, first = np.empty(size), np.empty(size)
    work, table = np.empty((4, size)), np.empty((_COLUMNS, size))
    for sample in range(states.shape[0]):
        y[:] = states[sample]
        out[sample, 0] = y
        t = times[0]
        trial = (times[-1] - times[0]) / max(times.size - 1, 1)
        for point in range(1, times.size):
            steps = 0
            while t < times[point]:
                steps += 1
                if steps > maximum:
                    return sample
                rest = times[point] - t
                last = trial >= rest * (1 - 1e-12)
                span = rest if last else trial
                field(t, y, parameters, first)
                column, error = _step(field, t, y, first, span, parameters, work, table, tolerance)
                if column == 0:
                    order = 2 * _COLUMNS - 1
                    factor = _SAFETY * error ** (-1.0 / order) if np.isfinite(error) else _SHRINK
                    trial = span * max(_SHRINK, min(0.7, factor))
                    continue
                y[:] = table[column - 1]
                t = times[point] if last else t + span
                # The cost per unit of time is least where five to seven columns are used.
                factor = 1.5 if column <= 5 else (1.0 if column <= 7 else 0.7)
                if not last or column > 7:
                    trial = span * factor
                elif column <= 5:
                    trial = max(trial, span * factor)
            out[sample, point] = y
    return -1


_midpoint = njit(cache=True, error_model="numpy")(_modified_midpoint)
_step = njit(cache=True, error_model="numpy")(_extrapolated_step)


@functools.cache
def _compiled_run() -> Dispatcher:
    field = types.FunctionType(FIELD)
    arrays = types.float64[:, ::1], _vector, _vector, _vector, types.int64, types.float64[:, :, ::1]
    return njit(types.int64(field, *arrays), cache=True, nogil=True, error_model="numpy")(_run)


def bulirsch_stoer(
    field: Dispatcher,
    parameters: Array,
    states: Array,
    times: Array,
    *,
    rtol: float = 1e-12,
    atol: float = 1e-12,
    maximum: int = 100_000,
) -> Array:
    """Integrate by the extrapolated midpoint rule with adaptive order (up to 18) and step (Hairer, Norsett and Wanner 1993, II.9).

    Each state has its own steps, and all of them end on the times asked for: nothing is interpolated.

    Args:
        field: a vector field from `compiled_field`.
        parameters: its parameters, a vector.
        states: initial states [S, 2 D].
        times: [T], increasing; the states are those at ``times[0]``.
        rtol: bound on the error of a step, relative to each component.
        atol: added to it; the larger of the two counts.
        maximum: steps allowed between two times.

    Returns:
        [S, T, 2 D].

    Raises:
        DataError: if a trajectory needs more steps than allowed: a collision, or an orbit that leaves to infinity.
    """
    out = np.empty((states.shape[0], times.size, states.shape[1]))
    arrays: list[Any] = [np.ascontiguousarray(a, dtype=np.float64) for a in (states, times, parameters)]
    failed = _compiled_run()(field, *arrays, np.array([rtol, atol]), maximum, out)
    if failed >= 0:
        raise DataError(
            f"trajectory {failed} needs more than {maximum} steps between two times: it meets a singularity or is "
            "unbounded; choose other initial states, shorter times or a larger tolerance"
        )
    return out


def dop853(field: Dispatcher, parameters: Array, states: Array, times: Array, *, rtol: float = 1e-10) -> Array:
    """Integrate with SciPy's Runge-Kutta method of order 8 (absolute tolerance 1e-12), one state after the other.

    Returns:
        [S, T, 2 D]. Arguments and errors as for `bulirsch_stoer`.
    """

    def derivative(t: float, y: Array) -> Array:
        out = np.empty_like(y)
        field(t, y, parameters, out)
        return out

    found = np.empty((states.shape[0], times.size, states.shape[1]))
    for sample, state in enumerate(states):
        if times.size == 1:
            found[sample, 0] = state
            continue
        result = solve_ivp(derivative, (times[0], times[-1]), state, "DOP853", times, rtol=rtol, atol=1e-12)
        if not result.success:
            raise DataError(f"trajectory {sample}: {result.message}")
        found[sample] = result.y.T
    return found
