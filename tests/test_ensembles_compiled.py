"""The compiled steps of ensembles against the same steps by PyTorch, and against themselves in other batches."""

from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from numba import njit
from scipy.linalg import expm

from simkit.md.ensembles import Bussi, MartynaTobiasKlein, NoseHooverChain, Ramp, StochasticCell
from simkit.md.ensembles.strain import exponentials
from simkit.md.state import State

SIZES = (9, 4, 23)
T: dict[str, Any] = {"one": 300.0, "each": [300.0, 140.0, 500.0], "ramp": Ramp([300.0, 140.0, 500.0], 450.0, 5)}
P: dict[str, Any] = {"one": 0.003, "each": [0.003, -0.001, 0.01], "ramp": Ramp(0.003, [0.01, 0.0, 0.02], 4)}


class Field:
    """A smooth force on each atom and a symmetric stress, whatever they may belong to; of one replica only."""

    def compute(self, state: State, *, energy: bool = True, stress: bool = False) -> None:
        x = state.positions
        torch.sub(0.05 * torch.sin(0.7 * x.roll(1, 1)), 0.02 * x, out=state.forces)
        if energy:
            state.energy.copy_(state.total(0.01 * x.square().sum(1)))
        if stress:
            dyad = state.total(x[:, :, None] * state.forces[:, None, :])
            state.stress.copy_(0.5 * (dyad + dyad.mT) / state.volume()[:, None, None])


def structures(frozen: bool = False, periodic: bool = True) -> list[Atoms]:
    rng = np.random.default_rng(7)
    made = []
    for size in SIZES:
        cell = 8 * np.eye(3) + rng.normal(0, 0.5, (3, 3))
        atoms = Atoms(f"H{size}", rng.normal(0, 2, (size, 3)), cell=cell, pbc=periodic)
        atoms.set_masses(rng.uniform(5, 40, size))
        momenta = rng.normal(size=(size, 3)) * np.sqrt(0.02 * atoms.get_masses())[:, None]
        atoms.set_momenta(momenta - momenta.mean(0))
        if frozen:
            atoms.set_constraint(FixAtoms([1, 3]))
        made.append(atoms)
    return made


def started(ensemble: Any, atoms: list[Atoms], names: list[int]) -> State:
    """A state whose ensemble is in motion: its variables are not zero."""
    state = State.from_atoms(atoms)
    state.replicas[:] = names
    Field().compute(state, stress=True)
    ensemble.start(state)
    for k, name in enumerate(names):
        rng = np.random.default_rng(name)
        for key, tensor in state.extra.items():
            if key.endswith(("chain", "rate")):
                values = torch.from_numpy(rng.normal(0, 1e-3 if key.endswith("rate") else 0.01, tensor.shape[1:]))
                tensor[k] = values + values.mT if key.endswith("rate") else values
                if key.endswith("rate") and ensemble.coupling == "isotropic":
                    tensor[k] = 0.001 * torch.eye(3)
    return state


def variables(state: State) -> dict[str, torch.Tensor]:
    names = ("positions", "velocities", "forces", "energy", "cells", "stress", "degrees")
    return {name: getattr(state, name) for name in names} | state.extra


def check_same(ensemble: Any, atoms: list[Atoms], steps: int = 6) -> None:
    fast, slow = (started(ensemble, atoms, [3, 2**32 - 1, 8][: len(atoms)]) for _ in range(2))
    before = {name: tensor.clone() for name, tensor in variables(fast).items()}
    ensemble.advance(fast, Field(), steps)
    ensemble.advance_torch(slow, Field(), steps)
    assert fast.step == slow.step == steps
    for name, tensor in variables(fast).items():
        expected = variables(slow)[name]
        largest = float(expected.abs().max())
        torch.testing.assert_close(
            tensor, expected, rtol=1e-12, atol=1e-12 * largest, msg=lambda m, n=name: f"{n}: {m}"
        )
        if not name.endswith("degrees") and not (name == "stress" and not ensemble.needs_stress):
            assert not torch.equal(tensor, before[name]) or (name == "cells" and not ensemble.needs_stress), name


@pytest.mark.parametrize("target", list(T))
@pytest.mark.parametrize("remove_com", [False, True])
def test_thermostats(target: str, remove_com: bool) -> None:
    for ensemble in (
        NoseHooverChain(2.0, T[target], 40.0, remove_com=remove_com),
        Bussi(2.0, T[target], 30.0, 2**64 - 5, remove_com),
    ):
        check_same(ensemble, structures())


def test_thermostats_with_frozen_atoms() -> None:
    for ensemble in (NoseHooverChain(2.0, 300.0, 40.0), Bussi(2.0, 300.0, 30.0, 9)):
        check_same(ensemble, structures(frozen=True, periodic=False))


@pytest.mark.parametrize(("links", "repeats", "order"), [(1, 1, 1), (2, 3, 5), (5, 2, 3)])
def test_chains(links: int, repeats: int, order: int) -> None:
    check_same(NoseHooverChain(2.0, T["each"], 40.0, links, repeats, order), structures())
    check_same(MartynaTobiasKlein(2.0, 300.0, 0.001, 40.0, 300.0, "anisotropic", links, repeats, order), structures())


@pytest.mark.parametrize("coupling", ["isotropic", "anisotropic"])
@pytest.mark.parametrize("target", list(T))
@pytest.mark.parametrize("remove_com", [False, True])
def test_barostats(target: str, coupling: str, remove_com: bool) -> None:
    for ensemble in (
        StochasticCell(2.0, T[target], P[target], 1.0, 30.0, 300.0, 6, coupling, remove_com),
        MartynaTobiasKlein(2.0, T[target], P[target], 40.0, 300.0, coupling, remove_com=remove_com),
    ):
        check_same(ensemble, structures())


def test_velocities_that_turn_around() -> None:
    """The factor of the rescaling is negative where the kinetic energy is small: signs are those of the form in PyTorch."""
    atoms = [Atoms("H", [[0.1, 0, 0]], velocities=[[1e-4, 0, 0]]) for _ in range(64)]
    ensemble = Bussi(1.0, 300.0, 1.0, 4)
    states = [State.from_atoms(atoms) for _ in range(2)]
    for state in states:
        ensemble.start(state)
    ensemble.advance(states[0], _Free(), 1)
    ensemble.advance_torch(states[1], _Free(), 1)
    turned = states[0].velocities[:, 0] < 0
    assert 10 < int(turned.sum()) < 54
    torch.testing.assert_close(states[0].velocities, states[1].velocities, rtol=1e-12, atol=0)
    still = State.from_atoms(atoms[:1])
    still.velocities.zero_()
    ensemble.start(still)
    ensemble.advance(still, _Free(), 3)
    assert not still.velocities.any()


class _Free:
    """No forces."""

    def compute(self, state: State, *, energy: bool = True, stress: bool = False) -> None:
        state.energy.zero_()


@pytest.mark.parametrize(
    "ensemble",
    [
        NoseHooverChain(2.0, 300.0, 40.0),
        Bussi(2.0, 300.0, 30.0, 9),
        StochasticCell(2.0, 300.0, 0.003, 1.0, 30.0, 300.0, 6, "anisotropic"),
        MartynaTobiasKlein(2.0, 300.0, 0.003, 40.0, 300.0, "anisotropic"),
    ],
    ids=lambda ensemble: ensemble.name,
)
def test_a_replica_has_the_same_bits_in_any_batch(ensemble: Any) -> None:
    atoms, names = structures(), [5, 11, 2]
    together = started(ensemble, atoms, names)
    ensemble.advance(together, Field(), 20)
    for k, name in enumerate(names):
        alone = started(ensemble, [atoms[k]], [name])
        ensemble.advance(alone, Field(), 20)
        own = together.structure == k
        for found, expected in (
            (alone.positions, together.positions[own]),
            (alone.velocities, together.velocities[own]),
            (alone.cells[0], together.cells[k]),
            *((tensor[0], together.extra[key][k]) for key, tensor in alone.extra.items()),
        ):
            assert torch.equal(found, expected)


@njit
def _exponentials(m):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    return exponentials(m)


def test_exponentials() -> None:
    """Against SciPy: the mean is the upper right block of the exponential of a block matrix (Van Loan, 1978)."""
    rng = np.random.default_rng(0)
    for size in (1e-9, 1e-3, 0.1):
        m = rng.normal(0, size, (3, 3))
        m = m + m.T
        block = np.zeros((6, 6))
        block[:3, :3], block[:3, 3:] = m, np.eye(3)
        expected = expm(block)
        found = _exponentials((m[0, 0], m[1, 1], m[2, 2], m[1, 2], m[0, 2], m[0, 1]))
        for part, whole in zip(found, (expected[:3, :3], expected[:3, 3:]), strict=True):
            xx, yy, zz, yz, xz, xy = part
            np.testing.assert_allclose([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]], whole, rtol=0, atol=1e-14)
