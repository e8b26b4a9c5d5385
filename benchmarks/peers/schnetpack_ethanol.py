"""SchNetPack's networks trained on rMD17 ethanol for some processor minutes, as simkit's are by `simkit compare`.

python schnetpack_ethanol.py {painn,schnet} MINUTES DATA_DIR   prints one JSON object; with the Python of `schnetpack_speed.py`.

The same split (950 frames to train, the 1,000 test frames), loss, batches of 5, AdamW at 2e-3 with a cosine that ends with the budget,
averaged weights, one thread. The best of what was tried is not looked for: what differs is how many epochs fit.
"""

import json
import math
import sys
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import schnetpack.transform as trn  # noqa: E402
import torch  # noqa: E402
from ase import Atoms  # noqa: E402
from ase.units import kcal, mol  # noqa: E402
from schnetpack.data.loader import _atoms_collate_fn  # noqa: E402
from schnetpack.interfaces import AtomsConverter  # noqa: E402
from schnetpack_speed import CUTOFF, build  # noqa: E402

BATCH, RATE, WARMUP, DECAY, ENERGY_WEIGHT, SCALE = 5, 2e-3, 100, 0.999, 0.1, 0.05


def read(path):
    """Inputs of every frame with its neighbors, energies in eV without their mean atomic reference, forces in eV/angstrom."""
    with np.load(path) as data:
        unit = kcal / mol
        frames = [Atoms(data["nuclear_charges"], x) for x in data["coords"]]
        energies, forces = data["energies"].reshape(-1) * unit, data["forces"] * unit
    convert = AtomsConverter(neighbor_list=trn.MatScipyNeighborList(cutoff=CUTOFF), dtype=torch.float32)
    inputs = [convert(frame) for frame in frames]
    return inputs, torch.from_numpy(energies), torch.from_numpy(forces).float()


def predict(model, inputs, indices):
    out = model(_atoms_collate_fn([dict(inputs[i]) for i in indices]))
    return out["energy"].double() * SCALE, out["forces"] * SCALE


def main():
    name, minutes, data = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    inputs, energies, forces = read(f"{data}/rmd17/rmd17_ethanol_train_01.npz")
    tested, test_energies, test_forces = read(f"{data}/rmd17/rmd17_ethanol_test_01.npz")
    kept = rng.permutation(len(inputs))[:950]
    mean = energies[kept].mean()
    model = build(name, forces=True)
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(DECAY)
    )
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.0)
    start, steps, budget = time.process_time(), 0, 60 * minutes
    while time.process_time() - start < budget:
        for indices in rng.permutation(kept).reshape(-1, BATCH):
            used = (time.process_time() - start) / budget
            if used >= 1:
                break
            rate = RATE * min(1.0, (steps + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * used))
            optimizer.param_groups[0]["lr"] = rate
            energy, force = predict(model, inputs, indices)
            loss = ENERGY_WEIGHT * (energy - (energies[indices] - mean)).square().mean()
            loss = loss + (force - forces[indices].flatten(0, 1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            averaged.update_parameters(model)
            steps += 1
    trained = time.process_time() - start
    parts = [predict(averaged.module, tested, part) for part in np.arange(len(tested)).reshape(-1, 50)]
    energy, force = torch.cat([e.detach() for e, _ in parts]), torch.cat([f.detach() for _, f in parts])
    found = {
        "model": name,
        "minutes": trained / 60,
        "epochs": steps * BATCH / len(kept),
        "energy_mae_mev": 1e3 * float((energy + mean - test_energies).abs().mean()),
        "forces_mae_mev": 1e3 * float((force - test_forces.flatten(0, 1)).abs().mean()),
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
