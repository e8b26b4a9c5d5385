"""simkit on the work of speed.py, one process per figure: python simkit_speed.py {painn,schnet} {md,train} DATA_DIR prints JSON."""

import json
import sys

import torch
from systems import ase_step_ms, median_ms, peak_memory_mb, structures, training_batches

import simkit
from simkit.graph import AtomGraph
from simkit.memory import keep_freed_memory

CUTOFF = 5.0
SIZES = {"painn": {"channels": 128, "layers": 3, "basis": 20}, "schnet": {"channels": 128, "layers": 6, "basis": 20}}


def md(name: str) -> dict[str, float]:
    potential = simkit.potentials.build(name, cutoff=CUTOFF, elements=[1, 6, 14], **SIZES[name])
    return {label: ase_step_ms(atoms, simkit.Calculator(potential)) for label, atoms in structures().items()}


def train(name: str, data: str) -> dict[str, float]:
    keep_freed_memory()  # as `simkit.training.fit` does
    results = {}
    for label, (frames, forces) in training_batches(data).items():
        outputs = ("energy", "forces") if forces else ("energy",)
        model = simkit.potentials.build(name, cutoff=CUTOFF, elements=[1, 6, 7, 8, 9], **SIZES[name]).train()
        graph = AtomGraph.from_ase(frames, CUTOFF)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

        def step(model=model, graph=graph, optimizer=optimizer, outputs=outputs) -> None:
            out = model(graph, outputs, differentiable="forces" in outputs)
            loss = sum((value**2).mean() for value in out.values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        results[label] = median_ms(step)
    return results


if __name__ == "__main__":
    figures = md(sys.argv[1]) if sys.argv[2] == "md" else train(sys.argv[1], sys.argv[3])
    print(json.dumps({"ms": figures, "peak_mb": peak_memory_mb()}))
