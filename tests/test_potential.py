"""`Potential`: what may be asked of it, structures at the edge of what is possible, and the dipole."""

from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from simkit import potentials
from simkit.errors import ConfigError, ElementError, GeometryError
from simkit.graph import AtomGraph
from simkit.potential import Potential

CUTOFF = 4.0
every = pytest.mark.parametrize("name", potentials.available())


def make(name: str = "painn", **kwargs: Any) -> Potential:
    if name in ("painn", "schnet"):
        kwargs = {"channels": 16, "layers": 2} | kwargs
    return potentials.build(name, **{"cutoff": CUTOFF, "elements": [1, 6, 8], "dtype": "float64"} | kwargs)


def graph_of(frames: Atoms | list[Atoms]) -> AtomGraph:
    return AtomGraph.from_ase(frames, CUTOFF)


def water(charge: float = 0.0) -> Atoms:
    frame = molecule("H2O")
    frame.info["charge"] = charge
    return frame


def cubic() -> Atoms:
    return Atoms("HO", positions=[[0, 0, 0], [1.2, 1.5, 1.4]], cell=[3.0, 3.1, 2.9], pbc=True)


# ------------------------------------------------------------------------------------------------- what is asked for


@every
@pytest.mark.parametrize(
    "outputs",
    [("energy",), ("forces",), ("stress",), ("energies",), ("energy", "forces"), ("stress", "energies"), ()],
)
def test_gives_what_is_asked_for_and_nothing_else(name: str, outputs: tuple[str, ...]) -> None:
    graph = graph_of([cubic(), cubic()])
    results = make(name, dtype="float32")(graph, outputs)
    shapes = {"energy": (2,), "forces": (4, 3), "stress": (2, 3, 3), "energies": (4,)}
    assert {key: tuple(value.shape) for key, value in results.items()} == {key: shapes[key] for key in outputs}
    assert all(results[key].dtype == torch.float64 for key in ("energy", "energies") if key in results)


def test_declares_what_it_gives() -> None:
    assert set(make().outputs) == {"energy", "energies", "forces", "stress"}
    assert set(make(outputs=["energy", "dipole"]).outputs) == {
        "energy", "energies", "forces", "stress", "dipole", "charges", "mu",
    }  # fmt: skip
    assert set(make(outputs=["dipole"]).outputs) == {"dipole", "charges", "mu"}
    potential = make(elements=[8, 1, 1], cutoff=3)
    assert (potential.elements, potential.cutoff, potential.dtype) == ([1, 8], 3.0, torch.float64)


@every
def test_unknown_output(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot give hardness; it gives energy, energies, forces, stress"):
        make(name)(graph_of(water()), ("energy", "hardness"))
    with pytest.raises(ConfigError, match="cannot give forces; it gives dipole, charges"):
        make(outputs=["dipole"])(graph_of(water()), ("forces",))


def test_gradients_are_kept_only_on_request() -> None:
    potential, graph = make(), graph_of(cubic())
    kept = potential(graph, ("energy", "forces", "stress"), differentiable=True)
    assert all(value.requires_grad for value in kept.values())
    free = potential(graph, ("energy", "forces", "stress"))
    assert not any(value.requires_grad for value in free.values())
    with torch.no_grad():
        silent = potential(graph, ("energy", "forces", "stress"))
        assert not potential(graph, ("energy",))["energy"].requires_grad
    assert all(torch.equal(free[key], silent[key]) for key in free)


@every
def test_evaluation_changes_nothing(name: str) -> None:
    potential, graph = make(name), graph_of(cubic())
    fields = {key: value.clone() for key, value in graph.to_dict().items()}
    weights = {key: value.clone() for key, value in potential.state_dict().items()}
    first, second = (potential(graph, ("energy", "forces", "stress")) for _ in range(2))
    with torch.no_grad():
        third = potential(graph, ("energy", "forces", "stress"))
    for key, value in first.items():
        assert not value.requires_grad
        assert torch.equal(value, second[key])
        assert torch.equal(value, third[key])
    assert all(torch.equal(fields[key], value) for key, value in graph.to_dict().items())
    assert not graph.pos.requires_grad
    assert all(torch.equal(weights[key], value) for key, value in potential.state_dict().items())
    assert all(p.grad is None for p in potential.parameters())


def test_inference_mode_is_refused_where_it_would_make_forces_vanish() -> None:
    potential, graph = make(), graph_of(water())
    with torch.inference_mode():
        assert torch.equal(potential(graph, ("energy",))["energy"], potential(graph, ("energy",))["energy"])
        with pytest.raises(ConfigError, match=r"torch\.no_grad"):
            potential(graph, ("forces",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "pain"}, "unknown architecture 'pain'; did you mean 'painn'?"),
        ({"chanels": 8}, "options of painn: unknown key 'chanels'; did you mean 'channels'?"),
        ({"channels": 1}, "channels: Input should be greater than or equal to 2 (found 1)"),
        ({"layers": True}, "layers: expected a number (found True)"),
        ({"elements": []}, "elements must be atomic numbers from 1 to 118"),
        ({"elements": ["H"]}, "elements must be atomic numbers from 1 to 118, at least one; found ['H']"),
        ({"elements": [0, 1]}, "elements must be atomic numbers from 1 to 118"),
        ({"elements": [1.5]}, "elements must be atomic numbers from 1 to 118"),
        ({"cutoff": 0.0}, "the cutoff must be a positive number of angstrom, found 0.0"),
        ({"cutoff": float("nan")}, "the cutoff must be a positive number of angstrom"),
        ({"dtype": "float16"}, "dtype must be float32 or float64, found 'float16'"),
        ({"outputs": ["forces"]}, "painn cannot give the output 'forces'"),
        ({"outputs": "energy"}, "outputs must be a list"),
        ({"outputs": []}, "outputs must be a list"),
        ({"name": "morse", "outputs": ["dipole"]}, "morse cannot give the output 'dipole'"),
    ],
)
def test_build_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        potentials.build(**{"name": "painn", "elements": [1]} | arguments)
    assert message in str(caught.value)


def test_references() -> None:
    potential = make()
    with pytest.raises(ElementError, match="no reference energy for C, O"):
        potential.set_references({1: -13.6})
    potential.set_references({1: -13.6, 6: -1000.0, 8: -2000.0, 17: 5.0})
    assert potential.reference.tolist() == [-13.6, -1000.0, -2000.0]
    assert potential.reference.dtype == torch.float64
    assert potential.cast(torch.float32).reference.dtype == torch.float64


# --------------------------------------------------------------------------------------------------- edges of the possible


@every
@pytest.mark.parametrize("anchored", [False, True])
def test_structures_without_edges(name: str, anchored: bool) -> None:
    """One atom, and atoms out of each other's reach, alone and beside a molecule in one batch."""
    potential = make(name, anchored=anchored)
    one, apart = Atoms("O"), Atoms("HC", positions=[[0, 0, 0], [0, 0, 4.5]])
    box = Atoms("H", cell=[9, 9, 9], pbc=True)
    for frame in (one, apart, box):
        results = potential(graph_of(frame), ("energy", "forces"), differentiable=True)
        assert torch.equal(results["forces"], torch.zeros(len(frame), 3, dtype=results["forces"].dtype))
        assert bool(torch.isfinite(results["energy"]).all())
    assert not potential(graph_of(box), ("stress",))["stress"].any()
    results = potential(graph_of([one, molecule("H2O"), apart]), ("energy", "forces"))
    assert results["forces"][1:4].abs().max() > 0
    assert not results["forces"][[0, 4, 5]].any()


@every
def test_coinciding_atoms(name: str) -> None:
    frame = water()
    frame += Atoms("H", positions=frame.positions[2:])
    with pytest.raises(GeometryError, match="atoms (2 and 3|3 and 2) of structure 1 are at the same place"):
        make(name)(graph_of([water(), frame]))


@every
def test_positions_that_are_not_numbers(name: str) -> None:
    graph = graph_of(water())
    graph.pos[1, 2] = float("nan")
    with pytest.raises(GeometryError, match="not finite"):
        make(name)(graph)


@every
def test_unknown_elements_are_named(name: str) -> None:
    with pytest.raises(ElementError, match="knows H, C, O only, but the structure holds N, Fe"):
        make(name)(graph_of([water(), Atoms("FeNH", positions=[[0, 0, 0], [2, 0, 0], [0, 2, 0]])]))
    graph = graph_of(water())
    graph.z[0] = -1
    with pytest.raises(ElementError, match="Z=-1"):
        make(name)(graph)


@every
@pytest.mark.parametrize("pbc", [(False, False, False), (True, True, False)])
def test_no_stress_without_a_volume(name: str, pbc: tuple[bool, ...]) -> None:
    frame = cubic()
    frame.pbc = pbc
    with pytest.raises(GeometryError, match="periodic in all three directions"):
        make(name)(graph_of([cubic(), frame]), ("energy", "stress"))


def test_left_handed_cell_has_the_same_stress() -> None:
    mirrored = cubic()
    mirrored.set_cell(cubic().cell.array[[1, 0, 2]])
    assert mirrored.cell.handedness == -1
    potential = make()
    expected = potential(graph_of(cubic()), ("stress",))["stress"]
    torch.testing.assert_close(potential(graph_of(mirrored), ("stress",))["stress"], expected)


def test_edges_beyond_the_cutoff_add_nothing() -> None:
    """Neighbor lists with a skin give longer edges."""
    for name in potentials.available():
        potential, frame = make(name), molecule("C6H6")
        frame.rattle(0.05, seed=1)
        exact = potential(AtomGraph.from_ase(frame, CUTOFF), ("energy", "forces"))
        longer = potential(AtomGraph.from_ase(frame, CUTOFF + 1.5), ("energy", "forces"))
        for key, value in exact.items():
            torch.testing.assert_close(longer[key], value, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------------------ charges, dipole

with_dipole = pytest.mark.parametrize("name", ["painn", "schnet"])


@with_dipole
def test_charges_sum_to_the_total_charge(name: str) -> None:
    potential = make(name, outputs=["energy", "dipole"], anchored=True)
    graph = graph_of([water(-1.0), molecule("CH3OH"), water(2.0), Atoms("H")])
    charges = potential(graph, ("charges",))["charges"]
    totals = torch.zeros(4, dtype=charges.dtype).index_add(0, graph.batch, charges)
    torch.testing.assert_close(totals, torch.tensor([-1.0, 0.0, 2.0, 0.0], dtype=charges.dtype))
    assert charges.abs().max() > 0.01


@with_dipole
@pytest.mark.parametrize("charge", [0.0, 1.0])
def test_dipole_under_translation(name: str, charge: float) -> None:
    """Invariant where the structure is neutral; otherwise it moves with the charge."""
    potential, offset = make(name, outputs=["dipole"]), np.array([3.0, -7.0, 11.0])
    frame = molecule("CH3OH")
    frame.info["charge"] = charge
    moved = frame.copy()
    moved.positions += offset
    before, after = (potential(graph_of(f), ("dipole",))["dipole"][0].detach().numpy() for f in (frame, moved))
    assert np.linalg.norm(before) > 1e-3
    np.testing.assert_allclose(after - before, charge * offset, atol=1e-10)


def test_dipole_of_point_charges() -> None:
    """SchNet has no atomic dipoles: mu = sum_i q_i r_i."""
    potential, frame = make("schnet", outputs=["dipole"]), water(-1.0)
    results = potential(graph_of(frame), ("dipole", "charges"))
    expected = results["charges"].detach().numpy() @ frame.positions
    np.testing.assert_allclose(results["dipole"][0].detach().numpy(), expected, atol=1e-12)


def test_dipole_of_a_periodic_structure_is_refused() -> None:
    potential = make(outputs=["energy", "dipole"])
    with pytest.raises(ConfigError, match="dipole of a periodic structure is not defined"):
        potential(graph_of([water(), cubic()]), ("energy", "dipole"))
    assert potential(graph_of(cubic()), ("charges",))["charges"].shape == (2,)


def test_dipole_can_be_trained_beside_forces() -> None:
    potential = make(outputs=["energy", "dipole"])
    results = potential(graph_of([water(), water(1.0)]), ("energy", "forces", "dipole"), differentiable=True)
    sum(value.square().sum() for value in results.values()).backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in potential.parameters())
