"""The compiled loop of the splitting integrators for CPUs, against the tables written out, and in any batch."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from integrator_cases import DETERMINISTIC, NAMES, STOCHASTIC, SYMMETRIC, henon_heiles, run
from numba import njit

from simkit import integrators
from simkit.integrators import Bath, Operator, Scheme, cpu, philox
from simkit.units import FORCE_TO_ACCELERATION


@njit
def chain(replica: int, x: np.ndarray, f: np.ndarray, stiffness: np.ndarray) -> None:
    """Atoms of one replica, bound to the origin and to the next atom, with a stiffness of the replica."""
    f[:] = -x
    for i in range(len(x) - 1):
        for d in range(x.shape[1]):
            stretch = x[i + 1, d] - x[i, d]
            pull = stiffness[replica] * stretch * stretch * stretch
            f[i, d] += pull
            f[i + 1, d] -= pull


def chains(offsets: list[int], stiffness: np.ndarray) -> Callable[[np.ndarray, np.ndarray], None]:
    """The same for all replicas, in Python."""

    def force(x: np.ndarray, f: np.ndarray) -> None:
        for replica, (start, end) in enumerate(zip(offsets, offsets[1:], strict=False)):
            chain.py_func(replica, x[start:end], f[start:end], stiffness)

    return force


def written_out(
    scheme: Scheme,
    force: Callable[[np.ndarray, np.ndarray], None],
    x: np.ndarray,
    v: np.ndarray,
    masses: np.ndarray,
    steps: int,
    h: float,
    first_step: int = 0,
    gamma: Any = 0.0,
    kt: Any = 0.0,
    normal: Callable[[int, int], np.ndarray] = lambda step, stream: np.zeros(()),
) -> tuple[np.ndarray, np.ndarray]:
    """The table, substep by substep. gamma and kt broadcast with x; ``normal(step, stream)`` are the noise's numbers."""
    x, v, m = x.copy(), v.copy(), masses[:, None]
    for step in range(first_step, first_step + steps):
        stream = 0
        for substep in scheme.substeps:
            time = substep.coefficient * h
            if substep.operator is Operator.KICK:
                f = np.empty_like(x)
                force(x, f)
                v += time * f / m
            elif substep.operator is Operator.DRIFT:
                x += time * v
            else:
                a = np.exp(-gamma * time)
                v = a * v + np.sqrt((1 - a**2) * kt / m) * normal(step, stream)
                stream += 1
    return x, v


# The loop.


@pytest.mark.parametrize("name", NAMES)
def test_every_scheme_as_written_out(name: str, rng: np.random.Generator) -> None:
    """Three ways to call the force, replicas of different sizes (one empty), noise with a friction and temperature of each."""
    scheme, offsets = integrators.get(name), [0, 2, 2, 7]
    x, v, masses = rng.normal(size=(7, 3)), rng.normal(size=(7, 3)), rng.uniform(1, 3, 7)
    stiffness, sizes = np.array([0.3, 0.1, 0.7]), np.diff(offsets)
    friction, kt, seed, identities, first = [0.5, 1.0, 2.0], [0.7, 1.0, 1.6], 2**63 + 5, [9, 2**32 - 1, 4], 2**33
    bath = Bath(friction, kt, seed, identities) if scheme.stochastic else None
    gamma, temperature = (np.repeat(values, sizes)[:, None] for values in (friction, kt))
    replica, atom = np.repeat(identities, sizes), np.concatenate([np.arange(n) for n in sizes])
    x_end, v_end = written_out(
        scheme, chains(offsets, stiffness), x, v, masses, 4, 0.1, first, gamma, temperature,
        lambda step, stream: philox.normals(seed, step, replica, atom, stream)[:, :3],
    )  # fmt: skip
    ways: list[dict[str, Any]] = [
        {"force": chain, "one_replica": True, "arguments": (stiffness,)},
        {"force": chains(offsets, stiffness)},
    ]
    results = [
        run(name, x=x, v=v, steps=4, timestep=0.1, masses=masses, bath=bath, first_step=first, offsets=offsets, **way)
        for way in ways
    ]
    np.testing.assert_allclose(results[0], [x_end, v_end], rtol=0, atol=2e-14)
    np.testing.assert_array_equal(results[0], results[1])


def test_forces_for_all_atoms_are_called_from_compiled_code_or_python(rng: np.random.Generator) -> None:
    x, v = rng.uniform(-0.3, 0.3, (5, 2)), rng.uniform(-0.3, 0.3, (5, 2))
    for name in ("baoab", "pefrl", "ruth-3"):
        bath = Bath(0.1, 0.02, 3) if name == "baoab" else None
        compiled = run(name, henon_heiles, x, v, 50, 0.05, bath=bath)
        np.testing.assert_array_equal(compiled, run(name, henon_heiles.py_func, x, v, 50, 0.05, bath=bath))


@pytest.mark.parametrize("name", NAMES)
def test_runs_may_be_cut(name: str, rng: np.random.Generator) -> None:
    """Bit for bit the same, however the steps are shared out between calls, as a restart needs it."""
    x, v = rng.uniform(-0.3, 0.3, (4, 2)), rng.uniform(-0.3, 0.3, (4, 2))
    bath = Bath(0.3, 0.1, 12) if name in STOCHASTIC else None
    whole = run(name, henon_heiles, x, v, 7, 0.1, bath=bath)
    f = np.empty_like(x)
    integrator = cpu.Integrator(integrators.get(name), henon_heiles, x, v, f, np.ones(4))
    integrator.evaluate_forces()
    for first, steps in ((0, 2), (2, 0), (2, 1), (3, 4)):
        integrator.run(steps, timestep=0.1, first_step=first, bath=bath)
    np.testing.assert_array_equal((x, v), whole)
    if integrators.get(name).starts_with_forces:
        expected = np.empty_like(f)
        henon_heiles(x, expected)
        np.testing.assert_array_equal(f, expected)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetric_schemes_run_backwards(name: str, rng: np.random.Generator) -> None:
    x, v = rng.uniform(-0.3, 0.3, (6, 2)), rng.uniform(-0.3, 0.3, (6, 2))
    there = run(name, henon_heiles, x, v, 500, 0.05)
    assert np.abs(there[0] - x).max() > 0.1
    np.testing.assert_allclose(run(name, henon_heiles, *there, 500, -0.05), (x, v), rtol=0, atol=1e-11)
    # The same with the velocities turned round.
    back = run(name, henon_heiles, there[0], -there[1], 500, 0.05)
    np.testing.assert_allclose((back[0], -back[1]), (x, v), rtol=0, atol=1e-11)


def test_other_schemes_do_not_run_backwards() -> None:
    x, v = np.array([[0.3, 0.1]]), np.array([[-0.2, 0.35]])
    for name in ("symplectic-euler", "ruth-3", "mclachlan-atela-2", "mclachlan-atela-4"):
        there = run(name, henon_heiles, x, v, 50, 0.1)
        assert np.abs(run(name, henon_heiles, *there, 50, -0.1)[0] - x).max() > 1e-9


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_symplectic(name: str) -> None:
    """J^T O J = O for the Jacobian of 20 steps by finite differences, at masses that differ between atoms."""
    masses, shift = np.array([1.0, 2.5]), 1e-5
    start = np.array([[0.3, 0.1], [-0.1, 0.2], [-0.2, 0.35], [0.15, 0.1]])  # positions and momenta of two atoms

    def end(state: np.ndarray) -> np.ndarray:
        x, v = run(name, henon_heiles, state[:2], state[2:] / masses[:, None], 20, 0.1, masses)
        return np.concatenate([x, v * masses[:, None]]).reshape(-1)

    columns = []
    for i in range(8):
        change = shift * np.eye(8)[i].reshape(4, 2)
        columns.append((end(start + change) - end(start - change)) / (2 * shift))
    jacobian, omega = np.array(columns).T, np.kron([[0, 1], [-1, 0]], np.eye(4))
    assert np.abs(jacobian - np.eye(8)).max() > 0.5
    np.testing.assert_allclose(jacobian.T @ omega @ jacobian, omega, rtol=0, atol=1e-8)


@njit
def kepler(x: np.ndarray, f: np.ndarray) -> None:
    for i in range(len(x)):
        r2 = x[i, 0] ** 2 + x[i, 1] ** 2
        f[i, 0], f[i, 1] = -x[i, 0] / (r2 * np.sqrt(r2)), -x[i, 1] / (r2 * np.sqrt(r2))


def test_energy_stays_for_a_thousand_orbits() -> None:
    """On a Kepler orbit of eccentricity 0.3 the error oscillates but does not grow; higher orders make it smaller."""
    eccentricity, per_orbit, worst = 0.3, 60, {}
    x = np.array([[1 - eccentricity, 0.0]])
    v = np.array([[0.0, np.sqrt((1 + eccentricity) / (1 - eccentricity))]])

    def energy_error() -> float:
        return abs(float(0.5 * (v**2).sum() - 1 / np.sqrt((x**2).sum())) + 0.5)

    start, f = (x.copy(), v.copy()), np.empty_like(x)
    for name in ("velocity-verlet", "position-verlet", "forest-ruth", "pefrl", "yoshida-6", "kahan-li-8"):
        x[:], v[:] = start
        integrator = cpu.Integrator(integrators.get(name), kepler, x, v, f, np.ones(1))
        integrator.evaluate_forces()
        errors = []
        for step in range(400):  # parts of an orbit, then a thousand orbits, then parts of an orbit
            integrator.run(1000 * per_orbit if step == 200 else 1, timestep=2 * np.pi / per_orbit)
            errors.append(energy_error())
        assert max(errors[200:]) < 1.2 * max(errors[:200]), name
        worst[name] = max(errors)
    assert worst["velocity-verlet"] < 2e-2
    assert worst["velocity-verlet"] > 10 * worst["forest-ruth"] > 100 * worst["pefrl"] > 100 * worst["kahan-li-8"]


def test_velocity_verlet_is_that_of_ase() -> None:
    """Also the units: amu and eV, as the documentation says."""
    from ase import Atoms, units
    from ase.calculators.lj import LennardJones
    from ase.md.verlet import VelocityVerlet

    atoms = Atoms("ArNeArKr", [[0.0, 0.0, 0.0], [3.9, 0.2, 0.0], [0.1, 3.7, 0.3], [3.5, 3.8, 0.5]])
    atoms.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=12.0)
    x, v, f = atoms.get_positions(), np.zeros((4, 3)), atoms.get_forces()
    ours = atoms.copy()
    ours.calc = LennardJones(sigma=3.4, epsilon=0.0104, rc=12.0)

    def force(positions: np.ndarray, forces: np.ndarray) -> None:
        ours.set_positions(positions)
        forces[:] = ours.get_forces()

    masses = atoms.get_masses() / FORCE_TO_ACCELERATION
    cpu.Integrator(integrators.get("velocity-verlet"), force, x, v, f, masses).run(200, timestep=5.0)
    VelocityVerlet(atoms, timestep=5.0 * units.fs).run(200)
    np.testing.assert_allclose(x, atoms.get_positions(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(v, atoms.get_velocities() * units.fs, rtol=0, atol=1e-8)
    assert np.abs(x - [[0.0, 0.0, 0.0], [3.9, 0.2, 0.0], [0.1, 3.7, 0.3], [3.5, 3.8, 0.5]]).max() > 0.1


# Where the arrays are, and who else is in them.


def test_results_do_not_depend_on_the_batch(rng: np.random.Generator) -> None:
    """A replica alone moves as it does among others, if it keeps its identity."""
    stiffness, sizes = rng.uniform(0.1, 1, 6), [3, 300, 1, 8, 4, 5]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    x, v = rng.normal(size=(offsets[-1], 3)), rng.normal(size=(offsets[-1], 3))
    friction, kt = rng.uniform(0.1, 2, 6), rng.uniform(0.1, 2, 6)
    together = run(
        "obabo", chain, x, v, 20, 0.05, bath=Bath(friction, kt, 5), offsets=offsets, one_replica=True,
        arguments=(stiffness,),
    )  # fmt: skip
    for one in range(6):
        part = slice(offsets[one], offsets[one + 1])
        alone = run(
            "obabo", chain, x[part], v[part], 20, 0.05, bath=Bath(friction[one], kt[one], 5, [one]), one_replica=True,
            arguments=(stiffness[one:],),
        )  # fmt: skip
        np.testing.assert_array_equal(alone, [together[0][part], together[1][part]])


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    """In a process of its own, where Numba has two threads whatever it has here; a force of all atoms and one of a replica."""
    script = """
        import hashlib, numpy as np, torch
        from numba import njit
        from simkit import integrators
        from simkit.integrators import Bath, cpu

        @njit
        def spring_of_one(replica, x, f):
            f[:] = -x

        def in_python(x, f):
            np.negative(x, out=f)

        atoms = 3 * cpu.TASK
        start = np.random.default_rng(1).normal(size=(2, atoms, 3))
        for force, one in ((in_python, False), (spring_of_one, True)):
            for threads in (1, 2):
                torch.set_num_threads(threads)
                x, v, f = *start.copy(), np.zeros((atoms, 3))
                offsets = np.arange(0, atoms + 1, cpu.TASK // 16)
                integrator = cpu.Integrator(
                    integrators.get("baoab"), force, x, v, f, np.ones(atoms), offsets=offsets, one_replica=one
                )
                integrator.evaluate_forces()
                integrator.run(3, timestep=0.1, bath=Bath(1.0, np.linspace(1, 2, len(offsets) - 1), 3))
                print(hashlib.sha256(x.tobytes() + v.tobytes()).hexdigest(), torch.get_num_threads())
    """
    environment = os.environ | {"NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    hashes, threads = zip(*(line.split() for line in done.stdout.splitlines()), strict=True)
    assert threads == ("1", "2") * 2
    assert len(set(hashes)) == 1


def test_any_number_of_tasks_gives_the_same_bits(rng: np.random.Generator) -> None:
    """The parallel pass itself, cut where no thread count would cut it."""
    scheme, atoms = integrators.get("baoab"), 1000
    x, v, f = rng.normal(size=(3, atoms, 3))
    bath, results = Bath(1.0, 1.0, 3), []
    for tasks in (1, 2, 7, 50):
        copies = [array.copy() for array in (x, v, f)]
        integrator = cpu.Integrator(scheme, henon_heiles, *copies, np.ones(atoms))
        arrays = integrator._flat + integrator._noise(0.1, bath)
        scratch = np.empty(tasks * cpu.SCRATCH)
        cpu._pass_parallel(integrator._code(0.1), 0, 5, 0, 0, atoms, scratch, *arrays)
        results.append(np.stack(copies))
    assert all(np.array_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_are_changed_in_place(dtype: torch.dtype) -> None:
    """A force by PyTorch; it is given the caller's own tensors."""
    x, v = torch.linspace(-1, 1, 12, dtype=dtype).reshape(4, 3), torch.ones(4, 3, dtype=dtype)
    f, memory = torch.zeros(4, 3, dtype=dtype), x.data_ptr()
    before = (x.double().numpy().copy(), v.double().numpy().copy())
    seen = []

    def force(positions: torch.Tensor, forces: torch.Tensor) -> None:
        seen.append((positions is x, forces is f))
        forces.copy_(-positions)

    integrator = cpu.Integrator(integrators.get("velocity-verlet"), force, x, v, f, torch.ones(4))
    integrator.evaluate_forces()
    integrator.run(10, timestep=0.1)
    assert len(seen) == 11
    assert set(seen) == {(True, True)}
    assert x.data_ptr() == memory
    spring = lambda a, b: np.negative(a, out=b)  # noqa: E731
    expected = written_out(integrators.get("velocity-verlet"), spring, *before, np.ones(4), 10, 0.1)
    np.testing.assert_allclose(np.stack([x, v]), expected, rtol=0, atol=1e-14 if dtype == torch.float64 else 2e-6)


def test_float32_sees_the_noise_of_float64(rng: np.random.Generator) -> None:
    x, v = rng.normal(size=(40, 3)), rng.normal(size=(40, 3))
    spring = lambda a, b: np.negative(a, out=b)  # noqa: E731
    results = [
        run("baoab", spring, x.astype(dtype), v.astype(dtype), 20, 0.1, bath=Bath(1.0, 1.0, 8))
        for dtype in (np.float32, np.float64)
    ]
    assert results[0][0].dtype == np.float32
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=1e-5)


def test_frozen_atoms(rng: np.random.Generator) -> None:
    x, v, masses = rng.normal(size=(5, 3)), rng.normal(size=(5, 3)), np.array([1, np.inf, 2, np.inf, 1])
    v[[1, 3]] = 0
    spring = lambda a, b: np.negative(a, out=b)  # noqa: E731
    for name in ("baoab", "yoshida-4"):
        bath = Bath(1.0, 1.0, 8) if name == "baoab" else None
        end_x, end_v = run(name, spring, x, v, 30, 0.1, masses, bath)
        frozen = np.isinf(masses)
        np.testing.assert_array_equal(end_x[frozen], x[frozen])
        np.testing.assert_array_equal(end_v[frozen], 0)
        assert (np.abs(end_x - x).max(axis=1)[~frozen] > 0.01).all()
