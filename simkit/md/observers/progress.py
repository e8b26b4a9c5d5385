"""`Progress`: how a simulation is getting on, on one line of a terminal."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simkit.md.observers.files import check_interval

if TYPE_CHECKING:
    from simkit.md.protocols import Frame
    from simkit.md.state import State


class Progress:
    """A bar with temperature, energy, drift of the conserved quantity and steps per second; nothing, and no work, without a terminal.

    Temperature and energy are means over the replicas. The drift is that since the first look, per atom and picosecond.
    """

    PERIOD = 0.2  # seconds between two updates

    def __init__(self, steps: int, interval: int = 10) -> None:
        """``steps``: of the whole run, with those done before a restart. Raises ConfigError if the interval is not positive."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.interval, self._steps = check_interval(interval), steps
        self._shown = sys.stderr.isatty()
        self.needs = frozenset({"temperature", "energy", "conserved"} if self._shown else ())
        self._bar = Bar(
            TextColumn("MD"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"),
            console=Console(stderr=True),
            disable=not self._shown,
        )
        self._task = self._bar.add_task("MD", total=steps, state="")
        self._last = 0.0
        self._first: tuple[float, int, float, NDArray[np.float64]] | None = None
        self._atoms = 1

    def open(self, state: State, timestep: float, kept: int | None) -> None:
        """See `Observer.open`."""
        self._atoms = len(state.numbers)
        self._bar.start()

    def observe(self, frame: Frame) -> None:
        """See `Observer.observe`."""
        now = time.monotonic()
        if not self._shown:
            return
        if self._first is None:
            self._first = (now, frame.step, frame.time_fs, frame.values["conserved"].copy())
        if now - self._last > self.PERIOD or frame.step >= self._steps:
            self._last = now
            self._bar.update(self._task, completed=frame.step, state=self._text(frame, now))

    def flush(self) -> None:
        """See `Observer.flush`."""

    def close(self) -> None:
        """See `Observer.close`."""
        self._bar.stop()

    def _text(self, frame: Frame, now: float) -> str:
        values = frame.values
        text = f"T {values['temperature'].mean():6.0f} K   E {values['energy'].mean():.4f} eV"
        if self._first is None:
            return text
        started, step, time_fs, conserved = self._first
        if frame.step > step and now > started:
            drift = (values["conserved"] - conserved).sum() / self._atoms / (frame.time_fs - time_fs) * 1e6
            text += f"   drift {drift:.2g} meV/atom/ps   {(frame.step - step) / (now - started):.0f} steps/s"
        return text
