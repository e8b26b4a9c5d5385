"""The fast path of a GPU against that of a CPU and the reference: in Numba's CUDA simulator everywhere, and on a device where there is one.

The simulator is chosen when Numba is imported, so that the runs in it are made by this file as a program of its own.
"""

import copy
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from fast_cases import beyond, graph, model, narrow, slab

from simkit import potentials
from simkit.fast.potential import ENERGY_TOLERANCE, FORCE_TOLERANCE, FastPotential
from simkit.fast.rows import Rows
from simkit.fast.workspace import Workspace
from simkit.graph import AtomGraph
from simkit.potential import Potential

SIMULATED = "NUMBA_ENABLE_CUDASIM"
OUTPUTS = ("energy", "energies", "forces")
ROWS = ("ptr", "sender", "reverse", "knot", "vector", "distance", "unit", "basis")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "painn float64": ("painn", {"channels": 8}),
    "painn float32": ("painn", {"channels": 8, "layers": 2, "dtype": "float32"}),
    "painn two warps": ("painn", {"channels": 37, "layers": 2}),
    "painn one layer": ("painn", {"channels": 5, "layers": 1, "anchored": True}),
    "schnet float64": ("schnet", {"channels": 8}),
    "schnet float32": ("schnet", {"channels": 8, "layers": 2, "dtype": "float32"}),
    "schnet filters": ("schnet", {"channels": 6, "filters": 37, "layers": 2}),
    "schnet one layer": ("schnet", {"channels": 5, "layers": 1, "anchored": True}),
}


def potential_of(case: str, **options: Any) -> Potential:
    """A model with weights so large that activations are far from linear."""
    architecture, chosen = CASES[case]
    potential = model(architecture, **(chosen | options))
    with torch.no_grad():
        for weight in potential.parameters():
            weight.mul_(1.2)
    return potential


def mixed() -> AtomGraph:
    """Rows without an edge, and longer than a tile; atoms that are their own neighbors."""
    return graph(molecule("H2O"), narrow(), Atoms("C"), beyond())


def results(case: str, device: str) -> dict[str, np.ndarray]:
    """Everything that a new fast path says."""
    fast = potential_of(case).to(device).fast()
    found = fast.evaluate(mixed().to(device), OUTPUTS)
    found |= fast.evaluate(graph(narrow()).to(device), ("stress",))
    # What warps write on their own, which in the simulator they could share without harm.
    found["parts"] = fast.workspace._given["gradient"][1].tensor.abs().sum((0, 2))
    return {f"{case} {name}": value.cpu().numpy() for name, value in found.items()}


def rows(device: str) -> dict[str, np.ndarray]:
    """The rows of a list with many images, and the forces that arbitrary gradients in two parts make."""
    from simkit.fast.cuda_rows import CudaRows
    from simkit.fast.cuda_workspace import DeviceWorkspace

    workspace, found = DeviceWorkspace(torch.device(device)), {}
    with workspace.active():
        for name, edges in structures().items():
            made = CudaRows(workspace, edges.to(device), 4.0, 64, torch.float64, 40)
            count, atoms = made.edges, made.atoms
            made.gradient.tensor.copy_(gradients(count))
            forces, virials = made.forces(virial=True)
            sizes = {"ptr": atoms + 1, "sender": count, "reverse": count, "knot": count, "distance": count}
            for key in ROWS:
                array = getattr(made, key)
                array = array if hasattr(array, "shape") else array.flat
                values = array.copy_to_host() if device == "cuda" else array
                found[f"{name} {key}"] = np.array(values[: sizes.get(key, count * (8 if key == "basis" else 3))])
            found |= {f"{name} forces": forces.cpu().numpy(), f"{name} virials": virials.cpu().numpy()}
    return found


def structures() -> dict[str, AtomGraph]:
    without = graph(molecule("NH3"))
    del without.edge_shift
    return {"images": graph(narrow(), slab()), "molecule": without}


def gradients(edges: int) -> torch.Tensor:
    return torch.randn(edges, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(edges))


def small(device: str) -> tuple[FastPotential, AtomGraph]:
    fast = model("schnet", channels=4, layers=1).to(device).fast()
    return fast, graph(molecule("H2O"), molecule("H2O")).to(device)


def is_reference(found: torch.Tensor, fast: FastPotential, edges: AtomGraph) -> bool:
    """Whether forces are those of the reference path, which on a GPU differ from call to call by their rounding."""
    return torch.allclose(found, fast.potential(edges)["forces"], rtol=0, atol=1e-13)


def kept(device: str) -> dict[str, np.ndarray]:
    """What stays from call to call, and what does not: edges while they are the same, and never results."""
    fast, edges = small(device)
    first = fast(edges)["forces"]
    before, order = first.clone(), fast.workspace._kept["order"][2]
    same = [torch.equal(fast(edges)["forces"], first), fast.workspace._kept["order"][2] is order]
    edges.pos[:3] += torch.tensor([[0.1, 0, 0], [0, 0.2, 0], [0, 0, 0.0]], device=device)
    moved = fast(edges)["forces"]
    same += [fast.workspace._kept["order"][2] is order, torch.equal(first, before)]
    fresh = small(device)[0](edges)["forces"]
    copies = [copy.deepcopy(fast)(edges)["forces"], pickle.loads(pickle.dumps(fast))(edges)["forces"]]
    same += [torch.equal(moved, other) for other in (fresh, *copies)]
    edges.edge_index[:] = edges.edge_index.flip(1)  # in place, to an order that rows cannot be made of
    calls = fast.calls
    unordered = fast(edges)["forces"]
    same.append(fast.calls == calls and is_reference(unordered, fast, edges))
    return {"kept": np.array(same), "moved": (moved - first)[3:].cpu().numpy()}


def said_by(action: Callable[[], Any]) -> tuple[Any, str]:
    """What an action returns, and its only warning."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = action()
    texts = [str(w.message) for w in seen if w.category is RuntimeWarning]
    return found, " | ".join(texts)


def failures(device: str) -> dict[str, np.ndarray]:
    """What is said, once, where something is wrong, and that the reference goes on."""
    from numba import cuda

    from simkit.fast import cuda_scalar_rows

    told: dict[str, str] = {}
    good = [True]

    def check(name: str, fast: FastPotential, edges: AtomGraph, text: str) -> None:
        again, more = said_by(lambda: fast(edges))
        good.append(is_reference(again["forces"], fast, edges) and not more)
        told[name] = text

    fast, edges = small(device)
    fast(edges)
    assert fast.engine is not None
    fast.engine.tables.values[0].mul_(1.1)
    fast.check_every = 1
    _, text = said_by(lambda: fast(edges))
    check("sabotage", fast, edges, text)

    def broken(*arguments: Any) -> None:
        raise TypeError("no such instruction\nin a long report")

    before, cuda_scalar_rows.convolve = cuda_scalar_rows.convolve, broken
    (fast, edges), text = said_by(lambda: small(device))
    cuda_scalar_rows.convolve = before
    check("kernels", fast, edges, text)
    available, cuda.is_available = cuda.is_available, lambda: False
    (fast, edges), text = said_by(lambda: small(device))
    cuda.is_available = available
    check("numba", fast, edges, text)
    other = potentials.build("egnn", elements=[1, 8], cutoff=4.0, dtype="float64", seed=0).to(device).fast()
    check("other", other, edges, other.reason)
    fast, edges = small(device)
    edges.pos[4, 1] = torch.nan
    found = fast.evaluate(edges)["forces"]
    finite = found.isfinite().all(1).tolist()
    return {name: np.array(text) for name, text in told.items()} | {"good": np.array(good), "finite": np.array(finite)}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """All results of this file as a program under the simulator."""
    path = tmp_path_factory.mktemp("simulator") / "results.npz"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", __file__, str(path)],
        env=os.environ | {SIMULATED: "1", "PYTHONPATH": str(Path(__file__).parent / "shared")},
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(path) as found:
        return dict(found)


def check_results(case: str, found: dict[str, np.ndarray], rounding: float) -> None:
    """The kernels of a CPU differ by the order of sums; the reference in float64 by the tables, too."""
    own, edges, crystal = potential_of(case), mixed(), graph(narrow())
    fast = own.fast()
    assert fast.engine is not None
    expected = fast.evaluate(edges, OUTPUTS) | fast.evaluate(crystal, ("stress",))
    for name, value in expected.items():
        assert found[f"{case} {name}"].dtype == value.numpy().dtype
        np.testing.assert_allclose(found[f"{case} {name}"], value.numpy(), rtol=1e-14, atol=rounding, err_msg=name)
    reference = potential_of(case, dtype="float64")(edges, OUTPUTS)
    largest = float(reference["forces"].abs().max())
    assert largest > 0.02
    for name, limit in (("forces", FORCE_TOLERANCE), ("energies", ENERGY_TOLERANCE)):
        bound = limit[own.dtype] / 5 * max(1.0, largest)
        np.testing.assert_allclose(found[f"{case} {name}"], reference[name].numpy(), rtol=0, atol=bound)
    assert np.abs(found[f"{case} stress"]).max() > 1e-3
    assert (found[f"{case} parts"] > 0).tolist() == [True] * -(-fast.engine.channels // 32)


def check_rows(found: dict[str, np.ndarray]) -> None:
    for name, edges in structures().items():
        made = Rows(Workspace(), edges, 4.0, 64, torch.float64)
        made.gradient.array[:] = gradients(len(made.sender)).sum(1).numpy()
        forces, virials = made.forces(virial=True)
        for key in ROWS:
            value = getattr(made, key)
            expected = (value if isinstance(value, np.ndarray) else value.array).reshape(-1)
            np.testing.assert_allclose(found[f"{name} {key}"], expected, rtol=1e-13, atol=1e-12, err_msg=key)
        np.testing.assert_allclose(found[f"{name} forces"], forces.numpy(), rtol=0, atol=1e-11)
        np.testing.assert_allclose(found[f"{name} virials"], virials.numpy(), rtol=0, atol=1e-11)


def check_kept(found: dict[str, np.ndarray]) -> None:
    assert found["kept"].all()
    assert len(found["kept"]) == 8
    assert np.abs(found["moved"]).max() == 0  # of the molecule that stayed


def check_failures(found: dict[str, Any]) -> None:
    assert "given up after 2 calls: forces differ by up to" in str(found["sabotage"])
    assert "do not run on this GPU (TypeError: no such instruction); the reference" in str(found["kernels"])
    assert "needs numba.cuda, which cannot be used here" in str(found["numba"])
    assert str(found["other"]) == "egnn has no fast path on a GPU yet"
    assert found["good"].all()
    assert len(found["good"]) == 5
    assert found["finite"].tolist() == 3 * [True] + 3 * [False]


@pytest.mark.parametrize("case", CASES)
def test_results_in_the_simulator(case: str, simulated: dict[str, np.ndarray]) -> None:
    check_results(case, simulated, 5e-6 if "float32" in case else 1e-12)


def test_rows_in_the_simulator(simulated: dict[str, np.ndarray]) -> None:
    check_rows(simulated)


def test_what_is_kept_in_the_simulator(simulated: dict[str, np.ndarray]) -> None:
    check_kept(simulated)


def test_failures_in_the_simulator(simulated: dict[str, np.ndarray]) -> None:
    check_failures(simulated)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_results_on_a_device(case: str) -> None:
    check_results(case, results(case, "cuda"), 1e-4 if "float32" in case else 1e-10)


@pytest.mark.gpu
def test_everything_else_on_a_device() -> None:
    check_rows(rows("cuda"))
    check_kept(kept("cuda"))
    check_failures(failures("cuda"))


if __name__ == "__main__":
    found = rows("cpu") | kept("cpu") | failures("cpu")
    for one in CASES:
        found |= results(one, "cpu")
    np.savez(sys.argv[1], **found)
