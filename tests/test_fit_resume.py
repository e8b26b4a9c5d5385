"""The training loop stopped and continued, killed, and in two processes: the result is the same."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fit_cases import CUTOFF, MODEL, STEPS, TERMS, Hooked, objective, options, student, training_set, validation_set
from global_settings import threads

from simkit import potentials
from simkit.datasets.store import Store
from simkit.errors import DataError, OutputError
from simkit.potential import Potential
from simkit.training.checkpoint import CHECKPOINT, load_checkpoint
from simkit.training.fit import FitResult, fit
from simkit.training.log import Row
from simkit.training.options import TrainingOptions

WORKER = Path(__file__).with_name("fit_worker.py")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The sums of all trainings in the same order, also in other processes."""
    with threads(1):
        yield


@pytest.fixture(scope="module")
def train() -> Store:
    return training_set()


@pytest.fixture(scope="module")
def valid() -> Store:
    return validation_set()


def without_time(rows: list[Row]) -> list[Row]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def assert_same(found: tuple[FitResult, Potential], expected: tuple[FitResult, Potential]) -> None:
    """Log, weights and averaged weights are equal to the last bit."""
    assert without_time(found[0].rows) == without_time(expected[0].rows)
    assert found[0].best_epoch == expected[0].best_epoch
    for a, b in (
        (found[0].last_weights, expected[0].last_weights),
        (found[1].state_dict(), expected[1].state_dict()),
    ):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


def assert_same_checkpoints(a: Path, b: Path) -> None:
    first, second = load_checkpoint(a, ""), load_checkpoint(b, "")
    for name in ("weights", "best"):
        assert all(torch.equal(x, y) for x, y in zip(first[name], second[name], strict=True))
    assert first["average"]["updates"] == second["average"]["updates"]
    assert all(
        torch.equal(x, y) for x, y in zip(first["average"]["average"], second["average"]["average"], strict=True)
    )
    assert first["rate"] == second["rate"]
    assert {k: v for k, v in first["progress"].items() if k != "seconds"} == {
        k: v for k, v in second["progress"].items() if k != "seconds"
    }


@pytest.fixture(scope="module")
def uninterrupted(
    train: Store, valid: Store, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FitResult, Potential, Path]:
    """A training of six epochs that nobody stopped."""
    folder, model = tmp_path_factory.mktemp("uninterrupted"), student()
    return fit(model, objective(), train, valid, options(epochs=6), folder), model, folder


def test_the_seed_of_the_batches_matters(
    train: Store, valid: Store, uninterrupted: tuple[FitResult, Potential, Path], tmp_path: Path
) -> None:
    other = fit(student(), objective(), train, valid, options(epochs=1, seed=1), tmp_path)
    assert other.rows[0]["train_loss"] != uninterrupted[0].rows[0]["train_loss"]


# ---------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [2, STEPS])
def test_interrupted_and_resumed_equals_uninterrupted(
    number: signal.Signals,
    step: int,
    train: Store,
    valid: Store,
    uninterrupted: tuple[FitResult, Potential, Path],
    tmp_path: Path,
) -> None:
    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        hooked = Hooked(STEPS + step, lambda: signal.raise_signal(number))
        fit(student(), hooked, train, valid, options(epochs=6), tmp_path)
    assert signal.getsignal(number) == handler
    assert load_checkpoint(tmp_path, "")["progress"]["step"] == STEPS + step  # the step is finished before it is saved
    model = student()
    result = fit(model, objective(), train, valid, options(epochs=6), tmp_path, resume=True)
    assert_same((result, model), uninterrupted[:2])
    assert_same_checkpoints(tmp_path, uninterrupted[2])
    with (tmp_path / "log.csv").open() as stream:
        assert [float(row["epoch"]) for row in csv.DictReader(stream)] == [1, 2, 3, 4, 5, 6]


def test_interrupted_again_and_again(
    train: Store, valid: Store, uninterrupted: tuple[FitResult, Potential, Path], tmp_path: Path
) -> None:
    for part in range(4):
        with pytest.raises(KeyboardInterrupt):
            hooked = Hooked(part + 4, lambda: signal.raise_signal(signal.SIGINT))
            fit(student(), hooked, train, valid, options(epochs=6), tmp_path, resume=part > 0)
    model = student()
    result = fit(model, objective(), train, valid, options(epochs=6), tmp_path, resume=True)
    assert_same((result, model), uninterrupted[:2])
    assert result.seconds > 0


def test_a_crash_loses_what_came_after_the_checkpoint_and_nothing_else(
    train: Store, valid: Store, uninterrupted: tuple[FitResult, Potential, Path], tmp_path: Path
) -> None:
    """Checkpoint in the second epoch, crash in the fourth: the log and the checkpoint no longer agree."""

    def crash() -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(KeyboardInterrupt):
        hooked = Hooked(7, lambda: signal.raise_signal(signal.SIGINT))
        fit(student(), hooked, train, valid, options(epochs=6), tmp_path)
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(
            student(), Hooked(10, crash), train, valid, options(epochs=6, checkpoint_minutes=1e3), tmp_path, resume=True
        )
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + 3
    assert load_checkpoint(tmp_path, "")["progress"]["step"] == 7
    model = student()
    result = fit(model, objective(), train, valid, options(epochs=6), tmp_path, resume=True)
    assert_same((result, model), uninterrupted[:2])


def test_resuming_a_finished_training_changes_nothing(
    train: Store, valid: Store, uninterrupted: tuple[FitResult, Potential, Path]
) -> None:
    expected, trained, folder = uninterrupted
    model = student()
    assert_same(
        (fit(model, objective(), train, valid, options(epochs=6), folder, resume=True), model), (expected, trained)
    )


def test_a_second_interrupt_ends_at_once(train: Store, valid: Store, tmp_path: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(student(), Hooked(2, twice), train, valid, options(), tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()


def test_checkpoints_are_written_in_time(train: Store, valid: Store, tmp_path: Path) -> None:
    steps = []

    def look() -> None:
        steps.append(load_checkpoint(tmp_path, "")["progress"]["step"])

    fit(student(), Hooked(8, look), train, valid, options(epochs=2, checkpoint_minutes=0.0), tmp_path)
    assert steps == [7]


def test_a_checkpoint_of_another_training_is_refused(train: Store, valid: Store, tmp_path: Path) -> None:
    fit(student(), objective(), train, valid, options(epochs=1), tmp_path, identity="recipe 1")
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(OutputError, match="belongs to another training"):
        fit(student(), objective(), train, valid, options(epochs=2), tmp_path, identity="recipe 2", resume=True)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_nothing_to_resume(train: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to resume"):
        fit(student(), objective(), train, None, options(), tmp_path, resume=True)


class Payload:
    """A pickle of it creates the file that a test then looks for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_damaged_checkpoints_are_refused(train: Store, tmp_path: Path) -> None:
    fit(student(), objective(), train, None, options(epochs=1), tmp_path)
    path = tmp_path / CHECKPOINT
    whole = path.read_bytes()

    def resume() -> None:
        fit(student(), objective(), train, None, options(epochs=2), tmp_path, resume=True)

    for content in (whole[: len(whole) // 2], b"", b"epoch 12"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            resume()
    for other in ([1, 2], {"weights": torch.zeros(2)}):
        torch.save(other, path)
        with pytest.raises(DataError, match="cannot be read"):
            resume()
    torch.save({"version": 1, "identity": "", "rows": [Payload(tmp_path / "executed")]}, path)
    with pytest.raises(DataError, match="cannot be read"):
        resume()
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_of_another_architecture_is_refused(train: Store, tmp_path: Path) -> None:
    fit(student(), objective(), train, None, options(epochs=1), tmp_path)
    other = potentials.build("painn", cutoff=CUTOFF, elements=[10, 18], channels=4, layers=2)
    with pytest.raises(OutputError, match="belongs to another training"):
        fit(other, objective(), train, None, options(epochs=2), tmp_path, resume=True)


# -------------------------------------------------------------------------------------------- other processes


def job(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    """What `fit_worker.py` is to train: as here, in a folder of its own."""
    given = {
        "loss": TERMS,
        "model": MODEL,
        "out": str(folder / name),
        "train": f"{folder}/train.npz",
        "valid": f"{folder}/valid.npz",
    }
    return given | changes


def run_jobs(folder: Path, jobs: list[dict[str, Any]], *launcher: str) -> subprocess.CompletedProcess[str]:
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs), encoding="utf-8")
    command = [sys.executable, "-W", "ignore", *launcher, str(WORKER), str(path)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(
    train: Store, valid: Store, uninterrupted: tuple[FitResult, Potential, Path], tmp_path: Path
) -> None:
    train.save(tmp_path / "train.npz")
    valid.save(tmp_path / "valid.npz")
    changed = options(epochs=6, checkpoint_minutes=0.0).model_dump()
    killed = run_jobs(tmp_path, [job(tmp_path, "run", options=changed, signal=int(signal.SIGKILL), signal_step=13)])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert load_checkpoint(tmp_path / "run", "")["progress"]["step"] == 12
    model = student()
    result = fit(model, objective(), train, valid, options(epochs=6), tmp_path / "run", resume=True)
    assert_same((result, model), uninterrupted[:2])


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one(train: Store, valid: Store, tmp_path: Path) -> None:
    """Odd batches, batches of one structure, an interrupted part, all in one launch of two processes."""
    train.save(tmp_path / "train.npz")
    valid.save(tmp_path / "valid.npz")
    plain = options(epochs=3, precision="float64", evaluation_batch_size=4).model_dump()
    single = plain | {"batch_size": 1, "epochs": 1, "evaluation_batch_size": 1}
    model = MODEL | {"dtype": "float64"}
    together = {"options": plain, "model": model}
    # Clocks differ: what is due in one process may not be in the other.
    often = together | {"options_of_ranks": [{"checkpoint_minutes": 100.0}, {"checkpoint_minutes": 0.0}]}
    jobs = [
        job(tmp_path, "plain", **together),
        job(tmp_path, "single", options=single, model=model),
        job(tmp_path, "parts", **often, signal=int(signal.SIGTERM), signal_step=7),
        job(tmp_path, "parts", **often, resume=True),
        job(tmp_path, "second", **often, write_rank=1),
    ]
    done = run_jobs(tmp_path, jobs, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    assert done.returncode == 0, done.stderr

    found = {name: torch.load(tmp_path / name / "result.pt") for name in ("plain", "single", "parts", "second")}
    for name, given in (("plain", plain), ("single", single)):
        alone = student("float64")
        result = fit(alone, objective(), train, valid, TrainingOptions(**given), tmp_path / f"{name}-alone")
        for a, b in zip(without_time(found[name]["rows"]), without_time(result.rows), strict=True):
            assert a == pytest.approx(b, rel=1e-8)
        for key, weight in alone.state_dict().items():
            torch.testing.assert_close(found[name]["best"][key], weight, rtol=1e-6, atol=1e-9)
    # Saved often, interrupted and resumed, and seen from the second process: the same weights to the last bit.
    for name in ("parts", "second"):
        for a, b in zip(without_time(found[name]["rows"]), without_time(found["plain"]["rows"]), strict=True):
            assert a == pytest.approx(b, rel=1e-12)
        for key, weight in found["plain"]["last"].items():
            assert torch.equal(found[name]["last"][key], weight)
    assert len((tmp_path / "second" / "log.csv").read_text().splitlines()) == 4
