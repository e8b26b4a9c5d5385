"""ANI: atomic environment vectors, and a network of its own for each element.

Smith, Isayev & Roitberg, "ANI-1: an extensible neural network potential with DFT accuracy at force field computational cost", Chem. Sci. 8,
3192 (2017); the defaults are those of ANI-1x: Smith, Nebgen, Lubbers, Isayev & Roitberg, J. Chem. Phys. 148, 241733 (2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from ase.data import chemical_symbols
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from simkit.config import Options
from simkit.errors import ConfigError
from simkit.heads import Features
from simkit.kernels.tracing import arrangement
from simkit.potential import Representation
from simkit.radial import CutoffName, make_cutoff

COSINE_FACTOR = 0.95
"""The angle is the arccos of this times the cosine, which keeps its derivatives finite where three atoms are in a line."""

ANI_1X_HIDDEN = {1: (160, 128), 6: (144, 112)}
"""Widths of the hidden layers before the last one, by atomic number; `OTHER_HIDDEN` for nitrogen, oxygen and all others."""

OTHER_HIDDEN = (128, 112)


class ANIOptions(Options):
    """Options of ANI; the defaults are ANI-1x, which goes with a cutoff of 5.2 angstrom.

    Gaussians begin at ``start`` and are evenly spaced up to their cutoff, which is not among them. The published cutoff function is
    "cosine"; the default is its neighbour with a continuous second derivative.
    """

    channels: int = Field(96, ge=2, description="width of the last hidden layer")
    hidden: tuple[PositiveInt, ...] | None = Field(
        None,
        description="widths of the hidden layers before the last one, of all elements; where not given, as published",
    )
    angular_cutoff: float = Field(3.5, gt=0, description="angstrom; not above the cutoff")
    start: float = Field(0.9, ge=0, description="centre of the first Gaussian, radial and angular, angstrom")
    radial_eta: float = Field(16.0, gt=0, description="angstrom^-2")
    radial_shifts: int = Field(16, ge=1)
    angular_eta: float = Field(8.0, gt=0, description="angstrom^-2")
    angular_shifts: int = Field(4, ge=1)
    zeta: float = Field(32.0, ge=2)
    sections: int = Field(8, ge=1, description="number of angles")
    cutoff_function: CutoffName = "polynomial"


class RadialTerms(nn.Module):
    """Equation 3: exp(-eta (r - R_s)^2) f(r) / 4. The quarter is not in the paper, but in the published parameters' programs."""

    orders: Tensor  # whole numbers, which a change of dtype leaves exact

    def __init__(self, options: ANIOptions, cutoff: float) -> None:
        super().__init__()
        self.eta, self.start, self.count = options.radial_eta, options.start, options.radial_shifts
        self.spacing = (cutoff - options.start) / options.radial_shifts
        self.cutoff_function = make_cutoff(options.cutoff_function, cutoff)
        self.register_buffer("orders", torch.arange(0.0, self.count), persistent=False)

    def forward(self, r: Tensor) -> Tensor:
        """Map distances [E] to [E, shifts]."""
        deviation = r.unsqueeze(1) - self.start - self.spacing * self.orders
        return torch.exp(-self.eta * deviation.square()) * (0.25 * self.cutoff_function(r)).unsqueeze(1)


class AngularTerms(nn.Module):
    """Equation 4: 2^(1 - zeta) (1 + cos(theta - theta_s))^zeta exp(-eta ((r_j + r_k) / 2 - R_s)^2) f(r_j) f(r_k).

    With cos(theta) = 0.95 u_j . u_k the sine is a smooth function of the cosine, and the angle itself is never made.
    """

    orders: Tensor
    odd: Tensor

    def __init__(self, options: ANIOptions) -> None:
        super().__init__()
        self.eta, self.zeta, self.start = options.angular_eta, options.zeta, options.start
        self.spacing = (options.angular_cutoff - options.start) / options.angular_shifts
        self.sections = options.sections
        self.count = options.angular_shifts * options.sections
        self.cutoff_function = make_cutoff(options.cutoff_function, options.angular_cutoff)
        self.register_buffer("orders", torch.arange(0.0, options.angular_shifts), persistent=False)
        self.register_buffer("odd", torch.arange(1.0, 2.0 * options.sections, 2.0), persistent=False)

    def forward(self, r: Tensor, directions: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Return the terms of all triplets, [T, shifts * sections].

        Args:
            r: [E], distances.
            directions: [E, 3], unit vectors.
            first, second: [T] int64, the two edges of each triplet.
        """
        f = self.cutoff_function(r)
        mean = 0.5 * (r.index_select(0, first) + r.index_select(0, second)).unsqueeze(1)
        weight = 2.0 * f.index_select(0, first) * f.index_select(0, second)
        deviation = mean - self.start - self.spacing * self.orders
        radial = torch.exp(-self.eta * deviation.square()) * weight.unsqueeze(1)
        cosine = (directions.index_select(0, first) * directions.index_select(0, second)).sum(dim=1) * COSINE_FACTOR
        sine = torch.sqrt(1.0 - cosine.square())
        section = self.odd * (0.5 * math.pi / self.sections)
        shifted = cosine.unsqueeze(1) * torch.cos(section) + sine.unsqueeze(1) * torch.sin(section)
        angular = (0.5 + 0.5 * shifted) ** self.zeta
        return (radial.unsqueeze(2) * angular.unsqueeze(1)).flatten(1)


class EnvironmentVectors(nn.Module):
    """Atomic environment vectors: radial terms summed by the neighbor's element, angular terms by the elements of two neighbors.

    For S elements they have ``16 S + 32 S (S + 1) / 2`` entries with the published numbers of terms: 384 for four elements, 1008
    for seven, and 6720 for twenty, where most of the cost and of the weights go into them.
    """

    pair: Tensor

    def __init__(self, options: ANIOptions, cutoff: float, num_elements: int) -> None:
        super().__init__()
        self.radial = RadialTerms(options, cutoff)
        self.angular = AngularTerms(options)
        self.angular_cutoff = options.angular_cutoff
        self.num_elements = s = num_elements
        self.num_pairs = s * (s + 1) // 2
        self.length = s * self.radial.count + self.num_pairs * self.angular.count
        row, column = torch.triu_indices(s, s)
        pair = torch.zeros(s, s, dtype=torch.int64)
        pair[row, column] = pair[column, row] = torch.arange(self.num_pairs)
        self.register_buffer("pair", pair.flatten(), persistent=False)

    def forward(self, species: Tensor, edge_index: Tensor, vectors: Tensor) -> Tensor:
        """Return the vectors of all atoms, [N, length]: radial terms by element, then angular terms by pair of elements."""
        n, sender, receiver = species.shape[0], edge_index[0], edge_index[1]
        r = torch.sqrt(vectors.square().sum(dim=1))
        terms = self.radial(r)
        kind = species.index_select(0, sender)
        radial = terms.new_zeros(n * self.num_elements, terms.shape[1])
        radial = radial.index_add(0, receiver * self.num_elements + kind, terms)

        given = arrangement()
        near, first, second = self.triplets(receiver, vectors, n) if given is None else given.own
        r, vectors = r.index_select(0, near), vectors.index_select(0, near)
        receiver, kind = receiver.index_select(0, near), kind.index_select(0, near)
        terms = self.angular(r, vectors / r.unsqueeze(1), first, second)
        pair = self.pair.index_select(0, kind.index_select(0, first) * self.num_elements + kind.index_select(0, second))
        angular = terms.new_zeros(n * self.num_pairs, terms.shape[1])
        angular = angular.index_add(0, receiver.index_select(0, first) * self.num_pairs + pair, terms)
        return torch.cat([radial.view(n, -1), angular.view(n, -1)], dim=1)

    def triplets(self, receiver: Tensor, vectors: Tensor, num_atoms: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the edges within the angular cutoff, and which two of these each triplet has; ``receiver`` is sorted."""
        near = (vectors.detach().square().sum(dim=1) < self.angular_cutoff**2).nonzero().squeeze(1)
        return near, *pairs_at_receivers(receiver.index_select(0, near), num_atoms)


def pairs_at_receivers(receiver: Tensor, num_atoms: int) -> tuple[Tensor, Tensor]:
    """Return the pairs of different edges that end at the same atom, each pair once: two tensors [T] of edges, first < second.

    Members are edges, not atoms, so that two periodic images of an atom count as two neighbors.

    Args:
        receiver: [E] int64, sorted.
    """
    edges = torch.arange(receiver.shape[0], device=receiver.device)
    count = torch.zeros(num_atoms, dtype=torch.int64, device=receiver.device)
    count = count.index_add(0, receiver, torch.ones_like(receiver))
    start = (count.cumsum(0) - count).index_select(0, receiver)
    earlier = edges - start  # how many edges to the same atom come before: one triplet with each of them
    second = torch.repeat_interleave(edges, earlier)
    offset = (earlier.cumsum(0) - earlier).index_select(0, second)
    place = torch.arange(second.shape[0], device=receiver.device) - offset
    return start.index_select(0, second) + place, second


def network(sizes: Sequence[int]) -> nn.Sequential:
    """Return the hidden layers of one element: linear maps with CELU(0.1), random weights that keep the size of their input."""
    modules: list[nn.Module] = []
    for before, after in zip(sizes[:-1], sizes[1:], strict=True):
        layer = nn.Linear(before, after)
        nn.init.kaiming_normal_(layer.weight, a=1.0)
        nn.init.zeros_(layer.bias)
        modules += [layer, nn.CELU(0.1)]
    return nn.Sequential(*modules)


class ElementReadout(nn.Module):
    """The last layer of the networks: a linear map of its own for each element."""

    def __init__(self, channels: int, num_elements: int) -> None:
        super().__init__()
        self.weight = nn.Embedding(num_elements, channels)
        self.bias = nn.Embedding(num_elements, 1)
        nn.init.normal_(self.weight.weight, std=channels**-0.5)
        nn.init.zeros_(self.bias.weight)

    def forward(self, features: Features) -> Tensor:
        """Return a value per atom, [N]."""
        product = (features.scalars * self.weight(features.species)).sum(dim=1)
        return product + self.bias(features.species).squeeze(1)


class ANI(Representation):
    """The last hidden activations of each element's network on the environment vectors; there is no message passing.

    CELU(0.1) has a continuous derivative, but no continuous second one: forces are continuous and have kinks.

    Raises:
        ConfigError: if the angular cutoff is above the cutoff, or the Gaussians begin beyond it.
    """

    compiled_edges = 2**10
    has_members = True

    def __init__(self, options: ANIOptions, cutoff: float, elements: Sequence[int]) -> None:
        super().__init__()
        if options.angular_cutoff > cutoff:
            raise ConfigError(
                f"options of ani: the angular cutoff of {options.angular_cutoff} angstrom is above the cutoff of {cutoff}; "
                "lower angular_cutoff or raise the cutoff"
            )
        if options.start >= options.angular_cutoff:
            raise ConfigError(
                f"options of ani: the first Gaussian at {options.start} angstrom is not below the angular cutoff of "
                f"{options.angular_cutoff}; lower start"
            )
        self.channels = options.channels
        self.activation = nn.CELU(0.1)
        self.environment = EnvironmentVectors(options, cutoff, len(elements))
        self.networks = nn.ModuleDict()
        for z in elements:
            widths = options.hidden if options.hidden is not None else ANI_1X_HIDDEN.get(z, OTHER_HIDDEN)
            self.networks[chemical_symbols[z]] = network([self.environment.length, *widths, options.channels])

    @classmethod
    def for_elements(cls, options: ANIOptions, cutoff: float, elements: Sequence[int]) -> ANI:
        """Build for ``elements``, atomic numbers in ascending order: the sizes of the networks depend on them."""
        return cls(options, cutoff, elements)

    def element_axis(self) -> Tensor:
        """Return the species of each entry of the environment vectors, [length, 3]."""
        e = self.environment
        rows, columns = torch.triu_indices(e.num_elements, e.num_elements)
        alone = torch.stack([torch.arange(e.num_elements), torch.full((e.num_elements,), -1)], dim=1)
        both = torch.stack([rows, columns], dim=1)
        return torch.cat([_numbered(alone, e.radial.count), _numbered(both, e.angular.count)])

    def energy_head(self) -> nn.Module:
        """Return the last layer of the networks."""
        return ElementReadout(self.channels, len(self.networks))

    def arrange(self, edge_index: Tensor, vectors: Tensor, num_atoms: int) -> tuple[Tensor, ...]:
        """Return the edges within the angular cutoff, and which two of these each triplet has."""
        receiver, order = edge_index[1].sort(stable=True)
        near, first, second = self.environment.triplets(receiver, vectors.index_select(0, order), num_atoms)
        return order.index_select(0, near), first, second

    def forward(self, species: Tensor, edge_index: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return scalars [N, C]; ANI has no vectors."""
        environment = self.environment(species, edge_index, vectors)
        if (given := arrangement()) is not None:
            nets, members = list(self.networks.values()), zip(given.species, given.members, strict=True)
            done = [nets[k](environment.index_select(0, own)) for k, own in members]
            return torch.cat(done).index_select(0, given.place), None
        scalars = environment.new_zeros(species.shape[0], self.channels)
        for k, net in enumerate(self.networks.values()):
            chosen = (species == k).nonzero().squeeze(1)
            scalars = scalars.index_copy(0, chosen, net(environment.index_select(0, chosen)))
        return scalars, None


def _numbered(species: Tensor, count: int) -> Tensor:
    """Repeat each row of ``species`` [R, 2] ``count`` times, with 0 to count - 1 behind it: [R * count, 3]."""
    numbers = torch.arange(count).repeat(len(species)).unsqueeze(1)
    return torch.cat([species.repeat_interleave(count, dim=0), numbers], dim=1)
