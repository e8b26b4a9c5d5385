"""The Morse potential (P. M. Morse, Phys. Rev. 34, 57 (1929)), with a smooth cutoff."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from simkit.config import Options
from simkit.potential import Representation
from simkit.potentials.lennard_jones import OuterSwitch
from simkit.radial import CutoffName


class MorseOptions(Options):
    """Depth ``depth`` in eV, stiffness ``alpha`` in 1/angstrom and minimum ``r0`` in angstrom; the defaults describe copper.

    The defaults are those of Girifalco & Weizer, Phys. Rev. 114, 687 (1959).
    """

    depth: float = Field(0.3429, gt=0)
    alpha: float = Field(1.3588, gt=0)
    r0: float = Field(2.866, gt=0)
    cutoff_function: CutoffName = "polynomial"


class Morse(Representation):
    """E_i = 1/2 sum_j D (exp(-2 alpha (r - r0)) - 2 exp(-alpha (r - r0))) f(r)."""

    is_classical: ClassVar[bool] = True
    channels = 1

    def __init__(self, options: MorseOptions, cutoff: float, num_elements: int) -> None:
        super().__init__()
        self.options = options
        self.switch = OuterSwitch(options.cutoff_function, cutoff)

    def forward(self, species: Tensor, edge_index: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return atomic energies [N, 1] in eV."""
        r = torch.sqrt(vectors.square().sum(dim=1))
        well = torch.exp(-self.options.alpha * (r - self.options.r0))
        pair = 0.5 * self.options.depth * (well * well - 2.0 * well) * self.switch(r)
        return pair.new_zeros(species.shape[0]).index_add(0, edge_index[1], pair).unsqueeze(1), None
