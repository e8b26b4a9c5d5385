"""Classical potentials: the same bits for any number of threads."""

import os
import subprocess
import sys

SCRIPT = """
import sys
import numpy as np
import torch
from simkit.classical import ClassicalPotential, Coulomb, DampedShiftedCoulomb, LennardJones

threads = int(sys.argv[1])
torch.set_num_threads(threads)
rng = np.random.default_rng(13)
side, length = 14, 14 * 0.8 ** (-1 / 3)
x = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) * length / side
x += rng.normal(size=x.shape) * 0.05
q = np.where(np.arange(len(x)) % 2, 1.0, -1.0)
terms = [LennardJones(1.0, 1.0, 2.5), DampedShiftedCoulomb(q, 2.5, constant=1.0)]
potential, forces, direct = ClassicalPotential(terms, cell=np.eye(3) * length), np.empty_like(x), np.empty_like(x)
found = []
for _ in range(2):  # a new list, and an old one
    energy, virial = potential.evaluate(x, forces)
    found += [np.array(energy), virial, forces.copy()]
    x += 0.01 * rng.normal(size=x.shape)
far, _ = ClassicalPotential([Coulomb(q)]).evaluate(x, direct)
found += [np.array(far), direct]
import numba
assert numba.get_num_threads() == threads, numba.get_num_threads()
assert potential.builds == 1 and len(potential._list.chunks) == 3
sys.stdout.buffer.write(b"".join(array.tobytes() for array in found))
"""


def test_any_number_of_threads() -> None:
    found = []
    for threads in (1, 2):
        environment = os.environ | {"NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(threads)], env=environment, capture_output=True, timeout=600
        )
        assert run.returncode == 0, run.stderr.decode()
        found.append(run.stdout)
    assert len(found[0]) > 3 * 24 * 2744
    assert found[0] == found[1]
