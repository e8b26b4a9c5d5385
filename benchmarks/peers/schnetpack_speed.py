"""SchNetPack on the work of speed.py; run with the Python of an environment that holds ``schnetpack==2.1.1``.

python schnetpack_speed.py {painn,schnet} {md,train} DATA_DIR   prints one JSON object.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import schnetpack as spk  # noqa: E402
import schnetpack.transform as trn  # noqa: E402
import torch  # noqa: E402
from schnetpack.interfaces import AtomsConverter, SpkCalculator  # noqa: E402
from systems import ase_step_ms, median_ms, peak_memory_mb, structures, training_batches  # noqa: E402

CUTOFF = 5.0


def build(name, *, forces, float64_output=False):
    """Random weights at the published size."""
    basis, cutoff = spk.nn.GaussianRBF(n_rbf=20, cutoff=CUTOFF), spk.nn.CosineCutoff(CUTOFF)
    kind, layers = (spk.representation.SchNet, 6) if name == "schnet" else (spk.representation.PaiNN, 3)
    heads = [spk.atomistic.Atomwise(n_in=128, output_key="energy")]
    if forces:
        heads.append(spk.atomistic.Forces(energy_key="energy", force_key="forces"))
    return spk.model.NeuralNetworkPotential(
        representation=kind(n_atom_basis=128, n_interactions=layers, radial_basis=basis, cutoff_fn=cutoff),
        input_modules=[spk.atomistic.PairwiseDistances()],
        output_modules=heads,
        postprocessors=[trn.CastTo64()] if float64_output else [],
    )


def md(name):
    results = {}
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        torch.save(build(name, forces=True, float64_output=True), file.name)
        for label, atoms in structures().items():
            calculator = SpkCalculator(
                model_file=file.name,
                neighbor_list=trn.MatScipyNeighborList(cutoff=CUTOFF),
                energy_key="energy",
                force_key="forces",
                energy_unit="eV",
                position_unit="Ang",
            )
            results[label] = ase_step_ms(atoms, calculator)
    return results


def train(name, data):
    convert = AtomsConverter(neighbor_list=trn.MatScipyNeighborList(cutoff=CUTOFF), dtype=torch.float32)
    results = {}
    for label, (frames, forces) in training_batches(data).items():
        model, batch = build(name, forces=forces), convert(frames)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

        def step(model=model, batch=batch, optimizer=optimizer, forces=forces):
            out = model({key: value.clone() for key, value in batch.items()})
            loss = (out["energy"] ** 2).mean()
            if forces:
                loss = loss + (out["forces"] ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        results[label] = median_ms(step)
    return results


if __name__ == "__main__":
    figures = md(sys.argv[1]) if sys.argv[2] == "md" else train(sys.argv[1], sys.argv[3])
    print(json.dumps({"ms": figures, "peak_mb": peak_memory_mb()}))
