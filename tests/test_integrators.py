"""Splitting integrators: the tables, and what is refused."""

import json
import subprocess
import sys
from itertools import product
from math import factorial
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import torch
from integrator_cases import DETERMINISTIC, NAMES, henon_heiles, run

from simkit import integrators
from simkit.errors import ConfigError
from simkit.integrators import Bath, Operator, Scheme, Substep, cpu

# The tables.


def test_names() -> None:
    assert {"velocity-verlet", "position-verlet", "ruth-3", "forest-ruth", "yoshida-4", "pefrl"} < set(NAMES)
    assert {"yoshida-6", "yoshida-8", "baoab", "obabo", "aboba", "baoa"} < set(NAMES)
    assert sorted(NAMES) == NAMES
    assert all(integrators.get(name).name == name for name in NAMES)
    with pytest.raises(ConfigError, match="did you mean 'velocity-verlet'"):
        integrators.get("velocity_verlet")


@pytest.mark.parametrize("name", NAMES)
def test_references(name: str) -> None:
    assert "doi:10." in integrators.get(name).reference


@pytest.mark.parametrize(
    ("substeps", "order", "symmetric", "message"),
    [
        ([("B", 0.5), ("A", 1), ("B", 0.4)], 2, False, "coefficients of kick must add up to 1; found 0.9"),
        ([("B", 0.5), ("A", 1), ("B", 0.5)], 2, False, "symmetric=False"),
        ([("B", 0.4), ("A", 1), ("B", 0.6)], 2, True, "symmetric=True"),
        ([("B", 0.5), ("B", 0.5), ("A", 1)], 1, False, "successive substeps are both kick"),
        ([("B", 1)], 1, True, "no drift"),
        ([("A", 1)], 1, True, "no kick"),
        ([("B", 1), ("A", 1), ("O", 0.5)], 1, False, "noise must add up to 1"),
        ([("B", float("nan")), ("A", 1)], 1, False, "must add up to 1"),
        ([("B", 1), ("A", 1)], 0, False, "order must be at least 1"),
    ],
)
def test_wrong_tables_are_refused(substeps: list[tuple[str, float]], order: int, symmetric: bool, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Scheme("x", tuple(Substep(Operator(o), c) for o, c in substeps), order, symmetric, "")


def test_segments_of_schemes() -> None:
    """What lies between two evaluations of the forces."""
    expected = {
        "velocity-verlet": ["BA", "B"],
        "position-verlet": ["A", "BA"],
        "symplectic-euler": ["BA", ""],
        "ruth-3": ["BA", "BA", "BA", ""],
        "baoab": ["BAOA", "B"],
        "obabo": ["OBA", "BO"],
        "aboba": ["A", "BOBA"],
        "pefrl": ["A", "BA", "BA", "BA", "BA"],
    }
    for name, letters in expected.items():
        scheme = integrators.get(name)
        assert ["".join(s.operator.value for s in part) for part in scheme.segments] == letters
        assert scheme.evaluations == len(letters) - 1
        assert scheme.starts_with_forces == (letters[0] not in ("A", "OA"))


def words(scheme: Scheme, length: int) -> dict[str, float]:
    """The product of the exponentials of the substeps, as a series in words of the letters A and B, which do not commute."""
    series = {"": 1.0}
    for substep in scheme.substeps:
        longer: dict[str, float] = {}
        for word, c in series.items():
            for n in range(length - len(word) + 1):
                key = word + n * substep.operator.value
                longer[key] = longer.get(key, 0.0) + c * substep.coefficient**n / factorial(n)
        series = longer
    return series


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_conditions(name: str) -> None:
    """The words of exp(A + B) have the coefficients 1/n!: to the order of the scheme so has the product, and no further."""
    scheme = integrators.get(name)
    series = words(scheme, scheme.order + 1)
    errors = [
        max(abs(series.get("".join(letters), 0.0) - 1 / factorial(n)) for letters in product("AB", repeat=n))
        for n in range(1, scheme.order + 2)
    ]
    # One scheme needs that the kinetic energy is quadratic, by which some words of four letters vanish; see the next test.
    general = 3 if name == "mclachlan-atela-4" else scheme.order
    assert max(errors[:general]) < 2e-14  # the published coefficients have 14 or 15 digits
    assert errors[general] > 1e-6


def test_measured_order() -> None:
    """Errors at the end of a nonlinear motion, against an adaptive Runge-Kutta method of order 8, for falling timesteps."""
    x, v, duration = np.array([[0.3, 0.1]]), np.array([[-0.2, 0.35]]), 4.0

    def right_hand_side(time: float, y: np.ndarray) -> np.ndarray:
        force = np.empty((1, 2))
        henon_heiles(y[None, :2], force)
        return np.concatenate([y[2:], force[0]])

    exact = scipy.integrate.solve_ivp(
        right_hand_side, (0, duration), np.concatenate([x[0], v[0]]), method="DOP853", rtol=1e-13, atol=1e-15
    ).y[:, -1]
    for name in DETERMINISTIC:
        order = integrators.get(name).order
        counts = np.array([16, 24, 32]) * (8 if order < 4 else 1)
        errors = [
            np.abs(np.concatenate(run(name, henon_heiles, x, v, n, duration / n), axis=1)[0] - exact).max()
            for n in counts
        ]
        slopes = -np.diff(np.log(errors)) / np.diff(np.log(counts))
        assert slopes == pytest.approx([order] * 2, abs=0.05 * order), (name, errors)


# Bad input.


def arrays(**changes: Any) -> dict[str, Any]:
    return {name: np.zeros((3, 2)) for name in ("positions", "velocities", "forces")} | {"masses": np.ones(3)} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"velocities": np.zeros((2, 2))}, "velocities must be like positions, \\[3, 2\\] float64; found \\[2, 2\\]"),
        ({"forces": np.zeros((3, 2), dtype=np.float32)}, "forces must be like positions"),
        ({"positions": np.zeros((3, 2), dtype=int)}, "positions must be float32 or float64; found int64"),
        ({"positions": np.zeros(3)}, "shape \\[atoms, components\\]; found \\[3\\]"),
        ({name: np.zeros((0, 3)) for name in ("positions", "velocities", "forces")}, "found \\[0, 3\\]"),
        ({"positions": [[0.0, 0.0]]}, "must be a NumPy array or a tensor on the CPU"),
        ({"positions": torch.zeros(3, 2, requires_grad=True)}, "without gradients"),
        ({"velocities": np.zeros((3, 4))[:, ::2]}, "contiguous and writable"),
        ({"masses": np.array([1.0, 0.0, 1.0])}, "masses must be positive .*; found 0.0"),
        ({"masses": np.array([1.0, np.nan, 1.0])}, "masses must be positive .*; found nan"),
        ({"masses": np.ones(2)}, "each of the 3 atoms; found the shape \\[2\\]"),
        ({"offsets": [0, 2]}, "rise from 0 to the number of atoms, 3"),
        ({"offsets": [0, 2, 1, 3]}, "rise from 0"),
        ({"offsets": [0.0, 3.0]}, "integers"),
        ({"one_replica": True}, "decorate it with numba.njit"),
    ],
)
def test_unusable_arrays_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cpu.Integrator(integrators.get("velocity-verlet"), lambda x, f: None, **arrays(**changes))


def test_arrays_that_overlap_are_refused() -> None:
    shared = np.zeros((3, 2))
    with pytest.raises(ConfigError, match="must not share memory"):
        cpu.Integrator(
            integrators.get("velocity-verlet"), lambda x, f: None, **arrays(positions=shared, velocities=shared)
        )


def test_noise_of_more_than_four_components_is_refused() -> None:
    wide = {name: np.zeros((3, 5)) for name in ("positions", "velocities", "forces")}
    with pytest.raises(ConfigError, match="up to 4 components; found 5"):
        cpu.Integrator(integrators.get("baoab"), lambda x, f: None, **arrays(**wide))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("velocity-verlet", {"timestep": 0.0}, "timestep must be a finite number other than 0"),
        ("velocity-verlet", {"timestep": float("nan")}, "timestep must be a finite number"),
        ("velocity-verlet", {"steps": -1}, "must not be negative"),
        ("velocity-verlet", {"first_step": -1}, "must not be negative"),
        ("velocity-verlet", {"bath": Bath(1.0, 1.0, 1)}, "no noise operator"),
        ("baoab", {}, "needs a bath"),
        ("baoab", {"bath": Bath(1.0, 1.0, 1), "timestep": -0.1}, "backwards"),
        ("baoab", {"bath": Bath(-1.0, 1.0, 1)}, "friction must be finite and not negative"),
        ("baoab", {"bath": Bath(1.0, [1.0, 2.0], 1)}, "kT must be one number or 1"),
        ("baoab", {"bath": Bath(1.0, float("inf"), 1)}, "kT must be finite"),
        ("baoab", {"bath": Bath(1.0, 1.0, 1, [1, 2])}, "each of the 1 replicas"),
        ("baoab", {"bath": Bath(1.0, 1.0, 1, [-1])}, "replicas must hold integers from 0"),
        ("baoab", {"bath": Bath(1.0, 1.0, 1), "first_step": 2**48}, "2\\^48 steps"),
    ],
)
def test_unusable_runs_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    integrator = cpu.Integrator(integrators.get(name), lambda x, f: None, **arrays())
    with pytest.raises(ConfigError, match=message):
        integrator.run(**({"steps": 1, "timestep": 0.1} | options))


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, None])
def test_unusable_seeds_are_refused(seed: Any) -> None:
    with pytest.raises(ConfigError, match="whole number from 0 to 2\\^64 - 1"):
        Bath(1.0, 1.0, seed)


def test_tables_import_no_heavy_libraries() -> None:
    script = "import sys, json, simkit.integrators as i; i.get('baoab'); print(json.dumps(sorted({'torch', 'numba'} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
