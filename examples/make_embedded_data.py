"""Make the data set that ships with simkit: ethanol at 300-1000 K, labelled with GFN2-xTB.

    python examples/make_embedded_data.py --out embedded_ethanol_gfn2.npz --jobs 2

Needs ``pip install 'simkit[xtb]'`` and a few minutes. Two independent pools of frames are drawn, each four fifths from
Langevin dynamics (one run per temperature, a frame every 100 fs) and one fifth from normal modes of the trans minimum.
The first pool is split at random into training and validation frames, which are therefore neighbours in time. The test
frames are the second pool: other runs with other seeds, so that an error measured on them is not flattered by
neighbours in the training set.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import molecule

from simkit.files import atomic_path
from simkit.labeling.label import label_structures
from simkit.labeling.methods import isolated_atom_energies
from simkit.labeling.sample import sample_normal_modes, sample_thermal

METHOD = "gfn2-xtb"
TEMPERATURES = (300.0, 500.0, 700.0, 1000.0)
MODE_TEMPERATURES = (300.0, 500.0)  # hotter straight displacements along the torsions tear bonds
SEEDS = {"train_and_valid": 1, "test": 2, "split": 3, "order_of_test": 4}
SOURCES = ("md", "normal_modes")
SPLITS = ("train", "valid", "test")


def draw_pool(frames: int, seed: int, equilibration_steps: int, jobs: int) -> list[Atoms]:
    """Draw frames from dynamics (four fifths) and normal modes, with positions as they will be stored."""
    ethanol = molecule("CH3CH2OH")
    from_modes = frames // 5
    thermal = sample_thermal(
        ethanol,
        METHOD,
        temperatures=TEMPERATURES,
        frames=frames - from_modes,
        seed=seed,
        timestep_fs=0.5,
        spacing_steps=200,
        equilibration_steps=equilibration_steps,
        jobs=jobs,
    )
    harmonic = sample_normal_modes(
        ethanol, METHOD, temperatures=MODE_TEMPERATURES, frames=from_modes, seed=seed, jobs=jobs
    )
    pool = thermal + harmonic
    for atoms in pool:
        atoms.positions = atoms.positions.astype(np.float32)  # labels belong to the stored, rounded positions
    return pool


def shuffled(frames: list[Atoms], seed: int) -> list[Atoms]:
    """The frames in random order."""
    return [frames[index] for index in np.random.default_rng(seed).permutation(len(frames))]


def make(train: int, valid: int, test: int, equilibration_steps: int, jobs: int) -> dict[str, np.ndarray]:
    """Draw, label and return the arrays of the data set."""
    first = draw_pool(train + valid, SEEDS["train_and_valid"], equilibration_steps, jobs)
    second = draw_pool(test, SEEDS["test"], equilibration_steps, jobs)
    frames = shuffled(first, SEEDS["split"]) + shuffled(second, SEEDS["order_of_test"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.npz"
        summary = label_structures(frames, METHOD, path, jobs=jobs)
        with np.load(path) as file:
            labels = dict(file)
    print(f"labelled {summary.labelled} frames in {summary.seconds:.1f} s")

    elements = sorted(set(labels["numbers"].tolist()))
    references = isolated_atom_energies(METHOD, elements)
    metadata = {
        **json.loads(str(labels["metadata"])),
        "name": "embedded ethanol",
        "units": {
            "positions": "angstrom",
            "energy": "eV",
            "forces": "eV/angstrom",
            "dipole": "e*angstrom",
            "temperature": "K",
            "reference_energies": "eV",
        },
        "source": "made by simkit, examples/make_embedded_data.py",
        "source_codes": dict(enumerate(SOURCES)),
        "split_codes": dict(enumerate(SPLITS)),
        "sampling": "Langevin dynamics, 0.5 fs, friction 0.01/fs, a frame every 100 fs after "
        f"{equilibration_steps * 0.5 / 1000:g} ps, and normal modes (one fifth); train and valid: random split of one "
        "pool; test: frames of separate runs",
        "seeds": SEEDS,
    }
    return {
        "n_atoms": labels["n_atoms"].astype(np.uint8),
        "numbers": labels["numbers"],
        "positions": labels["positions"].astype(np.float32),
        "energy": labels["energy"],
        "forces": labels["forces"].astype(np.float32),
        "dipole": labels["dipole"].astype(np.float32),
        "temperature": np.array([atoms.info["temperature"] for atoms in frames], dtype=np.float32),
        "source": np.array([SOURCES.index(atoms.info["source"]) for atoms in frames], dtype=np.uint8),
        "changed_bonds": np.array([atoms.info["changed_bonds"] for atoms in frames], dtype=np.uint8),
        "split": np.repeat(np.arange(3), (train, valid, test)).astype(np.uint8),
        "reference_numbers": np.array(elements, dtype=np.uint8),
        "reference_energies": np.array([references[number] for number in elements]),
        "metadata": np.array(json.dumps(metadata)),
    }


def report(arrays: dict[str, np.ndarray]) -> None:
    """Print what was made, by source and temperature."""
    atoms = int(arrays["n_atoms"][0])
    forces = arrays["forces"].reshape(-1, atoms, 3)
    lowest = arrays["energy"].min()
    print("source        T/K  frames  energy above lowest/eV (mean, sd, max)  forces/eV/A (rms, max)  changed bonds")
    for source, name in enumerate(SOURCES):
        for temperature in np.unique(arrays["temperature"]):
            chosen = (arrays["source"] == source) & (arrays["temperature"] == temperature)
            if not chosen.any():
                continue
            energy, force = arrays["energy"][chosen] - lowest, forces[chosen]
            print(
                f"{name:13s}{temperature:5.0f}{chosen.sum():8d}   "
                f"{energy.mean():10.3f}{energy.std():8.3f}{energy.max():8.3f}"
                f"{np.sqrt((force**2).mean()):23.3f}{np.abs(force).max():8.2f}"
                f"{(arrays['changed_bonds'][chosen] > 0).sum():15d}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the .npz to write")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--smoke", action="store_true", help="a few frames only, to see that the script runs")
    options = parser.parse_args()
    size = (16, 4, 10, 20) if options.smoke else (1000, 200, 300, 4000)
    arrays = make(*size, jobs=options.jobs)
    report(arrays)
    with atomic_path(options.out) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
    print(f"wrote {options.out}: {options.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
