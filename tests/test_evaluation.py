"""Predictions over a store and their errors, against NumPy."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from simkit import potentials
from simkit.datasets.store import Store
from simkit.errors import ConfigError, ElementError
from simkit.graph import LABELS, AtomGraph
from simkit.potential import Potential
from simkit.training.evaluation import error_metrics, errors_per_element, errors_per_group, labels_to_evaluate, predict

SIZES = [2, 5, 1, 4, 3, 3, 2]
NAMES = ("energy", "forces", "dipole")


def make_store(names: Sequence[str] = NAMES, groups: bool = True) -> Store:
    rng = np.random.default_rng(17)
    ptr = np.concatenate([[0], np.cumsum(SIZES)])
    place = np.concatenate([np.arange(n) for n in SIZES])[:, None] * [1.2, 0.4, 0.1] + rng.normal(0, 0.1, (ptr[-1], 3))
    labels = {
        n: rng.normal(size=(len(SIZES) if LABELS[n].per == "graph" else ptr[-1], *LABELS[n].shape)) for n in names
    }
    kinds = np.array(["b", "a", "b", "c", "a", "b", "a"]) if groups else None
    return Store(rng.choice([1, 6, 8], ptr[-1]), place, ptr, labels, groups=kinds).with_neighbors(3.0)


@pytest.fixture(scope="module")
def potential() -> Potential:
    return potentials.build(
        "painn",
        cutoff=3.0,
        elements=[1, 6, 8],
        outputs=("energy", "dipole"),
        channels=4,
        layers=1,
        basis=3,
        dtype="float64",
    )


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@given(batch_size=st.integers(1, 9), max_atoms=st.integers(1, 30))
@settings(max_examples=15)
def test_predictions_do_not_depend_on_the_batches(potential: Potential, batch_size: int, max_atoms: int) -> None:
    store = make_store()
    outputs = ("energy", "forces", "dipole", "charges")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simkit.datasets.store.MAX_ATOMS", max_atoms)
        found = predict(potential, store, outputs, batch_size)
    one_by_one = [potential(store.batch([k]), outputs) for k in range(len(SIZES))]
    for name in outputs:
        assert (found[name].dtype, found[name].requires_grad) == (torch.float64, False)
        close(found[name], torch.cat([r[name] for r in one_by_one]).detach())


def test_batches_are_bounded_in_structures_and_atoms(potential: Potential, monkeypatch: pytest.MonkeyPatch) -> None:
    store, seen = make_store(), []

    def look(module: Potential, arguments: tuple[AtomGraph, tuple[str, ...]]) -> None:
        seen.append((arguments[0].num_structures, len(arguments[0].z)))

    handle = potential.register_forward_pre_hook(look)
    try:
        predict(potential, store, ("energy",), batch_size=3)
        assert [count for count, _ in seen] == [3, 3, 1]
        seen.clear()
        monkeypatch.setattr("simkit.datasets.store.MAX_ATOMS", 10)  # two of the largest structure, which has five atoms
        predict(potential, store, ("energy",), batch_size=3)
        assert [count for count, _ in seen] == [2, 2, 2, 1]
        assert max(atoms for _, atoms in seen) <= 10
    finally:
        handle.remove()


def test_a_float32_model_gives_float64_predictions() -> None:
    model = potentials.build("schnet", cutoff=3.0, elements=[1, 6, 8], channels=4, layers=1)
    found = predict(model, make_store(), ("energy", "forces"))
    assert {value.dtype for value in found.values()} == {torch.float64}


def test_what_a_model_cannot_predict(potential: Potential) -> None:
    store = make_store()
    with pytest.raises(ConfigError, match="cannot give stresses"):
        predict(potential, store, ("energy", "stresses"))
    small = potentials.build("painn", cutoff=3.0, elements=[1, 6], channels=4, layers=1)
    with pytest.raises(ElementError, match="holds O"):
        predict(small, store, ("energy",))


def test_labels_to_evaluate(potential: Potential) -> None:
    assert labels_to_evaluate(potential, make_store(("dipole", "homo", "energy"))) == ("energy", "dipole")
    bare = potentials.build("painn", elements=[1, 6, 8], channels=4, layers=1)
    assert labels_to_evaluate(bare, make_store()) == ("energy", "forces")


@pytest.fixture(scope="module")
def predicted() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    store = make_store()
    return {name: torch.randn(store.labels[name].shape, generator=generator, dtype=torch.float64) for name in NAMES}


def test_metrics(predicted: dict[str, Tensor]) -> None:
    store = make_store()
    found = error_metrics(store, predicted)
    expected = {}
    for name in NAMES:
        error = predicted[name].numpy() - store.labels[name].numpy()
        expected[f"{name}_mae"], expected[f"{name}_rmse"] = np.mean(np.abs(error)), np.sqrt(np.mean(error**2))
        if name == "energy":
            error = error / np.array(SIZES)
            expected |= {
                "energy_mae_per_atom": np.mean(np.abs(error)),
                "energy_rmse_per_atom": np.sqrt(np.mean(error**2)),
            }
    assert found == pytest.approx(expected, rel=1e-12)
    assert all(type(value) is float for value in found.values())  # for JSON


def test_errors_per_element(predicted: dict[str, Tensor]) -> None:
    store = make_store()
    found = errors_per_element(store, predicted)
    assert list(found) == store.elements
    error = predicted["forces"].numpy() - store.labels["forces"].numpy()
    for element, metrics in found.items():
        chosen = error[store.z.numpy() == element]
        assert metrics == pytest.approx(
            {"forces_mae": np.mean(np.abs(chosen)), "forces_rmse": np.sqrt(np.mean(chosen**2))}, rel=1e-12
        )
    assert errors_per_element(store, {"energy": predicted["energy"]}) == {}


def test_errors_per_group(predicted: dict[str, Tensor]) -> None:
    store = make_store()
    found = errors_per_group(store, predicted)
    assert {name: metrics["count"] for name, metrics in found.items()} == {"a": 3, "b": 3, "c": 1}
    assert store.groups is not None
    for name, metrics in found.items():
        chosen = store.groups == name
        atoms = np.repeat(chosen, SIZES)
        energy = (predicted["energy"].numpy() - store.labels["energy"].numpy())[chosen]
        forces = (predicted["forces"].numpy() - store.labels["forces"].numpy())[atoms]
        assert metrics["energy_mae"] == pytest.approx(np.mean(np.abs(energy)), rel=1e-12)
        assert metrics["energy_mae_per_atom"] == pytest.approx(
            np.mean(np.abs(energy) / np.array(SIZES)[chosen]), rel=1e-12
        )
        assert metrics["forces_rmse"] == pytest.approx(np.sqrt(np.mean(forces**2)), rel=1e-12)
    assert errors_per_group(make_store(groups=False), predicted) == {}
