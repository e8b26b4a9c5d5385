"""EGNN: the E(n) equivariant graph neural network, with the radial field network as its special case.

Satorras, Hoogeboom & Welling, "E(n) Equivariant Graph Neural Networks", ICML 2021, arXiv:2102.09844; radial field: Koehler, Klein & Noe,
"Equivariant flows: sampling configurations for multi-body systems with symmetric energies", 2019, arXiv:1910.00753.
"""

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from simkit.config import Options
from simkit.heads import Features
from simkit.potential import Representation
from simkit.radial import CutoffName, make_cutoff

COORDINATE_GAIN = 0.001
"""Of the last layer that displaces atoms: a fresh network hardly moves them, as in the authors' code."""


class EGNNOptions(Options):
    """Options of EGNN; the defaults are the published size for QM9, where coordinates are not updated.

    ``node_features=False`` is the radial field network: the features of an atom stay those of its element, so that a layer moves
    atoms along the lines to their neighbors by a function of the distance (and the two elements) alone. The last layer then sees the
    moved atoms and gives the features that energies are read from.
    """

    channels: int = Field(128, ge=2)
    layers: int = Field(7, ge=1)
    attention: bool = True
    update_coordinates: bool = False
    node_features: bool = True
    cutoff_function: CutoffName = "polynomial"

    @model_validator(mode="after")
    def _radial_field_moves_atoms(self) -> "EGNNOptions":
        if not self.node_features and (not self.update_coordinates or self.layers < 2):
            raise ValueError(
                "node_features=False is the radial field network, which does nothing but move atoms: set update_coordinates to "
                "True and layers to 2 or more"
            )
        return self


def lecun_normal_(module: nn.Module) -> None:
    """Give all linear maps weights of variance 1 / inputs and biases of zero.

    PyTorch's own start, which the authors use, is a third of that variance: through all layers, next to nothing would be left of
    what distances do to the energy, and forces would begin at zero.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Layer(nn.Module):
    """Equations 3 to 6, with edges weighted by the cutoff function f of their length in the structure itself.

    Messages m_ij = e_ij phi_e(h_i, h_j, |x_i - x_j|^2), where e_ij = sigmoid(linear(phi_e)) is the attention of equation 8; features
    h_i += phi_h(h_i, sum_j f_ij m_ij); coordinates x_i += sum_j f_ij (x_i - x_j) phi_x(m_ij) / (1 + sum_j f_ij). The paper divides by
    the number of other atoms; here that number would jump when an atom crosses the cutoff.
    """

    def __init__(self, channels: int, layers: int, *, attention: bool, features: bool, coordinates: bool) -> None:
        super().__init__()
        c = self.channels = channels
        self.edge_in = nn.Linear(2 * c + 1, c)
        self.edge_out = nn.Linear(c, c)
        self.attention = nn.Linear(c, 1) if attention else None
        self.node: nn.Sequential | None = None
        self.coordinate: nn.Sequential | None = None
        update, displacement = nn.Linear(c, c), nn.Linear(c, 1, bias=False)
        if features:
            self.node = nn.Sequential(nn.Linear(2 * c, c), nn.SiLU(), update)
        if coordinates:
            self.coordinate = nn.Sequential(nn.Linear(c, c), nn.SiLU(), displacement)
        lecun_normal_(self)
        with torch.no_grad():
            update.weight.mul_(layers**-0.5)
        nn.init.xavier_uniform_(displacement.weight, gain=COORDINATE_GAIN)

    def messages(self, h: Tensor, sender: Tensor, receiver: Tensor, vectors: Tensor) -> Tensor:
        """Return m_ij, [E, C]."""
        c = self.channels
        # The first linear map of phi_e acts on [h_i, h_j, r^2]: its parts for h_i and h_j are needed once per atom, not per edge.
        of_receiver, of_sender, of_distance = self.edge_in.weight.split([c, c, 1], dim=1)
        at_receiver = nn.functional.linear(h, of_receiver, self.edge_in.bias).index_select(0, receiver)
        at_sender = nn.functional.linear(h, of_sender).index_select(0, sender)
        squared = vectors.square().sum(dim=1, keepdim=True)
        silu = nn.functional.silu
        m = silu(self.edge_out(silu(at_receiver + at_sender + squared * of_distance.t())))
        return m if self.attention is None else m * torch.sigmoid(self.attention(m))

    def forward(
        self, h: Tensor, sender: Tensor, receiver: Tensor, vectors: Tensor, weight: Tensor, total: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the features [N, C] and the edge vectors [E, 3] after the layer.

        Args:
            weight: [E, 1], the cutoff function f_ij.
            total: [N, 1], sum_j f_ij.
        """
        m = self.messages(h, sender, receiver, vectors)
        if self.coordinate is not None:
            # vectors are x_j - x_i, hence the minus; an edge to a periodic image moves with the atom that it is an image of.
            pull = h.new_zeros(h.shape[0], 3).index_add(0, receiver, vectors * (weight * self.coordinate(m)))
            moved = -pull / (1.0 + total)
            vectors = vectors + moved.index_select(0, sender) - moved.index_select(0, receiver)
        if self.node is not None:
            received = torch.zeros_like(h).index_add(0, receiver, m * weight)
            h = h + self.node(torch.cat([h, received], dim=1))
        return h, vectors


class AtomicReadout(nn.Module):
    """The published readout, but with a sum over atoms at its end, where the paper has it before the last perceptron.

    The paper puts a perceptron on the features of each atom, adds up the results and puts another one on the sum, which is not
    extensive. Two linear maps meet at that sum; without it they are one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        c = channels
        self.net = nn.Sequential(nn.Linear(c, c), nn.SiLU(), nn.Linear(c, c), nn.SiLU(), nn.Linear(c, 1))
        lecun_normal_(self)

    def forward(self, features: Features) -> Tensor:
        """Return a value per atom, [N]."""
        return self.net(features.scalars).squeeze(-1)


class EGNN(Representation):
    """Scalar features from messages that depend on distances, between atoms that may be moved on the way.

    The published graphs join all atoms of a structure, at any distance. Here an edge counts within the cutoff only, weighted by the
    cutoff function, so that energies are smooth and their cost is linear in the number of atoms. There are no vector features: the
    displacement of an atom is a single vector, the paper's output for dynamics, and too little to read a dipole from. The last layer
    does not move atoms, for nothing would depend on it.
    """

    compiled_edges = 512

    def __init__(self, options: EGNNOptions, cutoff: float, num_elements: int) -> None:
        super().__init__()
        self.channels = options.channels
        self.activation = nn.SiLU()
        self.embedding = nn.Embedding(num_elements, options.channels)
        self.cutoff_function = make_cutoff(options.cutoff_function, cutoff)
        last = options.layers - 1
        self.layers = nn.ModuleList(
            [
                Layer(
                    options.channels,
                    options.layers,
                    attention=options.attention,
                    features=options.node_features or k == last,
                    coordinates=options.update_coordinates and k < last,
                )
                for k in range(options.layers)
            ]
        )

    def energy_head(self) -> nn.Module:
        """Return the published readout with the sum over atoms at its end."""
        return AtomicReadout(self.channels)

    def forward(self, species: Tensor, edge_index: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return scalars [N, C]; EGNN has no vectors."""
        sender, receiver = edge_index[0], edge_index[1]
        h = self.embedding(species)
        weight = self.cutoff_function(torch.sqrt(vectors.square().sum(dim=1))).unsqueeze(1)
        total = h.new_zeros(h.shape[0], 1).index_add(0, receiver, weight)
        for layer in self.layers:
            h, vectors = layer(h, sender, receiver, vectors, weight, total)
        return h, None
