"""Running a compiled simulation many times, in threads, each with random numbers of its own.

A simulation is a plain function ``simulation(theta, k0, k1, constants, out)`` that Numba can compile: it reads parameters [D] and
constants (a vector), writes an output [K], and draws from `simkit.inference.simulators.draws` under the key (k0, k1), the two words of its
seed. So an output depends neither on how simulations are batched nor on the number of threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numba import njit, types
from numba.core.dispatcher import Dispatcher

from simkit.inference.priors import Array
from simkit.inference.simulator import Seeds
from simkit.inference.simulators.streams import key_of
from simkit.kernels.threads import run_tasks, task_count

_vector, _matrix, _word = types.float64[::1], types.float64[:, ::1], types.uint64
SIMULATION = types.void(_vector, _word, _word, _vector, _vector)
"""Numba signature of a simulation."""

LEAST = 64
"""Simulations that are worth a thread."""


@functools.cache
def _compiled(simulation: Callable[..., None]) -> Dispatcher:
    return njit(SIMULATION, cache=True, error_model="numpy")(simulation)


def _loop(simulation, task, tasks, theta, seeds, constants, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    count = len(theta)
    for i in range(task * count // tasks, (task + 1) * count // tasks):
        k0, k1 = key_of(seeds[i])
        simulation(theta[i], k0, k1, constants, out[i])


@functools.cache
def _compiled_loop() -> Dispatcher:
    arrays = _matrix, types.uint64[::1], _vector, _matrix
    signature = types.void(types.FunctionType(SIMULATION), types.int64, types.int64, *arrays)
    return njit(signature, cache=True, nogil=True, error_model="numpy")(_loop)


def run(
    simulation: Callable[..., None], theta: Array, seeds: Seeds, size: int, constants: Array | None = None
) -> Array:
    """Return the outputs [N, size] of N simulations.

    Args:
        simulation: a plain function, compiled when it is first run.
        theta: what it reads, [N, D].
        seeds: [N].
        size: K.
        constants: what all simulations read.
    """
    out = np.empty((len(theta), size))
    given = np.ascontiguousarray(theta, dtype=np.float64), np.ascontiguousarray(seeds, dtype=np.uint64)
    shared = np.zeros(0) if constants is None else np.ascontiguousarray(constants, dtype=np.float64)
    tasks, loop, one = task_count(max(1, len(theta) // LEAST)), _compiled_loop(), _compiled(simulation)
    run_tasks(lambda task: loop(one, task, tasks, *given, shared, out), tasks)
    return out
