"""ANI: environment vectors against torchani and against their equations in loops, and the networks of the elements."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from numpy.typing import NDArray
from torch import Tensor

import simkit
from simkit import potentials
from simkit.errors import ConfigError
from simkit.graph import AtomGraph
from simkit.potential import Potential
from simkit.potentials.ani import pairs_at_receivers

# Acetamide, rattled.
POSITIONS = [
    [0.594, 1.28, 0.011],
    [0.118, 0.071, -0.004],
    [0.985, -1.054, 0.053],
    [-1.311, -0.351, -0.017],
    [0.758, -1.85, 0.146],
    [-2.143, 0.64, -0.163],
    [-1.533, -1.192, -0.607],
    [-1.617, -0.762, 1.173],
    [1.949, -0.777, 0.071],
]
# torchani 2.9.0, AEVComputer.like_1x() in float64, its constants given in float64 (as they are, rounded to float32, its vectors differ
# by up to 5e-7). The vectors have 384 entries; entry k of a vector times cos(k) or sin(k), summed, notices entries that change places.
NORMS = [
    0.664206680813, 2.804786103496, 2.461802663668, 3.172880154930, 1.303395496520,
    1.309761507677, 1.819124318212, 1.536475963241, 1.117471468654,
]  # fmt: skip
COSINES = [
    0.592438464466, -0.345132776988, 3.532295911908, 3.111483521182, 0.222755537157,
    0.140990325526, 0.573070623164, 0.374385623205, -0.038860273063,
]  # fmt: skip
SINES = [
    0.479082135742, -3.800996720247, 1.478124561406, 3.104710176610, 1.607163738919,
    -1.594590759811, -0.390292914152, -0.605784454117, 0.015625693064,
]  # fmt: skip
# Entries of the first three atoms: carbon-nitrogen pair seen by oxygen, and so on.
ENTRIES = {
    (0, 9): 0.193278309889,
    (0, 114): 0.257523133656,
    (1, 173): 0.807831966855,
    (1, 174): 0.793032260943,
    (2, 69): 1.350180169753,
    (2, 101): 1.052544582192,
}
# Gradient of the sum over atoms i and entries k of cos(k + i^2) times entry k with respect to the positions.
GRADIENT = [
    [2.331870614475, -0.776104541832, -0.121766841319],
    [-6.707941938129, 1.366387559150, -0.583300981138],
    [6.782740390193, -1.047388360348, 0.798773015001],
    [5.614488098395, 3.613539275629, -1.592534171608],
    [-4.089494408070, -1.300094569518, -0.370154732277],
    [-3.377551896518, 2.606834511704, -0.766822060743],
    [-1.701716649825, -2.916387874727, 0.508900389669],
    [-2.687068242988, -3.105384188557, 2.534518369184],
    [3.834674032467, 1.558598188499, -0.407612986769],
]
# Carbon dioxide, C-O 1.16 angstrom: cosine sums of carbon and oxygen.
LINEAR = [0.670862552046, -0.012235730665, -0.012235730665]


def make(cutoff: float = 5.2, elements: tuple[int, ...] = (1, 6, 7, 8), **options: Any) -> Potential:
    return potentials.build("ani", cutoff=cutoff, elements=elements, dtype="float64", **options)


def environment(potential: Potential, graph: AtomGraph) -> Tensor:
    rep: Any = potential.representation
    vectors: Tensor = rep.environment(potential.species(graph.z), graph.edge_index, graph.edge_vectors())
    return vectors


def acetamide() -> Atoms:
    return Atoms([8, 6, 7, 6, 1, 1, 1, 1, 1], POSITIONS)


def crystal() -> Atoms:
    """A cell so small that atoms see their own images, and one image of an atom beside another."""
    cell = [[3.1, 0.2, 0.0], [0.9, 2.9, 0.3], [-0.4, 0.6, 3.3]]
    return Atoms("HCO", scaled_positions=[[0.1, 0.2, 0.9], [0.55, 0.5, 0.4], [0, 0.75, 0.35]], cell=cell, pbc=True)


# -------------------------------------------------------------------------------------------------- environment vectors


def test_vectors_equal_torchani() -> None:
    potential = make(cutoff_function="cosine")
    graph = AtomGraph.from_ase(acetamide(), 5.2)
    graph.pos.requires_grad_(True)
    vectors = environment(potential, graph)
    assert vectors.shape == (9, 384)
    k = torch.arange(384, dtype=torch.float64)
    weights = torch.cos(k + torch.arange(9).unsqueeze(1) ** 2)
    (gradient,) = torch.autograd.grad((vectors * weights).sum(), graph.pos)
    v = vectors.detach()
    np.testing.assert_allclose(v.norm(dim=1), NORMS, rtol=0, atol=2e-12)
    np.testing.assert_allclose(v @ torch.cos(k), COSINES, rtol=0, atol=2e-12)
    np.testing.assert_allclose(v @ torch.sin(k), SINES, rtol=0, atol=2e-12)
    np.testing.assert_allclose([v[place] for place in ENTRIES], list(ENTRIES.values()), rtol=0, atol=2e-12)
    np.testing.assert_allclose(gradient, GRADIENT, rtol=0, atol=1e-11)


def test_vectors_of_a_linear_molecule_equal_torchani() -> None:
    graph = AtomGraph.from_ase(Atoms("COO", [[0, 0, 0], [0, 0, 1.16], [0, 0, -1.16]]), 5.2)
    vectors = environment(make(cutoff_function="cosine"), graph)
    cosines = vectors @ torch.cos(torch.arange(384, dtype=torch.float64))
    np.testing.assert_allclose(cosines, LINEAR, rtol=0, atol=2e-12)


def vectors_in_loops(atoms: Atoms, elements: list[int], cutoff: float, o: dict[str, Any]) -> NDArray[np.float64]:
    """Equations 3 and 4 as they stand, with loops over atoms, images and terms."""
    images = (
        [np.array(n) @ atoms.cell.array for n in itertools.product(range(-3, 4), repeat=3)] if atoms.pbc.all() else [0]
    )
    pairs = list(itertools.combinations_with_replacement(range(len(elements)), 2))
    angular_start = len(elements) * o["radial_shifts"]
    per_pair = o["angular_shifts"] * o["sections"]
    result = np.zeros((len(atoms), angular_start + len(pairs) * per_pair))

    def f(r: float, rc: float) -> float:
        return 0.5 * math.cos(math.pi * r / rc) + 0.5 if r < rc else 0.0

    for i, place in enumerate(atoms.positions):
        found = [(k, p + s - place) for k, p in enumerate(atoms.positions) for s in images]
        near = [(elements.index(atoms.numbers[k]), d, np.linalg.norm(d)) for k, d in found if np.linalg.norm(d) > 1e-8]
        for s, _, r in near:
            for n in range(o["radial_shifts"]):
                center = o["start"] + n * (cutoff - o["start"]) / o["radial_shifts"]
                term = 0.25 * math.exp(-o["radial_eta"] * (r - center) ** 2) * f(r, cutoff)
                result[i, s * o["radial_shifts"] + n] += term
        inner = [neighbor for neighbor in near if neighbor[2] < o["angular_cutoff"]]
        for (s, d, r), (t, e, q) in itertools.combinations(inner, 2):
            theta, start = (
                math.acos(0.95 * d @ e / r / q),
                angular_start + pairs.index((min(s, t), max(s, t))) * per_pair,
            )
            both = f(r, o["angular_cutoff"]) * f(q, o["angular_cutoff"])
            for n, m in itertools.product(range(o["angular_shifts"]), range(o["sections"])):
                center = o["start"] + n * (o["angular_cutoff"] - o["start"]) / o["angular_shifts"]
                section = math.pi * (2 * m + 1) / (2 * o["sections"])
                angle = 2 ** (1 - o["zeta"]) * (1 + math.cos(theta - section)) ** o["zeta"]
                term = angle * math.exp(-o["angular_eta"] * ((r + q) / 2 - center) ** 2) * both
                result[i, start + n * o["sections"] + m] += term
    return result


def test_vectors_equal_their_equations_in_a_crystal() -> None:
    """With images of atoms among the neighbors, and with other numbers than the published ones."""
    options = {"angular_cutoff": 3.4, "start": 0.7, "radial_eta": 1.1, "radial_shifts": 5, "angular_eta": 0.6}
    potential = make(4.1, (1, 6, 8), cutoff_function="cosine", angular_shifts=2, zeta=3.7, sections=3, **options)
    found = environment(potential, AtomGraph.from_ase(crystal(), 4.1))
    expected = vectors_in_loops(crystal(), [1, 6, 8], 4.1, potential.options)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)
    assert (expected > 1e-3).mean() > 0.9


def test_pairs_at_receivers() -> None:
    receiver = torch.tensor([0, 0, 0, 2, 3, 3, 5, 5, 5, 5])
    first, second = pairs_at_receivers(receiver, 7)
    expected = [(a, b) for a, b in itertools.combinations(range(10), 2) if receiver[a] == receiver[b]]
    assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == expected
    none = pairs_at_receivers(receiver[:0], 3)
    assert [len(t) for t in none] == [0, 0]


@pytest.mark.parametrize("name", ["crystal", "CO2", "C2H2"])
def test_two_derivatives_of_the_vectors(name: str) -> None:
    """Also where three atoms are exactly in a line, which the factor of 0.95 is for."""
    frame = crystal()[:2] if name == "crystal" else molecule(name)
    sizes: dict[str, Any] = {
        "radial_shifts": 3,
        "angular_shifts": 2,
        "sections": 2,
        "radial_eta": 2.0,
        "angular_eta": 1.0,
    }
    potential = make(3.2, (1, 6, 8), angular_cutoff=3.1, zeta=4.0, **sizes)
    graph = AtomGraph.from_ase(frame, 3.2)
    rep: Any = potential.representation
    species = potential.species(graph.z)

    def project(vectors: Tensor) -> Tensor:
        values: Tensor = rep.environment(species, graph.edge_index, vectors)
        return values @ torch.cos(torch.arange(values.shape[1], dtype=values.dtype))

    vectors = graph.edge_vectors().requires_grad_(True)
    assert torch.autograd.gradcheck(project, vectors)
    assert torch.autograd.gradgradcheck(project, vectors)


@pytest.mark.parametrize("seed", range(3))
def test_forces_of_a_linear_molecule(seed: int) -> None:
    """Carbon dioxide with all published numbers; the bending force vanishes by symmetry, the stretching force does not."""
    potential, h = potentials.build("ani", cutoff=5.2, elements=[6, 8], dtype="float64", seed=seed), 1e-5
    frame, displaced = molecule("CO2"), []
    for k, sign in itertools.product(range(9), (1, -1)):
        moved = frame.copy()
        moved.positions[k // 3, k % 3] += sign * h
        displaced.append(moved)
    energies = potential(AtomGraph.from_ase(displaced, 5.2), ("energy",))["energy"].detach().numpy().reshape(3, 3, 2)
    forces = potential(AtomGraph.from_ase(frame, 5.2), ("forces",))["forces"].numpy()
    np.testing.assert_allclose(forces, -(energies[..., 0] - energies[..., 1]) / (2 * h), rtol=0, atol=1e-7)
    assert np.abs(forces[:, :2]).max() < 1e-12 < 1e-2 < np.abs(forces).max()


# ----------------------------------------------------------------------------------------------------- networks, options


def test_each_atom_has_the_network_of_its_element() -> None:
    potential = make()
    atoms = acetamide() + Atoms("N", [[30, 0, 0]])
    graph = AtomGraph.from_ase(atoms, 5.2)
    rep: Any = potential.representation
    head: Any = potential.heads["energy"]
    expected = []
    for z, vector in zip(graph.z.tolist(), environment(potential, graph), strict=True):
        x = vector
        for layer in rep.networks[{1: "H", 6: "C", 7: "N", 8: "O"}[z]]:
            if isinstance(layer, torch.nn.Linear):
                x = layer.weight @ x + layer.bias
            else:
                x = torch.where(x > 0, x, 0.1 * (torch.exp(x / 0.1) - 1))
        k = potential.elements.index(z)
        expected.append(head.weight.weight[k] @ x + head.bias.weight[k, 0])
    found = potential(graph, ("energies",))["energies"]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=1e-13)


def test_published_size() -> None:
    """ANI-1x: 384 entries; 160, 128 and 96 units for hydrogen, 144, 112 and 96 for carbon, 128, 112 and 96 for the others."""

    def count(*widths: int) -> int:
        return sum(a * b + b for a, b in itertools.pairwise([384, *widths, 1]))

    expected = count(160, 128, 96) + count(144, 112, 96) + 2 * count(128, 112, 96)
    assert potentials.build("ani", elements=[1, 6, 7, 8], cutoff=5.2).num_parameters == expected == 326_660
    rep: Any = potentials.build("ani", elements=[1, 6, 7, 8, 9, 16, 17], cutoff=5.2).representation
    assert rep.environment.length == 1008


def test_widths_of_the_networks_survive_a_file(tmp_path: Path) -> None:
    potential = make(hidden=[20, 10], channels=6)
    rep: Any = potential.representation
    for net in rep.networks.values():
        assert [layer.out_features for layer in net if isinstance(layer, torch.nn.Linear)] == [20, 10, 6]
    potential.save(tmp_path / "model.safetensors")
    loaded = simkit.load(tmp_path / "model.safetensors")
    graph = AtomGraph.from_ase(acetamide(), 5.2)
    assert torch.equal(loaded(graph, ("energy",))["energy"], potential(graph, ("energy",))["energy"])


@pytest.mark.parametrize("reach", [4.5, 3.5])
def test_the_published_cutoff_function_has_a_kink(reach: float) -> None:
    """What the default removes, where an atom crosses the cutoff and where it crosses the angular cutoff of another one."""
    kinks = {}
    for function in ("cosine", "polynomial"):
        potential = make(4.5, (1, 6, 8), cutoff_function=function)
        frames = [Atoms("OCH", [[0, 0, 0], [1.1, 0.6, 0], [reach + d, 0, 0]]) for d in (-1e-5, 0.0, 1e-5)]
        forces = potential(AtomGraph.from_ase(frames, 5.0), ("forces",))["forces"].reshape(3, 3, 3)[:, 2, 0]
        kinks[function] = float(abs(forces[2] - 2 * forces[1] + forces[0])) / 1e-5
    assert kinks["cosine"] > 1e-4
    assert kinks["polynomial"] < 1e-2 * kinks["cosine"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoff": 3.0}, "angular cutoff of 3.5 angstrom is above the cutoff of 3.0; lower angular_cutoff"),
        ({"start": 3.6}, "first Gaussian at 3.6 angstrom is not below the angular cutoff of 3.5; lower start"),
        ({"hidden": [0]}, "hidden.0"),
        ({"zeta": 1}, "zeta"),
    ],
)
def test_unusable_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**options)
