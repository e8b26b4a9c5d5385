"""The CUDA kernels against the loop for CPUs: in Numba's CUDA simulator everywhere, and on a device where there is one.

The simulator is chosen when Numba is imported, so that the runs in it are made by this file as a program of its own.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numba import cuda as numba_cuda

from simkit import integrators
from simkit.errors import ConfigError
from simkit.integrators import Bath, cpu, philox, philox_torch

NAMES = integrators.available()
OFFSETS = [0, 2, 2, 7]
FIRST = 2**33  # more than 32 bits of steps
SIMULATED = "NUMBA_ENABLE_CUDASIM"


def spring(x: Any, f: Any) -> None:
    """For arrays and tensors: a force that binds each atom to the origin and, more and more, to the first atom."""
    f[:] = -x - 0.3 * (x - x[:1]) ** 3


def cases() -> list[tuple[str, str, int]]:
    """Every scheme in float64; a few in float32, and with one or two components per atom."""
    return [
        *((name, "float64", 3) for name in NAMES),
        *((name, "float32", 3) for name in ("velocity-verlet", "obabo", "yoshida-6")),
        *(("baoab", "float64", components) for components in (1, 2, 4)),
    ]


def bath_of(name: str, of_each: bool) -> Bath | None:
    if not integrators.get(name).stochastic:
        return None
    if of_each:
        return Bath([0.5, 1.0, 2.0], [0.7, 1.0, 1.6], 2**63 + 5, [9, 2**32 - 1, 4])
    return Bath(0.5, 0.7, 3)


def run(
    module: Any, name: str, dtype: str, components: int, device: str, of_each: bool = True, heated: bool = False
) -> np.ndarray:
    """Positions and velocities, or the heat, after a few steps in two runs; one atom is frozen."""
    rng = np.random.default_rng(3)
    start = torch.from_numpy(rng.normal(size=(2, 7, components))).to(device, getattr(torch, dtype))
    start[1, 3] = 0
    x, v = start[0].clone(), start[1].clone()
    f = torch.full_like(x, torch.nan)
    masses = torch.from_numpy(rng.uniform(1, 3, 7))
    masses[3] = torch.inf
    heat = torch.zeros(7, components, dtype=torch.float64, device=device) if heated else None
    integrator = module.Integrator(integrators.get(name), spring, x, v, f, masses, offsets=OFFSETS, heat=heat)
    integrator.evaluate_forces()
    memory, bath = (x.data_ptr(), v.data_ptr()), bath_of(name, of_each)
    integrator.run(2, timestep=0.1, first_step=FIRST, bath=bath)
    integrator.run(1, timestep=0.1, first_step=FIRST + 2, bath=bath)
    if (x.data_ptr(), v.data_ptr()) != memory:
        raise RuntimeError("the tensors were replaced")
    if torch.equal(x, start[0]):
        raise RuntimeError("nothing moved")
    if heat is not None:
        return heat.cpu().numpy()
    return torch.stack([x, v]).cpu().numpy()


def changing_baths(module: Any, device: str) -> tuple[np.ndarray, list[int]]:
    """Positions after runs in baths that are made anew for each, and the copies to the device so far after each of them."""
    x = torch.from_numpy(np.random.default_rng(5).normal(size=(7, 3))).to(device)
    v, f, masses = torch.zeros_like(x), torch.zeros_like(x), np.ones(7)
    integrator = module.Integrator(integrators.get("obabo"), spring, x, v, f, masses, offsets=OFFSETS)
    upload, copies, after = getattr(integrator, "_upload", None), 0, []

    def counted(*arguments: Any) -> Any:
        nonlocal copies
        copies += 1
        return upload(*arguments)

    integrator._upload = counted
    kt, names = np.array([0.7, 1.0, 1.6]), np.array([9, 2, 4])
    for step, (factor, shift) in enumerate([(1, 0), (1, 0), (2, 0), (2, 1), (2, 1)]):
        kt *= factor if step == 2 else 1  # in place: what was kept must not change with it
        names += shift if step == 3 else 0
        integrator.run(1, timestep=0.1, first_step=step, bath=Bath(0.5, kt, 11, names))
        after.append(copies)
    return x.cpu().numpy(), after


def everything(module: Any, device: str) -> dict[str, np.ndarray]:
    results = {"-".join(map(str, case)): run(module, *case, device) for case in cases()}
    for dtype in ("float64", "float32"):
        results[f"heat {dtype}"] = run(module, "obabo", dtype, 3, device, heated=True)
    positions, copies = changing_baths(module, device)
    results |= {"baths": positions, "copies": np.array(copies)}
    return results | {"one bath": run(module, "obabo", "float64", 3, device, of_each=False)}


def known_answers() -> np.ndarray:
    """Philox4x32-10 of the counters (i, 0, 0, 0) under the key 0 by a CUDA kernel."""

    @numba_cuda.jit
    def fill(out: Any) -> None:
        i = numba_cuda.grid(1)
        if i < out.shape[0]:
            zero = np.uint64(0)
            words = philox.philox4x32(np.uint64(i), zero, zero, zero, zero, zero)
            out[i, 0], out[i, 1], out[i, 2], out[i, 3] = words

    if os.environ.get(SIMULATED) == "1":
        out = np.zeros((5, 4), dtype=np.int64)
        fill[1, 8](out)
        return out
    device = torch.zeros((5, 4), dtype=torch.int64, device="cuda")
    fill[1, 8](numba_cuda.as_cuda_array(device))
    torch.cuda.synchronize()
    return device.cpu().numpy()


def errors(device: str) -> dict[str, np.ndarray]:
    """The messages for unusable tensors, each in an array of its own."""
    from simkit.integrators import cuda

    other = torch.zeros(3, 2, device="meta")
    good = {name: torch.zeros(3, 2, device=device) for name in ("positions", "velocities", "forces")}
    changes: dict[str, dict[str, Any]] = {
        "kind": {"forces": np.zeros((3, 2))},
        "device": {"forces": other},
        "strides": {"velocities": torch.zeros(3, 4, device=device)[:, ::2]},
        "gradients": {"positions": torch.zeros(3, 2, device=device, requires_grad=True)},
        "dtype": {"velocities": torch.zeros(3, 2, device=device, dtype=torch.float64)},
        "masses": {"masses": torch.zeros(3)},
    }
    found = {}
    for name, change in changes.items():
        try:
            cuda.Integrator(integrators.get("velocity-verlet"), spring, **({"masses": torch.ones(3)} | good | change))
        except ConfigError as error:
            found[name] = np.array(str(error))
    return found


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """All results of this file as a program under the simulator."""
    path = tmp_path_factory.mktemp("simulator") / "results.npz"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", __file__, str(path)],
        env=os.environ | {SIMULATED: "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(path) as results:
        return dict(results)


def tolerance(case: str) -> float:
    return 2e-6 if "float32" in case else 1e-13


@pytest.mark.parametrize("case", ["-".join(map(str, case)) for case in cases()])
def test_kernels_in_the_simulator(case: str, simulated: dict[str, np.ndarray]) -> None:
    name, dtype, components = case.rsplit("-", 2)
    expected = run(cpu, name, dtype, int(components), "cpu")
    assert simulated[case].dtype == expected.dtype
    np.testing.assert_allclose(simulated[case], expected, rtol=0, atol=tolerance(case))


def test_one_bath_for_all_in_the_simulator(simulated: dict[str, np.ndarray]) -> None:
    expected = run(cpu, "obabo", "float64", 3, "cpu", of_each=False)
    np.testing.assert_allclose(simulated["one bath"], expected, rtol=0, atol=1e-13)
    assert np.abs(expected - run(cpu, "obabo", "float64", 3, "cpu")).max() > 1e-3


def test_baths_are_copied_when_they_change(simulated: dict[str, np.ndarray]) -> None:
    expected, _ = changing_baths(cpu, "cpu")
    np.testing.assert_allclose(simulated["baths"], expected, rtol=0, atol=1e-13)
    assert simulated["copies"].tolist() == [3, 3, 4, 5, 5]  # first the program, factors and names


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_heat_in_the_simulator(dtype: str, simulated: dict[str, np.ndarray]) -> None:
    expected = run(cpu, "obabo", dtype, 3, "cpu", heated=True)
    assert np.array_equal(np.abs(expected).sum(1) > 0, np.arange(7) != 3)
    np.testing.assert_allclose(simulated[f"heat {dtype}"], expected, rtol=0, atol=20 * tolerance(dtype))


def test_random_numbers_in_the_simulator(simulated: dict[str, np.ndarray]) -> None:
    assert simulated["words"][0].tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    counters = np.pad(np.arange(5)[:, None], ((0, 0), (0, 3)))
    assert np.array_equal(simulated["words"], philox.random_words(counters, [0, 0]))


def check_messages(found: dict[str, Any], kind: str) -> None:
    assert f"forces must be a {kind} tensor; found ndarray" in str(found["kind"])
    assert f"forces must be a {kind} tensor; found one on meta" in str(found["device"])
    assert "velocities must be contiguous and without gradients" in str(found["strides"])
    assert "positions must be contiguous and without gradients" in str(found["gradients"])
    assert "velocities must be like positions" in str(found["dtype"])
    assert "masses must be positive" in str(found["masses"])


def test_unusable_tensors_are_refused_in_the_simulator(simulated: dict[str, np.ndarray]) -> None:
    check_messages(simulated, "cpu")


@pytest.mark.gpu
def test_kernels_on_a_device() -> None:
    from simkit.integrators import cuda

    expected = everything(cpu, "cpu")
    for case, found in everything(cuda, "cuda").items():
        # The device joins products and sums into one rounding.
        np.testing.assert_allclose(found, expected[case], rtol=0, atol=10 * tolerance(case), err_msg=case)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Grid size")
def test_random_numbers_on_a_device() -> None:
    counters = np.pad(np.arange(5)[:, None], ((0, 0), (0, 3)))
    assert np.array_equal(known_answers(), philox.random_words(counters, [0, 0]))
    replica, atom = torch.arange(50, device="cuda")[:, None], torch.arange(100, device="cuda")
    found = philox_torch.normals(2**64 - 1, 2**48 - 1, replica, atom, 3).cpu().numpy()
    expected = philox.normals(2**64 - 1, 2**48 - 1, replica.cpu().numpy(), atom.cpu().numpy(), 3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


@pytest.mark.gpu
def test_unusable_tensors_are_refused_on_a_device() -> None:
    check_messages(errors("cuda"), "cuda")


@pytest.mark.gpu
def test_kernels_run_on_the_current_stream() -> None:
    """Behind work that torch has queued on a stream of its own, and without waiting for it."""
    from simkit.integrators import cuda

    atoms = 100_000
    x, v, f = (torch.zeros(atoms, 3, device="cuda") for _ in range(3))
    integrator = cuda.Integrator(integrators.get("velocity-verlet"), lambda a, b: None, x, v, f, torch.ones(atoms))
    integrator.run(1, timestep=1.0)  # compiles
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # about a tenth of a second, then velocities are set
        v.fill_(1.0)
        integrator.run(3, timestep=1.0)
        waiting = not stream.query()
    torch.cuda.synchronize()
    assert waiting
    assert torch.equal(x, torch.full_like(x, 3.0))


@pytest.mark.gpu
def test_differentiable_integrator_on_a_device() -> None:
    from simkit.integrators.torch import conservative, integrate

    ends = []
    for device in ("cpu", "cuda"):
        generator = torch.Generator().manual_seed(1)
        x, v = torch.randn(2, 3, 5, 3, generator=generator, dtype=torch.float64).to(device)
        stiffness = torch.tensor(0.7, dtype=torch.float64, device=device, requires_grad=True)
        force = conservative(lambda a, k: 0.5 * k * a.square().sum())
        end = integrate(
            integrators.get("baoab"), force, x, v, masses=2.0, timestep=0.1, steps=10, parameters=(stiffness,),
            bath=Bath(1.0, 0.5, 3), gradient="reversible",
        )  # fmt: skip
        torch.stack(end).sum().backward()
        ends.append([*end, stiffness.grad])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-11, atol=1e-11)


if __name__ == "__main__":
    from simkit.integrators import cuda

    np.savez(sys.argv[1], words=known_answers(), **errors("cpu"), **everything(cuda, "cpu"))
    assert Path(sys.argv[1]).is_file()
