"""The Lennard-Jones potential (J. E. Lennard-Jones, Proc. R. Soc. A 106, 463 (1924)), with a smooth cutoff."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from simkit.config import Options
from simkit.potential import Representation
from simkit.radial import CutoffName, make_cutoff


class LennardJonesOptions(Options):
    """Depth ``epsilon`` in eV and diameter ``sigma`` in angstrom, the same for all elements; the defaults describe argon."""

    epsilon: float = Field(0.0103, gt=0)
    sigma: float = Field(3.4, gt=0)
    cutoff_function: CutoffName = "polynomial"


class LennardJones(Representation):
    """E_i = 1/2 sum_j 4 epsilon ((sigma/r)^12 - (sigma/r)^6) f(r), with the cutoff function f switching over the outer fifth."""

    is_classical: ClassVar[bool] = True
    channels = 1

    def __init__(self, options: LennardJonesOptions, cutoff: float, num_elements: int) -> None:
        super().__init__()
        self.options = options
        self.switch = OuterSwitch(options.cutoff_function, cutoff)

    def forward(self, species: Tensor, edge_index: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return atomic energies [N, 1] in eV."""
        squared = vectors.square().sum(dim=1)
        attraction = (self.options.sigma**2 / squared) ** 3
        pair = 2.0 * self.options.epsilon * (attraction * attraction - attraction) * self.switch(squared.sqrt())
        return pair.new_zeros(species.shape[0]).index_add(0, edge_index[1], pair).unsqueeze(1), None


class OuterSwitch(nn.Module):
    """One up to 0.8 rc, then a cutoff function down to zero at rc, so that the well keeps its published depth."""

    def __init__(self, name: CutoffName, cutoff: float) -> None:
        super().__init__()
        self.inner = 0.8 * cutoff
        self.function = make_cutoff(name, cutoff - self.inner)

    def forward(self, r: Tensor) -> Tensor:
        """Map distances to weights of the same shape."""
        return self.function((r - self.inner).clamp(min=0.0))
