"""Running a simulator: `simulate` draws or takes parameters, shares the work, keeps failures, and saves as it goes."""

from __future__ import annotations

import hashlib
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from simkit.errors import ConfigError, DataError, OutputError
from simkit.files import atomic_path, ensure_output_dir, write_json
from simkit.inference.priors import Array
from simkit.inference.simulator import Seeds, Simulator, simulation_seeds

Progress = Callable[[int, int], None]
SAVE_SECONDS = 5.0
"""A block of simulations that are computed and saved together takes about this long: what an interruption costs."""
FIRST_BLOCK, LARGEST_BLOCK = 16, 100_000


@dataclass(frozen=True)
class Simulations:
    """Simulations that were run.

    Attributes:
        theta: parameters [N, D].
        x: outputs [N, K]; rows of failed simulations hold NaN, or what else is not finite.
        seconds: what each took, [N], averaged over those that ran together.
    """

    theta: Array
    x: Array
    seconds: Array

    def __len__(self) -> int:
        """The number of simulations, failures included."""
        return len(self.theta)

    @property
    def valid(self) -> np.ndarray:
        """Which simulations gave finite outputs, [N] bool."""
        return np.asarray(np.isfinite(self.x).all(axis=1))

    @property
    def failures(self) -> int:
        """The number of simulations that failed."""
        return int((~self.valid).sum())

    def select(self, rows: np.ndarray | slice) -> Simulations:
        """Return some of the simulations."""
        return Simulations(self.theta[rows], self.x[rows], self.seconds[rows])

    def join(self, *others: Simulations) -> Simulations:
        """Return these simulations followed by others."""
        parts = (self, *others)
        return Simulations(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Simulations)))

    @classmethod
    def none(cls, simulator: Simulator) -> Simulations:
        """Return no simulations of a simulator."""
        return cls(np.empty((0, simulator.prior.dim)), np.empty((0, simulator.size)), np.empty(0))


def simulate(
    simulator: Simulator,
    parameters: int | Array,
    *,
    seed: int = 0,
    store: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Simulations:
    """Run simulations.

    A vectorised simulator is called with blocks of parameters. Others are shared between processes through joblib: within
    ``joblib.parallel_config(backend="dask")``, for example, they run on a cluster.

    Args:
        parameters: how many to draw from the prior, or parameters [N, D].
        seed: simulation i has a stream of random numbers that depends on the seed and i alone.
        store: a folder in which blocks are saved as they are done. What is there already is read, not run again, if it belongs to the
            same simulator, seed and parameters; more of the same may be asked for.
        workers: processes for a simulator that is not vectorised; all cores where not given.
        progress: called with the number done and the number wanted.

    Raises:
        DataError: if parameters lie outside the prior, or the simulator returns arrays of the wrong shape.
        OutputError: if the folder holds simulations of something else, or cannot be written.
        KeyboardInterrupt: if interrupted; the blocks that were done are in the store.
    """
    theta = _parameters(simulator, parameters, seed)
    folder = None if store is None else _Store(Path(store), simulator, seed)
    blocks = {} if folder is None else folder.read(theta)
    done = sum(len(block) for block in blocks.values())
    if progress is not None:
        progress(done, len(theta))
    size = FIRST_BLOCK if not simulator.vectorised or folder is not None else LARGEST_BLOCK
    for first, last in _gaps(blocks, len(theta)):
        while first < last:
            rows = slice(first, min(first + size, last))
            block = run_block(simulator, theta[rows], simulation_seeds(seed, first, rows.stop - first), workers)
            blocks[first] = block
            if folder is not None:
                folder.write(first, block)
            done += len(block)
            first = rows.stop
            if progress is not None:
                progress(done, len(theta))
            average = max(float(block.seconds.mean()), 1e-9)
            size = int(np.clip(SAVE_SECONDS / average, size / 4, size * 4).clip(1, LARGEST_BLOCK))
    return Simulations.none(simulator).join(*(blocks[first] for first in sorted(blocks)))


def run_block(simulator: Simulator, theta: Array, seeds: Seeds, workers: int | None = None) -> Simulations:
    """Run simulations with given seeds, without saving.

    Raises:
        DataError: if the simulator returns an array of the wrong shape.
    """
    if simulator.vectorised or workers == 1 or len(theta) == 1:
        return _timed(simulator, theta, seeds)
    cores = workers or os.cpu_count() or 1
    pieces = np.array_split(np.arange(len(theta)), min(len(theta), 4 * cores))
    parts = Parallel(n_jobs=workers or -1)(delayed(_timed)(simulator, theta[rows], seeds[rows]) for rows in pieces)
    return Simulations.none(simulator).join(*parts)


def _timed(simulator: Simulator, theta: Array, seeds: Seeds) -> Simulations:
    started = time.perf_counter()
    x = np.asarray(simulator.simulate(theta, seeds), dtype=np.float64)
    if x.shape != (len(theta), simulator.size):
        raise DataError(
            f"{simulator.name} should return [{len(theta)}, {simulator.size}] values; it returned {x.shape}"
        )
    return Simulations(theta, x, np.full(len(theta), (time.perf_counter() - started) / len(theta)))


def _parameters(simulator: Simulator, parameters: int | Array, seed: int) -> Array:
    if isinstance(parameters, (int, np.integer)):
        if parameters < 1:
            raise ConfigError(f"the number of simulations must be positive; found {parameters}")
        return simulator.prior.sample(int(parameters), seed)
    return simulator.prior.check(parameters)


def _gaps(blocks: dict[int, Simulations], count: int) -> Iterator[tuple[int, int]]:
    """Yield what is missing between the blocks."""
    position = 0
    for first in sorted(blocks):
        if position < first:
            yield position, first
        position = first + len(blocks[first])
    if position < count:
        yield position, count


class _Store:
    """A folder of blocks, each a file named after its first simulation, and a description of what they belong to."""

    def __init__(self, folder: Path, simulator: Simulator, seed: int) -> None:
        self.folder = ensure_output_dir(folder)
        self.simulator = simulator
        description = {"format": "simkit-simulations", "version": 1, "simulator": simulator.name}
        description |= {"identity": simulator.identity(), "seed": seed}
        path = folder / "simulations.json"
        if path.exists():
            try:
                found = dict(json.loads(path.read_text(encoding="utf-8")))
            except (TypeError, ValueError) as error:
                raise DataError(f"{path} is damaged ({error}); choose another folder or remove this one") from error
            if found != description:
                differing = ", ".join(k for k in description if found.get(k) != description[k])
                raise OutputError(
                    f"{folder} holds simulations of something else ({differing} differ); choose another folder or remove this one"
                )
        else:
            write_json(path, description)

    def read(self, theta: Array) -> dict[int, Simulations]:
        """Return the blocks that are there, by their first index, checked against the parameters that are wanted now."""
        blocks = {}
        for path in sorted(self.folder.glob("block-*.npz")):
            first = int(path.stem.split("-")[1])
            try:
                with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                    block = Simulations(arrays["theta"], arrays["x"], arrays["seconds"])
            except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
                raise DataError(f"{path} is damaged ({error}); remove it, and its simulations are run again") from error
            wanted = theta[first : first + len(block)]
            if not np.array_equal(block.theta[: len(wanted)], wanted):
                raise OutputError(
                    f"{path} holds simulations of other parameters than those asked for; choose another folder or remove this one"
                )
            if len(wanted):
                blocks[first] = block.select(slice(len(wanted)))
        return blocks

    def write(self, first: int, block: Simulations) -> None:
        with atomic_path(self.folder / f"block-{first:09d}.npz") as temporary, temporary.open("wb") as stream:
            np.savez(stream, theta=block.theta, x=block.x, seconds=block.seconds)


def digest(theta: Array, x: Array) -> str:
    """Return a hash of simulations, for the identity of what is trained on them."""
    return hashlib.sha256(np.ascontiguousarray(theta).tobytes() + np.ascontiguousarray(x).tobytes()).hexdigest()
