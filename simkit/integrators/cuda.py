"""Splitting integrators on a GPU, compiled by numba.cuda: any scheme, in place on torch's CUDA tensors and on torch's current stream.

One thread moves one component of one atom through all that happens between two evaluations of the forces, in one launch. Nothing is
copied and nothing waits: the kernels read the tensors' memory, and are queued behind what torch has queued.

Under ``NUMBA_ENABLE_CUDASIM=1`` Numba runs the same kernels in Python on CPU tensors, for tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import config as numba_config
from numba import cuda
from numpy.typing import ArrayLike
from torch import Tensor

from simkit.errors import ConfigError
from simkit.integrators.bath import Bath
from simkit.integrators.philox import philox4x32, radius, turn, words_of_key
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
from simkit.kernels.gpu import THREADS, current, view


@cuda.jit
def _pass(code, first, last, step, width, x, v, f, inverse, mix, names, key_0, key_1, heat, heated):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Apply the operators ``first`` to ``last`` of the code to one component of one atom.

    code: [n, 4], operator, time, stream and 1 for the following step. x, v, f, inverse: [N D]. mix: [2, S, B or 1].
    names: [3, N], the atom, its replica and the place of that; words of 32 bits held as int32. heat: [N D], if ``heated``.
    """
    k = cuda.grid(1)
    if k >= x.size:
        return
    position, velocity = x[k], v[k]
    i = k // width
    component = k - i * width
    for op in range(first, last):
        operator, time = int(code[op, 0]), code[op, 1]
        if operator == KICK:
            velocity += time * inverse[k] * f[k]
        elif operator == DRIFT:
            position += time * velocity
        else:
            stream, now = int(code[op, 2]), step + int(code[op, 3])
            low, high = np.uint64(now & 0xFFFFFFFF), np.uint64((now >> 32) | (stream << 16))
            atom, replica = np.int64(names[0, i]) & 0xFFFFFFFF, np.int64(names[1, i]) & 0xFFFFFFFF
            w0, w1, w2, w3 = philox4x32(np.uint64(atom), np.uint64(replica), low, high, key_0, key_1)
            if component > 1:
                w0, w1 = w2, w3
            cos, sin = turn(w1)
            normal = radius(w0) * (sin if component & 1 else cos)
            place = int(names[2, i]) if mix.shape[2] > 1 else 0
            scale = mix[1, stream, place] * math.sqrt(inverse[k])
            before = np.float64(velocity)
            # A cast, or everything above were computed in float64.
            velocity = v.dtype.type(mix[0, stream, place] * velocity + scale * normal)
            if heated and inverse[k] > 0:
                heat[k] += (
                    0.5 * (np.float64(velocity) * np.float64(velocity) - before * before) / np.float64(inverse[k])
                )
    x[k], v[k] = position, velocity


class Integrator:
    """A scheme bound to the tensors that it moves: `simkit.integrators.cpu.Integrator` on a GPU, with the same meaning of the forces.

    Runs are not for capture in a CUDA graph if the scheme has noise: the number of the step is an argument of the launch.
    """

    def __init__(
        self,
        scheme: Scheme,
        force: Callable[..., Any],
        positions: Tensor,
        velocities: Tensor,
        forces: Tensor,
        masses: ArrayLike | Tensor,
        *,
        offsets: ArrayLike | Tensor | None = None,
        arguments: tuple[Any, ...] = (),
        heat: Tensor | None = None,
    ) -> None:
        """Bind the tensors.

        Args:
            scheme: what to run, such as ``simkit.integrators.get("baoab")``.
            force: fills the forces from the positions, as ``force(positions, forces, *arguments)``, on torch's current stream.
            positions, velocities, forces: [N, D] CUDA tensors on one device, float32 or float64, contiguous; they are changed in place.
            masses: [N], positive; an infinite mass keeps its velocity, so that an atom at rest is frozen.
            offsets: [B + 1], where the atoms of each replica begin, and N; by default all atoms are one replica.
            arguments: passed on to ``force``.
            heat: [N, D] float64; the noise adds to it the kinetic energy that it gives to each component. None if nobody asks.

        Raises:
            ConfigError: if a tensor is not usable or does not fit the others.
        """
        self.scheme = scheme
        self._force, self._arguments, self._given = force, arguments, (positions, forces)
        given = {"positions": positions, "velocities": velocities, "forces": forces}
        self._device = _one_device(given | ({} if heat is None else {"heat": heat}))
        atoms, width = check_state(**given)
        check_components(scheme, width)
        if heat is not None:
            check_heat(heat, positions.shape)
        boundaries = check_offsets(offsets.cpu() if isinstance(offsets, Tensor) else offsets, atoms)
        sizes = np.diff(boundaries)
        self._place = np.repeat(np.arange(len(sizes)), sizes)
        self._atom = np.arange(atoms) - np.repeat(boundaries[:-1], sizes)
        self._replicas = len(sizes)
        mass = masses.detach().cpu() if isinstance(masses, Tensor) else masses
        inverse = np.repeat(inverse_masses(mass, atoms), width)
        self._width, self._size = width, atoms * width
        with current(self._device):
            self._flat = [view(tensor.view(-1)) for tensor in given.values()]
            self._flat.append(self._upload(inverse, positions.dtype))
            self._heat = self._upload(np.zeros(1), torch.float64) if heat is None else view(heat.view(-1))
        self._heated = heat is not None
        self._program = Program.of(scheme)
        self._kept: dict[str, tuple[np.ndarray, Any]] = {}

    def evaluate_forces(self) -> None:
        """Fill the forces from the positions."""
        self._force(*self._given, *self._arguments)

    def run(self, steps: int, *, timestep: float, first_step: int = 0, bath: Bath | None = None) -> None:
        """Advance the tensors; `simkit.integrators.cpu.Integrator.run` says how.

        Friction and temperature given as CUDA tensors are copied to the host, which waits for the device; numbers are not.

        Raises:
            ConfigError: if a value is not usable.
        """
        check_run(self.scheme, timestep, steps, first_step, bath)
        bounds, end = self._program.bounds.tolist(), first_step + steps
        with current(self._device) as stream:
            code, noise = self._code_for(timestep), self._noise_for(timestep, bath)
            launch = _pass[-(-self._size // THREADS), THREADS, stream]
            for step in range(first_step, end):
                for k in range(1 if step > first_step else 0, len(bounds) - 2):
                    if k > 0:
                        self._force(*self._given, *self._arguments)
                    joined = k == len(bounds) - 3 and step + 1 < end
                    first, last = bounds[k], bounds[k + 1 + joined]
                    if last > first:
                        launch(code, first, last, step, self._width, *self._flat, *noise, self._heat, self._heated)

    def _code_for(self, timestep: float) -> Any:
        """The program."""
        p = self._program
        rows = np.stack([p.codes, timestep * p.coefficients, p.streams, p.later], axis=1)
        return self._on_device("code", rows, lambda: rows, self._given[0].dtype)

    def _noise_for(self, timestep: float, bath: Bath | None) -> tuple[Any, ...]:
        """Factors, names and key."""
        factors, names, key = np.zeros((2, 1, 1)), np.zeros(self._replicas, dtype=np.uint32), (0, 0)
        if bath is not None:
            factors, names = noise_factors(self.scheme, timestep, bath, self._replicas)
            key = words_of_key(bath.seed)

        def rows() -> np.ndarray:
            return np.stack([self._atom, names[self._place], self._place]).astype(np.uint32).view(np.int32)

        on_device = self._on_device("factors", factors, lambda: factors, torch.float64)
        return on_device, self._on_device("names", names, rows, torch.int32), *map(np.uint64, key)

    def _on_device(self, name: str, key: np.ndarray, array: Callable[[], np.ndarray], dtype: torch.dtype) -> Any:
        """An array on the device, copied there when its key has changed."""
        if name not in self._kept or not np.array_equal(self._kept[name][0], key):
            self._kept[name] = key.copy(), self._upload(array(), dtype)
        return self._kept[name][1]

    def _upload(self, array: np.ndarray, dtype: torch.dtype) -> Any:
        """A copy of an array on the device, as Numba takes it."""
        return view(torch.from_numpy(np.ascontiguousarray(array)).to(dtype).to(self._device))


def _one_device(tensors: dict[str, Tensor]) -> torch.device:
    """The device of all of them; under the simulator that is the CPU."""
    kind = "cpu" if numba_config.ENABLE_CUDASIM else "cuda"
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.device.type != kind:
            found = f"one on {tensor.device}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ConfigError(f"{name} must be a {kind} tensor; found {found}")
        if not tensor.is_contiguous() or tensor.requires_grad:
            raise ConfigError(
                f"{name} must be contiguous and without gradients, so that it can be changed in place; pass a copy"
            )
    devices = {tensor.device for tensor in tensors.values()}
    if len(devices) > 1:
        raise ConfigError(f"the tensors must be on one device; found {', '.join(sorted(map(str, devices)))}")
    return devices.pop()
