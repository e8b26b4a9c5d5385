"""PhysNet: a network for energies, forces, charges and dipoles, with the long-range energies of physics as options.

Unke & Meuwly, "PhysNet: A neural network for predicting energies, forces, dipole moments, and partial charges", J. Chem. Theory Comput.
15, 3678 (2019), arXiv:1902.08408.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import softplus

from simkit.config import Options
from simkit.dispersion import D3Dispersion
from simkit.electrostatics import DampedCoulomb
from simkit.graph import one_direction
from simkit.initialization import glorot_linear, softplus_inverse
from simkit.kernels.activations import ShiftedSoftplus
from simkit.potential import Representation
from simkit.radial import PolynomialCutoff
from simkit.readout import BlockReadout, ChargeReadout

START = 0.25
"""What the weights of the radial functions are multiplied by at first. Published are weights of zero, with which there are no forces."""


class PhysNetOptions(Options):
    """Options of PhysNet; the defaults are the published size, which goes with a cutoff of 10 angstrom.

    ``electrostatics`` adds the Coulomb energy of the model's own charges (equations 12 and 13; the model then also has a dipole), and
    ``dispersion`` the D3 energy with fixed coefficients (the paper trains them). Both end at the cutoff.
    """

    channels: int = Field(128, ge=2)
    layers: int = Field(5, ge=1, description="modules")
    basis: int = Field(64, ge=2, description="radial functions")
    atomic_residuals: int = Field(2, ge=0)
    interaction_residuals: int = Field(3, ge=0)
    output_residuals: int = Field(1, ge=0)
    electrostatics: bool = False
    dispersion: bool = False


class ExponentialNormalBasis(nn.Module):
    """f(r) exp(-beta_k (exp(-r) - mu_k)^2) with the cutoff function f; centres and widths are trained."""

    def __init__(self, count: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff_function = PolynomialCutoff(cutoff)
        centers = torch.linspace(math.exp(-cutoff), 1.0, count, dtype=torch.float64)
        width = (2.0 / count * (1.0 - math.exp(-cutoff))) ** -2
        self.raw_centers = nn.Parameter(softplus_inverse(centers).to(torch.get_default_dtype()))
        self.raw_widths = nn.Parameter(softplus_inverse(torch.full_like(centers, width)).to(torch.get_default_dtype()))

    def forward(self, r: Tensor) -> Tensor:
        """Expand distances in angstrom, [E] to [E, count]."""
        distance = torch.exp(-r).unsqueeze(1) - softplus(self.raw_centers)
        return self.cutoff_function(r).unsqueeze(1) * torch.exp(-softplus(self.raw_widths) * distance.square())


class Residual(nn.Module):
    """The residual block: x + W2 s(W1 s(x) + b1) + b2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.activation = ShiftedSoftplus()
        self.lin1 = glorot_linear(channels, channels)
        self.lin2 = glorot_linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C] to [N, C]."""
        return x + self.lin2(self.activation(self.lin1(self.activation(x))))


def residuals(count: int, channels: int) -> nn.Sequential:
    """Return a stack of residual blocks."""
    return nn.Sequential(*[Residual(channels) for _ in range(count)])


class Interaction(nn.Module):
    """The interaction block: v = s(W_I s(x_i) + b_I) + sum_j G g(r_ij) * s(W_J s(x_j) + b_J), then x_i = u * x_i + W s(v) + b.

    Residual blocks refine v in between; s is the activation and * the product of entries.
    """

    def __init__(self, o: PhysNetOptions) -> None:
        super().__init__()
        c = o.channels
        self.activation = ShiftedSoftplus()
        self.lin_i = glorot_linear(c, c)
        self.lin_j = glorot_linear(c, c)
        self.attention = glorot_linear(o.basis, c, bias=False)
        with torch.no_grad():
            self.attention.weight.mul_(START)
        self.refine = residuals(o.interaction_residuals, c)
        self.lin = glorot_linear(c, c)
        self.gate = nn.Parameter(torch.ones(c))

    def forward(self, x: Tensor, sender: Tensor, receiver: Tensor, basis: Tensor, *, both: bool) -> Tensor:
        """Return new features, [N, C]; with ``both``, each edge stands for its reverse as well."""
        activated = self.activation(x)
        mask = self.attention(basis)
        of_neighbor = self.activation(self.lin_j(activated))
        v = self.activation(self.lin_i(activated))
        v = v.index_add(0, receiver, mask * of_neighbor.index_select(0, sender))
        if both:
            v = v.index_add(0, sender, mask * of_neighbor.index_select(0, receiver))
        return self.gate * x + self.lin(self.activation(self.refine(v)))


class Module(nn.Module):
    """One of the modules that are stacked: interaction and atomic refinement, and features for the output."""

    def __init__(self, o: PhysNetOptions) -> None:
        super().__init__()
        self.interaction = Interaction(o)
        self.refine = residuals(o.atomic_residuals, o.channels)
        self.output = nn.Sequential(residuals(o.output_residuals, o.channels), ShiftedSoftplus())

    def forward(
        self, x: Tensor, sender: Tensor, receiver: Tensor, basis: Tensor, *, both: bool
    ) -> tuple[Tensor, Tensor]:
        """Return new features, and those of which the module's outputs are linear functions, both [N, C]."""
        x = self.refine(self.interaction(x, sender, receiver, basis, both=both))
        return x, self.output(x)


class PhysNet(Representation):
    """Scalar features refined by modules; the features for the outputs are those of all modules side by side."""

    compiled_edges = 2**17

    def __init__(self, options: PhysNetOptions, cutoff: float, elements: Sequence[int]) -> None:
        super().__init__()
        c = options.channels
        self.channels = options.layers * c
        self.activation = ShiftedSoftplus()
        self.embedding = nn.Embedding(len(elements), c)
        nn.init.uniform_(self.embedding.weight, -math.sqrt(3.0), math.sqrt(3.0))
        self.basis = ExponentialNormalBasis(options.basis, cutoff)
        self.stack = nn.ModuleList([Module(options) for _ in range(options.layers)])
        self.electrostatics = DampedCoulomb(cutoff) if options.electrostatics else None
        self.dispersion = D3Dispersion(elements, cutoff) if options.dispersion else None
        self.needs_charges = options.electrostatics
        self.has_pair_energies = options.electrostatics or options.dispersion

    @classmethod
    def for_elements(cls, options: PhysNetOptions, cutoff: float, elements: Sequence[int]) -> PhysNet:
        """Build for ``elements``, atomic numbers in ascending order: the dispersion energy depends on them."""
        return cls(options, cutoff, elements)

    def energy_head(self) -> nn.Module:
        """Return the sum of one bias-free linear map per module.

        Published are weights that are zero at first; here they are random, so that energies and forces are not zero.
        """
        return BlockReadout(self.channels)

    def dipole_head(self) -> nn.Module:
        """Return such a sum for the charges, with small weights at first.

        Published are weights of zero, where the Coulomb energy has no slope in the charges.
        """
        return ChargeReadout(self.channels)

    def forward(self, species: Tensor, edge_index: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return scalars [N, layers * channels]; PhysNet has no vectors."""
        # What depends on distances alone is made once per pair; on a GPU the selection would make the host wait for the device.
        both = vectors.device.type == "cpu"
        if both:
            chosen = one_direction(edge_index, vectors)
            edge_index, vectors = edge_index.index_select(1, chosen), vectors.index_select(0, chosen)
        basis = self.basis(torch.sqrt(vectors.square().sum(dim=1)))
        x = self.embedding(species)
        outputs = []
        for module in self.stack:
            x, output = module(x, edge_index[0], edge_index[1], basis, both=both)
            outputs.append(output)
        return torch.cat(outputs, dim=1), None

    def pair_energies(self, species: Tensor, edge_index: Tensor, vectors: Tensor, charges: Tensor | None) -> Tensor:
        """Return the Coulomb (equations 12 and 13) and dispersion energies of atoms, [N] in eV."""
        r = torch.sqrt(vectors.square().sum(dim=1))
        energies = vectors.new_zeros(species.shape[0])
        if self.electrostatics is not None and charges is not None:
            energies = energies + self.electrostatics(edge_index, r, charges)
        if self.dispersion is not None:
            energies = energies + self.dispersion(species, edge_index, r)
        return energies
