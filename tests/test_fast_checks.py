"""What the fast path does when it is not right, cannot be taken, or is copied: the reference path goes on."""

import copy
import math
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule
from fast_cases import ARCHITECTURES, differences, ethanol, everything, graph, model, silicon

from simkit import Calculator, potentials
from simkit.errors import ConfigError, ElementError, GeometryError
from simkit.fast.potential import CHECK_EVERY, ENERGY_TOLERANCE, FORCE_TOLERANCE, FastPotential
from simkit.inference.committee import Committee, CommitteeForces
from simkit.md.forces import PotentialForces
from simkit.md.state import State
from simkit.potential import Potential

OUTPUTS = ("energy", "energies", "forces")


def sabotage(fast: FastPotential, factor: float) -> None:
    """Change the filters of the first layer."""
    assert fast.engine is not None
    fast.engine.tables.values[0].mul_(factor)  # kernels are given the same memory


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return set(differences(found, expected).values()) == {0.0}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_first_call_is_compared_then_every_so_many(architecture: str) -> None:
    potential = model(architecture)
    fast, edges = potential.fast(check_every=3), graph(ethanol())
    assert (fast.comparisons, fast.last, fast.reason) == (0, None, "")
    for call, comparisons in enumerate([1, 1, 1, 2, 2, 2, 3], 1):
        found = fast(edges)
        assert (fast.calls, fast.comparisons) == (call, comparisons)
    assert fast.last is not None
    error = differences(found, potential(edges))
    assert fast.last.agrees
    assert fast.last.force == pytest.approx(error["forces"], rel=1e-6)
    assert fast.last.energy == pytest.approx(error["energy"] / 9, rel=1e-6)
    assert fast.last.stress is None
    assert fast.last.force_limit == FORCE_TOLERANCE[torch.float64]
    assert fast(graph(silicon()), ("stress",)).keys() == {"stress"}
    assert fast.compare(graph(silicon()), ("stress",)).stress == pytest.approx(0.0, abs=1e-9)
    assert potential.fast().check_every == CHECK_EVERY


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_goes_wrong_is_noticed_at_the_next_comparison(architecture: str, dtype: str) -> None:
    potential, edges = model(architecture, dtype=dtype), graph(ethanol())
    fast, expected = potential.fast(check_every=4), potential(edges, OUTPUTS)
    good = fast(edges, OUTPUTS)
    sabotage(fast, 1.2)
    for _ in range(3):
        bad = fast(edges, OUTPUTS)
        assert differences(bad, good)["forces"] > 1e-3
    with pytest.warns(
        RuntimeWarning, match=r"given up after 5 calls: forces differ by up to .* eV/angstrom \(.*allowed\)"
    ) as seen:
        assert same(fast(edges, OUTPUTS), expected)
    assert len(seen) == 1
    assert fast.engine is None
    assert fast.last is not None
    assert not fast.last.agrees
    # It says by how much: the references of a float32 network are those of its weights in float64.
    wrong = differences(bad, model(architecture, dtype=dtype).cast(torch.float64)(edges, OUTPUTS))
    assert fast.last.force == pytest.approx(wrong["forces"], rel=1e-6)
    assert f"{wrong['forces']:.2g} eV/angstrom" in fast.reason
    assert fast.comparisons == 2
    for _ in range(6):
        assert same(fast(edges, OUTPUTS), expected)
    assert (fast.calls, fast.comparisons) == (5, 2)
    with pytest.raises(ConfigError, match="no fast path: the fast path was given up"):
        fast.compare(edges)


def test_a_small_error_is_enough() -> None:
    potential, edges = model("painn"), graph(ethanol())
    fast = potential.fast(check_every=1)
    fast(edges)
    sabotage(fast, 1 + 1e-3)
    with pytest.warns(RuntimeWarning, match="given up after 2 calls"):
        assert same(fast(edges), potential(edges))


@pytest.mark.parametrize("atoms", [1, 5, 9, 12, 17, 25])
def test_of_large_graphs_the_first_atoms_are_compared(atoms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simkit.fast.potential.LARGEST_CHECKED", atoms)
    frames, cut = [ethanol(), silicon(), silicon(seed=1)], []
    for frame in frames:
        cut.append(frame[: max(0, atoms - sum(map(len, cut)))])
    fast, edges = model("painn").fast(check_every=2), graph(*frames)
    found = fast(edges, OUTPUTS)
    assert fast.last == fast.compare(graph(*(frame for frame in cut if len(frame))))
    assert same(fast(edges, OUTPUTS), found)
    sabotage(fast, 1.2)
    if atoms > 1:  # a lone atom depends on no filter
        with pytest.warns(RuntimeWarning, match="given up after 3 calls"):
            assert same(fast(edges, OUTPUTS), model("painn")(edges, OUTPUTS))


def test_energies_that_are_not_numbers_are_an_error() -> None:
    fast, edges = model("schnet").fast(check_every=1), graph(ethanol())
    fast(edges)
    sabotage(fast, math.nan)
    with pytest.warns(RuntimeWarning, match="forces differ by up to nan"):
        assert bool(fast(edges)["forces"].isfinite().all())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_rounding_of_large_atomic_energies_is_no_error(architecture: str) -> None:
    potential = model(architecture, dtype="float32")
    with torch.no_grad():
        potential.heads["energy"].net[2].bias.fill_(100_000.3)  # type: ignore[index, union-attr]
    fast = potential.fast(check_every=1)
    fast(graph(ethanol()))
    assert fast.reason == ""
    assert fast.last is not None
    assert fast.last.energy_limit == pytest.approx(
        ENERGY_TOLERANCE[torch.float32] * float(potential.scale) * 100_000, rel=0.01
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_are_read_when_it_is_made(architecture: str) -> None:
    potential, edges = model(architecture, anchored=True), everything()
    fast = potential.fast()
    before = fast(edges, OUTPUTS)
    with torch.no_grad():
        for values in potential.state_dict().values():
            values.mul_(1.1)
    assert same(fast(edges, OUTPUTS), before)
    assert differences(potential.fast()(edges, OUTPUTS), before)["forces"] > 1e-3


@pytest.mark.parametrize("kind", ["copy", "pickle"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_copies_are_on_their_own(architecture: str, kind: str) -> None:
    fast, edges, other = model(architecture).fast(), graph(ethanol()), graph(ethanol(1))
    expected, others = fast(edges, OUTPUTS), fast(other, OUTPUTS)
    fast(edges, OUTPUTS)
    twin: FastPotential = copy.deepcopy(fast) if kind == "copy" else pickle.loads(pickle.dumps(fast))
    for _ in range(2):
        assert same(twin(other, OUTPUTS), others)
        assert same(fast(edges, OUTPUTS), expected)
        assert same(twin(edges, OUTPUTS), expected)


def test_other_outputs_come_from_the_reference() -> None:
    potential, edges = model("painn", outputs=["energy", "dipole"]), graph(ethanol())
    fast = potential.fast()
    assert same(fast(edges, ("dipole", "charges")), potential(edges, ("dipole", "charges")))
    assert fast.calls == 0
    for call, outputs in enumerate([("energy", "forces", "dipole"), ("charges", "energy")], 1):
        found, expected = fast(edges, outputs), potential(edges, outputs)
        assert found.keys() == expected.keys()
        assert fast.calls == call  # energies and forces stay fast
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-7)
    assert fast.reason == ""
    with pytest.raises(ConfigError, match="cannot give gap; it gives energy"):
        fast(edges, ("gap",))
    only = model("painn", outputs=["dipole"])
    assert only.fast().reason == "the model gives no energy"
    assert same(only.fast()(edges, ("dipole",)), only(edges, ("dipole",)))


@pytest.mark.parametrize("architecture", sorted(set(potentials.available()) - set(ARCHITECTURES)))
def test_architectures_without_a_fast_path(architecture: str) -> None:
    potential = potentials.build(architecture, elements=[1, 8], cutoff=4.0, dtype="float64", seed=0)
    fast, edges = potential.fast(), graph(molecule("H2O"))
    assert fast.reason
    assert fast.engine is None
    assert same(fast(edges), potential(edges))
    assert fast.calls == fast.comparisons == 0
    with pytest.raises(ConfigError, match="there is no fast path"):
        fast.compare(edges)


def test_errors_are_those_of_the_reference() -> None:
    potential = model("schnet")
    fast = potential.fast()
    for edges, outputs, kind in (
        (graph(molecule("PH3")), OUTPUTS, ElementError),
        (graph(ethanol()), ("stress",), GeometryError),
        (graph(silicon(), ethanol()), ("energy", "stress"), GeometryError),
    ):
        with pytest.raises(kind) as expected:
            potential(edges, outputs)
        with pytest.raises(kind) as found:
            fast(edges, outputs)
        assert str(found.value) == str(expected.value)
    with pytest.raises(ConfigError, match="check_every must be at least 1; found 0"):
        potential.fast(check_every=0)


def test_elements_that_change_in_place_are_seen() -> None:
    potential, edges = model("painn"), graph(ethanol())
    fast = potential.fast()
    fast(edges)
    edges.z[0] = 14
    found = differences(fast(edges, OUTPUTS), potential(edges, OUTPUTS))
    assert found["energies"] < 1e-9
    edges.z[0] = 92
    with pytest.raises(ElementError, match="U"):
        fast(edges)


def test_inference_mode() -> None:
    potential, edges = model("painn"), graph(ethanol())
    fast = potential.fast()
    with torch.inference_mode():
        assert same(fast(edges, ("energy",)), potential(edges, ("energy",)))
        with pytest.raises(ConfigError, match="inference_mode"):
            fast(edges)
    expected = potential(edges)
    assert differences(fast(edges), expected)["forces"] < 1e-7
    with torch.inference_mode():
        assert same(fast(edges, ("energy",)), {"energy": expected["energy"]})


def test_committees_take_the_fast_paths_of_their_members() -> None:
    committee = Committee([model("painn", seed=k, layers=2) for k in range(3)])
    outputs = ("energy", "forces", "disagreement", "energy_disagreement")
    found = differences(committee.fast()(everything(), outputs), committee(everything(), outputs))
    assert max(found["forces"], found["disagreement"]) < 1e-7
    assert max(found["energy"], found["energy_disagreement"]) < 1e-10
    state, forces = State.from_atoms([ethanol(), silicon()]), CommitteeForces(committee, dtype="float64")
    forces.compute(state)
    edges = graph(ethanol(), silicon())
    np.testing.assert_allclose(
        forces.disagreement, committee.fast()(edges, outputs)["disagreement"], rtol=0, atol=1e-12
    )


def test_it_is_the_default_and_can_be_switched_off() -> None:
    potential = model("schnet", layers=1)
    for thing in (Calculator(potential), PotentialForces(potential)):
        assert isinstance(thing.model, FastPotential)
    for thing in (Calculator(potential, fast=False), PotentialForces(potential, fast=False)):
        assert isinstance(thing.model, Potential)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms = ethanol()
        atoms.calc = Calculator(potential, dtype="float64", fast=False)
        np.testing.assert_array_equal(atoms.get_forces(), potential(graph(atoms))["forces"].numpy())
