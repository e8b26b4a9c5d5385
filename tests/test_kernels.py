"""The compiled kernels against their plain PyTorch references: values, first and second derivatives."""

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simkit.kernels.blocks import BLOCK
from simkit.kernels.vector_message import vector_message, vector_message_reference

Inputs = tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor]


def inputs(
    channels: int, edges: int = 30, has_v: bool = True, dtype: torch.dtype = torch.float64, sort: bool = True
) -> Inputs:
    generator = torch.Generator().manual_seed(channels + edges)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(True)

    atoms = 7  # the last of which has no edge
    sender, receiver = torch.randint(0, atoms - 1, (2, edges), generator=generator)
    receiver = receiver.sort().values if sort else receiver
    v = normal(atoms, 3 * channels) if has_v else None
    return normal(atoms, 3 * channels), v, normal(edges, 3 * channels), normal(edges, 3), sender, receiver


def everything(function: Callable[..., tuple[Tensor, Tensor]], arguments: Inputs, both: bool = False) -> list[Tensor]:
    """Values, gradients of a force-like scalar, and gradients of a loss on those gradients."""
    generator = torch.Generator().manual_seed(1)
    leaves = [x for x in arguments[:4] if x is not None]
    values = function(*arguments, both=both)

    def random_like(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)

    # A nonlinear scalar, so that the cotangents of the first backward pass depend on the inputs as they do in a network.
    scalar = torch.stack([(x.tanh() * random_like(x)).sum() for x in values]).sum()
    first = torch.autograd.grad(scalar, leaves, create_graph=True)
    second = torch.autograd.grad(torch.stack([(x * random_like(x)).sum() for x in first]).sum(), leaves)
    return [x.detach() for x in (*values, *first, *second)]


@pytest.mark.parametrize("channels", [1, 5, BLOCK - 1, BLOCK, BLOCK + 3, 2 * BLOCK + 5])
@pytest.mark.parametrize("has_v", [True, False])
@pytest.mark.parametrize("both", [True, False])
def test_vector_message(channels: int, has_v: bool, both: bool) -> None:
    arguments = inputs(channels, has_v=has_v)
    found = everything(vector_message, arguments, both)
    expected = everything(vector_message_reference, arguments, both)
    assert len(found) == (10 if has_v else 8)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_vector_message_in_float32() -> None:
    arguments = inputs(BLOCK + 3, dtype=torch.float32)
    found, expected = everything(vector_message, arguments), everything(vector_message_reference, arguments)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("has_v", [True, False])
@pytest.mark.parametrize("edges", [0, 1])
def test_vector_message_with_hardly_any_edges(edges: int, has_v: bool) -> None:
    arguments = inputs(4, edges=edges, has_v=has_v)
    for a, b in zip(
        everything(vector_message, arguments), everything(vector_message_reference, arguments), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_vector_message_takes_edges_in_any_order() -> None:
    arguments = inputs(6, sort=False)
    for a, b in zip(
        everything(vector_message, arguments), everything(vector_message_reference, arguments), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_vector_message_takes_views() -> None:
    """Arguments that are not contiguous, as slices of larger arrays are."""
    phi, v, filters, directions, sender, receiver = inputs(5)
    assert v is not None
    a, b, c, d = (x.detach().repeat_interleave(2, dim=1)[:, ::2] for x in (phi, v, filters, directions))
    index = torch.stack([sender, receiver], dim=1)
    found = vector_message(a, b, c, d, index[:, 0], index[:, 1])
    expected = vector_message_reference(phi, v, filters, directions, sender, receiver)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b.detach())


def test_vector_message_takes_transposed_and_expanded_tensors() -> None:
    """In the backward passes too: the gradient of a sum has no strides, that of a transposed array is transposed."""
    phi, v, filters, directions, sender, receiver = inputs(3)
    assert v is not None

    def gradients(function: Callable[..., tuple[Tensor, Tensor]]) -> list[Tensor]:
        leaves = [x.detach().t().contiguous().t().requires_grad_(True) for x in (phi, v, filters, directions)]
        assert not leaves[0].is_contiguous()
        ds, dv = function(*leaves, sender, receiver)
        first = torch.autograd.grad(ds.sum() + dv.sum(), leaves, create_graph=True)
        second = torch.autograd.grad(torch.stack([x.sum() for x in first]).sum(), leaves)
        only_scalars = torch.autograd.grad(
            function(*leaves, sender, receiver)[0].square().sum(), leaves, materialize_grads=True
        )
        return [*first, *second, *only_scalars]

    for a, b in zip(gradients(vector_message), gradients(vector_message_reference), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-11, atol=1e-11)


@given(
    atoms=st.integers(1, 4),
    edges=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=9),
    channels=st.sampled_from([1, 3, BLOCK + 1]),
    has_v=st.booleans(),
)
def test_vector_message_on_any_edges(atoms: int, edges: list[tuple[int, int]], channels: int, has_v: bool) -> None:
    """One atom, edges of an atom with itself, several times the same edge, in any order."""
    index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2) % atoms
    phi, v, filters, directions, _, _ = inputs(channels, edges=len(edges), has_v=has_v)

    def first(x: Tensor) -> Tensor:
        return x.detach()[:atoms].requires_grad_(True)

    arguments = (first(phi), None if v is None else first(v), filters, directions, index[:, 0], index[:, 1])
    found, expected = everything(vector_message, arguments), everything(vector_message_reference, arguments)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("has_v", [True, False])
@pytest.mark.parametrize("both", [True, False])
def test_vector_message_against_finite_differences(has_v: bool, both: bool) -> None:
    phi, v, filters, directions, sender, receiver = inputs(2, edges=4, has_v=has_v)

    def function(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        full = leaves if has_v else (leaves[0], None, *leaves[1:])
        return vector_message(*full, sender, receiver, both=both)  # type: ignore[arg-type, call-arg]

    leaves = tuple(x for x in (phi, v, filters, directions) if x is not None)
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_vector_message_does_not_depend_on_the_number_of_threads() -> None:
    arguments, threads = inputs(3 * BLOCK + 5), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            results.append(everything(vector_message, arguments, both=True))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_vector_message_in_several_python_threads() -> None:
    arguments = inputs(2 * BLOCK)
    expected, found = everything(vector_message, arguments), []
    threads = [threading.Thread(target=lambda: found.append(everything(vector_message, arguments))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert all(torch.equal(a, b) for result in found for a, b in zip(result, expected, strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="about fork, which Linux uses by default")
def test_vector_message_after_a_fork() -> None:
    """Workers that are forked by multiprocessing or a data loader; GNU OpenMP would end them."""
    program = """
        import os, torch
        from simkit.kernels.vector_message import vector_message
        torch.set_num_threads(2)
        index = torch.zeros(3, dtype=torch.int64)
        arguments = (torch.ones(1, 600), None, torch.ones(3, 600), torch.ones(3, 3), index, index)
        before = vector_message(*arguments)
        child = os.fork()
        if child == 0:
            same = all(torch.equal(a, b) for a, b in zip(before, vector_message(*arguments)))
            os._exit(0 if same else 3)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_kernels_leave_the_number_of_threads_alone():
    """In a fresh process, because Numba starts its threads once; its OpenMP layer may share PyTorch's runtime."""
    script = (
        "import torch; torch.set_num_threads(1)\n"
        "from simkit.kernels.vector_message import vector_message\n"
        "edges = torch.tensor([0, 1])\n"
        "vector_message(torch.ones(2, 384), None, torch.ones(2, 384), torch.ones(2, 3), edges, edges.flip(0))\n"
        "print(torch.get_num_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
