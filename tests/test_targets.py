"""Properties as targets: recipes, references from the data, splits of QM9, and training, evaluation and prediction from the shell."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.collections import g2
from ase.io import read, write
from typer.testing import CliRunner

import simkit
from simkit import cli, datasets, potentials
from simkit.config import parse_options
from simkit.datasets.qm9 import REFERENCES, UNITS
from simkit.datasets.store import Store
from simkit.errors import ConfigError, LabelError
from simkit.graph import LABELS
from simkit.potential import Potential
from simkit.properties import ELECTRONS
from simkit.training.fit import fit
from simkit.training.losses import LearnedWeights, PotentialObjective
from simkit.training.options import LossTerm, TrainingOptions
from simkit.training.recipe import Recipe, read_recipe
from simkit.training.references import label_spread, reference_sums, set_property_standards
from simkit.training.splitting import make_split
from simkit.training.targets import ALL, heads_for
from simkit.training.timing import duration_text, long_training
from simkit.units import unit_factor
from simkit.workflows.train import train

ELEMENTS = [1, 6, 7, 8, 9]
SCALARS = ("energy", *ALL)


def silent(_: str) -> None:
    pass


def recipe(*settings: str, data: str = "qm9") -> Recipe:
    return read_recipe(None, settings, {"data": {"name": data}})


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


# ---------------------------------------------------------------------------------------------- data that are known

ELECTRONS_OF = {1: 0.9, 6: 6.1, 7: 7.1, 8: 8.0, 9: 9.2}
OWN_EXTENT = {1: 1.0, 6: 3.0, 7: 2.9, 8: 2.8, 9: 2.3}


def molecules() -> list[Atoms]:
    """Small molecules of the G2 set, of the elements of QM9."""
    found = [molecule(name) for name in g2.names]
    return [atoms for atoms in found if 3 <= len(atoms) <= 12 and set(atoms.numbers.tolist()) <= set(ELEMENTS)]


def extent(atoms: Atoms) -> float:
    """Electrons and extents of the atoms, in angstrom^2."""
    local = atoms.positions - atoms.get_center_of_mass()
    return sum(ELECTRONS_OF[z] * (r @ r) + OWN_EXTENT[z] for z, r in zip(atoms.numbers.tolist(), local, strict=True))


def known_labels(frames: list[Atoms]) -> dict[str, np.ndarray]:
    """Labels in simkit's units: sums over atoms that bonds disturb a little."""
    rng = np.random.default_rng(6)
    disturbed = np.array([rng.normal(0, 0.05) * len(a) for a in frames])
    labels = {}
    for name in ("U0", "U", "H", "G", "Cv"):
        table = {z: value * unit_factor(UNITS[name]) for z, value in REFERENCES[name].items()}
        small = 1e-4 if name == "Cv" else 1.0
        labels[name] = np.array([sum(table[z] for z in a.numbers.tolist()) for a in frames]) + small * (disturbed - 2.0)
    labels["energy"] = labels["U0"]
    labels["zpve"] = np.array([0.2 * len(a) + 0.1 * a.numbers.tolist().count(1) for a in frames]) + 0.1 * disturbed
    labels["alpha"] = np.array([0.2 * float(a.numbers.sum()) for a in frames]) + disturbed
    labels["homo"], labels["lumo"] = rng.normal(-6.5, 0.5, len(frames)), rng.normal(0.5, 1.0, len(frames))
    labels["gap"] = labels["lumo"] - labels["homo"]
    labels["mu"] = np.array([np.linalg.norm(np.where(a.numbers == 1, 0.1, -0.05) @ a.positions) for a in frames])
    labels["r2"] = np.array([extent(a) for a in frames])
    return labels


def store_of(frames: list[Atoms], labels: dict[str, np.ndarray], **info: Any) -> Store:
    ptr = np.concatenate([[0], np.cumsum([len(a) for a in frames])])
    return Store(
        np.concatenate([a.numbers for a in frames]),
        np.concatenate([a.positions for a in frames]),
        ptr,
        labels,
        info=info,
    )


@pytest.fixture
def qm9(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file like QM9's, with the published split, where simkit looks for it; returns the folder."""
    frames = molecules()
    labels = known_labels(frames)
    codes = np.arange(len(frames)) % 5
    (tmp_path / "data" / "qm9").mkdir(parents=True)
    np.savez(
        tmp_path / "data" / "qm9" / "qm9.npz",
        n_atoms=np.array([len(a) for a in frames], np.uint8),
        numbers=np.concatenate([a.numbers for a in frames]).astype(np.uint8),
        positions=np.concatenate([a.positions for a in frames]).astype(np.float32),
        gdb_id=np.arange(len(frames), dtype=np.int32),
        split=np.where(codes == 3, 1, np.where(codes == 4, 2, 0)).astype(np.uint8),
        **{name: labels[name] / unit_factor(unit) for name, unit in UNITS.items()},
    )
    monkeypatch.setenv("SIMKIT_DATA_DIR", str(tmp_path / "data"))
    return tmp_path


# ------------------------------------------------------------------------------------------------------ references


def model_for(*names: str, **kwargs: Any) -> Potential:
    return potentials.build("painn", elements=ELEMENTS, channels=8, layers=1, outputs=names, **kwargs)


def test_published_references_of_atoms(qm9: Path) -> None:
    store = datasets.load("qm9")
    potential = model_for("U0", "Cv", "zpve")
    origins = set_property_standards(potential, store)
    assert origins == {
        "U0": "isolated atoms of the data set",
        "Cv": "isolated atoms of the data set",
        "zpve": "least squares on the composition",
    }
    hartree = unit_factor("hartree")
    expected = [REFERENCES["U0"][z] * hartree for z in ELEMENTS]
    np.testing.assert_allclose(potential.standards["U0"].reference.numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(
        potential.standards["Cv"].reference.numpy(), 2.981 * unit_factor("cal/mol/K"), rtol=1e-12
    )
    counts = np.array([[a.numbers.tolist().count(z) for z in ELEMENTS] for a in molecules()])
    sums = counts @ np.array(expected)
    np.testing.assert_allclose(reference_sums(potential, store, "U0").numpy(), sums, rtol=1e-12)
    residual = (store.labels["U0"].numpy() - sums) / counts.sum(axis=1)
    assert float(potential.standards["U0"].shift) == pytest.approx(residual.mean(), rel=1e-9)
    assert float(potential.standards["U0"].scale) == pytest.approx(residual.std(ddof=1), rel=1e-9)
    set_property_standards(potential, store, least_squares=True)
    fitted = np.linalg.lstsq(counts.astype(float), store.labels["U0"].numpy(), rcond=None)[0]
    np.testing.assert_allclose(potential.standards["U0"].reference.numpy(), fitted, rtol=1e-8)


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


# ---------------------------------------------------------------------------------------------------------- splits


def test_the_published_split_is_the_default(qm9: Path) -> None:
    store = datasets.load("qm9")
    splits = make_split(recipe(), store)
    assert splits.method == "published"
    np.testing.assert_array_equal(splits.codes, store.columns["split"])


def test_a_download_without_split_has_one_of_the_published_sizes() -> None:
    """The archive has no split; the sizes are those of the literature."""
    count = 130_831
    z, pos = torch.ones(count, dtype=torch.int64), torch.zeros(count, 3)
    store = Store(z, pos, torch.arange(count + 1), {"U0": torch.zeros(count)}, info={"name": "QM9"})
    splits = make_split(recipe("split={method: published, seed: 3}"), store)
    assert [len(splits.train), len(splits.valid), len(splits.test)] == [110_000, 10_000, 10_831]
    assert splits.hash == make_split(recipe("split={method: published, seed: 3}"), store).hash
    assert splits.hash != make_split(recipe(), store).hash
    with pytest.raises(ConfigError, match="no published split"):
        make_split(recipe("split.method=published", data="frames"), store)


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


# --------------------------------------------------------------------------------------------------- from the shell

TINY = [
    "--set",
    "model.channels=8",
    "--set",
    "model.layers=1",
    "--set",
    "training.epochs=2",
    "--set",
    "training.device=cpu",
]
Run = Callable[..., str]


@pytest.fixture
def run() -> Run:
    def command(*arguments: object) -> str:
        result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.stderr
        return result.stdout

    return command


def test_train_on_all_and_use_the_model(qm9: Path, run: Run) -> None:
    out = qm9 / "out"
    text = run("train", "--data", "qm9", "--target", "all", *TINY, "--out", out)
    assert "split (published)" in text
    assert "references of U0, U, H, G, Cv: isolated atoms of the data set" in text
    for part in ("mu 0.", " D", "bohr³", "bohr²", "cal/mol/K", "meV", "simkit predict"):
        assert part in text
    assert not (out / "nve").exists()
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["units"]["mu"] == "e*angstrom"
    for name in ALL:
        told, inside = metrics["literature"]["test"][name], metrics["test"][f"{name}_mae"]
        assert told["mae"] == pytest.approx(
            inside * unit_factor(LABELS[name].unit) / unit_factor(LABELS[name].error_unit)
        )
    units = {name: metrics["literature"]["test"][name]["unit"] for name in ("mu", "alpha", "r2", "Cv", "gap", "U0")}
    assert units == {"mu": "D", "alpha": "bohr³", "r2": "bohr²", "Cv": "cal/mol/K", "gap": "meV", "U0": "meV"}
    report = (out / "report.md").read_text()
    assert "references of gap: mean of the training data" in report
    assert "electrons per atom in r2" in report
    for name in ("parity.png", "learning_curve.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")

    model = out / "model.safetensors"
    described = run("info", model)
    assert ", ".join(ALL) in described
    assert "references of alpha" in described

    evaluated = run("evaluate", model, "qm9", "--out", qm9 / "errors")
    assert "bohr³" in evaluated
    test = read_recipe(out / "recipe.yaml").split
    assert test.method == "published"
    whole = json.loads((qm9 / "errors" / "metrics.json").read_text())
    assert set(whole["literature"]) == set(ALL)

    given = [molecule("CH3OH"), molecule("H2O")]
    write(qm9 / "in.xyz", given)
    assert "2 structures with mu, alpha" in run("predict", model, qm9 / "in.xyz", "-o", qm9 / "predicted.xyz")
    calculator = simkit.Calculator(model)
    for atoms, before in zip(read(qm9 / "predicted.xyz", ":"), given, strict=True):
        for name in ALL:
            assert atoms.info[name] == pytest.approx(calculator.get_property(name, before), rel=1e-5, abs=1e-7)
    again = run("evaluate", model, qm9 / "predicted.xyz")  # labels of frames that the model gives are found
    assert "alpha" in again


def test_several_targets_and_learned_weights(qm9: Path, run: Run) -> None:
    options = ["--target", "gap", "--target", "mu", "--set", "loss_weights=learned", "--set", "model.pooling=set2set"]
    out = qm9 / "out"
    run("train", "--data", "qm9", *options, *TINY, "--out", out)
    for name in ("model.safetensors", "model_raw.safetensors"):
        potential = simkit.load(out / name)
        assert potential.outputs == ("gap", "mu")
        assert potential.pooling == "set2set"
    assert set(simkit.load(out / "model.safetensors").info["learned_noise"]) == {"gap", "mu"}
    # The raw weights are those of the last step, not the averaged ones.
    raw, best = (simkit.load(out / n).state_dict() for n in ("model_raw.safetensors", "model.safetensors"))
    assert any(not torch.equal(raw[key], best[key]) for key in best)


def test_an_energy_of_qm9_is_still_a_potential(qm9: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simkit.workflows.report.NVE_STEPS", 20)
    text = run("train", "--data", "qm9:G", *TINY, "--out", qm9 / "out")
    assert "split (published)" in text
    assert "simkit md" in text
    potential = simkit.load(qm9 / "out" / "model.safetensors")
    assert "forces" in potential.outputs
    hartree = unit_factor("hartree")
    assert float(potential.reference[0]) == pytest.approx(REFERENCES["G"][1] * hartree)


def test_labels_of_frames_are_read_for_the_target(tmp_path: Path) -> None:
    frames = molecules()[:20]
    tensors = np.random.default_rng(1).normal(size=(20, 3, 3))
    for atoms, tensor in zip(frames, tensors, strict=True):
        atoms.info["polarizability"] = tensor + tensor.T
        atoms.info["gap"] = float(np.trace(tensor))
    write(tmp_path / "frames.xyz", frames)
    settings = ["model.channels=8", "model.layers=1", "training.epochs=1", "training.device=cpu", "split.valid=4"]
    data = {"data": {"name": "frames", "paths": [str(tmp_path / "frames.xyz")]}, "target": ["polarizability", "gap"]}
    report = train(read_recipe(None, settings, data), tmp_path / "out", echo=silent)
    assert {"polarizability_mae", "gap_mae"} <= set(report.metrics["valid"])
    assert set(report.outputs) == {"polarizability", "gap", "alpha"}


def test_a_target_that_the_data_do_not_have(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="the loss names 'gap', but the data hold energy, forces"):
        train(read_recipe(None, ["target=gap"], {"data": {"name": "embedded"}}), tmp_path, echo=silent)


@pytest.mark.data
def test_real_properties_are_learned(data_dir: Path, tmp_path: Path) -> None:
    """On 300 molecules of QM9 the errors fall below those of the references alone."""
    settings = [
        "target=[mu, gap, alpha, U0]",
        "split={train: 300, valid: 100, test: 300}",
        "model={channels: 24, layers: 2}",
        "training={epochs: 12, batch_size: 10, learning_rate: 3e-3, device: cpu, ema_decay: 0.99}",
        "model.references=least_squares",
    ]
    report = train(recipe(*settings), tmp_path, echo=silent)
    store = datasets.load("qm9").select(json.loads((tmp_path / "split.json").read_text())["test"])
    for name in ("mu", "gap", "alpha", "U0"):
        assert report.metrics["test"][f"{name}_rmse"] < 0.9 * label_spread(store, name), name
