"""The Coulomb energy of atomic charges, damped at short range and cut off smoothly."""

import torch
from torch import Tensor, nn

from simkit.radial import PolynomialCutoff
from simkit.units import BOHR, HARTREE

COULOMB = HARTREE * BOHR
"""Energy of two elementary charges at a distance of one angstrom, eV."""


class DampedCoulomb(nn.Module):
    """E = k sum_(i<j) q_i q_j chi(r_ij) with chi = phi(2r) v(sqrt(r^2 + 1)) + (1 - phi(2r)) v(r), in angstrom.

    PhysNet's equations 12 and 13 (Unke & Meuwly, J. Chem. Theory Comput. 15, 3678 (2019)): below half the cutoff, where phi(2r) is not
    zero, charges pass into smeared ones, because there the network describes the interaction. phi is the cutoff function of eq. 8.

    Published with v(r) = 1/r for all pairs. Here pairs end at the cutoff c, and v(r) = 1/r + r/c^2 - 2/c as in the authors' program, which
    vanishes there with its derivative; the second derivative jumps by 2 k q_i q_j / c^3.
    """

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.switch = PolynomialCutoff(0.5 * cutoff)

    def forward(self, edge_index: Tensor, r: Tensor, charges: Tensor) -> Tensor:
        """Return the energies of atoms [N] in eV, half of every pair's.

        Args:
            edge_index: [2, E], every pair both ways.
            r: [E], distances, angstrom.
            charges: [N], elementary charges.
        """
        sender, receiver = edge_index[0], edge_index[1]
        near = self.switch(r)
        chi = near * self._shifted(torch.sqrt(r.square() + 1.0)) + (1.0 - near) * self._shifted(r)
        chi = chi * (r < self.cutoff).to(r.dtype)
        potential = torch.zeros_like(charges).index_add(0, receiver, chi * charges.index_select(0, sender))
        return 0.5 * COULOMB * charges * potential

    def _shifted(self, r: Tensor) -> Tensor:
        return 1.0 / r + r / self.cutoff**2 - 2.0 / self.cutoff
