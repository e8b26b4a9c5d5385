"""The training loop: it learns, ends when it should, and says what went wrong."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fit_cases import STEPS, TRAIN, VALID, Hooked, objective, options, student, training_set, validation_set
from global_settings import threads

from simkit import potentials
from simkit.datasets.store import Store
from simkit.errors import ConfigError, DataError, DeviceError, OutputError, SimkitError
from simkit.graph import AtomGraph
from simkit.potential import Potential
from simkit.training.checkpoint import load_checkpoint
from simkit.training.fit import epoch_order, fit
from simkit.training.log import Row


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
