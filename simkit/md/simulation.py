"""`Simulation`: one structure or a batch of replicas under a model and an ensemble, with observers and checkpoints."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from simkit.errors import ConfigError, OutputError, SimkitError
from simkit.files import discard_unfinished
from simkit.interrupt import Interrupt
from simkit.md.breakdown import check_start, find_breakdown
from simkit.md.forces import ForceModel, as_forces
from simkit.md.frames import check_needs, put_back, take_frame, take_snapshot
from simkit.md.observers.checkpoint import Checkpoint
from simkit.md.protocols import Ensemble, Observer
from simkit.md.state import State
from simkit.md.velocities import draw_velocities, scale_to_temperature

if TYPE_CHECKING:
    from ase import Atoms

CHECK_INTERVAL = 100  # steps at most between two looks at whether the simulation broke down
PATIENCE = 1.0  # seconds that may pass, about, before a request to stop is noticed


class Simulation:
    """Molecular dynamics of B replicas, which may be copies of one structure or different molecules.

    A replica's trajectory depends on the model, its structure, its name and the ensemble: not on which others are in the batch, as
    far as the model computes each replica the same in any batch (a neural network does so to rounding, see `PotentialForces`).

    The ensemble advances to the next step at which an observer or checkpoint is due, and every 100 steps at least the state is checked.
    When the simulation breaks down (numbers that are not finite, atoms that move by more than 1 angstrom in a step, a geometry that the
    model refuses), the steps since the last check are repeated one by one: the state is then that of the last good step.

    Args:
        model: anything that `as_forces` takes: a `Potential` or the path of one, a `ClassicalPotential`, an ASE calculator.
        structures: one ASE structure, or several. Masses, charges, velocities and frozen atoms (``FixAtoms``) are theirs.
        ensemble: equations of motion with their timestep, such as ``simkit.md.ensembles.Langevin``.
        replicas: copies of each structure.
        names: [B] different whole numbers from 0 to 2^32 - 1 that the random numbers of the replicas depend on; by default 0 to B - 1.
        temperature: kelvin, of starting velocities drawn for all; None keeps those of the structures.
        seed: of the starting velocities.
        device, dtype, skin, fast: see `as_forces`.
        observers: what looks on, each at its own interval, beginning with the start.
        checkpoint: a file that a checkpoint is written to at the start, every ``checkpoint_interval`` steps, at the end of each run and
            when interrupted; None for none.

    Attributes:
        state: changed in place. forces, ensemble: as given or made.
        frames: taken by each observer so far.

    Raises:
        ConfigError: if an argument is unusable, or the ensemble does not fit a structure.
        DataError: if there is no structure, or one has no atoms or masses that are not positive.
        ElementError: if a structure holds elements that the model does not know.
        GeometryError: if a structure is unusable, such as a cell without volume or coinciding atoms.
    """

    def __init__(
        self,
        model: ForceModel,
        structures: Atoms | Sequence[Atoms],
        ensemble: Ensemble,
        *,
        replicas: int = 1,
        names: Sequence[int] | None = None,
        temperature: float | None = None,
        seed: int = 0,
        device: str | None = None,
        dtype: str | None = None,
        skin: float | None = None,
        fast: bool | None = None,
        observers: Sequence[Observer] = (),
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_interval: int = 1000,
    ) -> None:
        if replicas < 1 or checkpoint_interval < 1:
            raise ConfigError(
                f"replicas and checkpoint_interval must be at least 1, found {replicas}, {checkpoint_interval}"
            )
        for observer in observers:
            check_needs(observer.needs)
            if observer.interval < 1:
                raise ConfigError(f"the interval of an observer must be at least 1, found {observer.interval}")
        self.ensemble, self.observers = ensemble, tuple(observers)
        self.forces = as_forces(model, device=device, dtype=dtype, skin=skin, fast=fast)
        given = list(structures) if isinstance(structures, Sequence) else [structures]
        self.state = State.from_atoms([atoms for atoms in given for _ in range(replicas)], self.forces.device)
        check_start(self.state)
        if names is not None:
            self.state.replicas[:] = _unique_names(names, self.state.size)
        self._checkpoint = None if checkpoint is None else Path(checkpoint)
        self._checkpoint_interval = checkpoint_interval
        self.frames = [0] * len(self.observers)
        self._begun = self._closed = self._restored = False
        self._opened: list[Observer] = []
        self._pace = 1.0  # seconds per step, at first unknown
        self._start(temperature, seed)

    @property
    def step(self) -> int:
        """The number of steps done."""
        return self.state.step

    def atoms(self) -> list[Atoms]:
        """Return the replicas as ASE structures with velocities."""
        return self.state.to_atoms()

    def run(self, steps: int) -> None:
        """Make ``steps`` more steps.

        Raises:
            SimkitError: if the simulation breaks down, naming step and replica; or whatever an observer stops it with. What was
                observed is on the disk then.
            OutputError: if a file cannot be written.
            KeyboardInterrupt: if interrupted (Ctrl-C, SIGTERM), after the checkpoint has been saved.
        """
        if steps < 0:
            raise ConfigError(f"steps: expected a number >= 0, found {steps}")
        if self._closed:
            raise ConfigError("this simulation was closed; make a new one, and restore its checkpoint to go on")
        end, interrupt = self.step + steps, Interrupt()
        try:
            with interrupt.watch():
                self._open()
                while self.step < end and not interrupt.requested:
                    self._advance(self._next_stop(end) - self.step)
                    self._observe()
                    if self.step % self._checkpoint_interval == 0 and self.step < end:
                        self._save()
                self._save()
        except BaseException:
            self.close()
            raise
        if interrupt.requested:
            self.close()
            raise KeyboardInterrupt

    def save_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Write everything that is needed to go on: `restore` of a simulation made in the same way reads it.

        Raises:
            OutputError: if the file cannot be written.
        """
        arrays = {name: value.cpu().numpy() for name, value in take_snapshot(self.state).items()}
        Checkpoint(identity=self.identity, step=self.step, frames=list(self.frames), arrays=arrays).save(path)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on where a checkpoint was saved, before the first `run`; observers cut off what was written after it.

        On the CPU and with the same number of threads, everything that follows is the same, bit for bit, as if it had never stopped.

        Raises:
            ConfigError: if this simulation has been run already.
            OutputError: if the file is not a checkpoint, or one of another model, structure, ensemble or set of observers.
        """
        if self._begun:
            raise ConfigError("restore a checkpoint before the first run")
        checkpoint = Checkpoint.load(path)
        checkpoint.check(self.identity, Path(path).parent)
        if self._checkpoint is not None and self._checkpoint == Path(path):
            discard_unfinished(path)  # of the process that was killed, if it was while it wrote a checkpoint
        arrays = {name: torch.from_numpy(np.array(value)) for name, value in checkpoint.arrays.items()}
        put_back(self.state, arrays, checkpoint.step)
        self.frames = list(checkpoint.frames)
        self.forces.forget()
        self._restored = True

    def close(self) -> None:
        """Flush and close the observers; called by `run` when it fails, and at the end of a ``with`` block."""
        self._closed = self._closed or self._begun
        opened, self._opened = self._opened, []
        for observer in opened:
            # The error that brought us here is more telling; and where there is none, `run` flushed before.
            with contextlib.suppress(SimkitError, OSError):
                observer.flush()
            with contextlib.suppress(SimkitError, OSError):
                observer.close()

    def __enter__(self) -> Simulation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, temperature: float | None, seed: int) -> None:
        """Velocities, the ensemble's variables and the first forces."""
        state = self.state
        if temperature is not None:
            draw_velocities(state, temperature, seed)
        self.ensemble.start(state)
        if temperature is not None:
            scale_to_temperature(state, temperature)  # over the degrees of freedom of the ensemble
        self.identity: dict[str, Any] = {
            "model": self.forces.identity(),
            "structures": _hash(state),
            "ensemble": self.ensemble.settings(),
            "temperature": temperature,
            "seed": seed,
            "intervals": [observer.interval for observer in self.observers],
        }
        self.forces.compute(state, energy=True, stress=self.ensemble.needs_stress)
        if getattr(self.forces, "compiled", False):
            self.identity["compiled network"] = True
        trouble = find_breakdown(state, self.ensemble.timestep)
        if trouble:
            raise SimkitError(
                f"the simulation cannot start; {trouble}. Check coordinates and model, and that the time step "
                f"({self.ensemble.timestep:g} fs) fits the temperature"
            )

    def _open(self) -> None:
        """Open the observers once; in a new simulation they see its start."""
        if self._begun:
            return
        self._begun = True
        for observer, frames in zip(self.observers, self.frames, strict=True):
            observer.open(self.state, self.ensemble.timestep, frames if self._restored else None)
            self._opened.append(observer)
        if not self._restored:
            self._observe()
            self._save()

    def _next_stop(self, end: int) -> int:
        """The next step at which something is due."""
        intervals = [observer.interval for observer in self.observers]
        if self._checkpoint is not None:
            intervals.append(self._checkpoint_interval)
        soon = self.step + min(CHECK_INTERVAL, max(1, int(PATIENCE / self._pace)))
        return min([end, soon, *((self.step // interval + 1) * interval for interval in intervals)])

    def _advance(self, steps: int) -> None:
        """Make steps, and check what came out.

        Raises:
            SimkitError: if the simulation broke down; the state is that of the last good step.
        """
        good, first, started = take_snapshot(self.state), self.step, time.perf_counter()
        trouble = self._try(steps)
        self._pace = max((time.perf_counter() - started) / steps, 1e-9)
        if not trouble:
            return
        put_back(self.state, good, first)
        where = f"between step {first} and step {first + steps}"
        for _ in range(steps):
            good, now = take_snapshot(self.state), self.step
            found = self._try(1)
            if found:
                put_back(self.state, good, now)
                trouble, where = found, f"in step {now + 1} ({(now + 1) * self.ensemble.timestep:g} fs)"
                break
        raise SimkitError(
            f"the simulation broke down {where}: {trouble}. The state is the last good one, that of step {self.step}. Relax the starting "
            f"structure, shorten the time step ({self.ensemble.timestep:g} fs) or lower the temperature; if that does not help, the "
            "structure has left what the model is made for"
        )

    def _try(self, steps: int) -> str:
        """Make steps and say what went wrong, if anything."""
        target = self.step + steps
        try:
            with np.errstate(all="ignore"):  # what overflows is found below
                self.ensemble.advance(self.state, self.forces, steps)
        except (ConfigError, OutputError):
            raise
        except SimkitError as error:
            return str(error)
        self.state.step = target
        return find_breakdown(self.state, self.ensemble.timestep)

    def _observe(self) -> None:
        """Show the state to the observers whose time it is."""
        due = [k for k, observer in enumerate(self.observers) if self.step % observer.interval == 0]
        if not due:
            return
        needs = frozenset().union(*(self.observers[k].needs for k in due))
        frame = take_frame(self.state, self.ensemble, self.forces, needs)
        for k in due:
            self.observers[k].observe(frame)
            self.frames[k] += 1

    def _save(self) -> None:
        """Make everything safe on the disk, and a checkpoint where one is wanted."""
        for observer in self.observers:
            observer.flush()
        if self._checkpoint is not None:
            self.save_checkpoint(self._checkpoint)


def _unique_names(names: Sequence[int], count: int) -> Any:
    array = np.asarray(names)
    whole = array.dtype.kind in "iu" and array.shape == (count,)
    if not whole or len(np.unique(array)) != count or array.min() < 0 or array.max() >= 2**32:
        raise ConfigError(f"names: expected {count} different whole numbers from 0 to 2^32 - 1, found {names}")
    return array


def _hash(state: State) -> str:
    """SHA-256 over what the simulation starts from."""
    digest = hashlib.sha256()
    tensors = ("numbers", "masses", "mobile", "positions", "velocities", "cells", "charges")
    for values in (*(getattr(state, name).cpu().numpy() for name in tensors), state.offsets, state.pbc, state.replicas):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
