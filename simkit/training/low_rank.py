"""Weights that train in part: a low-rank update, or the entries of new elements alone; merged into plain weights at the end.

The low-rank update is that of Hu et al., "LoRA: Low-rank adaptation of large language models", ICLR 2022 (arXiv:2106.09685).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRankUpdate(nn.Module):
    """W -> W + B A (section 4.1 with alpha = r), for a matrix [..., m, n] or a stack of them; B [..., m, r], A [..., r, n].

    B starts at zero, so that nothing changes at first. A starts with random numbers of the size of W: the steps of Adam do not depend on
    the size of the gradient, and the first ones then change all layers by the same fraction of their weights.
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        *stack, rows, columns = weight.shape
        size = float(weight.square().mean().sqrt()) or columns**-0.5
        start = torch.randn(*stack, rank, columns, generator=generator, dtype=torch.float64) * size
        self.a = nn.Parameter(start.to(weight))
        self.b = nn.Parameter(weight.new_zeros(*stack, rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the updated weight."""
        return weight + self.b @ self.a


class FreshEntries(nn.Module):
    """W -> W with some of its entries replaced by others that train."""

    places: Tensor

    def __init__(self, weight: Tensor, fresh: Tensor) -> None:
        super().__init__()
        self.register_buffer("places", fresh.flatten().nonzero().squeeze(1), persistent=False)
        self.entries = nn.Parameter(weight.detach()[fresh].clone())

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with the entries in their places."""
        return weight.flatten().index_copy(0, self.places, self.entries).view_as(weight)


def largest_rank(weight: Tensor) -> int:
    """Return the highest rank r whose update holds fewer numbers than the weight: r (m + n) < m n; 0 for no matrix."""
    if weight.dim() < 2:
        return 0
    rows, columns = weight.shape[-2:]
    return (rows * columns - 1) // (rows + columns)


def add_update(model: nn.Module, name: str, update: nn.Module) -> None:
    """Let the weight ``name`` of a model pass through an update; updates of one weight follow one another."""
    module, _, attribute = name.rpartition(".")
    parametrize.register_parametrization(model.get_submodule(module), attribute, update)


@torch.no_grad()
def merge_updates(model: nn.Module, last: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make the weights with updates plain again, with the values that they have now.

    Args:
        last: name -> other values of parameters, those of the updates among them (such as `FitResult.last_weights`).

    Returns:
        The same for the plain weights: name -> values that they would have with the parameters in ``last``.
    """
    updated = _with_updates(model)
    parameters = dict(model.named_parameters())
    now = {name: parameters[name].clone() for name in last}
    for name, value in last.items():
        parameters[name].copy_(value)
    plain = {name: value for name, value in last.items() if ".parametrizations." not in f".{name}"}
    plain |= {name: getattr(owner, attribute).clone() for name, (owner, attribute) in updated.items()}
    for name, value in now.items():
        parameters[name].copy_(value)
    for owner, attribute in updated.values():
        parametrize.remove_parametrizations(owner, attribute, leave_parametrized=True)
    return plain


def _with_updates(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Return name -> (module, attribute) of every weight with an update."""
    return {
        f"{module}.{attribute}": (owner, attribute)
        for module, owner in model.named_modules()
        if isinstance(lists := getattr(owner, "parametrizations", None), nn.ModuleDict)
        for attribute in lists
    }
