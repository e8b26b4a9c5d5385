"""The training loop: it learns, stops and continues exactly, and says what went wrong."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from simkit import potentials
from simkit.datasets.store import Store
from simkit.errors import ConfigError, DataError, DeviceError, OutputError, SimkitError
from simkit.graph import AtomGraph
from simkit.potential import Potential
from simkit.training.checkpoint import CHECKPOINT, load_checkpoint
from simkit.training.fit import FitResult, epoch_order, fit
from simkit.training.log import Row
from simkit.training.losses import PotentialObjective
from simkit.training.options import LossTerm, TrainingOptions

CUTOFF = 4.0
TRAIN, VALID, BATCH = 23, 6, 5  # the last batch of an epoch is smaller
STEPS = 5  # in an epoch
TERMS = {"energy": {"weight": 0.1}, "forces": {"weight": 1.0}}
MODEL = {"channels": 8, "layers": 1, "basis": 6}
WORKER = Path(__file__).with_name("fit_worker.py")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The sums of all trainings in the same order, also in other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def clusters(count: int, seed: int) -> Store:
    """Clusters of 3 to 6 atoms near the corners of a cube, labelled by a Lennard-Jones potential."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, 7, count)
    corners = 1.6 * np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), axis=-1).reshape(8, 3)
    pos = np.concatenate([corners[rng.permutation(8)[:n]] + rng.normal(0, 0.1, (n, 3)) for n in sizes])
    z, ptr = rng.choice([10, 18], len(pos)), np.concatenate([[0], np.cumsum(sizes)])
    teacher = potentials.build(
        "lennard_jones", cutoff=CUTOFF, elements=[10, 18], sigma=1.5, epsilon=0.1, dtype="float64"
    )
    labels = teacher(Store(z, pos, ptr).with_neighbors(CUTOFF).batch(torch.arange(count)), ("energy", "forces"))
    return Store(z, pos, ptr, labels)


@pytest.fixture(scope="module")
def train() -> Store:
    return clusters(TRAIN, 1).with_neighbors(CUTOFF)


@pytest.fixture(scope="module")
def valid() -> Store:
    return clusters(VALID, 2).with_neighbors(CUTOFF)


def student(dtype: str = "float32") -> Potential:
    return potentials.build("painn", cutoff=CUTOFF, elements=[10, 18], dtype=dtype, **MODEL)


def objective() -> PotentialObjective:
    return PotentialObjective({name: LossTerm(**term) for name, term in TERMS.items()})


def options(**changes: Any) -> TrainingOptions:
    """Four epochs with everything that has a state: averaged weights, plateaus that are soon reached, patience."""
    given: dict[str, Any] = {
        "epochs": 4, "batch_size": BATCH, "learning_rate": 5e-3, "schedule": "plateau", "plateau_patience": 1,
        "warmup_steps": 3, "ema_decay": 0.9, "early_stopping": 50, "weight_decay": 0.01, "device": "cpu",
    }  # fmt: skip
    return TrainingOptions(**(given | changes))


class Hooked(PotentialObjective):
    """An objective that does something in the middle of one training step, counted from 1."""

    def __init__(self, step: int, action: Callable[[], Any]) -> None:
        super().__init__(objective().terms)
        self.remaining, self.action = step, action

    def __call__(
        self, model: nn.Module, batch: AtomGraph, counts: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if model.training:
            self.remaining -= 1
            if self.remaining == 0:
                self.action()
        return super().__call__(model, batch, counts)


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


# ------------------------------------------------------------------------------------------------------ learning


def test_fit_learns(train: Store, valid: Store, tmp_path: Path) -> None:
    model = student()
    seen: list[Row] = []
    result = fit(
        model, objective(), train, valid, options(epochs=25, schedule="cosine"), tmp_path / "new", on_epoch=seen.append
    )
    rows = result.rows
    assert seen == rows
    assert [row["epoch"] for row in rows] == list(range(1, 26))
    assert rows[-1]["step"] == 25 * STEPS
    assert rows[-1]["train_loss"] < 0.2 * rows[0]["train_loss"]
    assert rows[-1]["valid_forces_mae"] < 0.5 * rows[0]["valid_forces_mae"]
    assert result.epochs == 25
    with (tmp_path / "new" / "log.csv").open() as stream:
        assert [{k: float(v) for k, v in row.items()} for row in csv.DictReader(stream)] == rows

    # The model holds the averaged weights of the best epoch: they give its validation loss again.
    assert not model.training
    assert result.best_epoch == min(rows, key=lambda row: row["valid_loss"])["epoch"]
    term = objective()
    with torch.no_grad():
        loss, sums = term(model, valid.batch(torch.arange(VALID)), term.counts(valid, torch.arange(VALID)))
    best = rows[result.best_epoch - 1]
    assert float(loss) == pytest.approx(best["valid_loss"], rel=1e-6)
    assert float(sums["energy"]) / VALID == pytest.approx(best["valid_energy_mae"], rel=1e-6)
    assert set(result.last_weights) == {name for name, _ in model.named_parameters()}
    assert any(not torch.equal(result.last_weights[name], p) for name, p in model.named_parameters())


def test_without_averaging_and_validation_the_last_of_the_best_epochs_is_kept(train: Store, tmp_path: Path) -> None:
    model = student()
    result = fit(model, objective(), train, None, options(ema_decay=0.0, learning_rate=1e-3), tmp_path)
    assert "valid_loss" not in result.rows[0]
    assert result.best_epoch == min(result.rows, key=lambda row: row["train_loss"])["epoch"]
    is_last = all(torch.equal(result.last_weights[name], p) for name, p in model.named_parameters())
    assert is_last == (result.best_epoch == 4)


def test_the_training_errors_are_means_over_the_epoch(train: Store, tmp_path: Path) -> None:
    """With a vanishing learning rate they equal those of all structures at once."""
    model, term, everything = student("float64"), objective(), torch.arange(TRAIN)
    _, sums = term(model.eval(), train.batch(everything), term.counts(train, everything))
    still = options(epochs=1, learning_rate=1e-14, minimum_learning_rate=0.0, precision="float64")
    row = fit(model, term, train, None, still, tmp_path).rows[0]
    for name, total in sums.items():
        assert row[f"train_{name}_mae"] == pytest.approx(float(total) / term.counts(train, everything)[name], rel=1e-9)


def test_validating_every_third_epoch(train: Store, valid: Store, tmp_path: Path) -> None:
    result = fit(student(), objective(), train, valid, options(epochs=7, validate_every=3), tmp_path)
    assert [row["epoch"] for row in result.rows] == [3, 6, 7]


def test_validation_batches_are_bounded_in_atoms(
    train: Store, valid: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simkit.datasets.store.MAX_ATOMS", int(valid.n_atoms.max()))
    model, seen = student(), []

    def look(module: Potential, arguments: tuple[AtomGraph, tuple[str, ...]]) -> None:
        if not module.training:
            seen.append(arguments[0].num_structures)

    model.register_forward_pre_hook(look)
    fit(model, objective(), train, valid, options(epochs=1), tmp_path)
    assert seen == [1] * VALID


def test_each_epoch_has_its_own_order() -> None:
    orders = {tuple(epoch_order(10, seed, epoch).tolist()) for seed in (0, 1) for epoch in range(5)}
    assert len(orders) == 10
    assert all(sorted(order) == list(range(10)) for order in orders)
    state = torch.get_rng_state()
    assert torch.equal(epoch_order(10, 3, 4), epoch_order(10, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_seed_of_the_batches_matters(
    train: Store, valid: Store, uninterrupted: tuple[FitResult, Potential, Path], tmp_path: Path
) -> None:
    other = fit(student(), objective(), train, valid, options(epochs=1, seed=1), tmp_path)
    assert other.rows[0]["train_loss"] != uninterrupted[0].rows[0]["train_loss"]


# ----------------------------------------------------------------------------------------------------- endings


def test_early_stopping(train: Store, valid: Store, tmp_path: Path) -> None:
    stuck = options(epochs=50, early_stopping=3, learning_rate=1e-30, minimum_learning_rate=0.0)
    result = fit(student(), objective(), train, valid, stuck, tmp_path)
    assert (result.best_epoch, result.epochs) == (1, 4)


def test_a_limit_of_time_ends_after_an_epoch(train: Store, valid: Store, tmp_path: Path) -> None:
    short = options(epochs=1000, max_minutes=1e-6)
    result = fit(student(), objective(), train, valid, short, tmp_path)
    assert result.epochs == 1
    # More time continues where it ended.
    result = fit(student(), objective(), train, valid, options(epochs=2), tmp_path, resume=True)
    assert [row["epoch"] for row in result.rows] == [1, 2]


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


# ------------------------------------------------------------------------------------------------------ errors


def test_no_training_data(train: Store, tmp_path: Path) -> None:
    class Empty(Store):
        def __len__(self) -> int:
            return 0

    empty = Empty(train.z, train.pos, train.ptr, train.labels)
    with pytest.raises(DataError, match="no training data"):
        fit(student(), objective(), empty, None, options(), tmp_path)


def test_nothing_to_train(train: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no trainable parameters"):
        fit(potentials.build("lennard_jones", elements=[10, 18]), objective(), train, None, options(), tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(train: Store, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="use cpu"):
        fit(student(), objective(), train, None, options(device="cuda"), tmp_path)


@pytest.mark.parametrize("precision", ["bf16-mixed", "tf32"])
def test_mixed_precision_needs_a_gpu(precision: str, train: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a GPU"):
        fit(student(), objective(), train, None, options(precision=precision), tmp_path)


def test_the_precision_must_be_that_of_the_model(train: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="float64"):
        fit(student(), objective(), train, None, options(precision="float64"), tmp_path)
    with pytest.raises(ConfigError, match="float32"):
        fit(student("float64"), objective(), train, None, options(), tmp_path)


def test_unwritable_output(train: Store, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="choose another"):
        fit(student(), objective(), train, None, options(), tmp_path / "file" / "out")


@pytest.mark.parametrize("clip_norm", [10.0, None])
def test_divergence_keeps_the_checkpoint_from_before(clip_norm: float | None, train: Store, tmp_path: Path) -> None:
    """Weights that are spoilt after the sixth step, with a checkpoint after every step."""
    model = student()

    def spoil() -> None:
        with torch.no_grad():
            model.heads["energy"].net[0].weight.fill_(float("nan"))  # type: ignore[union-attr, index]

    risky = options(checkpoint_minutes=0.0, clip_norm=clip_norm)
    with pytest.raises(SimkitError, match=r"diverged.*learning_rate"):
        fit(model, Hooked(7, spoil), train, None, risky, tmp_path)
    state = load_checkpoint(tmp_path, "")
    assert state["progress"]["step"] == 6
    assert all(bool(w.isfinite().all()) for w in state["weights"])


def test_a_huge_learning_rate_is_reported(train: Store, valid: Store, tmp_path: Path) -> None:
    wild = options(epochs=20, learning_rate=1e12, warmup_steps=0, schedule="constant", ema_decay=0.0)
    with pytest.raises(SimkitError, match="diverged"):
        fit(student(), objective(), train, valid, wild, tmp_path)


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
