"""Graph networks as simulators of particles: one with a Hamiltonian, one that gives accelerations.

A. Sanchez-Gonzalez, V. Bapst, K. Cranmer & P. Battaglia, "Hamiltonian graph networks with ODE integrators", arXiv:1909.12790 (2019):
a graph network gives H(q, p), whose symplectic gradient an integrator follows. A. Sanchez-Gonzalez et al., "Learning to simulate complex
physics with graph networks", ICML 2020: encoder, rounds of messages between particles within a radius, decoder to accelerations.

Ours differ from both in that messages fade out smoothly at the cutoff. The Hamiltonian is sum |p|^2/2m + V(q), which splitting
integrators need, and V sees distances only: it keeps its value when everything is moved, rotated, reflected, or renumbered.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from simkit.errors import ConfigError
from simkit.surrogates.derivatives import gradients
from simkit.surrogates.methods.splitting import Separable
from simkit.surrogates.models.message_passing import DistanceFeatures, EdgeNetwork, MessagePassing, envelope_of
from simkit.surrogates.models.network import NetworkOptions, perceptron
from simkit.surrogates.models.particle_neighbors import ParticleNeighbors
from simkit.surrogates.models.particles import KineticEnergy, Masses, ParticleModel, ParticleOptions


class GraphPotential(nn.Module):
    """V(q): an energy of every particle and one of every edge, after rounds of messages; zero where particles are far apart.

    Args:
        neighbors: finds the edges.
        species: [N].
    """

    species: Tensor

    def __init__(self, options: ParticleOptions, neighbors: ParticleNeighbors, species: Tensor) -> None:
        super().__init__()
        self.dimensions, self.scale, self.neighbors = options.dimensions, options.scale, neighbors
        width = options.width
        self.register_buffer("species", species, persistent=False)
        self.embedding = nn.Embedding(len(options.masses), width)
        self.features = DistanceFeatures(options.waves, options.cutoff, options.contact)
        self.envelope = envelope_of(options.cutoff)
        self.messages = MessagePassing(self.features.size, width, options.rounds)
        self.edge_energy = EdgeNetwork(self.features.size, 1, width, bias=False)
        # Without messages a particle knows nothing, and its energy would be a constant.
        readout = NetworkOptions(width=width, layers=1, activation="silu")
        self.node_energy = perceptron(width, 1, readout, bias=False) if options.rounds else None

    def forward(self, q: Tensor) -> Tensor:
        """Return V [...] for coordinates [..., N d]."""
        points = q.reshape(-1, len(self.species), self.dimensions)
        sender, receiver, vectors = self.neighbors(points)
        r = vectors.square().sum(-1).sqrt()
        features, envelope = self.features(r), self.envelope(r).unsqueeze(-1)
        species = self.species.repeat(len(points))
        # After the particles, one of each species that has no neighbors: what it becomes is the zero of the energies.
        nodes = torch.cat([self.embedding(species), self.embedding.weight])
        nodes = self.messages(nodes, features, envelope, sender, receiver)
        pairs = self.edge_energy(nodes, features, sender, receiver) * envelope
        energies = pairs.new_zeros(len(species), 1).index_add(0, receiver, pairs)
        if self.node_energy is not None:
            own, alone = self.node_energy(nodes).split([len(species), len(nodes) - len(species)])
            energies = energies + own - alone.index_select(0, species)
        return self.scale * energies.reshape(*q.shape[:-1], -1).sum(-1)


class HamiltonianGraphNetworkOptions(ParticleOptions):
    """Options of a Hamiltonian graph network."""

    learn_masses: bool = Field(False, description="whether the masses are where training starts; known if not")


class HamiltonianGraphNetwork(ParticleModel):
    """A Hamiltonian graph network for particles of any number, sum |p|^2/2m + V(q).

    Its motion conserves energy, momentum and (without a box) angular momentum.

    Attributes:
        kinetic, potential: the parts of H, from [..., D] to [...].
    """

    hamiltonian_flow = True

    def __init__(self, options: HamiltonianGraphNetworkOptions, dof: int) -> None:
        super().__init__(options, dof)
        self.kinetic = KineticEnergy(Masses(options, self.species, learned=options.learn_masses))
        self.potential = GraphPotential(options, self.neighbors, self.species)

    def derivative(self, t: float, state: Tensor, control: Tensor | None = None) -> Tensor:
        """Return (p/m, -dV/dq); see `DynamicsModel`."""
        q, p = self.split(state, control)
        return torch.cat([p / self.kinetic.masses(), self.forces(q)], dim=-1)

    def forces(self, q: Tensor) -> Tensor:
        """Return -dV/dq, like q [..., N d]."""
        return -gradients(self.potential, q)[0]

    def energy(self, state: Tensor) -> Tensor:
        """Return H [...]."""
        q, p = self.split(state)
        return self.kinetic(p) + self.potential(q)

    def separable(self) -> Separable:
        """Return the parts of H."""
        return Separable(self.kinetic, self.potential)

    @property
    def default_method(self) -> str:
        """Velocity Verlet: one evaluation of the forces in each step."""
        return "velocity-verlet"


class GraphNetworkSimulatorOptions(ParticleOptions):
    """Options of a graph network simulator."""

    rounds: int = Field(2, ge=1, description="of messages")
    velocities: bool = Field(False, description="whether accelerations depend on velocities, as with friction")


class GraphNetworkSimulator(ParticleModel):
    """A graph network that gives accelerations of particles of any number: the baseline, which has no energy."""

    def __init__(self, options: GraphNetworkSimulatorOptions, dof: int) -> None:
        super().__init__(options, dof)
        width, self.scale = options.width, options.scale
        self.masses = Masses(options, self.species)
        self.embedding = nn.Embedding(len(options.masses), width)
        self.motion = nn.Linear(self.dimensions, width, bias=False) if options.velocities else None
        self.features = DistanceFeatures(options.waves, options.cutoff, options.contact)
        self.envelope = envelope_of(options.cutoff)
        self.messages = MessagePassing(self.features.size * (1 + self.dimensions), width, options.rounds)
        self.decoder = perceptron(
            width, self.dimensions, NetworkOptions(width=width, layers=1, activation="silu"), bias=False
        )

    def derivative(self, t: float, state: Tensor, control: Tensor | None = None) -> Tensor:
        """Return (p/m, m a); see `DynamicsModel`."""
        q, p = self.split(state, control)
        masses = self.masses()
        velocities = p / masses
        return torch.cat([velocities, masses * self.accelerations(q, velocities)], dim=-1)

    def accelerations(self, q: Tensor, velocities: Tensor | None = None) -> Tensor:
        """Return accelerations like q [..., N d].

        Args:
            velocities: like q; needed by models that depend on them.

        Raises:
            ConfigError: if they are needed and not given.
        """
        points = self.points(q)
        sender, receiver, vectors = self.neighbors(points)
        r = vectors.square().sum(-1).sqrt()
        distances = self.features(r)
        directions = (vectors / r.unsqueeze(-1)).unsqueeze(-1) * distances.unsqueeze(-2)
        features = torch.cat([distances, directions.flatten(-2)], dim=-1)
        nodes = self.embedding(self.species).repeat(len(points), 1)
        if self.motion is not None:
            if velocities is None:
                raise ConfigError("this model's accelerations depend on velocities, which must be given")
            nodes = nodes + self.motion(self.points(velocities).flatten(0, 1))
        nodes = self.messages(nodes, features, self.envelope(r).unsqueeze(-1), sender, receiver)
        return self.scale * self.decoder(nodes).reshape(q.shape)
