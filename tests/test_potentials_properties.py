"""The contract that every registered potential keeps: heads of all properties."""

import copy
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from hypothesis import given, settings
from hypothesis import strategies as st
from potential_cases import (
    CUTOFF,
    ELEMENTS,
    abilities,
    assert_close,
    ethanol,
    evaluate,
    graph_of,
    random_rotation,
    random_structure,
    seeds,
)

import simkit
from simkit import potentials
from simkit.errors import ConfigError
from simkit.graph import AtomGraph
from simkit.potential import Potential

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
    options, _ = abilities(name)
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
    potential = potentials.build(name, elements=ELEMENTS, outputs=["energy", *SCALARS], **abilities(name)[0])
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
