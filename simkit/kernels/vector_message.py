"""PaiNN's message sum and its first and second derivatives, each as one pass over the edges.

With phi = (p0, p1, p2) and v at the sender j, filters W = (w0, w1, w2) and the unit vector u of the edge e = (i <- j), per channel:

    ds_i = sum_e p0 w0,    dv_i = sum_e p1 w1 u + p2 w2 v_j        (Schuett et al. 2021, equations 7 and 8)

S = <gs, ds> + <gv, dv> is linear in each of phi, v, W, u, gs and gv. The backward pass returns the partial derivatives of S; its own
backward pass those of T, the derivative of S along the cotangents (hp, hv, hw, hu). All three are sums over edges of short products, so
nothing of shape [E, 3, C] is ever stored, where composing PyTorch's operations stores dozens such arrays.

Filters depend on distances alone, so an edge may stand for its reverse as well, which has the same filter and the vector -u: half the
filters are then made, read and differentiated.

The work is cut into blocks of channels, which share no output except du (summed over blocks afterwards): no atomics, and the result
does not depend on the number of threads. Arrays are passed flat: in a row of three sections of C, section k begins at k C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from simkit.kernels.blocks import BLOCK, compile_blocks, compile_shared, count_blocks, flat, sizes


def vector_message_reference(
    phi: Tensor,
    v: Tensor | None,
    filters: Tensor,
    directions: Tensor,
    sender: Tensor,
    receiver: Tensor,
    *,
    both: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return ds [N, C] and dv [N, 3C] in plain PyTorch, on any device.

    Args:
        phi: [N, 3C]. v: [N, 3C], component-major, or None for zero. filters: [E, 3C]. directions: [E, 3].
        sender, receiver: [E] int64.
        both: let each edge stand for its reverse as well, which has the same filter and the opposite direction.
    """
    if both:
        filters, directions = torch.cat([filters, filters]), torch.cat([directions, -directions])
        sender, receiver = torch.cat([sender, receiver]), torch.cat([receiver, sender])
    c = phi.shape[1] // 3
    product = phi.index_select(0, sender) * filters
    ds = phi.new_zeros(phi.shape[0], c).index_add(0, receiver, product[:, :c])
    messages = directions.unsqueeze(2) * product[:, c : 2 * c].unsqueeze(1)
    if v is not None:
        messages = messages + v.index_select(0, sender).view(-1, 3, c) * product[:, 2 * c :].unsqueeze(1)
    messages = messages.reshape(-1, 3 * c)
    return ds, phi.new_zeros(phi.shape[0], 3 * c).index_add(0, receiver, messages)


def vector_message(
    phi: Tensor,
    v: Tensor | None,
    filters: Tensor,
    directions: Tensor,
    sender: Tensor,
    receiver: Tensor,
    *,
    both: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the same as `vector_message_reference`; on a CPU by the fused kernels, differentiable twice."""
    if phi.device.type != "cpu" or phi.dtype not in (torch.float32, torch.float64):
        return vector_message_reference(phi, v, filters, directions, sender, receiver, both=both)
    ds, dv = _Message.apply(phi, v, filters, directions, sender, receiver, both)
    return ds, dv


@dataclass(frozen=True)
class Message:
    """The arguments of one message sum as plain values, and the sum with its derivatives, without a record.

    Args:
        phi, v, filters, directions, sender, receiver, both: as in `vector_message_reference`.
    """

    phi: Tensor
    v: Tensor | None
    filters: Tensor
    directions: Tensor
    sender: Tensor
    receiver: Tensor
    both: bool

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return ds [N, C] and dv [N, 3C]."""
        n, c = self.phi.shape[0], self.phi.shape[1] // 3
        ds, dv = self.phi.new_zeros(n, c), self.phi.new_zeros(n, 3 * c)
        _forward(*self._arguments(), *flat(ds, dv))
        return ds, dv

    def backward(self, gs: Tensor, gv: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Return the derivatives of S with respect to phi, v, filters and directions."""
        phi, w = self.phi, self.filters
        # Outputs are made from their shapes: one "like" a transposed argument would be transposed, too, and `flat` a copy of it.
        dphi, dw, du = phi.new_zeros(phi.shape), w.new_empty(w.shape), self._du_buffer()
        dv = None if self.v is None else phi.new_zeros(phi.shape)
        _backward(*self._arguments(), *flat(gs, gv, dphi, phi[:0] if dv is None else dv, dw, du))
        return dphi, dv, dw, du.sum(dim=0)

    def second(
        self, gs: Tensor, gv: Tensor, hp: Tensor | None, hv: Tensor | None, hw: Tensor | None, hu: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor]:
        """Return the derivatives of T with respect to phi, v, filters, directions, gs and gv; cotangents of None are zero."""
        phi, w, u, has_v = self.phi, self.filters, self.directions, self.v is not None
        hp = torch.zeros_like(phi) if hp is None else hp
        hw = torch.zeros_like(w) if hw is None else hw
        hu = torch.zeros_like(u) if hu is None else hu
        hv = (torch.zeros_like(phi) if hv is None else hv) if has_v else phi[:0]
        dphi, dw, du = phi.new_zeros(phi.shape), w.new_empty(w.shape), self._du_buffer()
        dv = phi.new_zeros(phi.shape if has_v else (0, phi.shape[1]))
        dgs, dgv = phi.new_zeros(gs.shape), phi.new_zeros(gv.shape)
        _second_backward(*self._arguments(), *flat(gs, gv, hp, hv, hw, hu, dphi, dv, dw, du, dgs, dgv))
        return dphi, dv if has_v else None, dw, du.sum(dim=0), dgs, dgv

    def _arguments(self) -> tuple[Any, ...]:
        v = self.phi[:0] if self.v is None else self.v
        arrays = flat(self.phi, v, self.filters, self.directions, self.sender, self.receiver)
        return (*sizes(self.phi.shape[1] // 3), *arrays, self.v is not None, self.both)

    def _du_buffer(self) -> Tensor:
        """One partial sum of du per block of channels."""
        u = self.directions
        return u.new_empty(count_blocks(self.phi.shape[1] // 3), u.shape[0], 3)


class _Message(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, phi: Tensor, v: Tensor | None, w: Tensor, u: Tensor, sender: Tensor, receiver: Tensor, both: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(phi, v, w, u, sender, receiver)
        ctx.both = both
        return Message(phi, v, w, u, sender, receiver, both).forward()

    @staticmethod
    def backward(ctx: Any, gs: Tensor, gv: Tensor) -> tuple[Tensor | None, ...]:
        phi, v, w, u, sender, receiver = ctx.saved_tensors
        return (*_MessageBackward.apply(phi, v, w, u, gs, gv, sender, receiver, ctx.both), None, None, None)


class _MessageBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        phi: Tensor,
        v: Tensor | None,
        w: Tensor,
        u: Tensor,
        gs: Tensor,
        gv: Tensor,
        sender: Tensor,
        receiver: Tensor,
        both: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        ctx.save_for_backward(phi, v, w, u, gs, gv, sender, receiver)
        ctx.both = both
        return Message(phi, v, w, u, sender, receiver, both).backward(gs, gv)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, hp: Tensor | None, hv: Tensor | None, hw: Tensor | None, hu: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        phi, v, w, u, gs, gv, sender, receiver = ctx.saved_tensors
        message = Message(phi, v, w, u, sender, receiver, ctx.both)
        return (*message.second(gs, gv, hp, hv, hw, hu), None, None, None)


@njit
def _offsets(row, c_all, lo):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """Where a block of channels begins in the three sections of a row; unsigned, so that no negative indices are looked for."""
    first = np.uintp(3 * row * c_all + lo)
    return first, first + np.uintp(c_all), first + np.uintp(2 * c_all)


@njit
def _edge(k, sides, sender, receiver, one):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Edge, receiver, sender and the sign of the direction of message k; where there are two sides, the odd ones are the reverses."""
    e = k // sides
    if k % sides:
        return e, sender[e], receiver[e], -one
    return e, receiver[e], sender[e], one


@compile_blocks
def _forward_blocks(start, end, c_all, phi, v, w, u, sender, receiver, has_v, both, ds, dv):  # type: ignore[no-untyped-def]  # pragma: no cover
    sides = 2 if both else 1
    for k in range(sides * len(sender)):
        e, i, j, sign = _edge(k, sides, sender, receiver, u.dtype.type(1))
        ux, uy, uz = sign * u[3 * e], sign * u[3 * e + 1], sign * u[3 * e + 2]
        for lo in range(start * BLOCK, end * BLOCK, BLOCK):
            n = np.uintp(min(BLOCK, c_all - lo))
            s = np.uintp(i * c_all + lo)
            i0, i1, i2 = _offsets(i, c_all, lo)
            j0, j1, j2 = _offsets(j, c_all, lo)
            e0, e1, e2 = _offsets(e, c_all, lo)
            if not has_v:
                for c in range(n):
                    t = phi[j1 + c] * w[e1 + c]
                    ds[s + c] += phi[j0 + c] * w[e0 + c]
                    dv[i0 + c] += t * ux
                    dv[i1 + c] += t * uy
                    dv[i2 + c] += t * uz
                continue
            for c in range(n):
                t, d = phi[j1 + c] * w[e1 + c], phi[j2 + c] * w[e2 + c]
                ds[s + c] += phi[j0 + c] * w[e0 + c]
                dv[i0 + c] += t * ux + d * v[j0 + c]
                dv[i1 + c] += t * uy + d * v[j1 + c]
                dv[i2 + c] += t * uz + d * v[j2 + c]


@compile_blocks
def _backward_blocks(  # type: ignore[no-untyped-def]  # pragma: no cover
    start, end, c_all, phi, v, w, u, sender, receiver, has_v, both, gs, gv, dphi, dv, dw, du
):
    zero = phi.dtype.type(0)
    sides = 2 if both else 1
    for k in range(sides * len(sender)):
        e, i, j, sign = _edge(k, sides, sender, receiver, u.dtype.type(1))
        ux, uy, uz = sign * u[3 * e], sign * u[3 * e + 1], sign * u[3 * e + 2]
        for lo in range(start * BLOCK, end * BLOCK, BLOCK):
            n = np.uintp(min(BLOCK, c_all - lo))
            s = np.uintp(i * c_all + lo)
            i0, i1, i2 = _offsets(i, c_all, lo)
            j0, j1, j2 = _offsets(j, c_all, lo)
            e0, e1, e2 = _offsets(e, c_all, lo)
            b = 3 * (lo // BLOCK * len(sender) + e)
            if k % sides == 0:
                du[b : b + 3] = zero
                for c in range(n):
                    dw[e0 + c] = zero
                    dw[e1 + c] = zero
                    dw[e2 + c] = zero
            for c in range(n):
                g, p, f = gs[s + c], phi[j0 + c], w[e0 + c]
                dphi[j0 + c] += g * f
                dw[e0 + c] += g * p
            du_x, du_y, du_z = zero, zero, zero
            for c in range(n):
                gx, gy, gz, p, f = gv[i0 + c], gv[i1 + c], gv[i2 + c], phi[j1 + c], w[e1 + c]
                t = gx * ux + gy * uy + gz * uz
                dphi[j1 + c] += t * f
                dw[e1 + c] += t * p
                t = p * f
                du_x += gx * t
                du_y += gy * t
                du_z += gz * t
            du[b] += sign * du_x
            du[b + 1] += sign * du_y
            du[b + 2] += sign * du_z
            if not has_v:
                continue
            for c in range(n):
                gx, gy, gz, p, f = gv[i0 + c], gv[i1 + c], gv[i2 + c], phi[j2 + c], w[e2 + c]
                t = gx * v[j0 + c] + gy * v[j1 + c] + gz * v[j2 + c]
                dphi[j2 + c] += t * f
                dw[e2 + c] += t * p
                t = p * f
                dv[j0 + c] += gx * t
                dv[j1 + c] += gy * t
                dv[j2 + c] += gz * t


@compile_blocks
def _second_blocks(  # type: ignore[no-untyped-def]  # pragma: no cover
    start, end, c_all, phi, v, w, u, sender, receiver, has_v, both, gs, gv, hp, hv, hw, hu, dphi, dv, dw, du, dgs, dgv
):
    zero = phi.dtype.type(0)
    sides = 2 if both else 1
    for k in range(sides * len(sender)):
        e, i, j, sign = _edge(k, sides, sender, receiver, u.dtype.type(1))
        ux, uy, uz = sign * u[3 * e], sign * u[3 * e + 1], sign * u[3 * e + 2]
        hx, hy, hz = sign * hu[3 * e], sign * hu[3 * e + 1], sign * hu[3 * e + 2]
        for lo in range(start * BLOCK, end * BLOCK, BLOCK):
            n = np.uintp(min(BLOCK, c_all - lo))
            s = np.uintp(i * c_all + lo)
            i0, i1, i2 = _offsets(i, c_all, lo)
            j0, j1, j2 = _offsets(j, c_all, lo)
            e0, e1, e2 = _offsets(e, c_all, lo)
            b = 3 * (lo // BLOCK * len(sender) + e)
            if k % sides == 0:
                du[b : b + 3] = zero
                for c in range(n):
                    dw[e0 + c] = zero
                    dw[e1 + c] = zero
                    dw[e2 + c] = zero
            # T0 = gs (hp0 w0 + p0 hw0)
            for c in range(n):
                g, p, f, r, h = gs[s + c], phi[j0 + c], w[e0 + c], hp[j0 + c], hw[e0 + c]
                dgs[s + c] += r * f + p * h
                dphi[j0 + c] += g * h
                dw[e0 + c] += g * r
            # T1 = (gv.hu) p1 w1 + (gv.u) (hp1 w1 + p1 hw1)
            du_x, du_y, du_z = zero, zero, zero
            for c in range(n):
                p, f, r, h = phi[j1 + c], w[e1 + c], hp[j1 + c], hw[e1 + c]
                gx, gy, gz = gv[i0 + c], gv[i1 + c], gv[i2 + c]
                t, d = p * f, r * f + p * h
                dgv[i0 + c] += t * hx + d * ux
                dgv[i1 + c] += t * hy + d * uy
                dgv[i2 + c] += t * hz + d * uz
                du_x += gx * d
                du_y += gy * d
                du_z += gz * d
                t, d = gx * hx + gy * hy + gz * hz, gx * ux + gy * uy + gz * uz
                dphi[j1 + c] += t * f + d * h
                dw[e1 + c] += t * p + d * r
            du[b] += sign * du_x
            du[b + 1] += sign * du_y
            du[b + 2] += sign * du_z
            if not has_v:
                continue
            # T2 = (gv.hv) p2 w2 + (gv.v) (hp2 w2 + p2 hw2)
            for c in range(n):
                p, f, r, h = phi[j2 + c], w[e2 + c], hp[j2 + c], hw[e2 + c]
                gx, gy, gz = gv[i0 + c], gv[i1 + c], gv[i2 + c]
                vx, vy, vz = v[j0 + c], v[j1 + c], v[j2 + c]
                mx, my, mz = hv[j0 + c], hv[j1 + c], hv[j2 + c]
                t, d = p * f, r * f + p * h
                dgv[i0 + c] += mx * t + vx * d
                dgv[i1 + c] += my * t + vy * d
                dgv[i2 + c] += mz * t + vz * d
                dv[j0 + c] += gx * d
                dv[j1 + c] += gy * d
                dv[j2 + c] += gz * d
                t, d = gx * mx + gy * my + gz * mz, gx * vx + gy * vy + gz * vz
                dphi[j2 + c] += t * f + d * h
                dw[e2 + c] += t * p + d * r


# Each task takes its share of the blocks, edge by edge; a single task runs in the calling thread.


@compile_shared
def _forward(  # type: ignore[no-untyped-def]  # pragma: no cover
    c_all, tasks, phi, v, w, u, sender, receiver, has_v, both, ds, dv
):
    blocks = (c_all + BLOCK - 1) // BLOCK
    if tasks == 1:
        _forward_blocks(0, blocks, c_all, phi, v, w, u, sender, receiver, has_v, both, ds, dv)
        return
    for k in prange(tasks):
        start, end = k * blocks // tasks, (k + 1) * blocks // tasks
        _forward_blocks(start, end, c_all, phi, v, w, u, sender, receiver, has_v, both, ds, dv)


@compile_shared
def _backward(  # type: ignore[no-untyped-def]  # pragma: no cover
    c_all, tasks, phi, v, w, u, sender, receiver, has_v, both, gs, gv, dphi, dv, dw, du
):
    blocks = (c_all + BLOCK - 1) // BLOCK
    if tasks == 1:
        _backward_blocks(0, blocks, c_all, phi, v, w, u, sender, receiver, has_v, both, gs, gv, dphi, dv, dw, du)
        return
    for k in prange(tasks):
        start, end = k * blocks // tasks, (k + 1) * blocks // tasks
        _backward_blocks(start, end, c_all, phi, v, w, u, sender, receiver, has_v, both, gs, gv, dphi, dv, dw, du)


@compile_shared
def _second_backward(  # type: ignore[no-untyped-def]  # pragma: no cover
    c_all, tasks, phi, v, w, u, sender, receiver, has_v, both, gs, gv, hp, hv, hw, hu, dphi, dv, dw, du, dgs, dgv
):
    blocks = (c_all + BLOCK - 1) // BLOCK
    if tasks == 1:
        _second_blocks(
            0, blocks, c_all, phi, v, w, u, sender, receiver, has_v, both, gs, gv, hp, hv, hw, hu,
            dphi, dv, dw, du, dgs, dgv,
        )  # fmt: skip
        return
    for k in prange(tasks):
        start, end = k * blocks // tasks, (k + 1) * blocks // tasks
        _second_blocks(
            start, end, c_all, phi, v, w, u, sender, receiver, has_v, both, gs, gv, hp, hv, hw, hu,
            dphi, dv, dw, du, dgs, dgv,
        )  # fmt: skip
