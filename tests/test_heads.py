"""Heads and properties against their formulas written out atom by atom, derivatives against finite differences."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from e3nn import o3
from e3nn.util.test import assert_equivariant
from torch import Tensor

import simkit
from simkit import potentials
from simkit.calculator import Calculator, PropertyError
from simkit.errors import ConfigError
from simkit.graph import LABELS, AtomGraph
from simkit.heads import Features, GatedEquivariantBlock, ScalarVectorHead, Set2SetHead
from simkit.potential import Potential
from simkit.properties import ELECTRONS, KINDS, isolated_only

CUTOFF = 4.0
ELEMENTS = [1, 6, 8]
EVERYTHING = ("dipole", "polarizability", "gap", "r2", "Cv", "magmoms")


def make(outputs: Sequence[str] = EVERYTHING, name: str = "painn", **kwargs: Any) -> Potential:
    """A small float64 model whose standards are not trivial."""
    sizes = {"channels": 12, "layers": 2, "cutoff": CUTOFF, "elements": ELEMENTS, "dtype": "float64"}
    potential = potentials.build(name, outputs=outputs, **sizes | kwargs)
    rng = np.random.default_rng(4)
    for standard in potential.standards.values():
        standard.set(rng.normal(size=len(potential.elements)).tolist(), 2.5, -0.3)  # type: ignore[operator]
    return potential


def rattled(name: str = "CH3CH2OH", charge: float = 0.0) -> Atoms:
    frame = molecule(name)
    frame.rattle(0.1, seed=5)
    frame.positions += [1.0, -2.0, 0.5]
    frame.info["charge"] = charge
    return frame


def graph_of(*frames: Atoms) -> AtomGraph:
    return AtomGraph.from_ase(list(frames), CUTOFF)


def features_of(potential: Potential, graph: AtomGraph) -> Features:
    species = potential.species(graph.z)
    scalars, vectors = potential.representation(species, graph.edge_index, graph.edge_vectors())
    return Features(scalars, vectors, species, graph.batch, graph.num_structures)


def by_structure(graph: AtomGraph) -> list[list[int]]:
    return [[i for i, k in enumerate(graph.batch.tolist()) if k == b] for b in range(graph.num_structures)]


def value(potential: Potential, name: str, raw: Tensor, species: Tensor, i: int) -> float:
    """What the standard of a property makes of the raw output of atom i."""
    standard = potential.standards[name]
    return float(standard.scale * raw[i].detach() + standard.shift + standard.reference[species[i]])


def about_center_of_mass(frame: Atoms) -> np.ndarray:
    return frame.positions - frame.get_center_of_mass()


# ------------------------------------------------------------------------------------------------------ formulas

FRAMES = (rattled(), rattled("H2O", charge=-1.0), Atoms("C", [[3.0, 1.0, 2.0]]))


def given(potential: Potential, *names: str) -> dict[str, np.ndarray]:
    return {key: v.detach().double().numpy() for key, v in potential(graph_of(*FRAMES), names).items()}


@pytest.mark.parametrize("name", ["U0", "Cv", "alpha", "zpve"])
def test_extensive(name: str) -> None:
    potential, graph = make([name]), graph_of(*FRAMES)
    features = features_of(potential, graph)
    raw = potential.heads[name](features)
    expected = [sum(value(potential, name, raw, features.species, i) for i in atoms) for atoms in by_structure(graph)]
    np.testing.assert_allclose(given(potential, name)[name], expected, rtol=1e-12)


def test_intensive_is_the_mean_of_the_atoms() -> None:
    potential, graph = make(["gap"]), graph_of(*FRAMES)
    features = features_of(potential, graph)
    raw = potential.heads["gap"].readout(features)
    expected = [
        np.mean([value(potential, "gap", raw, features.species, i) for i in atoms]) for atoms in by_structure(graph)
    ]
    np.testing.assert_allclose(given(potential, "gap")["gap"], expected, rtol=1e-12)


def test_atomic() -> None:
    potential, graph = make(["magmoms", "charges"]), graph_of(*FRAMES)
    features = features_of(potential, graph)
    found = given(potential, "magmoms", "charges")
    raw = potential.heads["magmoms"](features)
    expected = [value(potential, "magmoms", raw, features.species, i) for i in range(len(graph.z))]
    np.testing.assert_allclose(found["magmoms"], expected, rtol=1e-12)
    raw = potential.heads["charges"](features)
    for atoms, total in zip(by_structure(graph), (0.0, -1.0, 0.0), strict=True):
        free = np.array([value(potential, "charges", raw, features.species, i) for i in atoms])
        np.testing.assert_allclose(found["charges"][atoms], free - (free.sum() - total) / len(atoms), atol=1e-12)


def test_spatial_extent() -> None:
    potential, graph = make(["r2"]), graph_of(*FRAMES)
    features = features_of(potential, graph)
    electrons, own = potential.heads["r2"](features)
    expected = []
    for atoms, frame in zip(by_structure(graph), FRAMES, strict=True):
        local = about_center_of_mass(frame)
        expected.append(
            sum(
                value(potential, ELECTRONS, electrons, features.species, i) * (local[k] @ local[k])
                + value(potential, "r2", own, features.species, i)
                for k, i in enumerate(atoms)
            )
        )
    np.testing.assert_allclose(given(potential, "r2")["r2"], expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["painn", "schnet"])
def test_dipole_and_its_norm(name: str) -> None:
    potential, graph = make(["dipole"], name), graph_of(*FRAMES)
    charges, atomic = potential.heads["dipole"](features_of(potential, graph))
    found = given(potential, "dipole", "mu", "charges")
    assert (atomic is None) == (name == "schnet")
    for b, (atoms, frame, total) in enumerate(zip(by_structure(graph), FRAMES, (0.0, -1.0, 0.0), strict=True)):
        q = charges[atoms].detach().numpy()
        q = q - (q.sum() - total) / len(q)
        own = 0.0 if atomic is None else atomic[atoms].detach().numpy().sum(axis=0)
        np.testing.assert_allclose(found["dipole"][b], q @ frame.positions + own, atol=1e-12)
        np.testing.assert_allclose(
            found["mu"][b], np.linalg.norm(q @ about_center_of_mass(frame) + own), rtol=1e-9, atol=1e-12
        )
    assert found["mu"][0] > 1e-3


def test_mu_alone_is_the_same_network() -> None:
    """A model for mu has the dipole's network, but does not claim to know direction and charges, which nobody taught it."""
    alone, whole = make(["mu"]), make(["dipole", "mu"])
    assert alone.outputs == ("mu",)
    assert list(whole.heads) == ["dipole"]
    whole.heads["dipole"].load_state_dict(alone.heads["mu"].state_dict())
    np.testing.assert_array_equal(given(alone, "mu")["mu"], given(whole, "mu")["mu"])


def test_polarizability() -> None:
    potential, graph = make(["polarizability", "alpha"]), graph_of(*FRAMES)
    features = features_of(potential, graph)
    isotropic, vectors = potential.heads["polarizability"](features)
    found = given(potential, "polarizability", "alpha")
    assert list(potential.heads) == ["polarizability"]
    for b, (atoms, frame) in enumerate(zip(by_structure(graph), FRAMES, strict=True)):
        expected = np.zeros((3, 3))
        for i, r in zip(atoms, about_center_of_mass(frame), strict=True):
            v = 2.5 * vectors[i].detach().numpy()
            expected += value(potential, "polarizability", isotropic, features.species, i) * np.eye(3)
            expected += np.outer(v, r) + np.outer(r, v)
        np.testing.assert_allclose(found["polarizability"][b], expected, rtol=1e-10, atol=1e-12)
        assert found["alpha"][b] == pytest.approx(np.trace(expected) / 3, rel=1e-10)


def test_set2set_against_its_equations() -> None:
    """Vinyals et al., equations 3 to 7, one structure after another, with the gates of the LSTM written out."""
    head = Set2SetHead(6, torch.nn.SiLU()).double()
    generator = torch.Generator().manual_seed(1)
    structure = torch.tensor([0, 0, 0, 1, 2, 2])
    scalars = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    found = head(Features(scalars, None, structure, structure, 3))
    atoms = head.reduce(scalars)
    lstm = head.pool.lstm
    for b in range(3):
        m = atoms[structure == b]
        q_star, h, c = (torch.zeros(size, dtype=torch.float64) for size in (12, 6, 6))
        for _ in range(3):
            gates = lstm.weight_ih_l0 @ q_star + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ h + lstm.bias_hh_l0
            i, f, g, o = gates.chunk(4)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            weights = torch.exp(m @ h) / torch.exp(m @ h).sum()
            q_star = torch.cat([h, weights @ m])
        assert float(found[b].detach()) == pytest.approx(float(head.net(q_star).detach()), rel=1e-10)


@pytest.mark.parametrize("pooling", ["mean", "set2set"])
def test_growth_with_the_structure(pooling: str) -> None:
    """Twice the same molecule, far apart: extensive properties double, intensive ones stay."""
    potential = make(["U0", "gap", "alpha"], pooling=pooling)
    frame = rattled()
    twice = frame + frame
    twice.positions[len(frame) :] += [50.0, 0.0, 0.0]
    one, two = (potential(graph_of(f), ("U0", "gap", "alpha")) for f in (frame, twice))
    for name, factor in (("U0", 2.0), ("alpha", 2.0), ("gap", 1.0)):
        torch.testing.assert_close(two[name], factor * one[name], rtol=1e-10, atol=0)


def test_an_atom_has_its_own_extent_and_nothing_else() -> None:
    potential = make(["r2", "dipole", "polarizability"])
    with torch.no_grad():
        results = potential(graph_of(Atoms("O", [[7.0, 8.0, 9.0]])), potential.outputs)
    tensor = results["polarizability"][0]
    torch.testing.assert_close(tensor, tensor[0, 0] * torch.eye(3, dtype=tensor.dtype))
    assert float(results["charges"]) == pytest.approx(0.0, abs=1e-15)
    assert float(results["r2"]) != 0.0


# ----------------------------------------------------------------------------------------------------- symmetry


@pytest.mark.parametrize("last", [False, True])
def test_gated_block_is_equivariant(last: bool) -> None:
    class Flat(torch.nn.Module):
        """With vectors as e3nn has them, [N, C * 3]."""

        def __init__(self) -> None:
            super().__init__()
            self.block = GatedEquivariantBlock(8, 3, last=last)

        def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
            s, v = self.block(scalars, vectors.reshape(-1, 8, 3).transpose(1, 2))
            return s, v.transpose(1, 2).reshape(-1, 9)

    irreps_in = [o3.Irreps("8x0e"), o3.Irreps("8x1o")]
    arguments = [irreps.randn(5, -1, dtype=torch.float64) for irreps in irreps_in]
    assert_equivariant(
        Flat().double(), arguments, irreps_in=irreps_in, irreps_out=[o3.Irreps("3x0e"), o3.Irreps("3x1o")]
    )


def test_scalar_vector_head_is_equivariant() -> None:
    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = ScalarVectorHead(8, 8, torch.nn.SiLU())

        def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
            zeros = torch.zeros(len(scalars), dtype=torch.int64)
            s, v = self.head(Features(scalars, vectors.reshape(-1, 8, 3).transpose(1, 2), zeros, zeros, 1))
            return s.unsqueeze(1), v

    irreps_in = [o3.Irreps("8x0e"), o3.Irreps("8x1o")]
    arguments = [irreps.randn(5, -1, dtype=torch.float64) for irreps in irreps_in]
    assert_equivariant(Flat().double(), arguments, irreps_in=irreps_in, irreps_out=[o3.Irreps("0e"), o3.Irreps("1o")])


# -------------------------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("pooling", ["mean", "set2set"])
@pytest.mark.parametrize("name", ["painn", "schnet"])
def test_derivatives_with_respect_to_positions(name: str, pooling: str) -> None:
    """Along random directions: what the network sees and where charges sit both move."""
    outputs = [n for n in EVERYTHING if n != "polarizability" or name == "painn"]
    potential, graph = make(outputs, name, pooling=pooling), graph_of(rattled(), rattled("H2O", 1.0))
    generator, h = torch.Generator().manual_seed(0), 1e-6

    def at(pos: Tensor) -> dict[str, Tensor]:
        moved = graph.clone()
        moved.pos = pos
        return potential(moved, potential.outputs)

    pos = graph.pos.clone().requires_grad_(True)
    results = at(pos)
    for key, result in results.items():
        weights = torch.randn(result.shape, generator=generator, dtype=result.dtype)
        (gradient,) = torch.autograd.grad((weights * result).sum(), pos, retain_graph=True)
        direction = torch.randn(pos.shape, generator=generator, dtype=pos.dtype)
        up, down = (float((weights * at(pos.detach() + s * h * direction)[key].detach()).sum()) for s in (1, -1))
        expected = float((gradient * direction).sum())
        assert abs(expected) > 1e-6, key
        assert (up - down) / (2 * h) == pytest.approx(expected, rel=1e-6, abs=1e-8), key


def test_the_norm_of_a_vanishing_dipole_can_be_differentiated() -> None:
    potential = make(["mu"])
    mu = potential(graph_of(Atoms("C"), molecule("CH4"), rattled()), ("mu",))["mu"]
    assert float(mu[0].detach()) == 0.0
    (mu - 1.0).abs().sum().backward()
    gradients = [p.grad for p in potential.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert any(float(g.abs().sum()) > 0 for g in gradients)


# ------------------------------------------------------------------------------------------- beside the energy


def test_properties_do_not_depend_on_what_else_the_model_gives() -> None:
    """Atoms that ride along for an anchored energy, and other heads, change nothing."""
    plain = make()
    outputs = ["energy", *EVERYTHING]
    for anchored in (False, True):
        other = make(outputs, anchored=anchored)
        for key, module in plain.heads.items():
            other.heads[key].load_state_dict(module.state_dict())
        other.representation.load_state_dict(plain.representation.state_dict())
        found = other(graph_of(*FRAMES), (*plain.outputs, "forces"))
        expected = plain(graph_of(*FRAMES), plain.outputs)
        for key, result in expected.items():
            torch.testing.assert_close(found[key], result.detach(), rtol=1e-12, atol=1e-13)


def test_outputs_that_come_with_another_one() -> None:
    potential = make(["energy", "alpha", "polarizability", "mu", "charges", "dipole", "energies"])
    assert list(potential.heads) == ["energy", "polarizability", "dipole"]
    assert {"energies", "forces", "stress", "alpha", "mu", "charges"} < set(potential.outputs)
    assert make(["energies"]).outputs == ("energies",)


def test_standards_keep_float64() -> None:
    """References of U0 are large numbers with small differences: casting the network must not touch them."""
    potential = make(["U0"]).cast(torch.float32)
    standard = potential.standards["U0"]
    standard.set([-13.587222780835477, -1029.4889999150542, -2041.8396277138045], 0.1, 0.0)
    before = standard.reference.clone()
    assert torch.equal(potential.cast(torch.float64).cast(torch.float32).standards["U0"].reference, before)
    assert potential(graph_of(rattled()), ("U0",))["U0"].dtype == torch.float64


def test_files_of_energies_are_as_before() -> None:
    header = make(["energy", "dipole"]).header()
    assert "pooling" not in header
    assert header["version"] == 1
    assert make(["gap"], pooling="set2set").header()["pooling"] == "set2set"


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"outputs": ["gaps"]}, "painn cannot give the output 'gaps'; did you mean 'gap'?"),
        ({"outputs": ["stress"]}, "it is a derivative of the energy; ask for 'energy'"),
        ({"outputs": ["charge"]}, "cannot give the output 'charge'"),
        (
            {"outputs": ["polarizability"], "name": "schnet"},
            "needs vector features, of which it has none; ask for alpha",
        ),
        ({"outputs": ["gap"], "pooling": "max"}, "pooling must be mean or set2set, found 'max'"),
    ],
)
def test_impossible_outputs(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**kwargs)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["r2", "polarizability", "alpha", "mu", "dipole"])
def test_periodic_structures(name: str) -> None:
    potential = make()
    crystal = rattled()
    crystal.set_cell([8.0, 8.0, 8.0])
    crystal.pbc = True
    with pytest.raises(ConfigError, match=f"the {name} of a periodic structure is not defined"):
        potential(graph_of(crystal), (name,))
    defined = [n for n in potential.outputs if n not in isolated_only(potential.heads)]
    assert {"gap", "Cv", "charges", "magmoms"} == set(defined)
    assert set(potential(graph_of(crystal), defined)) == set(defined)
    assert make(["alpha"])(graph_of(crystal), ("alpha",))["alpha"].shape == (1,)  # a sum over atoms needs no origin


def test_every_kind_is_a_label() -> None:
    assert set(KINDS) <= set(LABELS)


# --------------------------------------------------------------------------------------------------- calculator


def test_calculator_gives_properties() -> None:
    potential = make(["energy", *EVERYTHING])
    calculator = Calculator(potential, dtype="float64", fast=False)
    frames = [rattled(), rattled("H2O", -1.0)]
    names = [name for name in potential.outputs if name != "stress"]
    expected = [potential(graph_of(frame), names) for frame in frames]
    for frame, values in zip(frames, expected, strict=True):
        for name in values:
            found = calculator.get_property(name, frame)
            assert np.shape(found) == (
                LABELS[name].shape if LABELS[name].per == "graph" else (len(frame), *LABELS[name].shape)
            )
            np.testing.assert_allclose(found, np.squeeze(values[name].detach().numpy()), rtol=1e-9, atol=1e-10)
    evaluations = calculator.evaluations
    calculator.get_property("gap", frames[1])
    assert calculator.evaluations == evaluations  # it came along
    batch = calculator.batch(frames, ["gap", "polarizability", "magmoms"])
    for one, values in zip(batch, expected, strict=True):
        for name, found in one.items():
            np.testing.assert_allclose(found, np.squeeze(values[name].detach().numpy()), rtol=1e-9, atol=1e-10)


def test_calculator_without_energy() -> None:
    calculator, frame = simkit.Calculator(make(["gap", "r2"])), rattled()
    assert calculator.implemented_properties == ["gap", "r2"]
    assert isinstance(calculator.get_property("gap", frame), float)
    frame.calc = calculator
    with pytest.raises(PropertyError, match="cannot give energy; it gives gap, r2"):
        frame.get_potential_energy()
    frame.set_cell([9.0, 9.0, 9.0])
    frame.pbc = True
    with pytest.raises(PropertyError, match="the r2 of a periodic structure is not defined"):
        calculator.get_property("r2", frame)
    assert isinstance(calculator.get_property("gap", frame), float)
