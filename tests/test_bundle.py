"""Model files: what is in them, and what a reader is told about files that are not whole or not ours."""

import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import simkit
from simkit import potentials
from simkit.errors import ModelFileError, OutputError
from simkit.potential import Potential


def make(**kwargs: Any) -> Potential:
    return potentials.build("painn", **{"cutoff": 4.0, "elements": [1, 8], "channels": 8, "layers": 1} | kwargs)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good model file."""
    path = tmp_path / "model.safetensors"
    make(outputs=["energy", "dipole"], info={"level_of_theory": "PBE", "data_hash": "ab12"}).save(path)
    return path


def refusal(path: Path) -> str:
    """The message with which loading fails: one line that names the file."""
    with pytest.raises(ModelFileError) as caught:
        simkit.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the header of a model file and nothing else."""
    with safe_open(path, framework="pt") as handle:
        header = json.loads(handle.metadata()["simkit"])
    change(header)
    save_file(load_file(path), path, metadata={"simkit": json.dumps(header)})


# ------------------------------------------------------------------------------------------------------------ good files


def test_header(path: Path) -> None:
    assert potentials.read_header(path) == {
        "format": "simkit-potential",
        "version": 1,
        "architecture": "painn",
        "options": {"channels": 8, "layers": 1, "basis": 20, "cutoff_function": "polynomial", "radial": "gaussian"},
        "cutoff": 4.0,
        "elements": [1, 8],
        "outputs": ["energy", "dipole"],
        "anchored": False,
        "dtype": "float32",
        "units": {"energy": "eV", "length": "angstrom", "charge": "e"},
        "info": {"level_of_theory": "PBE", "data_hash": "ab12"},
    }


def test_painn_without_radial_in_its_header_has_sines(path: Path) -> None:
    def older(header: dict[str, Any]) -> None:
        del header["options"]["radial"]

    rewrite(path, older)
    assert simkit.load(path).options["radial"] == "sine"


def test_everything_comes_back(tmp_path: Path) -> None:
    potential = make(dtype="float64", anchored=True, seed=5, info={"energy_mae": 0.1 + 0.2})
    potential.set_references({1: -13.587222780835477, 8: -2041.8396277138045})
    potential.scale.fill_(1 / 3)
    potential.shift.fill_(-np.pi)
    potential.save(tmp_path / "m.safetensors")
    loaded = simkit.load(str(tmp_path / "m.safetensors"))
    assert loaded.header() == potential.header()
    assert loaded.info == {"energy_mae": 0.1 + 0.2}
    assert not loaded.training
    expected = potential.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    assert loaded.reference.dtype == torch.float64


def test_saving_is_reproducible(tmp_path: Path) -> None:
    """The same model gives the same bytes, also after loading."""
    for name in ("a", "b"):
        make(seed=3).save(tmp_path / name)
    simkit.load(tmp_path / "a").save(tmp_path / "c")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_headers_of_any_length(tmp_path: Path) -> None:
    """The length of its header is the start of a file; the bytes of some lengths look like the start of a pickle."""
    starts = set()
    for size in range(0, 300, 8):
        make(info={"note": "x" * size}).save(tmp_path / "m.safetensors")
        starts.add((tmp_path / "m.safetensors").read_bytes()[0])
        simkit.load(tmp_path / "m.safetensors")
    assert 0x80 in starts


def test_loading_leaves_random_numbers_alone(path: Path) -> None:
    def state() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state(legacy=False))  # noqa: NPY002

    before = state()
    simkit.load(path)
    assert state() == before


# ------------------------------------------------------------------------------------------------------------- bad files


def test_missing_file(tmp_path: Path) -> None:
    assert "no model file at" in refusal(tmp_path / "nowhere.safetensors")
    assert "no model file at" in refusal(tmp_path)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.05, 0.5, 0.999])
def test_truncated_file(path: Path, part: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    assert "may be truncated: copy or download it again" in refusal(path)


@pytest.mark.parametrize("first", [0x80, ord("P")])
def test_truncated_file_that_starts_like_a_pickle(path: Path, first: int) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes([first]) + content[1:200])
    assert "may be truncated" in refusal(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_pytorch_file(path: Path, legacy: bool) -> None:
    torch.save(make().state_dict(), path, _use_new_zipfile_serialization=not legacy)
    assert "is a pickled PyTorch file. simkit does not read pickles" in refusal(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_is_not_executed(path: Path, protocol: int, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    path.write_bytes(pickle.dumps({"state_dict": Trap()}, protocol=protocol))
    assert "pickle" in refusal(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"energy: 3\n" * 50, b"\x89PNG\r\n\x1a\n" + bytes(500), b"\xff" * 64, b"\x10\x00\x00\x00\x00\x00\x00\x00{"],
)
def test_garbage_with_the_right_name(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "is not a complete safetensors file" in refusal(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"simkit": "{"}, {"simkit": "[1]"}, {"simkit": "{}"}])
def test_safetensors_file_of_something_else(path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"weight": torch.ones(3)}, path, metadata=metadata)
    assert "but not one of a simkit potential" in refusal(path)


def test_newer_version_and_other_format(path: Path) -> None:
    rewrite(path, lambda header: header.update(version=2))
    assert "version 2, but this simkit reads simkit-potential up to version 1; install a newer simkit" in refusal(path)
    rewrite(path, lambda header: header.update(version=1, format="simkit-surrogate"))
    assert "has format simkit-surrogate" in refusal(path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda h: h["options"].update(channels=16), "size mismatch"),
        (lambda h: h["options"].update(layers=2), "Missing key"),
        (lambda h: h.update(elements=[1, 6, 8]), "size mismatch"),
        (lambda h: h.update(outputs=["energy"]), "Unexpected key"),
        (lambda h: h["options"].update(chanels=16), "unknown key 'chanels'; did you mean 'channels'?"),
        (lambda h: h["options"].update(cutoff=3.0), "multiple values for keyword argument 'cutoff'"),
        (lambda h: h.update(architecture="pain"), "unknown architecture 'pain'; did you mean 'painn'?"),
        (lambda h: h.pop("cutoff"), "its header lacks 'cutoff'"),
        (lambda h: h.update(cutoff="far"), "the cutoff must be a positive number of angstrom, found 'far'"),
        (lambda h: h.update(cutoff=-1.0), "the cutoff must be a positive number"),
        (lambda h: h.update(elements="HO"), "elements must be atomic numbers"),
        (lambda h: h.update(elements=None), "consistent model"),
        (lambda h: h.update(outputs=["forces"]), "cannot give the output 'forces'"),
        (lambda h: h.update(dtype="float8"), "dtype must be float32 or float64"),
        (lambda h: h.update(info="none"), "consistent model"),
        (lambda h: h.update(options=7), "consistent model"),
    ],
)
def test_weights_and_header_that_do_not_fit(
    path: Path, change: Callable[[dict[str, Any]], None], expected: str
) -> None:
    rewrite(path, change)
    message = refusal(path)
    assert "does not hold a consistent model" in message
    assert expected in message
    assert len(message) < 300 + len(str(path)) + 60


# --------------------------------------------------------------------------------------------------------------- saving


def test_failed_saving_keeps_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = path.read_bytes()
    potential = simkit.load(path)
    potential.info["when"] = object()
    with pytest.raises(TypeError, match="not JSON serializable"):
        potential.save(path)
    potential.info.clear()

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"cannot write .*model\.safetensors: No space left on device"):
        potential.save(path)
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_unwritable_output(path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        make().save(path.parent / "missing" / "model.safetensors")
    with pytest.raises(OutputError, match="cannot write"):
        make().save(path / "model.safetensors")  # a file where a folder should be
    with pytest.raises(OutputError, match="cannot write"):
        make().save(path.parent)
