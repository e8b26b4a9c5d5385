"""What the bits of the fast path do not depend on, and what dynamics makes of its forces."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from fast_cases import ARCHITECTURES, differences, ethanol, everything, graph, model, narrow, silicon
from global_settings import threads
from hypothesis import given, settings
from hypothesis import strategies as st

from simkit.fast.potential import FastPotential
from simkit.fast.rows import ROW_EDGES
from simkit.graph import AtomGraph
from simkit.md.ensembles import NVE
from simkit.md.forces import PotentialForces
from simkit.md.simulation import Simulation

OUTPUTS = ("energy", "energies", "forces")


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return set(differences(found, expected).values()) == {0.0}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_number_of_threads(architecture: str, dtype: str) -> None:
    """Matrix products are left out of this by their sizes: BLAS may cut large ones by threads."""
    edges = graph(silicon(4), silicon(6, seed=1))
    assert edges.edge_index.shape[1] > 2 * ROW_EDGES
    outputs = (*OUTPUTS, "stress")
    found = []
    for count in (1, 2, 1):
        with threads(count):
            fast = model(architecture, dtype=dtype).fast()
            found += [fast(edges, outputs), fast(edges, outputs)]
            assert fast.reason == ""
    assert all(same(other, found[0]) for other in found[1:])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_number_of_tasks(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is one thread for all."""
    edges = graph(silicon(), narrow())
    expected = model(architecture).fast()(edges, (*OUTPUTS, "stress"))
    for tasks in (2, 5, 30):
        monkeypatch.setattr("simkit.fast.rows.task_count", lambda most, tasks=tasks: tasks)
        fast = model(architecture).fast()
        assert same(fast(edges, (*OUTPUTS, "stress")), expected)
        assert fast.workspace.get("bounds", (tasks + 1,), np.dtype(np.int64)).array[-1] == len(edges.z)


CHOICES = [ethanol(), silicon(), silicon(3), narrow(), Atoms("C"), molecule("C6H6"), silicon() * (2, 2, 1)]
FRESH: dict[str, list[dict[str, torch.Tensor]]] = {}


def fresh(architecture: str) -> list[dict[str, torch.Tensor]]:
    """What a new fast path says of each."""
    if architecture not in FRESH:
        FRESH[architecture] = [model(architecture, layers=2).fast()(graph(atoms), OUTPUTS) for atoms in CHOICES]
    return FRESH[architecture]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=15)
@given(order=st.lists(st.integers(0, len(CHOICES) - 1), min_size=3, max_size=8))
def test_whatever_was_computed_before(architecture: str, order: list[int]) -> None:
    expected = fresh(architecture)
    fast = model(architecture, layers=2).fast(check_every=3)
    for k in order:
        if k % 2:  # forces are not always asked for
            assert same(fast(graph(CHOICES[k]), ("energy",)), {"energy": expected[k]["energy"]})
        assert same(fast(graph(CHOICES[k]), OUTPUTS), expected[k])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_whatever_else_is_asked_for(architecture: str) -> None:
    fast, edges = model(architecture).fast(), graph(silicon(2), narrow())
    whole = fast(edges, (*OUTPUTS, "stress"))
    for outputs in (("forces",), ("energy",), ("stress", "energies"), ("energies", "forces"), ()):
        assert same(fast(edges, outputs), {name: whole[name] for name in outputs}) or not outputs
        assert list(fast(edges, outputs)) == list(outputs)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_results_are_not_overwritten(architecture: str) -> None:
    fast, edges = model(architecture).fast(), everything()
    found = fast(edges, OUTPUTS)
    kept = {name: value.clone() for name, value in found.items()}
    for atoms in CHOICES:
        fast(graph(atoms), OUTPUTS)
    assert same(found, kept)


def test_memory_is_kept_and_grows_with_the_edges() -> None:
    fast = model("painn").fast()
    fast(graph(silicon(4)))
    held = fast.workspace.bytes
    for atoms in CHOICES:
        fast(graph(atoms))
    fast(graph(silicon(4, seed=3)))
    assert fast.workspace.bytes == held
    fast(graph(silicon(8)))
    assert 1.8 * held < fast.workspace.bytes < 2.2 * held


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_graphs_in_single_precision_or_with_gradients(architecture: str) -> None:
    fast, edges = model(architecture).fast(), graph(silicon())
    expected = fast(edges)
    edges.pos = edges.pos.clone().requires_grad_(True)
    assert same(fast(edges), expected)
    single = AtomGraph.from_ase([silicon()], fast.potential.cutoff, dtype=torch.float32)
    found = differences(fast(single), expected)
    assert 0 < found["forces"] < 1e-5


@pytest.mark.skipif(sys.platform != "linux", reason="about fork, which Linux uses by default")
def test_after_a_fork() -> None:
    """GNU OpenMP ends a forked process that starts threads; PyTorch must be told to start none, as data loaders do."""
    program = """
        import os, torch
        from ase.build import bulk
        from simkit import potentials
        from simkit.graph import AtomGraph
        torch.set_num_threads(2)
        crystal = AtomGraph.from_ase(bulk("Si", cubic=True) * 2, 4.0)
        fast = potentials.build("schnet", elements=[14], cutoff=4.0, channels=8, layers=1, seed=0).fast()
        before = fast(crystal, ("forces", "stress"))
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            after = fast(crystal, ("forces", "stress"))
            os._exit(0 if all(torch.equal(before[name], after[name]) for name in before) else 3)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------------------ dynamics


def energies(architecture: str, fast: bool, frame: Atoms, steps: int = 60) -> np.ndarray:
    """Total energies of a run without a thermostat, eV."""
    forces = PotentialForces(model(architecture, layers=2), dtype="float64", fast=fast)
    simulation = Simulation(forces, frame, NVE(0.5), temperature=600.0, seed=1)
    found = []
    for _ in range(steps):
        simulation.run(1)
        found.append(float(simulation.state.energy[0] + simulation.state.kinetic_energy()[0]))
    if fast:
        assert isinstance(forces.model, FastPotential)
        assert forces.model.reason == ""
        assert forces.model.calls == forces.evaluations
    return np.array(found)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("frame", [ethanol(), silicon()], ids=["molecule", "crystal"])
def test_energy_is_conserved_as_on_the_reference_path(architecture: str, frame: Atoms) -> None:
    found, expected = (energies(architecture, fast, frame) for fast in (True, False))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)
    swing = np.ptp(expected)
    assert abs(np.ptp(found) - swing) < 0.01 * swing + 1e-9
