"""`Simulation`: trajectories that do not depend on the batch, observers, and simulations that break down."""

from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.md.verlet import VelocityVerlet
from ase.units import fs
from simulations import Recorder, argon, lennard_jones, painn

import simkit
from simkit.calculator import Calculator
from simkit.errors import ConfigError, DataError, ElementError, GeometryError, OutputError, SimkitError
from simkit.md.ensembles.langevin import Langevin
from simkit.md.ensembles.nve import NVE
from simkit.md.simulation import Simulation
from simkit.md.state import State
from simkit.units import BOLTZMANN


def test_a_trajectory_of_ase(rng: np.random.Generator) -> None:
    atoms = molecule("CH3CH2OH")
    atoms.set_momenta(rng.normal(0.0, 0.3, (9, 3)))
    simulation = Simulation(painn(), atoms, NVE(0.5), dtype="float64")
    simulation.run(20)
    atoms.calc = Calculator(painn(), dtype="float64")
    VelocityVerlet(atoms, 0.5 * fs).run(20)
    found = simulation.atoms()[0]
    # ASE's constants of nature are those of CODATA 2014, simkit's those of 2018.
    np.testing.assert_allclose(found.positions, atoms.positions, rtol=0, atol=1e-8)
    np.testing.assert_allclose(found.get_momenta(), atoms.get_momenta(), rtol=0, atol=1e-7)


def test_energy_is_conserved_to_second_order() -> None:
    drifts = []
    for timestep, steps in ((4.0, 200), (2.0, 400)):
        record = Recorder(1, "conserved kinetic_energy energy")
        Simulation(lennard_jones(), argon(), NVE(timestep), temperature=40.0, seed=3, observers=[record]).run(steps)
        total = np.array([frame.values["conserved"][0] for frame in record.frames])
        parts = np.array([f.values["energy"][0] + f.values["kinetic_energy"][0] for f in record.frames])
        np.testing.assert_array_equal(total, parts)
        drifts.append(np.ptp(total))
    assert drifts[0] < 0.01 * 1.5 * 31 * BOLTZMANN * 40.0
    assert 3.2 < drifts[0] / drifts[1] < 4.8


def test_time_runs_backwards() -> None:
    simulation = Simulation(lennard_jones(), argon(), NVE(4.0), temperature=60.0)
    start = simulation.state.positions.clone()
    simulation.run(100)
    assert (simulation.state.positions - start).abs().max() > 0.3
    simulation.state.velocities.neg_()
    simulation.run(100)
    assert (simulation.state.positions - start).abs().max() < 1e-8


@pytest.mark.parametrize("ensemble", ["nve", "langevin"])
def test_replicas_do_not_know_each_other(ensemble: str) -> None:
    """To the bit for forces computed replica by replica; to rounding for a network (float64: 2e-16 angstrom measured)."""

    def make() -> Any:
        return NVE(2.0) if ensemble == "nve" else Langevin(2.0, 100.0, 0.01, seed=4)

    batch = [argon(), argon(3), argon()]
    together = Simulation(lennard_jones(), batch, make(), temperature=80.0, names=[7, 3, 9], seed=1)
    together.run(60)
    for k, name in enumerate([7, 3, 9]):
        alone = Simulation(lennard_jones(), batch[k], make(), temperature=80.0, names=[name], seed=1)
        alone.run(60)
        part = slice(together.state.offsets[k], together.state.offsets[k + 1])
        assert torch.equal(together.state.positions[part], alone.state.positions)
        assert torch.equal(together.state.velocities[part], alone.state.velocities)
        assert together.state.energy[k] == alone.state.energy[0]

    molecules = [molecule("CH3CH2OH"), molecule("CH4"), molecule("H2O")]
    together = Simulation(painn(), molecules, make(), temperature=80.0, names=[7, 3, 9], seed=1, dtype="float64")
    together.run(30)
    alone = Simulation(painn(), molecules[1], make(), temperature=80.0, names=[3], seed=1, dtype="float64")
    alone.run(30)
    np.testing.assert_allclose(together.state.positions[9:14], alone.state.positions, rtol=0, atol=1e-13)


def test_copies_have_names_and_paths_of_their_own() -> None:
    simulation = Simulation(lennard_jones(), argon(), Langevin(4.0, 80.0, 0.05, seed=2), replicas=3, temperature=80.0)
    assert simulation.state.replicas.tolist() == [0, 1, 2]
    simulation.run(5)
    first, second, third = simulation.state.positions.view(3, -1)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_runs_may_be_cut_anywhere() -> None:
    whole = Simulation(lennard_jones(), argon(), Langevin(4.0, 80.0, 0.05, seed=2), temperature=80.0)
    whole.run(230)
    parts = Simulation(lennard_jones(), argon(), Langevin(4.0, 80.0, 0.05, seed=2), temperature=80.0)
    for steps in (1, 0, 99, 3, 127):
        parts.run(steps)
    assert parts.step == whole.step == 230
    assert torch.equal(parts.state.positions, whole.state.positions)
    assert torch.equal(parts.state.velocities, whole.state.velocities)


def test_observers_see_what_they_need_when_they_need_it() -> None:
    often = Recorder(2, "temperature conserved")
    rarely = Recorder(5, "positions cells pressure stress volume forces kinetic_energy")
    simulation = Simulation(lennard_jones(), argon(), NVE(4.0), temperature=50.0, observers=[often, rarely])
    simulation.run(4)
    simulation.run(8)
    assert often.steps() == [0, 2, 4, 6, 8, 10, 12]
    assert rarely.steps() == [0, 5, 10]
    assert simulation.frames == [7, 3]
    assert often.frames[0].values["temperature"] == pytest.approx(50.0)
    assert rarely.frames[2].time_fs == 40.0
    assert set(rarely.frames[0].values) == rarely.needs | {"temperature", "conserved"}
    again = Simulation(lennard_jones(), argon(), NVE(4.0), temperature=50.0)
    again.run(10)
    np.testing.assert_array_equal(rarely.frames[2].values["positions"], again.state.positions.numpy())
    state = again.state
    again.forces.compute(state, stress=True)
    np.testing.assert_allclose(rarely.frames[2].values["pressure"], state.pressure().numpy(), rtol=1e-12)
    np.testing.assert_allclose(
        np.trace(rarely.frames[2].values["pressure"][0]) * float(state.volume()),
        2 * float(state.kinetic_energy()) - float(torch.trace(state.stress[0]) * state.volume()),
        rtol=1e-12,
    )


def test_files_are_flushed_and_closed_whatever_happens() -> None:
    stops = Recorder(5, fail_at=10)
    simulation = Simulation(lennard_jones(), argon(), NVE(4.0), temperature=50.0, observers=[stops])
    with pytest.raises(SimkitError, match="enough"):
        simulation.run(100)
    assert simulation.step == 10
    assert stops.log[-2:] == ["flush", "close"]
    with pytest.raises(ConfigError, match="closed"):
        simulation.run(1)
    record = Recorder(5)
    with Simulation(lennard_jones(), argon(), NVE(4.0), temperature=50.0, observers=[record]) as simulation:
        simulation.run(3)
    assert record.log == [("open", None), "flush", "flush", "flush", "close"]


def test_only_what_was_opened_is_closed() -> None:
    class Unwritable(Recorder):
        def open(self, state: State, timestep: float, kept: int | None) -> None:
            raise OutputError("no room")

    first, third = Recorder(1), Recorder(1)
    simulation = Simulation(lennard_jones(), argon(), NVE(4.0), observers=[first, Unwritable(1), third])
    with pytest.raises(OutputError, match="no room"):
        simulation.run(1)
    assert first.log == [("open", None), "flush", "close"]
    assert third.log == []


def test_an_absurd_timestep_leaves_the_last_good_frame() -> None:
    record = Recorder(5)
    simulation = Simulation(
        lennard_jones(), [argon(), argon()], NVE(60.0), temperature=300.0, seed=2, observers=[record]
    )
    with pytest.raises(SimkitError, match=r"broke down in step \d+ .*replica [01].*shorten the time step") as caught:
        simulation.run(2000)
    message = str(caught.value)
    step = int(message.split("in step ")[1].split()[0])
    assert simulation.step == step - 1
    assert record.steps()[-1] == (step - 1) // 5 * 5
    # The state is what a simulation that stopped before would have.
    again = Simulation(lennard_jones(), [argon(), argon()], NVE(60.0), temperature=300.0, seed=2)
    again.run(step - 1)
    assert torch.equal(again.state.positions, simulation.state.positions)
    assert record.log[-2:] == ["flush", "close"]


class Failing:
    """Forces that go wrong for one replica at one step."""

    device = torch.device("cpu")

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def compute(self, state: State, *, energy: bool = True, stress: bool = False) -> None:
        state.forces.copy_(-0.1 * state.positions)
        state.energy.copy_(0.05 * state.total((state.positions**2).sum(1)))
        if float(state.positions[2, 0]) > 0.21:
            if self.kind == "nan":
                state.forces[2] = torch.nan
            elif self.kind == "energy":
                state.energy[1] = torch.inf
            else:
                raise GeometryError("too close")

    def identity(self) -> str:
        return "failing"

    def forget(self) -> None:
        pass


@pytest.mark.parametrize("kind", ["nan", "energy", "geometry"])
def test_what_goes_wrong_is_named(kind: str) -> None:
    structures = [Atoms("H2", [[0, 0, 0], [1, 0, 0]]) for _ in range(2)]
    simulation = Simulation(Failing(kind), structures, NVE(1.0))
    simulation.state.velocities[2, 0] = 0.01  # 0.21 angstrom after some twenty steps
    message = {"nan": "replica 1: ", "energy": "replica 1: the potential energy is inf", "geometry": "too close"}[kind]
    with pytest.raises(SimkitError, match=f"broke down in step 2[0-9] .*{message}"):
        simulation.run(50)
    assert 0.19 < float(simulation.state.positions[2, 0]) <= 0.21
    assert simulation.state.forces.isfinite().all()


def test_velocities_of_the_structure_are_kept(rng: np.random.Generator) -> None:
    atoms = argon()
    atoms.set_velocities(rng.normal(0.0, 0.01, (32, 3)))
    simulation = Simulation(lennard_jones(), atoms, NVE(4.0))
    np.testing.assert_allclose(simulation.atoms()[0].get_velocities(), atoms.get_velocities(), rtol=1e-14)


def test_bad_input_is_refused() -> None:
    flat, weightless, lost = argon(), argon(), argon()
    flat.cell[2] = flat.cell[1]
    weightless.set_masses(np.zeros(32))
    lost.positions[3] = np.nan
    model, nve = lennard_jones(), NVE(4.0)
    for structures, error, message in (
        ([argon(), flat], GeometryError, "cell of replica 1 has no volume"),
        (weightless, DataError, "masses that are not positive"),
        (lost, GeometryError, "positions of replica 0"),
        ([], DataError, "at least one structure"),
        (Atoms(), DataError, "no atoms"),
    ):
        with pytest.raises(error, match=message):
            Simulation(model, structures, nve)
    with pytest.raises(ElementError, match="replica 0 holds Ar"):
        Simulation(painn(), argon(), nve)
    with pytest.raises(SimkitError, match="same place|coincide"):
        Simulation(model, Atoms("Ar2", np.zeros((2, 3)), cell=np.eye(3) * 20, pbc=True), nve)
    with pytest.raises(ConfigError, match="needs colour"):
        Simulation(model, argon(), nve, observers=[Recorder(1, "colour")])
    with pytest.raises(ConfigError, match="interval of an observer"):
        Simulation(model, argon(), nve, observers=[Recorder(0)])
    with pytest.raises(ConfigError, match="names"):
        Simulation(model, argon(), nve, replicas=2, names=[1, 1])
    with pytest.raises(ConfigError, match="temperature"):
        Simulation(model, argon(), nve, temperature=-1.0)
    with pytest.raises(ConfigError, match="steps"):
        Simulation(model, argon(), nve).run(-1)


def test_cells_smaller_than_the_cutoff(rng: np.random.Generator) -> None:
    """A primitive cell with images moves as the crystal that it stands for."""
    primitive = bulk("Ar", "fcc", a=5.4, cubic=True)
    velocities = rng.normal(0.0, 0.002, (4, 3))
    primitive.set_velocities(velocities / fs)
    crystal = primitive.repeat(2)
    simulation = Simulation(lennard_jones(), [primitive, crystal], NVE(4.0))
    simulation.run(50)
    small, large = simulation.state.positions[:4], simulation.state.positions[4:8]
    np.testing.assert_allclose(small.numpy(), large.numpy(), rtol=0, atol=1e-9)
    assert abs(float(simulation.state.energy[1] - 8 * simulation.state.energy[0])) < 1e-9


def test_any_calculator_of_ase(rng: np.random.Generator) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.set_momenta(rng.normal(0.0, 1.0, (4, 3)))
    simulation = Simulation(EMT(), atoms, NVE(2.0))
    simulation.run(10)
    atoms.calc = EMT()
    VelocityVerlet(atoms, 2.0 * fs).run(10)
    np.testing.assert_allclose(simulation.state.positions.numpy(), atoms.positions, rtol=0, atol=1e-7)


def test_the_engine_is_at_hand() -> None:
    assert simkit.md.Simulation is Simulation
    with pytest.raises(AttributeError, match="no attribute 'Simulations'"):
        _ = simkit.md.Simulations
