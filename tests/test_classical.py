"""Classical potentials: against all pairs in NumPy, ASE, the PyTorch potentials, lattice sums and conserved energy."""

import math
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.lj import LennardJones as AseLennardJones
from ase.calculators.morse import MorsePotential
from scipy.integrate import quad
from scipy.special import erfc

from simkit import integrators, potentials
from simkit.calculator import Calculator
from simkit.classical import (
    ClassicalCalculator,
    ClassicalPotential,
    Coulomb,
    DampedShiftedCoulomb,
    HarmonicBonds,
    LennardJones,
    Morse,
)
from simkit.errors import ConfigError, GeometryError
from simkit.integrators import cpu

TRICLINIC = np.array([[6.0, 0.0, 0.0], [1.7, 5.5, 0.0], [-0.9, 1.3, 6.4]])
SMALL = np.array([[2.1, 0.0, 0.0], [0.5, 1.9, 0.0], [0.2, -0.4, 2.3]])  # shorter than the cutoff
BOXES = {
    "orthorhombic": (np.diag([5.5, 6.0, 7.0]), (True, True, True)),
    "triclinic": (TRICLINIC, (True, True, True)),
    "small": (SMALL, (True, True, True)),
    "slab": (TRICLINIC, (True, False, True)),
    "wire": (TRICLINIC, (False, True, False)),
    "open": (np.zeros((3, 3)), (False, False, False)),
}


def apart(atoms: int, cell: np.ndarray, pbc: Any, seed: int, least: float = 0.75) -> np.ndarray:
    """Random atoms that keep a distance from each other; wrapped in none."""
    rng = np.random.default_rng(seed)
    lattice = np.where(np.asarray(pbc)[:, None], cell, 0.0)
    box = np.where(np.asarray(pbc)[:, None], cell, 6.0 * np.eye(3))
    images = np.array([(a, b, c) for a in (-1, 0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1)]) @ lattice
    found: list[np.ndarray] = []
    while len(found) < atoms:
        new = rng.random(3) @ box
        if all((np.linalg.norm(new - old + images, axis=1) > least).all() for old in found):
            found.append(new)
    return np.array(found) + rng.integers(-2, 3, size=(atoms, 3)) @ lattice


def all_pairs(x: np.ndarray, cell: np.ndarray, pbc: Any, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs i -> j with images: i, j and vectors."""
    lattice = np.where(np.asarray(pbc)[:, None], cell, 0.0)
    x_range = [range(-14, 15) if periodic else range(1) for periodic in pbc]
    shifts = np.array([(a, b, c) for a in x_range[0] for b in x_range[1] for c in x_range[2]]) @ lattice
    first, second, vectors = [], [], []
    for i in range(len(x)):
        for j in range(len(x)):
            d = x[j] - x[i] + shifts
            r = np.linalg.norm(d, axis=1)
            d = d[(r < cutoff) & (r > 1e-9)]
            vectors.append(d)
            first.append(np.full(len(d), i))
            second.append(np.full(len(d), j))
    return np.concatenate(first), np.concatenate(second), np.concatenate(vectors)


def by_hand(
    x: np.ndarray, cell: np.ndarray, pbc: Any, cutoff: float, pair: Any
) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy, forces and virial of ``pair(i, j, r) -> (E, dE/dr)``."""
    i, j, d = all_pairs(x, cell, pbc, cutoff)
    r = np.linalg.norm(d, axis=1)
    energy, slope = pair(i, j, r)
    pull = (slope / r)[:, None] * d
    forces = np.zeros_like(x)
    np.add.at(forces, i, pull)
    return 0.5 * float(energy.sum()), forces, -0.5 * d.T @ pull


def lennard_jones(epsilon: Any, sigma: Any, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    s = (sigma / r) ** 6
    return 4 * epsilon * (s * s - s), -24 * epsilon * (2 * s * s - s) / r


def morse(depth: float, alpha: float, r0: float, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    w = np.exp(-alpha * (r - r0))
    return depth * (w * w - 2 * w), -2 * alpha * depth * (w * w - w)


def ended(form: str, cutoff: float, potential: Any) -> Any:
    """The pair potential with one of the ways to end it."""

    def pair(i: np.ndarray, j: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        energy, slope = potential(r)
        last, last_slope = potential(np.full_like(r, cutoff))
        if form in ("shifted", "force-shifted"):
            energy = energy - last
        if form == "force-shifted":
            return energy - (r - cutoff) * last_slope, slope - last_slope
        if form == "switched":
            t = np.clip((r / cutoff - 0.8) / 0.2, 0, 1)
            f, df = 1 - 10 * t**3 + 15 * t**4 - 6 * t**5, -30 * t**2 * (1 - t) ** 2 / (0.2 * cutoff)
            return energy * f, slope * f + energy * df
        return energy, slope

    return pair


def assert_same(potential: ClassicalPotential, x: np.ndarray, expected: tuple[float, np.ndarray, np.ndarray]) -> None:
    forces = np.full_like(x, np.nan)
    energy, virial = potential.evaluate(x, forces)
    size = max(1.0, np.abs(expected[1]).max())
    assert energy == pytest.approx(expected[0], rel=1e-11, abs=1e-11 * size)
    np.testing.assert_allclose(forces, expected[1], rtol=1e-11, atol=1e-11 * size)
    np.testing.assert_allclose(virial, expected[2], rtol=1e-11, atol=1e-11 * size)
    again = np.full_like(x, np.nan)
    potential(x, again)
    assert (again == forces).all()


@pytest.mark.parametrize("form", ["cut", "shifted", "force-shifted", "switched"])
@pytest.mark.parametrize("box", BOXES)
def test_pair_terms_against_all_pairs(box: str, form: Any) -> None:
    cell, pbc = BOXES[box]
    x = apart(4 if box == "small" else 30, cell, pbc, seed=1, least=0.7 if box == "small" else 0.9)
    cutoff = 2.5
    term = LennardJones(1.3, 0.9, cutoff, form=form)
    expected = by_hand(x, cell, pbc, cutoff, ended(form, cutoff, lambda r: lennard_jones(1.3, 0.9, r)))
    assert_same(ClassicalPotential([term], cell=cell, pbc=pbc), x, expected)
    expected = by_hand(x, cell, pbc, cutoff, ended(form, cutoff, lambda r: morse(0.7, 1.9, 1.2, r)))
    assert_same(ClassicalPotential([Morse(0.7, 1.9, 1.2, cutoff, form=form)], cell=cell, pbc=pbc), x, expected)


def test_several_species_and_terms() -> None:
    cell, pbc = BOXES["triclinic"]
    x, rng = apart(40, cell, pbc, seed=2), np.random.default_rng(3)
    species, q = rng.integers(0, 2, 40), rng.normal(size=40)
    epsilon, sigma, alpha, k = np.array([1.0, 0.4]), np.array([0.8, 1.1]), 0.3, 2.0
    excluded = {(0, 1), (3, 2), (5, 30), (7, 30)}
    skip = np.zeros((40, 40), dtype=bool)
    for i, j in excluded:
        skip[i, j] = skip[j, i] = True

    def pair(i: np.ndarray, j: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a, b = species[i], species[j]
        energy, slope = lennard_jones(np.sqrt(epsilon[a] * epsilon[b]), (sigma[a] + sigma[b]) / 2, r)
        energy, slope = np.where(r < 2.0, energy, 0.0), np.where(r < 2.0, slope, 0.0)

        def v(r: Any) -> Any:
            return erfc(alpha * r) / r

        def dv(r: Any) -> Any:
            return -erfc(alpha * r) / r**2 - 2 * alpha / math.sqrt(math.pi) * np.exp(-((alpha * r) ** 2)) / r

        qq = k * q[i] * q[j]
        energy = energy + qq * (v(r) - v(2.7) - (r - 2.7) * dv(2.7))
        slope = slope + qq * (dv(r) - dv(2.7))
        return np.where(skip[i, j], 0.0, energy), np.where(skip[i, j], 0.0, slope)

    charged = DampedShiftedCoulomb(q, 2.7, alpha, constant=k)
    energy, forces, virial = by_hand(x, cell, pbc, 2.7, pair)
    energy += charged.self_energy(q)
    mixed = LennardJones(epsilon, sigma, 2.0)
    table = LennardJones(np.sqrt(np.outer(epsilon, epsilon)), (sigma[:, None] + sigma[None, :]) / 2, 2.0)
    for term in (mixed, table):
        terms = [term, charged]
        potential = ClassicalPotential(terms, cell=cell, pbc=pbc, species=species, exclude=sorted(excluded))
        assert_same(potential, x, (energy, forces, virial))


def test_direct_coulomb_and_bonds() -> None:
    x, q = apart(25, np.eye(3), (False,) * 3, seed=4), np.random.default_rng(5).normal(size=25)
    bonds = np.array([[0, 1], [1, 2], [4, 20]])

    def pair(i: np.ndarray, j: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        energy, slope = q[i] * q[j] / r, -q[i] * q[j] / r**2
        for k, (a, b) in enumerate(bonds):
            here = ((i == a) & (j == b)) | ((i == b) & (j == a))
            stiffness, stretch = 2.0 + k, r - 1.1
            energy = np.where(here, 0.5 * stiffness * stretch**2, energy)
            slope = np.where(here, stiffness * stretch, slope)
        return energy, slope

    terms = [Coulomb(q, constant=1.0), HarmonicBonds(bonds, [2.0, 3.0, 4.0], 1.1)]
    potential = ClassicalPotential(terms, exclude=bonds)
    assert_same(potential, x, by_hand(x, np.eye(3), (False,) * 3, 100.0, pair))


def test_bonds_cross_the_boundary() -> None:
    x = np.array([[0.3, 0.2, 0.1], [0.2, 0.3, 0.4]])
    bond = HarmonicBonds([[0, 1]], 3.0, 0.2)
    forces, moved = np.empty((2, 3)), np.empty((2, 3))
    here = ClassicalPotential([bond]).evaluate(x, forces)
    across = ClassicalPotential([bond], cell=TRICLINIC).evaluate(
        x + np.stack([np.zeros(3), TRICLINIC[0] - 2 * TRICLINIC[2]]), moved
    )
    assert across[0] == pytest.approx(here[0], rel=1e-12)
    np.testing.assert_allclose(moved, forces, atol=1e-12)
    np.testing.assert_allclose(across[1], here[1], atol=1e-12)


@pytest.mark.parametrize("periodic", [True, False])
def test_agrees_with_ase(periodic: bool) -> None:
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True) * (2, 2, 3)
    atoms.pbc = periodic
    atoms.rattle(0.15, seed=6)
    pairs = [
        (
            AseLennardJones(epsilon=0.01, sigma=3.4, rc=7.0),
            ClassicalCalculator([LennardJones(0.01, 3.4, 7.0, "shifted")]),
        ),
        (
            # Its cutoffs count in r0, and its smooth end is of another form: no pair may lie in it.
            MorsePotential(epsilon=0.3, r0=3.5, rho0=5.0, rcut1=4.0, rcut2=4.0 + 1e-9),
            ClassicalCalculator([Morse(0.3, 5.0 / 3.5, 3.5, 14.0)]),
        ),
    ]
    for peer, ours in pairs:
        expected, found = atoms.copy(), atoms.copy()
        expected.calc, found.calc = peer, ours
        assert found.get_potential_energy() == pytest.approx(expected.get_potential_energy(), rel=1e-10)
        np.testing.assert_allclose(found.get_forces(), expected.get_forces(), atol=1e-10)
        if periodic:
            np.testing.assert_allclose(found.get_stress(), expected.get_stress(), atol=1e-11)


@pytest.mark.parametrize("name", ["lennard_jones", "morse"])
def test_agrees_with_the_torch_potentials(name: str) -> None:
    atoms = bulk("Ar", "fcc", a=5.0) * (3, 3, 3)
    atoms.rattle(0.1, seed=7)
    cutoff = 6.0
    ours = {
        "lennard_jones": LennardJones(0.0103, 3.4, cutoff, "switched"),
        "morse": Morse(0.3429, 1.3588, 2.866, cutoff, "switched"),
    }
    expected, found = atoms.copy(), atoms.copy()
    expected.calc = Calculator(potentials.build(name, cutoff=cutoff, elements=[18], dtype="float64"), dtype="float64")
    found.calc = ClassicalCalculator([ours[name]])
    assert found.get_potential_energy() == pytest.approx(expected.get_potential_energy(), rel=1e-11)
    np.testing.assert_allclose(found.get_forces(), expected.get_forces(), atol=1e-11)
    np.testing.assert_allclose(found.get_stress(), expected.get_stress(), atol=1e-12)


def test_derivatives() -> None:
    """Forces and virial are derivatives of the energy, by central differences."""
    cell, pbc = BOXES["triclinic"]
    x, q = apart(12, cell, pbc, seed=8), np.random.default_rng(9).normal(size=12)
    terms = [
        LennardJones(0.2, 0.9, 2.4, "force-shifted"),
        LennardJones(0.3, 0.8, 2.6, "switched"),
        Morse(0.5, 1.5, 1.2, 2.5, "switched", inner=1.0),
        DampedShiftedCoulomb(q, 2.8, 0.25, constant=1.0),
        HarmonicBonds([[0, 5], [2, 7]], 1.5, 1.0),
    ]
    potential, forces, step = ClassicalPotential(terms, cell=cell), np.empty_like(x), 1e-5
    _, virial = potential.evaluate(x, forces)
    scratch = np.empty_like(x)
    for i in range(4):
        for d in range(3):
            move = np.zeros_like(x)
            move[i, d] = step
            slope = (potential.evaluate(x + move, scratch)[0] - potential.evaluate(x - move, scratch)[0]) / (2 * step)
            assert -slope == pytest.approx(forces[i, d], abs=2e-7)
    for a in range(3):
        for b in range(3):
            energies = []
            for sign in (1, -1):
                strain = np.eye(3)
                strain[a, b] += sign * step
                potential.set_cell(cell @ strain)
                energies.append(potential.evaluate(x @ strain, scratch)[0])
            assert -(energies[0] - energies[1]) / (2 * step) == pytest.approx(virial[a, b], abs=5e-7)


def test_lattice_sum_of_argon() -> None:
    """The fcc crystal at its minimum, -8.610200157 epsilon: cut at ever larger radii with the tail, the rest falls as a lattice's must."""
    spacing = (2 * 12.1318801965 / 14.4539210437) ** (1 / 6)  # from the sums of r^-12 and r^-6
    crystal = bulk("Ar", "fcc", a=math.sqrt(2) * spacing, cubic=True)
    forces = np.empty((4, 3))
    for cutoff, bound in ((6.0, 2e-3), (20.0, 2e-5)):
        potential = ClassicalPotential([LennardJones(1.0, 1.0, cutoff, tail=True)], cell=crystal.cell.array)
        energy, virial = potential.evaluate(crystal.positions, forces)
        assert energy / 4 == pytest.approx(-8.610200157, abs=bound)
        assert abs(np.trace(virial)) / 4 < 1000 * bound
        np.testing.assert_allclose(forces, 0.0, atol=1e-9)


def test_tail_of_a_mixture() -> None:
    """The tail corrections are the integrals beyond the cutoff, by quadrature."""
    cell, species = np.diag([7.0, 8.0, 9.0]), np.array([0, 1, 1, 1])
    x = apart(4, cell, (True,) * 3, seed=10)
    epsilon, sigma, rc = np.array([1.0, 0.5]), np.array([1.0, 1.4]), 3.0
    totals = []
    for tail in (True, False):
        term = LennardJones(epsilon, sigma, rc, tail=tail)
        totals.append(ClassicalPotential([term], cell=cell, species=species).evaluate(x, np.empty_like(x)))
    energy = pressure = 0.0
    for a in species:
        for b in species:
            pair = math.sqrt(epsilon[a] * epsilon[b]), (sigma[a] + sigma[b]) / 2
            energy += 2 * math.pi * quad(lambda r, p=pair: lennard_jones(*p, r)[0] * r**2, rc, np.inf)[0]
            pressure -= 2 * math.pi / 3 * quad(lambda r, p=pair: lennard_jones(*p, r)[1] * r**3, rc, np.inf)[0]
    volume = 7 * 8 * 9
    assert totals[0][0] - totals[1][0] == pytest.approx(energy / volume, rel=1e-8)
    np.testing.assert_allclose(totals[0][1] - totals[1][1], np.eye(3) * pressure / volume, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("alpha", "cutoff", "bound"), [(0.0, 12.0, 5e-3), (0.6, 6.0, 1e-6), (0.5, 9.0, 1e-8)])
def test_madelung_constant(alpha: float, cutoff: float, bound: float) -> None:
    """Rock salt with ions one apart: -1.7475645946 for each ion pair, towards which the damped sums converge.

    The bound is erfc(alpha rc) where there is damping. What is left out in reciprocal space is smaller: at the shortest wave vector that
    scatters, exp(-k^2 / (4 alpha^2)) is 1e-9 and less.
    """
    crystal = bulk("NaCl", "rocksalt", a=2.0, cubic=True)
    q = np.where(crystal.numbers == 11, 1.0, -1.0)
    potential = ClassicalPotential([DampedShiftedCoulomb(q, cutoff, alpha, constant=1.0)], cell=crystal.cell.array)
    energy, _ = potential.evaluate(crystal.positions, np.empty((8, 3)))
    assert energy / 4 == pytest.approx(-1.7475645946, abs=bound)


def liquid(side: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A displaced lattice of side^3 atoms at density 0.8, and its cell."""
    length = side * 0.8 ** (-1 / 3)
    lattice = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) * length / side
    return lattice + np.random.default_rng(seed).normal(size=lattice.shape) * 0.05, np.eye(3) * length


def test_energy_is_conserved_and_lists_stay_complete() -> None:
    x, cell = liquid(7, seed=11)
    v, f = np.random.default_rng(12).normal(size=x.shape), np.empty_like(x)
    v -= v.mean(axis=0)
    term = LennardJones(1.0, 1.0, 2.5, "switched")
    potential = ClassicalPotential([term], cell=cell, skin=0.15)
    engine = cpu.Integrator(integrators.get("velocity-verlet"), potential, x, v, f, np.ones(len(x)))
    engine.evaluate_forces()
    totals, fresh = [], np.empty_like(x)
    for block in range(20):
        engine.run(25, timestep=0.001, first_step=25 * block)
        energy, _ = potential.evaluate(x, fresh)
        totals.append(energy + 0.5 * float((v * v).sum()))
        expected, _ = ClassicalPotential([term], cell=cell, skin=0.0).evaluate(x, fresh)
        assert energy == pytest.approx(expected, rel=1e-12)
        np.testing.assert_allclose(f, fresh, atol=1e-10)
    assert potential.builds > 5
    assert np.ptp(totals) / len(x) < 1e-4
    np.testing.assert_allclose(v.sum(axis=0), 0.0, atol=1e-10)


def test_no_atoms_one_atom_and_lone_atoms() -> None:
    term = LennardJones(1.0, 1.0, 2.5)
    for x in (np.empty((0, 3)), np.zeros((1, 3)), np.array([[0.0, 0, 0], [1e6, 0, 0], [0, -1e7, 3.0]])):
        forces = np.full_like(x, np.nan)
        energy, virial = ClassicalPotential([term]).evaluate(x, forces)
        assert energy == 0.0
        assert not virial.any()
        assert not forces.any()


def test_bad_input() -> None:
    term, x, f = LennardJones(1.0, 1.0, 2.5), np.zeros((2, 3)), np.empty((2, 3))
    with pytest.raises(GeometryError, match="coincide"):
        ClassicalPotential([term]).evaluate(x, f)
    with pytest.raises(GeometryError, match="finite coordinates"):
        ClassicalPotential([term])(np.full((2, 3), np.nan), f)
    with pytest.raises(GeometryError, match="no volume"):
        ClassicalPotential([term], cell=np.ones((3, 3)))(x, f)
    with pytest.raises(ConfigError, match="needs one"):
        ClassicalPotential([term], pbc=True)
    with pytest.raises(ConfigError, match="open systems"):
        ClassicalPotential([Coulomb([1.0, 1.0])], cell=np.eye(3))
    with pytest.raises(ConfigError, match="periodic in all directions"):
        ClassicalPotential([LennardJones(1.0, 1.0, 2.5, tail=True)])
    with pytest.raises(ConfigError, match="form 'cut'"):
        LennardJones(1.0, 1.0, 2.5, "shifted", tail=True)
    with pytest.raises(ConfigError, match="cutoff"):
        Morse(1.0, 1.0, 1.0, -2.0)
    with pytest.raises(ConfigError, match="2 for the species"):
        ClassicalPotential([LennardJones([1.0], 1.0, 2.5)], species=[0, 1])(x, f)
    with pytest.raises(ConfigError, match="expected 2 finite numbers"):
        ClassicalPotential([Coulomb([1.0])])(x, f)
    with pytest.raises(ConfigError, match="pairs of two of the 2 atoms"):
        ClassicalPotential([term], exclude=[[0, 2]])(x, f)
    with pytest.raises(ConfigError, match="float64"):
        ClassicalPotential([term])(x.astype(np.float32), f)
    with pytest.raises(ConfigError, match="forces"):
        ClassicalPotential([term])(x, np.empty((3, 3)))
