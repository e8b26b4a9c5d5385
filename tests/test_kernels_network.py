"""PaiNN as one operator for training, against the same network differentiated by autograd, and against finite differences."""

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch import Tensor

import simkit
from simkit.graph import AtomGraph
from simkit.kernels import vector_network as network_module
from simkit.kernels.orders import Derivatives
from simkit.kernels.perceptron import Perceptron
from simkit.potential import Potential
from simkit.potentials import painn as painn_module
from simkit.radial import SineBasis

Loss = Callable[[dict[str, Tensor]], Tensor]


def model_of(outputs: tuple[str, ...] = ("energy",), layers: int = 3, radial: str = "sine") -> Potential:
    torch.manual_seed(4)
    options = {"channels": 20, "layers": layers, "basis": 7, "radial": radial}
    model = simkit.potentials.build("painn", cutoff=4.0, elements=[1, 6, 8, 14], outputs=outputs, **options)
    return model.cast(torch.float64)


def molecules() -> list[Atoms]:
    frames = [molecule("CH3CH2OH"), molecule("H2O"), Atoms("H", [[0.0, 0.0, 0.0]])]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.1, seed=seed)
    return frames


def silicon() -> list[Atoms]:
    """A cell so small that atoms are neighbors of their own images."""
    atoms = bulk("Si")
    atoms.rattle(0.1, seed=1)
    return [atoms, bulk("Si", cubic=True)]


def results(
    model: Potential,
    graph: AtomGraph,
    outputs: tuple[str, ...],
    loss: Loss,
    monkeypatch: pytest.MonkeyPatch,
    fused: bool,
) -> list[Tensor]:
    """What the model returns, and the gradients of the loss with respect to all weights."""
    made: list[int] = []

    def counted(*args: Any) -> tuple[Tensor, Tensor]:
        made.append(1)
        return network_module.vector_network(*args)

    monkeypatch.setattr(painn_module, "vector_network", counted)
    wanted = Derivatives.TRAINING if fused else Derivatives.ALL
    monkeypatch.setattr(painn_module, "wanted_derivatives", lambda: wanted)
    out = model(graph, outputs, differentiable=True)
    assert len(made) == fused
    gradients = torch.autograd.grad(loss(out), list(model.parameters()), materialize_grads=True)
    return [*(out[name].detach() for name in outputs), *gradients]


def everything(out: dict[str, Tensor]) -> Tensor:
    """A loss to which each number adds differently."""
    parts = [(v * torch.arange(1.0, v.numel() + 1, dtype=v.dtype).cos().view(v.shape)).sum() for v in out.values()]
    return torch.stack([part.double() for part in parts]).square().sum()


def forces_only(out: dict[str, Tensor]) -> Tensor:
    return out["forces"].pow(3).sum() + out["forces"].square().sum()


def energy_only(out: dict[str, Tensor]) -> Tensor:
    return out["energy"].square().sum()


CASES: list[tuple[str, list[Atoms], tuple[str, ...], Loss]] = [
    ("energy and forces", molecules(), ("energy", "forces"), everything),
    ("forces", molecules(), ("energy", "forces"), forces_only),
    ("energy", molecules(), ("energy", "forces"), energy_only),
    ("vectors read by a head", molecules(), ("energy", "forces", "dipole"), everything),
    ("stress", silicon(), ("energy", "forces", "stress"), everything),
    ("no edges", [Atoms("HC", [[0.0, 0.0, 0.0], [50.0, 0.0, 0.0]])], ("energy", "forces"), everything),
]


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(("frames", "outputs", "loss"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_the_operator_equals_autograd(
    frames: list[Atoms], outputs: tuple[str, ...], loss: Loss, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(("energy", "dipole") if "dipole" in outputs else ("energy",), layers)
    graph = AtomGraph.from_ase(frames, 4.0)
    fused, recorded = (results(model, graph, outputs, loss, monkeypatch, fused) for fused in (True, False))
    for a, b in zip(fused, recorded, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11 * max(1.0, float(b.abs().max())))


def test_gaussian_functions_of_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    model, graph = model_of(radial="gaussian"), AtomGraph.from_ase(molecules(), 4.0)
    arguments = (model, graph, ("energy", "forces"), everything, monkeypatch)
    for a, b in zip(results(*arguments, True), results(*arguments, False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11 * max(1.0, float(b.abs().max())))
    assert model.fast().compare(graph).agrees


def test_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    model, graph = model_of(), AtomGraph.from_ase(molecules(), 4.0)
    arguments = (graph, ("energy", "forces"), everything, monkeypatch, True)
    exact = results(model, *arguments)
    for a, b in zip(results(copy.deepcopy(model).cast(torch.float32), *arguments), exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-4 * float(b.abs().max()))


def test_gradients_of_a_loss_on_forces_against_finite_differences() -> None:
    model, graph = model_of(layers=2), AtomGraph.from_ase(molecules(), 4.0)
    weights = [model.representation.filters[1].weight, model.representation.updates[0].mix.weight]

    def loss() -> Tensor:
        return everything(model(graph, ("energy", "forces"), differentiable=True))

    for weight, gradient in zip(weights, torch.autograd.grad(loss(), weights), strict=True):
        direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        values = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                weight += step * direction
            values.append(loss().detach())
        with torch.no_grad():
            weight += 1e-6 * direction
        torch.testing.assert_close((values[0] - values[1]) / 2e-6, (gradient * direction).sum(), rtol=1e-6, atol=1e-6)


def test_a_second_backward_pass_is_as_the_first() -> None:
    model, graph = model_of(), AtomGraph.from_ase(molecules(), 4.0)
    out = model(graph, ("energy", "forces"), differentiable=True)
    weights = list(model.parameters())
    first = torch.autograd.grad(everything(out), weights, retain_graph=True)
    torch.autograd.grad(energy_only(out), weights, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(everything(out), weights), strict=True):
        assert torch.equal(a, b)


def test_frozen_weights_get_no_gradients() -> None:
    model, graph = model_of(), AtomGraph.from_ase(molecules(), 4.0)
    model.representation.requires_grad_(False)
    everything(model(graph, ("energy", "forces"), differentiable=True)).backward()
    assert all(p.grad is None for p in model.representation.parameters())
    assert all(p.grad is not None for p in model.heads.parameters())


def test_derivatives_that_are_not_there_are_refused() -> None:
    model, graph = model_of(), AtomGraph.from_ase(molecules(), 4.0)
    out = model(graph, ("energy", "forces"), differentiable=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(everything(out), list(model.parameters()), create_graph=True)


def test_weights_changed_before_the_backward_pass_are_noticed() -> None:
    model, graph = model_of(), AtomGraph.from_ase(molecules(), 4.0)
    out = model(graph, ("energy", "forces"), differentiable=True)
    with torch.no_grad():
        model.representation.messages[0].net[0].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        everything(out).backward()


def test_nothing_is_left_for_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    model, graph = model_of(), AtomGraph.from_ase(molecules(), 4.0)
    made: list[weakref.ref[network_module.VectorNetwork]] = []

    class Watched(network_module.VectorNetwork):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(weakref.ref(self))

    monkeypatch.setattr(network_module, "VectorNetwork", Watched)
    gc.disable()
    try:
        everything(model(graph, ("energy", "forces"), differentiable=True)).backward()
        assert made
        assert made[0]() is None
    finally:
        gc.enable()


def test_the_basis_with_slopes() -> None:
    basis = SineBasis(6, 4.0).double()
    r = torch.linspace(0.3, 4.0, 30, dtype=torch.float64, requires_grad=True)
    values, slopes = basis.with_slopes(r.detach())
    torch.testing.assert_close(values, basis(r).detach(), rtol=1e-13, atol=1e-15)
    for k in range(6):
        (expected,) = torch.autograd.grad(basis(r)[:, k].sum(), r)
        torch.testing.assert_close(slopes[:, k], expected, rtol=1e-11, atol=1e-12)


def test_perceptron_against_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 3), (5,), (4, 5), (4,), (7, 3), (7, 4), (7, 3))
    w1, b1, w2, b2, x, g, h = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    leaves = [t.requires_grad_(True) for t in (x, w1, b1, w2, b2, g)]

    def value(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        return torch.nn.functional.silu(x @ w1.t() + b1) @ w2.t() + b2

    y = value(x, w1, b1, w2, b2)
    (gx,) = torch.autograd.grad(y, x, g, create_graph=True)
    ay = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    expected = torch.autograd.grad((gx * h).sum() + (ay * y).sum(), leaves)
    with torch.no_grad():
        perceptron = Perceptron((w1, b1, w2, b2))
        torch.testing.assert_close(perceptron.forward(x), y)
        torch.testing.assert_close(perceptron.backward(g), gx)
        tangent = perceptron.tangent(h)
        ax, weights = perceptron.adjoint(ay)
    for a, b in zip((ax, *weights, tangent), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
