"""Splitting integrators on a CPU, compiled by Numba: any scheme, in place on the caller's arrays.

All that happens between two evaluations of the forces is one pass over the atoms. A pass takes blocks of atoms that fit the cache and
applies its operators to a block one after the other, each as a loop of vector instructions: memory is read and written once per pass.

Atoms are cut into one task per thread. No operator mixes atoms and no random number depends on the task, so that results are the same
for any number of threads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from numba.core.dispatcher import Dispatcher
from numpy.typing import ArrayLike, NDArray

from simkit.errors import ConfigError
from simkit.integrators.bath import Bath
from simkit.integrators.philox import four_normals, words_of_key
from simkit.integrators.program import (
    DRIFT,
    KICK,
    Program,
    check_components,
    check_heat,
    check_offsets,
    check_run,
    check_state,
    inverse_masses,
    noise_factors,
)
from simkit.integrators.scheme import Scheme
from simkit.kernels.threads import task_count

BLOCK = 256  # atoms: positions, velocities, forces and masses of a block in three dimensions are 24 kB
SCRATCH = 4 * BLOCK  # random numbers of a block
TASK = 4096  # atoms that are worth a thread of their own
Array = NDArray[Any]

# What is cached on disk is compiled again when this file changes, but not when philox.py does: save this one, too.
# Indices are unsigned below: a signed one may be negative and count from the end, and no loop over it becomes vector instructions.
_compile = functools.partial(njit, nogil=True, error_model="numpy")


@_compile(cache=True, forceinline=True)
def _add_kinetic_energy(heat, v, inverse, start, end, half):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """Add ``half`` m v^2 of each component; atoms of infinite mass are left out."""
    for k in range(np.uintp(start), np.uintp(end)):
        if inverse[k] > 0:
            heat[k] += half * np.float64(v[k]) * np.float64(v[k]) / np.float64(inverse[k])


@_compile(cache=True)
def _noise(  # type: ignore[no-untyped-def]  # pragma: no cover
    mix, stream, step, start, end, width, v, inverse, atom, replica, place, key_0, key_1, heat, scratch
):
    """The noise operator on the atoms of a block."""
    if len(heat) > 0:
        _add_kinetic_energy(heat, v, inverse, start * width, end * width, -0.5)
    low, high = np.uint64(step & 0xFFFFFFFF), np.uint64((step >> 32) | (stream << 16))
    first, count, components = np.uintp(start), np.uintp(end - start), np.uintp(width)
    one, two, three, four = np.uintp(1), np.uintp(2), np.uintp(3), np.uintp(4)
    for i in range(count):
        a, b, c, d = four_normals(np.uint64(atom[first + i]), np.uint64(replica[first + i]), low, high, key_0, key_1)
        j = four * i
        scratch[j], scratch[j + one], scratch[j + two], scratch[j + three] = a, b, c, d
    decay, spread = mix[0, stream, 0], mix[1, stream, 0]
    for i in range(count):
        if mix.shape[2] > 1:  # each replica has its own
            r = np.uintp(place[first + i])
            decay, spread = mix[0, stream, r], mix[1, stream, r]
        k = (first + i) * components
        scale = spread * math.sqrt(inverse[k])
        for n in range(components):
            v[k + n] = decay * v[k + n] + scale * scratch[four * i + n]
    if len(heat) > 0:
        _add_kinetic_energy(heat, v, inverse, start * width, end * width, 0.5)


# Inlined: a call would count references to each array up and down, which costs more than a small system's step.
@_compile(cache=True, forceinline=True)
def _pass(  # type: ignore[no-untyped-def]  # pragma: no cover
    code, first, last, step, start, end, scratch, width, x, v, f, inverse, mix, atom, replica, place, key_0, key_1, heat
):
    """Apply the operators ``first`` to ``last`` of the code to the atoms ``start`` to ``end``."""
    for lo in range(start, end, BLOCK):
        hi = min(lo + BLOCK, end)
        for op in range(first, last):
            time = code[op].time
            if code[op].code == KICK:
                for k in range(np.uintp(lo * width), np.uintp(hi * width)):
                    v[k] += time * inverse[k] * f[k]
            elif code[op].code == DRIFT:
                for k in range(np.uintp(lo * width), np.uintp(hi * width)):
                    x[k] += time * v[k]
            else:
                now = step + code[op].later
                _noise(
                    mix, code[op].stream, now, lo, hi, width, v, inverse, atom, replica, place, key_0, key_1, heat,
                    scratch,
                )  # fmt: skip


@_compile(cache=True, parallel=True)
def _pass_parallel(  # type: ignore[no-untyped-def]  # pragma: no cover
    code, first, last, step, start, end, scratch, width, x, v, f, inverse, mix, atom, replica, place, key_0, key_1, heat
):
    """The same in as many tasks as there is scratch for."""
    tasks = len(scratch) // SCRATCH
    for task in prange(tasks):
        lo, hi = start + task * (end - start) // tasks, start + (task + 1) * (end - start) // tasks
        own = scratch[task * SCRATCH : (task + 1) * SCRATCH]
        _pass(
            code, first, last, step, lo, hi, own, width, x, v, f, inverse, mix, atom, replica, place, key_0, key_1, heat
        )


@functools.lru_cache(maxsize=32)
def _loop_over_steps(force: Dispatcher, parallel: bool) -> Any:
    """The loop for a compiled force function that sees all atoms."""
    advance = _pass_parallel if parallel else _pass

    @_compile
    def loop(code, bounds, first_step, steps, evaluate, scratch, positions, forces, arrays, arguments):  # type: ignore[no-untyped-def]  # pragma: no cover
        n, end = len(positions), first_step + steps
        if evaluate:
            force(positions, forces, *arguments)
        for step in range(first_step, end):
            for k in range(1 if step > first_step else 0, len(bounds) - 2):
                if k > 0:
                    force(positions, forces, *arguments)
                joined = k == len(bounds) - 3 and step + 1 < end
                first, last = bounds[k], bounds[k + 2 if joined else k + 1]
                advance(code, first, last, step, 0, n, scratch, *arrays)

    return loop


@functools.lru_cache(maxsize=32)
def _loop_over_replicas(force: Dispatcher, parallel: bool) -> Any:
    """The loop for a compiled force function of one replica: each runs all its steps while it lies in the cache."""

    @_compile
    def one(r, code, bounds, first_step, steps, evaluate, scratch, positions, forces, offsets, arrays, arguments):  # type: ignore[no-untyped-def]  # pragma: no cover
        lo, hi, end = offsets[r], offsets[r + 1], first_step + steps
        own_x, own_f = positions[lo:hi], forces[lo:hi]
        if evaluate:
            force(r, own_x, own_f, *arguments)
        for step in range(first_step, end):
            for k in range(1 if step > first_step else 0, len(bounds) - 2):
                if k > 0:
                    force(r, own_x, own_f, *arguments)
                joined = k == len(bounds) - 3 and step + 1 < end
                first, last = bounds[k], bounds[k + 2 if joined else k + 1]
                _pass(code, first, last, step, lo, hi, scratch, *arrays)

    @njit(nogil=True, error_model="numpy", parallel=parallel)
    def loop(code, bounds, first_step, steps, evaluate, scratch, positions, forces, offsets, arrays, arguments):  # type: ignore[no-untyped-def]  # pragma: no cover
        tasks, replicas = len(scratch) // SCRATCH, len(offsets) - 1
        for task in prange(tasks):
            own = scratch[task * SCRATCH : (task + 1) * SCRATCH]
            for r in range(task * replicas // tasks, (task + 1) * replicas // tasks):
                one(r, code, bounds, first_step, steps, evaluate, own, positions, forces, offsets, arrays, arguments)

    return loop


class Integrator:
    """A scheme bound to the arrays that it moves.

    The forces are part of the state. A scheme with ``scheme.starts_with_forces`` reads them before it calls ``force``: they must belong
    to the positions when `run` is called, as they do after every run and after `evaluate_forces`. The other schemes evaluate them
    first, and leave those of the last evaluation behind, which belong to earlier positions.

    Units are the caller's: mass times velocity^2 must be an energy, force an energy over a length. Masses in amu become
    eV fs^2/angstrom^2 when divided by `simkit.units.FORCE_TO_ACCELERATION`; then positions are in angstrom, velocities in angstrom/fs,
    forces in eV/angstrom, kT in eV and times in fs.
    """

    def __init__(
        self,
        scheme: Scheme,
        force: Callable[..., Any],
        positions: Any,
        velocities: Any,
        forces: Any,
        masses: ArrayLike,
        *,
        offsets: ArrayLike | None = None,
        arguments: tuple[Any, ...] = (),
        one_replica: bool = False,
        heat: Any = None,
    ) -> None:
        """Bind the arrays.

        Args:
            scheme: what to run, such as ``simkit.integrators.get("baoab")``.
            force: fills the forces from the positions, as ``force(positions, forces, *arguments)``. A function compiled by Numba's njit
                is called from the compiled loop; any other callable from Python, with the arrays as they were given here. For a few
                atoms the call itself counts: ``njit(forceinline=True)`` leaves it out.
            positions, velocities, forces: [N, D] NumPy arrays or CPU tensors, float32 or float64, contiguous; they are changed in place.
            masses: [N], positive; an infinite mass keeps its velocity, so that an atom at rest is frozen.
            offsets: [B + 1], where the atoms of each replica begin, and N; by default all atoms are one replica.
            arguments: passed on to ``force``. For a compiled function: arrays, numbers and tuples of them.
            one_replica: whether ``force`` knows one replica only, ``force(replica, positions, forces, *arguments)`` with the replica's
                place in the batch and its rows of the arrays. It must be compiled. Replicas then run one after the other, each all steps.
            heat: [N, D] float64; the noise adds to it the kinetic energy that it gives to each component. None if nobody asks.

        Raises:
            ConfigError: if an array is not usable or does not fit the others.
        """
        self.scheme = scheme
        self._force, self._arguments = force, arguments
        self._compiled = isinstance(force, Dispatcher)
        if one_replica and not self._compiled:
            raise ConfigError("a force of one replica is called from compiled code only: decorate it with numba.njit")
        self._one_replica = one_replica
        self._given = (positions, forces)
        arrays = {"positions": positions, "velocities": velocities, "forces": forces}
        self._x, v, self._f = (_writable(name, array) for name, array in arrays.items())
        atoms, width = check_state(positions=self._x, velocities=v, forces=self._f)
        if np.may_share_memory(self._x, v) or np.may_share_memory(self._x, self._f) or np.may_share_memory(v, self._f):
            raise ConfigError("positions, velocities and forces must not share memory")
        check_components(scheme, width)
        self._heat = np.empty(0)
        if heat is not None:
            check_heat(heat, self._x.shape)
            self._heat = _writable("heat", heat).reshape(-1)
        self._offsets = check_offsets(offsets, atoms)
        sizes = np.diff(self._offsets)
        place = np.repeat(np.arange(len(sizes)), sizes) if scheme.stochastic else np.empty(0, dtype=np.int64)
        within = (np.arange(atoms) - np.repeat(self._offsets[:-1], sizes)) if scheme.stochastic else place
        self._place, self._atom = place.astype(np.int32), within.astype(np.uint32)
        inverse = np.repeat(inverse_masses(masses, atoms), width).astype(v.dtype)
        self._flat = (width, self._x.reshape(-1), v.reshape(-1), self._f.reshape(-1), inverse)
        self._program = Program.of(scheme)

    def evaluate_forces(self) -> None:
        """Fill the forces from the positions."""
        self._advance(self._code(0.0), self._no_noise(), 0, 0, True)

    def run(self, steps: int, *, timestep: float, first_step: int = 0, bath: Bath | None = None) -> None:
        """Advance the arrays.

        Several runs give bit for bit what one run of all steps does, if ``first_step`` counts on.

        Args:
            steps: how many.
            timestep: may be negative without noise.
            first_step: number of steps done before; random numbers depend on it.
            bath: for schemes with noise, and only for these.

        Raises:
            ConfigError: if a value is not usable.
        """
        check_run(self.scheme, timestep, steps, first_step, bath)
        noise = self._no_noise() if bath is None else self._noise(timestep, bath)
        self._advance(self._code(timestep), noise, steps, first_step, False)

    def _code(self, timestep: float) -> NDArray[np.void]:
        """The program as records; the coefficients are times, in the type of the state."""
        program = self._program
        fields = [("code", np.int64), ("time", self._x.dtype), ("stream", np.int64), ("later", np.int64)]
        code = np.empty(len(program.codes), dtype=np.dtype(fields, align=True))
        code["code"], code["time"] = program.codes, timestep * program.coefficients
        code["stream"], code["later"] = program.streams, program.later
        return code

    def _no_noise(self) -> tuple[Any, ...]:
        empty = np.empty(0, dtype=np.uint32)
        return np.empty((2, 0, 1)), self._atom, empty, self._place, np.uint64(0), np.uint64(0), self._heat

    def _noise(self, timestep: float, bath: Bath) -> tuple[Any, ...]:
        """What `_noise` needs: factors [2, S, B or 1], atoms, replicas and their places [N], the two words of the key, and the heat."""
        factors, names = noise_factors(self.scheme, timestep, bath, len(self._offsets) - 1)
        key = map(np.uint64, words_of_key(bath.seed))
        return factors, self._atom, names[self._place], self._place, *key, self._heat

    def _advance(
        self, code: NDArray[np.void], noise: tuple[Any, ...], steps: int, first_step: int, evaluate: bool
    ) -> None:
        arrays, bounds, atoms = self._flat + noise, self._program.bounds, len(self._x)
        most = len(self._offsets) - 1 if self._one_replica else -(-atoms // TASK)
        tasks = task_count(most)
        scratch = np.empty(tasks * SCRATCH)
        head = (code, bounds, first_step, steps, evaluate, scratch, self._x, self._f)
        if self._one_replica:
            _loop_over_replicas(self._force, tasks > 1)(*head, self._offsets, arrays, self._arguments)
        elif self._compiled:
            _loop_over_steps(self._force, tasks > 1)(*head, arrays, self._arguments)
        else:
            self._loop_in_python(_pass_parallel if tasks > 1 else _pass, *head[:6], arrays)

    def _loop_in_python(
        self,
        advance: Callable[..., None],
        code: NDArray[np.void],
        bounds: NDArray[np.int64],
        first_step: int,
        steps: int,
        evaluate: bool,
        scratch: Array,
        arrays: tuple[Any, ...],
    ) -> None:
        """The loop of `_loop_over_steps` for a force function in Python."""
        atoms, end = len(self._x), first_step + steps
        if evaluate:
            self._force(*self._given, *self._arguments)
        for step in range(first_step, end):
            for k in range(1 if step > first_step else 0, len(bounds) - 2):
                if k > 0:
                    self._force(*self._given, *self._arguments)
                joined = k == len(bounds) - 3 and step + 1 < end
                advance(code, bounds[k], bounds[k + 1 + joined], step, 0, atoms, scratch, *arrays)


def _writable(name: str, array: Any) -> Array:
    """A view of an array that shares its memory."""
    if isinstance(array, torch.Tensor) and array.device.type == "cpu" and not array.requires_grad:
        array = array.numpy()
    if not isinstance(array, np.ndarray):
        raise ConfigError(f"{name} must be a NumPy array or a tensor on the CPU without gradients; found {type(array)}")
    if not array.flags.c_contiguous or not array.flags.writeable or not array.flags.aligned:
        raise ConfigError(f"{name} must be contiguous and writable, so that it can be changed in place; pass a copy")
    return array
