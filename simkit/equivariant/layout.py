"""Which rows of a feature tensor belong to which irrep."""

from typing import Any

import torch
from e3nn import o3
from torch import Tensor

from simkit.errors import ConfigError

L_MAX = 11  # the largest l that e3nn has Clebsch-Gordan coefficients for


def feature_irreps(lmax: int, *, both_parities: bool) -> o3.Irreps:
    """Return one irrep for each l up to ``lmax``.

    Args:
        both_parities: both for each l; otherwise p = (-1)^l alone, which spherical harmonics have.
    """
    if not 0 <= lmax <= L_MAX:
        raise ConfigError(f"l_max must be from 0 to {L_MAX}, found {lmax}")
    signs = (1, -1) if both_parities else (1,)
    return o3.Irreps([(1, (degree, sign * (-1) ** degree)) for degree in range(lmax + 1) for sign in signs])


def parse_irreps(irreps: Any, *, uniform: bool = False) -> o3.Irreps:
    """Return ``irreps`` as `e3nn.o3.Irreps`, each of them at one place only and, if ``uniform``, with multiplicity 1.

    Raises:
        ConfigError: if that is not so.
    """
    parsed = o3.Irreps(irreps)
    if len({ir for _, ir in parsed}) != len(parsed) or any(mul < 1 for mul, _ in parsed):
        raise ConfigError(f"expected each irrep once, with a positive multiplicity, found {parsed}")
    if uniform and any(mul != 1 for mul, _ in parsed):
        raise ConfigError(f"expected irreps of multiplicity 1 (channels are counted apart), found {parsed}")
    return parsed


def row_slices(irreps: o3.Irreps) -> dict[o3.Irrep, slice]:
    """Return the rows of each irrep."""
    return {ir: rows for (_, ir), rows in zip(irreps, irreps.slices(), strict=True)}


def reachable(irreps_in: o3.Irreps, lmax: int, irreps_out: o3.Irreps) -> o3.Irreps:
    """Return those of ``irreps_out`` that a product of ``irreps_in`` with spherical harmonics up to ``lmax`` has."""
    harmonics = [o3.Irrep(degree, (-1) ** degree) for degree in range(lmax + 1)]
    found = {ir for _, a in irreps_in for b in harmonics for ir in a * b}
    return o3.Irreps([(mul, ir) for mul, ir in irreps_out if ir in found])


def layer_irreps(layers: int, lmax: int, *, both_parities: bool) -> list[o3.Irreps]:
    """Return the irreps before, between and after ``layers`` convolutions that start and end with scalars.

    Between them is all that can arise by products with spherical harmonics and that the final scalars can depend on.

    Args:
        lmax: of features and spherical harmonics. both_parities: see `feature_irreps`.
    """
    hidden, scalars = feature_irreps(lmax, both_parities=both_parities), o3.Irreps("0e")
    result = [scalars]
    for _ in range(layers - 1):
        result.append(reachable(result[-1], lmax, hidden))
    result.append(scalars)
    for k in range(layers - 1, 0, -1):
        result[k] = o3.Irreps([item for item in result[k] if reachable(o3.Irreps([item]), lmax, result[k + 1])])
    return result


def scalars_and_vectors(x: Tensor, irreps: o3.Irreps) -> tuple[Tensor, Tensor]:
    """Return the 0e rows [N, C] and the 1o rows [N, 3, C], as heads take them; zeros where there are none."""
    rows = row_slices(irreps)
    parts = []
    for name in ("0e", "1o"):
        ir = o3.Irrep(name)
        parts.append(x[:, rows[ir]] if ir in rows else torch.zeros_like(x[:, :1]).expand(-1, ir.dim, -1))
    return parts[0].squeeze(1), parts[1]
