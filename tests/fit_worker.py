"""Run by the tests of `fit` in processes of its own, so that these can be killed or be two: the trainings that a file asks for."""

import json
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from simkit import potentials
from simkit.datasets.store import Store
from simkit.graph import AtomGraph
from simkit.training.fit import fit
from simkit.training.losses import PotentialObjective
from simkit.training.options import LossTerm, TrainingOptions


class Signalling(PotentialObjective):
    """An objective that sends its own process a signal in the middle of a training step."""

    def __init__(self, terms: Mapping[str, LossTerm], step: int, number: int) -> None:
        super().__init__(terms)
        self.remaining, self.number = step, number

    def __call__(
        self, model: nn.Module, batch: AtomGraph, counts: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if model.training:
            self.remaining -= 1
            if self.remaining == 0:
                os.kill(os.getpid(), self.number)
        return super().__call__(model, batch, counts)


def train(job: dict) -> None:
    """Train as ``job`` says and write weights and log; a signal to itself ends it as it would end any training."""
    given, valid = (Store.load(job[name]).with_neighbors(4.0) for name in ("train", "valid"))
    model = potentials.build("painn", cutoff=4.0, elements=[10, 18], **job["model"])
    terms = {name: LossTerm(**term) for name, term in job["loss"].items()}
    objective = Signalling(terms, job.get("signal_step", -1), job.get("signal", 0))
    rank = int(os.environ.get("RANK", "0"))
    options = TrainingOptions(**job["options"] | job.get("options_of_ranks", [{}, {}])[rank])
    try:
        result = fit(model, objective, given, valid, options, job["out"], resume=job.get("resume", False))
    except KeyboardInterrupt:
        return
    if rank == job.get("write_rank", 0):
        last = {"last": result.last_weights, "best": dict(model.state_dict())}
        torch.save({"rows": result.rows, **last}, Path(job["out"]) / "result.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # now that all is imported: what the training itself warns of
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        train(job)
