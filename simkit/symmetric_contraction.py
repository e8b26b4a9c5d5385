"""Symmetric contraction: every equivariant polynomial in a set of spherical features up to a given order, with learned weights.

The atomic cluster expansion (Drautz, Phys. Rev. B 99, 014104 (2019)) in the form of MACE (Batatia et al., NeurIPS 2022, eqs. 10 and 11).
For one channel with features A of ``irreps_in``, the equivariants of type L and order nu are

    B_{k, LM} = sum_{i1..i_nu} U^{k, LM}_{i1..i_nu} A_{i1} ... A_{i_nu}

with tensors U that are symmetric in their lower indices, since the factors commute. The U that couple the factors in every order and
through every intermediate are mostly copies and combinations of each other once they are made symmetric: 51 of them give only 12
vectors of order 3 for l_max 3. Here each k is independent of the others, and together they span everything there is.

How they are evaluated is fixed when a module is built: a ladder on which the features of order nu are products of those of order
nu - 1 with A, each product that occurs listed once, with the ladder's steps chosen to need few products.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import torch
from e3nn import o3
from numpy.typing import NDArray
from torch import Tensor, nn

from simkit.equivariant import ExactConstant
from simkit.errors import ConfigError
from simkit.kernels.tracing import arrangement

Array = NDArray[np.float64]
Entry = tuple[int, int, int, float]
# (order, feature of the order below, its component, component of A): a product; on order 2 components of A alone, in ascending order.
Product = tuple[int, int, int, int]

VANISHING = 1e-8  # of tensors of norm one: far above rounding, far below the algebraic numbers that occur
BLOCK = 2**19  # products formed at once: a few MB, which stay in the cache


@dataclass(frozen=True, eq=False)
class Equivariant:
    """One equivariant polynomial with 2l + 1 components, normalised so that the squares of its symmetric tensor U add up to 2l + 1.

    Attributes:
        irrep: its type.
        polynomials: [2l + 1, monomials] coefficients of the monomials of its order, as `Monomials` lists them.
        lower: index of the feature of the order below that it is made of; -1 on order 1.
        factor: index of the irrep of A that the lower one is multiplied with; on order 1, the irrep that it is.
        coupling: [2 l_lower + 1, 2 l_factor + 1, 2l + 1] how.
        products: every product needed for it, from its own order down.
    """

    irrep: o3.Irrep
    polynomials: Array
    lower: int
    factor: int
    coupling: Array
    products: frozenset[Product]


class Monomials:
    """The monomials of one order in ``dim`` variables.

    Attributes:
        factors: [monomials, order] variables of each, ascending.
        counts: [monomials] in how many orders the factors of each can be written.
        times: [monomials of the order below, dim] where a monomial of the order below goes when it is multiplied by a variable.
    """

    def __init__(self, dim: int, order: int) -> None:
        every = list(combinations_with_replacement(range(dim), order))
        index = {monomial: k for k, monomial in enumerate(every)}
        lower = combinations_with_replacement(range(dim), order - 1)
        self.factors = np.array(every)
        self.times = np.array([[index[tuple(sorted((*m, j)))] for j in range(dim)] for m in lower])
        repeats = [math.prod(math.factorial(m.count(j)) for j in set(m)) for m in every]
        self.counts = math.factorial(order) / np.array(repeats, dtype=np.float64)


@dataclass(frozen=True)
class Step:
    """From one order to the next: ``entries`` (i, j, o, value) say that row o of the higher order has value * lower_i * A_j."""

    rows: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Ladder:
    """A symmetric contraction, ready to be evaluated.

    Attributes:
        steps: from order 1 to order 2, and so on.
        paths: number of weights of each irrep of the output.
        orders: for each order, the entries (k, row, o, 1.0) that add the weighted features to the output; k counts weights.
        equivariants: what the weights multiply, with their orders.
    """

    steps: tuple[Step, ...]
    paths: tuple[int, ...]
    orders: tuple[tuple[Entry, ...], ...]
    equivariants: tuple[tuple[int, Equivariant], ...]


class _Basis:
    """All the equivariants of ``irreps_in``, order by order, as far as those of ``irreps_out`` at order ``correlation`` need them."""

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, correlation: int) -> None:
        self.factors = [ir for mul, ir in irreps_in for _ in range(mul)]
        self.starts = np.concatenate([[0], np.cumsum([ir.dim for ir in self.factors])]).astype(np.int64)
        self.targets = [ir for _, ir in irreps_out]
        self.dim = irreps_in.dim
        self.have: set[Product] = set()  # what is computed in any case
        self.orders: list[list[Equivariant]] = [self._first()]
        for order in range(2, correlation + 1):
            # Of the other types, those from which an output can still be reached.
            reach = max(ir.l for ir in self.targets) + (correlation - order) * max(ir.l for ir in self.factors)
            self.orders.append(self._next(order, reach if order < correlation else -1))

    def _first(self) -> list[Equivariant]:
        eye = np.eye(self.dim)
        slices = zip(self.factors, self.starts[:-1], strict=True)
        return [
            Equivariant(ir, eye[start : start + ir.dim], -1, k, np.empty(0), frozenset())
            for k, (ir, start) in enumerate(slices)
        ]

    def _next(self, order: int, reach: int) -> list[Equivariant]:
        """All independent equivariants of an order, of the types of the output and of those with l up to ``reach``."""
        monomials = Monomials(self.dim, order)
        found: dict[o3.Irrep, list[Equivariant]] = {ir: [] for ir in self.targets}
        for lower in range(len(self.orders[-1])):
            for factor in range(len(self.factors)):
                for irrep in self.orders[-1][lower].irrep * self.factors[factor]:
                    if irrep in self.targets or irrep.l <= reach:
                        found.setdefault(irrep, []).extend(self._couple(order, lower, factor, irrep, monomials))
        chosen = []
        for irrep, candidates in found.items():
            have = self.have if irrep in self.targets else set(self.have)
            chosen += _independent(candidates, 1.0 / np.sqrt(monomials.counts), have)
        return chosen

    def _couple(
        self, order: int, lower: int, factor: int, irrep: o3.Irrep, monomials: Monomials
    ) -> Iterator[Equivariant]:
        """Couple a feature of the order below with an irrep of A; nothing if the symmetric part vanishes."""
        below, right = self.orders[-1][lower], self.factors[factor]
        coupling = _wigner_3j(below.irrep.l, right.l, irrep.l)
        polynomials = np.zeros((irrep.dim, len(monomials.factors)))
        for m in range(right.dim):
            polynomials[:, monomials.times[:, self.starts[factor] + m]] += coupling[:, m].T @ below.polynomials
        norm = math.sqrt((polynomials**2 / monomials.counts).sum() / irrep.dim)
        if norm > VANISHING:
            products = below.products | self._products(order, lower, factor, coupling)
            yield Equivariant(irrep, polynomials / norm, lower, factor, coupling / norm, frozenset(products))

    def _products(self, order: int, lower: int, factor: int, coupling: Array) -> set[Product]:
        pairs = np.argwhere(np.abs(coupling).max(axis=2) > VANISHING).tolist()
        if order > 2:
            return {(order, lower, i, int(self.starts[factor]) + j) for i, j in pairs}
        ends = [sorted((int(self.starts[lower]) + i, int(self.starts[factor]) + j)) for i, j in pairs]
        return {(2, -1, i, j) for i, j in ends}


def _wigner_3j(l1: int, l2: int, l3: int) -> Array:
    coupling: Array = o3.wigner_3j(l1, l2, l3, dtype=torch.float64).numpy()
    return coupling


def _independent(candidates: list[Equivariant], weights: Array, have: set[Product]) -> list[Equivariant]:
    """Choose a basis of the span of the candidates, at each turn one that needs the fewest products beyond ``have``.

    By Schur's lemma a linear relation between equivariants of one type is the same for each component; one component will do.
    """
    remaining, chosen = list(candidates), []
    directions = np.empty((0, len(weights)))
    while remaining:
        new = min(remaining, key=lambda candidate: len(candidate.products - have))
        remaining.remove(new)
        rest = new.polynomials[0] * weights
        for _ in range(2):  # twice, so that rounding leaves the directions orthogonal
            rest = rest - directions.T @ (directions @ rest)
        norm = np.linalg.norm(rest)
        if norm > VANISHING:
            directions = np.concatenate([directions, rest[None] / norm])
            chosen.append(new)
            have |= new.products
    return chosen


@lru_cache(maxsize=32)
def make_ladder(irreps_in: str, irreps_out: str, correlation: int) -> Ladder:
    """Return how to evaluate all equivariants of ``irreps_out`` up to an order; the irreps are those of one channel."""
    basis = _Basis(o3.Irreps(irreps_in), o3.Irreps(irreps_out), correlation)
    rows, steps = [{k: int(start) for k, start in enumerate(basis.starts[:-1])}], []
    for order, wanted in enumerate(_needed(basis)[1:], start=2):
        features, below, start = basis.orders[order - 1], rows[-1], 0
        rows.append({})
        entries: list[Entry] = []
        for k in wanted:
            entries += _entries(features[k], below, start, basis.starts, order)
            rows[-1][k] = start
            start += features[k].irrep.dim
        steps.append(Step(start, tuple(entries)))
    return _weighted(basis, rows, steps)


def _needed(basis: _Basis) -> list[list[int]]:
    """For each order, the features that are part of the output or of a feature of the order above."""
    needed: list[set[int]] = [{k for k, e in enumerate(found) if e.irrep in basis.targets} for found in basis.orders]
    for order in range(len(needed) - 1, 0, -1):
        needed[order - 1] |= {basis.orders[order][k].lower for k in needed[order]}
    return [sorted(wanted) for wanted in needed]


def _weighted(basis: _Basis, rows: list[dict[int, int]], steps: list[Step]) -> Ladder:
    """Give a weight to every feature of the types of the output: type by type, in each of them order by order."""
    orders: list[list[Entry]] = [[] for _ in basis.orders]
    equivariants: list[tuple[int, Equivariant]] = []
    paths, start = [], 0
    for irrep in basis.targets:
        before = len(equivariants)
        for order, features in enumerate(basis.orders):
            for k, feature in enumerate(features):
                if feature.irrep == irrep:
                    row, weight = rows[order][k], len(equivariants)
                    orders[order] += [(weight, row + m, start + m, 1.0) for m in range(irrep.dim)]
                    equivariants.append((order + 1, feature))
        paths.append(len(equivariants) - before)
        start += irrep.dim
    return Ladder(tuple(steps), tuple(paths), tuple(map(tuple, orders)), tuple(equivariants))


def _entries(
    feature: Equivariant, below: dict[int, int], row: int, starts: NDArray[np.int64], order: int
) -> Iterator[Entry]:
    """The products of one feature; on order 2, where both factors are components of A, in ascending order."""
    left, right = below[feature.lower], int(starts[feature.factor])
    for i, j, m in np.argwhere(np.abs(feature.coupling) > VANISHING).tolist():
        first, second = left + i, right + j
        if order == 2 and first > second:
            first, second = second, first
        yield first, second, row + m, float(feature.coupling[i, j, m])


class _Evaluation(nn.Module):
    """One of the three ways to read a trilinear form: sums of products of rows of two tensors."""

    left: Tensor
    right: Tensor

    def __init__(self, entries: Sequence[Entry], rows: int) -> None:
        super().__init__()
        pairs = sorted({(i, j) for i, j, _, _ in entries})
        column = {pair: k for k, pair in enumerate(pairs)}
        table = torch.zeros(rows, len(pairs), dtype=torch.float64)
        for i, j, o, value in entries:
            table[o, column[i, j]] += value
        index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        self.register_buffer("left", index[:, 0].contiguous(), persistent=False)
        self.register_buffer("right", index[:, 1].contiguous(), persistent=False)
        self.table = ExactConstant(table)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Map [N, I, C] and [N, J, C] to [N, O, C]; block by block, because the products are many times larger than either."""
        n, _, c = first.shape
        table = self.table.value
        if arrangement() is not None:
            return torch.matmul(table, first.index_select(1, self.left) * second.index_select(1, self.right))
        out = first.new_empty(n, table.shape[0], c)
        block = max(1, BLOCK // max(1, table.shape[1] * c))
        for start in range(0, n, block):
            part = slice(start, start + block)
            products = first[part].index_select(1, self.left)
            products.mul_(second[part].index_select(1, self.right))
            torch.matmul(table, products, out=out[part])
        return out


class _Contract(torch.autograd.Function):
    """The derivative of a trilinear form T(x, y, z) with respect to one argument; its own derivatives are of the same kind."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, form: TrilinearForm, slot: int) -> Tensor:
        ctx.save_for_backward(first, second)
        ctx.form, ctx.slot = form, slot
        evaluated: Tensor = form.evaluations[slot](first, second)
        return evaluated

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        first, second = ctx.saved_tensors
        low, high = (slot for slot in range(3) if slot != ctx.slot)
        grads: list[Tensor | None] = [None, None]
        for k, (slot, other, other_slot) in enumerate(((low, second, high), (high, first, low))):
            if ctx.needs_input_grad[k]:
                pair = (other, grad) if other_slot < ctx.slot else (grad, other)
                grads[k] = _Contract.apply(*pair, ctx.form, slot)
        return grads[0], grads[1], None, None


class TrilinearForm(nn.Module):
    """out_o = sum value * x_i * y_j over ``entries`` (i, j, o, value), for each atom and channel; ``sizes`` are those of x, y, out."""

    def __init__(self, entries: Sequence[Entry], sizes: tuple[int, int, int]) -> None:
        super().__init__()
        readings = ([(j, o, i, v) for i, j, o, v in entries], [(i, o, j, v) for i, j, o, v in entries], entries)
        self.evaluations = nn.ModuleList(
            [_Evaluation(reading, size) for reading, size in zip(readings, sizes, strict=True)]
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Map [N, I, C] and [N, J, C] to [N, O, C]; differentiable any number of times."""
        out: Tensor = _Contract.apply(x, y, self, 2)
        return out


class SymmetricContraction(nn.Module):
    """All equivariants of the given types up to order ``correlation``, weighted by species and channel.

    m_{i, c, LM} = sum_nu sum_k W_{z_i, k, c} B_{k, LM}(A_{i, c}), MACE eqs. 10 and 11.

    Args:
        irreps_in: of one channel of A, such as ``0e+1o+2e+3o``.
        irreps_out: of one channel of the result, each irrep once.
        correlation: the highest order nu; the body order is one more.
        channels: C.
        num_species: chemical elements.

    Raises:
        ConfigError: if an irrep of the output repeats or cannot be reached.
    """

    def __init__(
        self, irreps_in: o3.Irreps | str, irreps_out: o3.Irreps | str, correlation: int, channels: int, num_species: int
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = o3.Irreps(irreps_in), o3.Irreps(irreps_out)
        if any(mul != 1 for mul, _ in self.irreps_out) or len({ir for _, ir in self.irreps_out}) < len(self.irreps_out):
            raise ConfigError(f"expected every irrep of the output once, found {self.irreps_out}")
        ladder = make_ladder(str(self.irreps_in), str(self.irreps_out), correlation)
        if 0 in ladder.paths:
            raise ConfigError(
                f"no polynomial of order {correlation} or less in {self.irreps_in} gives every irrep of {self.irreps_out}; "
                "raise the correlation order or l_max"
            )
        dim, count = self.irreps_in.dim, sum(ladder.paths)
        sizes = [dim, *(step.rows for step in ladder.steps)]
        self.steps = nn.ModuleList(
            [
                TrilinearForm(step.entries, (lower, dim, step.rows))
                for lower, step in zip(sizes, ladder.steps, strict=False)
            ]
        )
        self.sums = nn.ModuleList(
            [
                TrilinearForm(entries, (count, rows, self.irreps_out.dim))
                for entries, rows in zip(ladder.orders, sizes, strict=True)
            ]
        )
        # The equivariants of one type and order share a standard deviation of one over their number.
        alike = [(order, equivariant.irrep) for order, equivariant in ladder.equivariants]
        deviations = torch.tensor([1.0 / alike.count(key) for key in alike])
        self.weight = nn.Parameter(torch.randn(num_species, count, channels) * deviations.unsqueeze(1))

    def forward(self, features: Tensor, species: Tensor) -> Tensor:
        """Map A [N, dim_in, C] and species [N] to [N, dim_out, C]."""
        weights = self.weight.index_select(0, species)
        out: Tensor = self.sums[0](weights, features)
        current = features
        for step, total in zip(self.steps, self.sums[1:], strict=True):
            current = step(current, features)
            out = out + total(weights, current)
        return out
