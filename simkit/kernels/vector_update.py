"""The elementwise parts of PaiNN's update block with their first and second derivatives, each as one pass over the atoms.

With u = U v and w = V v, the two halves of one linear map of the vectors (Schuett et al. 2021, equations 9 and 10), per channel:

    n = (<w, w> + epsilon)^(1/2),   d = <u, w>                   `invariants`
    s' = s + a_ss + a_sv d,         v' = v + a_vv u              `gated_update`

In the backward passes g_ is the gradient of what is named after it; in those of the backward passes h_ is the cotangent of its gradient.
Composing PyTorch's operations takes some forty passes over arrays of the vectors' size where these take six. Atoms share no output, so
the result does not depend on the number of threads. Arrays are passed flat.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from simkit.kernels.blocks import compile_blocks, compile_shared, flat
from simkit.kernels.threads import task_count

EPSILON = 1e-8  # keeps the norm of a vanishing vector differentiable
ATOMS = 64  # that one thread takes at least


def invariants_reference(s: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (s | n) [N, 2C], d [N, C] and u [N, 3C] in plain PyTorch, on any device.

    Args:
        s: [N, C]. mixed: [N, 3, 2C], u and w side by side.
    """
    u, w = mixed.split(s.shape[1], dim=2)
    norm = torch.sqrt((w * w).sum(dim=1) + EPSILON)
    return torch.cat([s, norm], dim=1), (u * w).sum(dim=1), u.reshape(len(s), 3 * s.shape[1])


def gated_update_reference(s: Tensor, v: Tensor, a: Tensor, d: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return s' [N, C] and v' [N, 3C] in plain PyTorch, on any device.

    Args:
        s, d: [N, C]. v, u: [N, 3C], component-major. a: [N, 3C], a_vv, a_sv and a_ss side by side.
    """
    a_vv, a_sv, a_ss = a.split(s.shape[1], dim=1)
    return s + a_ss + a_sv * d, v + a_vv.repeat(1, 3) * u


def invariants(s: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same as `invariants_reference`; on a CPU by the fused kernels, differentiable twice."""
    if s.device.type != "cpu" or s.dtype not in (torch.float32, torch.float64):
        return invariants_reference(s, mixed)
    x, d, u = _Invariants.apply(s, mixed)
    return x, d, u


def gated_update(s: Tensor, v: Tensor, a: Tensor, d: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same as `gated_update_reference`; on a CPU by the fused kernels, differentiable twice."""
    if s.device.type != "cpu" or s.dtype not in (torch.float32, torch.float64):
        return gated_update_reference(s, v, a, d, u)
    new_s, new_v = _Update.apply(s, v, a, d, u)
    return new_s, new_v


@dataclass(frozen=True)
class Invariants:
    """`invariants` and its derivatives as plain values, without a record.

    Args:
        mixed: [N, 3, 2C].
    """

    mixed: Tensor

    def forward(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (s | n), d and u."""
        n, c = s.shape
        x, d, u = s.new_empty(n, 2 * c), s.new_empty(n, c), s.new_empty(n, 3 * c)
        _invariants(n, c, _tasks(n), *flat(s, self.mixed, x, d, u))
        return x, d, u

    def backward(self, gx: Tensor, gd: Tensor, gu: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of s and mixed."""
        n, c = gd.shape
        ds, dmixed = gd.new_empty(n, c), gd.new_empty(self.mixed.shape)
        _invariants_backward(n, c, _tasks(n), *flat(self.mixed, gx, gd, gu, ds, dmixed))
        return ds, dmixed

    def second(self, gx: Tensor, gd: Tensor, hs: Tensor, hmixed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of mixed, gx, gd and gu from the cotangents of the gradients of s and mixed."""
        n, c = gd.shape
        dmixed = gd.new_empty(self.mixed.shape)
        dgx, dgd, dgu = gd.new_empty(n, 2 * c), gd.new_empty(n, c), gd.new_empty(n, 3 * c)
        _invariants_second(n, c, _tasks(n), *flat(self.mixed, gx, gd, hs, hmixed, dmixed, dgx, dgd, dgu))
        return dmixed, dgx, dgd, dgu


@dataclass(frozen=True)
class Update:
    """`gated_update` and its derivatives as plain values, without a record.

    Args:
        a: [N, 3C]. d: [N, C]. u: [N, 3C].
    """

    a: Tensor
    d: Tensor
    u: Tensor

    def forward(self, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return s' and v'."""
        new_s, new_v = s.new_empty(s.shape), v.new_empty(v.shape)
        _update(*s.shape, _tasks(len(s)), *flat(s, v, self.a, self.d, self.u, new_s, new_v))
        return new_s, new_v

    def backward(self, gs: Tensor, gv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of a, d and u; those of s and v are gs and gv."""
        a, d, u = self.a, self.d, self.u
        da, dd, du = a.new_empty(a.shape), d.new_empty(d.shape), u.new_empty(u.shape)
        _update_backward(*d.shape, _tasks(len(d)), *flat(a, d, u, gs, gv, da, dd, du))
        return da, dd, du

    def second(self, gs: Tensor, gv: Tensor, ha: Tensor, hd: Tensor, hu: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of a, d, u, gs and gv from the cotangents of the gradients of a, d and u."""
        a, d, u = self.a, self.d, self.u
        outputs = tuple(x.new_empty(x.shape) for x in (a, d, u, gs, gv))
        _update_second(*d.shape, _tasks(len(d)), *flat(a, d, u, gs, gv, ha, hd, hu, *outputs))
        return outputs


class _Invariants(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(mixed)
        return Invariants(mixed).forward(s)

    @staticmethod
    def backward(ctx: Any, gx: Tensor, gd: Tensor, gu: Tensor) -> tuple[Tensor, Tensor]:
        (mixed,) = ctx.saved_tensors
        ds, dmixed = _InvariantsBackward.apply(mixed, gx, gd, gu)
        return ds, dmixed


class _InvariantsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mixed: Tensor, gx: Tensor, gd: Tensor, gu: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(mixed, gx, gd)
        return Invariants(mixed).backward(gx, gd, gu)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, hs: Tensor, hmixed: Tensor) -> tuple[Tensor, ...]:
        mixed, gx, gd = ctx.saved_tensors
        return Invariants(mixed).second(gx, gd, hs, hmixed)


class _Update(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, v: Tensor, a: Tensor, d: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(a, d, u)
        return Update(a, d, u).forward(s, v)

    @staticmethod
    def backward(ctx: Any, gs: Tensor, gv: Tensor) -> tuple[Tensor, ...]:
        return gs, gv, *_UpdateBackward.apply(*ctx.saved_tensors, gs, gv)


class _UpdateBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, d: Tensor, u: Tensor, gs: Tensor, gv: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(a, d, u, gs, gv)
        return Update(a, d, u).backward(gs, gv)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, ha: Tensor, hd: Tensor, hu: Tensor) -> tuple[Tensor, ...]:
        a, d, u, gs, gv = ctx.saved_tensors
        return Update(a, d, u).second(gs, gv, ha, hd, hu)


def _tasks(atoms: int) -> int:
    return task_count(max(1, atoms // ATOMS))


@njit
def _sections(i, c_all):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """Where the sections of an atom begin in rows of one, two and three; unsigned, so that no negative indices are looked for."""
    c = np.uintp(c_all)
    s, x, k = np.uintp(i * c_all), np.uintp(2 * i * c_all), np.uintp(3 * i * c_all)
    return s, x, x + c, k, k + c, k + c + c


@njit
def _halves(i, c_all):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Where the three components of u and those of w begin in the mixed vectors of an atom."""
    c, m = np.uintp(c_all), np.uintp(6 * i * c_all)
    return m, m + c + c, m + c + c + c + c, m + c, m + c + c + c, m + c + c + c + c + c


@compile_blocks
def _invariants_atoms(start, end, c_all, s, mixed, x, d, u):  # type: ignore[no-untyped-def]  # pragma: no cover
    tiny = s.dtype.type(EPSILON)
    for i in range(start, end):
        j, x0, x1, k0, k1, k2 = _sections(i, c_all)
        u0, u1, u2, w0, w1, w2 = _halves(i, c_all)
        for c in range(np.uintp(c_all)):
            ux, uy, uz, wx, wy, wz = (
                mixed[u0 + c],
                mixed[u1 + c],
                mixed[u2 + c],
                mixed[w0 + c],
                mixed[w1 + c],
                mixed[w2 + c],
            )
            x[x0 + c] = s[j + c]
            x[x1 + c] = math.sqrt(wx * wx + wy * wy + wz * wz + tiny)
            d[j + c] = ux * wx + uy * wy + uz * wz
            u[k0 + c] = ux
            u[k1 + c] = uy
            u[k2 + c] = uz


@compile_blocks
def _invariants_backward_atoms(start, end, c_all, mixed, gx, gd, gu, ds, dmixed):  # type: ignore[no-untyped-def]  # pragma: no cover
    tiny, one = gd.dtype.type(EPSILON), gd.dtype.type(1)
    for i in range(start, end):
        j, x0, x1, k0, k1, k2 = _sections(i, c_all)
        u0, u1, u2, w0, w1, w2 = _halves(i, c_all)
        for c in range(np.uintp(c_all)):
            wx, wy, wz = mixed[w0 + c], mixed[w1 + c], mixed[w2 + c]
            g, f = gd[j + c], gx[x1 + c] * (one / math.sqrt(wx * wx + wy * wy + wz * wz + tiny))
            ds[j + c] = gx[x0 + c]
            dmixed[u0 + c] = gu[k0 + c] + g * wx
            dmixed[u1 + c] = gu[k1 + c] + g * wy
            dmixed[u2 + c] = gu[k2 + c] + g * wz
            dmixed[w0 + c] = g * mixed[u0 + c] + f * wx
            dmixed[w1 + c] = g * mixed[u1 + c] + f * wy
            dmixed[w2 + c] = g * mixed[u2 + c] + f * wz


@compile_blocks
def _invariants_second_atoms(start, end, c_all, mixed, gx, gd, hs, hm, dmixed, dgx, dgd, dgu):  # type: ignore[no-untyped-def]  # pragma: no cover
    # T = <hs, gs> + <hu, gu + gd w> + <hw, gd u + gn w / n>
    tiny, one = gd.dtype.type(EPSILON), gd.dtype.type(1)
    for i in range(start, end):
        j, x0, x1, k0, k1, k2 = _sections(i, c_all)
        u0, u1, u2, w0, w1, w2 = _halves(i, c_all)
        for c in range(np.uintp(c_all)):
            ux, uy, uz, wx, wy, wz = (
                mixed[u0 + c],
                mixed[u1 + c],
                mixed[u2 + c],
                mixed[w0 + c],
                mixed[w1 + c],
                mixed[w2 + c],
            )
            px, py, pz, qx, qy, qz = hm[u0 + c], hm[u1 + c], hm[u2 + c], hm[w0 + c], hm[w1 + c], hm[w2 + c]
            inverse = one / math.sqrt(wx * wx + wy * wy + wz * wz + tiny)
            along = (qx * wx + qy * wy + qz * wz) * inverse
            g, f, t = gd[j + c], gx[x1 + c] * inverse, along * inverse
            dgx[x0 + c] = hs[j + c]
            dgx[x1 + c] = along
            dgd[j + c] = px * wx + py * wy + pz * wz + qx * ux + qy * uy + qz * uz
            dgu[k0 + c] = px
            dgu[k1 + c] = py
            dgu[k2 + c] = pz
            dmixed[u0 + c] = qx * g
            dmixed[u1 + c] = qy * g
            dmixed[u2 + c] = qz * g
            dmixed[w0 + c] = px * g + f * (qx - wx * t)
            dmixed[w1 + c] = py * g + f * (qy - wy * t)
            dmixed[w2 + c] = pz * g + f * (qz - wz * t)


@compile_blocks
def _update_atoms(start, end, c_all, s, v, a, d, u, new_s, new_v):  # type: ignore[no-untyped-def]  # pragma: no cover
    for i in range(start, end):
        j, _, _, k0, k1, k2 = _sections(i, c_all)
        for c in range(np.uintp(c_all)):
            gate = a[k0 + c]
            new_s[j + c] = s[j + c] + a[k2 + c] + a[k1 + c] * d[j + c]
            new_v[k0 + c] = v[k0 + c] + gate * u[k0 + c]
            new_v[k1 + c] = v[k1 + c] + gate * u[k1 + c]
            new_v[k2 + c] = v[k2 + c] + gate * u[k2 + c]


@compile_blocks
def _update_backward_atoms(start, end, c_all, a, d, u, gs, gv, da, dd, du):  # type: ignore[no-untyped-def]  # pragma: no cover
    for i in range(start, end):
        j, _, _, k0, k1, k2 = _sections(i, c_all)
        for c in range(np.uintp(c_all)):
            gx, gy, gz, g, gate = gv[k0 + c], gv[k1 + c], gv[k2 + c], gs[j + c], a[k0 + c]
            dd[j + c] = g * a[k1 + c]
            da[k0 + c] = gx * u[k0 + c] + gy * u[k1 + c] + gz * u[k2 + c]
            da[k1 + c] = g * d[j + c]
            da[k2 + c] = g
            du[k0 + c] = gate * gx
            du[k1 + c] = gate * gy
            du[k2 + c] = gate * gz


@compile_blocks
def _update_second_atoms(  # type: ignore[no-untyped-def]  # pragma: no cover
    start, end, c_all, a, d, u, gs, gv, ha, hd, hu, da, dd, du, dgs, dgv
):
    # T = ha_vv <gv, u> + ha_sv gs d + ha_ss gs + hd gs a_sv + a_vv <hu, gv>
    zero = a.dtype.type(0)
    for i in range(start, end):
        j, _, _, k0, k1, k2 = _sections(i, c_all)
        for c in range(np.uintp(c_all)):
            gx, gy, gz, g, gate = gv[k0 + c], gv[k1 + c], gv[k2 + c], gs[j + c], a[k0 + c]
            px, py, pz, p, q = hu[k0 + c], hu[k1 + c], hu[k2 + c], ha[k0 + c], ha[k1 + c]
            dgs[j + c] = q * d[j + c] + ha[k2 + c] + hd[j + c] * a[k1 + c]
            dd[j + c] = q * g
            dgv[k0 + c] = p * u[k0 + c] + gate * px
            dgv[k1 + c] = p * u[k1 + c] + gate * py
            dgv[k2 + c] = p * u[k2 + c] + gate * pz
            du[k0 + c] = p * gx
            du[k1 + c] = p * gy
            du[k2 + c] = p * gz
            da[k0 + c] = px * gx + py * gy + pz * gz
            da[k1 + c] = hd[j + c] * g
            da[k2 + c] = zero


# Each task takes its share of the atoms; a single task runs in the calling thread.


@compile_shared
def _invariants(n, c_all, tasks, s, mixed, x, d, u):  # type: ignore[no-untyped-def]  # pragma: no cover
    if tasks == 1:
        _invariants_atoms(0, n, c_all, s, mixed, x, d, u)
        return
    for k in prange(tasks):
        _invariants_atoms(k * n // tasks, (k + 1) * n // tasks, c_all, s, mixed, x, d, u)


@compile_shared
def _invariants_backward(n, c_all, tasks, mixed, gx, gd, gu, ds, dmixed):  # type: ignore[no-untyped-def]  # pragma: no cover
    if tasks == 1:
        _invariants_backward_atoms(0, n, c_all, mixed, gx, gd, gu, ds, dmixed)
        return
    for k in prange(tasks):
        _invariants_backward_atoms(k * n // tasks, (k + 1) * n // tasks, c_all, mixed, gx, gd, gu, ds, dmixed)


@compile_shared
def _invariants_second(n, c_all, tasks, mixed, gx, gd, hs, hm, dmixed, dgx, dgd, dgu):  # type: ignore[no-untyped-def]  # pragma: no cover
    if tasks == 1:
        _invariants_second_atoms(0, n, c_all, mixed, gx, gd, hs, hm, dmixed, dgx, dgd, dgu)
        return
    for k in prange(tasks):
        _invariants_second_atoms(
            k * n // tasks, (k + 1) * n // tasks, c_all, mixed, gx, gd, hs, hm, dmixed, dgx, dgd, dgu
        )


@compile_shared
def _update(n, c_all, tasks, s, v, a, d, u, new_s, new_v):  # type: ignore[no-untyped-def]  # pragma: no cover
    if tasks == 1:
        _update_atoms(0, n, c_all, s, v, a, d, u, new_s, new_v)
        return
    for k in prange(tasks):
        _update_atoms(k * n // tasks, (k + 1) * n // tasks, c_all, s, v, a, d, u, new_s, new_v)


@compile_shared
def _update_backward(n, c_all, tasks, a, d, u, gs, gv, da, dd, du):  # type: ignore[no-untyped-def]  # pragma: no cover
    if tasks == 1:
        _update_backward_atoms(0, n, c_all, a, d, u, gs, gv, da, dd, du)
        return
    for k in prange(tasks):
        _update_backward_atoms(k * n // tasks, (k + 1) * n // tasks, c_all, a, d, u, gs, gv, da, dd, du)


@compile_shared
def _update_second(n, c_all, tasks, a, d, u, gs, gv, ha, hd, hu, da, dd, du, dgs, dgv):  # type: ignore[no-untyped-def]  # pragma: no cover
    if tasks == 1:
        _update_second_atoms(0, n, c_all, a, d, u, gs, gv, ha, hd, hu, da, dd, du, dgs, dgv)
        return
    for k in prange(tasks):
        _update_second_atoms(
            k * n // tasks, (k + 1) * n // tasks, c_all, a, d, u, gs, gv, ha, hd, hu, da, dd, du, dgs, dgv
        )
