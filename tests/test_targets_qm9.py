"""Properties of QM9 as targets: the published references and split, and training, evaluation and prediction from the shell."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.io import read, write
from known_properties import ELEMENTS, known_labels, model_for, molecules, recipe
from typer.testing import CliRunner

import simkit
from simkit import cli, datasets
from simkit.datasets.qm9 import REFERENCES, UNITS
from simkit.datasets.store import Store
from simkit.errors import ConfigError, LabelError
from simkit.graph import LABELS
from simkit.training.recipe import read_recipe
from simkit.training.references import label_spread, reference_sums, set_property_standards
from simkit.training.splitting import make_split
from simkit.training.targets import ALL
from simkit.units import unit_factor
from simkit.workflows.train import train


def silent(_: str) -> None:
    pass


# ---------------------------------------------------------------------------------------------- data that are known


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
        "training={epochs: 20, batch_size: 10, learning_rate: 3e-3, device: cpu, ema_decay: 0.99}",
        "model.references=least_squares",
    ]
    report = train(recipe(*settings), tmp_path, echo=silent)
    store = datasets.load("qm9").select(json.loads((tmp_path / "split.json").read_text())["test"])
    for name in ("mu", "gap", "alpha", "U0"):
        assert report.metrics["test"][f"{name}_rmse"] < 0.9 * label_spread(store, name), name
