"""Grimme's D3 dispersion energy with Becke-Johnson damping, on the edges of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from simkit.errors import MissingDependencyError
from simkit.units import BOHR, HARTREE

HARTREE_FOCK = {"s6": 1.0, "s8": 0.9171, "a1": 0.3385, "a2": 2.8830}
"""Coefficients for Hartree-Fock (Grimme, Ehrlich & Goerigk 2011), with which PhysNet starts; ``a2`` in bohr."""

COUNTING_STEEPNESS = 16.0
WEIGHT_STEEPNESS = 4.0


class D3Dispersion(nn.Module):
    """E = -sum_(i<j) s6 C6 / (r^6 + R^6) + s8 C8 / (r^8 + R^8), R = a1 sqrt(C8 / C6) + a2, with fixed coefficients for Hartree-Fock.

    C6 of a pair is interpolated between reference molecules by the coordination numbers of both atoms, which depend on the positions;
    C8 = 3 C6 m_i m_j with tabulated moments m. Two-body terms only. Grimme, Antony, Ehrlich & Krieg, J. Chem. Phys. 132, 154104 (2010),
    eqs. 15 (coordination numbers) and 16 (interpolation); damping: Grimme, Ehrlich & Goerigk, J. Comput. Chem. 32, 1456 (2011).

    Pairs end at the cutoff: as in PhysNet's program, 1 / (r^n + R^n) loses its value and slope there, and pairs are counted as
    coordinated with a factor that falls to zero over the last bohr before it.

    Args:
        elements: atomic numbers, in the order of species.
        cutoff: angstrom.

    Raises:
        MissingDependencyError: if the package that holds the reference values is not installed.
    """

    references: Tensor
    c6: Tensor
    radii: Tensor
    moments: Tensor

    def __init__(self, elements: Sequence[int], cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff / BOHR
        for name, table in _tables(list(elements)).items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, species: Tensor, edge_index: Tensor, r: Tensor) -> Tensor:
        """Return the energies of atoms [N] in eV, half of every pair's.

        Args:
            species: [N], indices into ``elements``.
            edge_index: [2, E], every pair both ways.
            r: [E], distances, angstrom.
        """
        sender, receiver = edge_index[0], edge_index[1]
        z_j, z_i = species.index_select(0, sender), species.index_select(0, receiver)
        r = r / BOHR
        inside = (r < self.cutoff).to(r.dtype)
        weights = self._weights(species, self._coordination(r, z_i, z_j, receiver, species.shape[0]))
        # One atom's weights first, for every element of the other one: [N, S, R] instead of R^2 numbers per edge.
        halves = torch.einsum("nr,nsrq->nsq", weights, self.c6[species]).flatten(0, 1)
        chosen = halves.index_select(0, receiver * self.c6.shape[0] + z_j)
        c6 = (chosen * weights.index_select(0, sender)).sum(dim=1)
        c8_over_c6 = 3.0 * self.moments[z_i] * self.moments[z_j]
        radius = HARTREE_FOCK["a1"] * torch.sqrt(c8_over_c6) + HARTREE_FOCK["a2"]
        damped = HARTREE_FOCK["s6"] * self._damped(r, radius, 6)
        damped = damped + HARTREE_FOCK["s8"] * c8_over_c6 * self._damped(r, radius, 8)
        pairs = -0.5 * HARTREE * c6 * damped * inside
        return torch.zeros_like(weights[:, 0]).index_add(0, receiver, pairs)

    def _coordination(self, r: Tensor, z_i: Tensor, z_j: Tensor, receiver: Tensor, n: int) -> Tensor:
        """Return coordination numbers, [N]."""
        count = torch.sigmoid(COUNTING_STEEPNESS * ((self.radii[z_i] + self.radii[z_j]) / r - 1.0))
        x = (self.cutoff - r).clamp(0.0, 1.0)
        return r.new_zeros(n).index_add(0, receiver, count * x**3 * (10.0 + x * (6.0 * x - 15.0)))

    def _weights(self, species: Tensor, coordination: Tensor) -> Tensor:
        """Return the normalised Gaussian weights of the reference molecules, [N, R]."""
        references = self.references[species]
        exponent = -WEIGHT_STEEPNESS * (coordination.unsqueeze(1) - references).square()
        return torch.softmax(exponent.masked_fill(references < 0, -torch.inf), dim=1)

    def _damped(self, r: Tensor, radius: Tensor, n: int) -> Tensor:
        """1 / (r^n + R^n) without value and slope at the cutoff."""
        at_cutoff = 1.0 / (self.cutoff**n + radius**n)
        slope = -n * self.cutoff ** (n - 1) * at_cutoff**2
        return 1.0 / (r**n + radius**n) - at_cutoff - slope * (r - self.cutoff)


def _tables(elements: list[int]) -> dict[str, Tensor]:
    """Coordination numbers [S, R] of the reference molecules, -1 where there are fewer, and their C6 [S, S, R, R]; radii and moments [S].

    In atomic units.
    """
    package, radii = _import_tables()
    reference = package.reference.Reference(dtype=torch.float64)
    cn = reference.cn[elements]
    known = int((cn >= 0).any(dim=0).nonzero().max()) + 1
    pairs = reference.c6[elements][:, elements]
    return {
        "references": cn[:, :known].clone(),
        "c6": pairs[..., :known, :known].clone(),
        "radii": radii.COV_D3(dtype=torch.float64)[elements],
        "moments": package.data.R4R2(dtype=torch.float64)[elements],
    }


def _import_tables() -> tuple[Any, Any]:
    try:
        import tad_dftd3
        import tad_dftd3.reference
        from tad_mctc.data import radii
    except ImportError as error:
        raise MissingDependencyError(
            f"the D3 dispersion energy needs the reference values of tad-dftd3 ({error}); install it with: "
            "pip install 'simkit[dispersion]', or set dispersion to False"
        ) from error
    return tad_dftd3, radii
