"""The fast path against the reference path, against finite differences of its own energy, and its symmetries."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.stress import voigt_6_to_full_3x3_stress
from fast_cases import ARCHITECTURES, CUTOFF, beyond, differences, ethanol, everything, graph, model, narrow, silicon

from simkit import Calculator
from simkit.datasets import load
from simkit.fast.potential import ENERGY_TOLERANCE, FORCE_TOLERANCE, FastPotential
from simkit.potential import Potential

OUTPUTS = ("energy", "energies", "forces")
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cosine": {"cutoff_function": "cosine"},
    "anchored": {"anchored": True},
    "one layer": {"layers": 1, "channels": 5},
    "wide": {"channels": 70, "layers": 2},
}
CASES = [(name, kind) for name in ARCHITECTURES for kind in VARIANTS]
FORCES, ENERGIES = 1e-7, 1e-10
"""eV/angstrom and eV, for forces of 0.1 eV/angstrom in float64: 1e-8 and 1e-11 are reached."""


def checked(fast: FastPotential) -> FastPotential:
    """What has a fast path and has not given it up."""
    assert fast.reason == ""
    assert fast.engine is not None
    return fast


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_float64_equals_the_reference(architecture: str, variant: str) -> None:
    potential, fast = (built := model(architecture, **VARIANTS[variant])), built.fast()
    found = differences(fast(everything(), OUTPUTS), potential(everything(), OUTPUTS))
    assert found["forces"] < FORCES
    assert max(found["energy"], found["energies"]) < ENERGIES
    crystals = graph(silicon(), narrow(), silicon(2, seed=1))
    found = differences(fast(crystals, ("stress",)), potential(crystals, ("stress",)))
    assert 0 < found["stress"] < FORCES / 50
    checked(fast)


def nonlinear(architecture: str, dtype: str) -> Potential:
    """Weights so large that activations are far from linear, and forces hundreds of times as large."""
    potential = model(architecture, dtype=dtype, channels=24)
    with torch.no_grad():
        for weight in potential.parameters():
            weight.mul_(1.3)
    return potential


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_large_weights(architecture: str) -> None:
    potential = nonlinear(architecture, "float64")
    edges = everything()
    expected = potential(edges, OUTPUTS)
    largest = float(expected["forces"].abs().max())
    assert largest > 1.0
    found = differences(checked(potential.fast())(edges, OUTPUTS), expected)
    assert found["forces"] < FORCE_TOLERANCE[torch.float64] / 5 * largest
    # The same in float32 is as near to that as the reference path in float32, but for the tables.
    single = nonlinear(architecture, "float32")
    fast = checked(single.fast())
    found, usual = (
        differences({k: v.double() for k, v in path(edges, OUTPUTS).items()}, expected) for path in (fast, single)
    )
    assert found["forces"] < 4 * usual["forces"] + 1e-5 * largest
    assert found["energies"] < 4 * usual["energies"] + 1e-6 * largest


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float32_is_within_its_tolerance(architecture: str) -> None:
    potential, exact = model(architecture, dtype="float32"), model(architecture)
    found = checked(potential.fast())(everything(), OUTPUTS)
    assert (found["forces"].dtype, found["energies"].dtype) == (torch.float32, torch.float64)
    error = differences(found, exact(everything(), OUTPUTS))
    assert error["forces"] < FORCE_TOLERANCE[torch.float32] / 50
    assert error["energies"] < ENERGY_TOLERANCE[torch.float32]


def test_filters_of_another_width_than_the_features() -> None:
    for width in (7, 33):
        potential = model("schnet", filters=width)
        found = differences(checked(potential.fast())(everything(), OUTPUTS), potential(everything(), OUTPUTS))
        assert found["forces"] < FORCES
        assert found["energies"] < ENERGIES


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_atoms_without_neighbors(architecture: str, anchored: bool) -> None:
    potential = model(architecture, anchored=anchored)
    fast = checked(potential.fast())
    alone = fast(graph(Atoms("O"), Atoms("Si")), OUTPUTS)
    assert (alone["forces"] == 0).all()
    if anchored:
        np.testing.assert_allclose(alone["energy"].numpy(), [-2040.0, -7870.0], rtol=0, atol=1e-11)
    apart = fast(graph(beyond()), OUTPUTS)
    np.testing.assert_allclose(float(apart["energies"][1]), float(alone["energy"][0]), rtol=0, atol=1e-11)
    assert (apart["forces"] == 0).all()
    # Edges that are longer than the cutoff add nothing, as those of a list with a skin.
    wide = fast(graph(beyond(), cutoff=CUTOFF + 1), OUTPUTS)
    assert set(differences(wide, apart).values()) == {0.0}
    longer = differences(fast(graph(ethanol(), cutoff=9.0), OUTPUTS), fast(graph(ethanol()), OUTPUTS))
    assert longer["forces"] < 1e-14
    assert longer["energies"] < 1e-11


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("frame", [molecule("CH3OH"), narrow()], ids=["molecule", "crystal"])
def test_forces_and_stress_are_derivatives_of_its_own_energy(architecture: str, frame: Atoms) -> None:
    """Even where tables are far from the filters: they are replaced by others, which no reference path has."""
    fast = checked(model(architecture, layers=2).fast(check_every=10**6))
    assert fast.engine is not None
    first = graph(frame)
    before = fast(first, OUTPUTS)
    for table in fast.engine.tables.values:  # kernels are given the same memory
        table *= 1.3
    found = fast(first, ("energies", "forces", *(("stress",) if frame.pbc.all() else ())))
    assert differences({"forces": found["forces"]}, {"forces": before["forces"]})["forces"] > 1e-3

    def energy(positions: np.ndarray, cell: np.ndarray) -> float:
        # Without references, of which sums lose digits.
        moved = Atoms(frame.numbers, positions, cell=cell, pbc=frame.pbc)
        return float((fast(graph(moved), ("energies",))["energies"] - found["energies"]).sum())

    step, forces = 1e-4, np.zeros((len(frame), 3))
    for i, k in np.ndindex(*forces.shape):
        shift = np.zeros_like(forces)
        shift[i, k] = step
        cell = frame.cell.array
        far, near = (
            energy(frame.positions + s * shift, cell) - energy(frame.positions - s * shift, cell) for s in (2, 1)
        )
        forces[i, k] = (far - 8 * near) / (12 * step)
    np.testing.assert_allclose(found["forces"].numpy(), forces, rtol=0, atol=3e-8)
    if frame.pbc.all():
        stress = np.zeros((3, 3))
        for i, k in np.ndindex(3, 3):
            up, down = (np.eye(3), np.eye(3))
            up[i, k] += step
            down[i, k] -= step
            cell = frame.cell.array
            stress[i, k] = energy(frame.positions @ up, cell @ up) - energy(frame.positions @ down, cell @ down)
        stress /= 2 * step * frame.get_volume()
        np.testing.assert_allclose(found["stress"][0].numpy(), (stress + stress.T) / 2, rtol=0, atol=1e-7)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_symmetries(architecture: str, rng: np.random.Generator) -> None:
    fast = checked(model(architecture).fast())
    frame = narrow()
    found = fast(graph(frame), (*OUTPUTS, "stress"))
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]  # or a reflection
    moved = Atoms(
        frame.numbers, (frame.positions @ rotation) + [5.0, -3.0, 1.0], cell=frame.cell.array @ rotation, pbc=True
    )
    moved = moved[[1, 0]]
    again = fast(graph(moved), (*OUTPUTS, "stress"))
    np.testing.assert_allclose(again["energies"].numpy(), found["energies"].numpy()[::-1], rtol=0, atol=1e-11)
    np.testing.assert_allclose(again["forces"].numpy(), found["forces"].numpy()[::-1] @ rotation, rtol=0, atol=1e-12)
    stress = rotation.T @ found["stress"][0].numpy() @ rotation
    np.testing.assert_allclose(again["stress"][0].numpy(), stress, rtol=0, atol=1e-12)
    large = fast(graph(frame * (2, 1, 2)), (*OUTPUTS, "stress"))
    np.testing.assert_allclose(large["forces"].numpy(), np.tile(found["forces"].numpy(), (4, 1)), rtol=0, atol=1e-12)
    np.testing.assert_allclose(large["stress"].numpy(), found["stress"].numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(float(large["energy"]), 4 * float(found["energy"]), rtol=1e-13)
    assert float(found["forces"].sum(0).abs().max()) < 1e-13


@pytest.mark.parametrize("atoms", [ethanol(), silicon()], ids=["molecule", "crystal"])
@pytest.mark.parametrize("skin", [0.0, 0.5])
def test_the_calculator_equals_the_potential_within_the_tables(atoms: Atoms, skin: float) -> None:
    potential = model("painn")
    atoms.calc = Calculator(potential, dtype="float64", skin=skin)
    outputs = (*OUTPUTS, *(("stress",) if atoms.pbc.all() else ()))
    expected = potential(graph(atoms), outputs)
    assert atoms.get_potential_energy() == pytest.approx(expected["energy"].item(), abs=ENERGIES)
    np.testing.assert_allclose(atoms.get_potential_energies(), expected["energies"].numpy(), rtol=0, atol=ENERGIES)
    np.testing.assert_allclose(atoms.get_forces(), expected["forces"].numpy(), rtol=0, atol=FORCES)
    if atoms.pbc.all():
        stress = voigt_6_to_full_3x3_stress(atoms.get_stress())
        np.testing.assert_allclose(stress, expected["stress"][0].numpy(), rtol=0, atol=FORCES / 50)
    assert isinstance(atoms.calc.model, FastPotential)
    assert checked(atoms.calc.model).calls > 0


@pytest.mark.data
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reference_frames(architecture: str, data_dir: Path) -> None:
    ethanols = load("rmd17", molecule="ethanol", split="test_01", root=data_dir / "rmd17")
    crystals = load("frames", paths=data_dir / "mlearn/Si.xyz.gz")
    for store, chosen in ((ethanols, range(0, 1000, 25)), (crystals, range(0, len(crystals), 20))):
        potential = model(architecture, dtype="float32", cutoff=5.0, channels=32)
        frames = store.with_neighbors(potential.cutoff).batch(list(chosen)).to_ase()
        fast = checked(potential.fast(check_every=1))
        exact = model(architecture, cutoff=5.0, channels=32)
        for frame in frames:
            edges = graph(frame, cutoff=5.0)
            found = differences(fast(edges, OUTPUTS), exact(edges, OUTPUTS))
            assert found["forces"] < FORCE_TOLERANCE[torch.float32] / 10
            assert found["energies"] < ENERGY_TOLERANCE[torch.float32]
        assert checked(fast).comparisons == len(frames)
