"""PhysNet against its equations in plain loops; its Coulomb energy against analytic cases, its dispersion energy against tad-dftd3."""

import itertools
import math
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from torch import Tensor

import simkit
from simkit import potentials
from simkit.electrostatics import COULOMB, DampedCoulomb
from simkit.errors import MissingDependencyError
from simkit.graph import AtomGraph, one_direction
from simkit.potential import Potential
from simkit.potentials.physnet import ExponentialNormalBasis
from simkit.units import BOHR, HARTREE

SMALL = {"channels": 12, "layers": 2, "basis": 16}
CUTOFF = 4.0


def build(cutoff: float = CUTOFF, **options: Any) -> Potential:
    """A small model; with charges of some tenths of e, where there are any."""
    keys = ("outputs", "anchored", "seed")
    general = {key: options.pop(key) for key in keys if key in options}
    return potentials.build(
        "physnet", cutoff=cutoff, elements=[1, 6, 8], dtype="float64", **general, **(SMALL | options)
    )


def crystal() -> Atoms:
    """Atoms that see each other through several images, and their own."""
    cell = [[3.1, 0.2, 0.0], [0.9, 2.9, 0.3], [-0.4, 0.6, 3.3]]
    return Atoms("HCO", scaled_positions=[[0.1, 0.2, 0.9], [0.55, 0.5, 0.4], [0.0, 0.75, 0.35]], cell=cell, pbc=True)


def frames() -> list[Atoms]:
    ethanol = molecule("CH3CH2OH")
    ethanol.rattle(0.1, seed=2)
    ion = molecule("H2O")
    ion.info["charge"] = 1.0
    return [ethanol, crystal(), ion, Atoms("C")]


# ------------------------------------------------------------------------------------------------------ the network


def physnet_in_loops(potential: Potential, graph: AtomGraph) -> tuple[Tensor, Tensor]:
    """Energies and raw charges of atoms, atom by atom, neighbor by neighbor, module by module."""
    rep: Any = potential.representation
    o, rc = potential.options, potential.cutoff

    def ssp(x: Tensor) -> Tensor:
        return torch.log(0.5 * torch.exp(x) + 0.5)

    def dense(layer: Any, x: Tensor) -> Tensor:
        return layer.weight @ x if layer.bias is None else layer.weight @ x + layer.bias

    def refine(blocks: Any, x: Tensor) -> Tensor:
        for block in blocks:
            x = x + dense(block.lin2, ssp(dense(block.lin1, ssp(x))))
        return x

    def g(r: Tensor) -> Tensor:
        u = r / rc
        cut = 1 - 6 * u**5 + 15 * u**4 - 10 * u**3
        centers, widths = (torch.log(1 + torch.exp(raw)) for raw in (rep.basis.raw_centers, rep.basis.raw_widths))
        values = [cut * torch.exp(-b * (torch.exp(-r) - m) ** 2) for b, m in zip(widths, centers, strict=True)]
        return torch.stack(values)

    edges = list(zip(graph.edge_index[0].tolist(), graph.edge_index[1].tolist(), graph.edge_vectors(), strict=True))
    x = [rep.embedding.weight[potential.elements.index(int(z))] for z in graph.z]
    heads: Any = potential.heads
    weights = [heads["energy"].linear.weight[0], heads["dipole"].readout.linear.weight[0]]
    parts = [weight.split(o["channels"]) for weight in weights]
    outputs = torch.zeros(2, len(x), dtype=torch.float64)
    for m, module in enumerate(rep.stack):
        inter = module.interaction
        new = []
        for i in range(len(x)):
            v = ssp(dense(inter.lin_i, ssp(x[i])))
            for j, receiver, r_ij in edges:
                if receiver == i:
                    v = v + dense(inter.attention, g(r_ij.norm())) * ssp(dense(inter.lin_j, ssp(x[j])))
            v = refine(inter.refine, v)
            new.append(refine(module.refine, inter.gate * x[i] + dense(inter.lin, ssp(v))))
        x = new
        for i, features in enumerate(x):
            last = ssp(refine(module.output[0], features))
            for k in range(2):
                outputs[k, i] += parts[k][m] @ last
    return outputs[0], outputs[1]


def test_equals_its_equations() -> None:
    potential = build(outputs=["energy", "dipole"], layers=3)
    graph, generator = AtomGraph.from_ase(frames(), CUTOFF), torch.Generator().manual_seed(1)
    with torch.no_grad():  # biases and gates that are all 0 or 1 at first would hide a mistake
        for parameter in potential.representation.parameters():
            if parameter.dim() == 1 and len(parameter) == SMALL["channels"]:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        expected, raw = physnet_in_loops(potential, graph)
        results = potential(graph, ("energies", "charges"))
    assert expected.std() > 0.1
    torch.testing.assert_close(results["energies"], expected, rtol=1e-11, atol=1e-11)
    for k, total in enumerate((0.0, 0.0, 1.0, 0.0)):
        own = graph.batch == k
        corrected = raw[own] + (total - raw[own].sum()) / own.sum()
        torch.testing.assert_close(results["charges"][own], corrected, rtol=1e-11, atol=1e-11)


def test_size() -> None:
    """Figure 1 with 128 features, 64 radial functions, 5 modules and 3, 2 and 1 residual blocks, term by term."""
    f, k, modules, elements = 128, 64, 5, 5
    dense = f * f + f
    module = 3 * dense + k * f + f + (3 + 2 + 1) * 2 * dense
    expected = elements * f + 2 * k + modules * (module + f)  # f for the energy of each module
    potential = potentials.build("physnet", elements=[1, 6, 7, 8, 9], cutoff=10.0)
    assert potential.num_parameters == expected == 1_281_408
    with_charges = potentials.build("physnet", elements=[1, 6, 7, 8, 9], cutoff=10.0, electrostatics=True)
    assert with_charges.num_parameters == expected + modules * f


@pytest.mark.parametrize("cutoff", [4.0, 10.0])
def test_radial_functions_begin_as_published(cutoff: float) -> None:
    """Centres evenly spaced from exp(-rc) to 1, all widths (2 / K (1 - exp(-rc)))^-2."""
    basis, r = ExponentialNormalBasis(64, cutoff).double(), 1.7
    found = basis(torch.tensor([r], dtype=torch.float64))[0].detach().numpy()
    u = r / cutoff
    beta = (2 / 64 * (1 - math.exp(-cutoff))) ** -2
    centers = [math.exp(-cutoff) + k / 63 * (1 - math.exp(-cutoff)) for k in range(64)]
    cut = 1 - 6 * u**5 + 15 * u**4 - 10 * u**3
    expected = [cut * math.exp(-beta * (math.exp(-r) - mu) ** 2) for mu in centers]
    np.testing.assert_allclose(found, expected, atol=3e-5)  # of float32, in which weights begin
    assert found.max() > 0.5


def test_both_ways_of_summing_agree() -> None:
    """Each pair once, as on a CPU, and all edges, as on a GPU."""
    potential, graph = build(), AtomGraph.from_ase(frames(), CUTOFF)
    rep: Any = potential.representation
    x = rep.embedding(potential.species(graph.z))
    vectors = graph.edge_vectors()
    chosen = one_direction(graph.edge_index, vectors)
    basis = rep.basis(vectors.norm(dim=1))
    whole = rep.stack[0](x, *graph.edge_index, basis, both=False)
    half = rep.stack[0](x, *graph.edge_index[:, chosen], basis[chosen], both=True)
    for a, b in zip(whole, half, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


# ---------------------------------------------------------------------------------------------------- electrostatics


def two_ions(distances: Tensor, cutoff: float, q: float = 1.0) -> Tensor:
    """The energies of pairs of ions q and -q, each pair by itself."""
    n = len(distances)
    pairs = torch.arange(2 * n).view(n, 2)
    edge_index = torch.cat([pairs.flip(1), pairs]).t()
    charges = torch.tensor([q, -q], dtype=torch.float64).repeat(n)
    energies = DampedCoulomb(cutoff)(edge_index, distances.repeat(2), charges)
    return energies.view(n, 2).sum(dim=1)


def test_two_ions_beyond_the_damping() -> None:
    """Beyond half the cutoff: Coulomb's law, without value and slope at the cutoff."""
    r = torch.linspace(3.0, 5.999, 50, dtype=torch.float64)
    expected = -0.25 * 14.3996454784 * (1 / r + r / 36 - 2 / 6)
    torch.testing.assert_close(two_ions(r, 6.0, q=0.5), expected, rtol=1e-9, atol=0)
    assert float(two_ions(torch.tensor([6.0, 6.5], dtype=torch.float64), 6.0).abs().max()) == 0.0
    far = two_ions(torch.tensor([2000.0], dtype=torch.float64), 1e5)
    assert float(far) == pytest.approx(-COULOMB / 2000 + 2 * COULOMB / 1e5, rel=1e-3)


def test_two_ions_near_each_other() -> None:
    """Equation 13, with phi as in equation 8 and the shift of the authors' program."""

    def v(r: float, c: float = 6.0) -> float:
        return 1 / r + r / c**2 - 2 / c

    for r in (1e-3, 0.4, 1.0, 2.2, 2.999):
        x = 2 * r / 6.0
        phi = 1 - 6 * x**5 + 15 * x**4 - 10 * x**3
        expected = -COULOMB * (phi * v(math.sqrt(r * r + 1)) + (1 - phi) * v(r))
        assert float(two_ions(torch.tensor([r], dtype=torch.float64), 6.0)) == pytest.approx(expected, rel=1e-12)
    assert expected < -1


def test_the_coulomb_energy_ends_smoothly() -> None:
    """Value and slope vanish at the cutoff; the second derivative jumps by 2 k q^2 / c^3."""
    r = torch.tensor([6.0 - 1e-6], dtype=torch.float64, requires_grad=True)
    energy = two_ions(r, 6.0)
    (slope,) = torch.autograd.grad(energy.sum(), r, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), r)
    assert abs(float(energy.detach())) < 1e-12
    assert abs(float(slope.detach())) < 1e-6
    assert float(curvature) == pytest.approx(-2 * COULOMB / 6.0**3, rel=1e-5)


def test_energy_is_that_of_the_network_and_of_the_charges() -> None:
    """Pair by pair in loops, with the charges that the model reports; the network's own scale does not touch them."""
    potential, plain = build(electrostatics=True), build(outputs=["energy", "dipole"])
    plain.load_state_dict(potential.state_dict())
    for p in (potential, plain):
        p.scale.fill_(3.0)
        p.shift.fill_(0.2)
    graph = AtomGraph.from_ase(frames(), CUTOFF)
    results = potential(graph, ("energy", "energies", "charges"))
    without = plain(graph, ("energy", "energies", "charges"))
    assert torch.equal(results["charges"], without["charges"])
    q = results["charges"].detach()
    assert 0.02 < q.std() < 1.0
    expected = torch.zeros_like(q)
    for j, i, vector in zip(*graph.edge_index.tolist(), graph.edge_vectors(), strict=True):
        r = vector.norm()
        x = (2 * r / CUTOFF).clamp(max=1.0)
        phi = 1 - 6 * x**5 + 15 * x**4 - 10 * x**3
        s = (r * r + 1).sqrt()
        v, v_s = 1 / r + r / CUTOFF**2 - 2 / CUTOFF, 1 / s + s / CUTOFF**2 - 2 / CUTOFF
        expected[i] += 0.5 * 14.3996454784 * q[i] * q[j] * (phi * v_s + (1 - phi) * v)
    difference = (results["energies"] - without["energies"]).detach()
    torch.testing.assert_close(difference, expected, rtol=1e-9, atol=1e-11)
    assert difference.abs().max() > 0.05
    assert difference[-1] == 0.0  # the atom alone
    torch.testing.assert_close(
        results["energy"], torch.zeros_like(results["energy"]).index_add(0, graph.batch, results["energies"])
    )


def assert_derivatives(potential: Potential, frame: Atoms) -> None:
    """Forces, and where there is a volume the stress, against differences of energies."""
    h = 1e-4

    def energies(structures: list[Atoms]) -> Any:
        graph = AtomGraph.from_ase(structures, potential.cutoff)
        return potential(graph, ("energy",))["energy"].detach().numpy().reshape(-1, 2)

    periodic = bool(frame.pbc.all())
    graph = AtomGraph.from_ase(frame, potential.cutoff)
    results = potential(graph, ("forces", "stress") if periodic else ("forces",))
    moved = []
    for atom, axis, sign in itertools.product(range(len(frame)), range(3), (1, -1)):
        copied = frame.copy()
        copied.positions[atom, axis] += sign * h
        moved.append(copied)
    values = energies(moved)
    forces = -(values[:, 0] - values[:, 1]) / (2 * h)
    assert np.abs(forces).max() > 0.02
    np.testing.assert_allclose(results["forces"].numpy(), forces.reshape(-1, 3), atol=2e-6)
    if not periodic:
        return
    strained = []
    for a, b, sign in itertools.product(range(3), range(3), (1, -1)):
        strain = np.eye(3)
        strain[a, b] += sign * h
        copied = frame.copy()
        copied.set_cell(frame.cell.array @ strain.T, scale_atoms=True)
        strained.append(copied)
    values = energies(strained)
    stress = (values[:, 0] - values[:, 1]) / (2 * h) / frame.get_volume()
    np.testing.assert_allclose(results["stress"][0].numpy(), stress.reshape(3, 3), atol=2e-6)


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("frame", [frames()[0], crystal(), frames()[2]], ids=["ethanol", "crystal", "water cation"])
def test_forces_with_charges_that_respond(frame: Atoms, anchored: bool) -> None:
    """Charges depend on the positions of all atoms of the structure, through the correction to the total charge, too."""
    assert_derivatives(build(electrostatics=True, anchored=anchored), frame)


def test_force_loss_with_electrostatics() -> None:
    """Second derivatives: a loss on forces and stress differentiated with respect to the weights."""
    potential, graph = build(electrostatics=True), AtomGraph.from_ase(crystal(), CUTOFF)
    parameters = list(potential.parameters())

    def loss() -> Tensor:
        results = potential(graph, ("energy", "forces", "stress"), differentiable=True)
        return sum((value.square().sum() for value in results.values()), torch.zeros(()))

    gradients = torch.autograd.grad(loss(), parameters)
    assert all(float(g.abs().max()) > 0 for g in gradients)
    generator, start, values = torch.Generator().manual_seed(3), [p.detach().clone() for p in parameters], []
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    for sign in (1, -1):
        with torch.no_grad():
            for p, p0, d in zip(parameters, start, direction, strict=True):
                p.copy_(p0 + sign * 1e-6 * d)
        values.append(float(loss().detach()))
    expected = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(expected, rel=1e-5)


def test_charges_come_with_electrostatics(tmp_path: Path) -> None:
    """A dipole head is added where no charges were asked for; the file says so, and loads."""
    potential = build(electrostatics=True)
    assert {"energy", "dipole", "charges"} <= set(potential.outputs)
    assert list(build(electrostatics=True, outputs=["energy", "charges"]).heads) == ["energy", "charges"]
    assert "charges" not in build().outputs
    potential.save(tmp_path / "model.safetensors")
    loaded = simkit.load(tmp_path / "model.safetensors")
    graph = AtomGraph.from_ase(frames(), CUTOFF)
    outputs = ("energy", "forces", "charges")
    before, after = potential(graph, outputs), loaded(graph, outputs)
    assert all(torch.equal(before[key], after[key]) for key in outputs)


def test_charges_of_a_charges_head_are_used() -> None:
    assert_derivatives(build(electrostatics=True, outputs=["energy", "charges"]), crystal())


# -------------------------------------------------------------------------------------------------------- dispersion


def test_without_the_reference_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tad_dftd3", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'simkit\[dispersion\]'"):
        build(dispersion=True)


def dispersion_only(cutoff: float, elements: list[int]) -> Potential:
    """A model whose network gives nothing."""
    potential = potentials.build("physnet", cutoff=cutoff, elements=elements, dtype="float64", dispersion=True, **SMALL)
    potential.scale.fill_(0.0)
    return potential


needs_tables = pytest.mark.skipif(
    find_spec("tad_dftd3") is None, reason="tad-dftd3 is not installed (extra dispersion)"
)


@needs_tables
@pytest.mark.parametrize("name", ["CH3CH2OH", "C6H6", "SiH4", "CH3Cl", "H2", "LiF", "Si2H6", "AlCl3"])
def test_dispersion_equals_tad_dftd3(name: str) -> None:
    """Energies of atoms and forces, Hartree-Fock coefficients, at a cutoff where nothing is left to cut off."""
    import tad_dftd3

    frame = molecule(name)
    frame.rattle(0.05, seed=1)
    pos = torch.tensor(frame.positions / BOHR, requires_grad=True)
    coefficients = {"s6": 1.0, "s8": 0.9171, "a1": 0.3385, "a2": 2.8830, "s9": 0.0}
    parameters = {key: torch.tensor(value, dtype=torch.float64) for key, value in coefficients.items()}
    expected = tad_dftd3.dftd3(torch.tensor(frame.numbers), pos, parameters) * HARTREE
    (gradient,) = torch.autograd.grad(expected.sum(), pos)
    potential = dispersion_only(300.0, sorted(set(frame.numbers.tolist())))
    results = potential(AtomGraph.from_ase(frame, 300.0), ("energies", "forces"))
    torch.testing.assert_close(results["energies"], expected.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(results["forces"], -gradient / BOHR, rtol=1e-8, atol=1e-10)


@needs_tables
@pytest.mark.parametrize(("name", "energy"), [("CH3CH2OH", -0.038010840194), ("AlCl3", -0.034946929082)])
def test_dispersion_equals_simple_dftd3(name: str, energy: float) -> None:
    """Hartree, recorded from s-dftd3 1.7.0 (RationalDampingParam with the same coefficients and s9 = 0)."""
    frame = molecule(name)
    potential = dispersion_only(300.0, sorted(set(frame.numbers.tolist())))
    found = potential(AtomGraph.from_ase(frame, 300.0), ("energy",))["energy"].detach()
    assert float(found) / HARTREE == pytest.approx(energy, rel=1e-8)


@needs_tables
@pytest.mark.parametrize("electrostatics", [False, True])
def test_forces_with_dispersion(electrostatics: bool) -> None:
    for frame in (frames()[0], crystal()):
        assert_derivatives(build(dispersion=True, electrostatics=electrostatics), frame)


@needs_tables
def test_the_dispersion_energy_ends_smoothly() -> None:
    potential = dispersion_only(5.0, [18])
    distances = 5.0 + 1e-4 * np.array([-1.0, 0.0, 1.0])
    graph = AtomGraph.from_ase([Atoms("Ar2", [[0, 0, 0], [0, 0, r]]) for r in distances], 5.0)
    results = potential(graph, ("energy", "forces"))
    np.testing.assert_allclose(results["energy"].numpy(), 0.0, atol=1e-9)
    np.testing.assert_allclose(results["forces"].numpy(), 0.0, atol=1e-5)
    inside = potential(AtomGraph.from_ase(Atoms("Ar2", [[0, 0, 0], [0, 0, 3.7]]), 5.0), ("energy",))
    assert float(inside["energy"].detach()) < -1e-3
