"""Units, files and progress: the ground floor."""

import errno
import json
import math
import os
import stat
from pathlib import Path

import ase.units
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simkit import files, progress, units
from simkit.errors import ConfigError, OutputError

ASE = ase.units.create_units("2018")  # the same CODATA set as simkit's
# ase.units values are eV-based; its unit of time is angstrom*sqrt(amu/eV).
INDEPENDENT = {
    "hartree": ASE["Hartree"],
    "Ha": ASE["Hartree"],
    "rydberg": ASE["Rydberg"],
    "bohr": ASE["Bohr"],
    "kcal/mol": ASE["kcal"] / ASE["mol"],
    "kJ/mol": ASE["kJ"] / ASE["mol"],
    "cal/mol": ASE["kcal"] / ASE["mol"] / 1000,
    "debye": ASE["Debye"],
    "GPa": ASE["GPa"],
    "kbar": 1e8 * ASE["Pascal"],
    "bar": 1e5 * ASE["Pascal"],
    "nm": ASE["nm"],
    "meV": 1e-3,
    "ps": 1000.0,
    "kcal/mol/angstrom": ASE["kcal"] / ASE["mol"],
    "hartree/bohr": ASE["Hartree"] / ASE["Bohr"],
    "Hartree / Bohr": ASE["Hartree"] / ASE["Bohr"],
    "eV/angstrom^3": 1.0,
    "hartree/bohr^3": ASE["Hartree"] / ASE["Bohr"] ** 3,
    "bohr^2": ASE["Bohr"] ** 2,
    "e*bohr": ASE["Bohr"],
}


@pytest.mark.parametrize(("unit", "expected"), INDEPENDENT.items())
def test_factor_agrees_with_ase(unit: str, expected: float) -> None:
    # 1e-7: ASE's and simkit's constants are rounded differently in the last published digits.
    assert units.unit_factor(unit) == pytest.approx(expected, rel=1e-7)


def test_constants_agree_with_ase() -> None:
    assert pytest.approx(ASE["kB"], rel=1e-7) == units.BOLTZMANN
    # acceleration of 1 amu under 1 eV/angstrom is 1 in ASE's units, whose time unit is 1/ase.units.fs femtoseconds
    assert pytest.approx(ASE["fs"] ** 2, rel=1e-7) == units.FORCE_TO_ACCELERATION


names = st.sampled_from(sorted(units.UNITS))


@given(first=names, second=names, third=names, power=st.integers(1, 4))
def test_factor_is_a_product(first: str, second: str, third: str, power: int) -> None:
    value = {name: units.UNITS[name] for name in (first, second, third)}
    expected = value[first] * value[second] ** power / value[third]
    assert units.unit_factor(f"{first}*{second}^{power}/{third}") == pytest.approx(expected, rel=1e-12)


@given(unit=names, value=st.floats(-1e6, 1e6))
def test_round_trip(unit: str, value: float) -> None:
    inside = value * units.unit_factor(unit)
    assert inside * units.unit_factor(f"1/{unit}") == pytest.approx(value, rel=1e-12)
    assert units.unit_factor(unit) == units.unit_factor(unit.upper()) == units.unit_factor(f" {unit} ")


@pytest.mark.parametrize("unit", ["furlong", "kcal/mole", "eV/angstroem", "hartree bohr"])
def test_unknown_unit_is_refused(unit: str) -> None:
    with pytest.raises(ConfigError, match="known units: .*hartree") as caught:
        units.unit_factor(unit)
    assert repr(unit) in str(caught.value)


@pytest.mark.parametrize("unit", ["", " ", "/", "eV/", "/eV", "eV^", "eV^-1", "eV//a", "eV**2", "eV^2^3", "eV^2a"])
def test_malformed_unit_is_refused(unit: str) -> None:
    with pytest.raises(ConfigError) as caught:
        units.unit_factor(unit)
    assert repr(unit) in str(caught.value)


def test_all_units_are_finite_and_positive() -> None:
    assert all(math.isfinite(value) and value > 0 for value in units.UNITS.values())


def test_atomic_path_replaces(tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    target.write_text("old")
    with files.atomic_path(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".safetensors"
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_atomic_path_keeps_the_old_file_on_failure(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "model.npz"
    target.write_text("old")
    with pytest.raises(error), files.atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_path_gives_the_mode_of_open(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with files.atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_atomic_path_without_a_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write .*missing"), files.atomic_path(tmp_path / "missing" / "a.txt"):
        pytest.fail("the body must not run")


def test_atomic_path_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*a\.txt"), files.atomic_path(tmp_path / "file" / "a.txt"):
        pytest.fail("the body must not run")


def test_atomic_path_onto_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="cannot write"), files.atomic_path(tmp_path / "out") as temporary:
        temporary.write_text("a")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_atomic_path_does_not_rename_errors_of_the_body(tmp_path: Path) -> None:
    """An input that is missing while an output is being written is not an unwritable output."""
    with pytest.raises(FileNotFoundError, match=r"input\.xyz"), files.atomic_path(tmp_path / "a.txt"):
        (tmp_path / "input.xyz").read_text()


def test_atomic_path_reports_a_full_disk(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"cannot write .*a\.txt: No space left"),
        files.atomic_path(tmp_path / "a.txt"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_write_json_and_text(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"b": 1, "a": [0.1, None]})
    assert list(json.loads((tmp_path / "a.json").read_text())) == ["b", "a"]
    files.write_text(tmp_path / "a.txt", "Å\n")
    assert (tmp_path / "a.txt").read_bytes() == "Å\n".encode()
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "a.json", {"b": object()})
    assert json.loads((tmp_path / "a.json").read_text())["b"] == 1


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")  # the example of FIPS 180-2, appendix B.1
    assert files.sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_ensure_output_dir(tmp_path: Path) -> None:
    folder = files.ensure_output_dir(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert files.ensure_output_dir(folder) == folder
    assert list(folder.iterdir()) == []
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OutputError, match="cannot write to the output folder"):
            files.ensure_output_dir(bad)


def test_folders_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMKIT_DATA_DIR", str(tmp_path))
    assert files.data_dir() == tmp_path
    monkeypatch.delenv("SIMKIT_DATA_DIR")
    assert files.data_dir() is None
    monkeypatch.setenv("SIMKIT_CACHE_DIR", str(tmp_path / "c"))
    assert files.cache_dir() == tmp_path / "c"
    assert not (tmp_path / "c").exists()
    monkeypatch.delenv("SIMKIT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_dir() == tmp_path / "simkit"


def test_what_a_killed_process_left_is_discarded(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint.npz"
    with files.atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        left = temporary.with_name(temporary.name[:-4] + "x.npz")  # as if the process had ended here
        left.write_bytes(b"half")
    for other in ("checkpoint-2.npz", ".checkpoint.json", ".other-1.npz"):
        (tmp_path / other).touch()
    files.discard_unfinished(target)
    assert {path.name for path in tmp_path.iterdir()} == {
        target.name,
        "checkpoint-2.npz",
        ".checkpoint.json",
        ".other-1.npz",
    }


def test_track_is_quiet_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track(range(3), "counting")) == [0, 1, 2]
    assert list(progress.track((i for i in range(3)), "counting", total=3)) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")


def test_track_draws_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert list(progress.track(range(3), "counting")) == [0, 1, 2]
    out, err = capsys.readouterr()
    assert out == ""
    assert "counting" in err
