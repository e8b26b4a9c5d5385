"""Properties as targets: recipes, references from the data, learned weights, and how long a training takes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from known_properties import (
    ELECTRONS_OF,
    ELEMENTS,
    OWN_EXTENT,
    extent,
    known_labels,
    model_for,
    molecules,
    recipe,
    store_of,
)

from simkit import datasets
from simkit.config import parse_options
from simkit.datasets.qm9 import UNITS
from simkit.errors import ConfigError, LabelError
from simkit.properties import ELECTRONS
from simkit.training.fit import fit
from simkit.training.losses import LearnedWeights, PotentialObjective
from simkit.training.options import LossTerm, TrainingOptions
from simkit.training.recipe import Recipe
from simkit.training.references import label_spread, set_property_standards
from simkit.training.targets import ALL, heads_for
from simkit.training.timing import duration_text, long_training

SCALARS = ("energy", *ALL)


# ------------------------------------------------------------------------------------------------------- recipes


def test_all_are_the_twelve_of_qm9() -> None:
    assert set(ALL) == set(UNITS)
    assert recipe("target=all").target == list(ALL)
    assert recipe("target=all, dipole").target == [*ALL, "dipole"]


@pytest.mark.parametrize(
    "given", ["target=[mu, gap]", "target='mu,gap'", "target='mu, gap, mu'", "target=[mu, 'gap,mu']"]
)
def test_several_targets(given: str) -> None:
    assert recipe(given).target == ["mu", "gap"]


def test_default_loss() -> None:
    standardised = LossTerm(kind="mae", standardised=True)
    assert recipe("target=[mu, gap]").resolved_loss(SCALARS) == {"mu": standardised, "gap": standardised}
    assert recipe().resolved_loss(["energy", "forces", "gap"]) == {"energy": LossTerm(weight=0.1), "forces": LossTerm()}
    both = recipe("target=[energy, dipole]").resolved_loss(["energy", "dipole", "stress"])
    assert both == {"energy": LossTerm(weight=0.1), "stress": LossTerm(weight=100.0), "dipole": standardised}


def test_a_given_loss_keeps_the_rest_of_the_default() -> None:
    terms = recipe("target=[mu, gap]", "loss.gap.weight=5").resolved_loss(SCALARS)
    assert terms["gap"] == LossTerm(weight=5.0, kind="mae", standardised=True)
    assert terms["mu"].weight == 1.0
    terms = recipe("loss.energy.kind=mae", "loss.dipole.kind=mae", "loss.alpha.kind=mse").resolved_loss(SCALARS)
    assert terms["energy"] == LossTerm(weight=0.1, kind="mae")
    assert terms["dipole"] == LossTerm(kind="mae")
    assert terms["alpha"] == LossTerm(kind="mse", standardised=True)


def test_heads_for_a_loss() -> None:
    assert heads_for(["forces", "stress", "gap"]) == ["energy", "gap"]
    assert heads_for(["mu"]) == ["mu"]


def test_recipes_come_back_as_they_were() -> None:
    for settings in (
        ["target=all"],
        ["target=[U0]", "loss_weights=learned"],
        ["loss.gap.weight=2", "model.pooling=set2set"],
    ):
        first = recipe(*settings)
        assert parse_options(Recipe, first.model_dump(), "again") == first


def test_the_split_of_qm9() -> None:
    assert recipe().split.method == "published"
    assert recipe("split.train=10000").split.method == "random"
    assert recipe("split.method=random").split.method == "random"
    assert recipe(data="embedded").split.method == "random"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("target=gapp", "unknown target 'gapp'; did you mean 'gap'?"),
        ("target=forces", "unknown target 'forces'"),
        ("target=[]", "expected at least one target"),
        ("target=5", "expected names such as U0 or [mu, gap], found 5"),
        ("loss.lumoo.weight=1", "no label 'lumoo' can be trained on; did you mean 'lumo'?"),
        ("loss_weights=guessed", "loss_weights"),
        ("model.pooling=max", "model.pooling"),
    ],
)
def test_bad_targets(setting: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(setting)
    assert message in str(caught.value)


def test_energies_of_qm9_that_are_none() -> None:
    with pytest.raises(ConfigError, match="to train on mu give it as --target"):
        datasets.load("qm9", target="mu")


# ------------------------------------------------------------------------------------------------------ references


def test_least_squares_is_exact_where_a_property_is_a_sum_over_atoms() -> None:
    frames = molecules()
    exact = {"zpve": np.array([a.numbers.sum() * 0.1 for a in frames]), "r2": np.array([extent(a) for a in frames])}
    potential = model_for("zpve", "r2")
    set_property_standards(potential, store_of(frames, exact))
    np.testing.assert_allclose(potential.standards["zpve"].reference.numpy(), 0.1 * np.array(ELEMENTS), rtol=1e-9)
    np.testing.assert_allclose(
        potential.standards[ELECTRONS].reference.numpy(), [ELECTRONS_OF[z] for z in ELEMENTS], rtol=1e-8
    )
    np.testing.assert_allclose(
        potential.standards["r2"].reference.numpy(), [OWN_EXTENT[z] for z in ELEMENTS], rtol=1e-7
    )
    assert float(potential.standards["zpve"].scale) == 1.0  # nothing is left to scale


def test_a_silent_network_predicts_what_the_references_say() -> None:
    """Standards are right if a network that adds nothing is off by the residual of the fit."""
    frames = molecules()
    labels = known_labels(frames)
    rng = np.random.default_rng(3)
    labels["polarizability"] = labels["alpha"][:, None, None] * np.eye(3) + 0.1 * rng.normal(size=(len(frames), 3, 3))
    labels["charges"] = np.concatenate([np.where(a.numbers == 1, 0.2, -0.1) for a in frames])
    store = store_of(frames, labels).with_neighbors(4.0)
    names = ("zpve", "gap", "r2", "polarizability", "charges")
    potential = model_for(*names, cutoff=4.0, dtype="float64")
    set_property_standards(potential, store)
    with torch.no_grad():
        for p in potential.heads.parameters():
            p.zero_()
        found = potential(store.batch(range(len(frames))), names)
    error = {n: found[n].numpy() - labels[n] for n in names}
    for name in ("zpve", "gap"):
        assert abs(error[name].mean()) < 0.02 * np.abs(labels[name]).mean()
    np.testing.assert_allclose(error["r2"], 0.0, atol=1e-5)  # positions are exact to 1e-7
    isotropic = np.trace(error["polarizability"], axis1=1, axis2=2) / 3
    assert np.abs(isotropic).mean() < 0.3
    by_composition = np.array([0.2 if z == 1 else -0.1 for a in frames for z in a.numbers])
    charges = by_composition - np.repeat(
        [np.where(a.numbers == 1, 0.2, -0.1).mean() for a in frames], [len(a) for a in frames]
    )
    np.testing.assert_allclose(found["charges"].numpy(), charges, atol=1e-12)


def test_intensive_properties_count_from_their_mean() -> None:
    frames = molecules()
    labels = known_labels(frames)
    potential = model_for("gap")
    set_property_standards(potential, store_of(frames, labels))
    standard = potential.standards["gap"]
    assert float(standard.shift) == pytest.approx(labels["gap"].mean())
    assert float(standard.scale) == pytest.approx(labels["gap"].std(ddof=1))
    assert not standard.reference.any()


def test_a_property_without_labels() -> None:
    with pytest.raises(LabelError, match="the references of gap need its values"):
        set_property_standards(model_for("gap"), store_of(molecules(), {"energy": known_labels(molecules())["energy"]}))


def test_spread_is_what_the_composition_leaves() -> None:
    frames = molecules()
    labels = known_labels(frames)
    forces = np.random.default_rng(0).normal(0, 2.0, (sum(map(len, frames)), 3))
    charges = np.concatenate([np.where(a.numbers == 1, 0.2, -0.1) + 0.01 * np.arange(len(a)) for a in frames])
    store = store_of(frames, labels | {"forces": forces, "charges": charges})
    design = np.array([[*(a.numbers.tolist().count(z) for z in ELEMENTS), 1.0] for a in frames])
    for name in ("U0", "gap", "alpha"):
        residual = labels[name] - design @ np.linalg.lstsq(design, labels[name], rcond=None)[0]
        assert label_spread(store, name) == pytest.approx(np.sqrt(np.mean(residual**2)), rel=1e-6)
    assert label_spread(store, "forces") == pytest.approx(np.sqrt(np.mean(forces**2)))
    numbers = np.concatenate([a.numbers for a in frames])
    residual = charges - np.array([charges[numbers == z].mean() for z in numbers])
    assert label_spread(store, "charges") == pytest.approx(np.sqrt(np.mean(residual**2)))
    assert label_spread(store, "r2") == 1.0  # second moments explain all of it, and rounding is no spread
    few = store_of(frames[:6], {"gap": labels["gap"][:6]})
    assert label_spread(few, "gap") == pytest.approx(labels["gap"][:6].std())


# -------------------------------------------------------------------------------------------------- time on the CPU


def test_a_long_training_is_announced() -> None:
    frames = molecules()
    store, potential = store_of(frames, known_labels(frames)).with_neighbors(4.0), model_for("gap", cutoff=4.0)
    set_property_standards(potential, store)
    objective = PotentialObjective({"gap": LossTerm()})
    weights = [p.detach().clone() for p in potential.parameters()]
    before = torch.get_rng_state()

    def told(**options: Any) -> str | None:
        return long_training(potential, objective, store, TrainingOptions(device="cpu", **options))

    assert told(epochs=3) is None
    text = told(epochs=1_000_000_000)
    assert text is not None
    assert "days" in text
    assert "split.train=10000" in text
    assert told(epochs=1_000_000_000, max_minutes=30) is None
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(weights, potential.parameters(), strict=True))
    assert all(p.grad is None for p in potential.parameters())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (40, "40 s"),
        (90, "2 min"),
        (3599, "60 min"),
        (7200, "2.0 h"),
        (60000, "17 h"),
        (200000, "2.3 days"),
        (2e6, "23 days"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


# ------------------------------------------------------------------------------------------------- learned weights


def test_a_resumed_training_with_learned_weights_is_the_same(tmp_path: Path) -> None:
    frames = molecules()
    store = store_of(frames, known_labels(frames)).with_neighbors(4.0)
    terms = {name: LossTerm(kind="mae", standardised=True) for name in ("gap", "mu")}
    objective = PotentialObjective(terms, {name: label_spread(store, name) for name in terms}, learned=True)

    def trained(folder: str, epochs: int, resume: bool) -> tuple[list[dict[str, float]], dict[str, float]]:
        potential = model_for("gap", "mu", cutoff=4.0)
        set_property_standards(potential, store)
        model = LearnedWeights(potential, list(terms))
        options = TrainingOptions(epochs=epochs, schedule="constant", warmup_steps=0, batch_size=16, device="cpu")
        result = fit(model, objective, store, None, options, tmp_path / folder, resume=resume)
        rows = [{key: v for key, v in row.items() if key != "seconds"} for row in result.rows]
        return rows, model.noise()

    whole = trained("whole", 3, False)
    trained("parts", 1, False)
    assert trained("parts", 3, True) == whole
    assert whole[1]["gap"] != 1.0
