"""What models of particles share: how many, of which species and mass, in which box."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from simkit.config import Options, parse_options
from simkit.errors import ConfigError
from simkit.surrogates.models.base import DynamicsModel
from simkit.surrogates.models.particle_neighbors import ParticleNeighbors


class ParticleOptions(Options):
    """Options of graph networks. Units are those of the data."""

    dimensions: int = Field(2, ge=2, le=3)
    cutoff: float = Field(2.5, gt=0, description="particles further apart do not see each other")
    contact: float = Field(1.0, gt=0, description="distance of close pairs, which inverse powers of distances refer to")
    scale: float = Field(1.0, gt=0, description="size of the energies or accelerations, which multiplies the outputs")
    box: tuple[float, ...] = Field((), description="length along each axis, 0 where not periodic; none if left out")
    masses: tuple[float, ...] = Field((1.0,), min_length=1, description="of each species")
    species: tuple[int, ...] = Field((), description="of each particle, from 0; all 0 if left out")
    width: int = Field(64, ge=1, description="size of messages and hidden layers")
    rounds: int = Field(2, ge=0, description="of messages")
    waves: int = Field(8, ge=1, description="sine functions of the distance that the networks see")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.box) not in {0, self.dimensions} or not all(0 <= length < float("inf") for length in self.box):
            raise ValueError(f"box must be {self.dimensions} lengths of at least 0; found {list(self.box)}")
        if not all(0 < mass < float("inf") for mass in self.masses):
            raise ValueError(f"masses must be positive; found {list(self.masses)}")
        if not all(0 <= species < len(self.masses) for species in self.species):
            raise ValueError(
                f"species must be from 0 to {len(self.masses) - 1}, as there are masses; found {sorted(set(self.species))}"
            )
        return self


class ParticleModel(DynamicsModel):
    """A model of N particles in d dimensions, with the state q = (x_1, y_1, [z_1,] x_2, ...) beside p, not wrapped into a box.

    The weights do not depend on the number of particles: `with_particles` has the same for another one.

    Attributes:
        particles: N.
        dimensions: d.
        species: [N].
        box: length along each axis, 0 where not periodic.
        neighbors: finds the edges; its lists reach further than the cutoff by `SKIN` times it.
    """

    SKIN = 0.12
    species: Tensor

    def __init__(self, options: ParticleOptions, dof: int) -> None:
        super().__init__(dof)
        self.dimensions, self.particles = options.dimensions, dof // options.dimensions
        if dof % self.dimensions or len(options.species) not in {0, self.particles}:
            raise ConfigError(
                f"particles in {self.dimensions} dimensions need a dof that is a multiple of it, and one species for each particle "
                f"or none; found dof {dof} and {len(options.species)} species"
            )
        species = options.species or (0,) * self.particles
        self.register_buffer("species", torch.tensor(species, dtype=torch.int64), persistent=False)
        self.box = options.box or (0.0,) * self.dimensions
        self.neighbors = ParticleNeighbors(self.box, options.cutoff, self.SKIN * options.cutoff)

    def with_particles(self, particles: int, *, box: tuple[float, ...] = (), species: tuple[int, ...] = ()) -> Self:
        """Return a model with a copy of the weights for another number of particles, in another box.

        Args:
            particles: N. box, species: see `ParticleOptions`.

        Raises:
            ConfigError: if they do not fit together.
        """
        wanted = {**self.options.model_dump(), "box": box, "species": species}
        options = parse_options(type(self.options), wanted, f"options of {self.name}")
        with torch.random.fork_rng(devices=[]):
            other = type(self)(options, particles * self.dimensions)  # type: ignore[arg-type]
        other = other.to(device=self.unit.device, dtype=self.dtype).train(self.training)
        other.load_state_dict(self.state_dict())
        other.name, other.options, other.info = self.name, options, dict(self.info)
        return other

    def points(self, vectors: Tensor) -> Tensor:
        """Return [R, N, d] for coordinates or momenta [..., N d]."""
        return vectors.reshape(-1, self.particles, self.dimensions)


class Masses(nn.Module):
    """The mass of every coordinate, from a known or learned one of each species."""

    coordinates: Tensor

    def __init__(self, options: ParticleOptions, species: Tensor, *, learned: bool = False) -> None:
        super().__init__()
        self.register_buffer("coordinates", species.repeat_interleave(options.dimensions), persistent=False)
        masses = torch.tensor(options.masses, dtype=torch.float64)
        self.logarithms = nn.Parameter(masses.log()) if learned else None
        self.known: Tensor
        self.register_buffer("known", masses, persistent=False)

    def forward(self) -> Tensor:
        """Return [D]."""
        masses = self.known if self.logarithms is None else self.logarithms.exp()
        return masses.index_select(0, self.coordinates)


class KineticEnergy(nn.Module):
    """sum |p|^2/2m."""

    def __init__(self, masses: Masses) -> None:
        super().__init__()
        self.masses = masses

    def forward(self, p: Tensor) -> Tensor:
        """Return [...] for momenta [..., D]."""
        return (p.square() / self.masses()).sum(-1) / 2
