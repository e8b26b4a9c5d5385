"""A scheme as the arrays that the kernels for CPU and CUDA read, and the state's arrays checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from simkit.errors import ConfigError
from simkit.integrators.bath import Bath
from simkit.integrators.philox import MAX_STEP, as_words
from simkit.integrators.scheme import Operator, Scheme

KICK, DRIFT, NOISE = 0, 1, 2
_CODES = {Operator.KICK: KICK, Operator.DRIFT: DRIFT, Operator.NOISE: NOISE}
MAX_COMPONENTS = 4
"""Components per atom that one call of the random number generator serves."""


@dataclass(frozen=True)
class Program:
    """The substeps of a scheme in the order of the passes over the atoms, a pass being what lies between two evaluations of the forces.

    The passes are the segments of `Scheme.segments`, then the first segment once more, now for the following step. The last pass of
    one step and the first of the next need no forces in between, so that the kernels do them in one: entries ``bounds[-3]`` to
    ``bounds[-1]``.

    Attributes:
        codes: [n] int64, KICK, DRIFT or NOISE.
        coefficients: [n] float64.
        streams: [n] int64, place of a noise operator among those of its step; 0 for the others.
        later: [n] int64, 1 where the entry belongs to the following step.
        bounds: [evaluations + 3] int64, where each pass begins, and the end.
    """

    codes: NDArray[np.int64]
    coefficients: NDArray[np.float64]
    streams: NDArray[np.int64]
    later: NDArray[np.int64]
    bounds: NDArray[np.int64]

    @classmethod
    def of(cls, scheme: Scheme) -> Program:
        """Return the program of a scheme."""
        segments = scheme.segments
        passes = [*segments, segments[0]]
        entries = [substep for part in passes for substep in part]
        step = sum(map(len, segments))
        noise = [substep.operator is Operator.NOISE for substep in entries[:step]]
        streams = [sum(noise[:i]) if is_noise else 0 for i, is_noise in enumerate(noise)]
        return cls(
            codes=np.array([_CODES[substep.operator] for substep in entries]),
            coefficients=np.array([substep.coefficient for substep in entries]),
            streams=np.array([*streams, *streams[: len(segments[0])]]),
            later=np.repeat([0, 1], [step, len(segments[0])]),
            bounds=np.cumsum([0, *map(len, passes)]),
        )


def check_run(scheme: Scheme, timestep: float, steps: int, first_step: int, bath: Bath | None) -> None:
    """Check what is given for a number of steps.

    Raises:
        ConfigError: if a value is not usable.
    """
    if not math.isfinite(timestep) or timestep == 0:
        raise ConfigError(f"the timestep must be a finite number other than 0; found {timestep}")
    if steps < 0 or first_step < 0:
        raise ConfigError(f"steps and first_step must not be negative; found {steps} and {first_step}")
    if scheme.stochastic and bath is None:
        raise ConfigError(f"{scheme.name} has noise: it needs a bath (friction, kT, seed)")
    if bath is not None and not scheme.stochastic:
        raise ConfigError(f"{scheme.name} has no noise operator, so that the bath would do nothing; leave it out")
    if bath is not None and timestep < 0:
        raise ConfigError(f"noise cannot be run backwards in time; found timestep {timestep}")
    if bath is not None and first_step + steps > MAX_STEP:
        raise ConfigError(f"random numbers exist for 2^48 steps; asked for steps {first_step} to {first_step + steps}")


def check_state(**arrays: Any) -> tuple[int, int]:
    """Check that positions, velocities and forces are alike, and return their shape [N, D].

    Raises:
        ConfigError: if they are not, or not two-dimensional, or not float32 or float64.
    """
    first_name, first = next(iter(arrays.items()))
    for name, array in arrays.items():
        if str(array.dtype).removeprefix("torch.") not in ("float32", "float64"):
            raise ConfigError(f"{name} must be float32 or float64; found {array.dtype}")
        if len(array.shape) != 2 or 0 in array.shape:
            raise ConfigError(f"{name} must have the shape [atoms, components]; found {list(array.shape)}")
        if tuple(array.shape) != tuple(first.shape) or array.dtype != first.dtype:
            raise ConfigError(
                f"{name} must be like {first_name}, {list(first.shape)} {first.dtype}; found {list(array.shape)} {array.dtype}"
            )
    return int(first.shape[0]), int(first.shape[1])


def check_offsets(offsets: Any, atoms: int) -> NDArray[np.int64]:
    """Return where each replica begins, and the end, [B + 1]; without offsets all atoms are one replica.

    Raises:
        ConfigError: if they do not rise from 0 to the number of atoms.
    """
    array = np.asarray([0, atoms] if offsets is None else offsets)
    if array.dtype.kind not in "iu" or array.ndim != 1 or len(array) < 2:
        raise ConfigError(f"offsets must be at least two integers [B + 1]; found {array.dtype} {list(array.shape)}")
    if array[0] != 0 or array[-1] != atoms or (np.diff(array.astype(np.int64)) < 0).any():
        raise ConfigError(
            f"offsets must rise from 0 to the number of atoms, {atoms}; found {array[:4]} ... {array[-1]}"
        )
    return array.astype(np.int64)


def check_components(scheme: Scheme, components: int) -> None:
    """Raises ConfigError if an atom has more components than the noise has numbers for."""
    if scheme.stochastic and components > MAX_COMPONENTS:
        raise ConfigError(
            f"noise knows atoms of up to {MAX_COMPONENTS} components; found {components}; cut each into several atoms"
        )


def check_heat(heat: Any, shape: tuple[int, ...]) -> None:
    """Raises ConfigError if the array for the heat is not float64 of the shape of the positions."""
    if tuple(heat.shape) != tuple(shape) or str(heat.dtype).removeprefix("torch.") != "float64":
        raise ConfigError(f"heat must be float64 like positions, {list(shape)}; found {heat.dtype} {list(heat.shape)}")


def inverse_masses(masses: Any, atoms: int) -> NDArray[np.float64]:
    """Return 1/m, [N]; zero for an infinite mass.

    Raises:
        ConfigError: if there is not one positive mass for each atom.
    """
    array = np.asarray(masses, dtype=np.float64)
    if array.shape != (atoms,):
        raise ConfigError(f"masses must be given for each of the {atoms} atoms; found the shape {list(array.shape)}")
    if not (array > 0).all():
        raise ConfigError(f"masses must be positive (infinite for a frozen atom); found {array[~(array > 0)][0]}")
    return 1 / array


def noise_factors(
    scheme: Scheme, timestep: float, bath: Bath, replicas: int
) -> tuple[NDArray[np.float64], NDArray[np.uint32]]:
    """Return the factors a and s of the noise operators, v = a v + s sqrt(1/m) R, and the identity of each replica.

    Returns:
        [2, S, B] of S operators, or [2, S, 1] where all replicas share friction and temperature; [B].

    Raises:
        ConfigError: if a value of the bath is not usable.
    """
    friction, kt = (_per_replica(name, getattr(bath, name), replicas) for name in ("friction", "kT"))
    fractions = np.array([s.coefficient for s in scheme.substeps if s.operator is Operator.NOISE])
    exponent = timestep * fractions[:, None] * friction
    factors = np.stack(np.broadcast_arrays(np.exp(-exponent), np.sqrt(-np.expm1(-2 * exponent) * kt)))
    names = as_words(np.arange(replicas) if bath.replicas is None else bath.replicas, "replicas")
    if names.shape != (replicas,):
        raise ConfigError(f"replicas must name each of the {replicas} replicas; found the shape {list(names.shape)}")
    return factors, names


def _per_replica(name: str, value: Any, replicas: int) -> NDArray[np.float64]:
    """Return friction or kT, [1] or [B]; a tensor on another device is copied, which waits for that device."""
    array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)
    if array.shape not in ((), (replicas,)):
        raise ConfigError(
            f"{name} must be one number or {replicas}, one for each replica; found the shape {list(array.shape)}"
        )
    if not (np.isfinite(array) & (array >= 0)).all():
        raise ConfigError(f"{name} must be finite and not negative; found {array}")
    return array.reshape(-1)
