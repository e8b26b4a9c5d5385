"""The compiled kernels against their plain PyTorch references: values, first and second derivatives."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from simkit.kernels.vector_message import BLOCK, vector_message, vector_message_reference

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


def everything(function: Callable[..., tuple[Tensor, Tensor]], arguments: Inputs) -> list[Tensor]:
    """Values, gradients of a force-like scalar, and gradients of a loss on those gradients."""
    generator = torch.Generator().manual_seed(1)
    leaves = [x for x in arguments[:4] if x is not None]
    values = function(*arguments)

    def random_like(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)

    # A nonlinear scalar, so that the cotangents of the first backward pass depend on the inputs as they do in a network.
    scalar = torch.stack([(x.tanh() * random_like(x)).sum() for x in values]).sum()
    first = torch.autograd.grad(scalar, leaves, create_graph=True)
    second = torch.autograd.grad(torch.stack([(x * random_like(x)).sum() for x in first]).sum(), leaves)
    return [x.detach() for x in (*values, *first, *second)]


@pytest.mark.parametrize("channels", [1, 5, BLOCK - 1, BLOCK, BLOCK + 3, 2 * BLOCK + 5])
@pytest.mark.parametrize("has_v", [True, False])
def test_vector_message(channels: int, has_v: bool) -> None:
    arguments = inputs(channels, has_v=has_v)
    found, expected = everything(vector_message, arguments), everything(vector_message_reference, arguments)
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


def test_vector_message_does_not_depend_on_the_number_of_threads() -> None:
    arguments, threads = inputs(2 * BLOCK), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(everything(vector_message, arguments))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
