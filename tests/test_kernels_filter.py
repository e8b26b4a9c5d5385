"""The fused continuous-filter convolution against its plain PyTorch reference: values, first and second derivatives."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from simkit.kernels.blocks import BLOCK
from simkit.kernels.filter_message import filter_message, filter_message_reference

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def inputs(channels: int, edges: int = 30, dtype: torch.dtype = torch.float64) -> Inputs:
    generator = torch.Generator().manual_seed(channels + edges)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(True)

    atoms = 7  # the last of which has no edge; an edge may join an atom with itself
    sender, receiver = torch.randint(0, atoms - 1, (2, edges), generator=generator)
    return normal(atoms, channels), normal(edges, channels), normal(edges), sender, receiver


def everything(function: Callable[..., Tensor], arguments: Inputs, both: bool) -> list[Tensor]:
    """Values, gradients of a force-like scalar, and gradients of a loss on those gradients."""
    generator = torch.Generator().manual_seed(1)
    value, leaves = function(*arguments, both=both), arguments[:3]

    def random_like(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)

    first = torch.autograd.grad((value.tanh() * random_like(value)).sum(), leaves, create_graph=True)
    second = torch.autograd.grad(torch.stack([(x * random_like(x)).sum() for x in first]).sum(), leaves)
    return [x.detach() for x in (value, *first, *second)]


@pytest.mark.parametrize("channels", [1, 5, BLOCK, 2 * BLOCK + 5])
@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("edges", [0, 1, 30])
def test_filter_message(channels: int, both: bool, edges: int) -> None:
    arguments = inputs(channels, edges)
    found = everything(filter_message, arguments, both)
    for a, b in zip(found, everything(filter_message_reference, arguments, both), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_filter_message_in_float32() -> None:
    arguments = inputs(BLOCK + 3, dtype=torch.float32)
    found = everything(filter_message, arguments, True)
    for a, b in zip(found, everything(filter_message_reference, arguments, True), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("both", [True, False])
def test_filter_message_against_finite_differences(both: bool) -> None:
    x, filters, weight, sender, receiver = inputs(2, edges=4)

    def function(*leaves: Tensor) -> Tensor:
        return filter_message(*leaves, sender, receiver, both=both)  # type: ignore[arg-type, call-arg]

    assert torch.autograd.gradcheck(function, (x, filters, weight))
    assert torch.autograd.gradgradcheck(function, (x, filters, weight))


def test_filter_message_takes_views_and_expanded_tensors() -> None:
    """In the backward passes too: the gradient of a sum has no strides, that of a transposed array is transposed."""
    x, filters, weight, sender, receiver = inputs(3)

    def gradients(function: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [a.detach().t().contiguous().t().requires_grad_(True) for a in (x, filters)]
        leaves.append(weight.detach().repeat_interleave(2)[::2].requires_grad_(True))
        assert not any(a.is_contiguous() for a in leaves)
        first = torch.autograd.grad(function(*leaves, sender, receiver).sum(), leaves, create_graph=True)
        return [*first, *torch.autograd.grad(torch.stack([a.sum() for a in first]).sum(), leaves)]

    for a, b in zip(gradients(filter_message), gradients(filter_message_reference), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-11, atol=1e-11)


def test_filter_message_does_not_depend_on_the_number_of_threads() -> None:
    arguments, threads = inputs(3 * BLOCK + 5), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            results.append(everything(filter_message, arguments, True))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
