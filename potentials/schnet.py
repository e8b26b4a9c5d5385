"""SchNet: continuous-filter convolutions.

Schuett et al., "SchNet: A continuous-filter convolutional neural network for modeling quantum interactions", NeurIPS 2017.
"""

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from simkit.config import Options
from simkit.graph import one_direction
from simkit.potential import Representation
from simkit.radial import CutoffName, GaussianBasis, make_cutoff


class SchNetOptions(Options):
    """Options of SchNet; the defaults are the published size.

    "cosine" is the cutoff function of the common implementations; the default is its neighbour with a continuous second derivative.
    """

    channels: int = Field(128, ge=2)
    layers: int = Field(6, ge=1)
    filters: int | None = Field(None, ge=1, description="width of the filters; the channels where not given")
    basis: int = Field(50, ge=2)
    cutoff_function: CutoffName = "polynomial"


class ShiftedSoftplus(nn.Module):
    """ln(0.5 exp(x) + 0.5)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply elementwise."""
        return nn.functional.softplus(x) - math.log(2.0)


class Interaction(nn.Module):
    """Figure 2 of the paper: x_i += W3 ssp(W2 sum_j (W1 x_j) * filter(r_ij))."""

    def __init__(self, channels: int, filters: int, basis: int) -> None:
        super().__init__()
        self.filter_net = nn.Sequential(nn.Linear(basis, filters), ShiftedSoftplus(), nn.Linear(filters, filters))
        self.dense_in = nn.Linear(channels, filters, bias=False)
        self.dense_out = nn.Sequential(nn.Linear(filters, channels), ShiftedSoftplus(), nn.Linear(channels, channels))

    def forward(
        self, x: Tensor, sender: Tensor, receiver: Tensor, basis: Tensor, weight: Tensor, *, both: bool
    ) -> Tensor:
        """Return the update of the features, [N, C]; with ``both``, each edge stands for its reverse as well."""
        filters = self.filter_net(basis) * weight
        h = self.dense_in(x)
        total = torch.zeros_like(h).index_add(0, receiver, h.index_select(0, sender) * filters)
        if both:
            total = total.index_add(0, sender, h.index_select(0, receiver) * filters)
        return self.dense_out(total)


class SchNet(Representation):
    """Scalar features refined by continuous-filter convolutions."""

    def __init__(self, options: SchNetOptions, cutoff: float, num_elements: int) -> None:
        super().__init__()
        self.channels = options.channels
        self.activation = ShiftedSoftplus()
        self.embedding = nn.Embedding(num_elements, options.channels)
        self.basis = GaussianBasis(options.basis, cutoff)
        self.cutoff_function = make_cutoff(options.cutoff_function, cutoff)
        width = options.filters or options.channels
        self.interactions = nn.ModuleList(
            [Interaction(options.channels, width, options.basis) for _ in range(options.layers)]
        )

    def forward(self, species: Tensor, edge_index: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return scalars [N, C]; SchNet has no vectors."""
        # Filters depend on distances alone, and the filter network is most of the work: make each pair's filter once. On a GPU the
        # selection would make the host wait for the device, and the work is cheap.
        both = vectors.device.type == "cpu"
        if both:
            chosen = one_direction(edge_index, vectors)
            edge_index, vectors = edge_index.index_select(1, chosen), vectors.index_select(0, chosen)
        sender, receiver = edge_index[0], edge_index[1]
        r = torch.sqrt(vectors.square().sum(dim=1))
        basis, weight = self.basis(r), self.cutoff_function(r).unsqueeze(1)
        x = self.embedding(species)
        for interaction in self.interactions:
            x = x + interaction(x, sender, receiver, basis, weight, both=both)
        return x, None
