"""The differentiable integrators: the same motion as the compiled ones, and gradients in both ways."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simkit import integrators
from simkit.errors import ConfigError
from simkit.integrators import Bath, cpu
from simkit.integrators.torch import conservative, integrate, trajectory

NAMES = integrators.available()
DETERMINISTIC = [name for name in NAMES if not integrators.get(name).stochastic]
FEW = ["velocity-verlet", "position-verlet", "ruth-3", "pefrl", "yoshida-6", "baoab", "obabo", "baoa"]
MODES = ["backpropagation", "reversible"]


def pair_energy(x: Tensor, stiffness: Tensor, repulsion: Tensor) -> Tensor:
    """Atoms bound to the origin that repel each other; both parameters may differ between samples."""
    squared = (x.unsqueeze(-2) - x.unsqueeze(-3)).square().sum(-1)
    return 0.5 * (stiffness * x.square()).sum() + 0.5 * (repulsion * torch.exp(-squared)).sum()


FORCE = conservative(pair_energy)


def leaves(batch: tuple[int, ...] = (2,), atoms: int = 3) -> dict[str, Tensor]:
    """Everything that gradients are wanted of."""
    generator = torch.Generator().manual_seed(5)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    found = {
        "x": uniform(-1, 1, *batch, atoms, 3),
        "v": uniform(-1, 1, *batch, atoms, 3),
        "masses": uniform(1, 2, *batch, atoms),
        "timestep": uniform(0.05, 0.1, *batch),
        "stiffness": uniform(0.5, 1.5, *batch, 1, 1),
        "repulsion": uniform(0.5, 1.5),
        "friction": uniform(0.1, 0.5, *batch),
        "kT": uniform(0.5, 1, *batch),
    }
    return {name: leaf.requires_grad_() for name, leaf in found.items()}


def move(name: str, at: dict[str, Tensor], steps: int, **options: Any) -> tuple[Tensor, Tensor]:
    scheme = integrators.get(name)
    bath = Bath(at["friction"], at["kT"], 11) if scheme.stochastic else None
    return integrate(
        scheme, FORCE, at["x"], at["v"], masses=at["masses"], timestep=at["timestep"], steps=steps, bath=bath,
        parameters=(at["stiffness"], at["repulsion"]), **options,
    )  # fmt: skip


def loss(x: Tensor, v: Tensor) -> Tensor:
    return x.sin().sum() + v.pow(3).sum()


def used(name: str, at: dict[str, Tensor]) -> list[Tensor]:
    return [at[key] for key in at if integrators.get(name).stochastic or key not in ("friction", "kT")]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_motion_as_on_the_cpu(name: str) -> None:
    """Samples with their own stiffness; noise included."""
    stochastic, offsets = integrators.get(name).stochastic, np.arange(0, 9, 4)
    generator = torch.Generator().manual_seed(1)
    x, v = torch.randn(2, 2, 4, 3, generator=generator, dtype=torch.float64)
    masses = torch.rand(2, 4, generator=generator, dtype=torch.float64) + 1
    stiffness, repulsion = torch.tensor([0.7, 1.3], dtype=torch.float64).reshape(2, 1, 1), torch.tensor(0.4).double()
    bath = Bath([0.3, 1.0], [0.5, 0.9], 2**60, [5, 2]) if stochastic else None
    found = integrate(
        integrators.get(name), FORCE, x, v, masses=masses, timestep=0.1, steps=6, bath=bath, first_step=7,
        parameters=(stiffness, repulsion),
    )  # fmt: skip

    def force(positions: np.ndarray, forces: np.ndarray) -> None:
        forces[:] = FORCE(torch.from_numpy(positions).reshape(2, 4, 3), stiffness, repulsion).detach().reshape(8, 3)

    flat_x, flat_v = x.reshape(8, 3).numpy().copy(), v.reshape(8, 3).numpy().copy()
    compiled = cpu.Integrator(
        integrators.get(name), force, flat_x, flat_v, np.empty((8, 3)), masses.reshape(-1), offsets=offsets
    )
    compiled.evaluate_forces()
    compiled.run(6, timestep=0.1, first_step=7, bath=bath)
    np.testing.assert_allclose(
        torch.stack(found).detach().numpy().reshape(2, 8, 3), [flat_x, flat_v], rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("mode", MODES)
def test_arguments_are_left_alone(mode: str) -> None:
    at = leaves()
    before = {name: leaf.detach().clone() for name, leaf in at.items()}
    for steps in (0, 3):
        x, v = move("baoab", at, steps, gradient=mode)
        assert not torch.equal(x, before["x"]) or steps == 0
        with torch.no_grad():
            x += 1
            v += 1
    assert all(torch.equal(at[name], before[name]) for name in at)


def test_samples_do_not_know_each_other() -> None:
    """Per-sample timesteps, parameters, frictions and temperatures, in two batch dimensions, against samples one by one."""
    at = leaves(batch=(2, 3))
    x, v = move("baoab", at, 5)
    for i in range(2):
        for j in range(3):
            one = {name: leaf if leaf.dim() == 0 else leaf[i, j] for name, leaf in at.items()}
            alone = integrate(
                integrators.get("baoab"), FORCE, one["x"], one["v"], masses=one["masses"], timestep=one["timestep"],
                steps=5, parameters=(one["stiffness"], one["repulsion"]),
                bath=Bath(one["friction"], one["kT"], 11, 3 * i + j),
            )  # fmt: skip
            torch.testing.assert_close(alone, (x[i, j], v[i, j]), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_symplectic(name: str) -> None:
    """J^T O J = O for the Jacobian by autograd."""
    at = {key: leaf.detach() for key, leaf in leaves(batch=(), atoms=2).items()}

    def end(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return move(name, at | {"x": x, "v": v}, 10)

    blocks = torch.autograd.functional.jacobian(end, (at["x"], at["v"]))
    jacobian = torch.cat([torch.cat([block.reshape(6, 6) for block in row], dim=1) for row in blocks])
    # In positions and momenta.
    scale = torch.cat([torch.ones(6), at["masses"].repeat_interleave(3)])
    jacobian = scale[:, None] * jacobian / scale
    omega = torch.kron(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), torch.eye(6)).double()
    assert (jacobian - torch.eye(12)).abs().max() > 0.3
    torch.testing.assert_close(jacobian.T @ omega @ jacobian, omega, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_both_ways_give_the_same_gradients(name: str) -> None:
    """With respect to the initial state, masses, timesteps, parameters, frictions and temperatures."""
    at = leaves()
    x, v = move(name, at, 30)
    plain = torch.autograd.grad(loss(x, v), used(name, at))
    again_x, again_v = move(name, at, 30, gradient="reversible")
    assert torch.equal(x, again_x)
    assert torch.equal(v, again_v)
    retraced = torch.autograd.grad(loss(again_x, again_v), used(name, at))
    for a, b in zip(plain, retraced, strict=True):
        assert a.abs().max() > 1e-3
        torch.testing.assert_close(b, a, rtol=1e-11, atol=1e-11 * float(a.abs().max()))


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("mode", MODES)
def test_gradients_against_finite_differences(name: str, mode: str) -> None:
    at = leaves(batch=(2,), atoms=2)
    keys = [key for key in at if integrators.get(name).stochastic or key not in ("friction", "kT")]

    def function(*values: Tensor) -> tuple[Tensor, Tensor]:
        return move(name, at | dict(zip(keys, values, strict=True)), 4, gradient=mode)

    assert torch.autograd.gradcheck(function, [at[key] for key in keys], fast_mode=True)


class Kept:
    """A tensor that autograd keeps for a backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept_bytes(function: Callable[[], Any]) -> int:
    """Memory of the tensors that a result keeps for its backward pass, each counted once."""
    kept: weakref.WeakSet[Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Kept:
        kept.add(wrapped := Kept(tensor))
        return wrapped

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda wrapped: wrapped.tensor):
        result = function()
    gc.collect()
    sizes = {item.tensor.data_ptr(): item.tensor.numel() * item.tensor.element_size() for item in kept}
    del result
    return sum(sizes.values())


def test_memory_does_not_depend_on_the_number_of_steps() -> None:
    at = leaves()
    for name in ("velocity-verlet", "baoab"):
        few, many = (kept_bytes(lambda n=n, name=name: move(name, at, n, gradient="reversible")) for n in (2, 80))
        assert 0 < few == many < 3000
        few, many = (kept_bytes(lambda n=n, name=name: move(name, at, n)) for n in (2, 80))
        assert many > 20 * few


def test_few_tensors_live_during_the_backward_pass() -> None:
    """The memory that the backward pass needs besides, counted in live tensors, does not grow with the steps either."""
    at = leaves()
    counts = {}
    for steps in (2, 6):
        most = 0

        def watched(x: Tensor, *parameters: Tensor) -> Tensor:
            nonlocal most
            most = max(most, sum(type(found) is Tensor for found in gc.get_objects()))
            return FORCE(x, *parameters)

        x, v = integrate(
            integrators.get("velocity-verlet"), watched, at["x"], at["v"], masses=at["masses"], steps=steps,
            timestep=at["timestep"], parameters=(at["stiffness"], at["repulsion"]), gradient="reversible",
        )  # fmt: skip
        gc.collect()
        most = 0
        loss(x, v).backward()
        counts[steps] = most
    assert counts[6] <= counts[2] + 3


def test_a_force_is_evaluated_once_for_each_position() -> None:
    """By the forward pass and, with its derivative, by the backward pass."""
    at, calls = leaves(), 0

    def counted(x: Tensor, *parameters: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return FORCE(x, *parameters)

    for name, expected in (("velocity-verlet", 11), ("position-verlet", 10), ("pefrl", 40)):
        calls = 0
        x, v = integrate(
            integrators.get(name), counted, at["x"], at["v"], masses=at["masses"], timestep=0.05, steps=10,
            parameters=(at["stiffness"], at["repulsion"]), gradient="reversible",
        )  # fmt: skip
        assert calls == expected
        (x.sum() + v.sum()).backward()
        assert calls == 2 * expected


def test_what_is_not_needed_gets_no_gradient() -> None:
    """Only some inputs require gradients; a force may ignore the positions, a parameter or both."""
    x, v = torch.randn(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    field = torch.ones(2, dtype=torch.float64, requires_grad=True)
    unused = torch.ones(3, dtype=torch.float64, requires_grad=True)
    constant = torch.ones(2, dtype=torch.float64)
    for force in (lambda a, f, u: f.expand(a.shape), lambda a, f, u: constant.expand(a.shape)):
        gradients = []
        for mode in MODES:
            end = integrate(
                integrators.get("velocity-verlet"), force, x, v.requires_grad_(), masses=2.0, timestep=0.1, steps=5,
                parameters=(field, unused), gradient=mode,
            )  # fmt: skip
            total = torch.stack(end).sum()
            gradients.append(torch.autograd.grad(total, (v, field, unused), materialize_grads=True, allow_unused=True))
        torch.testing.assert_close(gradients[0], gradients[1])
    # v <- v + t F/m, x <- x + t v + t^2 F/2m with t = 0.5, for each of three atoms and two components.
    with torch.no_grad():
        v.requires_grad_(False)
    end = integrate(
        integrators.get("velocity-verlet"), lambda a, f: f.expand(a.shape), x, v, masses=2.0, timestep=0.1, steps=5,
        parameters=(field,), gradient="reversible",
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(torch.stack(end).sum(), field)
    torch.testing.assert_close(gradient, torch.full((2,), 3 * (0.5 / 2 + 0.5**2 / 4), dtype=torch.float64))


def test_weights_of_a_module() -> None:
    """Passed by name, as the documentation says; and refused when they come in behind the integrator's back."""
    generator = torch.Generator().manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    names, weights = zip(*module.named_parameters(), strict=True)
    x, v = torch.randn(2, 3, 2, dtype=torch.float64, generator=generator)

    def energy(positions: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), positions)

    found = []
    for mode in MODES:
        end = integrate(
            integrators.get("yoshida-4"), conservative(energy), x, v, masses=1.0, timestep=0.1, steps=20,
            parameters=weights, gradient=mode,
        )  # fmt: skip
        # The last bias shifts the energy only.
        found.append(torch.autograd.grad(loss(*end), weights, allow_unused=True, materialize_grads=True))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert max(float(g.abs().max()) for g in found[0]) > 1e-2
    end = integrate(
        integrators.get("yoshida-4"), conservative(module), x.requires_grad_(), v, masses=1.0, timestep=0.1, steps=2,
        gradient="reversible",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="not among its parameters"):
        loss(*end).backward()


def test_gradients_that_cannot_be_trusted_are_refused() -> None:
    """Undoing noise multiplies errors of rounding by exp(friction t); stretches that are short enough do not mind."""
    at = leaves() | {"friction": torch.tensor(2.0).double()}
    x, v = move("baoab", at, 400, gradient="reversible")
    with pytest.raises(ConfigError, match="cannot be retraced.*gradient='backpropagation'"):
        loss(x, v).backward()
    bath = Bath(at["friction"], at["kT"], 11)
    options: dict[str, Any] = {
        "masses": at["masses"],
        "timestep": at["timestep"],
        "parameters": (at["stiffness"], at["repulsion"]),
        "bath": bath,
    }
    gradients = []
    for mode, every in (("reversible", 10), ("backpropagation", 400)):
        xs, vs = trajectory(
            integrators.get("baoab"),
            FORCE,
            at["x"],
            at["v"],
            frames=400 // every,
            every=every,
            gradient=mode,
            **options,
        )
        assert xs.shape == (400 // every + 1, *x.shape)
        torch.testing.assert_close((xs[-1], vs[-1]), (x, v), rtol=0, atol=1e-12)
        gradients.append(torch.autograd.grad(loss(xs[-1], vs[-1]), [at["kT"], at["stiffness"], at["timestep"]]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mode", MODES)
def test_losses_on_a_trajectory(mode: str) -> None:
    """Every frame has its gradient; frames are the states that single calls give."""
    at = leaves()
    scheme = integrators.get("pefrl")
    options: dict[str, Any] = {"masses": at["masses"], "timestep": at["timestep"], "gradient": mode}
    options["parameters"] = (at["stiffness"], at["repulsion"])
    xs, vs = trajectory(scheme, FORCE, at["x"], at["v"], frames=3, every=2, **options)
    single = [integrate(scheme, FORCE, at["x"], at["v"], steps=n, **options) for n in (0, 2, 4, 6)]
    torch.testing.assert_close((xs, vs), tuple(map(torch.stack, zip(*single, strict=True))), rtol=0, atol=1e-14)
    inputs = [at[key] for key in ("x", "v", "masses", "timestep", "stiffness", "repulsion")]
    whole = torch.autograd.grad(loss(xs, vs), inputs)
    parts = torch.autograd.grad(torch.stack([loss(*state) for state in single]).sum(), inputs)
    torch.testing.assert_close(whole, parts, rtol=1e-11, atol=1e-11)


def test_second_derivatives() -> None:
    at = leaves(atoms=2)
    for mode in MODES:
        x, v = move("velocity-verlet", at, 5, gradient=mode)
        (gradient,) = torch.autograd.grad(loss(x, v), at["stiffness"], create_graph=True)
        if mode == "backpropagation":
            (second,) = torch.autograd.grad(gradient.sum(), at["stiffness"])
            assert second.abs().max() > 1e-4
        else:
            with pytest.raises(RuntimeError, match="differentiate twice"):
                gradient.sum().backward()


def test_frozen_atoms() -> None:
    at = {key: leaf.detach() for key, leaf in leaves().items()}
    at["masses"][:, 1] = torch.inf
    at["v"][:, 1] = 0
    wanted = [at["kT"].requires_grad_(), at["stiffness"].requires_grad_()]
    gradients = []
    for mode in MODES:
        x, v = move("baoab", at, 10, gradient=mode)
        assert torch.equal(x[:, 1], at["x"][:, 1])
        gradients.append(torch.autograd.grad(loss(x, v), wanted))
    assert all(gradient.isfinite().all() for gradient in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_float32() -> None:
    at = {key: leaf.detach().float().requires_grad_() for key, leaf in leaves().items()}
    exact = move("baoab", leaves(), 10)
    gradients = []
    for mode in MODES:
        x, v = move("baoab", at, 10, gradient=mode)
        assert x.dtype == torch.float32
        torch.testing.assert_close((x.double(), v.double()), exact, rtol=0, atol=1e-5)
        gradients.append(torch.autograd.grad(loss(x, v), list(at.values())))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"velocities": torch.zeros(2, 3)}, "must be alike, \\[\\*batch, N, D\\]"),
        ({"positions": torch.zeros(3), "velocities": torch.zeros(3)}, "must be alike, \\[\\*batch, N, D\\]"),
        ({"positions": torch.zeros(2, 2, dtype=int), "velocities": torch.zeros(2, 2, dtype=int)}, "floating-point"),
        ({"masses": torch.ones(3)}, "masses must be a number, \\[N\\] or .* found \\[3\\]"),
        ({"masses": 0.0}, "masses must be positive"),
        ({"timestep": torch.ones(2)}, "timestep must be a number or \\[\\]"),
        ({"timestep": 0.0}, "timestep must be a finite number other than 0"),
        ({"steps": -1}, "must not be negative"),
        ({"bath": Bath(1.0, 1.0, 1)}, "no noise operator"),
        ({"scheme": integrators.get("baoab")}, "needs a bath"),
        ({"scheme": integrators.get("baoab"), "bath": Bath(1.0, 1.0, 1, [1, 2])}, "replicas must be 1 integers"),
        ({"scheme": integrators.get("baoab"), "bath": Bath([1.0, 1.0], 1.0, 1)}, "friction must be a number"),
        ({"gradient": "adjoint"}, "'backpropagation' or 'reversible'; found 'adjoint'"),
        ({"force": lambda x: x.sum()}, "force must be like positions, \\[2, 2\\]; found \\[\\]"),
    ],
)
def test_unusable_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "scheme": integrators.get("velocity-verlet"),
        "force": torch.neg,
        "positions": torch.zeros(2, 2),
        "velocities": torch.zeros(2, 2),
        "masses": 1.0,
        "timestep": 0.1,
        "steps": 1,
    }
    with pytest.raises(ConfigError, match=message):
        integrate(**(arguments | changes))
