"""Numerical checks of potentials: sound models pass, and every kind of mistake is found where it is made, and only there."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch import Tensor, nn

from simkit import potentials
from simkit.errors import ConfigError, DataError, ElementError
from simkit.potential import Potential, Representation
from simkit.workflows.verify import NumericalChecks, check_potential

CUTOFF = 5.0


class PairEnergy(Representation):
    """Half of a function of the distance for every edge."""

    is_classical = True

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.channels, self.activation, self.function = 1, nn.Identity(), function

    def forward(self, species: Tensor, edge_index: Tensor, vectors: Tensor) -> tuple[Tensor, None]:
        energies = 0.5 * self.edge_energies(vectors)
        return vectors.new_zeros(len(species), 1).index_add(0, edge_index[1], energies.unsqueeze(1)), None

    def edge_energies(self, vectors: Tensor) -> Tensor:
        return self.function(vectors.norm(dim=1))


class Anisotropic(PairEnergy):
    """The energy knows where z is."""

    def edge_energies(self, vectors: Tensor) -> Tensor:
        return super().edge_energies(vectors) * (1 + 1e-3 * (vectors[:, 2] / vectors.norm(dim=1)) ** 2)


class Handed(PairEnergy):
    """The energy of three atoms changes under reflections only."""

    def forward(self, species: Tensor, edge_index: Tensor, vectors: Tensor) -> tuple[Tensor, None]:
        energies = super().forward(species, edge_index, vectors)[0]
        a, b, c = (
            vectors.new_zeros(len(species), 3).index_add(0, edge_index[1], vectors * self.function(r) ** k)
            for r in [vectors.norm(dim=1, keepdim=True)]
            for k in (1, 2, 3)
        )
        return energies + 10.0 * (torch.linalg.cross(a, b) * c).sum(dim=1, keepdim=True), None


class Scaled(torch.autograd.Function):
    """The identity with a wrong derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * (1 + 1e-4)


class NotTheGradient(PairEnergy):
    """Forces that are too large by 1e-4."""

    def edge_energies(self, vectors: Tensor) -> Tensor:
        return super().edge_energies(Scaled.apply(vectors))


def smooth(r: Tensor, power: int = 3) -> Tensor:
    """Its first ``power`` - 1 derivatives vanish at the cutoff, the next one does not."""
    return torch.exp(-0.3 * r) * (1 - r / CUTOFF).clamp(min=0) ** power


def wrap(representation: Representation, cutoff: float = CUTOFF) -> Potential:
    return Potential(representation, architecture="test", options={}, cutoff=cutoff, elements=[1, 6, 8])


@pytest.fixture(scope="module")
def ethanol() -> Atoms:
    frame = molecule("CH3CH2OH")
    frame.rattle(0.1, seed=3)
    return frame


def wrong(checks: NumericalChecks) -> set[str]:
    """Which of the deviations are beyond rounding in float64."""
    return {name for name, value in vars(checks).items() if name != "dtype" and value > 1e-7}


def test_a_sound_function_passes(ethanol: Atoms) -> None:
    checks = check_potential(wrap(PairEnergy(smooth)), [ethanol])
    assert wrong(checks) == set()
    assert checks.problems() == []


@pytest.mark.parametrize(
    ("representation", "found", "message"),
    [
        (Anisotropic(smooth), {"rotation_energy", "rotation_forces"}, "do not rotate"),
        (Handed(smooth), {"rotation_energy", "rotation_forces"}, "do not rotate"),
        (NotTheGradient(smooth), {"force_error"}, "not the gradient"),
        (PairEnergy(lambda r: torch.exp(-0.3 * r)), {"energy_jump", "force_jump", "curvature_jump"}, "energy jumps"),
        (PairEnergy(lambda r: smooth(r, 1)), {"force_jump", "curvature_jump"}, "forces jump"),
        (PairEnergy(lambda r: smooth(r, 2)), {"curvature_jump"}, "second derivatives"),
    ],
    ids=["anisotropic", "handed", "not_conservative", "cut", "kink", "jump_of_curvature"],
)
def test_a_mistake_is_found(ethanol: Atoms, representation: Representation, found: set[str], message: str) -> None:
    checks = check_potential(wrap(representation), [ethanol])
    assert wrong(checks) == found
    assert any(message in problem for problem in checks.problems())


def test_jumps_have_their_analytic_size(ethanol: Atoms) -> None:
    """V = exp(-a r) ends at the cutoff: jumps of V, V' and V'' over their largest values where the checks look."""
    a = 0.3
    checks = check_potential(wrap(PairEnergy(lambda r: torch.exp(-a * r))), [ethanol])
    # In a pair nothing else acts; each atom has half of V, which is largest at half the cutoff.
    expected = math.exp(-a * CUTOFF) / math.exp(-a * CUTOFF / 2)
    assert checks.energy_jump == pytest.approx(expected, rel=1e-8)
    assert checks.force_jump == pytest.approx(expected, rel=1e-8)
    assert checks.curvature_jump == pytest.approx(expected, rel=1e-8)


def test_cosine_cutoff_jumps_by_its_second_derivative() -> None:
    """Morse's potential V, switched off over the outer fifth w: only the second derivative jumps, by pi^2 V / (2 w^2)."""
    morse = potentials.build("morse", cutoff=CUTOFF, elements=[14], cutoff_function="cosine")
    sound = potentials.build("morse", cutoff=CUTOFF, elements=[14])
    frame = Atoms("Si2", positions=[[0, 0, 0], [0, 0, 2.5]])
    depth, alpha, r0, width = *(morse.options[key] for key in ("depth", "alpha", "r0")), CUTOFF / 5

    def energy(r: Tensor) -> Tensor:
        x = torch.exp(-alpha * (r - r0))
        return depth * (x * x - 2 * x)

    def switched(r: Tensor) -> Tensor:
        return energy(r) * 0.5 * (1 + torch.cos(math.pi * (r - CUTOFF + width).clamp(min=0) / width))

    def curvature(r: float) -> float:
        return float(torch.autograd.functional.hessian(switched, torch.tensor(r, dtype=torch.float64)))

    largest = max(abs(curvature(x * CUTOFF)) for x in (0.5, 0.6, 0.7, 0.9))
    jump = math.pi**2 * abs(float(energy(torch.tensor(CUTOFF, dtype=torch.float64)))) / (2 * width**2)
    checks = check_potential(morse, [frame])
    assert checks.curvature_jump == pytest.approx(jump / largest, rel=1e-6)
    assert wrong(checks) == {"curvature_jump"}
    assert wrong(check_potential(sound, [frame])) == set()


def test_an_inner_cutoff_of_the_architecture_is_checked(ethanol: Atoms) -> None:
    inner = wrap(PairEnergy(lambda r: smooth(r) + (r < 3.0) * 0.01))
    assert check_potential(inner, [ethanol]).energy_jump < 1e-7  # nothing says that there is one
    inner.options["angular_cutoff"] = 3.0
    assert check_potential(inner, [ethanol]).energy_jump > 1e-3


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["painn", "schnet"])
def test_architectures_are_sound_in_both_precisions(name: str, dtype: str, ethanol: Atoms) -> None:
    potential = potentials.build(name, elements=[1, 6, 8, 14], channels=16, layers=2)
    potential.set_references({1: -13.6, 6: -1027.5, 8: -2041.3, 14: -7800.0})
    before, silicon = copy.deepcopy(potential), bulk("Si", cubic=True)
    silicon.rattle(0.1, seed=0)  # in the perfect crystal forces cancel, and little but rounding is left
    checks = check_potential(potential, [ethanol, silicon], dtype)
    assert checks.problems() == []
    assert checks.dtype == dtype
    # Rounding is seen, neither hidden by large reference energies nor absent.
    scale = {"float64": 1e-16, "float32": 1e-8}[dtype]
    assert scale < checks.equivariance < 1e3 * scale
    assert potential.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(potential.parameters(), before.parameters(), strict=True))


def test_single_precision_cannot_hide_a_mistake(ethanol: Atoms) -> None:
    assert any("gradient" in p for p in check_potential(wrap(NotTheGradient(smooth)), [ethanol]).problems())
    assert check_potential(wrap(NotTheGradient(smooth)), [ethanol], "float32").force_error == pytest.approx(
        1e-4, rel=0.1
    )
    assert any(
        "energy jumps" in p for p in check_potential(wrap(PairEnergy(torch.exp)), [ethanol], "float32").problems()
    )


def test_bad_input_is_refused(ethanol: Atoms) -> None:
    sound = wrap(PairEnergy(smooth))
    with pytest.raises(ConfigError, match="float16"):
        check_potential(sound, [ethanol], "float16")
    with pytest.raises(DataError, match="two atoms"):
        check_potential(sound, [Atoms("H")])
    with pytest.raises(ElementError, match="Si"):
        check_potential(sound, [bulk("Si")])


def test_not_a_number_is_a_problem() -> None:
    nan = NumericalChecks("float64", *[math.nan] * 6)
    assert len(nan.problems()) == 5
    assert not math.isfinite(nan.smoothness)
    assert np.isfinite(NumericalChecks("float64", *[0.0] * 6).smoothness)
