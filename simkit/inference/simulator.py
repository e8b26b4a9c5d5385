"""`Simulator`: parameters in, observables out, many at once."""

from __future__ import annotations

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from simkit.errors import ConfigError, DataError
from simkit.inference.priors import Array, Prior

Seeds = NDArray[np.uint64]
Kind = Literal["vector", "series", "set"]


@dataclass(frozen=True)
class Observable:
    """A part of what a simulation gives.

    Attributes:
        name: such as "rdf".
        shape: () for a number, [T] or [T, C] for a series, [M, C] for a set of M exchangeable members.
        unit: "" for pure numbers.
        kind: what the entries are, so that a fitting summary network is chosen.
        axis: what the first dimension runs over (times, distances), for pictures; indices where empty.
        axis_label: name and unit of the axis.
    """

    name: str
    shape: tuple[int, ...] = ()
    unit: str = ""
    kind: Kind = "vector"
    axis: tuple[float, ...] = ()
    axis_label: str = ""

    @property
    def size(self) -> int:
        """The number of values."""
        return int(np.prod(self.shape, dtype=np.int64))


class Simulator(ABC):
    """A stochastic (or deterministic) model with parameters that are to be inferred.

    A subclass sets the attributes and gives `simulate`. Output i may depend on ``theta[i]`` and ``seeds[i]`` alone, so that it does
    not matter how simulations are cut into batches and shared between processes.

    Attributes:
        name: for files and messages.
        prior: of the parameters.
        observables: what a simulation gives; an output is all of them end to end, [K] values.
        vectorised: whether `simulate` is fast for many parameters at once (Numba threads, PyTorch); others are run by a pool of
            processes.
    """

    name: str
    prior: Prior
    observables: tuple[Observable, ...]
    vectorised: ClassVar[bool] = True

    @abstractmethod
    def simulate(self, theta: Array, seeds: Seeds) -> Array:
        """Return outputs [N, K] float64 for parameters [N, D]; a simulation that failed has a NaN in its row.

        Args:
            theta: [N, D] float64.
            seeds: [N] uint64, one stream of random numbers each.
        """

    def settings(self) -> dict[str, Any]:
        """Return, in plain types, all that changes the outputs besides parameters and seeds."""
        return {}

    @property
    def size(self) -> int:
        """The number of values K of an output."""
        return sum(observable.size for observable in self.observables)

    def labels(self) -> list[str]:
        """Return a name for each of the K values."""
        names = []
        for o in self.observables:
            where = [""] if o.shape == () else ["[" + ",".join(map(str, i)) + "]" for i in np.ndindex(*o.shape)]
            names += [o.name + index for index in where]
        return names

    def split(self, x: Array) -> dict[str, Array]:
        """Cut outputs [..., K] into observables, name -> [..., *shape]."""
        ends = np.cumsum([o.size for o in self.observables])[:-1]
        parts = np.split(np.asarray(x), ends, axis=-1)
        return {
            o.name: part.reshape((*part.shape[:-1], *o.shape)) for o, part in zip(self.observables, parts, strict=True)
        }

    def observation(self, values: ArrayLike | Mapping[str, ArrayLike]) -> Array:
        """Return an observation as a vector [K], from such a vector or from one array per observable.

        Raises:
            DataError: if values are missing, too many, of the wrong shape or not finite.
        """
        if isinstance(values, Mapping):
            wanted = {o.name: o.shape for o in self.observables}
            if set(values) != set(wanted):
                raise DataError(
                    f"{self.name} gives {', '.join(wanted)}; the observation has {', '.join(map(str, values)) or 'nothing'}"
                )
            arrays = {name: np.asarray(values[name], dtype=np.float64) for name in wanted}
            wrong = [f"{n}: expected {wanted[n]}, found {a.shape}" for n, a in arrays.items() if a.shape != wanted[n]]
            if wrong:
                raise DataError(f"the observation's shapes do not fit those of {self.name}: {'; '.join(wrong)}")
            vector = np.concatenate([array.ravel() for array in arrays.values()])
        else:
            vector = np.asarray(values, dtype=np.float64)
            vector = vector[0] if vector.ndim == 2 and len(vector) == 1 else vector
            if vector.shape != (self.size,):
                raise DataError(
                    f"an observation of {self.name} has {self.size} values; found an array of shape {vector.shape}"
                )
        bad = np.flatnonzero(~np.isfinite(vector))
        if len(bad):
            labels = self.labels()
            raise DataError(
                f"the observation has {len(bad)} values that are not finite, the first of them {labels[bad[0]]} = {vector[bad[0]]}; "
                "leave such values out of the simulator's observables, or fill them in"
            )
        return vector

    def identity(self) -> str:
        """Return a hash of all that outputs depend on besides parameters and seeds."""
        layout = [vars(o) for o in self.observables]
        content = {"name": self.name, "observables": layout, "settings": self.settings()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@runtime_checkable
class Tractable(Protocol):
    """A simulator that knows how probable its outputs are, so that samplers can draw from the exact posterior."""

    prior: Prior
    observables: tuple[Observable, ...]

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return ln p(x | theta), [...], up to a term without theta; differentiable once in theta.

        Args:
            theta: parameters within the prior's support, [..., D] float64.
            x: one output, [K] float64.
        """
        ...


class FunctionSimulator(Simulator):
    """A function that runs one simulation, as a `Simulator`; it is run by a pool of processes.

    Args:
        function: called as ``function(parameters, rng)`` with parameters [D] and a NumPy generator; returns K numbers, or one array
            per observable. Raising `FloatingPointError` or `ArithmeticError`, or returning NaN, counts as a failed simulation.
        prior: of the parameters.
        observables: what it returns.
        name: for files and messages; the function's own where not given.
        settings: what else outputs depend on. The function's source is added where it can be read.
    """

    vectorised: ClassVar[bool] = False

    def __init__(
        self,
        function: Callable[[Array, np.random.Generator], ArrayLike | Mapping[str, ArrayLike]],
        prior: Prior,
        observables: Sequence[Observable],
        name: str = "",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if not observables:
            raise ConfigError("a simulator needs at least one observable")
        self.function, self.prior, self.observables = function, prior, tuple(observables)
        self.name = name or getattr(function, "__name__", "function")
        self._settings = dict(settings or {})

    def settings(self) -> dict[str, Any]:
        try:
            source = inspect.getsource(self.function)
        except (OSError, TypeError):
            source = ""
        return self._settings | {"source": source}

    def simulate(self, theta: Array, seeds: Seeds) -> Array:
        return np.stack([self._one(row, seed) for row, seed in zip(theta, seeds, strict=True)])

    def _one(self, parameters: Array, seed: np.uint64) -> Array:
        try:
            values = self.function(parameters.copy(), np.random.default_rng(int(seed)))
        except ArithmeticError:
            return np.full(self.size, np.nan)
        if isinstance(values, Mapping):
            found = {name: np.asarray(value, dtype=np.float64) for name, value in values.items()}
            wrong = [o.name for o in self.observables if o.name not in found or found[o.name].size != o.size]
            if wrong:
                raise DataError(f"{self.name} should return {', '.join(wrong)}, of the sizes of its observables")
            values = np.concatenate([found[o.name].ravel() for o in self.observables])
        vector = np.ravel(np.asarray(values, dtype=np.float64))
        if vector.size != self.size:
            raise DataError(f"{self.name} should return {self.size} values; it returned {vector.size}")
        return vector


def simulation_seeds(seed: int, first: int, count: int) -> Seeds:
    """Return the seeds of the simulations ``first`` to ``first + count`` of a run: a function of ``seed`` and the index alone."""
    # SplitMix64 (Steele, Lea & Flood, OOPSLA 2014): a bijection of the counter, so that no two simulations share a stream.
    with np.errstate(over="ignore"):
        base = np.uint64(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        z = base + (np.arange(first, first + count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
