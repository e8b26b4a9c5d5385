"""`simkit verify` and `simkit bench`: differences, times and memory beside what is known otherwise, and exit status."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.io import write
from ase.neighborlist import neighbor_list
from shell import run

import simkit
from simkit import potentials
from simkit.fast import painn
from simkit.fast.potential import Comparison
from simkit.fast.tables import HermiteTables
from simkit.graph import AtomGraph
from simkit.workflows import bench as bench_module
from simkit.workflows.bench import bench, repeated
from simkit.workflows.fast_path import FastPathCheck, check_fast_path
from simkit.workflows.peak_memory import Forecast, forecast, free_bytes, peak_bytes

CUTOFF = 4.0
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small models of architectures with and without a fast path."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(5)
    for name in ("painn", "schnet"):
        potential = potentials.build(name, cutoff=CUTOFF, elements=[1, 6, 8, 14], channels=16, layers=2)
        potential.set_references({1: -13.6, 6: -1027.5, 8: -2041.3, 14: -7800.0})
        potential.save(folder / f"{name}.safetensors")
    potentials.build("nequip", cutoff=CUTOFF, elements=[6, 1, 8], channels=4, layers=1).save(
        folder / "nequip.safetensors"
    )
    dipole = potentials.build("painn", cutoff=CUTOFF, elements=[1, 6, 8], channels=8, layers=1, outputs=("dipole",))
    dipole.save(folder / "dipole.safetensors")
    return folder


def frames(count: int = 2) -> list[Atoms]:
    """Silicon and ethanol in turns."""
    made = []
    for k in range(count):
        atoms = molecule("CH3CH2OH") if k % 2 else bulk("Si", cubic=True)
        atoms.rattle(0.1, seed=k)
        made.append(atoms)
    return made


class Wrong(HermiteTables):
    """Tables that are off by a part in a hundred."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.values = [1.01 * values for values in self.values]


# --------------------------------------------------------------------------------------------------------------- verify


def by_calculator(model: Path, structures: Sequence[Atoms], dtype: str, fast: bool) -> list[dict[str, Any]]:
    calculator = simkit.Calculator(model, dtype=dtype, fast=fast)
    found = []
    for atoms in structures:
        names = ["energy", "forces", *(["stress"] if atoms.pbc.all() else [])]
        found.append({name: calculator.get_property(name, atoms) for name in names})
    return found


@pytest.mark.parametrize("name", ["painn", "schnet"])
def test_differences_are_those_between_calculators(name: str, models: Path) -> None:
    structures, path = frames(3), models / f"{name}.safetensors"
    check = check_fast_path(potentials.load(path), structures)
    ways = {
        "fast": by_calculator(path, structures, "float32", True),
        "reference": by_calculator(path, structures, "float32", False),
        "float64": by_calculator(path, structures, "float64", False),
    }
    assert set(check.differences) == {("fast", "reference"), ("fast", "float64"), ("reference", "float64")}
    for (a, b), found in check.differences.items():
        forces = [one["forces"] - other["forces"] for one, other in zip(ways[a], ways[b], strict=True)]
        every = np.concatenate([f.ravel() for f in forces])
        energies = [
            abs(one["energy"] - other["energy"]) / len(atoms)
            for one, other, atoms in zip(ways[a], ways[b], structures, strict=True)
        ]
        stresses = [
            np.abs(one["stress"] - other["stress"]).max()
            for one, other in zip(ways[a], ways[b], strict=True)
            if "stress" in one
        ]
        assert len(stresses) == 2
        # The calculator's edges differ in order, which shows in the last digits of float32.
        assert found.force == pytest.approx(np.abs(every).max(), rel=0.3, abs=5e-8)
        assert found.force_rms == pytest.approx(np.sqrt(np.mean(every**2)), rel=0.3, abs=2e-8)
        assert found.energy == pytest.approx(max(energies), rel=0.3, abs=5e-8)
        assert found.stress == pytest.approx(max(stresses), rel=0.3, abs=1e-9)
    assert check.largest_force == pytest.approx(max(np.abs(r["forces"]).max() for r in ways["float64"]), rel=1e-5)
    assert 1e-9 < check.differences["fast", "reference"].force < 1e-5
    assert not check.disagreeing


@pytest.mark.parametrize("name", ["painn", "schnet"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_verify_tells_that_the_fast_path_holds(name: str, dtype: str, tmp_path: Path, models: Path) -> None:
    write(tmp_path / "in.xyz", frames(4))
    status, text, message = run("verify", models / f"{name}.safetensors", tmp_path / "in.xyz", "--dtype", dtype)
    assert (status, message) == (0, "")
    assert "the fast path holds" in text
    assert "4 of 4 structures" in text
    assert "8 to 9 atoms" in text
    assert "tables of" in text
    assert ("reference - float64" in text) == (dtype == "float32")
    assert all(quantity in text for quantity in ("largest force", "root mean square", "energy", "stress", "allowed"))


def test_verify_without_a_fast_path_compares_precisions(tmp_path: Path, models: Path) -> None:
    write(tmp_path / "in.xyz", frames(2)[1])
    for dtype in ("float32", "float64"):
        status, text, message = run("verify", models / "nequip.safetensors", tmp_path / "in.xyz", "--dtype", dtype)
        assert (status, message) == (0, "")
        assert text.count("no fast path: ") == 1
        assert "reference - float64" in text
        assert "allowed" not in text
        assert "holds" not in text


def test_verify_ends_with_one_line_where_the_fast_path_is_wrong(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(painn, "HermiteTables", Wrong)
    write(tmp_path / "in.xyz", frames(4))
    status, text, message = run("verify", models / "painn.safetensors", tmp_path / "in.xyz")
    assert status == 1
    assert "fast - reference" in text
    assert "holds" not in text
    assert message.startswith("error: the fast path does not hold for ")
    assert "allowed" in message
    assert "--no-fast" in message
    assert message.count("\n") == 1


def check_of(*comparisons: Comparison) -> FastPathCheck:
    return FastPathCheck(len(comparisons), 1.0, "", 64, 1e-6, {}, comparisons)


def test_every_quantity_and_what_is_not_a_number_count() -> None:
    good = Comparison(force=1e-5, energy=1e-8, stress=None, force_limit=1e-4, energy_limit=1e-6, stress_limit=None)
    assert check_of(good).used == pytest.approx([0.1])
    assert check_of(good, Comparison(2e-4, 0.0, None, 1e-4, 1e-6, None)).disagreeing == [1]
    assert check_of(Comparison(0.0, 2e-6, None, 1e-4, 1e-6, None), good).disagreeing == [0]
    assert check_of(Comparison(0.0, 0.0, 2e-3, 1e-4, 1e-6, 1e-3)).disagreeing == [0]
    for broken in ((math.nan, 0.0, 0.0), (0.0, math.nan, 0.0), (0.0, 0.0, math.nan)):
        assert check_of(Comparison(*broken, 1e-4, 1e-6, 1e-3)).disagreeing == [0]


def test_frames_are_spread_over_the_file(tmp_path: Path, models: Path) -> None:
    write(tmp_path / "in.xyz", [*frames(6), bulk("Cu")])  # which the model does not know
    status, text, _ = run("verify", models / "schnet.safetensors", tmp_path / "in.xyz", "--frames", 1)
    assert status == 0
    assert "1 of 7 structures" in text
    status, _, message = run("verify", models / "schnet.safetensors", tmp_path / "in.xyz", "--frames", 2)
    assert status == 1
    assert "Cu" in message


# ---------------------------------------------------------------------------------------------------------------- bench


def test_bench_writes_what_it_measured(tmp_path: Path, models: Path) -> None:
    silicon = frames(1)[0]
    write(tmp_path / "si.xyz", silicon)
    out = tmp_path / "si.json"
    command = ["bench", models / "painn.safetensors", tmp_path / "si.xyz", "--out", out, "--sizes", "4,1,2,4"]
    status, text, message = run(*command, "--seconds", 2, "--threads", 1)
    assert (status, message) == (0, "")
    content = json.loads(out.read_text(encoding="utf-8"))
    assert (content["architecture"], content["dtype"], content["threads"]) == ("painn", "float32", 1)
    assert content["no_fast_path"] is None
    assert [system["copies"] for system in content["systems"]] == [1, 2, 4]
    for system in content["systems"]:
        assert system["atoms"] == 8 * system["copies"]
        assert system["edges"] == system["copies"] * len(neighbor_list("i", silicon, CUTOFF))
        for path in ("fast", "reference"):
            cost = system[path]
            assert 0.01 < cost["ms_per_call"] < 1000
            assert cost["calls"] >= 3
            assert cost["us_per_atom"] == pytest.approx(1000 * cost["ms_per_call"] / system["atoms"])
            steps_per_day = 86400 / (1e-3 * cost["ms_per_call"])
            assert cost["ns_per_day_at_1_fs"] == pytest.approx(1e-6 * steps_per_day)
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "fast ms" in text
    assert "ns/day at 1 fs" in text
    before = out.read_bytes()
    status, _, message = run(*command)
    assert status == 1
    assert "--overwrite" in message
    assert out.read_bytes() == before


def test_bench_of_molecules_ends_with_its_time(tmp_path: Path, models: Path) -> None:
    write(tmp_path / "ethanol.xyz", frames(2)[1])
    threads = torch.get_num_threads()
    status, text, _ = run(
        "bench", models / "nequip.safetensors", tmp_path / "ethanol.xyz", "--seconds", 0.5, "--threads", 1
    )
    assert status == 0
    assert "no fast path: " in text
    assert "fast ms" not in text
    assert "no larger system, which would take too much of the time" in text
    assert torch.get_num_threads() == threads


def test_growth_is_by_copies_and_ends_with_the_memory(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    potential = potentials.load(models / "schnet.safetensors")
    peaks = iter(10**6 * n for n in (1, 1, 4, 4, 16, 16, 1, 1))
    monkeypatch.setattr(bench_module, "peak_bytes", lambda call, device: next(peaks))
    monkeypatch.setattr(bench_module, "free_bytes", lambda device: 80 * 10**6)
    monkeypatch.setattr(bench_module, "NEXT_TIME", math.inf)  # however busy the machine
    result = bench(potential, frames(2)[1], seconds=4.0)
    # The next one would be four times as large as 16 MB, and half of the free memory is less.
    assert [system.copies for system in result.systems] == [1, 4, 16]
    assert [len(system.costs) for system in result.systems] == [2, 2, 2]
    # The graph, of which there are 8 bytes of positions and more for each atom, comes on top.
    assert all(1e6 * s.copies < s.costs["fast"].bytes < 1.1e6 * s.copies for s in result.systems)
    # The largest peaks are 16 MB and 4 MB, for 144 and 36 atoms.
    assert result.forecasts["fast"].bytes_per_atom == pytest.approx(1e6 / 9, rel=0.1)
    monkeypatch.setattr(bench_module, "free_bytes", lambda device: 3 * 10**6)
    result = bench(potential, frames(1)[0], seconds=4.0)
    assert [system.copies for system in result.systems] == [1]
    assert result.stopped == {"fast": "memory", "reference": "memory"}


def test_bench_times_the_reference_where_the_fast_path_is_wrong(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(painn, "HermiteTables", Wrong)
    result = bench(potentials.load(models / "painn.safetensors"), frames(1)[0], [1], seconds=0.2)
    assert result.paths == ("reference",)
    assert "given up" in result.reason


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["verify", "painn", "in.xyz", "--frames", "0"], "frames must be 1 or more"),
        (["verify", "painn", "in.xyz", "--dtype", "float16"], "float16"),
        (["verify", "dipole", "in.xyz@1"], "only models of the energy"),
        (["verify", "painn", "no.xyz"], "there is no file"),
        (["bench", "painn", "in.xyz"], "holds 2 structures"),
        (["bench", "dipole", "in.xyz@1"], "only models of the energy"),
        (["bench", "nequip", "in.xyz@0"], "Si"),
        (["bench", "painn", "in.xyz@0", "--sizes", "1,x"], "'1,x'"),
        (["bench", "painn", "in.xyz@0", "--sizes", "0"], "numbers of copies"),
        (["bench", "painn", "in.xyz@0", "--seconds", "0"], "must be positive"),
        (["bench", "painn", "in.xyz@0", "--threads", "0"], "threads must be 1 or more"),
        (["bench", "painn", "in.xyz@0", "--out", "a.txt"], ".json"),
        (["bench", "painn", "in.xyz@0", "--out", "nowhere/a.json"], "no folder"),
    ],
)
def test_bad_input_is_one_line(
    command: list[str], expected: str, tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write("in.xyz", frames(2))
    status, output, message = run(command[0], models / f"{command[1]}.safetensors", *command[2:])
    assert status == 1
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert expected in message
    assert "Traceback" not in output + message
    assert [path.name for path in tmp_path.iterdir()] == ["in.xyz"]


# --------------------------------------------------------------------------------------------------------------- memory


def test_the_forecast_is_the_line_through_the_points() -> None:
    atoms = [64, 128, 256, 512, 1024]
    line = forecast(atoms, [50_000 * n + 2e6 for n in atoms], free=10**9)
    assert line is not None
    assert line.bytes_per_atom == pytest.approx(50_000, rel=1e-9)
    assert line.fixed_bytes == pytest.approx(2e6, rel=1e-6)
    assert line.atoms == pytest.approx((1e9 - 2e6) / 5e4, abs=1)
    # Least squares by hand for (1, 1), (2, 3), (3, 4): slope 1.5, start -1/3
    by_hand = forecast([1, 2, 3], [1.0, 3.0, 4.0], free=None)
    assert by_hand is not None
    assert (by_hand.bytes_per_atom, by_hand.fixed_bytes) == pytest.approx((1.5, -1 / 3))
    assert by_hand.atoms is None
    assert Forecast(10.0, 100.0, 50).atoms == 0


def test_no_forecast_without_growth() -> None:
    assert forecast([], [], 10**9) is None
    assert forecast([8, 8], [1.0, 2.0], 10**9) is None
    assert forecast([8, 16], [3.0, 2.0], 10**9) is None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a process")
def test_the_peak_is_that_of_the_call_alone() -> None:
    def fill(megabytes: int) -> None:
        np.ones(megabytes * 125_000)

    fill(300)  # an earlier peak must not count
    for size in (100, 40):
        measured = peak_bytes(lambda size=size: fill(size), CPU)  # type: ignore[misc]
        assert measured is not None
        assert size * 1e6 <= measured + 5e5
        assert measured < size * 1e6 + 5e6
    free = free_bytes(CPU)
    assert free is not None
    assert 1e7 < free < 1e14


def test_copies_are_compact_and_as_many_as_asked_for(models: Path) -> None:
    silicon, ethanol = frames(2)
    slab = fcc111("Cu", (1, 1, 2), vacuum=5.0)
    assert not slab.pbc[2]
    assert np.allclose(repeated(silicon, 8)[0].cell.lengths(), 2 * silicon.cell.lengths())
    assert np.allclose(repeated(silicon, 27)[0].cell.lengths(), 3 * silicon.cell.lengths())
    for count in (1, 2, 6, 7, 12):
        assert [len(atoms) for atoms in repeated(silicon, count)] == [8 * count]
        assert [len(atoms) for atoms in repeated(ethanol, count)] == [9] * count
        assert repeated(slab, count)[0].cell.lengths()[2] == pytest.approx(slab.cell.lengths()[2])
    potential = potentials.load(models / "schnet.safetensors").cast(torch.float64).requires_grad_(False)
    for atoms in (silicon, ethanol):
        one, six = (
            float(potential(AtomGraph.from_ase(repeated(atoms, n), CUTOFF), ("energy",))["energy"].sum())
            for n in (1, 6)
        )
        assert six == pytest.approx(6 * one, rel=1e-12)
