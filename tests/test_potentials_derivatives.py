"""The contract that every registered potential keeps: forces, stress and second derivatives against finite differences."""

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from numpy.typing import NDArray
from potential_cases import CUTOFF, assert_close, crystal, ethanol, evaluate, every, graph_of, make, with_pbc


@every
@pytest.mark.parametrize("frame", [ethanol(), crystal(), with_pbc(True, False, True), with_pbc(False, True, False)])
def test_forces_against_finite_differences(name: str, frame: Atoms) -> None:
    potential, h = make(name), 1e-4
    displaced = []
    for atom, axis, sign in itertools.product(range(len(frame)), range(3), (1, -1)):
        copied = frame.copy()
        copied.positions[atom, axis] += sign * h
        displaced.append(copied)
    energies = evaluate(potential, displaced, "energy")["energy"].reshape(-1, 3, 2)
    forces = evaluate(potential, frame, "forces")["forces"]
    assert np.abs(forces).max() > 0.05
    assert_close(forces, -(energies[..., 0] - energies[..., 1]) / (2 * h), 1e-6)


@every
def test_stress_against_finite_differences(name: str) -> None:
    potential, frame, h = make(name), crystal(), 1e-4
    strained = []
    for a, b, sign in itertools.product(range(3), range(3), (1, -1)):
        strain = np.eye(3)
        strain[a, b] += sign * h
        copied = frame.copy()
        copied.set_cell(frame.cell.array @ strain.T, scale_atoms=True)
        strained.append(copied)
    energies = evaluate(potential, strained, "energy")["energy"].reshape(3, 3, 2)
    stress = evaluate(potential, frame, "stress")["stress"][0]
    assert np.abs(stress).max() > 1e-3
    assert_close(stress, (energies[..., 0] - energies[..., 1]) / (2 * h) / frame.get_volume(), 1e-6)


@every
def test_smooth_to_second_order_at_the_cutoff(name: str) -> None:
    """An atom leaves the reach of another one while it stays in that of a third."""
    potential = make(name)

    def probe(distances: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        frames = [Atoms("OCH", positions=[[0, 0, 0], [1.3, 0.4, 0], [r, 0, 0]]) for r in distances]
        results = evaluate(potential, frames, "energy", "forces")
        return results["energy"], results["forces"].reshape(-1, 3, 3)[:, 2, 0]

    jumps, kinks = [], []
    for h in (1e-3, 1e-4):
        energy, force = probe(CUTOFF + h * np.array([-1.0, 0.0, 1.0]))
        jumps.append(abs(energy[2] - energy[0] + h * (force[0] + force[2])))  # of the energy, plus order h^3
        kinks.append(abs(force[2] - 2 * force[1] + force[0]) / h)  # jump of the second derivative, plus order h
    assert jumps[1] < 0.01 * jumps[0] + 1e-11
    assert kinks[1] < 0.2 * kinks[0] + 1e-8
    # Not for want of an interaction: inside the cutoff the two atoms do feel each other.
    assert evaluate(potential, Atoms("OH", [[0, 0, 0], [0.5 * CUTOFF, 0, 0]]), "forces")["forces"].max() > 1e-4


@every
def test_second_derivatives(name: str) -> None:
    """Forces can be differentiated again, and correctly, with respect to the positions."""
    potential, graph = make(name), graph_of(molecule("H2O"))

    def forces(pos: torch.Tensor) -> torch.Tensor:
        moved = graph.clone()
        moved.pos = pos
        return potential(moved, ("forces",), differentiable=True)["forces"]

    assert torch.autograd.gradcheck(forces, graph.pos.clone().requires_grad_(True))


@every
@pytest.mark.parametrize("anchored", [False, True])
def test_gradient_of_a_force_loss(name: str, anchored: bool) -> None:
    """A loss on energy, forces and stress, differentiated with respect to the weights: training needs nothing else."""
    potential = make(name, anchored=anchored, dipole=False)
    parameters = [p for p in potential.parameters() if p.requires_grad]
    if not parameters:
        pytest.skip("has no weights to train")
    graph, generator = graph_of([crystal(), crystal()[[0, 2]]]), torch.Generator().manual_seed(5)

    def loss() -> torch.Tensor:
        results = potential(graph, ("energy", "forces", "stress"), differentiable=True)
        return sum(value.square().sum() for key, value in results.items() if key != "energy") + results["energy"].sum()

    gradients = torch.autograd.grad(loss(), parameters)
    assert sum(float(g.abs().sum() > 0) for g in gradients) >= len(parameters) - 1  # the last bias shifts energies only
    start, h = [p.detach().clone() for p in parameters], 1e-5
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, p0, d in zip(parameters, start, direction, strict=True):
                p.copy_(p0 + sign * h * d)
        values.append(float(loss().detach()))
    expected = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
    assert (values[0] - values[1]) / (2 * h) == pytest.approx(expected, rel=1e-5, abs=1e-6)
