"""PaiNN's message sum and its first and second derivatives, each as one pass over the edges.

With phi = (p0, p1, p2) and v at the sender j, filters W = (w0, w1, w2) and the unit vector u of the edge e = (i <- j), per channel:

    ds_i = sum_e p0 w0,    dv_i = sum_e p1 w1 u + p2 w2 v_j        (Schuett et al. 2021, equations 7 and 8)

S = <gs, ds> + <gv, dv> is linear in each of phi, v, W, u, gs and gv. The backward pass returns the partial derivatives of S; its own
backward pass those of T, the derivative of S along the cotangents (hp, hv, hw, hu). All three are sums over edges of short products, so
nothing of shape [E, 3, C] is ever stored, where composing PyTorch's operations stores dozens such arrays.

The work is cut into blocks of channels, which share no output except du (summed over blocks afterwards): no atomics, and the result
does not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import config as numba_config
from numba import njit, prange, set_num_threads
from torch import Tensor

BLOCK = 64  # channels per task


def vector_message_reference(
    phi: Tensor, v: Tensor | None, filters: Tensor, directions: Tensor, sender: Tensor, receiver: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ds [N, C] and dv [N, 3C] in plain PyTorch, on any device.

    Args:
        phi: [N, 3C]. v: [N, 3C], component-major, or None for zero. filters: [E, 3C]. directions: [E, 3].
        sender, receiver: [E] int64.
    """
    c = phi.shape[1] // 3
    product = phi.index_select(0, sender) * filters
    ds = phi.new_zeros(phi.shape[0], c).index_add(0, receiver, product[:, :c])
    messages = directions.unsqueeze(2) * product[:, c : 2 * c].unsqueeze(1)
    if v is not None:
        messages = messages + v.index_select(0, sender).view(-1, 3, c) * product[:, 2 * c :].unsqueeze(1)
    messages = messages.reshape(-1, 3 * c)
    return ds, phi.new_zeros(phi.shape[0], 3 * c).index_add(0, receiver, messages)


def vector_message(
    phi: Tensor, v: Tensor | None, filters: Tensor, directions: Tensor, sender: Tensor, receiver: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the same as `vector_message_reference`; on a CPU by the fused kernels, differentiable twice."""
    if phi.device.type != "cpu" or phi.dtype not in (torch.float32, torch.float64):
        return vector_message_reference(phi, v, filters, directions, sender, receiver)
    # As many threads as PyTorch uses, so that one setting governs both.
    set_num_threads(min(torch.get_num_threads(), numba_config.NUMBA_NUM_THREADS))
    ds, dv = _Message.apply(phi, v, filters, directions, sender, receiver)
    return ds, dv


class _Message(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, phi: Tensor, v: Tensor | None, w: Tensor, u: Tensor, sender: Tensor, receiver: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(phi, v, w, u, sender, receiver)
        n, c = phi.shape[0], phi.shape[1] // 3
        ds, dv = phi.new_zeros(n, c), phi.new_zeros(n, 3 * c)
        _forward(*_arrays(phi, v, w, u, sender, receiver), v is not None, ds.numpy(), dv.numpy())
        return ds, dv

    @staticmethod
    def backward(ctx: Any, gs: Tensor, gv: Tensor) -> tuple[Tensor | None, ...]:
        phi, v, w, u, sender, receiver = ctx.saved_tensors
        return (*_MessageBackward.apply(phi, v, w, u, gs, gv, sender, receiver), None, None)


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
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        ctx.save_for_backward(phi, v, w, u, gs, gv, sender, receiver)
        has_v = v is not None
        dphi, dw = torch.zeros_like(phi), torch.empty_like(w)
        dv = torch.zeros_like(phi) if has_v else None
        du = _du_buffer(phi, u)
        _backward(
            *_arrays(phi, v, w, u, sender, receiver), has_v, *_plain(gs, gv),
            dphi.numpy(), _plain(dv if dv is not None else phi[:0])[0], dw.numpy(), du.numpy(),
        )  # fmt: skip
        return dphi, dv, dw, du.sum(dim=0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, hp: Tensor | None, hv: Tensor | None, hw: Tensor | None, hu: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        phi, v, w, u, gs, gv, sender, receiver = ctx.saved_tensors
        has_v = v is not None
        hp = torch.zeros_like(phi) if hp is None else hp
        hw = torch.zeros_like(w) if hw is None else hw
        hu = torch.zeros_like(u) if hu is None else hu
        hv = (torch.zeros_like(phi) if hv is None else hv) if has_v else phi[:0]
        dphi, dw = torch.zeros_like(phi), torch.empty_like(w)
        dv = torch.zeros_like(phi) if has_v else phi.new_zeros(0, phi.shape[1])
        dgs, dgv = torch.zeros_like(gs), torch.zeros_like(phi)
        du = _du_buffer(phi, u)
        _second_backward(
            *_arrays(phi, v, w, u, sender, receiver), has_v, *_plain(gs, gv, hp, hv, hw, hu),
            dphi.numpy(), dv.numpy(), dw.numpy(), du.numpy(), dgs.numpy(), dgv.numpy(),
        )  # fmt: skip
        return dphi, dv if has_v else None, dw, du.sum(dim=0), dgs, dgv, None, None


def _plain(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(t.detach().contiguous().numpy() for t in tensors)


def _arrays(
    phi: Tensor, v: Tensor | None, w: Tensor, u: Tensor, sender: Tensor, receiver: Tensor
) -> tuple[np.ndarray, ...]:
    return _plain(phi, phi[:0] if v is None else v, w, u, sender, receiver)


def _du_buffer(phi: Tensor, u: Tensor) -> Tensor:
    """One partial sum of du per block of channels."""
    blocks = (phi.shape[1] // 3 + BLOCK - 1) // BLOCK
    return u.new_empty(blocks, u.shape[0], 3)


# The loops below are kept to a few arrays each: LLVM vectorises a loop only if it can check at run time, with few comparisons, that
# what is written does not overlap what is read.


@njit(fastmath=True, error_model="numpy")
def _multiply(out, a, b):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    for c in range(len(out)):
        out[c] = a[c] * b[c]


@njit(fastmath=True, error_model="numpy")
def _multiply_add(out, a, b):  # type: ignore[no-untyped-def]  # pragma: no cover
    for c in range(len(out)):
        out[c] += a[c] * b[c]


@njit(fastmath=True, error_model="numpy")
def _add_scaled(x, y, z, a, s0, s1, s2):  # type: ignore[no-untyped-def]  # pragma: no cover
    for c in range(len(a)):
        x[c] += a[c] * s0
        y[c] += a[c] * s1
        z[c] += a[c] * s2


@njit(fastmath=True, error_model="numpy")
def _combine(out, x, y, z, s0, s1, s2):  # type: ignore[no-untyped-def]  # pragma: no cover
    for c in range(len(out)):
        out[c] = x[c] * s0 + y[c] * s1 + z[c] * s2


@njit(fastmath=True, error_model="numpy")
def _dot(out, x, y, z, vx, vy, vz):  # type: ignore[no-untyped-def]  # pragma: no cover
    for c in range(len(out)):
        out[c] = x[c] * vx[c] + y[c] * vy[c] + z[c] * vz[c]


@njit(fastmath=True, error_model="numpy")
def _inner(a, b, zero):  # type: ignore[no-untyped-def]  # pragma: no cover
    total = zero
    for c in range(len(a)):
        total += a[c] * b[c]
    return total


@njit(parallel=True, fastmath=True, cache=True, error_model="numpy")
def _forward(phi, v, w, u, sender, receiver, has_v, ds, dv):  # type: ignore[no-untyped-def]  # pragma: no cover
    c_all = phi.shape[1] // 3
    for block in prange((c_all + BLOCK - 1) // BLOCK):
        lo = block * BLOCK
        n = min(BLOCK, c_all - lo)
        c1, c2 = lo + c_all, lo + 2 * c_all
        t = np.empty(n, phi.dtype)
        for e in range(len(sender)):
            i, j = receiver[e], sender[e]
            x, y, z = dv[i, lo : lo + n], dv[i, c1 : c1 + n], dv[i, c2 : c2 + n]
            _multiply_add(ds[i, lo : lo + n], phi[j, lo : lo + n], w[e, lo : lo + n])
            _multiply(t, phi[j, c1 : c1 + n], w[e, c1 : c1 + n])
            _add_scaled(x, y, z, t, u[e, 0], u[e, 1], u[e, 2])
            if has_v:
                _multiply(t, phi[j, c2 : c2 + n], w[e, c2 : c2 + n])
                _multiply_add(x, t, v[j, lo : lo + n])
                _multiply_add(y, t, v[j, c1 : c1 + n])
                _multiply_add(z, t, v[j, c2 : c2 + n])


@njit(parallel=True, fastmath=True, cache=True, error_model="numpy")
def _backward(phi, v, w, u, sender, receiver, has_v, gs, gv, dphi, dv, dw, du):  # type: ignore[no-untyped-def]  # pragma: no cover
    c_all = phi.shape[1] // 3
    zero = phi.dtype.type(0)
    for block in prange((c_all + BLOCK - 1) // BLOCK):
        lo = block * BLOCK
        n = min(BLOCK, c_all - lo)
        c1, c2 = lo + c_all, lo + 2 * c_all
        t = np.empty(n, phi.dtype)
        for e in range(len(sender)):
            i, j = receiver[e], sender[e]
            g, gx, gy, gz = gs[i, lo : lo + n], gv[i, lo : lo + n], gv[i, c1 : c1 + n], gv[i, c2 : c2 + n]
            _multiply_add(dphi[j, lo : lo + n], g, w[e, lo : lo + n])
            _multiply(dw[e, lo : lo + n], g, phi[j, lo : lo + n])

            p, f = phi[j, c1 : c1 + n], w[e, c1 : c1 + n]
            _combine(t, gx, gy, gz, u[e, 0], u[e, 1], u[e, 2])
            _multiply_add(dphi[j, c1 : c1 + n], t, f)
            _multiply(dw[e, c1 : c1 + n], t, p)
            _multiply(t, p, f)
            du[block, e, 0], du[block, e, 1], du[block, e, 2] = (
                _inner(gx, t, zero),
                _inner(gy, t, zero),
                _inner(gz, t, zero),
            )

            if not has_v:
                dw[e, c2 : c2 + n] = zero
                continue
            p, f = phi[j, c2 : c2 + n], w[e, c2 : c2 + n]
            _dot(t, gx, gy, gz, v[j, lo : lo + n], v[j, c1 : c1 + n], v[j, c2 : c2 + n])
            _multiply_add(dphi[j, c2 : c2 + n], t, f)
            _multiply(dw[e, c2 : c2 + n], t, p)
            _multiply(t, p, f)
            _multiply_add(dv[j, lo : lo + n], gx, t)
            _multiply_add(dv[j, c1 : c1 + n], gy, t)
            _multiply_add(dv[j, c2 : c2 + n], gz, t)


@njit(parallel=True, fastmath=True, cache=True, error_model="numpy")
def _second_backward(  # type: ignore[no-untyped-def]  # pragma: no cover
    phi, v, w, u, sender, receiver, has_v, gs, gv, hp, hv, hw, hu, dphi, dv, dw, du, dgs, dgv
):
    c_all = phi.shape[1] // 3
    zero = phi.dtype.type(0)
    for block in prange((c_all + BLOCK - 1) // BLOCK):
        lo = block * BLOCK
        n = min(BLOCK, c_all - lo)
        c1, c2 = lo + c_all, lo + 2 * c_all
        t, d = np.empty(n, phi.dtype), np.empty(n, phi.dtype)
        for e in range(len(sender)):
            i, j = receiver[e], sender[e]
            g, gx, gy, gz = gs[i, lo : lo + n], gv[i, lo : lo + n], gv[i, c1 : c1 + n], gv[i, c2 : c2 + n]
            fx, fy, fz = dgv[i, lo : lo + n], dgv[i, c1 : c1 + n], dgv[i, c2 : c2 + n]
            # T0 = gs (hp0 w0 + p0 hw0)
            p, f, r, h = phi[j, lo : lo + n], w[e, lo : lo + n], hp[j, lo : lo + n], hw[e, lo : lo + n]
            _multiply_add(dgs[i, lo : lo + n], r, f)
            _multiply_add(dgs[i, lo : lo + n], p, h)
            _multiply_add(dphi[j, lo : lo + n], g, h)
            _multiply(dw[e, lo : lo + n], g, r)
            # T1 = (gv.hu) p1 w1 + (gv.u) (hp1 w1 + p1 hw1)
            p, f, r, h = phi[j, c1 : c1 + n], w[e, c1 : c1 + n], hp[j, c1 : c1 + n], hw[e, c1 : c1 + n]
            _multiply(t, p, f)
            _add_scaled(fx, fy, fz, t, hu[e, 0], hu[e, 1], hu[e, 2])
            _multiply(d, r, f)
            _multiply_add(d, p, h)
            _add_scaled(fx, fy, fz, d, u[e, 0], u[e, 1], u[e, 2])
            du[block, e, 0], du[block, e, 1], du[block, e, 2] = (
                _inner(gx, d, zero),
                _inner(gy, d, zero),
                _inner(gz, d, zero),
            )
            _combine(t, gx, gy, gz, hu[e, 0], hu[e, 1], hu[e, 2])
            _combine(d, gx, gy, gz, u[e, 0], u[e, 1], u[e, 2])
            _multiply_add(dphi[j, c1 : c1 + n], t, f)
            _multiply_add(dphi[j, c1 : c1 + n], d, h)
            _multiply(dw[e, c1 : c1 + n], t, p)
            _multiply_add(dw[e, c1 : c1 + n], d, r)
            if not has_v:
                dw[e, c2 : c2 + n] = zero
                continue
            # T2 = (gv.hv) p2 w2 + (gv.v) (hp2 w2 + p2 hw2)
            p, f, r, h = phi[j, c2 : c2 + n], w[e, c2 : c2 + n], hp[j, c2 : c2 + n], hw[e, c2 : c2 + n]
            vx, vy, vz = v[j, lo : lo + n], v[j, c1 : c1 + n], v[j, c2 : c2 + n]
            mx, my, mz = hv[j, lo : lo + n], hv[j, c1 : c1 + n], hv[j, c2 : c2 + n]
            _multiply(t, p, f)
            _multiply_add(fx, mx, t)
            _multiply_add(fy, my, t)
            _multiply_add(fz, mz, t)
            _multiply(d, r, f)
            _multiply_add(d, p, h)
            _multiply_add(fx, vx, d)
            _multiply_add(fy, vy, d)
            _multiply_add(fz, vz, d)
            _multiply_add(dv[j, lo : lo + n], gx, d)
            _multiply_add(dv[j, c1 : c1 + n], gy, d)
            _multiply_add(dv[j, c2 : c2 + n], gz, d)
            _dot(t, gx, gy, gz, mx, my, mz)
            _dot(d, gx, gy, gz, vx, vy, vz)
            _multiply_add(dphi[j, c2 : c2 + n], t, f)
            _multiply_add(dphi[j, c2 : c2 + n], d, h)
            _multiply(dw[e, c2 : c2 + n], t, p)
            _multiply_add(dw[e, c2 : c2 + n], d, r)
