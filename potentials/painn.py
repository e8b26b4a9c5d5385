"""PaiNN: the polarizable atom interaction network.

Schuett, Unke & Gastegger, "Equivariant message passing for the prediction of tensorial properties and molecular spectra", ICML 2021.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from simkit.config import Options
from simkit.fast.painn import FusedPaiNN
from simkit.fast.workspace import Workspace
from simkit.graph import one_direction
from simkit.initialization import glorot_linear, glorot_orthogonal_
from simkit.kernels.orders import Derivatives, wanted_derivatives
from simkit.kernels.perceptron import layer_weights
from simkit.kernels.vector_message import vector_message
from simkit.kernels.vector_network import Geometry, Weights, vector_network
from simkit.kernels.vector_update import gated_update, invariants
from simkit.potential import Representation
from simkit.radial import CutoffName, GaussianBasis, SineBasis, make_cutoff


class PaiNNOptions(Options):
    """Options of PaiNN; the defaults are the published size.

    The published cutoff function is "cosine"; the default is its neighbour with a continuous second derivative. The published functions of
    distance are "sine", sin(n pi r / rc) / r; the default is Gaussians, as in the authors' own code, which learn more from few frames.
    """

    IN_OLDER_FILES: ClassVar[Mapping[str, Any]] = {"radial": "sine"}
    channels: int = Field(128, ge=2)
    layers: int = Field(3, ge=1)
    basis: int = Field(20, ge=2)
    cutoff_function: CutoffName = "polynomial"
    radial: Literal["gaussian", "sine"] = Field(
        "gaussian", description="functions of distance; gaussian is better for forces, sine for QM9"
    )


class Filters(nn.Linear):
    """(W basis(r) + b) f(r), from f(r) basis(r) and f(r) side by side: nothing of the filters' size is multiplied elementwise."""

    def __init__(self, basis: int, out_channels: int, *, sine: bool) -> None:
        super().__init__(basis, out_channels)
        if sine:
            # sin(n pi r / rc) is n times as steep: with equal weights the filters, and the forces with them, would start rough,
            # and a few hundred frames do not smooth them.
            with torch.no_grad():
                self.weight.div_(torch.arange(1.0, basis + 1.0))
        else:
            glorot_orthogonal_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, weighted: Tensor) -> Tensor:
        """Map [E, basis + 1] to [E, 3C]."""
        return weighted @ self.joined()

    def joined(self) -> Tensor:
        """Weights and bias, [basis + 1, 3C]: the layout of the product, because the other one makes its gradient at half the speed."""
        return torch.cat([self.weight.t(), self.bias.unsqueeze(0)])


class Message(nn.Module):
    """Equations 7 and 8: ds_i = sum_j phi_s(s_j) W_s; dv_i = sum_j v_j phi_vv(s_j) W_vv + phi_vs(s_j) W_vs r_ij / |r_ij|."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(glorot_linear(channels, channels), nn.SiLU(), glorot_linear(channels, 3 * channels))

    def forward(
        self,
        s: Tensor,
        v: Tensor | None,
        sender: Tensor,
        receiver: Tensor,
        filters: Tensor,
        directions: Tensor,
        *,
        both: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return the sums over neighbors, [N, C] and [N, 3C]; ``v`` [N, 3C] is None while all vectors vanish.

        With ``both``, each edge stands for its reverse as well.
        """
        return vector_message(self.net(s), v, filters, directions, sender, receiver, both=both)


class Update(nn.Module):
    """Equations 9 and 10: s += a_ss + a_sv <U v, V v>; v += a_vv U v, with a = a(s, |V v|)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.mix = glorot_linear(channels, 2 * channels, bias=False)
        self.net = nn.Sequential(
            glorot_linear(2 * channels, channels), nn.SiLU(), glorot_linear(channels, 3 * channels)
        )

    def forward(self, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the updated scalars [N, C] and vectors [N, 3C]."""
        n, c = s.shape
        x, product, u = invariants(s, self.mix(v.view(n, 3, c)))
        return gated_update(s, v, self.net(x), product, u)


class PaiNN(Representation):
    """Scalar and vector features refined by alternating message and update blocks."""

    has_vectors = True

    def __init__(self, options: PaiNNOptions, cutoff: float, num_elements: int) -> None:
        super().__init__()
        self.channels = c = options.channels
        self.activation = nn.SiLU()
        self.embedding = nn.Embedding(num_elements, c)
        sine = options.radial == "sine"
        self.basis = SineBasis(options.basis, cutoff) if sine else GaussianBasis(options.basis, cutoff)
        self.cutoff_function = make_cutoff(options.cutoff_function, cutoff)
        self.filters = nn.ModuleList([Filters(options.basis, 3 * c, sine=sine) for _ in range(options.layers)])
        self.messages = nn.ModuleList([Message(c) for _ in range(options.layers)])
        self.updates = nn.ModuleList([Update(c) for _ in range(options.layers)])

    def forward(self, species: Tensor, edge_index: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return scalars [N, C] and vectors [N, 3, C]."""
        # Filters depend on distances alone: make each pair's filter once. On a GPU the selection would make the host wait.
        both = vectors.device.type == "cpu"
        if both:
            chosen = one_direction(edge_index, vectors)
            edge_index, vectors = edge_index.index_select(1, chosen), vectors.index_select(0, chosen)
        sender, receiver = edge_index[0], edge_index[1]
        fused = both and vectors.requires_grad and vectors.dtype in (torch.float32, torch.float64)
        if fused and wanted_derivatives() == Derivatives.TRAINING:
            geometry = self._geometry(vectors.detach(), sender, receiver)
            features = vector_network(vectors, self.embedding(species), geometry, self._weights())
            return features[0], features[1].view(-1, 3, self.channels)
        r = torch.sqrt(vectors.square().sum(dim=1))
        directions = vectors / r.unsqueeze(1)
        weight = self.cutoff_function(r).unsqueeze(1)
        basis = torch.cat([self.basis(r) * weight, weight], dim=1)
        s, v = self.embedding(species), None
        for message, update, net in zip(self.messages, self.updates, self.filters, strict=True):
            ds, dv = message(s, v, sender, receiver, net(basis), directions, both=both)
            s, v = s + ds, dv if v is None else v + dv
            s, v = update(s, v)
        return s, None if v is None else v.view(-1, 3, self.channels)

    def _weights(self) -> list[Weights]:
        layers = zip(self.messages, self.updates, self.filters, strict=True)
        parts = [(cast(Message, message), cast(Update, update), cast(Filters, net)) for message, update, net in layers]
        return [Weights(net.joined(), layer_weights(a.net), b.mix.weight, layer_weights(b.net)) for a, b, net in parts]

    def _geometry(self, vectors: Tensor, sender: Tensor, receiver: Tensor) -> Geometry:
        r = torch.linalg.vector_norm(vectors, dim=1)
        values, slopes = self.basis.with_slopes(r)
        f, df = self.cutoff_function(r).unsqueeze(1), self.cutoff_function.slope(r).unsqueeze(1)
        basis, steep = torch.cat([values * f, f], dim=1), torch.cat([slopes * f + values * df, df], dim=1)
        return Geometry(basis, steep, vectors / r.unsqueeze(1), r, sender, receiver)

    def fused(self, cutoff: float, workspace: Workspace) -> FusedPaiNN:
        """Return the representation without autograd."""
        return FusedPaiNN(self, cutoff, workspace)
