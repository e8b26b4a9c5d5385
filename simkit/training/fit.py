"""The training loop: readable in one sitting, exact to resume, the same on one device or many.

Data live on the device as flat arrays; a batch is a gather. The order of the batches is a function of (seed, epoch), the learning
rate one of the step, so that a checkpoint at any step continues the very same curve.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from simkit.errors import ConfigError, DataError, OutputError, SimkitError
from simkit.files import ensure_output_dir
from simkit.interrupt import Interrupt
from simkit.memory import keep_freed_memory
from simkit.training.checkpoint import load_checkpoint, save_checkpoint
from simkit.training.distributed import make_fabric, sum_gradients, sum_over_processes
from simkit.training.log import Row, TrainingLog
from simkit.training.losses import Objective, Samples
from simkit.training.options import TrainingOptions
from simkit.training.schedule import AveragedWeights, LearningRate

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_SamplesT = TypeVar("_SamplesT", bound=Samples)


@dataclass
class FitResult:
    """What a finished training leaves, besides the model with its best (averaged) weights.

    Attributes:
        rows: the log, one row per validated epoch.
        best_epoch: the epoch whose averaged weights had the lowest validation loss; the model holds these.
        last_weights: name -> trainable weights of the last step, not averaged.
        seconds: wall time of training, all its resumed parts together.
        epochs: how many were trained.
    """

    rows: list[Row]
    best_epoch: int
    last_weights: dict[str, Tensor]
    seconds: float
    epochs: int


@dataclass
class _Progress:
    """Where a run is: everything that changes besides weights and optimiser."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    stalled: int = 0
    best_loss: float = math.inf
    best_epoch: int = 0
    seconds: float = 0.0
    totals: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)


def fit(
    model: nn.Module,
    objective: Objective[_SamplesT],
    train: _SamplesT,
    valid: _SamplesT | None,
    options: TrainingOptions,
    out: str | Path,
    *,
    resume: bool = False,
    identity: str = "",
    on_epoch: Callable[[Row], None] | None = None,
) -> FitResult:
    """Train ``model`` in place; at the end it holds the averaged weights of the best validated epoch.

    Args:
        model: a `Potential` or any module that the objective knows how to call.
        objective: gives loss and error sums of a batch (see `Objective`).
        train: training data; structures with neighbors where the model needs them.
        valid: validation data; without it the training loss decides what is best.
        out: folder for ``log.csv`` and ``checkpoint.pt``.
        resume: continue from the checkpoint in ``out``; on a CPU the result equals that of a run never stopped, bit for bit.
        identity: hash of everything that must not change between the parts of a resumed run.
        on_epoch: called with each row of the log.

    Raises:
        ConfigError: if the model has no trainable parameters, or they are not of the precision asked for.
        DataError: if there are no training data, or no checkpoint to resume or a damaged one.
        OutputError: if the folder cannot be written, or its checkpoint belongs to another training.
        DeviceError: if the device is not there.
        SimkitError: if the loss is no longer finite.
        KeyboardInterrupt: if interrupted, after the checkpoint has been saved.
    """
    if len(train) == 0:
        raise DataError("there are no training data; check the data path and the split")
    folder = ensure_output_dir(out)
    keep_freed_memory()
    fabric = make_fabric(options.device, options.precision)
    run = _Run(model, objective, train, valid, options, folder, fabric, identity)
    if resume:
        run.restore(load_checkpoint(folder, identity))
    interrupt = Interrupt()
    try:
        with interrupt.watch(), _matmul_precision(options.precision):
            while not run.finished():
                run.train_epoch(interrupt)
                row = run.close_epoch()
                if row is not None and on_epoch is not None and fabric.is_global_zero:
                    on_epoch(row)
            run.save()
    finally:
        run.log.close()
    return run.result()


class _Run:
    """The state of one training and the few things done with it."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective[Any],
        train: Samples,
        valid: Samples | None,
        options: TrainingOptions,
        folder: Path,
        fabric: Fabric,
        identity: str,
    ) -> None:
        self.options, self.objective, self.folder, self.fabric = options, objective, folder, fabric
        self.identity = identity
        self.model = model.to(fabric.device)
        self.host = train  # counts are looked up here, so that a GPU is never waited for
        self.train = train.to(fabric.device)
        self.valid = valid.to(fabric.device) if valid is not None and len(valid) else None
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.parameters = _trainable(model, options.precision)
        for p in self.parameters:  # every process starts from the weights of the first
            p.data.copy_(fabric.broadcast(p.data))
        self.batches_per_epoch = math.ceil(len(train) / options.batch_size)
        self.rate = LearningRate(options, options.epochs * self.batches_per_epoch)
        algorithm = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
        self.optimizer = algorithm(
            self.parameters, lr=options.learning_rate, weight_decay=options.weight_decay, fused=True
        )
        self.average = AveragedWeights(self.parameters, options.ema_decay) if options.ema_decay else None
        self.best = [p.detach().clone() for p in self.parameters]
        self.progress = _Progress()
        self.log = TrainingLog(folder, [], tensorboard=options.tensorboard, active=fabric.is_global_zero)
        self.saved_at = self.started = time.monotonic()

    def finished(self) -> bool:
        """True when the epochs, the time or the patience are used up."""
        o, p = self.options, self.progress
        out_of_time = o.max_minutes is not None and self.seconds() > 60 * o.max_minutes and p.epoch > 0
        impatient = o.early_stopping is not None and p.stalled >= o.early_stopping
        # All processes must agree, or those left would wait for ever.
        return p.epoch >= o.epochs or bool(self.fabric.broadcast(out_of_time or impatient))

    def seconds(self) -> float:
        """Wall time of all parts of this run."""
        return self.progress.seconds + time.monotonic() - self.started

    def train_epoch(self, interrupt: Interrupt) -> None:
        """Run what is left of the current epoch, saving now and then."""
        p, size = self.progress, self.options.batch_size
        order = epoch_order(len(self.train), self.options.seed, p.epoch)
        self.model.train()
        while p.batch < self.batches_per_epoch:
            self.train_step(order[p.batch * size : (p.batch + 1) * size])
            p.batch += 1
            p.step += 1
            due = time.monotonic() - self.saved_at > 60 * self.options.checkpoint_minutes
            stop, due = self.agree(interrupt.requested, due)
            if stop or due:
                self.save()
            if stop:
                raise KeyboardInterrupt

    def agree(self, *flags: bool) -> list[bool]:
        """True in all processes where it is in one of them: they must save and stop at the same step, whatever their clocks say."""
        if self.fabric.world_size == 1:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.float32, device=self.fabric.device)
        return [vote > 0 for vote in sum_over_processes(self.fabric, votes).tolist()]

    def train_step(self, indices: Tensor) -> None:
        """One optimiser step on the structures ``indices``, shared between the processes."""
        counts = self.objective.counts(self.host, indices)
        share = indices[self.fabric.global_rank :: self.fabric.world_size]
        loss = torch.zeros((), dtype=torch.float64, device=self.fabric.device)
        sums = dict.fromkeys(counts, loss)
        self.optimizer.zero_grad(set_to_none=True)
        if len(share):
            with self.fabric.autocast():
                loss, sums = self.objective(self.model, self.train.batch(share), counts)
            loss.backward()
        sum_gradients(self.fabric, self.parameters)
        if self.options.clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(self.parameters, self.options.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.progress.step)
        if self.fabric.device.type == "cpu" and self.options.clip_norm is not None and not bool(norm.isfinite()):
            raise self.diverged()
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        self.accumulate({"loss": loss.detach(), **sums}, {"loss": 1.0, **counts})

    def accumulate(self, sums: dict[str, Tensor], counts: dict[str, float]) -> None:
        """Add to the epoch's running sums; they stay on the device, as tensors, until the epoch ends."""
        p = self.progress
        for name, value in sums.items():
            p.totals[name] = value.double() + p.totals.get(name, 0.0)
            p.counts[name] = p.counts.get(name, 0.0) + counts[name]

    def close_epoch(self) -> Row | None:
        """Validate, note the best weights, write a row; None for an epoch that is not validated."""
        p, o = self.progress, self.options
        train_errors = self.means(p.totals, p.counts)
        if not math.isfinite(train_errors["loss"]):
            raise self.diverged()
        p.epoch, p.batch, p.totals, p.counts = p.epoch + 1, 0, {}, {}
        if p.epoch % o.validate_every and p.epoch < o.epochs:
            return None
        valid_errors = self.validate() if self.valid is not None else {}
        monitored = valid_errors.get("loss", train_errors["loss"])
        if not math.isfinite(monitored):
            raise self.diverged()
        self.rate.observe(monitored)
        if monitored < p.best_loss:
            p.best_loss, p.best_epoch, p.stalled = monitored, p.epoch, 0
            source = self.average.average if self.average is not None else self.parameters
            self.best = [w.detach().clone() for w in source]
        else:
            p.stalled += o.validate_every
        row: Row = {"epoch": p.epoch, "step": p.step, "learning_rate": self.rate(p.step - 1)}
        row |= {f"train_{k}" if k == "loss" else f"train_{k}_mae": v for k, v in train_errors.items()}
        row |= {f"valid_{k}" if k == "loss" else f"valid_{k}_mae": v for k, v in valid_errors.items()}
        row["seconds"] = round(self.seconds(), 3)
        self.log.add(row)
        return row

    def validate(self) -> dict[str, float]:
        """Errors of the averaged weights on the validation data."""
        if self.valid is None:
            return {}
        self.model.eval()
        if self.average is not None:
            self.average.swap()
        totals: dict[str, Any] = {}
        # Counts of the whole set, so that the mean does not depend on how the batches are cut.
        whole = self.objective.counts(self.valid, torch.arange(len(self.valid)))
        for indices in self.valid.batches(self.options.evaluation_batch_size):
            share = indices[self.fabric.global_rank :: self.fabric.world_size]
            if not len(share):
                continue
            with torch.no_grad(), self.fabric.autocast():
                loss, sums = self.objective(self.model, self.valid.batch(share), whole)
            for name, value in {"loss": loss, **sums}.items():
                totals[name] = totals.get(name, 0.0) + value.detach().double()
        if self.average is not None:
            self.average.swap()
        return self.means(totals, {"loss": 1.0, **whole})

    def means(self, totals: dict[str, Any], counts: dict[str, float]) -> dict[str, float]:
        """Sums over all processes divided by counts; one copy to the host."""
        names = list(counts)
        zero = torch.zeros((), dtype=torch.float64, device=self.fabric.device)
        stacked = torch.stack([zero + totals.get(name, 0.0) for name in names])
        values = sum_over_processes(self.fabric, stacked).tolist()
        return {name: value / counts[name] for name, value in zip(names, values, strict=True)}

    def diverged(self) -> SimkitError:
        """The error for a loss or gradient that is no longer finite; the last checkpoint stays as it was."""
        return SimkitError(
            f"training diverged at step {self.progress.step}: the loss is no longer finite. Lower training.learning_rate "
            f"(now {self.rate(self.progress.step):.3g}), check the labels' units, or resume from the last checkpoint in {self.folder}"
        )

    def save(self) -> None:
        """Replace the checkpoint (first process only), unless the weights are spoilt."""
        if not bool(torch.stack([p.detach().isfinite().all() for p in self.parameters]).all()):
            raise self.diverged()
        # The running sums differ between processes; the checkpoint holds those of all.
        totals = {k: sum_over_processes(self.fabric, v) for k, v in self.progress.totals.items()}
        self.saved_at = time.monotonic()
        if not self.fabric.is_global_zero:
            return
        progress = vars(self.progress) | {"seconds": self.seconds(), "totals": totals}
        state = {
            "identity": self.identity,
            "progress": progress,
            "weights": [p.detach() for p in self.parameters],  # plain tensors: a file that needs no classes to be read
            "buffers": list(self.model.buffers()),
            "best": self.best,
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "rate": self.rate.state_dict(),
            "rows": self.log.rows,
        }
        save_checkpoint(self.folder, state)

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Take up where a checkpoint was saved."""
        device = self.fabric.device
        current, saved = [*self.parameters, *self.model.buffers()], [*state["weights"], *state["buffers"]]
        same = [(w.shape, w.dtype) for w in current] == [(w.shape, w.dtype) for w in saved]
        if not same or (self.average is None) != (state["average"] is None):
            raise OutputError(
                f"the checkpoint in {self.folder} belongs to another training: it is of another model or has other options"
            )
        for w, value in zip(current, saved, strict=True):
            w.copy_(value)
        self.best = [w.to(device) for w in state["best"]]
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rate.load_state_dict(state["rate"])
        self.progress = _Progress(**state["progress"])
        zero = not self.fabric.is_global_zero
        self.progress.totals = {k: v.to(device) * (0.0 if zero else 1.0) for k, v in self.progress.totals.items()}
        self.log.rows = list(state["rows"])

    @torch.no_grad()
    def result(self) -> FitResult:
        """Leave the best weights in the model and hand out the rest."""
        last = {name: p.detach().clone() for name, p in zip(self.names, self.parameters, strict=True)}
        for p, w in zip(self.parameters, self.best, strict=True):
            p.copy_(w)
        self.model.eval()
        return FitResult(self.log.rows, self.progress.best_epoch, last, self.seconds(), self.progress.epoch)


def _trainable(model: nn.Module, precision: str) -> list[nn.Parameter]:
    """The parameters to train, all of them of the dtype that the precision names."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ConfigError("the model has no trainable parameters; choose an architecture that has, such as painn")
    expected = "float64" if precision == "float64" else "float32"
    found = sorted({str(p.dtype).removeprefix("torch.") for p in parameters})
    if found != [expected]:
        raise ConfigError(
            f"precision {precision} trains {expected} weights, but those of the model are {' and '.join(found)}; change one of them"
        )
    return parameters


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Return the order in which epoch ``epoch`` visits ``count`` samples: a permutation, a function of (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator)


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    """Allow TF32 in matrix products for the time of the training only."""
    before = torch.get_float32_matmul_precision()
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
