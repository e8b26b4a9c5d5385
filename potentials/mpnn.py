"""MPNN: the message passing neural network with an edge network, called enn-s2s with the set2set readout.

Gilmer, Schoenholz, Riley, Vinyals & Dahl, "Neural Message Passing for Quantum Chemistry", ICML 2017, arXiv:1704.01212.
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from simkit.config import Options
from simkit.heads import Features, sum_over_structures
from simkit.kernels.tracing import arrangement
from simkit.potential import Representation
from simkit.radial import CutoffName, GaussianBasis, make_cutoff

SET2SET_STEPS = 12  # of the authors' code; the paper tries 1 to 12


class MPNNOptions(Options):
    """Options of MPNN.

    The defaults are the size of the enn-s2s model (73 features) and, where the paper gives ranges, those of the authors' code: 6
    message passing steps (``layers``, which share their weights), an edge network with 4 hidden layers of 50. Its ReLU is a SiLU
    here, because forces are to be smooth. Distances enter through Gaussians, and there are no bond types.

    ``readout="sum"`` is the paper's equation 4, a gated sum over atoms. ``readout="set2set"`` is the published best: the energy is a
    function of the structure as a whole and not size-extensive, so two molecules far apart do not have the sum of their energies,
    and a periodic structure's energy per atom depends on its choice of cell. Each atom is given an even share of it.
    ``set2set_steps`` is how often set2set looks at the atoms, 12 where not given.
    """

    channels: int = Field(73, ge=2)
    layers: int = Field(6, ge=1)
    basis: int = Field(25, ge=2)
    edge_channels: int = Field(50, ge=1)
    edge_layers: int = Field(4, ge=1)
    readout: Literal["sum", "set2set"] = "sum"
    set2set_steps: int | None = Field(None, ge=1)
    cutoff_function: CutoffName = "polynomial"

    @model_validator(mode="after")
    def _steps_of_set2set_only(self) -> "MPNNOptions":
        if self.readout == "sum" and self.set2set_steps is not None:
            raise ValueError("set2set_steps does nothing with readout='sum'; leave it out, or set readout to 'set2set'")
        return self


def dense(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer whose random weights keep the variance through SiLU, nearly; PyTorch's own start divides it by six."""
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


class Neighborhoods:
    """The edges of each atom side by side, as many slots for every atom as the one with the most neighbors needs.

    Args:
        edge_index: [2, E], sorted by receiver.
        weighted: [E, K], the edge features times the cutoff function.
        num_atoms: N.
    """

    def __init__(self, edge_index: Tensor, weighted: Tensor, num_atoms: int) -> None:
        sender, receiver = edge_index[0], edge_index[1]
        edges, width = weighted.shape
        self.receiver: Tensor | None = None
        if (given := arrangement()) is not None:
            self.atoms, self.shape, self.receiver = num_atoms, tuple(given.edge.shape), given.receiver
            self.sender = given.sender.flatten()
            filled = torch.cat([weighted, weighted.new_zeros(1, width)]).index_select(0, given.edge.flatten())
            self.weighted = filled.view(*self.shape, width).transpose(1, 2)
            return
        count = torch.zeros(num_atoms, dtype=torch.int64, device=sender.device)
        count = count.index_add(0, receiver, torch.ones_like(receiver))
        slots = int(count.max()) if edges else 0  # a shape: the only wait for the device
        start = count.cumsum(0) - count
        place = receiver * slots + torch.arange(edges, device=sender.device) - start.index_select(0, receiver)
        self.shape = (num_atoms, slots)
        # Empty slots have weights of zero; which atom they name does not matter.
        self.sender = sender.new_zeros(num_atoms * slots).index_copy(0, place, sender)
        filled = weighted.new_zeros(num_atoms * slots, width).index_copy(0, place, weighted)
        self.weighted = filled.view(num_atoms, slots, width).transpose(1, 2)

    def collect(self, h: Tensor) -> Tensor:
        """Return sum_w g_k(e_vw) h_w for every atom v, [N, K, C]."""
        sums = torch.bmm(self.weighted, h.index_select(0, self.sender).view(*self.shape, h.shape[1]))
        if self.receiver is None:
            return sums
        return sums.new_zeros(self.atoms, *sums.shape[1:]).index_add(0, self.receiver, sums)


class EdgeNetwork(nn.Module):
    """Messages m_v = sum_w f_vw A(e_vw) h_w (section 5.1), with a matrix A that a network makes of the distance.

    The last layer of that network is linear: A = sum_k g_k(e_vw) W_k, with the bias as the W of a constant g. So the matrices are
    applied to sum_w f_vw g_k(e_vw) h_w, once per atom, and A itself is never stored: memory is atoms times slots times C (see
    `Neighborhoods`) and atoms times K times C, where it would be edges times C squared.
    """

    def __init__(self, channels: int, basis: int, hidden: int, layers: int) -> None:
        super().__init__()
        sizes = [basis] + [hidden] * layers
        modules: list[nn.Module] = []
        for before, after in zip(sizes[:-1], sizes[1:], strict=True):
            modules += [dense(before, after), nn.SiLU()]
        self.hidden = nn.Sequential(*modules)
        # matrices[k] is the transposed W_k; a fresh A is a matrix of a usual linear layer, with entries of order channels^(-1/2).
        self.matrices = nn.Parameter(torch.empty(hidden + 1, channels, channels))
        nn.init.normal_(self.matrices, std=((hidden + 1) * channels) ** -0.5)

    def features(self, basis: Tensor, weight: Tensor) -> Tensor:
        """Return f g_k and, as the last one, f itself, [E, K + 1]."""
        return torch.cat([self.hidden(basis) * weight, weight], dim=1)

    def forward(self, h: Tensor, neighborhoods: Neighborhoods) -> Tensor:
        """Return the messages, [N, C]."""
        return neighborhoods.collect(h).flatten(1) @ self.matrices.flatten(0, 1)


class OfStateAndElement(nn.Module):
    """A linear map of the final state h_v and the one-hot element x_v, which the readouts are given side by side."""

    def __init__(self, channels: int, num_elements: int, outputs: int) -> None:
        super().__init__()
        self.state = dense(channels, outputs)
        self.element = nn.Embedding(num_elements, outputs)
        nn.init.uniform_(self.element.weight, -(channels**-0.5), channels**-0.5)

    def forward(self, features: Features) -> Tensor:
        """Return [N, outputs]."""
        return self.state(features.scalars) + self.element(features.species)


class GatedSum(nn.Module):
    """Equation 4: sigmoid(i(h_v, x_v)) j(h_v, x_v), to be summed over the atoms; i and j are two-layer perceptrons."""

    def __init__(self, channels: int, num_elements: int) -> None:
        super().__init__()
        self.hidden = OfStateAndElement(channels, num_elements, 2 * channels)
        self.gate = dense(channels, 1)
        self.value = dense(channels, 1)

    def forward(self, features: Features) -> Tensor:
        """Return a value per atom, [N]."""
        i, j = nn.functional.silu(self.hidden(features)).chunk(2, dim=1)
        return (torch.sigmoid(self.gate(i)) * self.value(j)).squeeze(-1)


class EvenShare(nn.Module):
    """Set2set (section 5.3) on a projection of (h_v, x_v), a perceptron on the result, and an even share of it for each atom."""

    def __init__(self, channels: int, num_elements: int, steps: int) -> None:
        super().__init__()
        from torch_geometric.nn.aggr import Set2Set

        self.project = OfStateAndElement(channels, num_elements, channels)
        self.pool = Set2Set(channels, processing_steps=steps)
        self.net = nn.Sequential(dense(2 * channels, channels), nn.SiLU(), dense(channels, 1))

    def forward(self, features: Features) -> Tensor:
        """Return the same value for all atoms of a structure, [N]."""
        # cuDNN's recurrent networks cannot be differentiated twice, which training on forces needs.
        with torch.backends.cudnn.flags(enabled=False):
            pooled = self.pool(self.project(features), features.structure, dim_size=features.num_structures)
        whole = self.net(pooled).squeeze(-1)
        share = whole / sum_over_structures(torch.ones_like(features.scalars[:, 0]), features)
        return share.index_select(0, features.structure)


class MPNN(Representation):
    """Scalar features that a gated recurrent unit updates with the messages of an edge network, the same one at every step.

    The published graphs join all atoms of a molecule; here edges within the cutoff are weighted by the cutoff function.
    """

    compiled_edges = 512
    has_rows = True

    def __init__(self, options: MPNNOptions, cutoff: float, num_elements: int) -> None:
        super().__init__()
        self.channels = c = options.channels
        self.activation = nn.SiLU()
        self.is_atomic = options.readout == "sum"
        self.num_elements = num_elements
        self.steps = options.layers
        self.set2set_steps = options.set2set_steps or SET2SET_STEPS
        self.embedding = nn.Embedding(num_elements, c)
        self.basis = GaussianBasis(options.basis, cutoff)
        self.cutoff_function = make_cutoff(options.cutoff_function, cutoff)
        self.edge_network = EdgeNetwork(c, options.basis, options.edge_channels, options.edge_layers)
        self.update = nn.GRUCell(c, c)

    def energy_head(self) -> nn.Module:
        """Return the readout that was chosen."""
        if self.is_atomic:
            return GatedSum(self.channels, self.num_elements)
        return EvenShare(self.channels, self.num_elements, self.set2set_steps)

    def forward(self, species: Tensor, edge_index: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return scalars [N, C], the final states; MPNN has no vectors."""
        r = torch.sqrt(vectors.square().sum(dim=1))
        weight = self.cutoff_function(r).unsqueeze(1)
        h = self.embedding(species)
        neighborhoods = Neighborhoods(edge_index, self.edge_network.features(self.basis(r), weight), h.shape[0])
        for _ in range(self.steps):
            h = self.update(self.edge_network(h, neighborhoods), h)
        return h, None
