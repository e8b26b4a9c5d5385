"""What a model costs: time and memory of an ASE step and of a training step, each measured in a fresh process."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from simkit.config import parse_options
from simkit.errors import SimkitError
from simkit.training.fit import fit
from simkit.training.recipe import Recipe
from simkit.workflows.prepare import prepare
from simkit.workflows.structures import open_calculator, read_structure
from simkit.workflows.text import silent

if TYPE_CHECKING:
    from simkit.datasets.store import Store
    from simkit.training.losses import PotentialObjective
    from simkit.training.options import TrainingOptions

WARM_UP = 3  # steps that are not timed: they compile, allocate and fill caches
STEP_SECONDS, MOST_STEPS = 3.0, 200
STEPS_PER_ROW = 10
# Training is timed for this part of its budget, within limits: long enough to see the usual load of the machine.
TIMED_PART, LEAST_SECONDS, MOST_SECONDS = 0.05, 2.0, 60.0
MOVE = 1e-3  # angstrom, about what an atom does in a step of 0.5 fs


@dataclass(frozen=True)
class StepCost:
    """The cost of one ASE step: energy and forces, or the first property of models without them, after the atoms have moved.

    Attributes:
        atoms: of the structure.
        milliseconds: median wall time.
        memory_mb: peak memory: resident memory of the whole process on a CPU, what PyTorch allocated on a GPU.
    """

    atoms: int
    milliseconds: float
    memory_mb: float

    @property
    def microseconds_per_atom(self) -> float:
        """Wall time per atom and step."""
        return 1000 * self.milliseconds / self.atoms


@dataclass(frozen=True)
class TrainingCost:
    """The cost of training.

    Attributes:
        structures: in the training set.
        step_seconds: mean wall time of one optimiser step.
        validation_seconds: one pass over the validation data.
        memory_mb: peak memory, as in `StepCost`.
    """

    structures: int
    step_seconds: float
    validation_seconds: float
    memory_mb: float


def measure_step(model: str | os.PathLike[str], structure: str | os.PathLike[str], device: str = "auto") -> StepCost:
    """Measure a model file on the structure in a file, in the model's own dtype.

    Raises:
        SimkitError: if the process that measures fails; the message is its own.
    """
    request = {"task": "step", "model": os.fspath(model), "structure": os.fspath(structure), "device": device}
    return StepCost(**_in_fresh_process(request))


def measure_training(recipe: Recipe) -> TrainingCost:
    """Measure some optimiser steps of a recipe.

    Raises:
        SimkitError: if the process that measures fails; the message is its own.
    """
    return TrainingCost(**_in_fresh_process({"task": "training", "recipe": recipe.model_dump(mode="json")}))


def _in_fresh_process(request: Mapping[str, Any]) -> dict[str, Any]:
    # -P: the folder in which simkit is called must not become a place to import from.
    command = [sys.executable, "-P", "-c", "from simkit.workflows.cost import main; main()"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise SimkitError(f"measuring the cost of a {request['task']} failed: {reason}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    """Measure what standard input asks for, and print it: the whole of the fresh process."""
    request = json.load(sys.stdin)
    tasks: dict[str, Callable[[Mapping[str, Any]], StepCost | TrainingCost]] = {"step": _step, "training": _training}
    try:
        result = tasks[request["task"]](request)
    except SimkitError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(1) from None
    print(json.dumps(asdict(result)))


def _step(request: Mapping[str, Any]) -> StepCost:
    calculator = open_calculator(request["model"], request["device"])
    atoms = read_structure(request["structure"])
    outputs = calculator.potential.outputs
    wanted = ("forces", "energy") if "energy" in outputs else outputs[:1]
    rng = np.random.default_rng(0)
    times: list[float] = []
    while len(times) < WARM_UP + 3 or (sum(times[WARM_UP:]) < STEP_SECONDS and len(times) < MOST_STEPS):
        atoms.positions += rng.normal(0.0, MOVE, atoms.positions.shape)
        start = time.perf_counter()
        for name in wanted:
            calculator.get_property(name, atoms)
        times.append(time.perf_counter() - start)
    median = float(np.median(times[WARM_UP:]))
    return StepCost(len(atoms), 1000 * median, peak_memory_mb(calculator.device))


def _training(request: Mapping[str, Any]) -> TrainingCost:
    recipe = parse_options(Recipe, request["recipe"], "options")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared = prepare(recipe, folder, silent, write=False)
        data, model, objective = prepared.data, prepared.model, prepared.objective
        size = recipe.training.batch_size
        few = prepared.fitted.select(torch.arange(min(len(prepared.fitted), STEPS_PER_ROW * size)))
        options = recipe.training.model_copy(
            update={"epochs": 1, "early_stopping": None, "validate_every": 1, "tensorboard": False}
        )
        fit(model, objective, few.select(torch.arange(min(len(few), WARM_UP * size))), None, options, folder)
        budget = 60 * (recipe.training.max_minutes or math.inf)
        seconds = min(max(TIMED_PART * budget, LEAST_SECONDS), MOST_SECONDS)
        timed = options.model_copy(update={"epochs": 10**6, "max_minutes": seconds / 60})
        last = fit(model, objective, few, None, timed, folder).rows[-1]
        return TrainingCost(
            structures=len(prepared.fitted),
            step_seconds=last["seconds"] / last["step"],
            validation_seconds=_validation_seconds(model, objective, data.valid, recipe.training),
            memory_mb=peak_memory_mb(prepared.potential.device),
        )


def _validation_seconds(
    model: nn.Module, objective: PotentialObjective, valid: Store | None, options: TrainingOptions
) -> float:
    """Wall time of the loss over the validation data; the second pass counts."""
    if valid is None:
        return 0.0
    counts = objective.counts(valid, torch.arange(len(valid)))
    valid = valid.to(next(model.parameters()).device)
    model.eval()
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        with torch.no_grad():
            parts = valid.batches(options.evaluation_batch_size)
            float(torch.stack([objective(model, valid.batch(indices), counts)[0] for indices in parts]).sum())
        seconds = time.perf_counter() - start
    return seconds


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory of this process, MB (10^6 bytes): allocated by PyTorch on a GPU, resident on a CPU.

    Nan where the system does not tell (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.is_file():
        # On Linux getrusage() counts the memory of the parent, too, in a process that was started without a copy of it.
        peak = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return float(peak.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
