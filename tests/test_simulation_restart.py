"""Simulations that are stopped and go on: every ensemble, to the bit; interrupts; checkpoints of something else."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import bulk
from simulations import Recorder, argon, lennard_jones, painn

from simkit.classical import ClassicalPotential, Morse
from simkit.errors import ConfigError, OutputError
from simkit.md.ensembles import NVE, Bussi, Langevin, MartynaTobiasKlein, NoseHooverChain, Ramp, StochasticCell
from simkit.md.protocols import Ensemble, Frame
from simkit.md.simulation import Simulation
from simkit.units import GPA

ENSEMBLES: dict[str, Callable[[], Ensemble]] = {
    "nve": lambda: NVE(2.0),
    "langevin": lambda: Langevin(2.0, 300.0, 0.02, seed=6),
    "ramp": lambda: Langevin(2.0, Ramp(300.0, 100.0, 100), 0.02, seed=6),
    "nose-hoover": lambda: NoseHooverChain(2.0, 300.0, 50.0),
    "bussi": lambda: Bussi(2.0, 300.0, 20.0, seed=6),
    "scr": lambda: StochasticCell(2.0, 300.0, GPA, 0.1 / GPA, 20.0, 50.0, seed=6, coupling="anisotropic"),
    "mtk": lambda: MartynaTobiasKlein(2.0, 300.0, GPA, 50.0, 200.0),
}


@pytest.mark.parametrize("name", ENSEMBLES)
@pytest.mark.parametrize("model", ["classical", "neural"])
def test_a_restart_goes_on_to_the_bit(model: str, name: str, tmp_path: Path) -> None:
    def make(file: str) -> tuple[Simulation, Recorder]:
        record = Recorder(7, "positions velocities cells energy conserved")
        silicon = bulk("Si", cubic=True)
        forces, structures = (
            (lennard_jones(), [argon(3), argon(2)]) if model == "classical" else (painn(), [silicon, silicon])
        )
        return Simulation(
            forces, structures, ENSEMBLES[name](), temperature=300.0, observers=[record], checkpoint=tmp_path / file,
            checkpoint_interval=20,
        ), record  # fmt: skip

    whole, all_frames = make("whole.npz")
    whole.run(80)
    killed, first_frames = make("killed.npz")
    killed.run(37)
    killed.run(6)  # a checkpoint at step 43: not a multiple of the interval
    resumed, last_frames = make("killed.npz")
    resumed.restore(tmp_path / "killed.npz")
    assert resumed.step == 43
    resumed.run(37)
    for quantity in ("positions", "velocities", "forces", "cells", "energy"):
        assert torch.equal(getattr(resumed.state, quantity), getattr(whole.state, quantity))
    assert resumed.state.extra.keys() == whole.state.extra.keys()
    assert all(torch.equal(value, whole.state.extra[key]) for key, value in resumed.state.extra.items())
    assert last_frames.log[0] == ("open", len(first_frames.frames))
    assert first_frames.steps() + last_frames.steps() == all_frames.steps() == list(range(0, 81, 7))
    for a, b in zip(all_frames.frames, first_frames.frames + last_frames.frames, strict=True):
        for key, values in a.values.items():
            np.testing.assert_array_equal(values, b.values[key])


def test_forgotten_lists_change_the_last_bits(tmp_path: Path) -> None:
    """Without the positions that lists were built from, the restart above would not be exact: so the test can fail."""

    def make() -> Simulation:
        return Simulation(lennard_jones(), argon(3), NVE(4.0), temperature=300.0)

    whole, saved = make(), make()
    whole.run(160)
    saved.run(70)
    saved.save_checkpoint(tmp_path / "c.npz")
    resumed = make()
    resumed.restore(tmp_path / "c.npz")
    del resumed.state.extra["classical.list"]
    resumed.run(90)
    assert not torch.equal(resumed.state.positions, whole.state.positions)
    assert torch.allclose(resumed.state.positions, whole.state.positions, atol=1e-9)


def test_another_system_is_refused_at_restart(tmp_path: Path) -> None:
    def make(**changes: Any) -> Simulation:
        options: dict[str, Any] = {
            "model": lennard_jones(), "structures": argon(), "ensemble": NVE(4.0), "temperature": 50.0, **changes
        }  # fmt: skip
        return Simulation(**options)

    saved = make()
    saved.run(3)
    saved.save_checkpoint(tmp_path / "c.npz")
    make().restore(tmp_path / "c.npz")
    moved = argon()
    moved.positions[0, 0] += 1e-9
    other = ClassicalPotential([Morse(0.01, 1.2, 3.8, cutoff=8.0)], cell=np.eye(3), pbc=True)
    for changes in (
        {"structures": moved},
        {"ensemble": NVE(3.0)},
        {"model": other},
        {"seed": 1},
        {"temperature": 51.0},
    ):
        with pytest.raises(OutputError, match="cannot be continued"):
            make(**changes).restore(tmp_path / "c.npz")
    with pytest.raises(ConfigError, match="before the first run"):
        saved.restore(tmp_path / "c.npz")


def test_an_interrupt_saves_a_checkpoint(tmp_path: Path) -> None:
    class Interrupting(Recorder):
        def observe(self, frame: Frame) -> None:
            super().observe(frame)
            if frame.step == 20:
                os.kill(os.getpid(), signal.SIGTERM)

    path = tmp_path / "c.npz"

    def make(observer: Recorder) -> Simulation:
        return Simulation(
            lennard_jones(), argon(), NVE(4.0), temperature=50.0, observers=[observer], checkpoint=path,
            checkpoint_interval=1000,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        make(Interrupting(4)).run(100)
    resumed = make(Recorder(4))
    resumed.restore(path)
    assert resumed.step == 20
    assert resumed.frames == [6]
