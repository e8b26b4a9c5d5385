"""MACE of its authors on the work of speed.py; run with the Python of an environment that holds ``torch`` and ``mace-torch==0.3.16``.

python mace_speed.py {mace,mace-0e} {md,train} DATA_DIR   prints one JSON object.

mace has 128x0e + 128x1o features, the size of simkit's default, and mace-0e 128x0e; both have two layers, l_max 3 and correlation 3. The
package pins e3nn 0.4.4, which imports beside a current torch only if TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set, as it is here.
"""

import json
import os
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from e3nn import o3  # noqa: E402
from mace import data, modules, tools  # noqa: E402
from mace.calculators import MACECalculator  # noqa: E402
from mace.tools import torch_geometric  # noqa: E402
from systems import ase_step_ms, median_ms, peak_memory_mb, structures, training_batches  # noqa: E402

CUTOFF = 5.0
HIDDEN = {"mace": "128x0e + 128x1o", "mace-0e": "128x0e"}


def build(name, elements):
    """Random weights at the published size."""
    torch.manual_seed(0)
    return modules.ScaleShiftMACE(
        r_max=CUTOFF,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
        num_interactions=2,
        num_elements=len(elements),
        hidden_irreps=o3.Irreps(HIDDEN[name]),
        MLP_irreps=o3.Irreps("16x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.zeros(len(elements)),
        avg_num_neighbors=14.0,
        atomic_numbers=elements,
        correlation=3,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )


def md(name):
    calculator = MACECalculator(models=[build(name, [1, 6, 14])], device="cpu", default_dtype="float32")
    return {label: ase_step_ms(atoms, calculator) for label, atoms in structures().items()}


def train(name, folder):
    elements = [1, 6, 7, 8, 9]
    table = tools.AtomicNumberTable(elements)
    results = {}
    for label, (frames, forces) in training_batches(folder).items():
        graphs = [
            data.AtomicData.from_config(data.config_from_atoms(frame), z_table=table, cutoff=CUTOFF) for frame in frames
        ]
        batch = next(iter(torch_geometric.dataloader.DataLoader(graphs, batch_size=len(graphs)))).to_dict()
        model = build(name, elements)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

        def step(model=model, batch=batch, optimizer=optimizer, forces=forces):
            out = model(dict(batch), training=True, compute_force=forces)
            loss = (out["energy"] ** 2).mean()
            if forces:
                loss = loss + (out["forces"] ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        results[label] = median_ms(step)
    return results


if __name__ == "__main__":
    torch.set_default_dtype(torch.float32)
    figures = md(sys.argv[1]) if sys.argv[2] == "md" else train(sys.argv[1], sys.argv[3])
    # The package prints notes of its own first; the result is the last line.
    print(json.dumps({"ms": figures, "peak_mb": peak_memory_mb()}))
