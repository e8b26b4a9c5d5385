"""Blocks of the equivariant architectures.

Features of ``N`` atoms or edges are one tensor [N, dim, C], channels last. An `e3nn.o3.Irreps` says what the ``dim`` rows are, and all
its irreps have the same number ``C`` of channels. Multiplicities count groups of channels: "3x0e+2x1o" has 3 + 2 * 3 rows. The rows of
one irrep are ordered by component first and by multiplicity second, so that [2l + 1, multiplicity * C] is a view, which a linear map
mixes in one matrix product. Components are in e3nn's order, (x, y, z) for l = 1.
"""

from simkit.equivariant.constant import ExactConstant
from simkit.equivariant.harmonics import EdgeGeometry, SphericalHarmonics, edge_geometry
from simkit.equivariant.layout import feature_irreps, layer_irreps, reachable, row_slices, scalars_and_vectors
from simkit.equivariant.linear import IrrepsLinear, LinearReadout, RadialMLP, SpeciesLinear
from simkit.equivariant.nonlinear import FeatureNorm, Gate, NormNonlinearity
from simkit.equivariant.tensor_product import EdgeTensorProduct, Path, shared_couplings

__all__ = [
    "EdgeGeometry",
    "EdgeTensorProduct",
    "ExactConstant",
    "FeatureNorm",
    "Gate",
    "IrrepsLinear",
    "LinearReadout",
    "NormNonlinearity",
    "Path",
    "RadialMLP",
    "SpeciesLinear",
    "SphericalHarmonics",
    "edge_geometry",
    "feature_irreps",
    "layer_irreps",
    "reachable",
    "row_slices",
    "scalars_and_vectors",
    "shared_couplings",
]
