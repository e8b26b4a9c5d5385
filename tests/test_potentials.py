"""The contract that every registered potential keeps; a new architecture is covered as soon as it is registered."""

import copy
import functools
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import simkit
from simkit import potentials
from simkit.errors import ConfigError
from simkit.graph import AtomGraph
from simkit.potential import Potential

CUTOFF = 4.0
ELEMENTS = [1, 6, 8]
REFERENCES = {1: -13.6, 6: -1027.5, 8: -2041.3}
# Small networks, and pairs that attract at the distances of these structures; an architecture takes those that it knows.
SMALL = {"channels": 36, "layers": 2, "sigma": 1.2, "epsilon": 0.2, "r0": 1.3, "depth": 0.8}

every = pytest.mark.parametrize("name", potentials.available())
seeds = st.integers(min_value=0, max_value=2**32 - 1)
few = settings(max_examples=8)


@functools.cache
def _abilities(name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The small options that the architecture knows, and the heads that it can have."""
    options = {key: value for key, value in SMALL.items() if key in potentials.build(name, elements=[1]).options}
    try:
        potentials.build(name, elements=[1], outputs=["energy", "dipole"])
    except ConfigError:
        return options, ("energy",)
    return options, ("energy", "dipole")


def make(name: str, dtype: str = "float64", anchored: bool = False, seed: int = 0, dipole: bool = True) -> Potential:
    """A small potential whose energies and forces are not tiny, with all the heads it can have."""
    options, heads = _abilities(name)
    heads = heads if dipole else ("energy",)
    potential = potentials.build(
        name, cutoff=CUTOFF, elements=ELEMENTS, outputs=heads, dtype=dtype, anchored=anchored, seed=seed, **options
    )
    potential.set_references(REFERENCES)
    potential.scale.fill_(20.0)
    potential.shift.fill_(0.37)
    return potential


def graph_of(frames: Atoms | Sequence[Atoms]) -> AtomGraph:
    return AtomGraph.from_ase(frames, CUTOFF)


def evaluate(potential: Potential, frames: Atoms | Sequence[Atoms], *outputs: str) -> dict[str, NDArray[np.float64]]:
    results = potential(
        graph_of(frames), outputs or tuple(n for n in potential.outputs if n not in ("stress", "dipole", "mu"))
    )
    return {key: value.detach().double().numpy() for key, value in results.items()}


def ethanol() -> Atoms:
    frame = molecule("CH3CH2OH")
    frame.rattle(0.1, seed=3)
    return frame


def crystal() -> Atoms:
    """A skewed cell so small that atoms see their own images."""
    cell = [[3.1, 0.2, 0.0], [0.9, 2.9, 0.3], [-0.4, 0.6, 3.3]]
    return Atoms("HCO", scaled_positions=[[0.1, 0.2, 0.9], [0.55, 0.5, 0.4], [0.0, 0.75, 0.35]], cell=cell, pbc=True)


def with_pbc(*pbc: bool) -> Atoms:
    frame = crystal()
    frame.pbc = pbc
    return frame


def random_structure(rng: np.random.Generator) -> Atoms:
    """Two to six atoms at least 0.9 angstrom apart, images included, in a skewed cell with any mix of periodic directions."""
    cell = 3.5 * (np.eye(3) + rng.uniform(-0.2, 0.2, (3, 3)))
    points = [rng.uniform(size=3)]
    images = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    count = int(rng.integers(2, 7))
    for point in rng.uniform(size=(500, 3)):
        separations = (np.array(points)[:, None] - point + images) @ cell
        if len(points) < count and np.linalg.norm(separations, axis=-1).min() > 0.9:
            points.append(point)
    frame = Atoms(rng.choice(ELEMENTS, len(points)), scaled_positions=points, cell=cell, pbc=rng.integers(0, 2, 3) > 0)
    frame.positions += rng.uniform(-20, 20, 3)
    return frame


def random_rotation(rng: np.random.Generator, improper: bool) -> NDArray[np.float64]:
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.linalg.det(q) * (-1.0 if improper else 1.0)


def assert_close(actual: Any, expected: Any, relative: float = 1e-9) -> None:
    """Compare arrays of one quantity; errors count against its largest value, so that zeros by symmetry are no problem."""
    bound = relative * max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound)


# ---------------------------------------------------------------------------------------------------------- symmetries


@every
@few
@given(seed=seeds, improper=st.booleans())
def test_rotation_and_reflection(name: str, seed: int, improper: bool) -> None:
    rng = np.random.default_rng(seed)
    potential, rotation = make(name), random_rotation(rng, improper)
    frame = random_structure(rng)
    outputs = [n for n in potential.outputs if n != "stress" or frame.pbc.all()]
    outputs = [n for n in outputs if n not in ("dipole", "mu") or not frame.pbc.any()]
    rotated = frame.copy()
    rotated.set_cell(frame.cell.array @ rotation.T)
    rotated.positions = frame.positions @ rotation.T
    before, after = evaluate(potential, frame, *outputs), evaluate(potential, rotated, *outputs)
    for key in outputs:
        expected = before[key]
        if key in ("forces", "dipole"):
            expected = expected @ rotation.T
        elif key == "stress":
            expected = rotation @ expected @ rotation.T
        assert_close(after[key], expected)


@every
@few
@given(seed=seeds)
def test_translation_and_wrapping(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    potential, frame = make(name), random_structure(rng)
    moved = frame.copy()
    moved.positions += rng.uniform(-50, 50, 3)
    # Any atom may be replaced by one of its periodic images.
    moved.positions += (rng.integers(-3, 4, (len(frame), 3)) * frame.pbc) @ frame.cell.array
    before, after = evaluate(potential, frame), evaluate(potential, moved)
    for key, expected in before.items():
        assert_close(after[key], expected)


@every
@few
@given(seed=seeds)
def test_permutation(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    potential, frame = make(name), random_structure(rng)
    order = rng.permutation(len(frame))
    before, after = evaluate(potential, frame), evaluate(potential, frame[order])
    for key, expected in before.items():
        assert_close(after[key], expected if key == "energy" else expected[order])


@every
def test_far_from_the_origin(name: str) -> None:
    potential, frame = make(name, "float32"), ethanol()
    far = frame.copy()
    far.positions += [1e4, -1e4, 1e4]
    outputs = [key for key in potential.outputs if key != "stress"]
    before, after = evaluate(potential, frame, *outputs), evaluate(potential, far, *outputs)
    for key in outputs:
        assert_close(after[key], before[key], 2e-6 if key != "energy" else 1e-9)


# -------------------------------------------------------------------------------------------------- sums of energies


@every
def test_size_extensivity(name: str) -> None:
    potential, a, b = make(name), ethanol(), molecule("H2O")
    b.positions += [0.0, 40.0, 0.0]
    alone = [evaluate(potential, frame, "energy", "forces") for frame in (a, b)]
    together = evaluate(potential, a + b, "energy", "forces")
    assert_close(together["energy"], alone[0]["energy"] + alone[1]["energy"], 1e-13)
    assert_close(together["forces"], np.concatenate([alone[0]["forces"], alone[1]["forces"]]))


@every
def test_batch_equals_singles(name: str) -> None:
    potential = make(name)
    frames = [ethanol(), crystal(), Atoms("C"), with_pbc(True, False, True), molecule("H2O"), crystal()[:1]]
    batch = evaluate(potential, frames)
    singles = [evaluate(potential, frame) for frame in frames]
    for key, values in batch.items():
        assert_close(values, np.concatenate([single[key] for single in singles]))
    assert np.abs(batch["forces"]).max() > 0.05
    periodic = [crystal(), crystal()[[0, 2]]]
    stress = evaluate(potential, periodic, "stress")["stress"]
    assert_close(stress, np.concatenate([evaluate(potential, frame, "stress")["stress"] for frame in periodic]))


@every
def test_energy_is_the_sum_of_energies(name: str) -> None:
    results = evaluate(make(name), [ethanol(), crystal()])
    assert_close(results["energy"], [results["energies"][:9].sum(), results["energies"][9:].sum()], 1e-14)


@every
def test_isolated_atoms(name: str) -> None:
    """One atom has reference + shift + scale * head; atoms far apart have the sum of that."""
    potential, bare = make(name), make(name)
    bare.set_references(dict.fromkeys(ELEMENTS, 0.0))
    bare.scale.fill_(1.0)
    bare.shift.fill_(0.0)
    atoms = [Atoms([z]) for z in ELEMENTS]
    head = evaluate(bare, atoms, "energy")["energy"]
    expected = np.array(list(REFERENCES.values())) + 0.37 + 20.0 * head
    assert_close(evaluate(potential, atoms, "energy")["energy"], expected, 1e-14)
    apart = Atoms(ELEMENTS, positions=[[0, 0, 0], [30, 0, 0], [0, 30, 0]])
    assert_close(evaluate(potential, apart, "energy")["energy"], expected.sum(), 1e-14)


@every
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-12), ("float32", 1e-5)])
def test_anchored_atoms_have_their_reference_energy(name: str, dtype: str, bound: float) -> None:
    potential = make(name, dtype, anchored=True)
    energies = evaluate(potential, [Atoms([z]) for z in ELEMENTS], "energy")["energy"]
    np.testing.assert_allclose(energies, list(REFERENCES.values()), rtol=0, atol=bound)
    free = make(name, dtype)
    free.shift.fill_(0.0)
    difference = evaluate(potential, ethanol()), evaluate(free, ethanol())
    assert_close(difference[0]["forces"], difference[1]["forces"], bound)


# --------------------------------------------------------------------------------------------------------- derivatives


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


# ----------------------------------------------------------------------------------------------------------- properties

SCALARS = ("mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "Cv")
networks = pytest.mark.parametrize(
    "name", [n for n in potentials.available() if not potentials.architecture(n)[0].is_classical]
)
classical = pytest.mark.parametrize(
    "name", [n for n in potentials.available() if potentials.architecture(n)[0].is_classical]
)


@functools.cache
def with_properties(name: str, dtype: str = "float64", pooling: str = "mean") -> Potential:
    """A small potential with a head of every kind, whose references, scales and shifts are not trivial."""
    options, _ = _abilities(name)
    tensor = ["polarizability"] if potentials.build(name, elements=[1], **options).representation.has_vectors else []
    potential = potentials.build(
        name,
        cutoff=CUTOFF,
        elements=ELEMENTS,
        outputs=["dipole", "gap", "r2", "Cv", "magmoms", *tensor],
        pooling=pooling,
        dtype=dtype,
        **options,
    )
    rng = np.random.default_rng(2)
    for standard in potential.standards.values():
        standard.set(rng.normal(size=len(ELEMENTS)).tolist(), 3.0, 0.4)  # type: ignore[operator]
    return potential


@networks
def test_every_scalar_property(name: str) -> None:
    potential = potentials.build(name, elements=ELEMENTS, outputs=["energy", *SCALARS], **_abilities(name)[0])
    results = potential(AtomGraph.from_ase([ethanol(), molecule("H2O")], 5.0), SCALARS)
    assert {key: tuple(value.shape) for key, value in results.items()} == dict.fromkeys(SCALARS, (2,))
    weights = [p for head in potential.heads.values() for p in head.parameters()]
    assert len({id(p) for p in weights}) == len(weights), "heads share weights"
    sum(value.sum() for value in results.values()).backward()
    for key in SCALARS:
        gradients = [p.grad for p in potential.heads[key].parameters()]
        assert any(g is not None and float(g.abs().sum()) > 0 for g in gradients), key


@classical
def test_classical_potentials_have_no_properties(name: str) -> None:
    for output in ("dipole", "gap", "U0", "r2", "polarizability", "charges"):
        with pytest.raises(ConfigError, match=f"{name} cannot give the output '{output}': its only feature"):
            potentials.build(name, elements=[1], outputs=["energy", output])


@networks
@settings(max_examples=3)
@given(seed=seeds, improper=st.booleans())
def test_properties_under_rotation_translation_and_permutation(name: str, seed: int, improper: bool) -> None:
    rng = np.random.default_rng(seed)
    potential, frame, rotation = with_properties(name), random_structure(rng), random_rotation(rng, improper)
    frame.pbc = False
    order = rng.permutation(len(frame))
    moved = frame[order]
    moved.positions = moved.positions @ rotation.T + rng.uniform(-50, 50, 3)
    before, after = (evaluate(potential, f, *potential.outputs) for f in (frame, moved))
    for key, expected in before.items():
        if key == "dipole":
            expected = expected @ rotation.T
        elif key == "polarizability":
            expected = rotation @ expected @ rotation.T
        elif key in ("charges", "magmoms"):
            expected = expected[order]
        assert_close(after[key], expected)
    if "polarizability" in before:
        tensor = before["polarizability"][0]
        assert_close(tensor, tensor.T, 1e-14)
        assert len(frame) < 3 or np.ptp(np.linalg.eigvalsh(tensor)) > 1e-7  # not only its isotropic part


@networks
@pytest.mark.parametrize("pooling", ["mean", "set2set"])
def test_properties_of_a_batch_equal_those_of_singles(name: str, pooling: str) -> None:
    potential = with_properties(name, pooling=pooling)
    frames = [ethanol(), Atoms("C"), molecule("H2O"), molecule("CH3OH")]
    batch = evaluate(potential, frames, *potential.outputs)
    singles = [evaluate(potential, frame, *potential.outputs) for frame in frames]
    for key, values in batch.items():
        assert_close(values, np.concatenate([single[key] for single in singles]))
        assert np.ptp(values) > 1e-5


@networks
def test_properties_in_float32_and_far_from_the_origin(name: str) -> None:
    single = with_properties(name, "float32")
    double, far = copy.deepcopy(single).cast(torch.float64), ethanol()
    far.positions += [1e4, -1e4, 1e4]
    expected = evaluate(double, ethanol(), *double.outputs)
    for frame in (ethanol(), far):
        for key, value in evaluate(single, frame, *single.outputs).items():
            assert_close(value, expected[key], 1e-4)


@networks
@pytest.mark.parametrize("pooling", ["mean", "set2set"])
def test_properties_are_saved_and_loaded(name: str, pooling: str, tmp_path: Path) -> None:
    potential = with_properties(name, "float32", pooling)
    potential.save(tmp_path / "model.safetensors")
    loaded = simkit.load(tmp_path / "model.safetensors")
    assert loaded.header() == potential.header()
    assert loaded.outputs == potential.outputs
    before, after = (model(graph_of(ethanol()), model.outputs) for model in (potential, loaded))
    assert all(torch.equal(before[key], after[key]) for key in before)


# ----------------------------------------------------------------------------------------- precision, files, randomness


@every
def test_float32_agrees_with_float64(name: str) -> None:
    single = make(name, "float32")
    double = copy.deepcopy(single).cast(torch.float64)
    for frame in (ethanol(), crystal()):
        a, b = evaluate(single, frame), evaluate(double, frame)
        for key, expected in b.items():
            assert_close(a[key], expected, 1e-7 if key == "energy" else 3e-5)
    assert single(graph_of(ethanol()), ("energy",))["energy"].dtype == torch.float64


@every
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_save_and_load_bit_for_bit(name: str, dtype: str, tmp_path: Path) -> None:
    potential = make(name, dtype, anchored=True, seed=11)
    potential.info["level_of_theory"] = "GFN2-xTB"
    potential.save(tmp_path / "model.safetensors")
    loaded = simkit.load(tmp_path / "model.safetensors")
    assert loaded.header() == potential.header()
    graph, outputs = graph_of([ethanol(), molecule("H2O")]), [key for key in potential.outputs if key != "stress"]
    before, after = potential(graph, outputs), loaded(graph, outputs)
    assert all(torch.equal(before[key], after[key]) for key in outputs)


def global_state() -> tuple[Any, ...]:
    """The random numbers to come from everything that is seeded globally, and the default dtype."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    return torch.get_rng_state().tolist(), str(numpy_state), random.getstate(), torch.get_default_dtype()


@every
def test_seed_decides_the_weights_and_nothing_global_changes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seed: int) -> None:
        raise AssertionError("the generators of the GPUs were seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    before = global_state()
    states = [make(name, seed=seed).state_dict() for seed in (7, 7, 8)]
    assert global_state() == before
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    if any(p.requires_grad for p in make(name).parameters()):
        assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


@pytest.mark.gpu
@every
def test_gpu_agrees_with_cpu(name: str) -> None:
    potential, graph = make(name), graph_of([crystal(), crystal()[[0, 2]]])
    expected = potential(graph, ("energy", "forces", "stress"))
    results = potential.to("cuda")(graph.to("cuda"), ("energy", "forces", "stress"))
    for key, value in results.items():
        assert_close(value.cpu().numpy(), expected[key].numpy())
