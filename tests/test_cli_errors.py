"""The command line when something is wrong: one line that says what, and what to do."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from shell import TINY, run

from simkit import potentials
from simkit.units import HARTREE


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    potentials.build("painn", cutoff=4.0, elements=[1, 6, 8], channels=8, layers=1).save(path)
    return path


def frames(count: int = 4) -> list[Atoms]:
    """Ethanol with energies (near the true total energy, eV) and forces."""
    made = []
    rng = np.random.default_rng(0)
    for _ in range(count):
        atoms = molecule("CH3CH2OH")
        atoms.positions += rng.normal(scale=0.02, size=(9, 3))
        energy, forces = -4217.0 + rng.normal(scale=0.1), rng.normal(scale=0.5, size=(9, 3))
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        made.append(atoms)
    return made


Case = Callable[[Path, Path], tuple[list[object], list[str]]]
"""Folder and model file -> what is typed, and what the line on stderr must say."""


def missing_label(folder: Path, model: Path) -> tuple[list[object], list[str]]:
    given = frames()
    given[2].calc = SinglePointCalculator(given[2], energy=-4217.0)
    write(folder / "frames.xyz", given)
    return ["train", "--data", folder / "frames.xyz", "--out", folder / "out"], ["forces", "frame 2 of", "frames.xyz"]


def nan_label(folder: Path, model: Path) -> tuple[list[object], list[str]]:
    given = frames()
    given[1].calc.results["forces"][3, 0] = math.nan
    write(folder / "frames.xyz", given)
    return ["train", "--data", folder / "frames.xyz", "--out", folder / "out"], ["forces", "frame 1 of", "not finite"]


def truncated_model(folder: Path, model: Path) -> tuple[list[object], list[str]]:
    (folder / "cut.safetensors").write_bytes(model.read_bytes()[:-500])
    return ["info", folder / "cut.safetensors"], ["cut.safetensors", "truncated", "copy or download"]


def pickled_model(folder: Path, model: Path) -> tuple[list[object], list[str]]:
    torch.save({"weights": torch.zeros(3)}, folder / "model.pt")
    write(folder / "in.xyz", molecule("CH4"))
    return ["predict", folder / "model.pt", folder / "in.xyz", "-o", folder / "o.xyz"], ["pickled", "does not read"]


def pickle_called_safetensors(folder: Path, model: Path) -> tuple[list[object], list[str]]:
    torch.save({"weights": torch.zeros(3)}, folder / "evil.safetensors")
    return ["info", folder / "evil.safetensors"], ["pickled", "does not read"]


def unknown_section(folder: Path, model: Path) -> tuple[list[object], list[str]]:
    (folder / "recipe.yaml").write_text("data: {name: embedded}\ntrainig: {epochs: 3}\n")
    return ["train", folder / "recipe.yaml", "--out", folder / "out"], ["recipe.yaml", "'trainig'", "'training'"]


def unknown_recipe_key(folder: Path, model: Path) -> tuple[list[object], list[str]]:
    command = ["train", "--data", "embedded", "--set", "training.epoch=3", "--out", folder / "out"]
    return command, ["'training.epoch'", "did you mean 'epochs'"]


def unknown_model_option(folder: Path, model: Path) -> tuple[list[object], list[str]]:
    command = ["train", "--data", "embedded", "--set", "model.chanels=8", "--out", folder / "out"]
    return command, ["'chanels'", "did you mean 'channels'"]


def unknown_architecture(folder: Path, model: Path) -> tuple[list[object], list[str]]:
    command = ["train", "--data", "embedded", "--model", "pain", "--out", folder / "out"]
    return command, ["'pain'", "did you mean 'painn'"]


def unknown_element(folder: Path, model: Path) -> tuple[list[object], list[str]]:
    write(folder / "silicon.xyz", bulk("Si"))
    return ["predict", model, folder / "silicon.xyz", "-o", folder / "o.xyz"], ["H, C, O", "Si"]


def empty_data(folder: Path, model: Path) -> tuple[list[object], list[str]]:
    (folder / "empty.xyz").touch()
    return ["train", "--data", folder / "empty.xyz", "--out", folder / "out"], ["empty.xyz", "no structure"]


def empty_folder(folder: Path, model: Path) -> tuple[list[object], list[str]]:
    (folder / "frames").mkdir()
    return ["train", "--data", folder / "frames", "--out", folder / "out"], ["frames holds no file"]


def missing_data(folder: Path, model: Path) -> tuple[list[object], list[str]]:
    return ["train", "--data", "embeded", "--out", folder / "out"], ["'embeded'", "did you mean 'embedded'"]


def missing_structure(folder: Path, model: Path) -> tuple[list[object], list[str]]:
    return ["relax", model, folder / "no.xyz", "--out", folder / "out"], ["there is no file", "no.xyz"]


def several_structures(folder: Path, model: Path) -> tuple[list[object], list[str]]:
    write(folder / "in.xyz", frames())
    return ["relax", model, folder / "in.xyz", "--out", folder / "out"], ["4 structures", "in.xyz@0"]


def unwritable_folder(folder: Path, model: Path) -> tuple[list[object], list[str]]:
    (folder / "file").touch()
    return ["train", "--data", "embedded", "--out", folder / "file" / "out"], ["cannot write", "choose another"]


def unwritable_file(folder: Path, model: Path) -> tuple[list[object], list[str]]:
    write(folder / "in.xyz", molecule("CH4"))
    return ["predict", model, folder / "in.xyz", "-o", folder / "no" / "o.xyz"], ["cannot write", "no folder"]


def existing_output(folder: Path, model: Path) -> tuple[list[object], list[str]]:
    write(folder / "in.xyz", molecule("CH4"))
    return ["predict", model, folder / "in.xyz", "-o", folder / "in.xyz"], ["in.xyz exists", "--overwrite"]


def nothing_to_compare(folder: Path, model: Path) -> tuple[list[object], list[str]]:
    write(folder / "in.xyz", molecule("CH4"))
    return ["evaluate", model, folder / "in.xyz"], ["nothing to compare", "in.xyz"]


def unknown_method(folder: Path, model: Path) -> tuple[list[object], list[str]]:
    write(folder / "in.xyz", molecule("CH4"))
    return ["label", folder / "in.xyz", "--method", "gfn7", "-o", folder / "o.xyz"], ["'gfn7'", "gfn2-xtb"]


BROKEN: list[Case] = [
    missing_label,
    nan_label,
    truncated_model,
    pickled_model,
    pickle_called_safetensors,
    unknown_section,
    unknown_recipe_key,
    unknown_model_option,
    unknown_architecture,
    unknown_element,
    empty_data,
    empty_folder,
    missing_data,
    missing_structure,
    several_structures,
    unwritable_folder,
    unwritable_file,
    existing_output,
    nothing_to_compare,
    unknown_method,
]


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.__name__)
def test_broken_input_is_one_line(case: Case, tmp_path: Path, model: Path) -> None:
    command, expected = case(tmp_path, model)
    before = sorted(path for path in tmp_path.rglob("*") if path.suffix == ".xyz")
    status, output, message = run(*command)
    assert status == 1
    assert message.startswith("error: ")
    assert message.count("\n") == 1, message
    assert "Traceback" not in output + message
    for part in expected:
        assert part in message, message
    assert sorted(path for path in tmp_path.rglob("*") if path.suffix == ".xyz") == before, "an output was left behind"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    "command",
    [
        ["predict", "MODEL", "IN", "-o", "OUT.xyz", "--device", "cuda"],
        ["evaluate", "MODEL", "embedded:test", "--device", "cuda"],
        ["md", "MODEL", "IN", "--out", "OUT", "--device", "cuda:1"],
        ["train", "--data", "embedded", "--set", "training.device=cuda", *TINY, "--out", "OUT"],
    ],
    ids=lambda command: command[0],
)
def test_a_gpu_that_is_not_there(command: list[str], tmp_path: Path, model: Path) -> None:
    write(tmp_path / "in.xyz", molecule("CH4"))
    names = {"MODEL": model, "IN": tmp_path / "in.xyz", "OUT": tmp_path / "out", "OUT.xyz": tmp_path / "out.xyz"}
    status, _, message = run(*(names.get(word, word) for word in command))
    assert status == 1
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert "CUDA" in message
    assert "cpu" in message
    assert not (tmp_path / "out.xyz").exists()


def test_wrong_unit_is_warned_of_with_the_likely_cause(tmp_path: Path, model: Path) -> None:
    given = frames()
    for atoms in given:
        atoms.calc.results["energy"] /= HARTREE
    write(tmp_path / "hartree.xyz", given)
    for command in (["info", tmp_path / "hartree.xyz"], ["evaluate", model, tmp_path / "hartree.xyz"]):
        status, text, _ = run(*command)
        assert status == 0
        warning = next(line for line in text.splitlines() if "warning" in line.lower())
        assert "eV per atom" in warning
        assert "hartree; give energy_unit='hartree'" in warning
    status, text, _ = run("evaluate", model, tmp_path / "hartree.xyz", "--energy-unit", "hartree")
    assert status == 0
    # The forces are in eV/angstrom, so that only they are wrong now.
    assert "the energies are" not in text


def test_options_of_labels_belong_to_files(model: Path) -> None:
    status, _, message = run("evaluate", model, "embedded:test", "--energy", "E")
    assert status == 1
    assert "fixed names" in message
