"""What the commands call: naming data and structures, evaluating, predicting, describing, and the quickstart."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read, write

import simkit
from simkit import potentials
from simkit.errors import ConfigError, DataError, OutputError
from simkit.training.domain import closest_distances
from simkit.training.recipe import read_recipe
from simkit.workflows import quickstart as quickstart_module
from simkit.workflows.evaluate import evaluate
from simkit.workflows.info import describe_file
from simkit.workflows.predict import predict_file
from simkit.workflows.prepare import prepare
from simkit.workflows.quickstart import quickstart
from simkit.workflows.structures import data_source, open_potential, read_structure, read_structures, write_structures
from simkit.workflows.text import table
from simkit.workflows.train import train


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with energy and dipole that knows what it was trained on."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    store = simkit.datasets.load("embedded").select(range(20))
    potential = potentials.build(
        "painn", cutoff=4.0, elements=[1, 6, 8, 14], channels=8, layers=1, outputs=("energy", "dipole"), dtype="float64"
    )
    potential.info.update(
        domain={"closest": closest_distances(store.with_neighbors(4.0))},
        level_of_theory="GFN2-xTB",
        data_hash=store.hash(),
        errors={"test": {"energy_mae": 0.002, "energy_rmse": 0.003}},
    )
    potential.save(path)
    return path


# ------------------------------------------------------------------------------------------------- what is named at the shell


def test_names_of_data_sets() -> None:
    assert data_source(["embedded"]) == {"name": "embedded"}
    assert data_source(["qm9:U0"]) == {"name": "qm9", "target": "U0"}
    assert data_source(["rmd17:ethanol:test_01"]) == {"name": "rmd17", "molecule": "ethanol", "split": "test_01"}
    with pytest.raises(ConfigError, match="embedded:SPLIT"):
        data_source(["embedded:test:more"])
    with pytest.raises(ConfigError, match="give it alone"):
        data_source(["embedded", "frames.xyz"])
    with pytest.raises(DataError, match="known data sets: embedded, qm9, rmd17"):
        data_source(["xyz"])


def test_paths_of_data(tmp_path: Path) -> None:
    (tmp_path / "system").mkdir()
    (tmp_path / "system" / "type.raw").touch()
    write(tmp_path / "a.xyz", molecule("H2O"))
    file, system = str(tmp_path / "a.xyz"), str(tmp_path / "system")
    assert data_source([file]) == {"name": "frames", "paths": [file]}
    assert data_source([str(tmp_path / "*.xyz")])["name"] == "frames"
    assert data_source([system]) == {"name": "deepmd", "paths": [system]}
    with pytest.raises(ConfigError, match="cannot be opened together"):
        data_source([file, system])


def test_structures_by_index(tmp_path: Path) -> None:
    given = [molecule(name) for name in ("H2O", "CH4", "NH3", "CO")]
    path = tmp_path / "mole@cules.xyz"
    write(path, given)

    def formulas(where: str) -> list[str]:
        return [atoms.get_chemical_formula() for atoms in read_structures(where)]

    assert formulas(str(path)) == ["H2O", "CH4", "H3N", "CO"]
    assert formulas(f"{path}@-1") == ["CO"]
    assert formulas(f"{path}@1:3") == ["CH4", "H3N"]
    assert formulas(f"{path}@::2") == ["H2O", "H3N"]
    assert read_structure(f"{path}@0").get_chemical_formula() == "H2O"
    for index, text in (
        ("4", "none at '4'"),
        ("9:", "none at '9:'"),
        ("x", "cannot read the index"),
        ("0:1:0", "cannot"),
    ):
        with pytest.raises(DataError, match=text):
            read_structures(f"{path}@{index}")


@pytest.mark.parametrize("suffix", [".xyz", ".extxyz", ".xyz.gz", ".traj", ".db"])
def test_structures_are_written_and_read_back(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"out{suffix}"
    write_structures(path, [molecule("H2O"), bulk("Si")])
    found = read_structures(path)
    assert [atoms.get_chemical_formula() for atoms in found] == ["H2O", "Si2"]
    np.testing.assert_allclose(found[1].cell.array, bulk("Si").cell.array, atol=1e-7)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_store_is_read_as_structures(tmp_path: Path) -> None:
    simkit.datasets.load("embedded").select(range(3)).save(tmp_path / "store.npz")
    assert [len(atoms) for atoms in read_structures(tmp_path / "store.npz")] == [9, 9, 9]


def test_dtype_is_that_of_the_file_unless_asked_for(model: Path) -> None:
    assert str(open_potential(model).dtype) == "torch.float64"
    assert str(open_potential(model, dtype="float32").dtype) == "torch.float32"
    with pytest.raises(ConfigError, match="float16"):
        open_potential(model, dtype="float16")


# ------------------------------------------------------------------------------------------------------------- evaluation


def test_errors_equal_those_computed_by_hand(model: Path, tmp_path: Path) -> None:
    given = simkit.datasets.load("embedded").to_atoms(range(20, 40))
    for k, atoms in enumerate(given):
        atoms.info["kind"] = "odd" if k % 2 else "even"
    write(tmp_path / "frames.xyz", given)
    data = {"name": "frames", "paths": str(tmp_path / "frames.xyz"), "group": "kind"}
    result = evaluate(model, data, out=tmp_path / "out", batch_size=7, echo=silent)

    calculator = simkit.Calculator(model, dtype="float64")
    predicted = calculator.batch(given)
    energy = np.array([p["energy"] - a.get_potential_energy() for p, a in zip(predicted, given, strict=True)])
    forces = np.array([p["forces"] - a.get_forces() for p, a in zip(predicted, given, strict=True)])
    assert result.metrics["energy_mae"] == pytest.approx(np.abs(energy).mean(), rel=1e-6)
    assert result.metrics["energy_mae_per_atom"] == pytest.approx(np.abs(energy).mean() / 9, rel=1e-6)
    assert result.metrics["forces_rmse"] == pytest.approx(np.sqrt((forces**2).mean()), rel=1e-6)
    assert result.elements["C"]["forces_mae"] == pytest.approx(
        np.abs(forces[:, given[0].numbers == 6]).mean(), rel=1e-6
    )
    assert result.groups["odd"]["energy_mae"] == pytest.approx(np.abs(energy[1::2]).mean(), rel=1e-6)
    reference = np.array([a.get_potential_energy() for a in given])
    assert result.spread["energy"] == pytest.approx(np.abs(reference - reference.mean()).mean(), rel=1e-6)

    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert content["evaluated"]["forces_mae"] == result.metrics["forces_mae"]
    assert content["structures"] == 20
    text = str(result)
    assert "odd" in text
    assert "MAE of the mean" in text
    with pytest.raises(OutputError, match="overwrite"):
        evaluate(model, data, out=tmp_path / "out", echo=silent)


def test_evaluation_warns_of_what_the_model_does_not_know(model: Path, tmp_path: Path) -> None:
    given = simkit.datasets.load("embedded").to_atoms(range(2))
    given[1].set_distance(0, 1, 1.0)
    path = tmp_path / "frames.xyz"
    write(path, given)
    data = {"name": "frames", "paths": str(path), "level_of_theory": "PBE"}
    warnings = "\n".join(evaluate(model, data, echo=silent).warnings)
    assert "GFN2-xTB" in warnings
    assert "PBE" in warnings
    assert "the closest in the training data" in warnings


# -------------------------------------------------------------------------------------------------------------- prediction


def test_predictions_equal_the_calculator(model: Path, tmp_path: Path) -> None:
    """Molecules and crystals mixed: each gets what is defined for it, in the order of the file."""
    given = [molecule("CH4"), bulk("Si"), molecule("H2O"), bulk("Si", cubic=True)]
    given[2].info["note"] = "kept"
    given[2].info["energy"] = 5.0  # a label it came with
    write(tmp_path / "in.traj", given)
    result = predict_file(model, tmp_path / "in.traj", tmp_path / "out.xyz")
    assert set(result.properties) == {"energy", "forces", "stress", "dipole", "charges"}
    assert any("the pair Si-Si" in text for text in result.warnings)
    found = read(tmp_path / "out.xyz", index=":")
    assert found[2].info["note"] == "kept"
    calculator = simkit.Calculator(model, dtype="float64")
    for atoms, before in zip(found, given, strict=True):
        names = ["energy", "forces", "charges", "stress" if before.pbc.all() else "dipole"]
        (expected,) = calculator.batch([before], names)
        assert set(atoms.calc.results) == set(names)
        for name in names:
            np.testing.assert_allclose(atoms.calc.results[name], expected[name], atol=2e-8)


def test_a_format_that_loses_the_results_is_refused(model: Path, tmp_path: Path) -> None:
    write(tmp_path / "in.xyz", molecule("CH4"))
    with pytest.raises(ConfigError, match="does not keep energy and forces"):
        predict_file(model, tmp_path / "in.xyz", tmp_path / "out.cif")
    with pytest.raises(ConfigError, match=r"cannot tell how to write out\.abc"):
        predict_file(model, tmp_path / "in.xyz", tmp_path / "out.abc")
    write(tmp_path / "out.traj", molecule("H2O"))
    with pytest.raises(OutputError, match="exists"):
        predict_file(model, tmp_path / "in.xyz", tmp_path / "out.traj")
    predict_file(model, tmp_path / "in.xyz", tmp_path / "out.traj", overwrite=True)
    assert read(tmp_path / "out.traj").get_chemical_formula() == "CH4"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.xyz", "out.traj"]


# ------------------------------------------------------------------------------------------------------------- description


def test_description_of_a_model(model: Path) -> None:
    text = describe_file(model)
    for part in ("painn", "4 angstrom", "H C O Si", "float64", "GFN2-xTB", "dipole", "closest distances", "2 meV"):
        assert part in text


def test_description_of_data(tmp_path: Path) -> None:
    write(tmp_path / "frames.xyz", simkit.datasets.load("embedded").to_atoms([0]))
    assert "forces" in describe_file(tmp_path / "frames.xyz")
    assert "1500 structures" in describe_file("embedded")
    simkit.datasets.load("embedded").select([0, 1]).save(tmp_path / "store.npz")
    assert "2 structures" in describe_file(tmp_path / "store.npz")
    with pytest.raises(DataError, match="no file, folder or data set"):
        describe_file(tmp_path / "nothing")


def test_table_is_aligned() -> None:
    assert table(["a", "long"], [["first", "1"], ["b", "100000"]]).splitlines() == [
        "a        long",
        "-----  ------",
        "first       1",
        "b      100000",
    ]


# -------------------------------------------------------------------------------------------------------------- quickstart


def test_quickstart_goes_on_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simkit.workflows.report.NVE_STEPS", 20)
    lines: list[str] = []

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(quickstart_module, "run_md", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quickstart(tmp_path, epochs=1, channels=8, md_steps=20, echo=lines.append)
    log = (tmp_path / "training" / "log.csv").read_text()
    result = quickstart(tmp_path, epochs=1, channels=8, md_steps=20, echo=lines.append)
    assert (tmp_path / "training" / "log.csv").read_text() == log
    assert result.dynamics.steps == 20
    assert np.isfinite(result.training.metrics["test"]["forces_mae"])
    text = "\n".join(lines)
    for part in ("MAE of the mean", "meV/Å", "drift", "What to type next", "learning_curve.png"):
        assert part in text
    # Everything that it names is there.
    for name in ("model.safetensors", "report.md", "learning_curve.png", "parity.png"):
        assert (tmp_path / "training" / name).is_file()
    for name in ("trajectory.traj", "thermo.csv", "energy.png", "temperature.png"):
        assert (tmp_path / "md" / name).is_file()
    atoms = read(tmp_path / "ethanol.xyz")
    assert isinstance(atoms, Atoms)
    assert len(atoms) == 9


def test_other_data_replace_those_of_the_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data: {name: rmd17, molecule: ethanol}\ntest: {name: rmd17, molecule: ethanol, split: test_01}\n"
        "model: {channels: 8}\n"
    )
    kept = read_recipe(recipe, ["data.molecule=aspirin"])
    assert kept.data.options == {"molecule": "aspirin"}
    assert kept.test is not None
    replaced = read_recipe(recipe, overrides={"data": {"name": "frames", "paths": ["mine.xyz"]}})
    assert replaced.data.options == {"paths": ["mine.xyz"]}
    assert replaced.test is None
    assert replaced.model.options == {"channels": 8}


def test_a_refused_resume_leaves_the_recipe_alone(tmp_path):
    settings = [
        "model.channels=4",
        "model.layers=1",
        "training.epochs=1",
        "training.device=cpu",
        "split.train=8",
        "split.valid=2",
    ]
    data = {"data": {"name": "embedded"}}
    train(read_recipe(None, settings, data), tmp_path, echo=lambda _: None)
    before = (tmp_path / "recipe.yaml").read_bytes()
    with pytest.raises(OutputError, match="belongs to another training"):
        train(
            read_recipe(None, [*settings, "training.learning_rate=0.01"], data),
            tmp_path,
            resume=True,
            echo=lambda _: None,
        )
    assert (tmp_path / "recipe.yaml").read_bytes() == before


def test_the_number_of_neighbors_is_that_of_the_training_data(tmp_path: Path) -> None:
    """Ethanol has nine atoms, all within the cutoff: eight neighbors each."""
    settings = [
        "data.name=embedded",
        "model.name=mace",
        "model.channels=4",
        "model.cutoff=20.0",
        "split.method=published",
    ]
    asked = prepare(read_recipe(None, settings), tmp_path, silent)
    given = prepare(read_recipe(None, [*settings, "model.neighbors=3.0"]), tmp_path, silent)
    assert (asked.potential.options["neighbors"], given.potential.options["neighbors"]) == (8.0, 3.0)
