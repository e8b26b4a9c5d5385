"""NequIP of its authors on the work of speed.py; run with the Python of an environment that holds ``torch`` and ``nequip==0.19.1``.

python nequip_speed.py nequip md [eager|compile]   prints one JSON object.

The size is simkit's default: 4 layers, l_max 2, both parities, 64 features of each irrep, radial networks with 2 hidden layers of 64. The
package's first layer has no self-connection. ``compile`` is its own mode for inference by torch.compile, which takes minutes to start.
"""

import json
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nequip.integrations.ase import NequIPCalculator  # noqa: E402
from nequip.integrations.utils import basic_transforms  # noqa: E402
from nequip.model import NequIPGNNModel  # noqa: E402
from nequip.utils.global_state import set_global_state  # noqa: E402
from systems import ase_step_ms, peak_memory_mb, structures  # noqa: E402

CUTOFF = 5.0


def build(elements, mode):
    """Random weights at the size of simkit's default."""
    set_global_state(allow_tf32=False)
    return NequIPGNNModel(
        seed=0,
        model_dtype="float32",
        compile_mode=mode,
        type_names=elements,
        r_max=CUTOFF,
        num_layers=4,
        l_max=2,
        parity=True,
        num_features=64,
        radial_mlp_depth=2,
        radial_mlp_width=64,
        bessel_trainable=True,
        avg_num_neighbors=12.0,
        per_type_energy_scales=1.0,
        per_type_energy_shifts=0.0,
    ).eval()


def md(mode):
    results = {}
    for label, atoms in structures().items():
        elements = ["H", "C", "Si"]
        transforms = basic_transforms({}, CUTOFF, elements, {name: name for name in elements})
        calculator = NequIPCalculator(build(elements, mode), "cpu", transforms=transforms)
        results[label] = ase_step_ms(atoms, calculator)
    return results


if __name__ == "__main__":
    if sys.argv[2] != "md":
        raise SystemExit("training of NequIP is bound to its own trainer, which is not timed here")
    figures = md(sys.argv[3] if sys.argv[3:] and sys.argv[3] else "eager")
    print(json.dumps({"ms": figures, "peak_mb": peak_memory_mb()}))
