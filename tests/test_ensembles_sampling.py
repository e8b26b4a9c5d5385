"""What the ensembles sample, against exact laws: kinetic energies, energies at two temperatures, volumes and shapes of the cell.

Samples come from many independent replicas; errors are those of the means of replicas.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from scipy import stats
from torch import Tensor

from simkit.md.ensembles import Bussi, Langevin, MartynaTobiasKlein, NoseHooverChain, StochasticCell
from simkit.md.ensembles.validation import mean_and_error, two_state_slope
from simkit.md.state import State
from simkit.md.velocities import draw_velocities
from simkit.units import BOLTZMANN

MASSES = [8.0, 12.0, 10.0, 15.0]
COLD, HOT = 300.0, 400.0


class Springs:
    """Four atoms; each pair bound by a stiffening spring, and to the origin where there is a tether."""

    def __init__(self, tether: float) -> None:
        self.tether = tether

    def compute(self, state: State, *, energy: bool = True, stress: bool = False) -> None:
        x = state.positions.view(-1, 4, 3)
        apart = x[:, :, None] - x[:, None]
        squared = apart.square().sum(-1)
        pull = 0.4 * squared  # of U = 0.1 d^4 + tether x^2 / 2 + tether x^4 / 4
        own = x.square().sum(-1, keepdim=True)
        forces = -(pull[..., None] * apart).sum(2) - self.tether * (1 + own) * x
        state.forces.copy_(forces.reshape(-1, 3))
        if energy:
            field = self.tether * (own / 2 + own**2 / 4).sum((1, 2))
            state.energy.copy_(0.05 * squared.square().sum((1, 2)) + field)


class Gas:
    """Atoms that repel each other by their fractional coordinates, in a cell that is stiff against change of volume and shape.

    U = amplitude sum over pairs and directions of cos(2 pi (s_i - s_j)) + bulk/2 ln(V / V_0)^2 + shear tr(h h^T) / V^(2/3)

    The first term knows nothing of the cell: the density of the volume of N atoms with their centre of mass at rest is exactly
    V^(N - 1) exp(-(P V + bulk/2 ln(V / V_0)^2) / kT), whatever the shape.
    """

    amplitude, bulk, shear, reference = 0.02, 0.05, 0.03, 300.0

    def compute(self, state: State, *, energy: bool = True, stress: bool = False) -> None:
        cells, volume = state.cells, state.volume()
        inverse = torch.linalg.inv(cells)
        s = state.positions.view(state.size, -1, 3) @ inverse
        phase = 2 * math.pi * (s[:, :, None] - s[:, None])
        slope = -2 * math.pi * self.amplitude * torch.sin(phase).sum(2)
        state.forces.copy_(-(slope @ inverse.mT).reshape(-1, 3))
        metric, strain = cells.mT @ cells, torch.log(volume / self.reference)
        length, one = metric.diagonal(dim1=1, dim2=2).sum(1), torch.eye(3, dtype=torch.float64)
        scale = self.shear * volume ** (-2 / 3)
        if stress:
            tensor = (2 * scale)[:, None, None] * metric + (self.bulk * strain - 2 / 3 * scale * length)[
                :, None, None
            ] * one
            state.stress.copy_(tensor / volume[:, None, None])
        if energy:
            pairs = 0.5 * self.amplitude * torch.cos(phase).sum((1, 2, 3))
            state.energy.copy_(pairs + 0.5 * self.bulk * strain**2 + scale * length)


def molecules(temperature: np.ndarray) -> State:
    """Replicas with velocities of the highest temperature, without total and angular momentum."""
    atoms = Atoms("H4", positions=np.random.default_rng(5).normal(0, 0.5, (4, 3)), masses=MASSES)
    state = State.from_atoms([atoms] * len(temperature))
    draw_velocities(state, float(temperature.max()), 3)
    return state


def sample(
    ensemble: Any, forces: Any, state: State, skip: int, samples: int, interval: int, looks: Any
) -> list[np.ndarray]:
    """What ``looks`` return of the state, [samples, replicas] each."""
    forces.compute(state, stress=ensemble.needs_stress)
    ensemble.start(state)
    ensemble.advance(state, forces, skip)
    found: list[list[np.ndarray]] = [[] for _ in looks]
    for _ in range(samples):
        ensemble.advance(state, forces, interval)
        for series, look in zip(found, looks, strict=True):
            series.append(look(state).numpy().copy())
    return [np.array(series) for series in found]


def thermostats(temperature: Any) -> dict[str, Any]:
    return {
        "langevin": Langevin(4.0, temperature, 0.01, 11),
        "langevin-obabo": Langevin(4.0, temperature, 0.01, 11, "obabo"),
        "nose-hoover": NoseHooverChain(4.0, temperature, 60.0),
        "bussi": Bussi(4.0, temperature, 60.0, 11),
    }


@pytest.mark.parametrize("name", list(thermostats(1.0)))
def test_thermostat(name: str) -> None:
    """Kinetic energies follow the law of chi^2; potential energies at two temperatures differ by exp(-U (1/kT_1 - 1/kT_2))."""
    half = 256
    temperature = np.repeat([COLD, HOT], half)
    free = name.startswith("langevin")
    degrees = 12 if free else 6
    state, forces = molecules(temperature), Springs(0.5 if free else 0.0)
    if name == "nose-hoover":  # ergodic or not, it must leave the canonical ensemble as it is: of atoms and chain
        sample(Bussi(4.0, temperature, 60.0, 3), forces, state, 150, 0, 0, ())
        spread = np.sqrt([1 / degrees, 1.0, 1.0]) / 60.0  # of the links' velocities
        state.extra["nose-hoover.chain"] = torch.from_numpy(
            np.random.default_rng(2).normal(size=(2 * half, 3)) * spread
        )
    looks = (State.kinetic_energy, lambda s: s.energy)
    kinetic, potential = sample(thermostats(temperature)[name], forces, state, 150, 15, 45, looks)
    assert (state.degrees == degrees).all()
    law = stats.chi2(degrees)
    for replicas, t in ((np.s_[:half], COLD), (np.s_[half:], HOT)):
        scaled = 2 * kinetic[:, replicas] / (BOLTZMANN * t)
        assert stats.kstest(scaled[::3].ravel(), law.cdf).pvalue > 1e-3
        mean, error = mean_and_error(scaled)
        assert abs(mean - degrees) < 5 * error
        assert error < 0.05 * degrees
    slope, error = two_state_slope(potential[:, :half], potential[:, half:])
    expected = (1 / COLD - 1 / HOT) / BOLTZMANN
    assert abs(slope - expected) < 4 * error
    assert error < 0.06 * expected


PRESSURES = (0.9e-3, 1.2e-3)  # eV/angstrom^3


def gas(replicas: int, temperature: float) -> State:
    """Five atoms in a slightly skewed cell, with velocities of the temperature and a centre of mass at rest."""
    rng = np.random.default_rng(8)
    cell = np.eye(3) * 300 ** (1 / 3) + rng.normal(0, 0.1, (3, 3))
    start = [
        Atoms("H5", scaled_positions=rng.random((5, 3)), cell=cell, pbc=True, masses=[*MASSES, 9.0])
        for _ in range(replicas)
    ]
    state = State.from_atoms(start)
    draw_velocities(state, temperature, 3)
    return state


def volume_law(pressure: float, temperature: float) -> stats.rv_histogram:
    v = np.linspace(1e-3, 1500, 200_001)
    kt = BOLTZMANN * temperature
    weight = 4 * np.log(v) - (pressure * v + 0.5 * Gas.bulk * np.log(v / Gas.reference) ** 2) / kt
    middle = 0.5 * (weight[1:] + weight[:-1])
    return stats.rv_histogram((np.exp(middle - middle.max()), v), density=True)


def mean_shape(temperature: float) -> float:
    """Mean of tr(h h^T) / V^(2/3): over the logarithms of principal stretches, which add up to zero, by the measure of SL(3)."""
    a, b = np.meshgrid(*[np.linspace(-3, 3, 601)] * 2, indexing="ij")
    c = -a - b
    length = np.exp(2 * a) + np.exp(2 * b) + np.exp(2 * c)
    measure = np.abs(np.sinh(a - b) * np.sinh(b - c) * np.sinh(a - c))
    weight = measure * np.exp(-Gas.shear * (length - 3) / (BOLTZMANN * temperature))
    return float((weight * length).sum() / weight.sum())


def barostats(pressure: Any, coupling: str) -> dict[str, Any]:
    return {
        "scr": StochasticCell(2.0, 350.0, pressure, 500.0, 40.0, 80.0, 7, coupling),
        "mtk": MartynaTobiasKlein(2.0, 350.0, pressure, 40.0, 80.0, coupling),
    }


def shape(state: State) -> Tensor:
    return state.cells.square().sum((1, 2)) / state.volume() ** (2 / 3)


@pytest.mark.slow
@pytest.mark.parametrize("coupling", ["isotropic", "anisotropic"])
@pytest.mark.parametrize("name", ["scr", "mtk"])
def test_barostat(name: str, coupling: str) -> None:
    """Volumes follow their exact law, and at two pressures differ by exp(-(P_2 - P_1) V / kT); shapes have their exact mean."""
    half = 192
    state = gas(2 * half, 350.0)
    ensemble = barostats(np.repeat(PRESSURES, half), coupling)[name]
    skip = 700 if ensemble.name == "scr" else 300  # a cell without inertia takes long to find its shape
    looks = (State.volume, State.kinetic_energy, shape)
    volume, kinetic, shapes = sample(ensemble, Gas(), state, skip, 16, 80, looks)
    for replicas, p in ((np.s_[:half], PRESSURES[0]), (np.s_[half:], PRESSURES[1])):
        law = volume_law(p, 350.0)
        mean, error = mean_and_error(volume[:, replicas])
        assert abs(mean - law.mean()) < 4 * error
        assert error < 0.02 * mean
        assert stats.kstest(volume[::4, replicas].ravel(), law.cdf).pvalue > 1e-3
    slope, error = two_state_slope(volume[:, :half], volume[:, half:])
    expected = (PRESSURES[0] - PRESSURES[1]) / (BOLTZMANN * 350.0)
    assert abs(slope - expected) < 4 * error
    assert error < 0.1 * abs(expected)
    mean, error = mean_and_error(2 * kinetic / (BOLTZMANN * 350.0))
    assert abs(mean - 12) < 4 * error
    if coupling == "anisotropic":
        mean, error = mean_and_error(shapes)
        assert abs(mean - mean_shape(350.0)) < 4 * error
