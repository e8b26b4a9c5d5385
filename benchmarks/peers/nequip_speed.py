"""NequIP of its authors on the work of speed.py; run with the Python of an environment that holds ``torch`` and ``nequip==0.19.1``.

python nequip_speed.py nequip md [eager|compiled]   prints one JSON object.

The size is simkit's default: 4 layers, l_max 2, both parities, 64 features of each irrep, radial networks with 2 hidden layers of 64. The
package's first layer has no self-connection. ``compiled`` is what its own command ``nequip-compile --mode aotinductor --target ase`` does.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from nequip.integrations.ase import NequIPCalculator  # noqa: E402
from nequip.integrations.utils import basic_transforms  # noqa: E402
from nequip.model import NequIPGNNModel  # noqa: E402
from nequip.nn.compile import DictInputOutputWrapper  # noqa: E402
from nequip.scripts._compile_utils import ASE_TARGET  # noqa: E402
from nequip.utils.aot import aot_export_model  # noqa: E402
from nequip.utils.global_state import set_global_state  # noqa: E402
from systems import ase_step_ms, peak_memory_mb, structures  # noqa: E402

CUTOFF = 5.0
ELEMENTS = ["H", "C", "Si"]


def build():
    """Random weights at the size of simkit's default."""
    set_global_state(allow_tf32=False)
    return NequIPGNNModel(
        seed=0,
        model_dtype="float32",
        compile_mode="eager",
        type_names=ELEMENTS,
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


def calculator(model):
    transforms = basic_transforms({}, CUTOFF, ELEMENTS, {name: name for name in ELEMENTS})
    return NequIPCalculator(model, "cpu", transforms=transforms)


def compiled(model, folder):
    """The model for any number of atoms and edges, traced on silicon."""
    data = ASE_TARGET["data_settings"](calculator(model).atoms_to_data(structures()["si64"]))
    sizes = {name: torch.export.Dim(f"num_{name}s", min=2, max=torch.inf) for name in ("node", "edge")}
    sizes["graph"] = torch.export.Dim.STATIC
    fields = ASE_TARGET["input"], ASE_TARGET["output"]
    path = aot_export_model(model, "cpu", *fields, data, sizes, str(Path(folder) / "model.nequip.pt2"))
    return DictInputOutputWrapper(torch._inductor.aoti_load_package(path), *fields).eval()


def md(mode):
    with tempfile.TemporaryDirectory() as folder:
        model = compiled(build(), folder) if mode == "compiled" else build()
        return {label: ase_step_ms(atoms, calculator(model)) for label, atoms in structures().items()}


if __name__ == "__main__":
    if sys.argv[2] != "md":
        raise SystemExit("training of NequIP is bound to its own trainer, which is not timed here")
    figures = md(sys.argv[3] if sys.argv[3:] and sys.argv[3] else "eager")
    print(json.dumps({"ms": figures, "peak_mb": peak_memory_mb()}))
