"""`run_md`: molecular dynamics with any ASE calculator, restartable to the bit."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simkit.config import parse_options
from simkit.errors import ConfigError, GeometryError, OutputError, SimkitError
from simkit.files import ensure_output_dir, write_json
from simkit.interrupt import Interrupt
from simkit.md.analysis import energy_drift
from simkit.md.checkpoint import Checkpoint
from simkit.md.ensembles import ENSEMBLES, draw_velocities, scale_velocities, temperature_of, thermal_directions
from simkit.md.options import MDOptions
from simkit.md.output import THERMO, TRAJECTORY, LiveLine, RunOutput, read_thermo, save_plots
from simkit.md.system import Model, as_calculator, bare_copy, model_hash, structure_hash

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import BaseCalculator
    from ase.md.md import MolecularDynamics

CHECKPOINT, SETTINGS = "checkpoint.npz", "run.json"
RUNAWAY = 50.0  # times the temperature asked for, or 300 K where that is more: no longer a simulation of anything


@dataclass(frozen=True)
class MDResult:
    """A finished run.

    Attributes:
        atoms: the last structure, with velocities and calculator; folder: where the files are.
        thermo: the columns of ``thermo.csv``, all parts of the run together.
        drift: of the total energy, meV/atom/ps; None with a thermostat, where it is not conserved.
        steps: done in this call; seconds: that they took.
    """

    atoms: Atoms
    folder: Path
    thermo: dict[str, NDArray[np.float64]]
    drift: float | None
    steps: int
    seconds: float


def run_md(
    calculator: BaseCalculator | Model,
    atoms: Atoms,
    *,
    out: str | os.PathLike[str],
    steps: int,
    ensemble: str = "nve",
    temperature: float | None = 300.0,
    timestep: float = 0.5,
    friction: float = 0.01,
    seed: int = 0,
    interval: int = 10,
    checkpoint_interval: int = 1000,
    restart: bool = False,
) -> MDResult:
    """Run molecular dynamics and write ``thermo.csv``, ``trajectory.traj``, ``checkpoint.npz``, ``run.json`` and plots into ``out``.

    Interrupting (Ctrl-C, SIGTERM) saves a checkpoint. A run that was interrupted, killed or is to be made longer goes on with
    ``restart=True`` and the same structure, model and settings; on a CPU with the same number of threads, everything that it writes
    is the same, bit for bit, as if it had never stopped. The structure passed in is not changed.

    Args:
        calculator: any ASE calculator, a `Potential`, or the path of one.
        atoms: the starting structure; ``info["charge"]``, masses and constraints are respected.
        steps: of the whole run, including those done before a restart.
        ensemble, temperature, timestep, friction, seed, interval: see `MDOptions`.
        checkpoint_interval: steps between checkpoints; at most these are lost when the process is killed.

    Raises:
        ConfigError: if a setting is unusable.
        OutputError: if the folder cannot be written, holds a run (without ``restart``), or none or another one (with it).
        SimkitError: if the simulation breaks down; the message names the step, and the last good frame is in the trajectory.
        KeyboardInterrupt: if interrupted, after the checkpoint has been saved.
    """
    settings = {"ensemble": ensemble, "temperature": temperature, "timestep": timestep, "friction": friction}
    options = parse_options(MDOptions, {**settings, "seed": seed, "interval": interval}, "settings of the run")
    if steps < 1 or checkpoint_interval < 1:
        raise ConfigError(f"steps and checkpoint_interval must be at least 1, found {steps} and {checkpoint_interval}")
    folder = ensure_output_dir(out)
    run = _Run(as_calculator(calculator), atoms, options, folder)
    run.open(restart, steps)
    started, first = time.perf_counter(), run.step
    try:
        run.advance(steps, checkpoint_interval)
    finally:
        run.output.close()
    seconds = time.perf_counter() - started
    thermo = read_thermo(folder)
    target = options.temperature if ensemble == "nvt" else None
    drift = None
    if len(thermo["step"]) > 1:
        save_plots(folder, thermo, len(atoms), target)
        drift = energy_drift(thermo["time_fs"], thermo["total_eV"], len(atoms)) if target is None else None
    return MDResult(run.atoms, folder, thermo, drift, run.step - first, seconds)


class _Run:
    """The state of one run and what is done with it."""

    output: RunOutput

    def __init__(self, calculator: BaseCalculator, atoms: Atoms, options: MDOptions, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.atoms = bare_copy(atoms, calculator)
        keep_velocities = options.temperature is None
        if keep_velocities:
            if not atoms.has("momenta"):
                raise ConfigError("the structure has no velocities; give a temperature to draw them")
            self.atoms.set_momenta(atoms.get_momenta())
        self.identity: dict[str, Any] = {
            **options.model_dump(),
            "structure": structure_hash(atoms, with_momenta=keep_velocities),
            "model": model_hash(calculator),
        }
        self.rng = np.random.default_rng(options.seed)
        self.step = 0
        self.directions = 0

    def open(self, restart: bool, steps: int) -> None:
        """Start the run, or go on where its checkpoint was saved."""
        path = self.folder / CHECKPOINT
        if restart:
            if not path.is_file():
                raise OutputError(
                    f"there is no run to continue in {self.folder} (no {CHECKPOINT}); start it without restart"
                )
            checkpoint = Checkpoint.load(path)
            checkpoint.check(self.identity, self.folder)
            if checkpoint.step > steps:
                raise ConfigError(
                    f"{steps} steps were asked for in all, but the run has done {checkpoint.step} already"
                )
            self.restore(checkpoint)
            self.output = RunOutput(self.folder, checkpoint.frames)
            return
        present = [name for name in (CHECKPOINT, SETTINGS, THERMO, TRAJECTORY) if (self.folder / name).exists()]
        if present:
            raise OutputError(
                f"{self.folder} holds a run already ({', '.join(present)}); continue it with restart, or choose another folder"
            )
        temperature = self.options.temperature
        if temperature is not None:
            draw_velocities(self.atoms, temperature, self.rng)
        self.directions = thermal_directions(self.atoms, self.options.ensemble)
        if temperature is not None:
            scale_velocities(self.atoms, temperature, self.directions)
        energy = (
            self.atoms.get_potential_energy()
        )  # first of all: a structure that the model cannot take leaves no files
        if not np.isfinite(energy):
            raise SimkitError(
                f"the potential energy of the starting structure is {energy}; check its coordinates and the model"
            )
        self._checkpoint(frames=0).save(path)
        write_json(self.folder / SETTINGS, self.identity)
        self.output = RunOutput(self.folder, 0)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over the state of a checkpoint."""
        self.atoms.set_positions(checkpoint.positions, apply_constraint=False)
        self.atoms.set_momenta(checkpoint.momenta, apply_constraint=False)
        self.rng.bit_generator.state = checkpoint.generator
        self.step, self.directions = checkpoint.step, checkpoint.directions

    def advance(self, steps: int, checkpoint_interval: int) -> None:
        """Step until ``steps`` are done."""
        if self.output.frames == 0:
            self._write()
        interrupt = Interrupt()
        integrator = ENSEMBLES[self.options.ensemble](self.atoms, self.options, self.rng)
        with integrator, LiveLine(steps, self.step) as line, interrupt.watch():
            while self.step < steps and not interrupt.requested:
                temperature = self._step(integrator)
                if self.step % self.options.interval == 0:
                    self._write()
                if self.step % checkpoint_interval == 0:
                    self._save()
                line.show(self.step, steps, temperature, self.atoms.get_potential_energy())
            self._save()
        if interrupt.requested:
            raise KeyboardInterrupt

    def _step(self, integrator: MolecularDynamics) -> float:
        """Make one step and return the temperature.

        Raises:
            SimkitError: if the result is not usable; the state before the step is kept.
        """
        positions, momenta = self.atoms.get_positions(), self.atoms.get_momenta()
        problem = ""
        temperature = 0.0
        try:
            with np.errstate(all="ignore"):  # what overflows is found below
                integrator.step()
                temperature = temperature_of(self.atoms, self.directions)
                energy = self.atoms.get_potential_energy()
            limit = RUNAWAY * max(self.options.temperature or 0.0, 300.0)
            if not np.isfinite(energy):
                problem = f"the potential energy is {energy}"
            elif not temperature <= limit:
                problem = f"the temperature ran away to {temperature:.3g} K"
        except GeometryError as error:
            problem = str(error)
        if problem:
            self.atoms.set_positions(positions, apply_constraint=False)
            self.atoms.set_momenta(momenta, apply_constraint=False)
            if self.step % self.options.interval:
                self._write()
            raise SimkitError(
                f"the simulation broke down in step {self.step + 1} ({(self.step + 1) * self.options.timestep:g} fs): {problem}. The last "
                f"frame of {self.output.trajectory_path} is the one before (step {self.step}). Relax the starting structure, shorten the "
                f"time step ({self.options.timestep:g} fs) or lower the temperature; if that does not help, the structure has left "
                "what the model was trained on"
            )
        self.step += 1
        return temperature

    def _write(self) -> None:
        time_fs = self.step * self.options.timestep
        self.output.write(self.atoms, self.step, time_fs, temperature_of(self.atoms, self.directions))

    def _save(self) -> None:
        self.output.flush()
        self._checkpoint(self.output.frames).save(self.folder / CHECKPOINT)

    def _checkpoint(self, frames: int) -> Checkpoint:
        return Checkpoint(
            identity=self.identity,
            step=self.step,
            frames=frames,
            directions=self.directions,
            generator=dict(self.rng.bit_generator.state),
            positions=self.atoms.get_positions(),
            momenta=self.atoms.get_momenta(),
        )
