"""Hamiltonians as modules, from (q, p) [..., D] each to H [...]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simkit.surrogates.derivatives import enabled, gradients
from simkit.surrogates.models.matrices import CholeskyFactor, JacobianFactor, MassDependence, gram, solve, times
from simkit.surrogates.models.network import NetworkOptions, ScalarNetwork


class GeneralEnergy(nn.Module):
    """H(q, p), one network."""

    def __init__(self, dof: int, options: NetworkOptions) -> None:
        super().__init__()
        self.network = ScalarNetwork(dof, options, more=dof)

    def forward(self, q: Tensor, p: Tensor) -> Tensor:
        """Return H."""
        return self.network(q, p)


class SeparableEnergy(nn.Module):
    """T(p) + V(q), two networks."""

    def __init__(self, dof: int, options: NetworkOptions) -> None:
        super().__init__()
        self.kinetic = ScalarNetwork(dof, options.model_copy(update={"angles": ()}))
        self.potential = ScalarNetwork(dof, options)

    def forward(self, q: Tensor, p: Tensor) -> Tensor:
        """Return H."""
        return self.kinetic(p) + self.potential(q)


class MechanicalEnergy(nn.Module):
    """p^T M(q)^-1 p/2 + V(q), with a positive definite mass matrix M = F F^T.

    Attributes:
        mass_factor: F(q), [..., D, K], a module that may be replaced by a known one.
        potential: V(q), likewise.
    """

    def __init__(self, dof: int, mass: MassDependence, options: NetworkOptions) -> None:
        super().__init__()
        self.mass_factor: CholeskyFactor | JacobianFactor
        if mass == "jacobian":
            self.mass_factor = JacobianFactor(dof, options)
        else:
            self.mass_factor = CholeskyFactor(dof, mass, options, start=1.0)
        self.potential = ScalarNetwork(dof, options)

    def forward(self, q: Tensor, p: Tensor) -> Tensor:
        """Return H."""
        return (p * solve(gram(self.mass_factor(q)), p)).sum(-1) / 2 + self.potential(q)

    def kinetic(self, q: Tensor, v: Tensor) -> Tensor:
        """Return v^T M(q) v/2 [...]."""
        return times(self.mass_factor(q).mT, v).square().sum(-1) / 2

    def gradients(self, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """Return dH/dq and dH/dp [..., D]. dH/dp is v = M^-1 p, and dH/dq is `slope`: no inverse is differentiated."""
        recorded = torch.is_grad_enabled()
        with enabled():
            place = _node(q, recorded)
            factor = self.mass_factor(place)
            v = solve(gram(factor), p) if recorded else solve(gram(factor.detach()), p.detach())
            return self.slope(place, factor, v, recorded), v

    def slope(self, place: Tensor, factor: Tensor, v: Tensor, recorded: bool) -> Tensor:
        """Return d(V - v^T M v/2)/dq [..., D] at constant v, by one product with the transposed Jacobian of F and V.

        The derivative of v^T F F^T v/2 by F is v (F^T v)^T.

        Args:
            place: q, with gradients enabled. factor: F, computed from it.
            v: velocities; that they may depend on q does not count.
            recorded: whether the result is to be differentiated.
        """
        potential = self.potential(place)
        fixed = (factor if recorded else factor.detach()).expand(*v.shape[:-1], *factor.shape[-2:])
        weight = -v.unsqueeze(-1) * times(fixed.mT, v).unsqueeze(-2)
        parts = [(potential, torch.ones_like(potential)), (factor, weight.sum_to_size(factor.shape))]
        parts = [(value, cotangent) for value, cotangent in parts if value.requires_grad]
        if not parts:
            return torch.zeros_like(place)
        values, cotangents = zip(*parts, strict=True)
        (found,) = torch.autograd.grad(values, place, cotangents, create_graph=recorded, materialize_grads=True)
        return found

    def along(self, q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return F and its derivative in time, where q' = v."""
        if isinstance(self.mass_factor, CholeskyFactor | JacobianFactor):
            return self.mass_factor.along(q, v)
        moved: tuple[Tensor, Tensor] = torch.func.jvp(self.mass_factor, (q,), (v,))
        return moved

    def euler_lagrange(self, q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return M [..., D, D] and the force d(v^T M v/2 - V)/dq - (dM/dt) v [..., D], which is M a where no other acts."""
        recorded = torch.is_grad_enabled()
        with enabled():
            place, v = _node(q, recorded), v if recorded else v.detach()
            factor, rate = self.along(place, v)
            slope = self.slope(place, factor, v, recorded)
        if not recorded:
            factor, rate = factor.detach(), rate.detach()
        drift = times(rate, times(factor.mT, v)) + times(factor, times(rate.mT, v))
        return gram(factor), -slope - drift


def _node(q: Tensor, recorded: bool) -> Tensor:
    """q to differentiate with respect to: a node of its own, as other inputs may depend on q."""
    return q.view_as(q) if recorded and q.requires_grad else q.detach().requires_grad_(True)


def energy_gradients(hamiltonian: nn.Module, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Return dH/dq and dH/dp [..., D] of any module H(q, p)."""
    if isinstance(hamiltonian, MechanicalEnergy):
        return hamiltonian.gradients(q, p)
    to_q, to_p = gradients(hamiltonian, q, p)
    return to_q, to_p
