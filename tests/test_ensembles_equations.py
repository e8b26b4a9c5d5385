"""The equations of motion, written out in loops and integrated by SciPy, against the ensembles without noise; ASE; reversibility."""

from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.md.verlet import VelocityVerlet
from ase.units import fs
from scipy.integrate import solve_ivp

from simkit.integrators import philox, philox_torch
from simkit.md.ensembles import NVE, Bussi, MartynaTobiasKlein, NoseHooverChain, StochasticCell
from simkit.md.ensembles.noise import ReplicaNoise
from simkit.md.ensembles.strain import exponential, exponential_mean
from simkit.md.ensembles.validation import two_state_slope
from simkit.md.state import State
from simkit.units import BOLTZMANN, FORCE_TO_ACCELERATION

MASSES = np.array([20.0, 30.0, 25.0])
DEGREES, KT = 6, BOLTZMANN * 300.0


def energy_and_slopes(x: np.ndarray, h: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy, forces and virial (derivative by strain) of three atoms and a cell: springs along bonds, some over the border."""
    energy, forces, virial = 0.0, np.zeros((3, 3)), np.zeros((3, 3))
    for i, j, image in ((0, 1, (0, 0, 0)), (1, 2, (0, 0, 0)), (0, 2, (1, 0, 0)), (2, 0, (0, 1, 0)), (1, 0, (0, 0, 1))):
        d = x[j] + np.array(image) @ h - x[i]
        pull = (0.03 + 0.002 * (d @ d)) * d
        energy += 0.015 * (d @ d) + 0.0005 * (d @ d) ** 2
        forces[i] += pull
        forces[j] -= pull
        virial += np.outer(d, pull)
    volume = np.linalg.det(h)
    energy -= 0.4 * np.log(volume)  # keeps the cell open
    return energy, forces, virial - 0.4 * np.eye(3)


class Bonds:
    """`energy_and_slopes` for a batch; a loop over replicas."""

    def compute(self, state: State, *, energy: bool = True, stress: bool = False) -> None:
        for k in range(state.size):
            part = slice(3 * k, 3 * k + 3)
            h = state.cells[k].numpy()
            u, forces, virial = energy_and_slopes(state.positions[part].numpy(), h)
            state.energy[k] = u
            state.forces[part] = torch.from_numpy(forces)
            if stress:
                state.stress[k] = torch.from_numpy(virial / np.linalg.det(h))


def bonds() -> State:
    rng = np.random.default_rng(4)
    atoms = Atoms("H3", positions=rng.normal(0, 1, (3, 3)), cell=4 * np.eye(3) + rng.normal(0, 0.3, (3, 3)), pbc=True)
    atoms.set_masses(MASSES)
    momenta = rng.normal(size=(3, 3)) * np.sqrt(MASSES * KT)[:, None]
    atoms.set_momenta(momenta - momenta.mean(0))
    return State.from_atoms([atoms])


def flatten(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate([np.ravel(part) for part in parts])


def chain_rates(v: np.ndarray, twice: float, degrees: float, damping: float) -> tuple[np.ndarray, float]:
    """Time derivatives of the velocities of a chain's links, and of its potential energy."""
    links = len(v)
    mass = np.array([degrees * KT * damping**2] + [KT * damping**2] * (links - 1))
    rates = np.empty(links)
    for k in range(links):
        force = twice - degrees * KT if k == 0 else mass[k - 1] * v[k - 1] ** 2 - KT
        rates[k] = force / mass[k] - (v[k] * v[k + 1] if k + 1 < links else 0)
    return rates, KT * (degrees * v[0] + v[1:].sum())


def nose_hoover(_: float, y: np.ndarray) -> np.ndarray:
    x, v, chain = y[:9].reshape(3, 3), y[9:18].reshape(3, 3), y[18:21]
    inertia = (MASSES / FORCE_TO_ACCELERATION)[:, None]
    rates, bath = chain_rates(chain, float((inertia * v**2).sum()), DEGREES, 40.0)
    acceleration = energy_and_slopes(x, bonds().cells[0].numpy())[1] / inertia - chain[0] * v
    return flatten(v, acceleration, rates, np.array([bath]))


PRESSURE = 0.01


def flexible_cell(coupling: str) -> Any:
    def rates(_: float, y: np.ndarray) -> np.ndarray:
        x, v, h, g = (y[9 * i : 9 * i + 9].reshape((3, 3)) for i in range(4))
        chain, cell_chain = y[36:39], y[39:42]
        inertia = MASSES / FORCE_TO_ACCELERATION
        virial = energy_and_slopes(x, h)[2]
        tensor = sum(m * np.outer(u, u) for m, u in zip(inertia, v, strict=True))
        inner = tensor - virial - PRESSURE * np.linalg.det(h) * np.eye(3) + np.trace(tensor) / DEGREES * np.eye(3)
        if coupling == "isotropic":
            inner = np.trace(inner) / 3 * np.eye(3)
        weight = (DEGREES + 3) * KT * 120.0**2 / 3
        own, bath = chain_rates(chain, float(np.trace(tensor)), DEGREES, 40.0)
        free = 1 if coupling == "isotropic" else 6
        cell_own, cell_bath = chain_rates(cell_chain, float(weight * (g**2).sum()), free, 40.0)
        forces = energy_and_slopes(x, h)[1]
        dv = [
            f / m - g @ u - (np.trace(g) / DEGREES + chain[0]) * u for f, m, u in zip(forces, inertia, v, strict=True)
        ]
        dx = [u + g @ r for u, r in zip(v, x, strict=True)]
        dh = [g @ row for row in h]
        dg = inner / weight - cell_chain[0] * g
        return flatten(*map(np.array, (dx, dv, dh)), dg, own, cell_own, np.array([bath, cell_bath]))

    return rates


CASES: dict[str, tuple[Any, Any, list[str]]] = {
    "nose-hoover": (
        lambda h: NoseHooverChain(h, 300.0, 40.0),
        nose_hoover,
        ["nose-hoover.chain", "nose-hoover.energy"],
    ),
    **{
        f"mtk-{coupling}": (
            lambda h, coupling=coupling: MartynaTobiasKlein(h, 300.0, PRESSURE, 40.0, 120.0, coupling),
            flexible_cell(coupling),
            ["mtk.rate", "mtk.chain", "mtk.energy"],
        )
        for coupling in ("isotropic", "anisotropic")
    },
}


def vector(state: State, names: list[str]) -> np.ndarray:
    tensors = [state.positions, state.velocities, *([state.cells] if "mtk.rate" in names else [])]
    return flatten(*(t.numpy() for t in (*tensors, *(state.extra[name] for name in names))))


@pytest.mark.parametrize("name", list(CASES))
def test_equations_of_motion(name: str) -> None:
    """The error against an exact solution of the published equations is of second order in the timestep."""
    make, rates, names = CASES[name]
    errors = []
    for timestep in (2.0, 1.0, 0.5):
        state, forces, ensemble = bonds(), Bonds(), make(timestep)
        forces.compute(state, stress=True)
        ensemble.start(state)
        assert state.degrees.tolist() == [DEGREES]
        if timestep == 2.0:
            exact = solve_ivp(rates, (0, 80), vector(state, names), method="DOP853", rtol=1e-11, atol=1e-13).y[:, -1]
        ensemble.advance(state, forces, round(80 / timestep))
        errors.append(np.abs(vector(state, names) - exact)[:9].max())
        chain = state.extra[names[-2]].numpy()
        assert np.abs(chain).min() > 1e-4  # all links have come to life
    assert errors[2] < 1e-3 * np.abs(exact[:9] - vector(bonds_started(make), names)[:9]).max()
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert 3.6 < coarse / fine < 4.4, errors


def bonds_started(make: Any) -> State:
    state = bonds()
    make(1.0).start(state)
    return state


@pytest.mark.parametrize("name", ["nve", *CASES])
def test_reversible(name: str) -> None:
    """With all velocities turned around, a simulation runs back to where it came from."""
    ensemble = NVE(2.0, "pefrl") if name == "nve" else CASES[name][0](2.0)
    state, forces = bonds(), Bonds()
    forces.compute(state, stress=True)
    ensemble.start(state)
    start = [t.clone() for t in (state.positions, state.velocities, state.cells)]
    ensemble.advance(state, forces, 60)
    assert (state.positions - start[0]).abs().max() > 0.1
    for tensor in (
        state.velocities,
        *(state.extra[key] for key in state.extra if key.split(".")[1] in ("chain", "rate")),
    ):
        tensor.neg_()
    ensemble.advance(state, forces, 60)
    for found, expected in zip((state.positions, -state.velocities, state.cells), start, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    for key, tensor in state.extra.items():
        if key.split(".")[1] in ("chain", "rate", "energy"):
            torch.testing.assert_close(tensor, torch.zeros_like(tensor), rtol=0, atol=1e-9)


class ForASE(Calculator):
    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - the interface of ASE

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        energy, forces, _ = energy_and_slopes(atoms.positions, atoms.cell.array)
        self.results = {"energy": energy, "forces": forces}


def test_nve_is_velocity_verlet_of_ase() -> None:
    state, forces = bonds(), Bonds()
    (atoms,) = state.to_atoms()
    atoms.calc = ForASE()
    # The two hold different releases of CODATA: masses are put right, so that accelerations are the same.
    state.masses.mul_(FORCE_TO_ACCELERATION * fs**-2)
    VelocityVerlet(atoms, timestep=1.5 * fs).run(100)
    ensemble = NVE(1.5)
    forces.compute(state)
    ensemble.start(state)
    ensemble.advance(state, forces, 100)
    np.testing.assert_allclose(state.positions, atoms.positions, rtol=0, atol=1e-11)
    np.testing.assert_allclose(state.velocities, atoms.get_velocities() * fs, rtol=0, atol=1e-13)
    np.testing.assert_allclose(state.energy, atoms.get_potential_energy(), rtol=1e-12)


def test_velocity_rescaling_as_written_out() -> None:
    """The factor of a step from its random numbers, one degree of freedom after the other."""
    state, forces = bonds(), Bonds()
    ensemble = Bussi(1.0, 450.0, 20.0, 77)
    forces.compute(state)
    ensemble.start(state)
    state.step = 12
    numbers = philox.normals(77, 12, np.zeros(2, dtype=int), np.arange(2), 65534).ravel()
    kinetic, c = float(state.kinetic_energy()), np.exp(-1 / 20)
    ratio = BOLTZMANN * 450.0 / 2 / kinetic
    squared = c + (1 - c) * ratio * sum(r**2 for r in numbers[:6]) + 2 * numbers[0] * np.sqrt(c * (1 - c) * ratio)
    factor = ensemble.thermostat.factor(state, state.kinetic_energy(), torch.tensor([450.0], dtype=torch.float64))
    np.testing.assert_allclose(factor.abs(), np.sqrt(squared), rtol=1e-13)


@pytest.mark.parametrize("coupling", ["isotropic", "anisotropic"])
def test_stochastic_cell_as_written_out(coupling: str) -> None:
    """One step from its random numbers: strain, positions, velocities before the thermostat, cell."""
    state, forces = bonds(), Bonds()
    ensemble = StochasticCell(2.0, 300.0, PRESSURE, 3.0, 1e9, 50.0, 5, coupling)
    forces.compute(state, stress=True)
    ensemble.start(state)
    x, v, h = (t.numpy().reshape(-1, 3).copy() for t in (state.positions, state.velocities, state.cells))
    inertia, volume = (MASSES / FORCE_TO_ACCELERATION)[:, None], np.linalg.det(h)
    _, force, virial = energy_and_slopes(x, h)
    inner = ((inertia * v).T @ v - virial) / volume
    r = philox.normals(5, 0, np.zeros(2, dtype=int), np.arange(2), 65533).ravel()
    noise = np.array([[r[0], r[3] / 2**0.5, r[4] / 2**0.5], [0, r[1], r[5] / 2**0.5], [0, 0, r[2]]])
    noise = noise + np.triu(noise, 1).T
    strain = (
        -(3.0 / 150) * 2.0 * (PRESSURE * np.eye(3) - inner) + np.sqrt(2 * KT * 3.0 * 2.0 / (3 * volume * 50)) * noise
    )
    if coupling == "isotropic":
        volume_strain = (
            -(3.0 / 50) * 2.0 * (PRESSURE - np.trace(inner) / 3) + np.sqrt(2 * KT * 3.0 * 2.0 / (volume * 50)) * r[0]
        )
        strain = volume_strain / 3 * np.eye(3)
    values, axes = np.linalg.eigh(strain)
    stretch = axes @ np.diag(np.exp(values)) @ axes.T
    v = v + force / inertia
    x = (x + v) @ stretch
    v = v @ np.linalg.inv(stretch)
    x, h = x + v, h @ stretch
    v = v + energy_and_slopes(x, h)[1] / inertia
    ensemble.advance(state, forces, 1)
    np.testing.assert_allclose(state.positions, x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(state.cells[0], h, rtol=0, atol=1e-12)
    np.testing.assert_allclose(state.velocities, v, rtol=1e-3)  # the thermostat takes 1e9 fs


def test_matrix_functions() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(0, 0.08, (5, 3, 3))
    matrix = torch.from_numpy(matrix + matrix.transpose(0, 2, 1))
    values, axes = torch.linalg.eigh(matrix)
    for function, of_value in ((exponential, torch.exp), (exponential_mean, lambda t: torch.expm1(t) / t)):
        expected = axes @ torch.diag_embed(of_value(values)) @ axes.mT
        torch.testing.assert_close(function(matrix), expected, rtol=0, atol=1e-14)


def test_noise_of_many_steps_at_once() -> None:
    """What is used on a GPU, against the numbers that a CPU makes step by step."""
    replica, row = np.repeat([3, 2**32 - 1], 4), np.tile(np.arange(4), 2)
    first = 2**32 - 2
    steps = range(first, first + 5)
    found = philox_torch.normals_of_steps(9, steps, torch.from_numpy(replica), torch.from_numpy(row), 65534)
    for place, step in enumerate(steps):
        np.testing.assert_allclose(found[place], philox.normals(9, step, replica, row, 65534), rtol=0, atol=1e-13)
    state = bonds()
    state.replicas[:], state.step = 3, first
    rows = ReplicaNoise(9, 65534).rows(state, np.array([4]))
    np.testing.assert_array_equal(rows, philox.normals(9, first, replica[:4], row[:4], 65534))


def test_two_state_slope() -> None:
    """Gaussian samples: the slope is known; its error is that of repeated estimates."""
    rng = np.random.default_rng(1)
    slopes, errors = [], []
    for _ in range(30):
        slope, error = two_state_slope(rng.normal(2.0, 1.5, (20, 32)), rng.normal(2.9, 1.5, (20, 32)))
        slopes.append(slope)
        errors.append(error)
    expected = 0.9 / 1.5**2
    assert abs(np.mean(slopes) - expected) < 4 * np.std(slopes) / 30**0.5
    assert 0.7 < np.mean(errors) / np.std(slopes) < 1.4
