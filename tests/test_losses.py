"""Losses against their formulas in NumPy, and what makes them independent of how a batch is shared."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from simkit import potentials
from simkit.config import parse_options
from simkit.datasets.store import Store
from simkit.errors import ConfigError, LabelError
from simkit.graph import LABELS, AtomGraph
from simkit.training.losses import LearnedWeights, PotentialObjective
from simkit.training.options import LossTerm, TrainingOptions

SIZES = [1, 3, 2, 4, 3, 1]
NAMES = ("energy", "forces", "stress", "dipole")
EVERYTHING = torch.arange(len(SIZES))


def make_store(weighted: bool = False, periodic: bool = False) -> Store:
    rng = np.random.default_rng(5)
    ptr = np.concatenate([[0], np.cumsum(SIZES)])
    atoms, frames = ptr[-1], len(SIZES)
    labels = {
        name: rng.normal(size=(frames if LABELS[name].per == "graph" else atoms, *LABELS[name].shape)) for name in NAMES
    }
    if weighted:
        labels["weight"] = rng.uniform(0.2, 3.0, frames)
    if periodic:
        del labels["dipole"]
    place = np.concatenate([np.arange(n) for n in SIZES])[:, None] * [1.1, 0.3, 0.2] + rng.normal(0, 0.1, (atoms, 3))
    cell = np.tile(6.0 * np.eye(3), (frames, 1, 1)) if periodic else None
    pbc = np.ones((frames, 3), bool) if periodic else None
    return Store(rng.choice([1, 8], atoms), place, ptr, labels, cell=cell, pbc=pbc).with_neighbors(4.0)


class Fixed(nn.Module):
    """Predicts the same for every structure of a store, whatever its weights are; remembers what it was asked for."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.values = {name: torch.randn(store.labels[name].shape, generator=generator).double() for name in NAMES}
        self.asked: tuple[tuple[str, ...], bool] = ((), False)

    def forward(self, graph: AtomGraph, outputs: tuple[str, ...], *, differentiable: bool = False) -> dict[str, Tensor]:
        self.asked = (outputs, differentiable)
        return {name: self.values[name] for name in outputs}


def penalty(kind: str, delta: float) -> Callable[[np.ndarray], np.ndarray]:
    def huber(e: np.ndarray) -> np.ndarray:
        return np.where(np.abs(e) < delta, 0.5 * e**2, delta * (np.abs(e) - 0.5 * delta))

    kinds: dict[str, Callable[[np.ndarray], np.ndarray]] = {"mse": np.square, "mae": np.abs, "huber": huber}
    return kinds[kind]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("per_atom", [False, True])
@pytest.mark.parametrize("kind", ["mse", "mae", "huber"])
@pytest.mark.parametrize("name", NAMES)
def test_formulas(name: str, kind: str, per_atom: bool, weighted: bool) -> None:
    store = make_store(weighted)
    model = Fixed(store)
    objective = PotentialObjective({name: LossTerm(weight=2.5, kind=kind, delta=0.7, per_atom=per_atom)})
    counts = objective.counts(store, EVERYTHING)
    loss, sums = objective(model, store.batch(EVERYTHING), counts)

    error = (model.values[name] - store.labels[name]).numpy()
    rows = np.arange(len(SIZES)) if LABELS[name].per == "graph" else np.repeat(np.arange(len(SIZES)), SIZES)
    error = error.reshape(len(rows), -1)
    scaled = error / np.array(SIZES)[rows, None] if per_atom else error
    weights = store.labels["weight"].numpy()[rows, None] if weighted else 1.0
    assert float(loss) == pytest.approx(2.5 * np.mean(weights * penalty(kind, 0.7)(scaled)), rel=1e-12)
    assert float(sums[name]) / counts[name] == pytest.approx(np.mean(np.abs(error)), rel=1e-12)
    assert counts == {name: error.size}


def test_terms_add_up() -> None:
    store = make_store()
    model = Fixed(store)
    terms = {name: LossTerm(weight=w) for name, w in zip(NAMES, (0.1, 1.0, 7.0, 3.0), strict=True)}
    objective = PotentialObjective(terms)
    total, _ = objective(model, store.batch(EVERYTHING), objective.counts(store, EVERYTHING))
    parts = []
    for name, term in terms.items():
        single = PotentialObjective({name: term})
        parts.append(float(single(model, store.batch(EVERYTHING), single.counts(store, EVERYTHING))[0]))
    assert float(total) == pytest.approx(sum(parts), rel=1e-12)


def test_terms_without_weight_are_dropped() -> None:
    store = make_store()
    model = Fixed(store)
    objective = PotentialObjective({"energy": LossTerm(), "forces": LossTerm(weight=0)})
    _, sums = objective(model.train(), store.batch(EVERYTHING), objective.counts(store, EVERYTHING))
    assert set(sums) == {"energy"}
    assert model.asked == (("energy",), False)  # no forces, hence no derivatives of them


def test_forces_are_differentiable_in_training_only() -> None:
    store = make_store()
    model = Fixed(store)
    objective = PotentialObjective({"forces": LossTerm()})
    counts = objective.counts(store, EVERYTHING)
    objective(model.train(), store.batch(EVERYTHING), counts)
    assert model.asked == (("forces",), True)
    objective(model.eval(), store.batch(EVERYTHING), counts)
    assert model.asked == (("forces",), False)


@settings(max_examples=15)
@given(
    owner=st.lists(st.integers(0, 2), min_size=len(SIZES), max_size=len(SIZES)),
    weighted=st.booleans(),
    kind=st.sampled_from(["mse", "mae", "huber"]),
)
def test_shards_add_up_to_the_batch(owner: list[int], weighted: bool, kind: str) -> None:
    """However the structures are shared between processes: losses, error sums and gradients."""
    store = make_store(weighted)
    model = potentials.build(
        "painn",
        cutoff=4.0,
        elements=[1, 8],
        channels=4,
        layers=1,
        basis=3,
        dtype="float64",
        outputs=("energy", "dipole"),
    )
    objective = PotentialObjective(
        {name: LossTerm(kind=kind, delta=0.1, per_atom=name == "energy") for name in ("energy", "forces", "dipole")}
    )
    counts = objective.counts(store, EVERYTHING)

    def of(indices: Tensor) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        loss, sums = objective(model, store.batch(indices), counts)
        gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
        return loss.detach(), sums, list(gradients)

    loss, sums, gradients = of(EVERYTHING)
    shards = [of(indices) for k in range(3) if len(indices := EVERYTHING[torch.tensor(owner) == k])]
    assert float(sum(s[0] for s in shards)) == pytest.approx(float(loss), rel=1e-12)
    for name, value in sums.items():
        assert float(sum(s[1][name] for s in shards)) == pytest.approx(float(value), rel=1e-12)
    for k, gradient in enumerate(gradients):
        torch.testing.assert_close(torch.stack([s[2][k] for s in shards]).sum(0), gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("periodic", [False, True])
def test_gradient_against_finite_differences(periodic: bool) -> None:
    """The derivative of a loss on energy, forces and dipole or stress along random directions in the space of the weights."""
    store = make_store(weighted=True, periodic=periodic)
    names = ("energy", "forces", "stress" if periodic else "dipole")
    model = potentials.build(
        "painn", cutoff=4.0, elements=[1, 8], channels=4, layers=2, basis=4, dtype="float64",
        outputs=("energy",) if periodic else ("energy", "dipole"),
    )  # fmt: skip
    objective = PotentialObjective({name: LossTerm(weight=50.0 if name == "stress" else 1.0) for name in names})
    batch, counts = store.batch(EVERYTHING), objective.counts(store, EVERYTHING)
    weights = list(model.parameters())
    loss, _ = objective(model, batch, counts)
    gradient = torch.autograd.grad(loss, weights, materialize_grads=True)
    start = [w.detach().clone() for w in weights]
    generator = torch.Generator().manual_seed(11)
    for _ in range(3):
        direction = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in weights]
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                for w, s, d in zip(weights, start, direction, strict=True):
                    w.copy_(s + sign * 1e-5 * d)
            values.append(float(objective(model, batch, counts)[0].detach()))
        slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=1e-6)


def test_large_energies_lose_nothing() -> None:
    """A float32 network around -1e6 eV: the error of 1e-3 eV is not rounded away."""
    store = make_store()
    store.labels["energy"] = torch.full((len(SIZES),), -1e6 + 1e-3, dtype=torch.float64)
    model = Fixed(store)
    model.values["energy"] = torch.full((len(SIZES),), -1e6, dtype=torch.float64)
    objective = PotentialObjective({"energy": LossTerm(kind="mae")})
    loss, _ = objective(model, store.batch(EVERYTHING), objective.counts(store, EVERYTHING))
    assert float(loss) == pytest.approx(1e-3, rel=1e-6)


@pytest.mark.parametrize("kind", ["mse", "mae", "huber"])
@pytest.mark.parametrize("name", NAMES)
def test_standardised(name: str, kind: str) -> None:
    """Errors count in units of the spread; what is logged stays in those of the label."""
    store = make_store()
    model = Fixed(store)
    term = LossTerm(weight=1.5, kind=kind, delta=0.7, standardised=True)
    objective = PotentialObjective({name: term}, {name: 0.2})
    counts = objective.counts(store, EVERYTHING)
    loss, sums = objective(model, store.batch(EVERYTHING), counts)
    error = (model.values[name] - store.labels[name]).numpy()
    assert float(loss) == pytest.approx(1.5 * np.mean(penalty(kind, 0.7)(error / 0.2)), rel=1e-12)
    assert float(sums[name]) / counts[name] == pytest.approx(np.mean(np.abs(error)), rel=1e-12)


# ------------------------------------------------------------------------------------------------------ learned weights


def learning(
    kinds: dict[str, str], weights: dict[str, float] | None = None
) -> tuple[LearnedWeights, PotentialObjective]:
    """A small model of energy and dipole whose noise is learned, and the objective that uses it."""
    terms = {n: LossTerm(kind=k, weight=(weights or {}).get(n, 1.0)) for n, k in kinds.items()}  # type: ignore[arg-type]
    potential = potentials.build(
        "painn",
        cutoff=4.0,
        elements=[1, 8],
        channels=4,
        layers=1,
        basis=3,
        dtype="float64",
        outputs=("energy", "dipole"),
    )
    return LearnedWeights(potential, list(terms)), PotentialObjective(terms, learned=True)


def test_learned_weights_are_the_likelihood_of_the_noise() -> None:
    """Kendall et al., equations 7 and 10; for absolute errors with the density of Laplace instead of Gauss."""
    store = make_store()
    model, objective = learning({"energy": "mse", "dipole": "mae", "forces": "mae"}, {"dipole": 0.3})
    with torch.no_grad():
        model.raw.copy_(torch.tensor([0.05, -0.2, 0.11]))
    sigma = model.noise()
    assert sigma == pytest.approx({"energy": np.exp(0.5), "dipole": np.exp(-2.0), "forces": np.exp(1.1)})
    batch = store.batch(EVERYTHING)
    loss, _ = objective(model, batch, objective.counts(store, EVERYTHING))
    predicted = model.potential(batch, ("energy", "dipole", "forces"))
    e, d, f = (predicted[n].detach().numpy() - store.labels[n].numpy() for n in ("energy", "dipole", "forces"))
    gauss = np.mean(e**2 / (2 * sigma["energy"] ** 2) + np.log(sigma["energy"]))
    laplace = np.mean(np.abs(d) / sigma["dipole"] + np.log(sigma["dipole"]))
    forces = np.mean(np.abs(f) / sigma["forces"] + np.log(sigma["forces"]))
    assert float(loss.detach()) == pytest.approx(gauss + 0.3 * laplace + forces, rel=1e-12)


def test_learned_noise_settles_at_the_size_of_the_errors() -> None:
    store = make_store()
    model, objective = learning({"energy": "mse", "dipole": "mae"})
    batch = store.batch(EVERYTHING)
    counts = objective.counts(store, EVERYTHING)
    with torch.no_grad():
        predicted = model.potential(batch, ("energy", "dipole"))
    errors = {n: (predicted[n] - store.labels[n]).numpy() for n in predicted}
    optimizer = torch.optim.Adam([model.raw], lr=0.01)
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 0.01 * 0.99**step
        optimizer.zero_grad()
        objective(model, batch, counts)[0].backward()
        optimizer.step()
    expected = {"energy": np.sqrt(np.mean(errors["energy"] ** 2)), "dipole": np.mean(np.abs(errors["dipole"]))}
    assert model.noise() == pytest.approx(expected, rel=1e-3)


@settings(max_examples=10)
@given(owner=st.lists(st.integers(0, 2), min_size=len(SIZES), max_size=len(SIZES)))
def test_shards_add_up_with_learned_weights(owner: list[int]) -> None:
    store = make_store(weighted=True)
    model, objective = learning({"energy": "mse", "forces": "mae", "dipole": "mae"})
    with torch.no_grad():
        model.raw.copy_(torch.tensor([0.1, -0.1, 0.2]))
    counts = objective.counts(store, EVERYTHING)

    def of(indices: Tensor) -> tuple[Tensor, list[Tensor]]:
        loss, _ = objective(model, store.batch(indices), counts)
        return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True))

    loss, gradients = of(EVERYTHING)
    shards = [of(indices) for k in range(3) if len(indices := EVERYTHING[torch.tensor(owner) == k])]
    assert float(sum(s[0] for s in shards)) == pytest.approx(float(loss), rel=1e-12)
    for k, gradient in enumerate(gradients):
        torch.testing.assert_close(torch.stack([s[1][k] for s in shards]).sum(0), gradient, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------------------ errors


def test_a_missing_spread_and_what_cannot_be_learned() -> None:
    with pytest.raises(ConfigError, match="standardised loss of energy needs the spread"):
        PotentialObjective({"energy": LossTerm(standardised=True), "forces": LossTerm()})
    with pytest.raises(ConfigError, match=r"mse or mae, but loss\.forces\.kind is huber"):
        PotentialObjective({"energy": LossTerm(), "forces": LossTerm(kind="huber")}, learned=True)


def test_nothing_to_minimise() -> None:
    for terms in ({}, {"energy": LossTerm(weight=0)}):
        with pytest.raises(ConfigError, match="no term with a weight above zero"):
            PotentialObjective(terms)


def test_labels_and_outputs_are_checked() -> None:
    store = make_store()
    energy_and_forces = ("energy", "forces")
    PotentialObjective({"energy": LossTerm()}).check(store, energy_and_forces)
    with pytest.raises(ConfigError, match=r"'dipole', which the model cannot give; it gives energy, forces"):
        PotentialObjective({"dipole": LossTerm()}).check(store, energy_and_forces)
    bare = Store(store.z, store.pos, store.ptr, {"energy": store.labels["energy"]})
    with pytest.raises(LabelError, match=r"'forces', but the data hold energy"):
        PotentialObjective({"forces": LossTerm()}).check(bare, energy_and_forces)
    # A term that is switched off needs neither.
    PotentialObjective({"energy": LossTerm(), "dipole": LossTerm(weight=0)}).check(bare, energy_and_forces)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": -1}, "weight"),
        ({"kind": "rmse"}, "kind"),
        ({"delta": 0}, "delta"),
        ({"per_atoms": True}, "did you mean 'per_atom'"),
    ],
)
def test_bad_terms(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_options(LossTerm, values, "loss.energy")


def test_a_minimum_above_the_learning_rate() -> None:
    with pytest.raises(ConfigError, match="is above learning_rate"):
        parse_options(TrainingOptions, {"learning_rate": 1e-4, "minimum_learning_rate": 1e-3}, "training")
