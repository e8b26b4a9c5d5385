"""What every ensemble keeps: restarts to the bit, independence of the batch, its conserved quantity, frozen atoms, settings and errors."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from pydantic import ValidationError

from simkit.errors import ConfigError
from simkit.md.ensembles import (
    ENSEMBLES,
    NVE,
    Bussi,
    EnsembleOptions,
    Langevin,
    MartynaTobiasKlein,
    NoseHooverChain,
    Ramp,
    StochasticCell,
    ensemble_from_options,
)
from simkit.md.ensembles.options import KNOWN
from simkit.md.state import State
from simkit.units import GPA

BARIC = {"scr", "npt", "mtk"}
STEP = 2.0


class Crystal:
    """Springs of a stiffening force between all atoms of a replica of four and their nearest images; any cell; energy and stress."""

    stiffness, hardening, length = 1.0, 2.0, 2.0

    def compute(self, state: State, *, energy: bool = True, stress: bool = False) -> None:
        b = state.size
        x = state.positions.view(b, 4, 3)
        shift = torch.zeros(1, 3, dtype=torch.float64)
        if state.pbc.all():
            shift = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)] * 3)
        apart = x[:, :, None] - x[:, None]
        apart = apart[:, :, :, None] + (shift @ state.cells)[:, None, None]  # [B, 4, 4, images, 3]
        distance = apart.square().sum(-1).clamp(min=1e-12).sqrt()
        range_ = torch.where((distance > 1e-3) & (distance < 3.5), (1 - distance / 3.5).clamp(min=0), 0.0)
        # U(d) = (k/2 (d - l)^2 + g/4 (d - l)^4) w^4 with w = 1 - d / 3.5, which is smooth at the cutoff
        stretch = distance - self.length
        shape = 0.5 * self.stiffness * stretch**2 + 0.25 * self.hardening * stretch**4 - 0.6
        slope = (self.stiffness * stretch + self.hardening * stretch**3) * range_**4 - shape * 4 * range_**3 / 3.5
        pull = (slope / distance)[..., None] * apart
        state.forces.copy_(-pull.sum((2, 3)).reshape(-1, 3))
        if energy:
            state.energy.copy_(0.5 * (shape * range_**4).sum((1, 2, 3)))
        if stress:
            tensor = 0.5 * torch.einsum("bijka,bijkc->bac", pull, apart)
            state.stress.copy_(tensor / state.volume()[:, None, None])


def crystal(replicas: int = 3, seed: int = 1, periodic: bool = True, temperature: float = 300.0) -> State:
    """Four atoms near an fcc lattice, each replica with noise of its own; the centre of mass at rest."""
    rng = np.random.default_rng(seed)
    places = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]) * 2.9
    atoms = []
    for _ in range(replicas):
        moved = places + rng.normal(0, 0.1, (4, 3))
        cell = 2.9 * np.eye(3) + rng.normal(0, 0.02, (3, 3))
        atoms.append(
            Atoms("H4", positions=moved, cell=cell if periodic else None, pbc=periodic, masses=[20, 30, 25, 40])
        )
        momenta = rng.normal(size=(4, 3)) * np.sqrt(atoms[-1].get_masses() * temperature * 8.6e-5)[:, None]
        atoms[-1].set_momenta(momenta - momenta.mean(0))
    return State.from_atoms(atoms)


def make(name: str, timestep: float = STEP, **options: Any) -> Any:
    """An ensemble with couplings that show within a hundred steps; barostats change the shape of the cell."""
    quick: dict[str, Any] = {
        "temperature": 300.0, "pressure": 2.0, "friction": 0.02, "damping": 50.0, "pressure_damping": 200.0,
        "time_constant": 50.0, "pressure_time": 200.0, "compressibility": 0.05, "coupling": "anisotropic", "seed": 5,
    }  # fmt: skip
    known = {key: value for key, value in quick.items() if key in KNOWN[name]}
    return ensemble_from_options(EnsembleOptions(ensemble=name, timestep=timestep, **(known | options)))  # type: ignore[arg-type]


def begin(ensemble: Any, state: State) -> tuple[State, Crystal]:
    forces = Crystal()
    forces.compute(state, stress=ensemble.needs_stress)
    ensemble.start(state)
    return state, forces


def everything(state: State) -> dict[str, np.ndarray]:
    arrays = {
        name: getattr(state, name) for name in ("positions", "velocities", "forces", "cells", "energy", "degrees")
    }
    return {name: tensor.numpy().copy() for name, tensor in (arrays | state.extra).items()}


def replica(state: State, k: int) -> State:
    """One replica with its name; alone in its batch."""
    alone = State.from_atoms([state.to_atoms()[k]])
    alone.velocities.copy_(state.velocities[state.structure == k])
    alone.replicas[:] = state.replicas[k]
    return alone


def ramped(name: str) -> dict[str, Any]:
    options: dict[str, Any] = {"final_temperature": 500.0, "ramp_steps": 17} if name != "nve" else {}
    return options | ({"final_pressure": 4.0} if name in BARIC else {})


@pytest.mark.parametrize("ramp", [False, True], ids=["constant", "ramp"])
@pytest.mark.parametrize("name", list(ENSEMBLES))
def test_a_run_may_be_cut(name: str, ramp: bool) -> None:
    """Several calls, with a new ensemble and a new state made of copies between them, give the bits of one."""
    options = ramped(name) if ramp else {}
    whole, forces = begin(make(name, **options), crystal())
    memory = whole.positions.data_ptr(), whole.velocities.data_ptr(), whole.cells.data_ptr()
    make(name, **options).advance(whole, forces, 23)
    assert memory == (whole.positions.data_ptr(), whole.velocities.data_ptr(), whole.cells.data_ptr())
    state, forces = begin(make(name, **options), crystal())
    for steps in (1, 7, 0, 15):
        copy = crystal(seed=2)
        for field in ("positions", "velocities", "forces", "cells", "energy", "stress"):
            getattr(copy, field).copy_(getattr(state, field))
        copy.step, copy.extra = state.step, {key: value.clone() for key, value in state.extra.items()}
        state, ensemble = copy, make(name, **options)
        ensemble.start(state)
        ensemble.advance(state, forces, steps)
    assert state.step == whole.step == 23
    for key, value in everything(whole).items():
        np.testing.assert_array_equal(everything(state)[key], value, err_msg=key)
    again = crystal()
    again.positions.copy_(whole.positions)
    again.cells.copy_(whole.cells)
    forces.compute(again)
    np.testing.assert_array_equal(again.forces, whole.forces)
    np.testing.assert_array_equal(again.energy, whole.energy)


@pytest.mark.parametrize("name", list(ENSEMBLES))
def test_a_replica_does_not_see_the_others(name: str) -> None:
    start = crystal(5)
    start.replicas[:] = [3, 9, 2**31, 7, 1]
    alone = [replica(start, k) for k in (4, 2)]
    together, forces = begin(make(name), start)
    make(name).advance(together, forces, 40)
    assert not np.allclose(
        together.positions[:4] - together.positions[4:8], crystal(5).positions[:4] - crystal(5).positions[4:8]
    )
    for k, state in zip((4, 2), alone, strict=True):
        ensemble = make(name)
        begin(ensemble, state)
        ensemble.advance(state, forces, 40)
        np.testing.assert_allclose(state.positions, together.positions[together.structure == k], rtol=0, atol=1e-10)
        np.testing.assert_allclose(state.velocities, together.velocities[together.structure == k], rtol=0, atol=1e-12)
        np.testing.assert_allclose(ensemble.conserved(state), ensemble.conserved(together)[k], rtol=0, atol=1e-9)


def error_of_conserved(name: str, timestep: float, options: dict[str, Any]) -> tuple[float, float]:
    """Root mean square of what the conserved quantity changes by within 240 fs, and of the total energy, over replicas and times."""
    ensemble = make(name, timestep, **options)
    state, forces = begin(ensemble, crystal(48))
    first, energy = ensemble.conserved(state), state.energy + state.kinetic_energy()
    changes, others = [], []
    for _ in range(12):
        ensemble.advance(state, forces, round(20 / timestep))
        changes.append(ensemble.conserved(state) - first)
        others.append(state.energy + state.kinetic_energy() - energy)
    return tuple(float(torch.stack(c).square().mean().sqrt()) for c in (changes, others))  # type: ignore[return-value]


@pytest.mark.parametrize("ramp", [False, True], ids=["constant", "ramp"])
@pytest.mark.parametrize("name", ["nve", "langevin", "nose-hoover", "bussi", "scr", "mtk"])
def test_conserved_quantity(name: str, ramp: bool) -> None:
    """Its error is of second order in the timestep, also with ramps, and far below what the energy itself changes by.

    Work of the barostat is measured along a random path, whose steps are the square root of a timestep: its error is of first order.
    """
    errors = {}
    for timestep in (4.0, 1.0):
        options = ramped(name) if ramp else {}
        if "ramp_steps" in options:
            options["ramp_steps"] = round(160 / timestep)
        errors[timestep], energy = error_of_conserved(name, timestep, options)
    order = math.log(errors[4.0] / errors[1.0]) / math.log(4)
    assert abs(order - (1.35 if name == "scr" else 2.0)) < 0.35, errors
    if name != "nve":
        assert energy > 100 * errors[4.0]


def test_frozen_atoms() -> None:
    for name in sorted(set(ENSEMBLES) - BARIC):
        atoms = crystal(2).to_atoms()
        atoms[0].set_constraint(FixAtoms([2]))
        atoms[1].set_constraint(FixAtoms([0, 1]))
        state = State.from_atoms(atoms)
        frozen = ~state.mobile
        where = state.positions.clone()
        ensemble = make(name)
        begin(ensemble, state)
        ensemble.advance(state, Crystal(), 30)
        assert state.degrees.tolist() == [9, 6]
        assert torch.equal(state.positions[frozen], where[frozen])
        assert not state.velocities[frozen].any()
        assert (state.positions[~frozen] != where[~frozen]).all()
        assert torch.isfinite(ensemble.conserved(state)).all()
    for name in sorted(BARIC):
        with pytest.raises(ConfigError, match="replica 0 has frozen ones"):
            make(name).start(state)


def test_degrees_of_freedom() -> None:
    """Less what is conserved and zero: momentum, and angular momentum of isolated structures, less for linear ones."""

    def degrees(name: str, atoms: Atoms) -> float:
        state = State.from_atoms([atoms])
        make(name).start(state)
        return float(state.degrees)

    water = Atoms("H2O", positions=[[0.8, 0.6, 0], [-0.8, 0.6, 0], [0, 0, 0]])
    line = Atoms("OCO", positions=[[0, 0, z] for z in (-1.2, 0, 1.2)])
    moving, turning, boxed = water.copy(), water.copy(), water.copy()
    moving.set_velocities([[0.1, 0, 0]] * 3)
    turning.set_velocities(np.cross([0, 0, 0.1], water.positions - water.get_center_of_mass()))
    boxed.set_cell(np.eye(3) * 9)
    boxed.pbc = True
    for name in ("nve", "nose-hoover", "bussi"):
        found = [degrees(name, atoms) for atoms in (water, line, moving, turning, boxed, Atoms("O"))]
        assert found == [3, 4, 9, 6, 6, 3]
    assert [degrees("langevin", atoms) for atoms in (water, line, boxed)] == [9, 9, 9]
    assert degrees("scr", boxed) == degrees("mtk", boxed) == 6


@pytest.mark.parametrize("name", ["nose-hoover", "bussi", "scr", "mtk"])
def test_centre_of_mass(name: str) -> None:
    """Without removal a momentum of zero stays zero; with it, one that is not is taken away, and degrees of freedom with it."""
    state, forces = begin(make(name), crystal())
    make(name).advance(state, forces, 30)
    assert state.total(state.velocities * state.masses[:, None]).abs().max() < 1e-12
    state = crystal()
    state.velocities.add_(0.01)
    begin(make(name, remove_com=True), state)
    assert (state.degrees == 9).all()
    make(name, remove_com=True).advance(state, forces, 3)
    assert state.total(state.velocities * state.masses[:, None]).abs().max() < 1e-15
    atoms = crystal(1).to_atoms()
    atoms[0].set_constraint(FixAtoms([2]))
    with pytest.raises(ConfigError, match="frozen"):
        make(name, remove_com=True).start(State.from_atoms(atoms))
    if name not in BARIC:
        with pytest.raises(ConfigError, match="one atom"):
            make(name, remove_com=True).start(State.from_atoms([Atoms("O")]))


@pytest.mark.parametrize("name", list(ENSEMBLES))
def test_settings_are_plain(name: str) -> None:
    settings = make(name, **ramped(name)).settings()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["timestep"] == make(name).timestep == STEP
    assert settings != make(name).settings() or name == "nve"
    if name in BARIC:
        assert settings["pressure"] == {"start": 2 * GPA, "stop": 4 * GPA, "steps": 17}


def test_ramps() -> None:
    """With a strong coupling the temperature follows a ramp, and stays at its end."""
    ensemble = Bussi(2.0, Ramp([100.0, 300.0], [400.0, 100.0], 100), 5.0, 1)
    state, _ = begin(ensemble, State.from_atoms([a for b in range(2) for a in crystal(1, b).to_atoms()]))
    target = ensemble.temperature
    for step, expected in ((0, [100, 300]), (25, [175, 250]), (100, [400, 100]), (1000, [400, 100])):
        assert target.at(step, state.degrees).tolist() == target.at_host(step, 2).tolist() == expected
    with pytest.raises(ConfigError, match="one for each replica; found 2"):
        ensemble.start(crystal(3))


WRONG: list[tuple[Any, str]] = [
    (lambda: NVE(0.0), "timestep must be a positive number; found 0.0"),
    (lambda: NVE(math.nan), "timestep must be a positive number"),
    (lambda: NVE(1.0, "baoab"), "has noise"),
    (lambda: NVE(1.0, "verlet"), "unknown integrator 'verlet'"),
    (lambda: Langevin(1.0, 300.0, 0.01, 1, "velocity-verlet"), "has no noise"),
    (lambda: Langevin(1.0, -300.0, 0.01, 1), "temperature must be positive and finite; found -300"),
    (lambda: Langevin(1.0, [300.0, math.inf], 0.01, 1), "temperature must be positive and finite"),
    (lambda: Langevin(1.0, "hot", 0.01, 1), "temperature must be a number"),  # type: ignore[arg-type]
    (lambda: Langevin(1.0, 300.0, 0.0, 1), "friction must be a positive number"),
    (lambda: Langevin(1.0, 300.0, 0.1, -1), "seed must be a whole number"),
    (lambda: Bussi(1.0, 300.0, 100.0, 1.5), "seed must be a whole number"),  # type: ignore[arg-type]
    (lambda: Bussi(1.0, 300.0, -1.0, 1), "time_constant must be a positive number"),
    (lambda: NoseHooverChain(1.0, 300.0, 5.0), "damping must be at least ten timesteps, 10 fs; found 5 fs"),
    (lambda: NoseHooverChain(1.0, 300.0, 50.0, chain=0), "chain must be a whole number, at least 1"),
    (lambda: NoseHooverChain(1.0, 300.0, 50.0, substeps=0), "substeps must be a whole number"),
    (lambda: NoseHooverChain(1.0, 300.0, 50.0, suzuki_yoshida=2), "suzuki_yoshida must be 1, 3 or 5"),
    (lambda: StochasticCell(1.0, 300.0, 0.0, 1.0, 50.0, 500.0, 1, "flexible"), "coupling must be"),
    (lambda: StochasticCell(1.0, 300.0, 0.0, 0.0, 50.0, 500.0, 1), "compressibility must be a positive number"),
    (lambda: MartynaTobiasKlein(1.0, 300.0, math.nan, 50.0, 500.0), "pressure must be finite"),
    (lambda: MartynaTobiasKlein(1.0, 300.0, 0.0, 50.0, 5.0), "pressure_damping must be at least ten"),
    (lambda: Ramp(1.0, 2.0, 0), "a ramp takes a whole number of steps"),
    (lambda: make("scr").start(crystal(2, periodic=False)), "replica 0 has pbc"),
    (lambda: make("mtk").start(crystal(2, periodic=False)), "periodic in all directions"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_unusable_parameters_are_refused(wrong: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wrong()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ensemble": "nve", "friction": 0.1}, "the ensemble nve has no friction"),
        ({"ensemble": "nvt", "pressure": 3.0}, "the ensemble nvt has no pressure"),
        ({"ensemble": "npt", "damping": 50.0}, "the ensemble npt has no damping"),
        ({"ensemble": "langevin", "final_temperature": 50.0}, "a ramp needs ramp_steps"),
        ({"ensemble": "langevin", "ramp_steps": 50}, "a ramp needs ramp_steps"),
        ({"ensemble": "nvtt"}, "Input should be 'nve'"),
    ],
)
def test_options_of_other_ensembles_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EnsembleOptions(**options)
