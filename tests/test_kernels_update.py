"""The fused update of PaiNN and the activation of SchNet against plain PyTorch: values, first and second derivatives."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from simkit.kernels.activations import ShiftedSoftplus
from simkit.kernels.vector_update import (
    ATOMS,
    gated_update,
    gated_update_reference,
    invariants,
    invariants_reference,
)


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(True)


def update_inputs(atoms: int, channels: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return tuple(normal(atoms, width * channels, dtype=dtype) for width in (1, 3, 3, 1, 3))


def invariant_inputs(atoms: int, channels: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    return normal(atoms, channels, dtype=dtype), normal(atoms, 3, 2 * channels, dtype=dtype)


def everything(function: Callable[..., Sequence[Tensor]], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Values, gradients of a force-like scalar, and gradients of a loss on those gradients."""
    generator = torch.Generator().manual_seed(1)
    values = function(*leaves)

    def random_like(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)

    scalar = torch.stack([(x.tanh() * random_like(x)).sum() for x in values]).sum()
    first = torch.autograd.grad(scalar, leaves, create_graph=True)
    second = torch.autograd.grad(torch.stack([(x * random_like(x)).sum() for x in first]).sum(), leaves)
    return [x.detach() for x in (*values, *first, *second)]


CASES = [(invariants, invariants_reference, invariant_inputs), (gated_update, gated_update_reference, update_inputs)]


@pytest.mark.parametrize(("fused", "reference", "inputs"), CASES, ids=["invariants", "update"])
@pytest.mark.parametrize(("atoms", "channels"), [(0, 4), (1, 1), (7, 5), (3, 128), (2 * ATOMS + 3, 17)])
def test_update_equals_its_reference(
    fused: Callable[..., Sequence[Tensor]],
    reference: Callable[..., Sequence[Tensor]],
    inputs: Callable[..., tuple[Tensor, ...]],
    atoms: int,
    channels: int,
) -> None:
    leaves = inputs(atoms, channels)
    for a, b in zip(everything(fused, leaves), everything(reference, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("fused", "reference", "inputs"), CASES, ids=["invariants", "update"])
def test_update_in_float32(
    fused: Callable[..., Sequence[Tensor]],
    reference: Callable[..., Sequence[Tensor]],
    inputs: Callable[..., tuple[Tensor, ...]],
) -> None:
    leaves = inputs(7, 9, torch.float32)
    for a, b in zip(everything(fused, leaves), everything(reference, leaves), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize(("fused", "reference", "inputs"), CASES, ids=["invariants", "update"])
def test_update_against_finite_differences(
    fused: Callable[..., Sequence[Tensor]],
    reference: Callable[..., Sequence[Tensor]],
    inputs: Callable[..., tuple[Tensor, ...]],
) -> None:
    leaves = inputs(3, 4)
    assert torch.autograd.gradcheck(fused, leaves)
    assert torch.autograd.gradgradcheck(fused, leaves)


@pytest.mark.parametrize(("fused", "reference", "inputs"), CASES, ids=["invariants", "update"])
def test_update_takes_transposed_and_expanded_tensors(
    fused: Callable[..., Sequence[Tensor]],
    reference: Callable[..., Sequence[Tensor]],
    inputs: Callable[..., tuple[Tensor, ...]],
) -> None:
    """In the backward passes too: the gradient of a sum has no strides."""
    leaves = [x.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_(True) for x in inputs(3, 4)]
    assert not any(x.is_contiguous() for x in leaves)

    def gradients(function: Callable[..., Sequence[Tensor]]) -> list[Tensor]:
        scalar = torch.stack([x.sum() for x in function(*leaves)]).sum()
        first = torch.autograd.grad(scalar, leaves, create_graph=True)
        total = torch.stack([x.sum() for x in first if x.requires_grad]).sum()
        return [*first, *torch.autograd.grad(total, leaves, materialize_grads=True)]

    for a, b in zip(gradients(fused), gradients(reference), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("fused", "reference", "inputs"), CASES, ids=["invariants", "update"])
def test_update_does_not_depend_on_the_number_of_threads(
    fused: Callable[..., Sequence[Tensor]],
    reference: Callable[..., Sequence[Tensor]],
    inputs: Callable[..., tuple[Tensor, ...]],
) -> None:
    leaves, threads = inputs(4 * ATOMS + 5, 20), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            results.append(everything(fused, leaves))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_invariants_of_vanishing_vectors_have_finite_derivatives() -> None:
    s, mixed = normal(2, 3), torch.zeros(2, 3, 6, dtype=torch.float64, requires_grad=True)
    for a, b in zip(everything(invariants, (s, mixed)), everything(invariants_reference, (s, mixed)), strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_shifted_softplus() -> None:
    x = torch.cat([normal(50).detach(), torch.tensor([-40.0, 0.0, 40.0], dtype=torch.float64)])
    x.requires_grad_(True)

    def plain(x: Tensor) -> tuple[Tensor]:
        return (torch.logaddexp(x, torch.zeros_like(x)) - math.log(2.0),)

    def ours(x: Tensor) -> tuple[Tensor]:
        return (ShiftedSoftplus()(x),)

    for a, b in zip(everything(ours, [x]), everything(plain, [x]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)  # PyTorch's softplus is x itself from 20 on: 2e-9
    inner = normal(4, 3)
    assert torch.autograd.gradcheck(ShiftedSoftplus(), inner)
    assert torch.autograd.gradgradcheck(ShiftedSoftplus(), inner)
    far = torch.tensor([-800.0, 800.0], dtype=torch.float64, requires_grad=True)
    assert all(x.isfinite().all() for x in everything(ours, [far]))
