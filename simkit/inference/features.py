"""Standardised outputs of a simulator, and networks that summarise long ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from simkit.errors import DataError
from simkit.inference.priors import Array
from simkit.inference.simulator import Observable

PLAIN, LOG, ASINH = 0, 1, 2
HEAVY_TAIL = 12.0
"""Largest deviation in units of the interquartile range, above which an output is taken on a logarithmic scale; 3 to 4 for a normal one."""
LARGEST_PLAIN, SHORTEST_SERIES, SUMMARIES = 40, 16, 16


class Features(nn.Module):
    """Outputs [..., K] to features of mean 0 and deviation 1 in the training data, [..., K] float32.

    Outputs with heavy tails are taken on a logarithmic scale, log x or asinh((x - median)/IQR); constant ones become 0. Whole numbers go to
    the middle of the interval to the next one, or are spread over it for those that learn their density, because that of a lattice has no
    bound. All maps are monotone: nothing is lost. The members of a set share their scales, so that their order does not matter.

    Attributes:
        scale_kind: PLAIN, LOG or ASINH of each output, [K].
        whole: which outputs are whole numbers, [K] bool.
        varying: which outputs vary, [K] bool.
    """

    scale_kind: Tensor
    whole: Tensor
    varying: Tensor
    middle: Tensor
    spread: Tensor
    center: Tensor
    scale: Tensor

    def __init__(self, observables: Sequence[Observable]) -> None:
        super().__init__()
        self.parts = [(o.size, _channels(o) if o.kind == "set" else o.size) for o in observables]
        size = sum(o.size for o in observables)
        self.register_buffer("scale_kind", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("whole", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("varying", torch.ones(size, dtype=torch.bool))
        for name, value in (("middle", 0.0), ("spread", 1.0), ("center", 0.0), ("scale", 1.0)):
            self.register_buffer(name, torch.full((size,), value, dtype=torch.float64))

    @torch.no_grad()
    def adapt(self, x: Array) -> None:
        """Choose scales from finite outputs [N, K].

        Raises:
            DataError: if all outputs are constant.
        """
        values, first = torch.from_numpy(np.ascontiguousarray(x)), 0
        for size, channels in self.parts:
            part = slice(first, first + size)
            for name, found in _scales(values[:, part].reshape(-1, channels)).items():
                getattr(self, name)[part] = found.repeat(size // channels)
            first += size
        if not bool(self.varying.any()):
            raise DataError(
                "all simulations gave the same outputs: nothing can be inferred from them; check the simulator and the prior"
            )

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return features of outputs [..., K] float64; whole numbers are spread at random with a generator, else to the middle."""
        shift = torch.rand(x.shape, generator=generator, dtype=x.dtype) if generator is not None else 0.5
        scaled = _scaled(x + shift * self.whole, self.scale_kind, self.middle, self.spread)
        return ((scaled - self.center) / self.scale * self.varying).float()


def _scales(values: Tensor) -> dict[str, Tensor]:
    """Return the buffers of `Features`, [C] each, that fit values [N, C]."""
    varying = values.min(0).values < values.max(0).values
    whole = varying & (values == values.round()).all(0)
    values = values + 0.5 * whole
    low, middle, high = _quartiles(values)
    deviation = values.std(0)
    spread = torch.where(high > low, high - low, torch.where(deviation > 0, deviation, 1.0))
    kinds = [torch.full(values.shape[1:], kind) for kind in (PLAIN, LOG, ASINH)]
    plain, log, asinh = (_tail(_scaled(values, kind, middle, spread)) for kind in kinds)
    log_or_asinh = torch.where((values.min(0).values > 0) & (log < asinh), LOG, ASINH)
    scale_kind = torch.where(plain > HEAVY_TAIL, log_or_asinh, PLAIN)
    scaled = _scaled(values, scale_kind, middle, spread)
    found = {"scale_kind": scale_kind, "whole": whole, "varying": varying, "middle": middle, "spread": spread}
    return found | {"center": scaled.mean(0), "scale": torch.where(varying, scaled.std(0), 1.0)}


def _scaled(values: Tensor, kind: Tensor, middle: Tensor, spread: Tensor) -> Tensor:
    tiny = torch.finfo(torch.float64).tiny
    wide = torch.asinh((values - middle) / spread)
    return torch.where(kind == LOG, values.clamp(min=tiny).log(), torch.where(kind == ASINH, wide, values))


def _tail(values: Tensor) -> Tensor:
    low, middle, high = _quartiles(values)
    return (values - middle).abs().max(0).values / (high - low).clamp(min=1e-300)


def _quartiles(values: Tensor) -> Tensor:
    """Quartiles [3, C] of about 10,000 rows or fewer: enough, and `torch.quantile` takes no more than 16 million numbers."""
    step = max(1, len(values) // 10_000, math.ceil(values.numel() / 10_000_000))
    return torch.quantile(values[::step], torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=0)


class Summaries(nn.Module):
    """Features [..., K] to what estimators see, [..., C]: short outputs as they are, long ones through a network of their own.

    Series go through a convolutional network, sets through a permutation-invariant one, other long outputs through a dense one: those of
    `sbi.neural_nets.embedding_nets`. They are trained together with the estimator.
    """

    def __init__(self, observables: Sequence[Observable]) -> None:
        super().__init__()
        self.sizes = [o.size for o in observables]
        self.networks = nn.ModuleList(_network(o) for o in observables)
        self.size = sum(
            o.size if isinstance(n, nn.Identity) else SUMMARIES for o, n in zip(observables, self.networks, strict=True)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return the summaries of features [..., K]."""
        flat = features.reshape(-1, features.shape[-1])
        parts = [network(part) for network, part in zip(self.networks, flat.split(self.sizes, -1), strict=True)]
        return torch.cat(parts, -1).reshape(*features.shape[:-1], -1)


class _Channels(nn.Module):
    """[B, T C] to [B, C T], the order in which a convolution takes a series of C channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, values: Tensor) -> Tensor:
        return values.reshape(len(values), -1, self.channels).transpose(1, 2).reshape(len(values), -1)


class _Members(nn.Module):
    """[B, M C] to [B, M, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, values: Tensor) -> Tensor:
        return values.reshape(len(values), -1, self.channels)


def _channels(observable: Observable) -> int:
    """Return the number of values of a member or at a time."""
    return int(np.prod(observable.shape[1:], dtype=np.int64))


def _network(observable: Observable) -> nn.Module:
    from sbi.neural_nets.embedding_nets import CNNEmbedding, FCEmbedding, PermutationInvariantEmbedding

    if observable.size <= LARGEST_PLAIN:
        return nn.Identity()
    channels = _channels(observable)
    if observable.kind == "series" and observable.shape[0] >= SHORTEST_SERIES:
        convolution = CNNEmbedding(
            (observable.shape[0],), in_channels=channels, output_dim=SUMMARIES, out_channels_per_layer=[16, 32]
        )
        return nn.Sequential(_Channels(channels), convolution)
    if observable.kind == "set":
        member = FCEmbedding(channels, num_layers=2, num_hiddens=64, output_dim=32)
        whole = PermutationInvariantEmbedding(member, 32, aggregation_fn="mean", num_hiddens=64, output_dim=SUMMARIES)
        return nn.Sequential(_Members(channels), whole)
    return FCEmbedding(observable.size, num_layers=2, num_hiddens=64, output_dim=SUMMARIES)
