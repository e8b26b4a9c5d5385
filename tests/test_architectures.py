"""Each architecture against what was published: other implementations, equations written out in loops, analytic results."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.lj import LennardJones as AseLennardJones
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simkit import potentials
from simkit.graph import AtomGraph
from simkit.potential import Potential
from simkit.potentials.lennard_jones import OuterSwitch
from simkit.radial import CosineCutoff, GaussianBasis, PolynomialCutoff, SineBasis


def frames() -> list[Atoms]:
    ethanol = molecule("CH3CH2OH")
    ethanol.rattle(0.1, seed=2)
    cell = [[3.1, 0.2, 0.0], [0.9, 2.9, 0.3], [-0.4, 0.6, 3.3]]
    places = [[0.1, 0.2, 0.9], [0.55, 0.5, 0.4], [0, 0.75, 0.35]]
    crystal = Atoms("HCO", scaled_positions=places, cell=cell, pbc=True)
    return [ethanol, crystal]


def evaluate(potential: Potential, atoms: Atoms | list[Atoms], *outputs: str) -> Any:
    graph = AtomGraph.from_ase(atoms, potential.cutoff)
    found = potential(graph, outputs)
    results = [found[name].detach().numpy() for name in outputs]
    return results[0] if len(outputs) == 1 else results


# ---------------------------------------------------------------------------------------------------------------- SchNet


def pyg_twin(potential: Potential, graph: AtomGraph) -> torch.nn.Module:
    """PyG's SchNet with the weights of ``potential``, on the edges of ``graph``."""
    from torch_geometric.nn.models import SchNet

    options = potential.options
    twin = SchNet(
        hidden_channels=options["channels"],
        num_filters=options["filters"],
        num_interactions=options["layers"],
        num_gaussians=options["basis"],
        cutoff=potential.cutoff,
        interaction_graph=lambda pos, batch: (graph.edge_index, graph.edge_vectors().norm(dim=1)),
    ).double()
    # PyG rounds the centres of its Gaussians and ln 2 to float32.
    centers = torch.linspace(0, potential.cutoff, options["basis"], dtype=torch.float64)
    twin.distance_expansion.offset.copy_(centers)
    twin.distance_expansion.coeff = -0.5 / float(centers[1]) ** 2

    for module in twin.modules():
        if hasattr(module, "shift"):
            module.shift = math.log(2.0)

    def copy(target: torch.nn.Linear, source: Any) -> None:
        target.load_state_dict(source.state_dict())

    rep: Any = potential.representation
    head: Any = potential.heads["energy"]
    with torch.no_grad():
        twin.embedding.weight[potential.elements] = rep.embedding.weight
    for ours, theirs in zip(rep.interactions, twin.interactions, strict=True):
        copy(theirs.mlp[0], ours.filter_net[0])
        copy(theirs.mlp[2], ours.filter_net[2])
        copy(theirs.conv.lin1, ours.dense_in)
        copy(theirs.conv.lin2, ours.dense_out[0])
        copy(theirs.lin, ours.dense_out[2])
    copy(twin.lin1, head.net[0])
    copy(twin.lin2, head.net[2])
    return twin


@pytest.mark.parametrize(("channels", "filters", "layers"), [(32, 32, 3), (16, 24, 2)])
def test_schnet_equals_pyg(channels: int, filters: int, layers: int) -> None:
    potential = potentials.build(
        "schnet",
        cutoff=4.5,
        elements=[1, 6, 8],
        dtype="float64",
        channels=channels,
        filters=filters,
        layers=layers,
        basis=30,
        cutoff_function="cosine",
    )
    graph = AtomGraph.from_ase(frames(), 4.5)
    twin = pyg_twin(potential, graph)
    graph.pos.requires_grad_(True)
    theirs = twin(graph.z, graph.pos, graph.batch)
    (gradient,) = torch.autograd.grad(theirs.sum(), graph.pos)
    ours = potential(graph, ("energy", "forces"))
    torch.testing.assert_close(ours["energy"], theirs.detach().squeeze(1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours["forces"], -gradient, rtol=1e-10, atol=1e-10)


def test_schnet_size() -> None:
    f, layers, gaussians, elements = 128, 6, 20, 5
    interaction = (gaussians * f + f) + (f * f + f) + f * f + 2 * (f * f + f)  # filter, in, out
    expected = elements * f + layers * interaction + (f * 64 + 64) + (64 + 1)
    assert potentials.build("schnet", elements=[1, 6, 7, 8, 9]).num_parameters == expected == 420_609


# ----------------------------------------------------------------------------------------------------------------- PaiNN


def test_painn_size() -> None:
    """Term by term from figure 2 of the paper: 128 features, 3 blocks, 20 radial functions; the paper counts 600 thousand."""
    f, layers, radial = 128, 3, 20
    message = (f * f + f) + (f * 3 * f + 3 * f) + (radial * 3 * f + 3 * f)  # phi, and the filters W
    update = 2 * f * f + (2 * f * f + f) + (f * 3 * f + 3 * f)  # U and V without bias, and a
    readout = (f * f // 2 + f // 2) + (f // 2 + 1)
    expected = layers * (message + update) + readout
    assert potentials.build("painn", elements=[1, 6, 7, 8, 9]).num_parameters == expected + 5 * f == 576_897
    assert potentials.build("painn", elements=range(1, 101)).num_parameters == pytest.approx(600_000, rel=0.02)


def painn_in_loops(
    potential: Potential, graph: AtomGraph, radial: Callable[[int, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Equations 7 to 10 with loops over atoms and neighbors; v_i is a [channels, 3] matrix as in the paper."""
    rep: Any = potential.representation
    f, rc = potential.options["channels"], potential.cutoff
    edges = list(zip(graph.edge_index[0].tolist(), graph.edge_index[1].tolist(), graph.edge_vectors(), strict=True))
    n = len(graph.z)
    s = [rep.embedding.weight[potential.elements.index(int(z))] for z in graph.z]
    v = [torch.zeros(f, 3, dtype=torch.float64) for _ in range(n)]
    for message, update, filters in zip(rep.messages, rep.updates, rep.filters, strict=True):
        new_s, new_v = list(s), list(v)
        for j, i, r_ij in edges:
            r = r_ij.norm()
            rbf = torch.stack([radial(k, r) for k in range(potential.options["basis"])])
            w = (filters.weight @ rbf + filters.bias) * 0.5 * (torch.cos(math.pi * r / rc) + 1)
            phi_s, phi_vs, phi_vv = (message.net(s[j]) * w).split(f)
            new_s[i] = new_s[i] + phi_s
            new_v[i] = new_v[i] + v[j] * phi_vv[:, None] + torch.outer(phi_vs, r_ij / r)
        s, v = new_s, new_v
        for i in range(n):
            u_matrix, v_matrix = update.mix.weight.split(f)
            uv, vv = u_matrix @ v[i], v_matrix @ v[i]
            norm = (vv.square().sum(dim=1) + 1e-8).sqrt()
            a_vv, a_sv, a_ss = update.net(torch.cat([s[i], norm])).split(f)
            s[i], v[i] = s[i] + a_ss + a_sv * (uv * vv).sum(dim=1), v[i] + a_vv[:, None] * uv
    return torch.stack(s), torch.stack(v)


RADIAL: dict[str, Callable[[int, Tensor], Tensor]] = {
    "sine": lambda k, r: torch.sin((k + 1) * math.pi * r / 4.0) / r,
    "gaussian": lambda k, r: torch.exp(-((r - k * 4.0 / 19) ** 2) / (2 * (4.0 / 19) ** 2)),
}
"""Of 20 functions within 4 angstrom."""


@pytest.mark.parametrize("radial", RADIAL)
def test_painn_equals_its_equations(radial: str) -> None:
    sizes = {"channels": 40, "layers": 3, "cutoff_function": "cosine", "radial": radial}
    potential = potentials.build("painn", cutoff=4.0, elements=[1, 6, 8], dtype="float64", **sizes)
    graph = AtomGraph.from_ase(frames(), 4.0)
    with torch.no_grad():
        expected_s, expected_v = painn_in_loops(potential, graph, RADIAL[radial])
        s, v = potential.representation(potential.species(graph.z), graph.edge_index, graph.edge_vectors())
    torch.testing.assert_close(s, expected_s, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(v, expected_v.transpose(1, 2), rtol=1e-10, atol=1e-10)
    assert expected_v.abs().max() > 0.01


@pytest.mark.parametrize("name", ["painn", "schnet"])
def test_the_published_cutoff_function_has_a_kink(name: str) -> None:
    """What the default removes: with "cosine" the second derivative jumps where an atom crosses the cutoff."""
    kinks = {}
    for function in ("cosine", "polynomial"):
        potential = potentials.build(
            name, cutoff=4.0, elements=[1, 8], dtype="float64", channels=16, layers=2, cutoff_function=function
        )
        distances = 4.0 + 1e-5 * np.array([-1.0, 0.0, 1.0])
        force = evaluate(potential, [Atoms("OH", [[0, 0, 0], [r, 0, 0]]) for r in distances], "forces")[1::2, 0]
        kinks[function] = abs(force[2] - 2 * force[1] + force[0]) / 1e-5
    assert kinks["cosine"] > 1e-4
    assert kinks["polynomial"] < 1e-3 * kinks["cosine"]


# --------------------------------------------------------------------------------------------------- Lennard-Jones, Morse


def argon(**options: Any) -> Potential:
    return potentials.build("lennard_jones", elements=[18], **{"cutoff": 10.0} | options)


def dimers(potential: Potential, distances: Any) -> Any:
    z = potential.elements[0]
    energy, forces = evaluate(potential, [Atoms([z, z], [[0, 0, 0], [0, 0, r]]) for r in distances], "energy", "forces")
    return energy, forces[1::2, 2]


def test_lennard_jones_dimer() -> None:
    potential = argon(epsilon=0.02, sigma=3.1, cutoff=9.0)
    energy, force = dimers(potential, [2 ** (1 / 6) * 3.1, 3.1, 2.9])
    np.testing.assert_allclose(energy[:2], [-0.02, 0.0], atol=1e-15)
    np.testing.assert_allclose(force[:2], [0.0, 24 * 0.02 / 3.1], atol=1e-14)
    assert energy[2] > 0


def test_lennard_jones_equals_ase() -> None:
    """A rattled fcc crystal whose second shell lies beyond the cutoff and whose first one lies below the switching."""
    crystal = bulk("Ar", a=5.26, cubic=True) * (3, 3, 3)
    crystal.rattle(0.02, seed=4)
    cutoff = 1.34 * 5.26 / math.sqrt(2)
    energy, energies, forces, stress = evaluate(argon(cutoff=cutoff), crystal, "energy", "energies", "forces", "stress")
    crystal.calc = AseLennardJones(sigma=3.4, epsilon=0.0103, rc=cutoff, smooth=False)
    offset = 4 * 0.0103 * ((3.4 / cutoff) ** 12 - (3.4 / cutoff) ** 6)  # ASE shifts every pair to zero at the cutoff
    assert energy[0] == pytest.approx(crystal.get_potential_energy() + 6 * len(crystal) * offset, rel=1e-12)
    np.testing.assert_allclose(energies, crystal.get_potential_energies() + 6 * offset, rtol=1e-12)
    np.testing.assert_allclose(forces, crystal.get_forces(), atol=1e-13)
    np.testing.assert_allclose(stress[0], crystal.get_stress(voigt=False), atol=1e-15)
    assert np.abs(forces).max() > 1e-3


def test_lennard_jones_fcc_lattice_sums() -> None:
    """E/N = 2 epsilon (12.13188 (sigma/r)^12 - 14.45392 (sigma/r)^6) at nearest-neighbor distance r (Kittel, chapter 3)."""
    a, sigma, cutoff = 5.26, 3.4, 36.0
    nearest = a / math.sqrt(2)
    exact = 2 * 0.0103 * (12.13188 * (sigma / nearest) ** 12 - 14.45392 * (sigma / nearest) ** 6)
    energy = evaluate(argon(cutoff=cutoff), bulk("Ar", a=a), "energy")[0]
    # What the switching takes away, for a continuum of 4 atoms per cell.
    r = np.linspace(0.8 * cutoff, 20 * cutoff, 400_001)
    x = np.clip((r - 0.8 * cutoff) / (0.2 * cutoff), 0, 1)
    missing = 10 * x**3 - 15 * x**4 + 6 * x**5
    tail = np.trapezoid(2 * math.pi * (4 / a**3) * r**2 * 4 * 0.0103 * (-((sigma / r) ** 6)) * missing, r)
    assert energy == pytest.approx(exact, rel=2e-3)
    assert energy + tail == pytest.approx(exact, rel=1e-5)


def test_morse_dimer() -> None:
    depth, alpha, r0 = 0.3429, 1.3588, 2.866
    potential = potentials.build("morse", elements=[29], cutoff=8.0)
    r = np.array([r0, 2.0, 3.3, 5.0, 6.39])
    energy, force = dimers(potential, r)
    well = np.exp(-alpha * (r - r0))
    np.testing.assert_allclose(energy, depth * ((1 - well) ** 2 - 1), atol=1e-14)
    np.testing.assert_allclose(force, 2 * depth * alpha * (well**2 - well), atol=1e-14)
    _, near = dimers(potential, [r0 - 1e-5, r0 + 1e-5])
    assert (near[0] - near[1]) / 2e-5 == pytest.approx(2 * depth * alpha**2, rel=1e-8)  # the force constant


def test_morse_binds_copper() -> None:
    """Girifalco & Weizer fitted to the lattice constant and the cohesive energy of copper, 3.61 angstrom and 3.5 eV."""
    potential = potentials.build("morse", elements=[29], cutoff=14.0)
    constants = np.linspace(3.5, 3.72, 23)
    energy = evaluate(potential, [bulk("Cu", a=a) for a in constants], "energy")
    assert constants[energy.argmin()] == pytest.approx(3.61, abs=0.015)
    assert energy.min() == pytest.approx(-3.5, abs=0.05)


# ---------------------------------------------------------------------------------------------- radial functions


def derivatives(function: Any, r: float, count: int) -> list[float]:
    x = torch.tensor(r, dtype=torch.float64, requires_grad=True)
    y = function(x)
    values = [y.item()]
    for _ in range(count):
        (y,) = torch.autograd.grad(y, x, create_graph=True)
        values.append(y.item())
    return values


@pytest.mark.parametrize("cutoff", [1.0, 5.0])
def test_polynomial_cutoff(cutoff: float) -> None:
    function = PolynomialCutoff(cutoff)
    assert derivatives(function, 0.0, 2) == [1.0, 0.0, 0.0]
    np.testing.assert_allclose(derivatives(function, cutoff * (1 - 1e-12), 2), 0.0, atol=1e-9)
    assert derivatives(function, cutoff * (1 - 1e-12), 3)[3] == pytest.approx(-60 / cutoff**3)
    assert derivatives(function, cutoff * 1.01, 2) == [0.0, 0.0, 0.0]
    r = torch.linspace(0, cutoff, 100_001, dtype=torch.float64)
    assert (function(r).diff() <= 0).all()
    assert 0.043 < (function(r) - CosineCutoff(cutoff)(r)).abs().max() < 0.044


def test_cosine_cutoff() -> None:
    function = CosineCutoff(5.0)
    np.testing.assert_allclose(derivatives(function, 5.0 * (1 - 1e-12), 1), 0.0, atol=1e-10)
    assert derivatives(function, 5.0 * (1 - 1e-12), 2)[2] == pytest.approx(0.5 * (math.pi / 5) ** 2)
    assert derivatives(function, 2.5, 1) == pytest.approx([0.5, -0.5 * math.pi / 5])
    assert derivatives(function, 5.01, 2) == [0.0, 0.0, 0.0]


def test_outer_switch() -> None:
    function = OuterSwitch("polynomial", 5.0)
    assert derivatives(function, 3.9, 2) == [1.0, 0.0, 0.0]
    np.testing.assert_allclose(derivatives(function, 4.0 + 1e-10, 2), [1.0, 0.0, 0.0], atol=1e-7)
    assert derivatives(function, 4.5, 0) == [pytest.approx(0.5)]
    assert derivatives(function, 5.01, 2) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("first", [torch.float32, torch.float64])
@given(r=st.floats(0.05, 7.0), cutoff=st.floats(1.0, 10.0))
def test_radial_bases(first: torch.dtype, r: float, cutoff: float) -> None:
    """The formulas to the last digits, also in a model that was first float32."""
    x = torch.tensor([r], dtype=torch.float64)
    sine = SineBasis(20, cutoff).to(first).double()(x)[0]
    expected = [math.sin(n * math.pi * r / cutoff) / r for n in range(1, 21)]
    np.testing.assert_allclose(sine.numpy(), expected, rtol=0, atol=1e-13 / r * max(1.0, r / cutoff))
    spacing = cutoff / 24
    gauss = GaussianBasis(25, cutoff).to(first).double()(x)[0]
    expected = [math.exp(-((r - k * spacing) ** 2) / (2 * spacing**2)) for k in range(25)]
    np.testing.assert_allclose(gauss.numpy(), expected, rtol=0, atol=1e-12)
