"""Speed and memory of a model's fast and reference path for growing systems."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from simkit.errors import ConfigError
from simkit.graph import AtomGraph
from simkit.memory import keep_freed_memory
from simkit.workflows.peak_memory import Forecast, forecast, free_bytes, peak_bytes

if TYPE_CHECKING:
    from ase import Atoms

    from simkit.potential import Potential

OUTPUTS = ("energy", "forces")
LEAST_CALLS = 3
BLOCK_SECONDS = 0.05
"""Both paths take turns of about this length, or of one call: in shorter ones each would find the caches full of the other's arrays."""
FIRST_SHARE, LATER_SHARE = 0.25, 0.06
"""Parts of the time for the structure itself, and for each larger system."""
NEXT_TIME, NEXT_MEMORY = 0.4, 0.5
"""No system is begun on a path that would take more than these parts of the time that is left, or of the free memory."""
MOST_COPIES = 2**20
NEVER = 10**12

Call = Callable[[AtomGraph], object]


@dataclass(frozen=True)
class Cost:
    """What energy and forces of a system cost on one path.

    Attributes:
        atoms: of the system. milliseconds: median wall time of a call. calls: how many were timed.
        bytes: peak memory of a call, with its graph; None where it could not be measured.
    """

    atoms: int
    milliseconds: float
    calls: int
    bytes: int | None

    @property
    def microseconds_per_atom(self) -> float:
        """Wall time of a call per atom."""
        return 1000 * self.milliseconds / self.atoms

    @property
    def nanoseconds_per_day(self) -> float:
        """Simulated time in a day with a step of 1 fs, if nothing else took time."""
        return 86.4 / self.milliseconds


@dataclass(frozen=True)
class System:
    """Copies of a structure, and what they cost, by path."""

    copies: int
    atoms: int
    edges: int
    costs: Mapping[str, Cost]


@dataclass(frozen=True)
class Bench:
    """What was measured.

    Attributes:
        systems: the structure itself first. forecasts: of memory, by path, where there is one.
        stopped: "time" or "memory", by path, for what kept it from the next system.
        reason: why there is no fast path, empty where there is one.
    """

    systems: Sequence[System]
    forecasts: Mapping[str, Forecast]
    stopped: Mapping[str, str]
    reason: str

    @property
    def paths(self) -> tuple[str, ...]:
        """Which were measured."""
        return tuple(self.systems[0].costs)

    def costs(self, path: str) -> list[Cost]:
        """Return the costs of the systems that a path got to."""
        return [system.costs[path] for system in self.systems if path in system.costs]


def bench(
    potential: Potential,
    atoms: Atoms,
    copies: Sequence[int] | None = None,
    seconds: float = 20.0,
    compile_first: bool = False,
) -> Bench:
    """Time energy and forces of copies of a structure on both paths, with neighbor lists made before, and measure memory.

    Both paths take turns, so that both see the same machine. The fast path is timed without its comparisons with float64.

    Args:
        copies: of the structure, in rising order, see `repeated`; by default doubled (isolated structures: times 4) again and again.
        seconds: about what all may take, without loading and compiling.
        compile_first: compile the network, if that is its fast path and it has not been done before.

    Raises:
        ConfigError: if the model gives no energy.
        ElementError, GeometryError: if the structure is unusable.
    """
    if "energy" not in potential.outputs:
        raise ConfigError(f"only models of the energy can be timed; this one gives {', '.join(potential.outputs)}")
    potential.check_elements(np.unique(atoms.numbers).tolist())
    keep_freed_memory()  # as the calculator does
    free = free_bytes(potential.device)
    graph = AtomGraph.from_ase(atoms, potential.cutoff).to(potential.device)
    reason = _warm_up(potential, graph, compile_first)
    paths = ["reference"] if reason else ["fast", "reference"]
    deadline = time.perf_counter() + seconds
    systems = [System(1, *_size(graph), _measure(potential, paths, atoms, graph, FIRST_SHARE * seconds))]
    stopped: dict[str, str] = {}
    for count in _growing(atoms) if copies is None else (n for n in copies if n > 1):
        left, before = deadline - time.perf_counter(), systems[-1]
        for path in (path for path in paths if path not in stopped):
            if end := _end(before.costs[path], count / before.copies, left, free):
                stopped[path] = end
        active = [path for path in paths if path not in stopped]
        if not active:
            break
        graph = AtomGraph.from_ase(repeated(atoms, count), potential.cutoff).to(potential.device)
        systems.append(System(count, *_size(graph), _measure(potential, active, atoms, graph, LATER_SHARE * seconds)))
    forecasts = {path: _forecast([s.costs[path] for s in systems if path in s.costs], free) for path in paths}
    return Bench(systems, {path: line for path, line in forecasts.items() if line is not None}, stopped, reason)


def repeated(atoms: Atoms, copies: int) -> list[Atoms]:
    """Return copies of a structure: a supercell as compact as it can be, or, without periodic directions, a batch."""
    if not atoms.pbc.any():
        return [atoms] * copies
    times, lengths = np.ones(3, dtype=int), np.where(atoms.pbc, atoms.cell.lengths(), math.inf)
    for prime in sorted(_primes(copies), reverse=True):
        times[int(np.argmin(times * lengths))] *= prime
    return [atoms.repeat(times.tolist())]


def _primes(number: int) -> list[int]:
    found, divisor = [], 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return found + [number] * (number > 1)


def _growing(atoms: Atoms) -> Iterable[int]:
    factor = 2 if atoms.pbc.any() else 4
    return itertools.takewhile(lambda count: count <= MOST_COPIES, (factor**k for k in itertools.count(1)))


def _size(graph: AtomGraph) -> tuple[int, int]:
    return len(graph.z), int(graph.edge_index.shape[1])


def _warm_up(potential: Potential, graph: AtomGraph, compile_first: bool) -> str:
    """Compile, and say why there is no fast path, or why it does not hold here."""
    potential(graph, OUTPUTS)
    fast = potential.fast()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of what is returned
        if compile_first:
            fast.compile(graph.z)
        fast(graph, OUTPUTS)
    return fast.reason


def _call(potential: Potential, path: str, atoms: Atoms) -> Call:
    """The path as a function that compares nothing and holds next to no memory yet."""
    if path == "reference":
        return lambda graph: potential(graph, OUTPUTS)
    fast = potential.fast(check_every=NEVER)
    # The first call compares. Compiled networks hold nothing from call to call.
    piece = atoms if fast.engine is None else atoms[:1]
    fast(AtomGraph.from_ase(piece, potential.cutoff).to(potential.device), OUTPUTS)
    return lambda graph: fast(graph, OUTPUTS)


def _end(last: Cost, growth: float, left: float, free: int | None) -> str:
    """Say what keeps a path from a system that is larger by a factor than the last one, or nothing."""
    # One call for the memory, one before each of those that are timed, at worst.
    if (1 + 2 * LEAST_CALLS) * growth * last.milliseconds / 1000 > NEXT_TIME * left:
        return "time"
    if free is not None and last.bytes is not None and growth * last.bytes > NEXT_MEMORY * free:
        return "memory"
    return ""


def _measure(
    potential: Potential, paths: Sequence[str], atoms: Atoms, graph: AtomGraph, seconds: float
) -> dict[str, Cost]:
    """Peak memory of a first call on each path, and times of further ones in turns."""
    calls = {path: _call(potential, path, atoms) for path in paths}
    held = sum(value.nbytes for value in graph.to_dict().values() if isinstance(value, torch.Tensor))
    peaks = {path: peak_bytes(lambda call=call: call(graph), potential.device) for path, call in calls.items()}  # type: ignore[misc]
    times: dict[str, list[float]] = {path: [] for path in paths}
    start = time.perf_counter()
    while min(map(len, times.values())) < LEAST_CALLS or time.perf_counter() - start < seconds:
        for path, call in calls.items():
            times[path] += _block(call, graph, potential.device, times[path])
    return {
        path: Cost(
            atoms=len(graph.z),
            milliseconds=1000 * float(np.median(times[path])),
            calls=len(times[path]),
            bytes=None if peak is None else peak + held,
        )
        for path, peak in peaks.items()
    }


def _block(call: Call, graph: AtomGraph, device: torch.device, before: Sequence[float]) -> list[float]:
    """Times of calls in a row, after one that fills the caches unless that would take as long as the row."""
    if not before or before[-1] < BLOCK_SECONDS:
        _timed(call, graph, device)
    times: list[float] = []
    while sum(times) < BLOCK_SECONDS:
        times.append(_timed(call, graph, device))
    return times


def _timed(call: Call, graph: AtomGraph, device: torch.device) -> float:
    start = time.perf_counter()
    call(graph)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _forecast(costs: Sequence[Cost], free: int | None) -> Forecast | None:
    measured = [(cost.atoms, cost.bytes) for cost in costs if cost.bytes is not None]
    return forecast([atoms for atoms, _ in measured], [memory for _, memory in measured], free)
