"""The contract that every registered potential keeps, a new one too: symmetries, sums of energies, precision and files."""

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from hypothesis import given
from hypothesis import strategies as st
from potential_cases import (
    ELEMENTS,
    REFERENCES,
    assert_close,
    crystal,
    ethanol,
    evaluate,
    every,
    few,
    graph_of,
    make,
    random_rotation,
    random_structure,
    seeds,
    with_pbc,
)

import simkit

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
